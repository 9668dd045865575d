"""Path patching: which places of one run take their value from another run, as edits of one batch.

The base ("vanilla") run, the steered run and each patched run are rows of one batch, so a patch copies values from
rows to rows at a place, and one forward pass serves them all. Wang et al., "Interpretability in the wild" (arXiv
2211.00593), appendix B; Goldowsky-Dill et al., "Localizing model behavior with path patching" (arXiv 2304.05969).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from steerkit.analysis.engine import Edit
from steerkit.analysis.growth import Growth, behind
from steerkit.analysis.places import READ_SITES, find_place, head_counts
from steerkit.errors import ModelError, SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.models import LoadedModel
from steerkit.models.sites import verify_sites
from steerkit.registry import did_you_mean
from steerkit.vectors import SteeringVector

Role = Literal["vanilla", "steered", "probe", "patched"]
ROLES: tuple[Role, ...] = ("vanilla", "steered", "probe", "patched")

VARIANTS = ("attn", "q", "k", "v", "heads", "groups", "mlp", "mlp-direct", "residual", "layer")
"""What of a block can be taken from the other run:

- ``attn``: all that attention reads (skip-attn); ``q``, ``k``, ``v``: one projection; ``heads``: one head's result at a
  time; ``groups``: the keys and values of one key-value group at a time;
- ``mlp``: all that the MLP reads; ``mlp-direct``: what it reads of the block's input, not of the attention's change;
- ``residual``: the stream that passes the block by; ``layer``: what attention and MLP add (skip-layer).
"""
_ATTENTION = ("attn_input", "q", "k", "v", "heads", "attn_output")
_MLP = ("mlp_input", "down_input", "down_proj", "mlp_output")
_SPELLED = re.compile(r"^layers\.(-?\d{1,9})\.([a-z_]+)(?:\[(\d{1,9})\])?$")


@dataclass(frozen=True)
class Copy:
    """At ``point``, the rows of one role take the value of another's."""

    point: HookPoint
    to: Role
    source: Literal["own", "other", "probe"]
    """``own``: the run that is patched; ``other``: the run that the patch is taken from."""
    columns: slice | None = None


@dataclass(frozen=True)
class Patch:
    """One patched run: the steered run with something of the vanilla one, or the other way round."""

    name: str
    copies: tuple[Copy, ...]
    inverse: bool = False
    """The run is vanilla, and what is patched comes from the steered one."""

    @property
    def probes(self) -> bool:
        """Whether it needs rows in which the receiver's new value is found first."""
        return any(copy.to == "probe" for copy in self.copies)

    def role(self, source: str) -> str:
        """The role behind ``own`` and ``other``."""
        own, other = ("vanilla", "steered") if self.inverse else ("steered", "vanilla")
        return {"own": own, "other": other}.get(source, source)

    def steers(self, role: str) -> bool:
        """Whether the vector acts in the rows of that role."""
        return role == "steered" or (role in ("probe", "patched") and not self.inverse)


@dataclass(frozen=True)
class Cast:
    """Which rows of a batch play which role.

    ``roles`` has one entry a patch: role -> [n] rows; the i-th rows of all roles are runs of the same tokens.
    """

    rows: int
    roles: tuple[Mapping[str, Tensor], ...]
    growth: Growth | None = None
    """Up to which block rows are copies of others."""

    def steered(self, patches: Sequence[Patch], device: torch.device) -> Tensor:
        """[rows] bool: the rows in which the vector acts."""
        found = torch.zeros(self.rows, dtype=torch.bool, device=device)
        for patch, roles in zip(patches, self.roles, strict=True):
            for role, rows in roles.items():
                found[rows] = patch.steers(role)
        return found

    def edits(self, patches: Sequence[Patch]) -> dict[HookPoint, Edit]:
        """The copies of all patches, place by place."""
        moves: dict[HookPoint, list[tuple[Tensor, Tensor, slice]]] = {}
        for patch, roles in zip(patches, self.roles, strict=True):
            for copy in patch.copies:
                source = roles[patch.role(copy.source)]
                moves.setdefault(copy.point, []).append((roles[copy.to], source, copy.columns or slice(None)))
        return {point: _edit(of_point) for point, of_point in moves.items()}


def shared_cast(patches: Sequence[Patch], n: int, device: torch.device, vector: SteeringVector | None = None) -> Cast:
    """All patches of the same n texts: one vanilla and one steered run serve them all.

    The batch has n vanilla rows and n steered ones, then probe rows (of patches that need them) and patched rows in the
    order of the blocks behind which they are runs of their own.

    Args:
        vector: what the steered rows are steered by; None: they may differ from the beginning.
    """
    lowest = -1 if vector is None else min(map(behind, vector.tensors))
    blocks: list[tuple[int, int, Role]] = []  # (start, patch, role)
    for number, patch in enumerate(patches):
        for role in ROLES[2:]:
            copies = [behind(copy.point) for copy in patch.copies if copy.to == role]
            if copies:
                blocks.append((min(copies), number, role))
    # Where values are copied, both runs must be there.
    lowest = min([lowest, *(start for start, _, _ in blocks)])
    blocks.sort(key=lambda block: block[0])
    row = torch.arange(n, device=device)
    roles: list[dict[str, Tensor]] = [{"vanilla": row, "steered": row + n} for _ in patches]
    starts, parents = [-1, lowest], [0, 0 if lowest >= 0 else 1]
    for start, number, role in blocks:
        roles[number][role] = row + len(starts) * n
        own = int(patches[number].role("own") == "steered") if start > lowest else 0
        parents.append(own if start >= 0 else len(starts))
        starts.append(start)
    growth = Growth(
        tuple(start for start in starts for _ in range(n)), tuple(p * n + k for p in parents for k in range(n))
    )
    return Cast(len(starts) * n, tuple(roles), growth)


def _edit(moves: Sequence[tuple[Tensor, Tensor, slice]]) -> Edit:
    def edit(value: Tensor) -> Tensor:
        changed = value.clone()
        for rows, source, columns in moves:
            # In the order of the copies: a receiver is patched with what its probe has by then.
            changed[rows, ..., columns] = changed[source][..., columns]
        return changed

    return edit


def block_patches(
    loaded: LoadedModel, layer: int, variants: Sequence[str], inverse: bool
) -> tuple[list[Patch], list[str]]:
    """The variants of one block, and a note for each that the family can't have.

    Args:
        inverse: also each the other way round: ``skip-X`` is the steered run with X of the vanilla one, ``only-X`` the
            vanilla run with X of the steered one.

    Raises:
        SteerkitError: for an unknown variant, or a layer outside the model.
        ModelError: if the family can have none of them.
    """
    found: list[tuple[str, tuple[Copy, ...]]] = []
    notes: list[str] = []
    for variant in variants:
        if variant not in VARIANTS:
            raise SteerkitError(
                f"Unknown variant {variant!r}.{did_you_mean(variant, VARIANTS)} Variants: {', '.join(VARIANTS)}."
            )
        try:
            named = _variant(loaded, layer, variant)
            _verify(loaded, [copy for _, copies in named for copy in copies])
            found += named
        except ModelError as error:
            notes.append(f"Left out: {variant}. {error}")
    if not found and variants:
        raise ModelError(notes[0].removeprefix("Left out: "))
    patches = [Patch(f"skip-{name}", copies) for name, copies in found]
    if inverse:
        patches += [Patch(f"only-{name}", copies, True) for name, copies in found]
    return patches, notes


def path_patch(loaded: LoadedModel, spec: str, inverse: bool = False) -> Patch:
    """The direct path from a sender to a receiver: ``layers.3.attn_output -> layers.5.q``.

    The receiver gets what it would get if the sender had its value of the other run and every attention and MLP
    between them added what it adds in the run itself. ``[i]`` behind q or heads names a head, behind k or v a
    key-value group. The vector acts as ever; an intervention that reads the stream reads the changed one.

    Raises:
        SteerkitError: if a place can't be read, is not in the model, or the receiver is not behind the sender.
        ModelError: if the family has no such module.
    """
    ends = [end.strip() for end in spec.split("->")]
    if len(ends) != 2:
        raise SteerkitError(f"Can't read the path {spec!r}: write 'layers.3.attn_output -> layers.5.q'.")
    (sender, sent), (receiver, received) = (_place(loaded, end) for end in ends)
    # Attention of layer l is node 2 l, its MLP node 2 l + 1; those strictly between the two ends are held.
    first = 2 * sender.layer + {**dict.fromkeys(_ATTENTION, 1), "input": 0}.get(sender.site, 2)
    last = 2 * receiver.layer + {**dict.fromkeys(_MLP, 1), "output": 2}.get(receiver.site, 0)
    order = [(p.layer, READ_SITES.index(p.site)) for p in (sender, receiver)]
    if order[0] >= order[1]:
        raise SteerkitError(f"{spec}: the receiver must come behind the sender in the forward pass.")
    held = [HookPoint(node // 2, ("attn_output", "mlp_output")[node % 2]) for node in range(first, last)]
    copies = (
        Copy(sender, "probe", "other", sent),
        *(Copy(point, "probe", "own") for point in held),
        Copy(receiver, "patched", "probe", received),
    )
    _verify(loaded, copies)
    return Patch(f"{'only' if inverse else 'skip'} {' -> '.join(ends)}", copies, inverse)


def _variant(loaded: LoadedModel, layer: int, variant: str) -> list[tuple[str, tuple[Copy, ...]]]:
    def whole(*sites: str) -> list[tuple[str, tuple[Copy, ...]]]:
        return [(variant, tuple(Copy(HookPoint(layer, site), "patched", "other") for site in sites))]

    if variant in ("heads", "groups"):
        heads, groups, width = head_counts(loaded.base)
        sites = ("heads",) if variant == "heads" else ("k", "v")
        return [
            (
                f"{variant[:-1]} {index}",
                tuple(Copy(HookPoint(layer, s), "patched", "other", _columns(index, width)) for s in sites),
            )
            for index in range(heads if variant == "heads" else groups)
        ]
    if variant in ("mlp-direct", "residual"):
        receiver = {"mlp-direct": "mlp_input", "residual": "output"}[variant]
        return [(variant, path_patch(loaded, f"layers.{layer}.input -> layers.{layer}.{receiver}").copies)]
    return whole(*{"attn": ("attn_input",), "mlp": ("mlp_input",), "layer": ("attn_output", "mlp_output")}.get(
        variant, (variant,)
    ))  # fmt: skip


def _verify(loaded: LoadedModel, copies: Sequence[Copy]) -> None:
    for copy in copies:
        find_place(loaded.base, loaded.layout, copy.point)
    held = sorted({copy.point.layer for copy in copies if copy.point.site in ("attn_output", "mlp_output")})
    if held:
        verify_sites(loaded.base, loaded.layout, held)


def _columns(index: int, width: int) -> slice:
    return slice(index * width, (index + 1) * width)


def _place(loaded: LoadedModel, text: str) -> tuple[HookPoint, slice | None]:
    """A place by name, and which of its columns."""
    match = _SPELLED.match(text)
    known = [site for site in READ_SITES if site != "attn_pattern"]
    if match is None or match[2] not in known:
        hint = did_you_mean(match[2], known) if match else ""
        raise SteerkitError(
            f"Can't read the place {text!r}.{hint} Write layers.N.SITE, with SITE one of {', '.join(known)}."
        )
    layer, site = int(match[1]), match[2]
    n_layers = len(loaded.layout.block_list(loaded.base))
    if not -n_layers <= layer < n_layers:
        raise SteerkitError(f"{text} is outside the model: it has layers 0 to {n_layers - 1}.")
    point = HookPoint(layer % n_layers, site)
    if match[3] is None:
        return point, None
    heads, groups, width = head_counts(loaded.base)
    most = {"q": heads, "heads": heads, "k": groups, "v": groups}.get(site, 0)
    if int(match[3]) >= most:
        kind = f"{site} has {most} of them, 0 to {most - 1}" if most else "only q, k, v and heads have parts"
        raise SteerkitError(f"{text}: {kind}.")
    return point, _columns(int(match[3]), width)
