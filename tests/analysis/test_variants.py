"""Many variants in one growing batch: the numbers of a pass for each, by the other engine, and the work of one."""

from __future__ import annotations

import pytest
import torch

from steerkit.analysis import Text, growth, make_engine
from steerkit.analysis.growth import Growth, batch_arguments
from steerkit.analysis.readout import Readout
from steerkit.analysis.texts import batches
from steerkit.analysis.variants import Variant, run_variants
from steerkit.errors import SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Gated, Static, Tokenwise
from steerkit.models import LoadedModel, find_layout
from steerkit.testing import FAMILIES, randomize, tiny_model, tiny_tokenizer
from steerkit.vectors import SteeringVector

TEXTS = [Text("a", (5, 6, 7, 8, 9), 3), Text("b", (10, 11, 12), 2), Text("c", (7, 7, 3, 4), 2)]
READ = [HookPoint(layer) for layer in range(3)] + [HookPoint(1, "mlp_input"), HookPoint(2, "heads")]


def loaded_model(family="llama", **overrides):
    base = tiny_model(family, **overrides)
    return LoadedModel(base, tiny_tokenizer(), find_layout(base), "tiny")


def vector(*points, cls=Static, mask="all", seed=0):
    settings = {"d_inner": 64} if cls is Tokenwise else {}
    items = cls.build([HookPoint.parse(point) for point in points], 32, **settings)
    for k, item in enumerate(items.values()):
        randomize(item, seed + k)
    return SteeringVector.from_interventions(cls.__name__.lower(), items, token_mask=mask)


def batch():
    (found,) = batches(TEXTS, 0, torch.device("cpu"), 10**6)
    return found


def half(value):
    return value * 0.5


def swapped(value):
    """An edit that looks at other texts."""
    return value.roll(1, 0)


def variants():
    """Runs that part in every way: at an output, inside a block, in block 0, by edits, and some that are the same."""
    everywhere = vector("layers.0.output", "layers.1.output", "layers.2.output")
    return [
        Variant(),
        Variant(vector("layers.0.output")),
        Variant(vector("layers.2.output")),
        Variant(vector("layers.1.output", mask="generated")),
        Variant(everywhere),
        Variant(everywhere, {HookPoint(1, "attn_output"): half}),
        Variant(everywhere, {HookPoint(2, "mlp_output"): swapped}),
        Variant(everywhere, {HookPoint(2, "mlp_output"): swapped, HookPoint(2): half}),
        Variant(None, {HookPoint(0, "input"): half}),
        Variant(vector("layers.2.output", seed=7)),
        Variant(vector("layers.2.output"), {HookPoint(2, "attn_input"): half}),
        Variant(everywhere),
    ]


def same_as_one_by_one(loaded, chosen, read, engine="nnsight"):
    with make_engine("batched", loaded) as running:
        found = run_variants(running, batch(), chosen, read, logits=True)
    with make_engine(engine, loaded) as plain:
        for v, variant in enumerate(chosen):
            truth = plain.run(batch(), variant.vector, read, variant.edits, logits=True)
            for point in read:
                torch.testing.assert_close(found.of(v, point), truth[point], atol=1e-5, rtol=0, msg=f"{v} {point}")
            torch.testing.assert_close(found.logits(v), truth.logits, atol=1e-5, rtol=0)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_variants_are_passes_of_their_own(family):
    loaded = loaded_model(family)
    found = same_as_one_by_one(loaded, variants(), READ)
    assert found.trace.growth is not None, "the batch did not grow"
    values, which = found.distinct(HookPoint(0))
    # Behind block 0: the base, the halved input, the vector, and the vector for the run that is edited in block 1.
    assert len(values) == 4 and which.tolist() == [0, 2, 0, 0, 2, 3, 2, 2, 1, 0, 0, 2]
    last, _ = found.distinct(HookPoint(2))
    apart = [float((one - other).abs().max()) for k, one in enumerate(last) for other in last[:k]]
    assert len(last) == 11 and min(apart) > 1e-4


@pytest.mark.parametrize("family", ["gemma2", "opt", "bloom", "mpt", "falcon", "phi3", "granite", "gemma3_text"])
def test_other_families_grow_or_fall_back(family):
    extra = {"ffn_dim": 64, "word_embed_proj_dim": 32} if family == "opt" else {}
    chosen = [Variant(), *(Variant(vector(f"layers.{layer}.output", mask="prompt")) for layer in range(3))]
    same_as_one_by_one(loaded_model(family, **extra), chosen, READ[:3], engine="batched")


@pytest.mark.parametrize("cls, site", [(Gated, "output"), (Gated, "mlp_output"), (Tokenwise, "down_proj")])
def test_vectors_that_read_the_stream(cls, site):
    chosen = [Variant(vector(f"layers.{layer}.{site}", cls=cls, seed=layer)) for layer in (0, 1, 2, 2)]
    same_as_one_by_one(loaded_model(), [Variant(), *chosen], READ[:3])


def test_a_family_that_can_t_grow_runs_all_rows(monkeypatch):
    loaded = loaded_model()
    monkeypatch.setitem(growth._PROBED, loaded.base, None)
    found = same_as_one_by_one(loaded, variants(), READ)
    assert found.trace.growth is None


def test_the_probe_finds_blocks_that_mix_rows():
    """A block that looks at other rows, or at how many there are, must not be given rows on the way."""
    loaded = loaded_model()
    engine = make_engine("batched", loaded)
    assert batch_arguments(loaded, engine.arguments) is not None
    spoiled = loaded_model()
    block = spoiled.base.model.layers[1]
    block.register_forward_hook(lambda _m, _a, out: out + out.mean(0, keepdim=True))
    assert batch_arguments(spoiled, engine.arguments) is None


def test_what_is_shared_runs_once():
    loaded, rows = loaded_model(), []
    handles = [
        block.mlp.register_forward_hook(lambda _m, _a, out: rows.append(len(out)))
        for block in loaded.layout.block_list(loaded.base)
    ]
    engine = make_engine("batched", loaded)
    chosen = [Variant(), *(Variant(vector(f"layers.{layer}.output")) for layer in range(3))]
    run_variants(engine, batch(), chosen)  # the probe's rows, too
    rows.clear()
    found = run_variants(engine, batch(), chosen, [HookPoint(2)])
    assert rows == [3, 6, 9] and len(found.trace.values[HookPoint(2)]) == 12
    for handle in handles:
        handle.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in loaded.base.modules())
    assert not any("forward" in vars(m) for m in loaded.base.modules())


def test_keep_takes_positions():
    loaded = loaded_model()
    with make_engine("batched", loaded) as engine:
        whole = run_variants(engine, batch(), variants(), READ)
        some = run_variants(engine, batch(), variants(), READ, keep=lambda h: h[:, -2:].contiguous())
    for v in range(len(variants())):
        for point in READ:
            assert torch.equal(some.of(v, point), whole.of(v, point)[:, -2:])


def test_rows_join_in_order():
    grown = Growth((-1, -1, 0, 2), (0, 1, 1, 2))
    assert grown.layers == (0, 2) and [grown.rows(layer) for layer in (-1, 0, 1, 2)] == [2, 3, 3, 4]
    assert grown.ancestors(2) == [0, 1, 1, 1] and grown.ancestors(3) == [0, 1, 2, 2] and grown.joining(2) == [2]
    assert grown.spread(torch.tensor([5.0, 6.0])).tolist() == [5, 6, 6, 6]
    for starts, parents in (((-1, 1, 0), (0, 0, 0)), ((-1, 1, 1), (0, 0, 1)), ((-1, -1), (0, 0)), ((0,), (0,))):
        with pytest.raises(SteerkitError, match=r"Row \d can't join"):
            Growth(starts, parents)
    with pytest.raises(SteerkitError, match="at least one variant"):
        run_variants(make_engine("batched", loaded_model()), batch(), [])


def test_the_readout_in_pieces(monkeypatch):
    """Pieces of two rows against the whole distribution."""
    readout = Readout(loaded_model("gemma2"))
    monkeypatch.setattr("steerkit.analysis.readout._CHUNK", 2 * readout.vocabulary)
    hidden = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(5)
    logs = torch.log_softmax(readout.logits(hidden), -1)
    expected = logs.gather(-1, targets.expand(3, 5)[..., None])[..., 0]
    torch.testing.assert_close(readout.log_probs(hidden, targets), expected, atol=1e-5, rtol=0)
    reference = torch.log_softmax(torch.randn(5, readout.vocabulary), -1)
    expected = torch.nn.functional.kl_div(logs[1], reference, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(readout.divergence(reference, hidden[1]), expected, atol=1e-5, rtol=1e-5)
