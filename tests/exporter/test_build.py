"""Directory to picture: a bundle gives what diffusers gives from the same seed."""

from __future__ import annotations

import hashlib
import json
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
import torch

from dexport.errors import UserError
from dexport.exporter.build import build, default_output
from dexport.exporter.options import BuildOptions
from dexport.runtime.bundle import open_bundle
from dexport.runtime.finalize.finalize import finalize
from dexport.runtime.finalize.remote import Remote
from dexport.runtime.interpreter import Cancelled
from dexport.runtime.pipeline import Pipeline, load
from dexport.runtime.selftest import selftest
from tests.runtime.finalize.ssh_server import has_ssh, ssh_server

Pictures = npt.NDArray[np.uint8]
PROMPT, NEGATIVE, SEED = "a small red circle", "blue square", 3
_EXACT, _NARROW = 50.0, 35.0  # dB


def psnr(given: Pictures, wanted: Pictures) -> float:
    """Peak signal-to-noise ratio in dB of 8-bit pictures."""
    assert given.shape == wanted.shape and given.dtype == wanted.dtype == np.uint8
    error = float(np.mean((given.astype(float) - wanted) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


class Reference:
    """The diffusers pipeline, called as a bundle is called."""

    def __init__(self, directory: Path) -> None:
        from diffusers import PixArtAlphaPipeline

        self._pipeline = PixArtAlphaPipeline.from_pretrained(directory)
        self._pipeline.set_progress_bar_config(disable=True)

    def __call__(
        self, prompt: str | list[str] = PROMPT, *, seed: int | list[int] = SEED, interval: tuple[int, int] | None = None, **options: Any
    ) -> Pictures:
        """Pictures as uint8; guidance is on in the calls from interval[0] up to interval[1]."""
        seeds = [seed] if isinstance(seed, int) else seed
        generators = [torch.Generator("cpu").manual_seed(s) for s in seeds]
        defaults = {"height": 16, "width": 16, "num_inference_steps": 20, "use_resolution_binning": False, "clean_caption": False}
        given = {**defaults, **options, "generator": generators[0] if isinstance(seed, int) else generators}
        hook = self._pipeline.transformer.register_forward_hook(_guided_within(*interval)) if interval else None
        found = self._pipeline(prompt, output_type="np", **given).images
        if hook is not None:
            hook.remove()
        assert found.std() > 0.05, "a picture without content proves nothing"
        return (found * 255).round().astype(np.uint8)


def _guided_within(first: int, last: int) -> Any:
    """Outside the interval the unconditional half becomes the conditional one: c + g (c - c) is what an unguided call gives."""
    calls = iter(range(1000))

    def hook(module: torch.nn.Module, arguments: Any, output: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        conditional = output[0].chunk(2)[1]
        return output if first <= next(calls) < last else (torch.cat([conditional, conditional]),)

    return hook


def _pictures(pipeline: Pipeline, prompt: str | list[str] = PROMPT, **options: Any) -> Pictures:
    found = pipeline(prompt, **{"seed": SEED, **options}, output_type="np").images
    assert isinstance(found, np.ndarray)
    return found


@pytest.fixture(scope="module")
def diffusers(pixart: Path) -> Reference:
    return Reference(pixart)


@pytest.fixture(scope="module")
def bundle(pixart_cpu: Path) -> Pipeline:
    return load(pixart_cpu)


REQUESTS: dict[str, dict[str, Any]] = {
    "default guidance": {},
    "negative prompt": {"negative_prompt": NEGATIVE, "guidance_scale": 3.0},
    "guidance 1": {"guidance_scale": 1.0},
    "guidance below 1": {"guidance_scale": 0.5},
    "other steps": {"num_inference_steps": 4},
    "other size": {"height": 16, "width": 24, "num_inference_steps": 4},
    "two prompts": {"prompt": [PROMPT, "a large green square"], "num_inference_steps": 4},
    "pictures per prompt": {"prompt": [PROMPT, "a triangle"], "num_images_per_prompt": 2, "num_inference_steps": 4},
    "negative per prompt": {"prompt": [PROMPT, "a triangle"], "negative_prompt": ["blue", "green"], "num_inference_steps": 4},
    "seed per picture": {"num_images_per_prompt": 2, "seed": [7, 8], "num_inference_steps": 4},
    "no text": {"prompt": "", "num_inference_steps": 4},
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS.keys())
def test_a_bundle_gives_the_picture_of_diffusers(bundle: Pipeline, diffusers: Reference, request_: Mapping[str, Any]) -> None:
    assert psnr(_pictures(bundle, **request_), diffusers(**request_)) >= _EXACT


def test_given_embeddings_take_the_place_of_the_text_encoder(bundle: Pipeline) -> None:
    """Those of the text encoder itself, so that the picture is the same in every bit."""
    encode = bundle._engines["text_encoder", (16, 16)] if bundle("x") else None
    assert encode is not None
    tokens = bundle._tokens(bundle.bundle.manifest.text[0]["name"], ["", PROMPT])
    embeds = encode({"input_ids": tokens.ids, "attention_mask": tokens.mask})["prompt_embeds"]
    given = bundle(buffers={"prompt_embeds": embeds, "attention_mask": tokens.mask}, seed=SEED, output_type="np")
    assert isinstance(given.images, np.ndarray) and np.array_equal(given.images, _pictures(bundle))
    assert "text_encoder" not in given.seconds and "denoiser" in given.seconds


def test_every_part_of_a_request_shows_in_the_picture(bundle: Pipeline) -> None:
    """Else the comparison above would prove little."""
    wanted = _pictures(bundle, num_inference_steps=4)
    for changed in ({"prompt": "a triangle"}, {"negative_prompt": NEGATIVE}, {"guidance_scale": 1.0}, {"seed": 4}):
        assert psnr(_pictures(bundle, **{"num_inference_steps": 4, **changed}), wanted) < _NARROW, changed


def test_a_long_prompt_is_cut_as_diffusers_cuts_it(bundle: Pipeline, diffusers: Reference, caplog: pytest.LogCaptureFixture) -> None:
    prompt = "a small red circle at the top of a large green square " * 12 + "and a triangle"
    given = _pictures(bundle, prompt=prompt, num_inference_steps=4)
    assert psnr(given, diffusers(prompt, num_inference_steps=4)) >= _EXACT
    assert re.search(r"takes 120 tokens; this part of the prompt is left out: '.*triangle", caplog.text)


def test_the_output_is_as_asked(bundle: Pipeline) -> None:
    output = bundle(PROMPT, seed=SEED, num_inference_steps=4)
    pictures = [np.asarray(image) for image in output.images]
    assert np.array_equal(np.stack(pictures), _pictures(bundle, num_inference_steps=4))
    assert output.frames is None and output.program == "program-16x16-4-guided"
    assert set(output.seconds) == {*bundle.bundle.manifest.components, "total"}
    assert output.seconds["total"] >= sum(s for name, s in output.seconds.items() if name != "total")


def test_a_generator_or_its_noise_stands_for_its_seed(bundle: Pipeline) -> None:
    wanted = _pictures(bundle, num_inference_steps=4)
    generator = torch.Generator("cpu").manual_seed(SEED)
    assert np.array_equal(_pictures(bundle, num_inference_steps=4, seed=None, generator=generator), wanted)
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator("cpu").manual_seed(SEED)).numpy()
    assert psnr(_pictures(bundle, num_inference_steps=4, seed=None, latents=noise), wanted) >= _EXACT
    other = _pictures(bundle, num_inference_steps=4, noise="philox")
    assert psnr(other, wanted) < _NARROW
    assert np.array_equal(_pictures(bundle, num_inference_steps=4, noise="philox"), other)
    assert not np.array_equal(_pictures(bundle, num_inference_steps=4, seed=None), wanted)


def test_the_callback_sees_the_latents_of_diffusers(bundle: Pipeline, diffusers: Reference) -> None:
    seen: list[tuple[int, float, npt.NDArray[np.float32]]] = []
    wanted: list[tuple[int, float, npt.NDArray[np.float32]]] = []
    _pictures(bundle, num_inference_steps=4, callback_on_step_end=lambda pipe, i, t, kw: seen.append((i, t, kw["latents"])))
    diffusers(num_inference_steps=4, callback=lambda i, t, latents: wanted.append((i, float(t), latents.numpy().copy())))
    assert [(i, t) for i, t, _ in seen] == [(i, t) for i, t, _ in wanted]
    for (_, _, given), (_, _, reference) in zip(seen, wanted, strict=True):
        np.testing.assert_allclose(given, reference, rtol=0, atol=1e-3)


def test_an_interrupted_run_stops_and_the_next_one_runs(bundle: Pipeline) -> None:
    seen = []

    def stop_at_two(pipe: Pipeline, step: int, timestep: float, tensors: Mapping[str, Any]) -> None:
        seen.append(step)
        if step == 1:
            pipe.interrupt()

    with pytest.raises(Cancelled, match=r"iterations\[2\].*expected to run to the end, got a request to stop"):
        _pictures(bundle, num_inference_steps=4, callback_on_step_end=stop_at_two)
    assert seen == [0, 1]
    assert _pictures(bundle, num_inference_steps=4).shape == (1, 16, 16, 3)


def test_an_interrupt_that_comes_before_its_run_is_not_lost(bundle: Pipeline) -> None:
    bundle.interrupt()
    with pytest.raises(Cancelled, match=r"begin\[0\]"):
        _pictures(bundle, num_inference_steps=4)
    assert _pictures(bundle, num_inference_steps=4).shape == (1, 16, 16, 3)


def test_a_small_device_holds_one_engine_at_a_time(pixart_cpu: Path, bundle: Pipeline) -> None:
    small = Pipeline(open_bundle(pixart_cpu), keep=False)
    held: list[frozenset[str]] = []
    given = _pictures(small, num_inference_steps=4, callback_on_step_end=lambda pipe, *_: held.append(pipe.loaded))
    assert np.array_equal(given, _pictures(bundle, num_inference_steps=4))
    assert held == [frozenset(["denoiser"])] * 3 + [frozenset()]
    assert small.loaded == frozenset()
    with pytest.raises(Cancelled):
        _pictures(small, num_inference_steps=4, callback_on_step_end=lambda pipe, *_: pipe.interrupt())
    assert small.loaded == frozenset()


@pytest.mark.parametrize(
    ("options", "got"),
    [
        ({"num_inference_steps": 5}, "16x16 in 5 steps; rebuild with --size 16x16 --steps 5"),
        ({"height": 32, "width": 32}, "32x32 in 20 steps; rebuild with --size 32x32 --steps 20"),
    ],
)
def test_what_the_bundle_lacks_is_refused(bundle: Pipeline, options: Mapping[str, Any], got: str) -> None:
    present = "16x16 in 20 steps, 16x16 in 4 steps, 16x24 in 20 steps, 16x24 in 4 steps"
    with pytest.raises(UserError, match=re.escape(f"expected one of {present}, got {got}")):
        bundle(PROMPT, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": None}, "prompt: expected a text, got none; give --prompt"),
        ({"class_labels": 3}, "class label: expected none, as this model takes prompts, got a number; give --prompt instead"),
        ({"seed": [1, 2]}, r"seed: expected one seed, or one per picture \(1\), got 2; give as many"),
        ({"negative_prompt": ["a", "b"]}, r"negative prompt: expected one negative prompt, or one per prompt \(1\), got 2; give as many"),
        ({"latents": np.zeros((1, 4, 8, 9), np.float32)}, r"\[1, 4, 8, 8\]"),
        ({"num_images_per_prompt": 65537}, "request: expected at most 65536 pictures, got 65537 for each of 1 conditions"),
        ({"prompt": [PROMPT] * 3, "num_images_per_prompt": 21846}, "got 21846 for each of 3 conditions; ask for fewer at once"),
        ({"num_images_per_prompt": 0}, "request: expected at least one picture, got none"),
        ({"prompt": []}, "request: expected at least one picture, got none"),
    ],
)
def test_a_wrong_request_is_refused(bundle: Pipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        bundle(**{"prompt": PROMPT, "num_inference_steps": 4, **arguments})


def test_the_self_test_passes(pixart_cpu: Path) -> None:
    checks = selftest(open_bundle(pixart_cpu))
    assert [c.name for c in checks] == ["text_encoder", "denoiser_prompt", "denoiser", "vae_decoder", "pipeline"]
    assert all(c.passed for c in checks), checks


def test_the_self_test_notices_a_wrong_output(pixart_cpu: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(pixart_cpu).extractall(tmp_path)
    outputs = tmp_path / "golden" / "denoiser-outputs.safetensors"
    tensors = safetensors.numpy.load_file(outputs)
    safetensors.numpy.save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, outputs)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    content = outputs.read_bytes()
    manifest["files"]["golden/denoiser-outputs.safetensors"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert [c.name for c in selftest(open_bundle(tmp_path)) if not c.passed] == ["denoiser"]


def test_onnx_runtime_gives_the_picture_of_diffusers(pixart: Path, diffusers: Reference, tmp_path: Path) -> None:
    built = build(BuildOptions(model=str(pixart), target="onnxruntime-cpu"), tmp_path / "folder")
    assert (built / "manifest.json").is_file()
    with load(built) as bundle:
        assert all(c.passed for c in selftest(bundle.bundle))
        for request in ({}, {"negative_prompt": NEGATIVE}, {"guidance_scale": 1.0}):
            assert psnr(_pictures(bundle, **request), diffusers(**request)) >= _EXACT


def test_guidance_on_an_interval_and_halves_in_turn(pixart: Path, diffusers: Reference, tmp_path: Path) -> None:
    options = BuildOptions(
        model=str(pixart), target="cpu", steps=(10,), guidance_interval=(0.25, 0.75), guidance_batching=False, golden="none"
    )
    with load(build(options, tmp_path / "b.dxb")) as bundle:
        given = _pictures(bundle, negative_prompt=NEGATIVE)
        assert psnr(given, diffusers(negative_prompt=NEGATIVE, num_inference_steps=10, interval=(2, 7))) >= _EXACT
        assert psnr(given, diffusers(negative_prompt=NEGATIVE, num_inference_steps=10)) < _NARROW
        with pytest.raises(UserError, match=r"expected golden inputs and outputs, got none in the bundle; rebuild with --golden auto"):
            selftest(bundle.bundle)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_narrow_weights_stay_close(pixart: Path, diffusers: Reference, tmp_path: Path, pixart_cpu: Path, precision: str) -> None:
    """In fp16 as a kit, which becomes a bundle on a device behind ssh."""
    options = BuildOptions(model=str(pixart), target="cpu", precision=precision, kit=precision == "fp16")
    built = build(options, tmp_path / "b.dxb")
    with load(_finished(built, tmp_path) if options.kit else built) as bundle:
        assert psnr(_pictures(bundle), diffusers()) >= _NARROW
        assert all(c.passed for c in selftest(bundle.bundle))
        wide = open_bundle(pixart_cpu).manifest
        assert wide.precision == "fp32" and bundle.bundle.manifest.precision == precision
        sizes = {name: (c.weight_bytes, wide.components[name].weight_bytes) for name, c in bundle.bundle.manifest.components.items()}
        positions = 120 * 120 * 8  # of the text encoder: a table of integers, which stays as it is
        sizes["text_encoder"] = tuple(size - positions for size in sizes["text_encoder"])  # type: ignore[assignment]
        assert all(given < 0.75 * reference for given, reference in sizes.values()), sizes


def _finished(kit: Path, folder: Path) -> Path:
    """The bundle of a kit, finished on a device behind ssh; here, where no ssh server is installed."""
    assert open_bundle(kit, verify="sizes").manifest.is_kit
    if not has_ssh():
        return finalize(kit, folder / "out.dxb").path
    (folder / "device").mkdir()
    with ssh_server(folder / "device") as server:
        remote = Remote(kit, server.host())
        remote.start()
        return remote.fetch(folder / "out.dxb", remote.follow())


def test_where_a_bundle_goes_by_default() -> None:
    options = BuildOptions(model="models/tiny/", target="jetson-orin@jetpack-6.2")
    assert default_output(options) == Path("tiny-jetson-orin-jetpack-6.2.dxb")
    with pytest.raises(UserError, match="model: expected a directory or a hub id, got '/'; name it"):
        default_output(BuildOptions(model="/", target="cpu"))
