"""diff_sae: training recovers a known dictionary, ranking a known feature; ablation in decoding gives the base back."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from steerkit.analysis import DiffSae
from steerkit.analysis.edited_decoding import EditedModel
from steerkit.analysis.sae import Sae, load_sae
from steerkit.analysis.sae_features import rank_features, top_texts
from steerkit.analysis.sae_training import train_sae
from steerkit.analysis.texts import Text
from steerkit.datasets.arithmetic import Arithmetic
from steerkit.errors import DataError, SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Static
from steerkit.models import SteeredModel, load_model
from steerkit.rollouts import SamplingParams
from steerkit.rollouts.transformers_sampler import TransformersSampler
from steerkit.testing import check_analyzer
from steerkit.testing.analyzers import _Contract
from steerkit.vectors import SteeringVector, VectorMetadata

SMALL = {"latents": 16, "k": 2, "steps": 3, "batch": 16, "samples": 2, "max_tokens": 5, "listed": 3, "features": 1,
         "controls": 1, "shuffles": 3, "verifier": "exact"}  # fmt: skip


def test_it_keeps_the_contract():
    check_analyzer(DiffSae, **SMALL)


def test_on_the_steered_stream_of_gpt2():
    contract = _Contract(DiffSae(activations="steered", layer=1, **SMALL), "gpt2")
    result = contract.run()
    assert result.arrays["sae w_enc"].values.shape == (32, 16) and "h steered at layers.1.output" in result.notes[0]


# -- training


def dictionary(n=4000, width=16, size=12, seed=0):
    """Points that are sums of 2 of 12 unit directions with positive weights, around an offset."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(size, width, generator=generator), dim=-1)
    which = torch.rand(n, size, generator=generator).topk(2).indices
    weights = torch.zeros(n, size).scatter(1, which, 1 + torch.rand(n, 2, generator=generator))
    return rows, 40 * weights @ rows + 7.0


def test_training_recovers_a_known_dictionary():
    rows, data = dictionary()
    trained = train_sae(data, 24, 2, 800, 256, 5e-3, seed=1)
    cosines = torch.nn.functional.normalize(trained.sae.w_dec, dim=-1) @ rows.T
    assert (cosines.amax(0) > 0.95).sum() >= 11
    assert trained.fvu[-1] < 0.1 < trained.fvu[0] and trained.steps[-1] == 800
    assert all(0 <= share <= 1 for share in trained.dead)
    sae = trained.sae
    found = sae.encode(data)
    assert int((found > 0).sum(1).max()) <= 2
    unexplained = (data - sae.decode(found)).square().sum() / (data - data.mean(0)).square().sum()
    assert float(unexplained) == pytest.approx(trained.fvu[-1], abs=0.05)


def test_training_is_seeded_and_leaves_the_generator_alone():
    _, data = dictionary(400)
    before = torch.random.get_rng_state()
    one, two, other = (train_sae(data, 16, 2, 5, 64, 1e-3, seed=s).sae.w_enc for s in (3, 3, 4))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_what_cannot_be_trained():
    with pytest.raises(SteerkitError, match="the same at every position.* Take a later layer"):
        train_sae(torch.ones(50, 8) * 3, 16, 2, 5, 10, 1e-3, 0)
    with pytest.raises(SteerkitError, match="k must be at most latents, got 9 active features of 8"):
        train_sae(torch.randn(50, 8), 8, 9, 5, 10, 1e-3, 0)


def test_a_static_vectors_own_layer_is_refused():
    contract = _Contract(DiffSae(layer=2, **SMALL), "llama")
    with pytest.raises(SteerkitError, match="a static vector changes the stream by one constant at its own layer"):
        contract.run(vectors={"v": contract.vector().at(2)})


# -- ranking


def test_the_feature_of_right_completions_comes_first():
    """Feature 3 is active in right completions only; feature 1 follows the problem, not the verdict."""
    generator = torch.Generator().manual_seed(0)
    ids = [f"p{c // 4}" for c in range(40)]
    verdicts = (torch.rand(40, generator=generator) < 0.5).double()
    verdicts[:4] = 1.0  # a problem that is always right says nothing
    owners = torch.arange(40).repeat_interleave(5)
    activations = (torch.rand(200, 6, generator=generator) < 0.2).float()
    activations[:, 3] = verdicts[owners].float() * (torch.rand(200, generator=generator) < 0.6).float()
    activations[:, 1] = (owners // 4 % 2).float()
    ranking = rank_features(activations, owners, ids, verdicts, 20, 0)
    assert ranking.order[0] == 3 and len(ranking.differences) < 10
    assert float(ranking.differences.mean(0)[3]) > 2 * ranking.chance[0]
    assert float(ranking.differences.mean(0)[1]) == 0
    by_hand = []
    for p in range(10):
        rates = activations[p * 20 : p * 20 + 20, 0].reshape(4, 5).mean(1)
        right = verdicts[p * 4 : p * 4 + 4] > 0.5
        if 0 < int(right.sum()) < 4:
            by_hand.append(float(rates[right].mean() - rates[~right].mean()))
    torch.testing.assert_close(ranking.differences[:, 0], torch.tensor(by_hand))
    assert not {ranking.order[0]} & set(ranking.random_active(3, 1, 0))


def test_without_both_verdicts_nothing_is_claimed():
    ranking = rank_features(torch.ones(6, 3), torch.arange(6), ["a"] * 6, torch.ones(6).double(), 5, 0)
    (found,) = ranking.rows("v", 3, 0)
    assert found["value"] is None


def test_top_texts_show_the_token_that_is_predicted():
    texts = [Text("a", (5, 6, 7, 8), 2), Text("b", (5, 9, 10), 2)]
    owners = torch.tensor([0, 0, 0, 1, 1])
    activations = torch.tensor([[0.0], [3.0], [0.0], [1.0], [9.0]])  # the last position of b predicts nothing
    found = top_texts(str, texts, owners, activations, [0])
    peaks = [(row["text"], row["token"], row["activation"]) for row in found if row["peak"]]
    assert peaks == [("b", "10", 1.0), ("a", "8", 3.0)]


# -- editing while decoding


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_edited_decoding_is_a_full_pass_with_both_runs(family):
    """Each sampled token's log-probability from one full pass whose edit reads the base's full pass."""
    contract = _Contract(DiffSae(**SMALL), family)
    base, vector, point = contract.loaded.base, contract.vector(), HookPoint(1)
    steered = SteeredModel(base, vector.to_interventions(), contract.loaded.layout)

    def edit(hidden, reference):
        return hidden - 0.7 * (hidden - reference) + 0.1 * reference.roll(1, -1)

    model = EditedModel(steered, point, edit, True)
    groups = TransformersSampler().sample(model, contract.loaded.tokenizer, contract.prompts, 3,
                                          SamplingParams(1.0, 8), 5)  # fmt: skip
    blocks = contract.loaded.layout.block_list(base)
    for group in groups:
        for rollout in group.rollouts:
            ids = torch.tensor([[*group.prompt_ids, *rollout.token_ids]])
            seen = {}
            handle = blocks[1].register_forward_hook(lambda _m, _a, out, seen=seen: seen.update(base=out))
            base(ids)
            handle.remove()
            start = len(group.prompt_ids) - 1

            def change(_m, _a, out, seen=seen, start=start):
                out = out.clone()
                out[:, start:] = edit(out[:, start:], seen["base"][:, start:])
                return out

            with steered.applied():
                handle = blocks[1].register_forward_hook(change)
                logits = base(ids).logits[0, start:-1]
                handle.remove()
            expected = logits.log_softmax(-1).gather(1, torch.tensor(rollout.token_ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(rollout.logprobs), expected, atol=2e-4, rtol=0)


def opening_vector(loaded, size):
    """Says "To" at the first generated position: the way of answering that is right."""
    (token,) = loaded.tokenizer("To", add_special_tokens=False)["input_ids"]
    rows = loaded.base.lm_head.weight.detach()
    gain = loaded.base.model.norm.weight.detach()
    rivals = [loaded.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in ("The", "Um", "Сначала")]
    direction = torch.nn.functional.normalize(gain * (rows[token] - rows[rivals].mean(0)), dim=0)
    item = Static(128)
    with torch.no_grad():
        item.vector.copy_(size * direction)
    metadata = VectorMetadata("tiny-reasoner", d_model=128, n_layers=6)
    return SteeringVector.from_interventions("static", {HookPoint(5): item}, metadata, "first_generated")


def save_saelens(folder, w_enc, b_enc, w_dec, **config):
    folder.mkdir(exist_ok=True)
    tensors = {"W_enc": w_enc, "b_enc": b_enc, "W_dec": w_dec, "b_dec": torch.zeros(w_dec.shape[1])}
    save_file({name: t.contiguous() for name, t in (tensors | config.pop("more", {})).items()},
              folder / "sae_weights.safetensors")  # fmt: skip
    facts = {"architecture": "standard", "d_in": w_dec.shape[1], "d_sae": len(w_dec), "apply_b_dec_to_input": True,
             "normalize_activations": "none"}  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(facts | config))
    return str(folder)


def test_ablating_the_feature_that_is_the_vector_gives_the_base_back(tmp_path):
    """A published SAE: feature 0 is the vector's own direction, feature 1 a weak one that is always active."""
    loaded = load_model("tiny-reasoner", dtype="float32")
    vector = opening_vector(loaded, 150.0)
    s = vector.tensors[HookPoint(5)]["vector"]
    other = torch.nn.functional.normalize(torch.randn(128, generator=torch.Generator().manual_seed(0)), dim=0)
    w_enc = torch.stack([s / s.square().sum(), 0 * other, -s / s.square().sum()], 1)
    folder = save_saelens(tmp_path / "sae", w_enc, torch.tensor([0.0, 1.0, -0.5]), torch.stack([s, 0.001 * other, s]))
    analyzer = DiffSae(sae=folder, samples=2, max_tokens=90, listed=1, features=3, controls=1, held_out=0.7)
    examples = Arithmetic(n=1, n_eval=14, seed=3).load("test")
    result = analyzer.run(loaded, {"opening": vector}, examples, engine="batched")

    def accuracy(run, **keys):
        (found,) = result.find(metric="accuracy", run=run, **keys)
        return found

    base, steered = accuracy("base")["value"], accuracy("steered")["value"]
    assert steered > base + 0.3
    assert accuracy("ablated", feature=0)["value"] == base  # the very same samples
    assert accuracy("ablated", feature=1)["value"] == pytest.approx(steered, abs=0.06)
    (effect,) = result.find(metric="accuracy, edited - steered", run="ablated", feature=0)
    assert effect["ci95"][1] < 0 and effect["value"] == pytest.approx(base - steered)
    assert not {"curves", "sae w_enc"} & result.arrays.keys()
    assert result.find(metric="fraction of variance unexplained")[0]["value"] < 1e-3


# -- published SAEs


@torch.no_grad()
def test_published_saes_are_read(tmp_path):
    generator = torch.Generator().manual_seed(0)
    w_enc, w_dec = torch.randn(8, 20, generator=generator), torch.randn(20, 8, generator=generator)
    b_enc, x = torch.randn(20, generator=generator), torch.randn(5, 8, generator=generator)
    before = x @ w_enc + b_enc  # b_dec is 0 in these files
    sae = load_sae(save_saelens(tmp_path / "a", w_enc, b_enc, w_dec), 8)
    torch.testing.assert_close(sae.encode(x), before.relu())
    sae = load_sae(save_saelens(tmp_path / "b", w_enc, b_enc, w_dec, architecture="topk", k=3), 8)
    kept = torch.stack([torch.where(row >= row.topk(3).values[-1], row, 0).relu() for row in before])
    torch.testing.assert_close(sae.encode(x), kept)
    old = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}
    torch.testing.assert_close(load_sae(save_saelens(tmp_path / "c", w_enc, b_enc, w_dec, **old), 8).encode(x), kept)
    threshold = {"threshold": torch.full((20,), 0.8)}
    sae = load_sae(save_saelens(tmp_path / "d", w_enc, b_enc, w_dec, architecture="jumprelu", more=threshold), 8)
    torch.testing.assert_close(sae.encode(x), before * (before > 0.8))
    settings = {"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": True}
    sae = load_sae(save_saelens(tmp_path / "e", w_enc, b_enc, w_dec, **settings), 8)
    norms = w_dec.norm(dim=1)
    scaled = before * norms
    chosen = torch.stack([torch.where(row >= row.topk(3).values[-1], row, 0).relu() for row in scaled])
    torch.testing.assert_close(sae.decode(sae.encode(x)), (chosen / norms) @ w_dec)


@torch.no_grad()
def test_an_sae_that_sparsify_saved_is_read(tmp_path):
    from steerkit.analysis.sae_training import _sparsify

    coder_class, config_class = _sparsify()
    with torch.random.fork_rng(devices=[]):
        coder = coder_class(8, config_class(num_latents=20, k=4))
    coder.b_dec.normal_()
    coder.save_to_disk(tmp_path / "sae")
    x = torch.randn(6, 8)
    sae = load_sae(str(tmp_path / "sae"), 8)
    torch.testing.assert_close(sae.decode(sae.encode(x)), coder(x).sae_out)


def test_a_finished_analysis_is_an_sae(tmp_path):
    contract = _Contract(DiffSae(**SMALL), "llama")
    result = contract.run(folder=tmp_path)
    sae = load_sae(str(tmp_path), 32)
    assert isinstance(sae, Sae) and torch.equal(sae.w_dec, result.arrays["sae w_dec"].values) and sae.k == 2


def test_bad_input(tmp_path):
    contract = _Contract(DiffSae(**SMALL), "llama")
    wide = save_saelens(tmp_path / "wide", torch.zeros(40, 5), torch.zeros(5), torch.zeros(5, 40))

    def run(**changed):
        analyzer = DiffSae(**(SMALL | changed))
        return analyzer.run(contract.loaded, contract.vector(), contract.prompts, engine="batched")

    with pytest.raises(SteerkitError, match="wide reads 40 numbers, and the model's residual stream has 32"):
        run(sae=wide)
    gated = save_saelens(tmp_path / "gated", torch.zeros(32, 5), torch.zeros(5), torch.zeros(5, 32),
                         architecture="gated")  # fmt: skip
    with pytest.raises(SteerkitError, match="architecture 'gated' .* not supported"):
        run(sae=gated)
    normed = save_saelens(tmp_path / "n", torch.zeros(32, 5), torch.zeros(5), torch.zeros(5, 32),
                          normalize_activations="layer_norm")  # fmt: skip
    with pytest.raises(SteerkitError, match=r"normalise what they read \(layer_norm\)"):
        run(sae=normed)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SteerkitError, match="empty is no SAE: there is no .*cfg.json"):
        run(sae=str(tmp_path / "empty"))
    (tmp_path / "wide" / "sae_weights.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(SteerkitError, match="wide: damaged SAE"):
        run(sae=wide)
    with pytest.raises(SteerkitError, match="No SAE './nowhere': give a folder"):
        run(sae="./nowhere")
    with pytest.raises(SteerkitError, match="layer"):
        run(layer=9)
    with pytest.raises(SteerkitError, match="activations must be 'difference' or 'steered'"):
        DiffSae(activations="both")
    with pytest.raises(SteerkitError, match="k must be at most latents"):
        DiffSae(k=9, latents=8)
    with pytest.raises(SteerkitError, match="held_out must be above 0"):
        DiffSae(held_out=1.0)
    with pytest.raises(DataError, match="two prompts or more"):
        contract.analyzer.run(contract.loaded, contract.vector(), contract.prompts[:1])
