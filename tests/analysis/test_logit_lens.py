"""The logit lens: a planted token is found, the numbers are those of plain hooks, bad input is refused."""

from __future__ import annotations

import pytest
import torch

from steerkit.analysis import LogitLens, Text
from steerkit.analysis.readout import Readout
from steerkit.errors import SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.models import LoadedModel, find_layout
from steerkit.rollouts import EncodedPrompt
from steerkit.testing import check_analyzer, tiny_model, tiny_tokenizer
from steerkit.types import Example
from steerkit.vectors import SteeringVector, VectorMetadata

FIVE = ("llama", "qwen2", "gemma2", "gpt2", "gpt_neox")
SMALL = {"max_tokens": 5, "controls": 2, "random_directions": 16, "top": 4, "streams": 3}


def loaded_model(family="llama", **overrides):
    base = tiny_model(family, **overrides)
    return LoadedModel(base, tiny_tokenizer(), find_layout(base), "tiny")


def prompts():
    rows = [(5, 6, 7), (8, 9), (9, 10, 11, 12, 13), (15, 16, 5, 6)]
    return [EncodedPrompt(Example(f"p{k}", "text", ""), "text", ids) for k, ids in enumerate(rows)]


def static(directions, mask="all"):
    tensors = {HookPoint(layer): {"vector": vector} for layer, vector in directions.items()}
    return SteeringVector("static", tensors, {}, VectorMetadata("tiny", "", 32, 3), mask)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_contract(family):
    check_analyzer(LogitLens, family=family, drawn=family == "llama", **SMALL)


@pytest.mark.parametrize("engine", ["nnsight", "batched"])
def test_a_scaled_unembedding_row_at_the_last_layer_is_found(engine):
    """Planted: the row of token 42. The raw lens must name it with cosine 1, and its effect must be that token."""
    loaded = loaded_model()
    readout = Readout(loaded)
    planted = 30 * readout.weight[42] / readout.weight[42].norm()
    result = LogitLens(**SMALL).run(loaded, {"planted": static({2: planted})}, prompts(), engine=engine)
    raw = [r for r in result.tables["direct"] if r["lens"] == "raw" and r["side"] == "top"]
    assert raw[0]["token"] == "w42" and raw[0]["cosine"] == pytest.approx(1.0, abs=1e-5)
    assert raw[0]["score"] == pytest.approx(float(planted @ readout.weight[42]), rel=1e-5)
    assert raw[0]["random_share_beyond"] == 0.0 and raw[1]["cosine"] < 0.8
    induced = [r for r in result.tables["induced"] if r["side"] == "top"]
    assert {r["layer"] for r in induced} == {2}  # nothing differs below the steered layer
    (norm,) = result.find(metric="induced norm", layer=2)
    assert norm["value"] == pytest.approx(30.0, rel=1e-5) == norm["control"] and norm["n"] == 4
    (below,) = result.find(metric="induced norm", layer=1)
    assert below["value"] == 0.0
    (top,) = result.find(metric="induced top score", layer=2)
    assert top["token"] == "w42" and top["value"] > 2 * top["control"]
    # The steered run writes w42 everywhere, and the stream of the last layer says so; the base's does not.
    stream = [r for r in result.tables["stream"] if r["layer"] == 2]
    assert all(r["steered"] == "w42" == r["generated"] for r in stream)
    assert sum(r["base"] == "w42" for r in stream) < len(stream)
    (gain,) = [r for r in result.rows if r["metric"].startswith("lens log-prob") and r["layer"] == 2]
    assert gain["value"] > 1.0 > gain["control"]


def test_the_norms_gain_turns_the_direction():
    """Planted through the norm: row / gain, so that only the lens with the gain names the token with cosine 1."""
    loaded = loaded_model()
    with torch.no_grad():
        loaded.base.model.norm.weight.copy_(torch.linspace(0.2, 3.0, 32))
    row = loaded.base.lm_head.weight[42].detach()
    result = LogitLens(**SMALL).run(loaded, static({2: row / loaded.base.model.norm.weight.detach()}), prompts())
    cosine = {r["lens"]: r["cosine"] for r in result.tables["direct"] if r["token"] == "w42" and r["side"] == "top"}
    assert cosine["norm"] == pytest.approx(1.0, abs=1e-5)
    assert cosine.get("raw", 0.0) < 0.95


@pytest.mark.parametrize("family", FIVE)
@torch.no_grad()
def test_gain_and_centring_are_the_norms_own(family):
    """The linear part found by probing, against the norm of two streams of equal size: its differences are exact."""
    loaded = loaded_model(family)
    readout = Readout(loaded)
    norm = loaded.base.get_submodule(loaded.layout.norm)
    stream = torch.randn(32, generator=torch.Generator().manual_seed(1))
    stream = stream - stream.mean() if readout.centres else stream
    size = stream.square().mean().sqrt()
    got = norm(stream) - norm(-stream)
    torch.testing.assert_close(got, 2 * stream / size * readout.gain, atol=1e-3, rtol=1e-4)  # its eps is not in ours
    assert readout.centres == (family in ("gpt2", "gpt_neox"))


@pytest.mark.parametrize("family", FIVE)
@torch.no_grad()
def test_induced_lens_equals_plain_hooks(family):
    """Each text alone, unpadded, under hooks written here; then the difference through the norm's gain."""
    loaded = loaded_model(family)
    generator = torch.Generator().manual_seed(3)
    vector = static({0: torch.randn(32, generator=generator), 1: torch.randn(32, generator=generator)}, "generated")
    analyzer = LogitLens(**SMALL, positions="not_first_generated")
    result = analyzer.run(loaded, {"v": vector}, prompts())
    readout, blocks = Readout(loaded), loaded.layout.block_list(loaded.base)
    texts = completions(loaded, vector, analyzer)
    means = []
    for text in texts:
        streams = []
        for add in (True, False):
            seen, handles = {}, []
            for layer, block in enumerate(blocks):
                handles.append(block.register_forward_hook(plain_hook(vector if add else None, layer, text, seen)))
            loaded.base(torch.tensor([text.ids]), use_cache=False)
            for handle in handles:
                handle.remove()
            streams.append(torch.stack([seen[layer][0] for layer in range(3)]))
        chosen = [t for t in range(len(text.ids)) if t != text.prompt_length - 1]
        means.append((streams[0] - streams[1])[:, chosen].mean(1))
    expected = torch.stack(means)  # [N, L, D]
    torch.testing.assert_close(result.arrays["induced v"].values, expected, atol=1e-5, rtol=0)
    for layer in range(3):
        scores = readout.scores(expected[:, layer].mean(0))
        table = [r for r in result.tables["induced"] if r["layer"] == layer and r["side"] == "top"]
        assert [r["token_id"] for r in table] == scores.topk(4).indices.tolist()
        got = torch.tensor([r["score"] for r in table])
        torch.testing.assert_close(got, scores.topk(4).values, atol=1e-5, rtol=1e-5)


def plain_hook(vector, layer, text, seen):
    def hook(_module, _args, output):
        if vector is not None and HookPoint(layer) in vector.tensors:
            acts = torch.zeros(1, len(text.ids), 1)
            acts[:, text.prompt_length - 1 :] = 1.0  # the mask "generated"
            output = output + acts * vector.tensors[HookPoint(layer)]["vector"]
        seen[layer] = output
        return output

    return hook


def completions(loaded, vector, analyzer):
    """The texts that the analyzer made: greedy, so the same again."""
    from steerkit.rollouts import SamplingParams
    from steerkit.rollouts.transformers_sampler import TransformersSampler

    model = vector.steer(loaded.base)
    groups = TransformersSampler().sample(
        model, loaded.tokenizer, prompts(), 1, SamplingParams(0.0, analyzer.max_tokens), 0
    )
    return [Text(g.example.id, (*g.prompt_ids, *g.rollouts[0].token_ids), len(g.prompt_ids)) for g in groups]


def test_tokens_are_shown_by_their_text():
    readout = Readout(loaded_model())
    assert readout.token(42) == "w42" and readout.token(0) == "<pad>" and readout.token(500) == "<id 500>"
    assert readout.vocabulary == 97


def test_white_space_and_control_characters_are_visible():
    class Spells:
        def __len__(self):
            return 4

        def decode(self, ids):
            return [" To", "\n\t", "\x07", "\u200b"][ids[0]]

    loaded = loaded_model()
    readout = Readout(LoadedModel(loaded.base, Spells(), loaded.layout, "tiny"))
    assert readout.tokens([0, 1, 2, 3]) == ["␣To", "⏎⇥", "\\x07", "\\u200b"]


def test_an_odd_width_has_a_gain_too():
    loaded = loaded_model(hidden_size=33, num_attention_heads=3, num_key_value_heads=3, head_dim=10)
    readout = Readout(loaded)
    torch.testing.assert_close(readout.gain, loaded.base.model.norm.weight.detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top": 0}, "top must be at least 1, got 0"),
        ({"positions": "somewhere"}, "Unknown token mask 'somewhere'"),
        ({"controls": 0}, "controls must be at least 1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(SteerkitError, match=message):
        LogitLens(**settings)
