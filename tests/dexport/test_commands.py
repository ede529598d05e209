"""targets, build, inspect, selftest and run, as typed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dexport.cli import main
from dexport.commands import build_options
from dexport.errors import UserError
from dexport.runtime.bundle import open_bundle
from dexport.runtime.pipeline import Pipeline
from tests.runtime.sample_bundle import write_sample


def _ok(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def _refused(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    assert main([str(argument) for argument in arguments]) == code
    return capsys.readouterr().err.splitlines()[-1]


def test_targets_lists_every_device(capsys: pytest.CaptureFixture[str]) -> None:
    text = _ok(capsys, "targets")
    orin = next(line for line in text.splitlines() if line.startswith("jetson-orin-nano-8gb"))
    assert "8 GiB" in orin and "JetPack 6.1" in orin and "int8" in orin
    assert "TensorRT-RTX has no SM 9.0" in text
    assert "dexport[export,rtx]" in text


def test_targets_as_json_have_units_and_sources(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["id"]: row for row in json.loads(_ok(capsys, "targets", "--json"))}
    assert rows["rtx-4090"]["memory_gib"] == 24
    assert rows["rtx-4090"]["sources"]["memory_gib"]


def test_flags_override_settings_which_override_the_file(tmp_path: Path) -> None:
    config = tmp_path / "build.yaml"
    config.write_text("model: m\ntarget: cpu\nsteps: [10, 20]\nguidance: 3\nbatch: 2\n")
    options = build_options({"guidance": 7.5}, config, ["guidance=5", "batch=4", "guidance-batching=off"])
    assert (options.model, options.steps, options.guidance, options.batch, options.guidance_batching) == ("m", (10, 20), 7.5, 4, False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("stepz: 3", "expected one of the options steps, got 'stepz'; correct the key"),
        ("batch: many", "batch: expected a value of its kind"),
        ("- a", "expected options as KEY: VALUE, got list"),
        ("{", "expected YAML"),
        ("1: 2", "expected options as KEY: VALUE"),
    ],
)
def test_mistakes_in_the_file_name_the_file(content: str, message: str, tmp_path: Path) -> None:
    config = tmp_path / "build.yaml"
    config.write_text(content)
    with pytest.raises(UserError) as error:
        build_options({"model": "m", "target": "cpu"}, config, [])
    assert str(error.value).startswith(f"{config}")
    assert message in str(error.value)


def test_an_empty_file_and_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").touch()
    assert build_options({"model": "m", "target": "cpu"}, tmp_path / "empty.yaml", []).target == "cpu"
    with pytest.raises(UserError, match="expected a YAML file, got No such file or directory"):
        build_options({}, tmp_path / "none.yaml", [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "cpu"], "MODEL: expected a diffusers pipeline directory or a hub id"),
        (["m"], "--target: expected what to build for, such as cpu, got nothing; `dexport targets` lists all"),
        (["m", "--target", "cpu", "--set", "steps"], "--set: expected KEY=VALUE, such as steps=20,30, got 'steps'"),
        (["m", "--target", "cpu", "--set", "colour=1"], "--set: expected one of the options"),
        (["m", "--target", "cpu", "--size", "64"], "size: expected HEIGHTxWIDTH in pixels"),
        (["m", "--target", "cpu", "--steps", "0"], "steps: expected positive numbers"),
    ],
)
def test_wrong_requests_to_build(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in _refused(capsys, "build", *arguments)


def test_a_dry_run_writes_nothing(pixart: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = _ok(capsys, "build", pixart, "--target", "jetson-orin", "--dry-run", "-o", tmp_path / "out.dxb", "--precision", "fp16")
    assert "jetson-orin@jetpack-6.1" in text and "fp16" in text
    assert not list(tmp_path.iterdir())


def test_a_build_says_where_the_bundle_is(pixart: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "kit"
    flags = ["--target", "jetson-orin", "--steps", "2", "--golden", "none", "--guidance", "3", "--set", "guidance_batching=off"]
    text = _ok(capsys, "build", pixart, "-o", out, *flags)
    assert text.startswith(f"wrote {out}: ")
    config = open_bundle(out).manifest.config
    assert (config["steps"], config["guidance"], config["guidance_batching"], config["golden"]) == ([2], 3.0, False, "none")
    assert "golden inputs" in _refused(capsys, "selftest", out)


def test_inspect_in_words_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_sample(tmp_path / "sample.dxb")
    assert "jetson-orin@jetpack-6.2" in _ok(capsys, "inspect", bundle)
    document = json.loads(_ok(capsys, "inspect", bundle, "--json"))
    assert document["components"]["loop"]["weight_bytes"] == 24


def test_selftest_passes_and_fails(pixart_cpu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = _ok(capsys, "selftest", pixart_cpu).splitlines()
    assert {line.split()[0] for line in lines} == {"ok"}
    assert lines[-1].split()[1] == "pipeline"


def test_run_makes_the_same_picture_from_the_same_seed(pixart_cpu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", pixart_cpu, "--prompt", "a red circle", "--seed", 3]
    assert _ok(capsys, *command, "-o", tmp_path / "a.png").startswith(f"wrote {tmp_path / 'a.png'} (seed 3, ")
    document = json.loads(_ok(capsys, *command, "--count", 2, "-o", tmp_path / "b.npy", "--json"))
    assert (document["files"], document["seed"], document["shape"]) == ([str(tmp_path / "b.npy")], 3, [2, 16, 16, 3])
    again = json.loads(_ok(capsys, *command, "-o", tmp_path / "c.npy", "--json", "--steps", 20, "--size", "16x16"))
    assert again["shape"] == [1, 16, 16, 3]
    assert np.array_equal(np.load(tmp_path / "c.npy")[0], np.asarray(Image.open(tmp_path / "a.png")))


def test_run_frees_each_component_after_its_last_use(
    pixart_cpu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[str] = []
    release = Pipeline._release
    monkeypatch.setattr(Pipeline, "_release", lambda self, name, size: (released.append(name), release(self, name, size)))
    command = ["run", pixart_cpu, "--prompt", "a", "--seed", 3, "-o"]
    _ok(capsys, *command, tmp_path / "a.npy")
    assert released == []
    _ok(capsys, *command, tmp_path / "b.npy", "--release")
    assert released[0] == "text_encoder" and released[-2:] == ["denoiser", "vae_decoder"]
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))


def test_run_without_a_seed_draws_one_and_names_it(pixart_cpu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", pixart_cpu, "--prompt", "a", "--json", "-o"]
    seed = json.loads(_ok(capsys, *command, tmp_path / "a.npy"))["seed"]
    _ok(capsys, *command, tmp_path / "b.npy", "--seed", seed)
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))


def test_noise_from_a_file_replaces_the_seed(pixart_cpu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = tmp_path / "noise.npy"
    np.save(noise, np.random.default_rng(0).standard_normal((1, 4, 8, 8)))
    command = ["run", pixart_cpu, "--prompt", "a", "--noise", noise, "-o"]
    _ok(capsys, *command, tmp_path / "a.npy", "--seed", 1)
    _ok(capsys, *command, tmp_path / "b.npy", "--seed", 2)
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "a", "--steps", "7"], "in 7 steps; rebuild with --size 16x16 --steps 7"),
        (["--prompt", "a", "--size", "24x16"], "got 24x16 in 20 steps; rebuild with --size 24x16"),
        (["--prompt", "a", "--size", "big"], "size: expected HEIGHTxWIDTH in pixels"),
        (["--prompt", "a", "--noise", "none.npy"], "--noise none.npy: expected a .npy file with numbers, got"),
        ([], "prompt: expected a text"),
    ],
)
def test_wrong_requests_to_run(
    arguments: list[str], message: str, pixart_cpu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in _refused(capsys, "run", pixart_cpu, "-o", tmp_path / "a.png", *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("array", "got"), [(np.array(["a"]), "<U1"), (np.array([{}], dtype=object), "Object arrays cannot be loaded")])
def test_noise_that_is_no_numbers(array: object, got: str, pixart_cpu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = tmp_path / "noise.npy"
    np.save(noise, array)
    error = _refused(capsys, "run", pixart_cpu, "--prompt", "a", "--noise", noise, "-o", tmp_path / "a.png")
    assert got in error
    assert "write it with numpy.save" in error


def test_a_bad_output_name_is_refused_before_the_work(pixart_cpu: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "ends in .png, .gif, .npy for pictures, got '.mp4'" in _refused(capsys, "run", pixart_cpu, "--prompt", "a", "-o", "a.mp4")


def test_a_damaged_bundle_is_refused(pixart_cpu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = tmp_path / "damaged.dxb"
    shutil.copy(pixart_cpu, damaged)
    with damaged.open("r+b") as file:
        file.seek(damaged.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    assert str(damaged) in _refused(capsys, "run", damaged, "--prompt", "a", "-o", tmp_path / "a.png")
