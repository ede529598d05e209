"""The C++ runtime does what the Python one does: the same noise bits, instructions, latents, pictures and errors."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dexport.errors import UserError
from dexport.runtime import pipeline as python_pipeline
from dexport.runtime.interpreter import run_program
from dexport.runtime.noise import PhiloxNoise, PicturesNoise, TorchNoise
from dexport.runtime.pipeline import Pipeline, load
from tests.runtime.cpp.library import CppError, CppPipeline, Made

PROMPT = "a small red circle"


@pytest.mark.parametrize("kind", [TorchNoise, PhiloxNoise])
@pytest.mark.parametrize("seeds", [[0], [3], [2**32 - 1], [1, 2**40 + 5]])
def test_noise_has_the_same_bits(cpp_build: Path, kind: type[TorchNoise | PhiloxNoise], seeds: list[int]) -> None:
    counts = [1, 3, 15, 16, 17, 31, 1000, 4096, 65537, 5, 100003]
    name = "torch" if kind is TorchNoise else "philox"
    command = [cpp_build / "tests" / "print_noise", name, ",".join(map(str, seeds)), *map(str, counts)]
    given = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint32)
    noise = PicturesNoise([kind(seed) for seed in seeds])
    wanted = np.concatenate([noise.normal((len(seeds), count)).ravel() for count in counts])
    assert np.array_equal(given, wanted.view(np.uint32))


class Traced:
    """The Python runtime, with the trace of the last run and the latents after each of its steps."""

    def __init__(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trace: list[str] = []
        self.latents: list[npt.NDArray[Any]] = []
        self.pipeline = load(bundle)
        monkeypatch.setattr(python_pipeline, "run_program", lambda *args, **kw: run_program(*args, **kw, trace=self.trace.append))

    def __call__(self, *args: Any, **options: Any) -> npt.NDArray[np.uint8]:
        self.trace.clear()
        self.latents.clear()

        def callback(pipeline: Pipeline, index: int, timestep: float, values: dict[str, Any]) -> None:
            self.latents.append(values["latents"])

        found = self.pipeline(*args, **options, output_type="np", callback_on_step_end=callback).images
        assert isinstance(found, np.ndarray) and found.std() > 5, "a picture without content proves nothing"
        return found


@pytest.fixture(scope="module")
def cpp(cpp_build: Path, pixart_cpu: Path) -> Iterator[CppPipeline]:
    with CppPipeline(cpp_build / "libdexport.so", pixart_cpu) as pipeline:
        yield pipeline


REQUESTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "defaults": ({"seed": 3}, {"seeds": [3]}),
    "fewer steps, another size": (
        {"seed": 3, "num_inference_steps": 4, "height": 16, "width": 24},
        {"seeds": [3], "steps": 4, "height": 16, "width": 24},
    ),
    "guidance and a negative prompt": (
        {"seed": 5, "num_inference_steps": 4, "guidance_scale": 2.25, "negative_prompt": "blue square"},
        {"seeds": [5], "steps": 4, "guidance": 2.25, "negative_prompts": ["blue square"]},
    ),
    "no guidance": ({"seed": 5, "num_inference_steps": 4, "guidance_scale": 1.0}, {"seeds": [5], "steps": 4, "guidance": 1.0}),
    "two pictures, a seed each": (
        {"seed": [7, 8], "num_inference_steps": 4, "num_images_per_prompt": 2},
        {"seeds": [7, 8], "steps": 4, "pictures": 2},
    ),
    "philox": ({"seed": 5, "num_inference_steps": 4, "noise": "philox"}, {"seeds": [5], "steps": 4, "noise": 1}),
}


@pytest.mark.parametrize(("in_python", "in_cpp"), REQUESTS.values(), ids=REQUESTS.keys())
def test_a_request_gives_the_same(
    cpp: CppPipeline, pixart_cpu: Path, monkeypatch: pytest.MonkeyPatch, in_python: Mapping[str, Any], in_cpp: Mapping[str, Any]
) -> None:
    python = Traced(pixart_cpu, monkeypatch)
    wanted = python(PROMPT, **in_python)
    made = cpp.run([PROMPT], **in_cpp)
    assert made.trace == python.trace
    assert len(made.steps) == len(python.latents)
    for given, expected in zip([*made.steps, made.latents], [*python.latents, python.latents[-1]]):
        assert np.linalg.norm(given - expected) <= 1e-4 * np.linalg.norm(expected)
    assert made.pictures.shape == (len(wanted), 1, *wanted.shape[1:])
    assert np.abs(made.pictures[:, 0].astype(int) - wanted).max() <= 1


def test_token_ids_and_latents_may_be_given(cpp: CppPipeline, pixart_cpu: Path) -> None:
    pipeline = load(pixart_cpu)
    noise = TorchNoise(3).normal((1, 4, 8, 8))
    wanted = pipeline(PROMPT, latents=noise, num_inference_steps=4, output_type="np").images
    entry = pipeline.bundle.manifest.text[0]
    tokens = pipeline._tokens(entry["name"], ["", PROMPT])
    buffers = {entry["outputs"]["ids"]: tokens.ids, entry["outputs"]["mask"]: tokens.mask}
    made = cpp.run(buffers=buffers, latents={"latents": noise}, steps=4)
    assert np.abs(made.pictures[:, 0].astype(int) - wanted).max() <= 1


def _python_error(bundle: Path, *args: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(bundle)(*args, **options)
    return str(caught.value)


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "steps": ({"num_inference_steps": 7}, {"steps": 7}),
    "size": ({"height": 512}, {"height": 512}),
    "seeds": ({"seed": [1, 2, 3]}, {"seeds": [1, 2, 3]}),
    "class label": ({"class_labels": 1}, {"class_labels": [1]}),
    "negative prompts": ({"negative_prompt": ["a", "b"]}, {"negative_prompts": ["a", "b"]}),
    "latents": ({"latents": np.zeros((1, 4, 4), np.float32)}, {"latents": {"latents": np.zeros((1, 4, 4), np.float32)}}),
}


@pytest.mark.parametrize(("in_python", "in_cpp"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_request_is_refused_in_the_same_words(
    cpp: CppPipeline, pixart_cpu: Path, in_python: Mapping[str, Any], in_cpp: Mapping[str, Any]
) -> None:
    with pytest.raises(CppError) as caught:
        cpp.run([PROMPT], **in_cpp)
    assert str(caught.value) == _python_error(pixart_cpu, PROMPT, **in_python) and caught.value.status == UserError.exit_code


def test_a_missing_prompt_is_refused_in_the_same_words(cpp: CppPipeline, pixart_cpu: Path) -> None:
    with pytest.raises(CppError) as caught:
        cpp.run()
    assert str(caught.value) == _python_error(pixart_cpu)


def test_seconds_are_counted_by_component(cpp: CppPipeline, pixart_cpu: Path) -> None:
    made: Made = cpp.run([PROMPT], steps=4, components=list(load(pixart_cpu).bundle.manifest.components))
    total = made.seconds.pop("total")
    assert 0 < sum(made.seconds.values()) <= total and all(seconds > 0 for seconds in made.seconds.values())
