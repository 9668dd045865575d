"""The zoo: small reasoners that come with steerkit, so that the main job needs no download.

``python -m steerkit.zoo.build tiny-reasoner`` makes one again from its seeds; see docs/zoo.md.
"""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


def tiny_reasoner() -> str:
    """Folder of ``tiny-reasoner``, a Hugging Face checkpoint (plugin of group ``steerkit.models``)."""
    return str(WEIGHTS / "tiny-reasoner")
