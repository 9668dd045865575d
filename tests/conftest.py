"""Tests run offline, on few threads, and find helpers.py."""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
# Before torch is loaded. Tiny models gain nothing from threads, and bit-equality holds for one number of them only.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent))
