"""What does the C++ runtime cost beside the engines that it calls, and beside the Python runtime?

Loop: seconds of a run outside its components' own calls, per second inside them; the least of several runs in one process. Start-up: wall
seconds of a fresh process until its first picture, without its components' calls (which hold the backend's reading and compiling); the
second process finds the compiled models in the cache. Exits with 1 where a mark is missed: 2 % of the loop, 0.1 of Python's start-up.

Usage: python benchmarks/cpp_runtime.py BUNDLE.dxb, after `cmake --preset cpu && cmake --build --preset cpu` in runtime/cpp.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from provenance import write_result

PROMPT, SEED, RUNS, STARTS = "a small red circle", 1, 8, 3
MOST_OVERHEAD, MOST_START = 0.02, 0.1
_TOOL = Path(__file__).parents[1] / "runtime" / "cpp" / "build" / "cpu" / "tests" / "time_runs"


def python_child(bundle: str, runs: int) -> None:
    """What time_runs does, with the Python runtime."""
    from dexport.runtime.pipeline import load

    started = time.perf_counter()
    pipeline = load(bundle)
    print(json.dumps({"open": time.perf_counter() - started}))
    for _ in range(runs):
        seconds = dict(pipeline(PROMPT, seed=SEED, output_type="np").seconds)
        print(json.dumps({"total": seconds.pop("total"), "components": sum(seconds.values())}), flush=True)


def measured(command: list[str], runs: int, cache: str) -> dict[str, float]:
    """Runs a child: wall seconds until its first picture, those of them outside the components' calls, and the loop's overhead."""
    started, first = time.perf_counter(), 0.0
    environment = {**os.environ, "DEXPORT_CACHE_DIR": cache}
    rows = []
    with subprocess.Popen([*command, str(runs)], stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        for line in child.stdout:
            rows.append(json.loads(line))
            if len(rows) == 2:
                first = time.perf_counter() - started
    if child.returncode != 0:
        raise SystemExit(f"{command[0]} failed")
    opened, *made = rows
    overhead = min((row["total"] - row["components"]) / row["components"] for row in made)
    return {"open s": opened["open"], "wall s": first, "outside s": first - made[0]["components"], "loop overhead %": 100 * overhead}


def main() -> int:
    """1 if the C++ runtime misses a mark."""
    if sys.argv[1] == "--child":
        python_child(sys.argv[2], int(sys.argv[4]))
        return 0
    bundle = sys.argv[1]
    commands = {"C++": [str(_TOOL), bundle, PROMPT], "Python": [sys.executable, __file__, "--child", bundle, PROMPT]}
    rows: list[dict[str, Any]] = []
    best: dict[str, dict[str, float]] = {}
    for name, command in commands.items():
        with tempfile.TemporaryDirectory() as cache:
            starts = [measured(command, 1, cache) for _ in range(1 + STARTS)]  # the first one compiles
            loop = measured(command, RUNS, cache)
        again = min(starts[1:], key=lambda row: row["outside s"])
        best[name] = {"start": again["outside s"], "loop": loop["loop overhead %"] / 100}
        rows.append({"runtime": name, "first start s": starts[0]["wall s"], "second start s": min(row["wall s"] for row in starts[1:])})
        rows[-1] |= {"outside the backend s": again["outside s"], "open s": again["open s"], "loop overhead %": loop["loop overhead %"]}
    rows.append({"runtime": "C++ / Python", "outside the backend s": best["C++"]["start"] / best["Python"]["start"]})
    write_result("cpp_runtime", SEED, rows, "the C++ runtime outside its engines")
    missed = best["C++"]["loop"] > MOST_OVERHEAD or best["C++"]["start"] > MOST_START * best["Python"]["start"]
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
