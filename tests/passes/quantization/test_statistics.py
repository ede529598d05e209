"""The statistics file: what is written comes back, and other files are refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from dexport.errors import UserError
from dexport.passes.quantization.statistics import (
    BINS,
    VERSION,
    Samples,
    Schedule,
    SiteStatistics,
    Statistics,
    load_statistics,
    save_statistics,
)


def _site(seed: int, tokens: bool) -> SiteStatistics:
    generator = torch.Generator().manual_seed(seed)
    low, high, mean, square = (torch.randn(3, 4, generator=generator) for _ in range(4))
    return SiteStatistics(
        count=torch.tensor([5, 6, 7]),
        minimum=-low.abs(),
        maximum=high.abs(),
        mean=mean,
        square=square.abs(),
        histogram=torch.randint(0, 9, (3, BINS), generator=generator),
        limit=torch.tensor([1.0, 2.0, 4.0]),
        token_minimum=torch.randn(3, 2, generator=generator) if tokens else None,
        token_maximum=torch.randn(3, 2, generator=generator) if tokens else None,
        rows=torch.randn(6, 4, generator=generator),
        row_steps=torch.tensor([0, 0, 1, 1, 2, 2]),
    )


def _statistics() -> Statistics:
    shared = _site(0, tokens=True)
    samples = Samples(("a dog", "ein Häuschen"), (3, 4), torch.randn(2, 4, 8, 8), torch.tensor([0, 2]), torch.tensor([1, 0]))
    return Statistics(
        model="abc",
        schedule=Schedule("ddim", 3, (900.0, 500.0, 20.5), (3.0, 1.0, 0.1)),
        size=(16, 24),
        guidance=4.5,
        sampler="ndtc",
        samples=samples,
        components={
            "denoiser": {"blocks.0.to_q": shared, "blocks.0.to_k": shared, "out": _site(1, tokens=False)},
            "text_encoder": {"layers.0": _site(2, tokens=False)},
        },
    )


def _equal(one: object, other: object) -> bool:
    """Whether two dataclasses hold equal values."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other) and one.dtype is other.dtype
    if dataclasses.is_dataclass(one) and type(one) is type(other):
        return all(_equal(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    return one == other


def test_comes_back(tmp_path: Path) -> None:
    before = _statistics()
    save_statistics(before, tmp_path / "s")
    after = load_statistics(tmp_path / "s")
    assert _equal(before, after)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]  # nothing partial stays
    found = after.of("denoiser", "out")
    assert found is not None and found.token_minimum is None
    assert after.of("denoiser", "other") is None and after.of("vae", "out") is None


def test_what_sites_share_is_held_once(tmp_path: Path) -> None:
    save_statistics(_statistics(), tmp_path / "s")
    names = safetensors.torch.load_file(tmp_path / "s").keys()
    assert {name.split("/")[1] for name in names if name.startswith("denoiser")} == {"blocks.0.to_q", "out"}
    found = load_statistics(tmp_path / "s").components["denoiser"]
    assert found["blocks.0.to_q"] is found["blocks.0.to_k"]


def test_absmax() -> None:
    site = dataclasses.replace(_site(0, tokens=False), minimum=torch.tensor([[-3.0, -1.0]]), maximum=torch.tensor([[2.0, 4.0]]))
    assert site.absmax.tolist() == [[3, 4]]


def _write(path: Path, about: object) -> None:
    safetensors.torch.save_file({"samples/latents": torch.zeros(1)}, path, {"dexport.statistics": json.dumps(about)})


def test_another_version_is_refused(tmp_path: Path) -> None:
    _write(tmp_path / "s", {"version": VERSION + 1})
    with pytest.raises(UserError, match=rf"expected statistics of version {VERSION}, got {VERSION + 1}; calibrate again"):
        load_statistics(tmp_path / "s")


@pytest.mark.parametrize("about", [[], {}, {"version": VERSION}, {"version": VERSION, "schedule": {}}, "text"])
def test_other_metadata_is_refused(tmp_path: Path, about: object) -> None:
    _write(tmp_path / "s", about)
    with pytest.raises(UserError, match="expected a file of `dexport calibrate`, got something else"):
        load_statistics(tmp_path / "s")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("prompts")
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "weights")
    save_statistics(_statistics(), tmp_path / "whole")
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:-100])
    for name in ("text", "weights", "cut"):
        with pytest.raises(UserError, match="expected a file of `dexport calibrate`, got something else"):
            load_statistics(tmp_path / name)
    with pytest.raises(UserError, match="got no such file"):
        load_statistics(tmp_path / "missing")
