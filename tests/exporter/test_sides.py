"""Both kinds of side make the same pictures from the same model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from dexport.errors import UserError
from dexport.exporter.quality import latent_snr, picture_psnr
from dexport.exporter.sides import BundleSide, ModelSide, open_side
from dexport.runtime.bundle_writer import BundleWriter
from tests.runtime.sample_bundle import sample_files, sample_manifest

PROMPTS, SEEDS = ["a small red circle", "a blue square", "a green ring"], [5, 6, 7]


def test_a_bundle_and_its_model_make_the_same(pixart: Path, pixart_cpu: Path) -> None:
    bundle, model = open_side(str(pixart_cpu)), open_side(str(pixart))
    assert isinstance(bundle, BundleSide) and isinstance(model, ModelSide)
    offered = bundle.abilities
    assert offered.fixed and offered.steps == (20, 4) and offered.sizes == ((16, 16), (16, 24)) and offered.classes is None
    assert not model.abilities.fixed and offered.setting.guidance == model.abilities.setting.guidance
    setting = dataclasses.replace(offered.setting, steps=4)
    seen: list[float] = []
    given, wanted = (side.make(PROMPTS, SEEDS, setting, seen.append) for side in (bundle, model))
    assert given.run.latents.shape == wanted.run.latents.shape == (4, 3, 4, 8, 8)
    assert latent_snr(wanted.run.latents, given.run.latents).min() > 60
    assert picture_psnr(wanted.run.pictures, given.run.pictures).min() > 48
    assert not np.array_equal(given.run.pictures[0], given.run.pictures[1])
    assert seen == pytest.approx([2 / 3, 1, 1]), "two pictures at once in the bundle, all at once in PyTorch"
    assert given.weight_bytes["denoiser"] == pytest.approx(wanted.weight_bytes["denoiser"], rel=0.05)
    assert set(given.weight_bytes) == set(wanted.weight_bytes)


def test_names_say_what_it_is(pixart: Path, pixart_cpu: Path) -> None:
    assert open_side(str(pixart_cpu)).name == "cpu.dxb (fp32 for cpu)"
    assert open_side(str(pixart)).name == f"{pixart.name} in PyTorch, fp32"


def test_a_build_kit_and_what_is_no_side_are_refused(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "kit") as writer:
        for relative, content in sample_files().items():
            target = writer.directory / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        manifest = sample_manifest()
        loop = manifest.components["loop"]
        variant = dataclasses.replace(loop.variants[0], format="tensorrt-kit")
        components = {**manifest.components, "loop": dataclasses.replace(loop, variants=(variant,))}
        path = writer.finish(dataclasses.replace(manifest, components=components))
    with pytest.raises(UserError, match="expected a bundle with engines, got a build kit for a device"):
        open_side(str(path))
    with pytest.raises(UserError, match="expected a diffusers pipeline directory, got no such directory"):
        open_side(str(tmp_path / "none"))
    with pytest.raises(UserError, match="expected a bundle, got nothing there"):
        open_side(str(tmp_path / "none.dxb"))
