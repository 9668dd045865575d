"""Path patching: every variant against a block re-executed by hand, planted heads, decoding under the patch."""

from __future__ import annotations

import math

import pytest
import torch
from block_by_hand import Block

from steerkit.analysis import PathPatching, Text, draw, make_engine
from steerkit.analysis.accuracy import ratio_row
from steerkit.analysis.parts import Parts
from steerkit.analysis.patched_decoding import decode
from steerkit.analysis.patches import VARIANTS, block_patches, path_patch, shared_cast
from steerkit.analysis.path_patching import ACCURACY, CHANGE, KEPT, KL, _tiled
from steerkit.analysis.texts import batches
from steerkit.analysis.work import Work
from steerkit.cli import main
from steerkit.errors import DataError, ModelError, SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Tokenwise
from steerkit.models import LoadedModel, find_layout
from steerkit.rollouts import EncodedPrompt, SamplingParams
from steerkit.testing import check_analyzer, randomize, tiny_model, tiny_tokenizer
from steerkit.types import Example
from steerkit.vectors import SteeringVector, VectorMetadata

TEXTS = [Text("a", (5, 6, 7, 8, 9, 11), 3), Text("b", (10, 11, 12), 2)]
FIVE = ("llama", "qwen2", "gemma2", "gpt2", "gpt_neox")
SMALL = {"max_tokens": 4, "controls": 1, "verifier": "exact", "top": 2}
LAST = HookPoint(2)


def loaded_model(family="llama", **overrides):
    base = tiny_model(family, **overrides)
    for parameter in base.parameters():  # GPT-2 and Qwen2 start with biases of zero: a bug there would not show
        if parameter.dim() == 1:
            torch.manual_seed(len(parameter))
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return LoadedModel(base, tiny_tokenizer(), find_layout(base), "tiny")


def static(layers=(1,), mask="all", seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    tensors = {HookPoint(layer): {"vector": scale * torch.randn(32, generator=generator)} for layer in layers}
    return SteeringVector("static", tensors, {}, VectorMetadata("tiny", "", 32, 3), mask)


def prompts(answer="15"):
    rows = [(5, 6, 7), (8, 9), (9, 10, 11, 12, 13), (15, 16, 5, 6)]
    return [EncodedPrompt(Example(f"p{k}", "text", answer), "text", ids) for k, ids in enumerate(rows)]


def work_of(loaded, engine, vector, encoded=()):
    return Work(loaded, {"v": vector}, list(encoded), engine, 0, 8192, Parts(None, {}))


def streams(loaded, vector, patches, engine="batched", texts=TEXTS):
    """Patch name -> text id -> [T, D] what leaves the last block, padding taken off."""
    (batch,) = batches(texts, 0, torch.device("cpu"), 10**6)
    cast = shared_cast(patches, len(texts), torch.device("cpu"))
    with make_engine(engine, loaded) as running:
        hidden = running.run(
            _tiled(batch, cast.rows // len(texts)), vector, [LAST], cast.edits(patches),
            steered_rows=cast.steered(patches, torch.device("cpu")),
        )[LAST]  # fmt: skip
    named = {patch.name: roles["patched"] for patch, roles in zip(patches, cast.roles, strict=True)}
    named |= {role: cast.roles[0][role] for role in ("vanilla", "steered")}
    return {
        name: {text.id: batch.unpad(hidden[rows], k) for k, text in enumerate(batch.texts)}
        for name, rows in named.items()
    }


# -- against an independent implementation


def by_hand(block, own, other):
    """Name -> [T, D] what leaves the block, from the formulas.

    Args:
        own: [T, D] the input of the run that is patched; ``other``: of the one that the part is taken from.
    """
    q, k, v = block.qkv(block.norm(own, "attn"))
    q2, k2, v2 = block.qkv(block.norm(other, "attn"))
    attended, other_attended = block.attention(own), block.attention(other)
    added = block.mlp(block.norm(own + attended, "mlp"))
    other_added = block.mlp(block.norm(other + other_attended, "mlp"))

    def with_attention(a):
        return own + a + block.mlp(block.norm(own + a, "mlp"))

    found = {
        "attn": with_attention(other_attended),
        "q": with_attention(block.out(block.mixed(q2, k, v))),
        "k": with_attention(block.out(block.mixed(q, k2, v))),
        "v": with_attention(block.out(block.mixed(q, k, v2))),
        "mlp": own + attended + other_added,
        "mlp-direct": own + attended + block.mlp(block.norm(other + attended, "mlp")),
        "residual": other + attended + added,
        "layer": own + other_attended + other_added,
    }
    mixed, other_mixed = block.mixed(q, k, v), block.mixed(q2, k2, v2)
    for head in range(block.heads):
        one = slice(head * block.width, (head + 1) * block.width)
        patched = mixed.clone()
        patched[:, one] = other_mixed[:, one]
        found[f"head {head}"] = with_attention(block.out(patched))
    for group in range(block.groups):
        one = slice(group * block.width, (group + 1) * block.width)
        k3, v3 = k.clone(), v.clone()
        k3[:, one], v3[:, one] = k2[:, one], v2[:, one]
        found[f"group {group}"] = with_attention(block.out(block.mixed(q, k3, v3)))
    return found


def stream_into(loaded, layer, text, added=None):
    """[T, D] what enters a block, by a plain hook on an unpadded text; ``added`` leaves the block before."""
    seen = []
    block = loaded.layout.block_list(loaded.base)[layer]
    handle = block.register_forward_pre_hook(lambda _m, args, kwargs: seen.append((args or kwargs["hidden_states"])[0]),
                                             with_kwargs=True)  # fmt: skip
    loaded.base(torch.tensor([text.ids]), use_cache=False)
    handle.remove()
    return seen[0][0] + (0 if added is None else added)


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


def one_reader(head=2, layer=2):
    """A model in which the vector's direction is read by one head's values of the last block and by nothing else.

    Dimension 30 holds a constant, dimension 31 nothing; the vector moves the one to the other, so the norm that all
    modules read through stays what it was.
    """
    loaded = loaded_model(num_key_value_heads=4)
    base = loaded.base
    free = slice(30, 32)
    with torch.no_grad():
        base.model.embed_tokens.weight[:, 30], base.model.embed_tokens.weight[:, 31] = 2.0, 0.0
        for block in base.model.layers:
            for projection in (block.self_attn.o_proj, block.mlp.down_proj):
                projection.weight[free] = 0.0
            for projection in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj,
                               block.mlp.gate_proj, block.mlp.up_proj):  # fmt: skip
                projection.weight[:, free] = 0.0
            block.input_layernorm.weight.fill_(1.0)
            block.post_attention_layernorm.weight.fill_(1.0)
        base.model.norm.weight.fill_(1.0)
        base.lm_head.weight[:, free] = 0.0
        width = 8
        base.model.layers[layer].self_attn.v_proj.weight[head * width : (head + 1) * width, 31] = 3.0
        base.model.layers[layer].self_attn.o_proj.weight[:30, head * width : (head + 1) * width] *= 5.0
    direction = torch.zeros(32)
    direction[30], direction[31] = -2.0, 2.0
    return loaded, SteeringVector("static", {HookPoint(1): {"vector": direction}}, {},
                                  VectorMetadata("tiny", "", 32, 3))  # fmt: skip


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
def completions(groups):
    return [group.rollouts[0].token_ids for group in groups]


def test_decoding_under_the_patch_of_the_planted_head():
    """Without the head that reads it the vector does nothing to what is decoded; without another it does all."""
    loaded, vector = one_reader()
    patches, _ = block_patches(loaded, 2, ("heads",), inverse=True)
    with make_engine("batched", loaded) as engine:
        work = work_of(loaded, engine, vector, prompts())
        groups = decode(work, "v", vector, patches, SamplingParams(0.0, 8))
        got = {patch.name: completions(of_patch) for patch, of_patch in zip(patches, groups, strict=True)}
        base = completions(work.generations("base", None, 1, 0.0, 8))
        steered = completions(work.generations("v", vector, 1, 0.0, 8))
    assert base != steered
    assert got["skip-head 2"] == base and got["only-head 2"] == steered
    assert got["skip-head 1"] == steered and got["only-head 1"] == base


# -- decoding under a patch


@pytest.mark.parametrize("mask", ["all", "first_generated", "not_first_generated", "prompt"])
@pytest.mark.parametrize("family", FIVE)
@torch.no_grad()
def test_cached_decoding_is_decoding_anew(family, mask):
    loaded, vector = loaded_model(family), static((0, 1), mask, scale=2.0)
    patches, _ = block_patches(loaded, 2, ("attn", "k", "mlp-direct", "layer"), inverse=True)
    encoded = prompts()
    with make_engine("batched", loaded) as engine:
        work = work_of(loaded, engine, vector, encoded)
        got = [completions(groups) for groups in decode(work, "v", vector, patches, SamplingParams(0.0, 5))]
    stops = {loaded.base.config.eos_token_id, loaded.tokenizer.eos_token_id}
    seen = set()
    for index, prompt in enumerate(encoded):
        for patch, of_patch in zip(patches, got, strict=True):
            ids = list(prompt.ids)
            while len(ids) - len(prompt.ids) < 5 and not (len(ids) > len(prompt.ids) and ids[-1] in stops):
                text = Text("t", tuple(ids), len(prompt.ids))
                hidden = streams(loaded, vector, [patch], texts=[text])[patch.name]["t"][-1]
                norm = loaded.base.get_submodule(loaded.layout.norm)
                logits = loaded.base.get_submodule(loaded.layout.unembedding)(norm(hidden))
                ids.append(int(logits.argmax()))
            assert list(of_patch[index]) == ids[len(prompt.ids) :], (patch.name, index)
            seen.add(of_patch[index])
    assert len(seen) > 4


def test_tokenwise_vectors_are_decoded_with_the_tokens_they_see():
    loaded = loaded_model()
    items = Tokenwise.build([HookPoint(1, "down_proj")], 32, d_inner=64)
    for item in items.values():
        randomize(item, 0, std=1.0)
    vector = SteeringVector.from_interventions("tokenwise", items, VectorMetadata("tiny", "", 32, 3))
    patches, _ = block_patches(loaded, 2, ("residual", "v"), inverse=False)
    with make_engine("batched", loaded) as engine:
        work = work_of(loaded, engine, vector, prompts())
        groups = decode(work, "v", vector, patches, SamplingParams(0.0, 4))
    norm, head = loaded.base.model.norm, loaded.base.lm_head
    for patch, of_patch in zip(patches, groups, strict=True):
        for group in of_patch:
            (rollout,) = group.rollouts
            text = Text("t", (*group.prompt_ids, *rollout.token_ids), len(group.prompt_ids))
            hidden = streams(loaded, vector, [patch], texts=[text])[patch.name]["t"][text.prompt_length - 1 : -1]
            assert head(norm(hidden)).argmax(-1).tolist() == list(rollout.token_ids)


# -- the contract, and bad input


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_contract(family):
    check_analyzer(PathPatching, family=family, variants=["attn", "groups", "residual"], **SMALL)


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
