"""token_scale: a gate that fires on one token is found, numbers equal a plain hook's, segments are told apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from steerkit import registry
from steerkit.analysis import TokenScale, Work, draw, gates, of_prompts
from steerkit.analysis.engine import make_engine
from steerkit.analysis.gates import shuffled_gate, untrained_gate
from steerkit.analysis.parts import Parts
from steerkit.analysis.plots import Tokens
from steerkit.analysis.texts import Text
from steerkit.analysis.token_scale import segments_of
from steerkit.errors import DataError, SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.interventions.tokenwise import Tokenwise
from steerkit.models import SteeredModel
from steerkit.testing import check_analyzer, randomize
from steerkit.testing.analyzers import _Contract
from steerkit.vectors import SteeringVector, VectorMetadata

SMALL = {"max_tokens": 6, "shown": 2, "controls": 2}
DOWN = HookPoint(0, "down_proj")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_it_keeps_the_contract(family):
    check_analyzer(TokenScale, family=family, drawn=family == "llama", **SMALL)


def tokenwise(a, b, layer=0):
    item = Tokenwise(32, len(a))
    with torch.no_grad():
        item.a.copy_(a)
        item.b.copy_(b)
    return SteeringVector.from_interventions(
        "tokenwise", {HookPoint(layer, "down_proj"): item}, VectorMetadata("tiny", d_model=32, n_layers=3)
    )


def inner_of(contract, ids):
    """[n, d_inner] what the first block's down-projection is given, by a hook written here."""
    seen = []
    module = contract.loaded.base.model.layers[0].mlp.down_proj
    handle = module.register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach()))
    with torch.no_grad():
        contract.loaded.base(torch.tensor([ids]))
    handle.remove()
    return seen[0][0]


def fires_on(contract, token):
    """A gate that is 1 on one token of the contract's prompts and 0 on the others, by least squares."""
    inner = torch.cat([inner_of(contract, prompt.ids) for prompt in contract.prompts])
    wanted = torch.tensor([float(i == token) for prompt in contract.prompts for i in prompt.ids])
    assert inner.shape[1] > len(inner)
    return torch.linalg.lstsq(inner.double(), wanted[:, None].double(), driver="gelsd").solution[:, 0].float()


def test_a_gate_that_fires_on_one_token_is_found():
    contract = _Contract(TokenScale(max_tokens=1, controls=4), "llama")
    contract.prompts = [prompt for prompt in contract.prompts if 6 in prompt.ids]
    b = torch.randn(32, generator=torch.Generator().manual_seed(0))
    # Token 6 stands in two prompts: at place 1 of (5, 6, 7), a problem token, and last in (15, 16, 5, 6).
    result = contract.run(vectors={"planted": tokenwise(fires_on(contract, 6), b)})
    assert result.tables["top_tokens"][0]["token_id"] == 6
    (share,) = result.find(metric="share of mass", gate="trained", segment="problem")
    assert share["value"] > 0.99 > share["control"]
    (start,) = result.find(metric="share of mass", gate="trained", segment="role_tags")
    assert start["value"] < 0.01
    in_table = [r for r in result.tables["tokens"] if r["text"] == "check/0"][:3]
    sizes = [r["size"] for r in in_table]
    assert sizes[1] > 0 and abs(sizes[0]) < 1e-3 * sizes[1] and abs(sizes[2]) < 1e-3 * sizes[1]
    spread = result.find(metric="even spread", gate="trained")[0]
    untrained = result.find(metric="even spread", gate="untrained")[0]
    assert spread["value"] < 0.45 and spread["value"] < untrained["value"]


@pytest.mark.parametrize("relative_to", ["mean", "token"])
@torch.no_grad()
def test_sizes_are_those_of_a_plain_hook(relative_to):
    """Two hook points, the second behind the first: |a . x| |b| / |h| from hooks written here."""
    contract = _Contract(TokenScale(max_tokens=2, shown=4, controls=1, relative_to=relative_to), "llama")
    vector = contract.vector("tokenwise")
    result = contract.run(vectors={"v": vector})
    base, texts = contract.loaded.base, {}
    for r in result.tables["tokens"]:
        texts.setdefault(r["text"], {})[r["position"]] = r["token_id"]
    added, norms = {}, {}
    for name, ids in texts.items():
        seen = {}
        handles = []
        for layer in (0, 2):
            named = vector.tensors[HookPoint(layer, "down_proj")]

            def steer(_m, args, output, layer=layer, named=named, seen=seen):
                scale = args[0] @ named["a"]
                seen[layer] = scale[0] * named["b"].norm()
                return output + scale[..., None] * named["b"]

            def stream(_m, _a, output, layer=layer, name=name):
                norms[name, layer] = output[0].norm(dim=-1)

            handles.append(base.model.layers[layer].mlp.down_proj.register_forward_hook(steer))
            handles.append(base.model.layers[layer].register_forward_hook(stream))
        base(torch.tensor([[ids[k] for k in sorted(ids)]]))
        for handle in handles:
            handle.remove()
        added |= {(name, layer): value for layer, value in seen.items()}
    for r in result.tables["tokens"]:
        if r["point"] == "all":
            continue
        layer = HookPoint.parse(r["point"], 3).layer
        stream = torch.cat([norms[name, layer] for name in texts])
        unit = stream.mean() if relative_to == "mean" else norms[r["text"], layer][r["position"]]
        expected = float(added[r["text"], layer][r["position"]] / unit)
        assert r["size"] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_static_vector_has_no_gate():
    contract = _Contract(TokenScale(max_tokens=2, controls=2), "llama")
    result = contract.run(vectors={"s": contract.vector().at(0)})
    assert not result.find(gate="untrained")
    for segment in ("role_tags", "problem"):
        (ratio,) = result.find(metric="share of mass / share of tokens", segment=segment)
        assert ratio["value"] == pytest.approx(1.0, abs=1e-5) and ratio["control"] is None
    assert result.find(metric="even spread")[0]["value"] == pytest.approx(1.0, abs=1e-5)


def test_outside_the_mask_nothing_is_added():
    contract = _Contract(TokenScale(max_tokens=3, shown=4), "llama")
    result = contract.run(vectors={"v": contract.vector("tokenwise", mask="segment:role_tags")})
    for r in result.tables["tokens"]:
        assert (abs(r["size"]) > 0) == (r["segment"] == "role_tags")
    shares = result.find(metric="share of mass", segment="role_tags", gate="trained", point="all")
    assert shares[0]["value"] == pytest.approx(1.0)


@torch.no_grad()
def test_the_gates_that_it_is_compared_with():
    item = Tokenwise(8, 12, seed=3)
    start = item.a.clone()
    randomize(item, 1)
    vector = SteeringVector.from_interventions("tokenwise", {DOWN: item})
    untrained, shuffled = untrained_gate(vector), shuffled_gate(vector, 5)
    assert torch.equal(untrained.tensors[DOWN]["a"], start)
    for other in (untrained, shuffled):
        assert torch.equal(other.tensors[DOWN]["b"], vector.tensors[DOWN]["b"])
    a = vector.tensors[DOWN]["a"]
    assert torch.equal(shuffled.tensors[DOWN]["a"].sort().values, a.sort().values)
    assert not torch.equal(shuffled.tensors[DOWN]["a"], a)


def test_a_gate_on_the_stream_reads_it_unsteered_there():
    """gated at a block's output: its size is g(w . h/|h|) |s| with h before its own steering."""
    contract = _Contract(TokenScale(max_tokens=1, shown=1, controls=1), "llama")
    vector = contract.vector("gated")
    result = contract.run("nnsight", vectors={"g": vector})
    ids = [r["token_id"] for r in result.tables["tokens"] if r["point"] == "layers.0.output"]
    seen = {}
    handle = contract.loaded.base.model.layers[0].register_forward_hook(lambda _m, _a, out: seen.update(h=out))
    with torch.no_grad():
        contract.loaded.base(torch.tensor([ids]))
        handle.remove()
        item = vector.to_interventions()[HookPoint(0)]
        expected = item.scale(seen["h"])[0] * item.vector.norm()
    sizes = torch.tensor([r["size"] for r in result.tables["tokens"] if r["point"] == "layers.0.output"])
    torch.testing.assert_close(sizes / sizes[0], expected / expected[0], atol=1e-4, rtol=1e-4)


def test_segments():
    text = Text("x", tuple(range(9)), 7, ("role_tags", "system", "role_tags", "problem", "role_tags", "role_tags",
                                          "prefill"))  # fmt: skip
    assert segments_of(text) == ["role_tags", "system", "role_tags", "problem", "prompt_end", "prompt_end", "prefill",
                                 "completion", "completion"]  # fmt: skip


def test_bad_input():
    contract = _Contract(TokenScale(**SMALL), "llama")
    bare = [replace(prompt, segments=()) for prompt in contract.prompts]
    with pytest.raises(DataError, match="needs each prompt's segments, and 'check/0' has none"):
        contract.analyzer.run(contract.loaded, contract.vector(), bare)
    with pytest.raises(SteerkitError, match="relative_to must be 'mean' or 'token', got 'max'"):
        TokenScale(relative_to="max")
    with pytest.raises(SteerkitError, match="controls must be at least 1, got 0"):
        TokenScale(controls=0)


def test_the_text_is_coloured(tmp_path):
    contract = _Contract(TokenScale(**SMALL), "llama")
    result = contract.run(vectors=contract.vectors(intervention="tokenwise"), folder=tmp_path)
    coloured = [panel for panel in contract.analyzer.panels(result) if isinstance(panel, Tokens)]
    assert len(coloured) == 2 and all(len(panel.texts) == 2 for panel in coloured)
    page = (tmp_path / "figures.html").read_text() if draw(tmp_path).page else ""
    assert "background:rgba(" in page


def test_it_samples_from_the_steered_model():
    contract = _Contract(TokenScale(max_tokens=4, shown=1, controls=1), "llama")
    vector = contract.vector(seed=4)
    result = contract.run(vectors={"v": vector})
    ids = [r["token_id"] for r in result.tables["tokens"] if r["point"] == "all"]
    model = SteeredModel(contract.loaded.base, vector.to_interventions())
    with torch.no_grad():
        for position in range(3, len(ids)):
            assert int(model(torch.tensor([ids[:position]])).logits[0, -1].argmax()) == ids[position]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "granite"])
@pytest.mark.parametrize("intervention", ["tokenwise", "gated"])
def test_one_run_reads_what_all_hook_points_are_given(family, intervention, monkeypatch):
    """Against a run a hook point, steered below it alone."""
    contract = _Contract(TokenScale(), family)
    vector = contract.vector(intervention)
    plugin = registry.resolve("interventions", intervention)
    points = list(vector.tensors)
    assert len(points) > 1
    vectors, settings = {"v": vector}, (0, 4096, Parts(None, {}))
    with make_engine("batched", contract.loaded) as engine:
        work = Work(contract.loaded, vectors, contract.prompts, engine, *settings)
        batch = next(iter(work.batches(of_prompts(work.prompts))))
        runs = []
        run = work.engine.run
        monkeypatch.setattr(work.engine, "run", lambda *given, **named: runs.append(1) or run(*given, **named))
        found = gates._what_is_read(work, batch, vector, points)
        assert len(runs) == 1 if intervention == "tokenwise" else len(runs) <= len(points) + 1
        for point in points:
            below = {p: named for p, named in vector.tensors.items() if p < point}
            places = gates.read_places(plugin, point)
            trace = run(batch, replace(vector, tensors=below) if below else None, places)
            truth = torch.stack([trace[place] for place in places]).sum(0)
            torch.testing.assert_close(found[point], truth, atol=2e-4, rtol=2e-4)
