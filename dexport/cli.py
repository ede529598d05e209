"""The command line: what a user types becomes one call, and what goes wrong becomes one line and an exit code.

Exit codes: 0 done; 1 something broke; 2 the request was wrong; 130 interrupted.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from dexport.errors import DexportError

_CHATTY = "torch.onnx._internal"
"""Warns about optional packages, each time that a component is exported, through a handler of its own."""

Command = TypeVar("Command", bound=Callable[..., Any])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code; errors are one line on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = dexport.main(given, prog_name="dexport", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except (click.exceptions.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if "--debug" in given:
            traceback.print_exc()
        message, code = _explain(error)
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return code


def _explain(error: Exception) -> tuple[str, int]:
    """What to tell the user of an error, and the exit code."""
    if isinstance(error, DexportError):
        return str(error), error.exit_code
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx is not None else "dexport"
        return f"{error.format_message()} (see `{command} --help`)", error.exit_code
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    reason = f"{type(error).__name__}: {error}"
    return f"internal error: {reason}; run with --debug and report it", 1


def _common(command: Command) -> Command:
    """The flags that every command takes."""
    verbose = click.option(
        "-v", "--verbose", count=True, expose_value=False, callback=_start_logging, help="Log what happens; -vv for more."
    )
    debug = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
    return verbose(debug(command))


def _start_logging(_context: click.Context, _parameter: click.Parameter, level: int) -> None:
    """Warnings of dexport always, other messages with -v, on stderr."""
    if level or not logging.getLogger().handlers:
        shown = {0: logging.WARNING, 1: logging.INFO}.get(level, logging.DEBUG)
        form = "%(levelname)s %(name)s: %(message)s" if level else "%(levelname)s: %(message)s"
        logging.basicConfig(level=shown if level else logging.ERROR, format=form, force=True)
        logging.getLogger("dexport").setLevel(shown)
        if not level:
            logging.getLogger(_CHATTY).setLevel(logging.ERROR)


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="dexport", message="%(package)s %(version)s")
@_common
@click.pass_context
def dexport(context: click.Context) -> None:
    """Compile diffusion pipelines into bundles that run on edge devices without PyTorch.

    \b
    dexport build MODEL --target cpu -o model.dxb
    dexport run model.dxb --prompt "a red circle" -o out.png
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@dexport.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything that is known, as JSON.")
@_common
def targets(as_json: bool) -> None:
    """List every device that dexport knows: formats, memory, what is needed to build for it."""
    from dexport.commands import show_targets

    show_targets(as_json)


@dexport.command()
@click.argument("model", required=False)
@click.option("--target", metavar="ID", help="What to build for; `dexport targets` lists all.")
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    type=click.Path(path_type=Path),
    help="NAME.dxb for one file, else a folder.  [default: MODEL-TARGET.dxb]",
)
@click.option("--precision", type=click.Choice(["fp32", "fp16", "bf16"]), help="Of weights and arithmetic.  [default: the target's]")
@click.option("--size", "sizes", metavar="HxW", multiple=True, help="Height and width in pixels; may be given several times.")
@click.option("--steps", metavar="N[,N...]", help="Numbers of sampling steps that a run can ask for.")
@click.option("--scheduler", metavar="NAME", help="A scheduler class of diffusers.  [default: the pipeline's]")
@click.option("--guidance", metavar="G", type=float, help="Default guidance scale.  [default: the pipeline's]")
@click.option("--batch", metavar="B", type=int, help="Most pictures of one run.  [default: 1]")
@click.option("--kit", is_flag=True, default=None, help="Leave the engines to `dexport finalize` on the device; Jetsons always do.")
@click.option("--lora", "loras", metavar="FILE[:SCALE]", multiple=True, help="Merge a LoRA file; may be given several times.")
@click.option(
    "--golden", type=click.Choice(["auto", "none"]), help="Put inputs and outputs for `dexport selftest` into the bundle.  [default: auto]"
)
@click.option("--recipe", metavar="NAME", help="How to quantize: a name of `dexport recipes` or a YAML file.")
@click.option("--modelopt", metavar="CHECKPOINT", help="Quantize as NVIDIA ModelOpt did: what its save or export wrote.")
@click.option("--component", "parts", metavar="PART=RECIPE", multiple=True, help="Another recipe for a part, or PART=keep.")
@click.option("--skip", metavar="LAYER", multiple=True, help="Do not quantize a layer, or all that match 're:PATTERN'.")
@click.option("--calibration", metavar="PROMPTS.txt", help="One prompt per line to calibrate with.  [default: some of ours]")
@click.option("--calibration-size", metavar="N", type=click.IntRange(1), help="Pictures to calibrate with.  [default: 32]")
@click.option("--statistics", metavar="FILE", help="What `dexport calibrate` wrote, instead of calibrating now.")
@click.option("--budget-bytes", metavar="X", type=click.IntRange(1), help="Most bytes of quantized weights, for mixed precision.")
@click.option("--average-bits", metavar="B", type=float, help="The same as bits per weight, scales counted.")
@click.option("--budget-ms", metavar="MS", type=float, help="Or: most milliseconds of one denoiser step, as estimated for the target.")
@click.option("--allow-degrade", is_flag=True, default=None, help="Build the nearest that the target can do, and list it.")
@click.option("--repair", is_flag=True, default=None, help="Keep the fewest layers that make bad pictures good.")
@click.option("--min-psnr", metavar="DB", type=float, help="Fail below this median PSNR against the unquantized model.")
@click.option("--min-score", metavar="S", type=float, help="Fail below this mean score of --scorer.")
@click.option("--scorer", metavar="FILE.py:FUNCTION", help="Scores (prompt, picture); the file is executed.")
@click.option("--config", metavar="FILE.yaml", type=click.Path(path_type=Path), help="Options from a file; flags override it.")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Any option by its name in the file.")
@click.option("--dry-run", is_flag=True, help="Say what would be built, and stop.")
@_common
def build(output: Path | None, config: Path | None, settings: tuple[str, ...], dry_run: bool, **flags: Any) -> None:
    """Compile MODEL, a diffusers pipeline directory or a hub id, into a bundle; --recipe or --modelopt quantizes it."""
    from dexport.commands import build_command

    build_command({key: value for key, value in flags.items() if value not in (None, ())}, output, config, settings, dry_run)


@dexport.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--prompt", metavar="TEXT", help="What to draw.")
@click.option("--negative-prompt", metavar="TEXT", help="What to keep away from.")
@click.option("--class-label", metavar="N", type=int, help="Which class to draw, for class-conditional models.")
@click.option(
    "--seed", metavar="N", type=click.IntRange(0, 2**64 - 1), help="Same seed, same pictures, as in diffusers.  [default: random]"
)
@click.option("--steps", metavar="N", type=click.IntRange(1), help="Sampling steps; one of those the bundle has.")
@click.option("--size", metavar="HxW", help="Height and width in pixels; one of those the bundle has.")
@click.option("--guidance", metavar="G", type=float, help="Guidance scale.  [default: the bundle's]")
@click.option(
    "--count", metavar="N", type=click.IntRange(1), default=1, show_default=True, help="Pictures to make: out-0.png, out-1.png, ..."
)
@click.option("--noise", metavar="FILE.npy", type=click.Path(path_type=Path), help="Initial latents instead of seeded noise.")
@click.option("-o", "--output", metavar="OUT", type=click.Path(path_type=Path), required=True, help="OUT.png, .gif, .mp4 or .npy.")
@click.option("--release", is_flag=True, help="Free each component after its last use, for small devices.")
@click.option("--trust", is_flag=True, help="Run machine code that was not built here.")
@click.option("--json", "as_json", is_flag=True, help="Print files, seed and times as JSON.")
@_common
def run(**arguments: Any) -> None:
    """Make pictures or a video from BUNDLE."""
    from dexport.running import RunRequest, run_command

    run_command(RunRequest(**arguments))


@dexport.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
@_common
def recipes(name: str | None, as_json: bool) -> None:
    """List the ways to quantize, or explain one."""
    from dexport.commands import show_recipes

    show_recipes(name, as_json)


@dexport.command()
@click.argument("model")
@click.option("--prompts", metavar="FILE", type=click.Path(path_type=Path), help="One prompt (or class label) per line.")
@click.option("--steps", metavar="N", type=click.IntRange(1), help="Sampling steps.  [default: the pipeline's]")
@click.option("--size", metavar="HxW", help="Height and width in pixels.  [default: the pipeline's]")
@click.option("--scheduler", metavar="NAME", help="A scheduler class of diffusers.  [default: the pipeline's]")
@click.option("--guidance", metavar="G", type=float, help="Guidance scale.  [default: the pipeline's]")
@click.option(
    "--sampler",
    type=click.Choice(["uniform", "ndtc", "tdac", "zero-data"]),
    default="uniform",
    show_default=True,
    help="How the inputs for learned rounding are chosen; zero-data needs no prompts.",
)
@click.option("--calibration-size", metavar="N", type=click.IntRange(1), help="Pictures to make.  [default: one per prompt]")
@click.option("--seed", metavar="N", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of the first picture.")
@click.option("-o", "--output", metavar="STATISTICS", type=click.Path(path_type=Path), required=True, help="The file to write.")
@_common
def calibrate(**arguments: Any) -> None:
    """Run MODEL on prompts and write what every layer sees at every step, for any recipe; resumes where it was stopped."""
    from dexport.calibrating import CalibrateRequest, calibrate_command

    calibrate_command(CalibrateRequest(**arguments))


@dexport.command()
@click.argument("model")
@click.option("--statistics", metavar="FILE", type=click.Path(path_type=Path), required=True, help="What `dexport calibrate` wrote.")
@click.option("--recipe", metavar="NAME", default="vidit-q-mp", show_default=True, help="Whose treatments are tried.")
@click.option(
    "--metric",
    type=click.Choice(["sqnr", "output", "model", "end-to-end"]),
    default="output",
    show_default=True,
    help="Of the weight, the layer's output, the model's output, or the picture.",
)
@click.option("--ranges", metavar="K", type=click.IntRange(1), default=4, show_default=True, help="Parts of the schedule told apart.")
@click.option("--prompts", metavar="FILE", type=click.Path(path_type=Path), help="One prompt per line, for end-to-end.")
@click.option("--pictures", metavar="N", type=click.IntRange(1), default=4, show_default=True, help="Pictures per layer, for end-to-end.")
@click.option("--scorer", metavar="FILE.py:FUNCTION", help="Scores (prompt, picture); the file is executed.")
@click.option("-o", "--output", metavar="FILE.json", type=click.Path(path_type=Path), required=True, help="The table; a plot beside it.")
@_common
def sensitivity(**arguments: Any) -> None:
    """Say how much every layer of MODEL suffers from quantization, by range of the schedule; resumes where it was stopped."""
    from dexport.sensing import SensitivityRequest, sensitivity_command

    sensitivity_command(SensitivityRequest(**arguments))


@dexport.command()
@click.argument("reference")
@click.argument("candidate")
@click.option("--prompts", metavar="FILE", type=click.Path(path_type=Path), help="One prompt per line.  [default: some of ours]")
@click.option("--seeds", metavar="N", type=click.IntRange(1), default=1, show_default=True, help="Pictures per prompt.")
@click.option("--steps", metavar="N", type=click.IntRange(1), help="Sampling steps.  [default: what both have]")
@click.option("--size", metavar="HxW", help="Height and width in pixels.  [default: what both have]")
@click.option("--guidance", metavar="G", type=float, help="Guidance scale.  [default: the candidate's]")
@click.option("--scorer", metavar="FILE.py:FUNCTION", help="Scores (prompt, picture); the file is executed.")
@click.option("-o", "--output", metavar="REPORT.html", type=click.Path(path_type=Path), required=True, help="The report to write.")
@click.option("--json", "json_output", metavar="FILE", type=click.Path(path_type=Path), help="The same as JSON.")
@click.option("--write", is_flag=True, help="Put quality and report into the second bundle.")
@click.option("--trust", is_flag=True, help="Run machine code that was not built here.")
@_common
def compare(**arguments: Any) -> None:
    """Compare two bundles or pipeline directories at the same prompts and seeds."""
    from dexport.comparing import CompareRequest, compare_command

    compare_command(CompareRequest(**arguments))


@dexport.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
@_common
def inspect(bundle: Path, as_json: bool) -> None:
    """Show what is inside BUNDLE: components, bytes, formats, what left the loop, programs, kernels."""
    from dexport.commands import inspect_command

    inspect_command(bundle, as_json)


@dexport.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--trust", is_flag=True, help="Run machine code that was not built here.")
@_common
@click.pass_context
def selftest(context: click.Context, bundle: Path, trust: bool) -> None:
    """Run the golden inputs in BUNDLE and compare; exit code 1 where they differ."""
    from dexport.commands import selftest_command

    if not selftest_command(bundle, trust):
        context.exit(1)


@dexport.command()
@click.argument("subject", metavar="MODEL|BUNDLE")
@click.option("--target", metavar="ID", help="The device; `dexport targets` lists all.  [default: the bundle's]")
@click.option("--recipe", metavar="NAME", help="How MODEL would be quantized: a name of `dexport recipes` or a YAML file.")
@click.option("--size", metavar="HxW", help="Height and width in pixels.  [default: the pipeline's]")
@click.option("--steps", metavar="N", type=click.IntRange(1), help="Sampling steps.  [default: the pipeline's]")
@click.option("--allow-degrade", is_flag=True, help="Take the nearest to the recipe that the target can do.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@_common
def estimate(**arguments: Any) -> None:
    """Say what MODEL or BUNDLE would take on a device, in bytes and milliseconds; nothing is built and no weight is read."""
    from dexport.estimating import EstimateRequest, estimate_command

    estimate_command(EstimateRequest(**arguments))


@dexport.command()
@click.argument("kit", type=click.Path(path_type=Path))
@click.option("-o", "--output", metavar="OUT", type=click.Path(path_type=Path), help="The bundle to write.  [default: KIT-finished.dxb]")
@click.option(
    "--engines", metavar="FOLDER", type=click.Path(path_type=Path), help="Take what kit/build.sh built on a device without dexport."
)
@click.option("--test/--no-test", default=True, show_default=True, help="Run the golden inputs before anything is written.")
@click.option("--trust", is_flag=True, help="Compile sources of plugins in the kit that are not dexport's own.")
@click.option("--ssh", metavar="[USER@]HOST[:PORT]", help="Do it there, with OpenSSH: copy the kit, follow, bring the result back.")
@click.option("--detach", is_flag=True, help="With --ssh: return when it has started; it goes on without a connection.")
@click.option("--attach", is_flag=True, help="With --ssh: follow what was started, and bring the result back.")
@click.option("--status", is_flag=True, help="With --ssh: say how far it is; exit code 1 if it failed.")
@click.option("--clean", is_flag=True, help="With --ssh: delete the kit and its work there at the end; with --attach also what failed.")
@click.option("--remote-dexport", metavar="PATH", default="dexport", show_default=True, help="The dexport there.")
@click.option("--ssh-command", metavar="COMMAND", default="ssh", show_default=True, help="The OpenSSH client, with options if need be.")
@_common
@click.pass_context
def finalize(context: click.Context, /, **arguments: Any) -> None:
    """Build the engines of KIT on this device and write a finished bundle; resumes where it was stopped.

    With --ssh the device builds, and needs dexport too. A lost connection is made again; the same command goes on where it was.
    """
    from dexport.finalizing import FinalizeRequest, finalize_command

    if not finalize_command(FinalizeRequest(**arguments)):
        context.exit(1)


@dexport.command("finalize-job", hidden=True)
@click.argument("action")
@click.argument("digest")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def finalize_job(action: str, digest: str, arguments: tuple[str, ...]) -> None:
    """What `finalize --ssh` runs on the device."""
    from dexport.finalizing import job_command

    job_command(action, digest, arguments)


@dexport.group()
def plugins() -> None:
    """dexport's own operations as TensorRT plugins."""


@plugins.command("build")
@click.option("-o", "--output", metavar="DIR", required=True, type=click.Path(path_type=Path), help="The folder to write libraries into.")
@click.option("--sm", "sms", metavar="N", multiple=True, help="An architecture, such as 87; may be given several times.  [default: all]")
@click.option(
    "--tensorrt-include",
    metavar="DIR",
    envvar="TENSORRT_INCLUDE_DIR",
    type=click.Path(path_type=Path),
    help="The headers of TensorRT; without them there is a C launcher only.  [default: TENSORRT_INCLUDE_DIR]",
)
@_common
def build_plugins(output: Path, sms: tuple[str, ...], tensorrt_include: Path | None) -> None:
    """Compile the plugins with nvcc and say what registers and shared memory their kernels take; one that spills is an error."""
    from dexport.compiling import build_plugins_command

    build_plugins_command(output, sms, tensorrt_include)


@dexport.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@_common
def doctor(as_json: bool) -> None:
    """Say what this machine can build and run, and what is missing, with the command that mends it."""
    from dexport.doctor import doctor_command

    doctor_command(as_json)
