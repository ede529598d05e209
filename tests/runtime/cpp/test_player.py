"""dexport-run has the flags, pictures, error lines and exit codes of `dexport run`."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dexport.cli import main
from dexport.runtime.pipeline import load
from tests.runtime.small_disk import run_on_small_disk

Run = Callable[..., subprocess.CompletedProcess[str]]
_PROMPT = ("--prompt", "a small red circle")


@pytest.fixture(scope="module")
def player(cpp_build: Path) -> Path:
    return cpp_build / "player" / "dexport-run"


@pytest.fixture
def run(player: Path, pixart_cpu: Path, tmp_path: Path) -> Run:
    """Runs the player on the bundle in an empty folder."""

    def start(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(argument) for argument in (player, pixart_cpu, *arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)

    return start


def test_every_flag_means_what_it_means_in_python(run: Run, pixart_cpu: Path, tmp_path: Path) -> None:
    flags = ("--negative-prompt", "blue", "--seed", 2**63 + 5, "--steps", 4, "--size", "16x24", "--guidance", 3.5, "--count", 2)
    done = run(*_PROMPT, *flags, "-o", "out.npy", "--json", "--release")
    assert done.returncode == 0, done.stderr
    with load(pixart_cpu) as pipe:
        wanted = pipe(
            _PROMPT[1],
            negative_prompt="blue",
            seed=2**63 + 5,
            num_inference_steps=4,
            height=16,
            width=24,
            guidance_scale=3.5,
            num_images_per_prompt=2,
            output_type="np",
        )
    assert np.array_equal(np.load(tmp_path / "out.npy"), np.asarray(wanted.images))
    told = json.loads(done.stdout)
    assert (told["files"], told["seed"], told["shape"], told["program"]) == (["out.npy"], 2**63 + 5, [2, 16, 24, 3], wanted.program)
    assert told["load_s"] > 0 and told["make_s"] > 0 and told["peak_memory_bytes"] > 10 << 20


def test_pictures_files_and_last_line(run: Run, tmp_path: Path) -> None:
    done = run(*_PROMPT, "--steps", 4, "--seed", 7, "--count", 2, "--output", "out.png")
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path)) == ["out-0.png", "out-1.png"]
    assert done.stdout.startswith("wrote out-0.png to out-1.png (seed 7, loaded in ") and " MiB)\n" in done.stdout
    assert [line.split("] ")[1].split()[0] for line in done.stderr.splitlines()] == ["load", "make"]
    assert run(*_PROMPT, "--steps", 4, "--seed", 7, "--count", 2, "-o", "all.npy").returncode == 0
    pictures = [np.asarray(Image.open(tmp_path / f"out-{index}.png")) for index in range(2)]
    assert np.array_equal(pictures, np.load(tmp_path / "all.npy"))


def test_a_run_without_a_seed_tells_the_one_it_drew(run: Run, tmp_path: Path) -> None:
    first = json.loads(run(*_PROMPT, "--steps", 4, "-o", "a.npy", "--json").stdout)
    assert json.loads(run(*_PROMPT, "--steps", 4, "-o", "b.npy", "--json").stdout)["seed"] != first["seed"]
    run(*_PROMPT, "--steps", 4, "--seed", first["seed"], "-o", "c.npy")
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "c.npy").read_bytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64])
def test_noise_from_a_file(run: Run, pixart_cpu: Path, tmp_path: Path, dtype: type) -> None:
    latents = (np.random.default_rng(0).standard_normal((1, 4, 8, 8)) * 2).astype(dtype)
    np.save(tmp_path / "noise.npy", latents)
    done = run(*_PROMPT, "--steps", 4, "--noise", "noise.npy", "-o", "out.npy")
    assert done.returncode == 0, done.stderr
    with load(pixart_cpu) as pipe:
        wanted = pipe(_PROMPT[1], num_inference_steps=4, latents=latents.astype(np.float32), output_type="np")
    assert np.array_equal(np.load(tmp_path / "out.npy"), np.asarray(wanted.images))


def test_noise_that_is_none(run: Run, tmp_path: Path) -> None:
    whole = tmp_path / "whole.npy"
    np.save(whole, np.zeros((1, 4, 8, 8), np.float32))
    (tmp_path / "short.npy").write_bytes(whole.read_bytes()[:-4])
    np.save(tmp_path / "complex.npy", np.zeros((1, 4, 8, 8), np.complex64))
    np.save(tmp_path / "columns.npy", np.asfortranarray(np.zeros((2, 3), np.float32)))
    (tmp_path / "text.npy").write_text("x" * 100)
    for name, header in (("long", b"'descr': '" + b"x" * 60000), ("sizes", b"'descr': '<f4', 'fortran_order': False, 'shape': (9 9x)")):
        head = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
        (tmp_path / f"{name}.npy").write_bytes(head + header)
    for name in ("short.npy", "complex.npy", "columns.npy", "text.npy", "missing.npy", "long.npy", "sizes.npy"):
        done = run(*_PROMPT, "--noise", name, "-o", "out.npy")
        assert done.returncode == 2 and done.stderr.startswith(f"error: --noise {name}: expected a .npy file with numbers, got "), (
            done.stderr
        )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["-o"],
        ["-o", "nowhere/out.png"],
        [*_PROMPT, "-o", "out.png", "--steps", "7"],
        [*_PROMPT, "-o", "out.png", "--size", "8x8"],
        [*_PROMPT, "-o", "out.png", "--size", "8"],
        [*_PROMPT, "-o", "out.png", "--steps", "0"],
        [*_PROMPT, "-o", "out.png", "--steps", "x"],
        [*_PROMPT, "-o", "out.png", "--count", "0"],
        [*_PROMPT, "-o", "out.npy", "--count", "65537"],
        [*_PROMPT, "-o", "out.npy", "--count", "1152921504606846977"],
        [*_PROMPT, "-o", "out.png", "--seed", "-1"],
        [*_PROMPT, "-o", "out.png", "--seed", "18446744073709551616"],
        [*_PROMPT, "-o", "out.png", "--guidance", "x"],
        [*_PROMPT, "-o", "out.png", "--class-label", "x"],
        [*_PROMPT, "-o", "out.png", "--class-label", "1"],
        [*_PROMPT, "-o", "out.png", "--no-such-flag"],
        [*_PROMPT, "-o", "out.png", "two"],
        ["-o", "out.png"],
    ],
    ids=" ".join,
)
def test_errors_are_those_of_python(
    arguments: list[str], run: Run, pixart_cpu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = main(["run", str(pixart_cpu), *arguments])
    wanted = (
        capsys.readouterr()
        .err.splitlines()[-1]
        .replace("dexport run --help", "dexport-run --help")
        .replace("dexport --help", "dexport-run --help")
    )
    done = run(*arguments)
    assert (done.returncode, done.stderr.splitlines()[-1].replace("'--output' requires", "'-o' requires")) == (code, wanted)
    assert done.stdout == "" and os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "arguments",
    [("--seed", "9" * 100_000), ("--steps", "9" * 100_000), ("--size", " " * 100_000 + "1x"), ("--size", "1" * 100_000 + "x1")],
    ids=lambda arguments: arguments[0],
)
def test_long_arguments_are_refused(arguments: tuple[str, str], run: Run) -> None:
    done = run(*_PROMPT, "-o", "out.png", *arguments)
    assert done.returncode == 2 and done.stderr.startswith("error: "), (done.returncode, done.stderr[:200])


def test_a_size_may_have_spaces_around(run: Run) -> None:
    done = run(*_PROMPT, "-o", "out.png", "--steps", "4", "--size", " 16x24\t")
    assert done.returncode == 0, done.stderr


def test_a_bundle_that_is_none(player: Path, tmp_path: Path) -> None:
    for arguments, line in (
        (["missing.dxb", "-o", "out.png"], "error: missing.dxb: expected a bundle, got nothing there; check the path"),
        ([], "error: Missing argument 'BUNDLE'."),
    ):
        done = subprocess.run([player, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 2 and done.stderr.startswith(line), done.stderr


def test_videos_and_other_formats_are_refused_with_what_to_do(run: Run) -> None:
    done = run(*_PROMPT, "-o", "out.gif")
    assert done.returncode == 2
    assert done.stderr == "error: output out.gif: expected a file name that ends in .png, .npy for pictures, got '.gif'; write to out.png\n"


def test_help_and_version(player: Path) -> None:
    told = subprocess.run([player, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(flag in told for flag in ("--prompt", "--negative-prompt", "--seed", "--steps", "--size", "--guidance", "--output"))
    assert subprocess.run([player, "--version"], capture_output=True, text=True, check=True).stdout.startswith("dexport-run ")


def test_ctrl_c_stops_the_run_and_leaves_nothing(player: Path, pixart_cpu: Path, tmp_path: Path) -> None:
    command = [player, pixart_cpu, *_PROMPT, "-o", "out.png"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("make" in line for line in process.stderr)  # the engines are compiled next, which takes longer than the signal
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert (process.returncode, said) == (130, "interrupted\n")
    assert os.listdir(tmp_path) == []


def test_a_bar_on_a_terminal_which_is_wiped_away(player: Path, pixart_cpu: Path, tmp_path: Path) -> None:
    here, there = pty.openpty()
    command = [player, pixart_cpu, *_PROMPT, "--steps", "4", "-o", "out.png"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=there, stdout=subprocess.DEVNULL) as process:
        os.close(there)
        shown = b""
        try:
            while part := os.read(here, 4096):
                shown += part
        except OSError:  # Linux's way to say that the other end is closed
            pass
    os.close(here)
    assert process.returncode == 0
    assert "━ ".encode() in shown and b"make" in shown and shown.endswith(b"\r\x1b[2K")


def test_a_full_disk(player: Path, pixart_cpu: Path, tmp_path: Path) -> None:
    code = """
import os, subprocess, sys
try:
    with open("filler", "wb") as filler:
        while True:
            filler.write(bytes(4096))
            filler.flush()
except OSError:
    pass
done = subprocess.run(sys.argv[1:] + ["-o", "out.npy"], capture_output=True, text=True)
print(done.returncode, done.stderr.splitlines()[-1], os.listdir("."))
"""
    told = run_on_small_disk(tmp_path, code, str(player), str(pixart_cpu), *_PROMPT, "--steps", "4", "--count", "2")
    fix = "free some space or write to another disk with -o"
    assert told == f"1 error: out.npy: expected space for the result, got a full disk; {fix} ['filler']\n"
