"""An estimate in words."""

from __future__ import annotations

from dexport.estimates import estimate_lines
from dexport.targets.catalogue import find
from dexport.targets.estimate import Estimate, Part

GIB = 2**30


def words(target: str, together: float, in_turn: float, milliseconds: float | None) -> list[str]:
    part = Part("denoiser", 12_000_000, {"fp16": 2_000_000, "int4": 6_000_000}, 3_000_000, 20, milliseconds)
    step = None if milliseconds is None else milliseconds / 20
    found = Estimate(find(target), (part,), 2, 20, 5000, int(together * GIB), int(in_turn * GIB), step, milliseconds)
    return list(estimate_lines(found, "512x768"))


def test_components_memory_and_time() -> None:
    title, part, memory, time = words("rtx-4090", 22, 11, 2500.0)
    assert title == "estimate   rtx-4090, 512x768, 20 steps, 2 pictures in one run"
    assert part.split() == ("denoiser 12 M parameters weights 8 MB (fp16 2 MB, int4 6 MB) activations 3 MB 20 calls 2.5 s".split())
    assert memory.startswith("memory     22 GiB, or 11 GiB with each component freed after its last use")
    assert memory.endswith("24 GiB less 1 for the system leave 23: fits")
    assert time.startswith("time       125 ms a step, 2.5 s in all (")


def test_what_does_not_fit_and_what_is_not_known() -> None:
    assert words("rtx-4090", 30, 11, 1.0)[2].endswith(": fits only with components loaded in turn")
    assert words("rtx-4090", 30, 29, 1.0)[2].endswith(": does not fit")
    *_, memory, time = words("cpu", 30, 29, None)
    assert memory.endswith("; the memory of the machine is not known")
    assert time == "time       not estimated: its speed depends on the machine at hand"
