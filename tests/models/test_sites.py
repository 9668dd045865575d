"""Every family at every site: the contract, or a refusal that names the site; and what a change at a site equals."""

from __future__ import annotations

import copy
import re
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import nn

from steerkit.errors import ModelError
from steerkit.hookpoints import SITES, HookPoint
from steerkit.interventions import Gated, Static, Tokenwise
from steerkit.models import SteeredModel
from steerkit.models.sites import inner_width
from steerkit.testing import TOLERANCE, check_model_contract, randomize, tiny_model
from steerkit.testing.equalities import cached, left_padded
from steerkit.testing.families import TINY_FAMILIES

PAGE = Path(__file__).parents[2] / "docs" / "doctor.md"
IDS = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(0))


def documented() -> dict[str, set[str]]:
    """Family -> its sites, as the table in docs/doctor.md says."""
    found: dict[str, set[str]] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        row = re.match(r"^\| ([a-z0-9_ ]+) \|((?: (?:yes|-) \|){4})$", line)
        if row:
            answers = row[2].replace("|", " ").split()
            sites = {site for site, answer in zip(SITES, answers, strict=True) if answer == "yes"}
            for family in row[1].split():
                assert family not in found, f"{family} is in the table twice"
                found[family] = sites
    return found


DOCUMENTED = documented()


@lru_cache(maxsize=1)
def base_of(family):
    return tiny_model(family)


@lru_cache(maxsize=1)
def tolerance_of(family):
    """Five times the base's own rounding, unsteered, over three draws; that itself must be small."""
    bare, noise = SteeredModel(base_of(family)), 0.0
    for seed in range(3):
        ids = torch.randint(3, 97, (3, 9), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            full = bare(ids).logits
            for way in (cached, left_padded):
                noise = max(noise, *(float((got - want).abs().max()) for _, got, want in way(bare, ids, full)))
    assert noise < 5e-5, f"{family} without steering differs from its own full pass by {noise:g}"
    return max(TOLERANCE, 5 * noise)


def items_at(family, site):
    """Static at block 0; an intervention that reads at blocks 1 and 2."""
    base = base_of(family)
    items = Static.build([HookPoint(0, site)], 32)
    reading = [HookPoint(1, site), HookPoint(2, site)]
    if site == "down_proj":
        width = inner_width(base, SteeredModel(base).layout, 1)
        items |= Tokenwise.build(reading, 32, d_inner=width)
    else:
        items |= Gated.build(reading, 32)
    return {point: randomize(item, point.layer) for point, item in items.items()}


def test_the_page_lists_the_families_that_can_be_built():
    assert set(TINY_FAMILIES) <= set(DOCUMENTED)
    assert len(TINY_FAMILIES) >= 14


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_contract_or_refusal(family, site):
    if site in DOCUMENTED[family]:
        check_model_contract(SteeredModel(base_of(family), items_at(family, site)), tolerance_of(family))
        return
    with pytest.raises(ModelError, match=site) as refusal:
        SteeredModel(base_of(family), Static.build([HookPoint(k, site) for k in range(3)], 32))
    assert "site 'output'" in str(refusal.value) and "\n" not in str(refusal.value)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in base_of(family).modules())


def logits(base, items):
    with torch.no_grad():
        return SteeredModel(base, items)(IDS).logits


def static(site, layer=1, seed=3):
    (item,) = (made := Static.build([HookPoint(layer, site)], 32)).values()
    return made, randomize(item, seed).vector.detach()


ADDITIVE = sorted(family for family in TINY_FAMILIES if "mlp_output" in DOCUMENTED[family])


@pytest.mark.parametrize("family", ADDITIVE)
def test_static_after_the_mlp_is_static_after_the_block(family):
    """In post-norm families too: the site is what reaches the stream; granite's multiplier is taken out."""
    base = base_of(family)
    got, want = logits(base, static("mlp_output")[0]), logits(base, static("output")[0])
    assert (want - base(IDS).logits).abs().max() > 0.01
    torch.testing.assert_close(got, want, atol=2e-5, rtol=0)


PARALLEL = [family for family in ("cohere", "gpt_neox", "gptj", "phi", "stablelm") if family in TINY_FAMILIES]


@pytest.mark.parametrize("family", PARALLEL)
def test_in_parallel_blocks_the_mlp_does_not_see_what_attention_adds(family):
    base = tiny_model(family, **({"use_parallel_residual": True} if family == "stablelm" else {}))
    got, want = logits(base, static("attn_output")[0]), logits(base, static("output")[0])
    torch.testing.assert_close(got, want, atol=2e-5, rtol=0)


PRE_NORM = {
    # family -> the norm in front of the block's MLP: it reads the stream behind attention
    "gemma2": "pre_feedforward_layernorm", "gpt2": "ln_2", "granite": "post_attention_layernorm",
    "jamba": "pre_ff_layernorm", "lfm2": "ffn_norm", "llama": "post_attention_layernorm",
    "mixtral": "post_attention_layernorm", "opt": "final_layer_norm", "qwen3": "post_attention_layernorm",
}  # fmt: skip


@pytest.mark.parametrize("family", [family for family in PRE_NORM if family in TINY_FAMILIES])
@torch.no_grad()
def test_attention_site_is_the_stream_that_the_mlp_reads(family):
    """What ``gated`` is given at attn_output, and what it makes of it, seen by a hand-made hook."""
    base = tiny_model(family)
    seen: list[torch.Tensor] = []

    def stream_into_mlp(run):
        norm = SteeredModel(base).layout.block_list(base)[1].get_submodule(PRE_NORM[family])
        handle = norm.register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach().clone()))
        run()
        handle.remove()
        return seen.pop()

    gated = randomize(Gated.build([HookPoint(1, "attn_output")], 32)[HookPoint(1, "attn_output")])
    given: list[torch.Tensor] = []
    inner = gated.delta
    gated.delta = lambda hidden: given.append(hidden.detach().clone()) or inner(hidden)
    before = stream_into_mlp(lambda: base(IDS))
    after = stream_into_mlp(lambda: SteeredModel(base, {HookPoint(1, "attn_output"): gated})(IDS))
    torch.testing.assert_close(given[0], before.view_as(given[0]), atol=1e-5, rtol=0)
    want = before + inner(given[0]).view_as(before)
    assert (after - before).abs().max() > 0.01
    torch.testing.assert_close(after, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2_moe"])
@torch.no_grad()
def test_mlp_site_reads_the_stream_behind_the_block(family):
    """At mlp_output ``gated`` is given input + attention + MLP: the unsteered block's output."""
    base = tiny_model(family)
    gated = randomize(Gated.build([HookPoint(1, "mlp_output")], 32)[HookPoint(1, "mlp_output")])
    given: list[torch.Tensor] = []
    inner = gated.delta
    gated.delta = lambda hidden: given.append(hidden.detach().clone()) or inner(hidden)
    model = SteeredModel(base, {HookPoint(1, "mlp_output"): gated})
    seen = []
    block = model.layout.block_list(base)[1]
    handle = block.register_forward_hook(lambda _m, _a, out: seen.append(out[0] if isinstance(out, tuple) else out))
    base(IDS)
    handle.remove()
    model(IDS)
    torch.testing.assert_close(given[0], seen[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_static_at_attention_is_a_bias_of_o_proj():
    base = tiny_model("llama", attention_bias=True)
    items, vector = static("attn_output")
    biased = copy.deepcopy(base)
    biased.model.layers[1].self_attn.o_proj.bias += vector
    torch.testing.assert_close(logits(base, items), biased(IDS).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("family", "path"),
    [("llama", "mlp.down_proj"), ("gemma2", "mlp.down_proj"), ("opt", "fc2"), ("gpt2", "mlp.c_proj")],
)
@torch.no_grad()
def test_static_at_down_proj_is_a_bias_of_it(family, path):
    base = tiny_model(family)
    items, vector = static("down_proj")
    got = logits(base, items)
    linear = SteeredModel(base).layout.block_list(base)[1].get_submodule(path)
    linear.bias = nn.Parameter(vector + (0 if linear.bias is None else linear.bias))
    torch.testing.assert_close(got, base(IDS).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt", "jamba"])
@torch.no_grad()
def test_tokenwise_is_a_rank_one_change_of_down_proj(family):
    base, point = tiny_model(family), HookPoint(0, "down_proj")
    linear = (
        SteeredModel(base)
        .layout.block_list(base)[0]
        .get_submodule({"opt": "fc2", "jamba": "feed_forward.down_proj"}.get(family, "mlp.down_proj"))
    )
    item = randomize(Tokenwise.build([point], 32, d_inner=linear.in_features)[point], std=0.2)
    got = logits(base, {point: item})
    linear.weight += torch.outer(item.b, item.a)
    torch.testing.assert_close(got, base(IDS).logits, atol=2e-5, rtol=0)


def test_verification_leaves_no_hook_and_names_the_block():
    base = tiny_model("llama")
    base.model.layers[2].mlp.register_forward_hook(lambda _m, _a, out: out * 2)
    SteeredModel(base, Static.build([HookPoint(1, "mlp_output")], 32))
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in base.modules())
    assert hooks == 1  # the test's own
    wrapped = tiny_model("llama")
    forward = wrapped.model.layers[2].forward
    wrapped.model.layers[2].forward = lambda *args, **kwargs: forward(*args, **kwargs) * 1.5
    with pytest.raises(ModelError, match="layers.2: in a 'llama' block, .*do not add up"):
        SteeredModel(wrapped, Static.build([HookPoint(k, "mlp_output") for k in range(3)], 32))
