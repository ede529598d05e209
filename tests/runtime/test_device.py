"""Facts about a device, read from files and commands that a Jetson has; here they stand in a folder of their own."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from dexport.runtime.device import free_memory, this_device

_RELEASE = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n"


def _command(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_a_jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "etc/nv_tegra_release").write_text(_RELEASE)
    (tmp_path / "proc/device-tree/model").write_text("NVIDIA Jetson Orin Nano Developer Kit\0")
    (tmp_path / "proc/meminfo").write_text("MemTotal:        7802828 kB\nMemAvailable:    6291456 kB\n")
    _command(tmp_path, "nvpmodel", 'echo "NV Power Mode: MODE_MAXN_SUPER"; echo 2')
    _command(tmp_path, "jetson_clocks", 'echo "SOC family:tegra234"; echo "GPU MinFreq=306000000" >&2; exit 1')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    device = this_device(tmp_path)
    assert device.board == "NVIDIA Jetson Orin Nano Developer Kit" and device.jetson_linux == "36.4.3"
    assert device.power_mode == "MAXN_SUPER" and device.clocks == ("SOC family:tegra234", "GPU MinFreq=306000000")
    assert free_memory(tmp_path) == 6 << 30


def test_a_machine_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    device = this_device(tmp_path)
    assert (device.machine, device.board, device.jetson_linux, device.power_mode, device.clocks) == (platform.machine(), "", "", "", ())
    assert free_memory(tmp_path) == 0


def test_this_machine_has_free_memory() -> None:
    assert free_memory() > 1 << 20
