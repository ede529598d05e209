"""Facts about the machine."""

from __future__ import annotations

import os

from dexport.machine import _jetson, _processor, this_machine

_X86 = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 avx512_vnni\n\nprocessor\t: 1\nmodel name\t: other\nflags\t\t: fpu\n"
_ARM = "processor\t: 0\nBogoMIPS\t: 62.50\nFeatures\t: fp asimd asimddp bf16\nCPU part\t: 0xd42\n"


def test_x86_and_arm_processors() -> None:
    name, flags = _processor(_X86)
    assert (name, "avx512_vnni" in flags) == ("AMD EPYC", True)
    name, flags = _processor(_ARM)
    assert (name, {"asimddp", "bf16"} <= flags) == ("", True)
    assert _processor("") == ("", frozenset())


def test_a_jetson_is_known_by_its_device_tree() -> None:
    assert _jetson("NVIDIA Jetson AGX Orin Developer Kit\0") == "NVIDIA Jetson AGX Orin Developer Kit"
    assert _jetson("Raspberry Pi 5\0") == ""


def test_this_machine_has_what_machines_have() -> None:
    machine = this_machine()
    assert machine.processor
    assert 1 <= machine.cores <= (os.cpu_count() or 1)
    assert machine.memory > 1 << 28
    assert machine.disk_free >= 0
    assert (machine.gpu.sm is None) == bool(machine.gpu.reason)
