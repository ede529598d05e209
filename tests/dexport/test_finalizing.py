"""`dexport finalize` as typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from dexport.cli import main
from dexport.finalizing import default_output, summary
from dexport.runtime.bundle import open_bundle
from dexport.runtime.finalize.finalize import Finished
from dexport.runtime.selftest import Check
from tests.runtime.finalize.small_kit import small_kit


def test_a_kit_is_finished_beside_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kit = small_kit(tmp_path / "small.dxb")
    assert main(["finalize", str(kit)]) == 0
    printed = capsys.readouterr()
    assert f"wrote {tmp_path}/small-finished.dxb: " in printed.out and ", 2 engines built, in " in printed.out
    assert "golden test passed: 2 runs, the worst error " in printed.out
    assert "build denoiser-64x64 (1 of 2)" in printed.err and "MiB of memory" in printed.err
    assert not open_bundle(tmp_path / "small-finished.dxb").manifest.is_kit
    assert main(["finalize", str(tmp_path / "small-finished.dxb")]) == 2
    assert capsys.readouterr().err.startswith("error: finalize: expected a build kit, got a finished bundle")


def test_names_of_outputs() -> None:
    assert default_output(Path("a/model.dxb")) == Path("a/model-finished.dxb") == default_output(Path("a/model"))


def test_the_summary_says_what_was_kept_and_what_was_bad(tmp_path: Path) -> None:
    (tmp_path / "out.dxb").write_bytes(bytes(2000))
    checks = (Check("loop", 1e-4, 1e-3), Check("pipeline", 5e-4, 1e-2))
    lines = summary(Finished(tmp_path / "out.dxb", ("a",), ("b", "c"), checks, ("little memory",)), 1.0)
    assert lines == [
        f"wrote {tmp_path}/out.dxb: 2 kB, 1 engines built, 2 kept from before, in 1.0 s",
        "golden test passed: 2 runs, the worst error 0.0001 of 0.001 in loop",
        "warning: little memory",
    ]
