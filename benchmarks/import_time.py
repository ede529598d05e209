"""How long does `import dexport` take? At most 100 ms; in fresh interpreters, the interpreter's own start taken off.

Processor time is what counts: wall time says how busy the machine is. The median of several runs.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys

RUNS = 11
MOST_MS = 100.0


def milliseconds(code: str) -> float:
    """Median processor time (user and system) of `python -c code`."""
    times = []
    for _ in range(RUNS):
        before = os.times()
        subprocess.run([sys.executable, "-c", code], check=True)
        after = os.times()
        times.append(1000 * (after.children_user - before.children_user + after.children_system - before.children_system))
    return statistics.median(times)


def main() -> int:
    """Prints the times; 1 if `import dexport` takes too long."""
    bare = milliseconds("pass")
    package = milliseconds("import dexport") - bare
    command = milliseconds("import dexport.cli") - bare
    print(f"Python {platform.python_version()}, {platform.machine()}, median processor time of {RUNS} runs")
    print(f"import dexport      {package:6.1f} ms (at most {MOST_MS:.0f})")
    print(f"import dexport.cli  {command:6.1f} ms")
    return 0 if package <= MOST_MS else 1


if __name__ == "__main__":
    sys.exit(main())
