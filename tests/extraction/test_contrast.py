"""Contrast sets: where a completion begins, and where pairs come from."""

import json

import pytest
from helpers import checkpoint

from steerkit.datasets import PromptTemplate
from steerkit.datasets.arithmetic import Arithmetic
from steerkit.errors import DataError, SteerkitError
from steerkit.extraction import load_pairs, requested_contrast, sampled_contrast, written_contrast
from steerkit.models import load_model
from steerkit.rollouts import SamplingParams
from steerkit.rollouts.transformers_sampler import TransformersSampler

PLAIN = PromptTemplate(style="plain", system=None, suffix="\nAnswer:")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(checkpoint(tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize("template", [PLAIN, PromptTemplate()], ids=["plain", "chat"])
def test_written_branches_are_prompt_and_completion(loaded, template):
    problems, texts = ["Tom has 12 apples.", "Anna gives Tom 3 more."], [("To find it: 15.", " 15"), ("a", "step 1")]
    contrast = written_contrast(loaded, template, problems, texts)
    assert len(contrast) == 2 and contrast.dropped == 0
    for k, problem in enumerate(problems):
        prompt = template.render(loaded.tokenizer, problem)
        for branch, text in zip((contrast.positive[k], contrast.negative[k]), texts[k], strict=True):
            assert loaded.tokenizer.decode(branch.ids) == prompt + text
            assert loaded.tokenizer.decode(branch.ids[branch.start :]) == text and branch.given == 0
            assert branch.ids[: branch.start] == tuple(template.encode(loaded.tokenizer, prompt))


def test_a_token_merged_across_the_boundary_belongs_to_the_completion(loaded):
    tokenizer = loaded.tokenizer
    merged = min(token for token in tokenizer.get_vocab() if token.isascii() and token.isalpha() and len(token) > 1)
    assert len(tokenizer.tokenize(f"1{merged}")) == 2
    template = PromptTemplate(style="plain", system=None)
    branch = written_contrast(loaded, template, ["1" + merged[:1]], [(merged[1:], "!")]).positive[0]
    assert tokenizer.decode(branch.ids) == f"1{merged}"
    assert tokenizer.decode(branch.ids[: branch.start]) == "1"


def test_pairs_that_do_not_fit_are_dropped_together(loaded, caplog):
    problems = ["Tom.", "Anna."]
    contrast = written_contrast(loaded, PLAIN, problems, [("x", "y" * 400), ("x", "y")])
    assert (len(contrast.positive), len(contrast.negative), contrast.dropped) == (1, 1, 1)
    assert "left out" in caplog.text
    with pytest.raises(DataError, match="No pair fits"):
        written_contrast(loaded, PLAIN, problems[:1], [("x", "y" * 400)])
    with pytest.raises(DataError, match="adds no token"):
        written_contrast(loaded, PLAIN, problems[:1], [("x", "")])


def test_samples_after_openings_continue_the_opening(loaded):
    examples = Arithmetic(n=5).load("train")
    openings, params = ("To", "The answer"), SamplingParams(1.0, 6)
    contrast = sampled_contrast(loaded, PLAIN, examples, openings, TransformersSampler(), params, 3)
    again = sampled_contrast(loaded, PLAIN, examples, openings, TransformersSampler(), params, 3)
    assert len(contrast) == 5 and contrast == again
    stop = loaded.tokenizer.eos_token_id
    for side, opening in ((contrast.positive, "To"), (contrast.negative, "The answer")):
        for example, branch in zip(examples, side, strict=True):
            prompt = PLAIN.render(loaded.tokenizer, example)
            assert loaded.tokenizer.decode(branch.ids[: branch.start]) == prompt
            given = branch.ids[branch.start : branch.start + branch.given]
            assert loaded.tokenizer.decode(given) == opening
            assert len(branch.ids) - branch.start - branch.given <= 6 and branch.ids[-1] != stop
    other = sampled_contrast(loaded, PLAIN, examples, openings, TransformersSampler(), params, 4)
    assert other.positive != contrast.positive
    for bad in (("To", "To"), ("", "To")):
        with pytest.raises(SteerkitError, match="two different openings"):
            sampled_contrast(loaded, PLAIN, examples, bad, TransformersSampler(), params, 3)


@pytest.mark.parametrize("template", [PLAIN, PromptTemplate()], ids=["plain", "chat"])
def test_requests_stand_behind_the_problem(loaded, template):
    problems = Arithmetic(n=3).load("train")
    contrast = requested_contrast(loaded, template, problems, ("Show steps.", "Be quick."))
    assert len(contrast) == 3 and not contrast.same_prompt
    for side, request in ((contrast.positive, "Show steps."), (contrast.negative, "Be quick.")):
        for example, branch in zip(problems, side, strict=True):
            expected = template.render(loaded.tokenizer, f"{example.problem} {request}")
            assert loaded.tokenizer.decode(branch.ids) == expected
            assert branch.start == len(branch.ids) and branch.given == 0
    against_none = requested_contrast(loaded, template, problems, ("Show steps.", ""))
    plain = template.encode(loaded.tokenizer, template.render(loaded.tokenizer, problems[0]))
    assert against_none.negative[0].ids == tuple(plain)
    with pytest.raises(SteerkitError, match="two different requests"):
        requested_contrast(loaded, template, problems, ("x", "x"))


def test_pairs_of_a_data_set():
    pairs = load_pairs({"name": "arithmetic", "n": 30}, None, "train", 8, 0, ("worked", "bare"))
    assert len(pairs.examples) == len(pairs.texts) == 8 and pairs.kinds == ("worked", "bare") and not pairs.from_file
    for example, (worked, bare) in zip(pairs.examples, pairs.texts, strict=True):
        assert worked.startswith("To ") and "Step 1" in worked and "Step" not in bare
        for text in (worked, bare):
            assert text.endswith(f"\\boxed{{{example.answer}}}.")
    assert load_pairs({"name": "arithmetic", "n": 30}, None, "train", 8, 0, ("worked", "bare")) == pairs


def test_pairs_of_a_file(tmp_path):
    rows = [{"problem": f"What is {k}?", "positive": f" It is {k}.", "negative": str(k), "good": "g"} for k in range(6)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = load_pairs("pairs.jsonl", str(tmp_path), "train", None, 0, (None, None))
    assert pairs.texts == [(row["positive"], row["negative"]) for row in rows] and pairs.from_file
    assert [e.problem for e in pairs.examples] == [row["problem"] for row in rows]
    named = load_pairs({"path": "pairs.jsonl"}, str(tmp_path), "train", 2, 0, ("good", "negative"))
    assert named.kinds == ("good", "negative") and len(named.texts) == 2 and named.texts[0][0] == "g"


@pytest.mark.parametrize(
    ("spec", "kinds", "words"),
    [
        ("arithmetic", (None, "bare"), "--positive and --negative"),
        ("arithmetic", ("worked", "bar"), "Did you mean 'bare'"),
        ("arithmetic", ("bare", "bare"), "nothing to contrast"),
        ("nowhere.jsonl", (None, None), "No data set file"),
        ("empty.jsonl", (None, None), "no rows"),
        ("data.jsonl", (None, None), "row 0: no column 'positive'"),
        ("data.jsonl", ("answer", "problem"), "'answer' must be a text, got 5"),
        ({"path": ["data.jsonl"]}, (None, None), "no written completions"),
    ],
    ids=str,
)
def test_bad_sources(tmp_path, spec, kinds, words):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "data.jsonl").write_text('{"problem": "x", "answer": 5}\n')
    with pytest.raises(DataError, match=words):
        load_pairs(spec, str(tmp_path), "train", 4, 0, kinds)
