"""Every plugin compiles for every architecture that it is meant for, and no kernel spills."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dexport.runtime.builders.plugins import ARCHITECTURES, build_plugins, plugin_folders


@pytest.mark.parametrize("folder", plugin_folders(), ids=lambda folder: folder.name)
def test_no_kernel_spills_on_any_architecture(folder: Path, tmp_path: Path) -> None:
    """A build ends with an error where one does. CUDA 12 does not know the newest architectures."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc on this machine: kernels are executed in emulation only")
    kernels = build_plugins([folder], tmp_path)
    architectures = {kernel.sm for kernel in kernels}
    assert {"80", "86", "87", "89", "90"} <= architectures <= set(ARCHITECTURES)
    assert len(kernels) == len(architectures) * len({kernel.kernel for kernel in kernels})
    assert not any(kernel.spilled_bytes for kernel in kernels)
