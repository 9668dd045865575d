"""token_language: a vector that pushes one script down is found, classes by hand, probabilities by plain hooks."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from steerkit.analysis import TokenLanguage
from steerkit.analysis.lexicon import LEXICON
from steerkit.analysis.token_classes import class_of, classify, script_of
from steerkit.analysis.token_language import FALLING, LIFT, MASS, RISING
from steerkit.errors import SteerkitError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Static
from steerkit.models import LoadedModel, load_model
from steerkit.testing import check_analyzer
from steerkit.testing.analyzers import _Contract
from steerkit.vectors import SteeringVector, VectorMetadata

SMALL = {"max_tokens": 6, "top": 4, "controls": 2}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_it_keeps_the_contract(family):
    check_analyzer(TokenLanguage, family=family, drawn=family == "llama", **SMALL)


def two_languages(contract):
    """The contract's model with words: 60 English, 30 Russian, digits."""
    english = sorted(w for w in LEXICON["english"] if len(w) > 2)[:60]
    russian = [a + b + "а" for a in "бвгдж" for b in "аоуиея"]
    words = ["<pad>", "<eos>", "<bos>", *english, *russian, "1", "2", "3", "4"]
    backend = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", padding_side="left"
    )
    contract.loaded = LoadedModel(contract.loaded.base, tokenizer, contract.loaded.layout, "tiny")
    return range(3, 63), range(63, 93)


def static(direction, layer=2):
    item = Static(32)
    with torch.no_grad():
        item.vector.copy_(direction)
    return SteeringVector.from_interventions(
        "static", {HookPoint(layer): item}, VectorMetadata("tiny", d_model=32, n_layers=3)
    )


@pytest.mark.parametrize("engine", ["nnsight", "batched"])
def test_a_vector_that_pushes_a_script_down_is_found(engine):
    contract = _Contract(TokenLanguage(top=20, max_tokens=6, controls=8), "llama")
    _, russian = two_languages(contract)
    base = contract.loaded.base
    common = torch.randn(32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():  # what the Russian rows have in common, as scripts do in trained models
        base.lm_head.weight[list(russian)] += common / base.model.norm.weight / 8
        planted = static(-3.0 * common / base.model.norm.weight)
    result = contract.run(engine, vectors={"planted": planted})
    assert {row["layer"] for row in result.find(metric=RISING)} == {2}  # nothing differs below

    def of(metric, kind):
        (found,) = result.find(metric=metric, kind=kind)
        return found

    falling, lift, mass = of(FALLING, "cyrillic"), of(LIFT, "cyrillic"), of(MASS, "foreign")
    assert falling["value"] > 0.7 > falling["control"] and falling["n"] == 4
    assert lift["value"] < -0.8 and abs(lift["control"]) < 0.5 and lift["ci95"][1] < 0
    assert mass["value"] < -0.05
    tokens = [row for row in result.tables["tokens"] if row["side"] == "falling"][:10]
    assert all(row["kind"] == "cyrillic" for row in tokens)
    (vocabulary,) = result.find(metric="share of the vocabulary", kind="cyrillic")
    assert vocabulary["value"] == pytest.approx(30 / 97)


@torch.no_grad()
def test_numbers_are_those_of_a_plain_hook():
    """Scores, shares and lens probabilities of each layer, from hooks and formulas written here."""
    contract = _Contract(TokenLanguage(top=5, max_tokens=5, controls=1, positions="all"), "llama")
    _, russian = two_languages(contract)
    vector = contract.vector().at(0)
    result = contract.run("nnsight", vectors={"v": vector})
    base = contract.loaded.base
    from steerkit.models import SteeredModel
    from steerkit.rollouts import SamplingParams
    from steerkit.rollouts.transformers_sampler import TransformersSampler

    groups = TransformersSampler().sample(
        SteeredModel(base, {}), contract.loaded.tokenizer, contract.prompts, 1, SamplingParams(1.0, 5), 0
    )
    falling, mass = {layer: [] for layer in range(3)}, {layer: [] for layer in range(3)}
    for group in groups:
        ids = torch.tensor([[*group.prompt_ids, *group.rollouts[0].token_ids]])
        streams = {}
        for steered in (False, True):
            handles = []
            for layer, block in enumerate(base.model.layers):

                def hook(_m, _a, out, layer=layer, steered=steered, streams=streams):
                    if steered and layer == 0:
                        out = out + vector.tensors[HookPoint(0)]["vector"]
                    streams[steered, layer] = out[0]
                    return out

                handles.append(block.register_forward_hook(hook))
            base(ids)
            for handle in handles:
                handle.remove()
        for layer in range(3):
            gap = (streams[True, layer] - streams[False, layer]).mean(0)
            scores = (gap * base.model.norm.weight) @ base.lm_head.weight.T
            low = scores.argsort()[:5].tolist()
            falling[layer].append(sum(token in russian for token in low) / 5)
            p = [base.lm_head(base.model.norm(streams[s, layer])).softmax(-1)[:, list(russian)].sum(-1).mean()
                 for s in (True, False)]  # fmt: skip
            mass[layer].append(float(p[0] - p[1]))
    for layer in range(3):
        (share,) = result.find(metric=FALLING, kind="cyrillic", layer=layer)
        assert share["value"] == pytest.approx(sum(falling[layer]) / 4, abs=1e-6)
        (change,) = result.find(metric=MASS, kind="cyrillic", layer=layer)
        assert change["value"] == pytest.approx(sum(mass[layer]) / 4, abs=1e-5)


WORDS = {"step": "english", "die": "german", "und": "german", "sum": "english", "les": "french", "перо": "cyrillic"}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (" step", "english"), ("Step", "english"), (" und", "german"), ("und", "latin"), (" les", "french"),
        ("les", "latin"), ("zqx", "latin"), ("i", "latin"), ("Потом", "cyrillic"), ("漢字", "han"), ("ひら", "kana"),
        ("カタ", "kana"), ("한국", "hangul"), ("αβ", "greek"), ("ع", "arabic"), ("aя", "mixed"), ("12", "digit"),
        (" 3.", "digit"), ("+=", "symbol"), ("\\", "symbol"), (" \n", "space"), ("🙂", "symbol"),
        ("�начала", "cyrillic"), ("��", ""), ("", ""), ("𝑥", "symbol"), ("Ａ", "latin"),
    ],
)  # fmt: skip
def test_classes_of_texts(text, kind):
    assert class_of(text, WORDS) == kind


def test_scripts_of_letters():
    expected = ["latin", "cyrillic", "han", "kana", "hangul", "greek", "hebrew", "", "", ""]
    assert [script_of(c) for c in "aЯ漢ひ한αא1 +"] == expected


def test_the_vocabulary_of_tiny_reasoner():
    """Every id has one class; pieces of Cyrillic characters are Cyrillic, pieces of what may be anything are bytes."""
    loaded = load_model("tiny-reasoner")
    classes = classify(loaded.tokenizer, 640)
    assert len(classes) == 640 and classes[627:] == ["special"] * 13
    for text, kind in (
        (" Потом", "cyrillic"),
        (" answer", "english"),
        (" Lena", "latin"),
        ("7", "digit"),
        ("}.", "symbol"),
    ):
        (token,) = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert classes[token] == kind, text
    pieces = {loaded.tokenizer.convert_ids_to_tokens(k): classes[k] for k in range(627)}
    assert pieces["Ð"] == "cyrillic" and pieces["Ñ"] == "cyrillic"  # bytes D0 and D1
    assert pieces["å"] == "han" and pieces["ł"] == "bytes"  # E5, and a byte that begins no character
    more = classify(loaded.tokenizer, 627, {"name": ["lena", "tom"]})
    assert more[loaded.tokenizer(" Lena", add_special_tokens=False)["input_ids"][0]] == "name"


def test_word_lists_are_clean():
    for language, words in LEXICON.items():
        assert len(words) > 80, language
        for word in words:
            assert word == word.casefold() and (len(word) > 1 or language == "english"), (language, word)
            assert {script_of(c) for c in word} == {"latin"}, (language, word)


def test_bad_input():
    contract = _Contract(TokenLanguage(home="englsh", **SMALL), "llama")
    with pytest.raises(SteerkitError, match="no token of class 'englsh': home must be one of"):
        contract.run()
    with pytest.raises(SteerkitError, match="texts must be 'base' or 'steered', got 'both'"):
        TokenLanguage(texts="both")
    with pytest.raises(SteerkitError, match="Unknown token mask 'here'"):
        TokenLanguage(positions="here")
    with pytest.raises(SteerkitError, match="top must be at least 1"):
        TokenLanguage(top=0)


def test_on_the_steered_models_own_texts():
    contract = _Contract(TokenLanguage(texts="steered", **SMALL), "llama")
    result = contract.run()
    assert "of the steered model" in result.positions
    assert {row["vector"] for row in result.find(metric=LIFT)} == {"v0", "v1"}
