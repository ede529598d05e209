"""`dexport inspect` in words."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from dexport.contents import contents
from dexport.runtime.manifest import Golden, Guidance, Manifest, Plugin
from tests.runtime.sample_bundle import complete_manifest


def _text(**changes: object) -> str:
    manifest: Manifest = dataclasses.replace(complete_manifest(), **changes)  # type: ignore[arg-type]
    return "\n".join(contents(manifest, Path("sample.dxb")))


def test_everything_is_named() -> None:
    text = _text()
    for part in (
        "sample.dxb: ",
        "PixArtAlphaPipeline shapes (family pixart",
        "jetson-orin@jetpack-6.2, backend tensorrt, precision fp16",
        "64x64; up to 1 in one run",
        "t5: 8 tokens",
        "weights 24 B",
        "tensorrt (machine code)",
        "    in: x float32[batch, 3]",
        "    in fp32: norm",
        "    kernels 64x64: gemm 1",
        "20 steps  64x64  DDIM",
        "tolerance 0.001",
        "quality   not measured",
    ):
        assert part in text, text


def test_plugins_are_named() -> None:
    library = Plugin(name="lowrank_linear", files=("plugins/x.so",), sm=87, tensorrt="10.3.0")
    text = _text(plugins=(library, Plugin(name="other", files=("a.cu", "b.h"))))
    assert "plugin    lowrank_linear: for SM 87 and TensorRT 10.3.0" in text and "plugin    other: 2 files of source" in text


def test_the_split_of_the_denoiser() -> None:
    moved = [{"value": "a", "depends_on": ["step"], "shape": [4]}] * 2 + [{"value": "b", "depends_on": ["prompt", "step"], "shape": [4]}]
    kept = [{"value": f"node_{index}", "reason": "rows are not independent"} for index in range(10)]
    text = _text(hoisting={"parameters": 2_000_000, "loop_parameters": 1_190_000, "moved": moved, "kept": kept})
    assert "59.5% of the denoiser's matrix parameters run at every step (1.19 M of 2 M)" in text
    assert "moved out: 1 values that depend on prompt and step, 2 values that depend on step" in text
    assert "node_7 (rows are not independent) and 2 more" in text


def test_a_stranger_cannot_write_on_the_terminal() -> None:
    manifest = complete_manifest()
    text = _text(
        model=dataclasses.replace(manifest.model, name="\x1b]0;owned\x07"),
        recipe={"\x1b[2J": "\x1b[2J"},
        quality={"psnr": 51.25, "note": "\x07"},
        hoisting={
            "parameters": 1,
            "loop_parameters": 1,
            "moved": [{"depends_on": ["\x1b"]}, 3],
            "kept": [{"value": "\x1b", "reason": 1}, "x"],
        },
    )
    assert text.isprintable() or all(char.isprintable() or char == "\n" for char in text)
    assert "psnr 51.25" in text


def test_videos_and_bundles_without_golden_outputs() -> None:
    text = _text(frames=17, frames_per_second=16, golden=(), guidance=Guidance(kind="embedded", default=3.5))
    assert "17 frames at 16 per second" in text
    assert "embedded, default 3.5" in text
    assert "nothing to compare" in text


def test_golden_outputs_are_listed() -> None:
    assert "pipeline  tolerance 0.01" in _text(golden=(Golden(inputs="a", outputs="b", component="pipeline", tolerance=0.01),))


def test_a_kit_says_what_it_asks_for() -> None:
    components = complete_manifest().components
    loop = components["loop"]
    asked = {"asked": [["int8", "qkv"], ["int8", "up"], ["fp16", "head"]]}
    kit = dataclasses.replace(loop, variants=(dataclasses.replace(loop.variants[0], format="tensorrt-kit", kernels=asked),))
    assert "asked 64x64: 1 products in fp16, 2 products in int8" in _text(components={**components, "loop": kit})
