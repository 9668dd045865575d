"""Hook points: where in the residual stream an intervention acts.

One spelling everywhere (configs, errors, files): ``layers.12.output``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from steerkit.errors import SteerkitError

SITES = ("output", "attn_output", "mlp_output", "down_proj")
"""Where in block l something is added.

- ``output``: to the residual stream after the block (mission: h_l <- h_l + s_l);
- ``attn_output``: to what attention adds to the stream, so the block's MLP reads the change (sequential blocks);
- ``mlp_output``: to what the MLP adds to the stream; the same numbers as ``output``, up to rounding;
- ``down_proj``: to the output of the MLP's last linear map, before a post-norm (gemma 2) where there is one.

Alphabetical order is forward order.
"""

_SPELLINGS: tuple[tuple[re.Pattern[str], str | None], ...] = (
    (re.compile(r"^layers\.(?P<layer>-?\d{1,9})(?:\.(?P<site>[a-z_]+))?$"), None),  # ours
    (re.compile(r"^(?P<layer>-?\d{1,9})$"), None),
    (re.compile(r"^layers(?:_output)?\[(?P<layer>-?\d{1,9})\]$"), "output"),  # nnterp
    (re.compile(r"^attentions_output\[(?P<layer>-?\d{1,9})\]$"), "attn_output"),
    (re.compile(r"^mlps_output\[(?P<layer>-?\d{1,9})\]$"), "mlp_output"),
    (re.compile(r"^blocks\.(?P<layer>-?\d{1,9})\.hook_resid_post$"), "output"),  # TransformerLens
    (re.compile(r"^blocks\.(?P<layer>-?\d{1,9})\.hook_attn_out$"), "attn_output"),
    (re.compile(r"^blocks\.(?P<layer>-?\d{1,9})\.hook_mlp_out$"), "mlp_output"),
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
    def parse(cls, spec: str | int | HookPoint, n_layers: int | None = None, site: str = "output") -> HookPoint:
        """Read any accepted spelling: ``layers.3.output``, ``layers[3]``, ``blocks.3.hook_resid_post``, 3, -1.

        With ``n_layers``, negative indices count from the end and the range is checked.

        Args:
            site: where a spelling that names a layer only.

        Raises:
            SteerkitError: for an unknown spelling or site, or a layer outside the model.
        """
        if isinstance(spec, HookPoint):
            layer, site = spec.layer, spec.site
        else:
            text = str(spec).strip()
            found = next(((match, own) for pattern, own in _SPELLINGS if (match := pattern.match(text))), None)
            if found is None:
                raise SteerkitError(
                    f"Can't read hook point {spec!r}: write a layer number (3, -1) or 'layers.3.output'."
                )
            match, own = found
            layer = int(match["layer"])
            site = own or match.groupdict().get("site") or site
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


def parse_layers(spec: str | int | list[int | str], n_layers: int, site: str = "output") -> list[HookPoint]:
    """``all``, one layer, or a list of layers -> hook points in forward order.

    Args:
        site: of the layers that are given by number alone.

    Raises:
        SteerkitError: for an empty list, a hook point named twice, or one outside the model.
    """
    items: list[int | str] = list(range(n_layers)) if spec == "all" else spec if isinstance(spec, list) else [spec]
    if not items:
        raise SteerkitError("No layer given: write 'all', one layer, or a list such as [3, 4].")
    points = [HookPoint.parse(item, n_layers, site) for item in items]
    if len(set(points)) != len(points):
        raise SteerkitError(f"A layer is named twice in {spec!r}.")
    return sorted(points)


def in_words(points: Sequence[HookPoint], n_layers: int) -> str:
    """Where a vector stands, for a sentence: ``all 30 layers (down_proj)``, else at most four of the points."""
    if len(points) == n_layers and len({point.site for point in points}) == 1:
        return f"all {n_layers} layers" + (f" ({points[0].site})" if points[0].site != "output" else "")
    return ", ".join(map(str, points[:4])) + (f" and {len(points) - 4} more" if len(points) > 4 else "")
