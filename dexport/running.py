"""`dexport run`: a request from the command line becomes files."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from dexport.errors import UserError
from dexport.exporter.options import parse_size
from dexport.progress import reporting
from dexport.runtime.bundle import open_bundle
from dexport.runtime.manifest import Manifest
from dexport.runtime.media import check_output, save

_RANDOM_SEED_BITS = 32
_FRAMES_PER_SECOND = 16  # of a video whose bundle does not say
_PICTURES_NDIM = 4


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """The arguments of `dexport run`, as typed."""

    bundle: Path
    prompt: str | None
    negative_prompt: str | None
    class_label: int | None
    seed: int | None
    steps: int | None
    size: str | None
    guidance: float | None
    count: int
    noise: Path | None
    output: Path
    release: bool
    trust: bool
    as_json: bool


def run_command(request: RunRequest) -> None:
    """Makes the pictures and says where they are.

    Raises:
        UserError: whatever is wrong with the request, before the work where that can be known.
    """
    from dexport.runtime.pipeline import load

    size = parse_size(request.size) if request.size is not None else (None, None)
    latents = _read_noise(request.noise) if request.noise is not None else None
    manifest = open_bundle(request.bundle, verify="sizes").manifest
    video = manifest.frames is not None
    check_output(request.output, video=video)
    seed = secrets.randbits(_RANDOM_SEED_BITS) if request.seed is None else request.seed
    with reporting() as report:
        report(f"load {request.bundle}", None)
        start = time.monotonic()
        with load(request.bundle, trust=request.trust, keep=not request.release) as pipe:
            loaded = time.monotonic()
            total = request.steps or _default_steps(manifest)
            report("make", 0.0)
            result = pipe(
                request.prompt,
                negative_prompt=request.negative_prompt,
                class_labels=request.class_label,
                num_inference_steps=request.steps,
                height=size[0],
                width=size[1],
                guidance_scale=request.guidance,
                num_images_per_prompt=request.count,
                seed=seed,
                latents=latents,
                callback_on_step_end=lambda _pipe, step, _timestep, _values: report("make", min(1.0, (step + 1) / total)),
                output_type="np",
            )
        made = time.monotonic()
    pixels = np.asarray(result.images if result.frames is None else result.frames)
    if video and pixels.ndim == _PICTURES_NDIM:
        pixels = pixels[:, None]
    files = save(pixels, request.output, frames_per_second=manifest.frames_per_second or _FRAMES_PER_SECOND)
    seconds = {"load_s": round(loaded - start, 3), "make_s": round(made - loaded, 3)}
    if request.as_json:
        document = {"files": [str(file) for file in files], "seed": seed, "shape": list(pixels.shape), "program": result.program, **seconds}
        click.echo(json.dumps(document))
    else:
        names = str(files[0]) if len(files) == 1 else f"{files[0]} to {files[-1].name}"
        click.echo(f"wrote {names} (seed {seed}, loaded in {seconds['load_s']:.1f} s, made in {seconds['make_s']:.1f} s)")


def _default_steps(manifest: Manifest) -> int:
    return manifest.programs[0].steps if manifest.programs else 1


def _read_noise(path: Path) -> npt.NDArray[np.float32]:
    """Latents [count, ...] from a .npy file."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        got = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"--noise {path}", expected="a .npy file with numbers", got=got, fix="write it with numpy.save") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        kind = str(array.dtype) if isinstance(array, np.ndarray) else "an archive"
        raise UserError(f"--noise {path}", expected="a .npy file with numbers", got=kind, fix="write it with numpy.save")
    return array.astype(np.float32)
