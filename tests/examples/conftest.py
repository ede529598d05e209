"""The example's folder has a hyphen, so its modules are found by path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "shapes-t2i"))
