"""Runs code on a disk of 1 MiB: a tmpfs in a mount namespace of its own, which most Linux systems allow to any user."""

import subprocess
import sys
from pathlib import Path

import pytest

_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
_ROOT = Path(__file__).parents[2]


def run_on_small_disk(folder: Path, code: str, *arguments: str) -> str:
    """Output of `python -c code arguments`, run with `folder` as the root of the small disk and as working directory."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        allowed = subprocess.run([*_NAMESPACE, *mount], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("this system lets no user mount a tmpfs in a namespace")
    shell = f'{" ".join(mount)} && cd {folder} && exec "$@"'
    run = subprocess.run(
        [*_NAMESPACE, "sh", "-c", shell, "sh", "env", f"PYTHONPATH={_ROOT}", sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout
