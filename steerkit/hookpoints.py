"""Hook points: where in the residual stream an intervention acts.

One spelling everywhere (configs, errors, files): ``layers.12.output``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from steerkit.errors import SteerkitError

SITES = ("output",)
"""``output``: the residual stream after block l (mission: h_l <- h_l + s_l)."""

_SPELLINGS = (
    re.compile(r"^layers\.(?P<layer>-?\d+)(?:\.(?P<site>[a-z_]+))?$"),  # ours
    re.compile(r"^layers\[(?P<layer>-?\d+)\]$"),  # nnterp
    re.compile(r"^layers_output\[(?P<layer>-?\d+)\]$"),  # nnterp
    re.compile(r"^blocks\.(?P<layer>-?\d+)\.hook_resid_post$"),  # TransformerLens
    re.compile(r"^(?P<layer>-?\d+)$"),
)


@dataclass(frozen=True, slots=True, order=True)
class HookPoint:
    """One place of one block; sorts in forward order."""

    layer: int
    """Zero-based block index."""
    site: str = "output"

    def __str__(self) -> str:
        return f"layers.{self.layer}.{self.site}"

    @classmethod
    def parse(cls, spec: str | int | HookPoint, n_layers: int | None = None) -> HookPoint:
        """Read any accepted spelling: ``layers.3.output``, ``layers[3]``, ``blocks.3.hook_resid_post``, 3, -1.

        With ``n_layers``, negative indices count from the end and the range is checked.

        Raises:
            SteerkitError: for an unknown spelling or site, or a layer outside the model.
        """
        if isinstance(spec, HookPoint):
            layer, site = spec.layer, spec.site
        else:
            match = next((m for m in (p.match(str(spec).strip()) for p in _SPELLINGS) if m), None)
            if match is None:
                raise SteerkitError(
                    f"Can't read hook point {spec!r}: write a layer number (3, -1) or 'layers.3.output'."
                )
            layer = int(match["layer"])
            site = match.groupdict().get("site") or "output"
        if site not in SITES:
            raise SteerkitError(f"Unknown site {site!r} in hook point {spec!r}: known sites are {', '.join(SITES)}.")
        if n_layers is not None:
            if not -n_layers <= layer < n_layers:
                raise SteerkitError(
                    f"Layer {layer} is out of range: the model has {n_layers} layers, 0 to {n_layers - 1} "
                    f"(or -{n_layers} to -1)."
                )
            layer %= n_layers
        elif layer < 0:
            raise SteerkitError(f"Hook point {spec!r} counts from the end: give the model's number of layers.")
        return cls(layer, site)


def parse_layers(spec: str | int | list[int | str], n_layers: int) -> list[HookPoint]:
    """``all``, one layer, or a list of layers -> hook points in forward order.

    Raises:
        SteerkitError: for an empty list, a layer named twice, or one outside the model.
    """
    items: list[int | str] = list(range(n_layers)) if spec == "all" else spec if isinstance(spec, list) else [spec]
    if not items:
        raise SteerkitError("No layer given: write 'all', one layer, or a list such as [3, 4].")
    points = [HookPoint.parse(item, n_layers) for item in items]
    if len(set(points)) != len(points):
        raise SteerkitError(f"A layer is named twice in {spec!r}.")
    return sorted(points)
