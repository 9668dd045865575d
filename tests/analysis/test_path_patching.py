"""Path patching: every variant against a block re-executed by hand, planted heads, decoding under the patch."""

from __future__ import annotations

import math

import pytest
import torch
from block_by_hand import Block
from patching_cases import (
    FIVE,
    SMALL,
    TEXTS,
    by_hand,
    loaded_model,
    one_reader,
    prompts,
    static,
    stream_into,
    streams,
)

from steerkit.analysis import PathPatching, Text, draw
from steerkit.analysis.accuracy import ratio_row
from steerkit.analysis.patches import VARIANTS, block_patches, path_patch
from steerkit.analysis.path_patching import ACCURACY, CHANGE, KEPT, KL
from steerkit.cli import main
from steerkit.errors import DataError, ModelError, SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.testing import check_analyzer


@pytest.mark.parametrize("engine", ["nnsight", "batched"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
@torch.no_grad()
def test_every_variant_is_the_block_by_hand(family, engine):
    loaded, vector = loaded_model(family), static()
    patches, notes = block_patches(loaded, 2, VARIANTS, inverse=True)
    assert not notes
    got = streams(loaded, vector, patches, engine)
    block = Block(loaded.base, 2)
    added = vector.tensors[HookPoint(1)]["vector"]
    for text in TEXTS:
        vanilla = stream_into(loaded, 2, text)
        steered = stream_into(loaded, 2, text, added)
        expected = {f"skip-{name}": value for name, value in by_hand(block, steered, vanilla).items()}
        expected |= {f"only-{name}": value for name, value in by_hand(block, vanilla, steered).items()}
        expected |= {"vanilla": block.run(vanilla), "steered": block.run(steered)}
        assert expected.keys() == got.keys()
        for name, value in expected.items():
            torch.testing.assert_close(got[name][text.id], value, atol=1e-5, rtol=0, msg=f"{family} {name}")
        apart = {name: value for name, value in expected.items() if name.startswith("skip")}
        for name, value in apart.items():  # each variant is another one: a mix-up would show
            others = [other for key, other in apart.items() if key != name]
            assert min(float((value - other).abs().max()) for other in others) > 1e-4, name


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
@torch.no_grad()
def test_paths_between_layers_by_hand(family):
    """Sender in block 0, receivers in blocks 1 and 2: what is between is held at the steered run's values."""
    loaded, vector = loaded_model(family), static((0,))
    one, two = Block(loaded.base, 1), Block(loaded.base, 2)
    specs = ["layers.0.output -> layers.2.q[1]", "layers.1.attn_output -> layers.2.mlp_input",
             "layers.1.heads[3] -> layers.1.mlp_input"]  # fmt: skip
    patches = [path_patch(loaded, spec, inverse) for spec in specs for inverse in (False, True)]
    got = streams(loaded, vector, patches)
    added = vector.tensors[HookPoint(0)]["vector"]
    for text in TEXTS:
        vanilla = stream_into(loaded, 1, text)
        for way, own, other in (("skip", vanilla + added, vanilla), ("only", vanilla, vanilla + added)):
            a, a2 = one.attention(own), one.attention(other)
            m = one.mlp(one.norm(own + a, "mlp"))
            x = own + a + m  # enters block 2
            # 1: the stream with the other run's output of block 0, and block 1's additions as they are
            q, k, v = two.qkv(two.norm(x, "attn"))
            q2 = two.qkv(two.norm(other + a + m, "attn"))[0]
            q = q.clone()
            q[:, two.width : 2 * two.width] = q2[:, two.width : 2 * two.width]
            b = two.out(two.mixed(q, k, v))
            first = x + b + two.mlp(two.norm(x + b, "mlp"))
            # 2: the other run's attention of block 1, its MLP and block 2's attention as they are
            b = two.attention(x)
            second = x + b + two.mlp(two.norm(own + a2 + m + b, "mlp"))
            # 3: one head, inside a block
            heads, heads2 = (one.mixed(*one.qkv(one.norm(s, "attn"))) for s in (own, other))
            patched = heads.clone()
            patched[:, 3 * one.width :] = heads2[:, 3 * one.width :]
            third = two.run(own + a + one.mlp(one.norm(own + one.out(patched), "mlp")))
            for spec, value in zip(specs, (first, second, third), strict=True):
                torch.testing.assert_close(got[f"{way} {spec}"][text.id], value, atol=1e-5, rtol=0, msg=spec)
            assert (first - second).abs().max() > 1e-4 and (first - third).abs().max() > 1e-4


@pytest.mark.parametrize("family", FIVE)
@torch.no_grad()
def test_engines_and_plain_hooks_agree(family):
    """skip-attn, skip-mlp and skip-layer by hooks written here, on five families; nnsight = batched = these."""
    loaded, vector = loaded_model(family), static()
    patches, notes = block_patches(loaded, 2, ("attn", "q", "mlp", "layer"), inverse=False)
    assert bool(notes) == (family == "gpt_neox")  # q, k and v are interleaved there
    found = {name: streams(loaded, vector, patches, name) for name in ("nnsight", "batched")}
    blocks = loaded.layout.block_list(loaded.base)
    block = blocks[2]
    attention = getattr(block, "self_attn", None) or getattr(block, "attn", None) or block.attention
    ends = [(getattr(block, "post_attention_layernorm", None) if family == "gemma2" else attention),
            (getattr(block, "post_feedforward_layernorm", None) if family == "gemma2" else block.mlp)]  # fmt: skip
    places = {
        "skip-attn": [(attention, "in")],
        "skip-mlp": [(block.mlp, "in")],
        "skip-layer": [(e, "out") for e in ends],
    }

    def run(text, steered, taken):
        """[T, D] what leaves the last block; kept: what each place had."""
        kept, out, handles = {}, [], []

        def into(module):
            def hook(_m, args, kwargs):
                value = args[0] if args else kwargs["hidden_states"]
                kept[module, "in"] = value
                value = taken.get((module, "in"), value)
                return ((value, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": value})

            return hook

        def out_of(module):
            def hook(_m, _a, output):
                value = output[0] if isinstance(output, tuple) else output
                kept[module, "out"] = value
                value = taken.get((module, "out"), value)
                return (value, *output[1:]) if isinstance(output, tuple) else value

            return hook

        if steered:
            handles.append(
                blocks[1].register_forward_hook(lambda _m, _a, o: o + vector.tensors[HookPoint(1)]["vector"])
            )
        for module in {attention, block.mlp, *ends}:
            handles.append(module.register_forward_pre_hook(into(module), with_kwargs=True))
            handles.append(module.register_forward_hook(out_of(module)))
        handles.append(block.register_forward_hook(lambda _m, _a, o: out.append(o)))
        loaded.base(torch.tensor([text.ids]), use_cache=False)
        for handle in handles:
            handle.remove()
        return out[0][0], kept

    for text in TEXTS:
        vanilla, kept = run(text, False, {})
        steered, _ = run(text, True, {})
        expected = {"vanilla": vanilla, "steered": steered}
        for name, of_variant in places.items():
            expected[name], _ = run(text, True, {place: kept[place] for place in of_variant})
        for engine, got in found.items():
            for name, value in expected.items():
                torch.testing.assert_close(got[name][text.id], value, atol=1e-5, rtol=0, msg=f"{engine} {name}")
        assert (expected["skip-layer"] - vanilla).abs().max() > 1e-3


# -- numbers of a result, from logits


@torch.no_grad()
def test_numbers_from_the_definitions():
    loaded, vector = loaded_model(), static()
    result = PathPatching(variants=["attn", "layer"], **SMALL).run(loaded, {"v": vector}, prompts(), engine="batched")
    block, added = Block(loaded.base, 2), vector.tensors[HookPoint(1)]["vector"]
    kls, changes = {"skip-attn": [], "only-layer": [], "vanilla": []}, {"skip-attn": [], "only-layer": []}
    for prompt in prompts():
        ids = list(prompt.ids)
        for _ in range(SMALL["max_tokens"]):  # the steered greedy completion, anew at each token
            steered = block.run(stream_into(loaded, 2, Text("", tuple(ids), 1), added))
            token = int(loaded.base.lm_head(loaded.base.model.norm(steered[-1])).argmax())
            ids.append(token)
            if token == loaded.base.config.eos_token_id:
                break
        text = Text("", tuple(ids), len(prompt.ids))
        x = stream_into(loaded, 2, text)
        runs = {
            "steered": block.run(x + added),
            "vanilla": block.run(x),
            "skip-attn": by_hand(block, x + added, x)["attn"],
            "only-layer": by_hand(block, x, x + added)["layer"],
        }
        logs = {
            key: torch.log_softmax(loaded.base.lm_head(loaded.base.model.norm(value))[len(prompt.ids) - 1 : -1], -1)
            for key, value in runs.items()
        }
        targets = torch.tensor(ids[len(prompt.ids) :])[:, None]
        for name in kls:
            kls[name].append(float((logs["steered"].exp() * (logs["steered"] - logs[name])).sum(-1).mean()))
        for name in changes:
            changes[name].append(float((logs[name].exp() - logs["steered"].exp()).gather(1, targets).mean()))
    for name, values in kls.items():
        (got,) = result.find(variant=name, metric=KL)
        assert got["value"] == pytest.approx(sum(values) / 4, abs=1e-5) and got["n"] == 4
        (kept,) = result.find(variant=name, metric=KEPT)
        assert kept["value"] == pytest.approx(1 - sum(values) / sum(kls["vanilla"]), abs=1e-4)
    for name, values in changes.items():
        (got,) = result.find(variant=name, metric=CHANGE)
        assert got["value"] == pytest.approx(sum(values) / 4, abs=1e-5)
    assert result.find(variant="steered", metric=KL)[0]["value"] == 0.0
    assert {row["variant"] for row in result.tables["tokens"]} == {"steered", "skip-attn", "only-attn", "skip-layer",
                                                                   "only-layer"}  # fmt: skip


def test_a_share_without_an_effect_has_no_value():
    assert ratio_row("m", [0.0, 0.0], [0.0, 0.0])["value"] is None
    made = ratio_row("m", [1.0, 2.0, 3.0], [2.0, 4.0, 6.0], offset=1.0, sign=-1.0)
    assert made["value"] == 0.5 and made["ci95"] == [0.5, 0.5] and made["n"] == 3
    assert ratio_row("m", [1.0, 2.0, math.nan], [5.0, -4.0, 1.0])["ci95"] is None  # the denominator may be 0


# -- planted


@pytest.mark.parametrize("engine", ["nnsight", "batched"])
def test_a_vector_that_one_head_reads(engine, tmp_path):
    loaded, vector = one_reader()
    result = PathPatching(variants=["heads", "groups", "attn", "q", "k", "v", "residual"], **SMALL).run(
        loaded, {"v": vector}, prompts(), engine=engine, folder=tmp_path
    )
    whole = result.find(variant="vanilla", metric=KL)[0]["value"]
    assert whole > 0.05
    kept = {row["variant"]: row["value"] for row in result.find(metric=KEPT)}
    carries = {"head 2", "group 2", "attn", "v"}
    for variant, value in kept.items():
        kind, _, name = variant.partition("-")
        if kind in ("skip", "only"):
            expected = float((name in carries) == (kind == "only"))
            assert value == pytest.approx(expected, abs=1e-4), variant
    assert all(row["control"] is not None for row in result.find(metric=ACCURACY))
    assert draw(tmp_path).images


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_contract(family):
    check_analyzer(
        PathPatching, family=family, drawn=family == "llama", variants=["attn", "groups", "residual"], **SMALL
    )


def test_bad_input(tmp_path, capsys):
    loaded = loaded_model()
    run = {"vectors": {"v": static()}, "prompts": prompts(), "engine": "batched"}
    with pytest.raises(SteerkitError, match=r"Unknown variant 'atn'. Did you mean 'attn'\?"):
        PathPatching(variants=["atn"]).run(loaded, **run)
    with pytest.raises(SteerkitError, match="Layer 7 is out of range: the model has 3 layers"):
        PathPatching(block=7).run(loaded, **run)
    for path, message in (
        ("layers.0.output", "write 'layers.3.attn_output -> layers.5.q'"),
        ("layers.0.output -> layers.2.qq", "Can't read the place 'layers.2.qq'"),
        ("layers.0.output -> layers.2.attn_pattern", "Can't read the place"),
        ("layers.2.q -> layers.1.q", "the receiver must come behind the sender"),
        ("layers.0.output -> layers.9.q", "layers.9.q is outside the model: it has layers 0 to 2"),
        ("layers.0.output -> layers.2.k[2]", r"k has 2 of them, 0 to 1"),
        ("layers.0.output[1] -> layers.2.k", "only q, k, v and heads have parts"),
    ):
        with pytest.raises(SteerkitError, match=message):
            PathPatching(paths=[path]).run(loaded, **run)
    with pytest.raises(DataError, match="path_patching measures accuracy, and prompt 'p0' has no answer"):
        PathPatching().run(loaded, {"v": static()}, prompts(""), engine="batched")
    PathPatching(accuracy=False, variants=["attn"], max_tokens=2, controls=1).run(loaded, {"v": static()}, prompts(""))
    with pytest.raises(ModelError, match="q_proj"):
        PathPatching(variants=["q"]).run(loaded_model("gpt_neox"), **run)
    with pytest.raises(SteerkitError, match="Nothing to patch"):
        PathPatching(variants=[])
    with pytest.raises(SteerkitError, match="controls must be at least 1"):
        PathPatching(controls=0)
    assert main(["analyze", "path_patching", "--model", "tiny-reasoner", "--vector", str(tmp_path / "none"), "--out",
                 str(tmp_path / "out")]) == 2  # fmt: skip
    assert "Traceback" not in capsys.readouterr().err
