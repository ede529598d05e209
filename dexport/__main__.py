"""`python -m dexport`."""

import sys

from dexport.cli import main

if __name__ == "__main__":
    sys.exit(main())
