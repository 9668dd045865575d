"""``python -m steerkit`` is ``steerkit``."""

from __future__ import annotations

import sys

from steerkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
