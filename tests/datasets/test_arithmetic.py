"""The word problems: right answers, disjoint splits, seeded."""

import random
import re

import pytest

from steerkit.datasets import dataset_name
from steerkit.datasets.arithmetic import LIMIT, SPLITS, Arithmetic, generate_problem, generate_problems
from steerkit.datasets.solutions import WRITERS
from steerkit.errors import DataError

OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a // b}


def test_equations_hold_and_stay_in_range():
    rng = random.Random(0)
    for _ in range(2000):
        problem = generate_problem(rng)
        assert 2 <= len(problem.steps) <= 4
        for step in problem.steps:
            assert OPERATIONS[step.op](step.left, step.right) == step.result and 1 <= step.result <= LIMIT
        assert problem.steps[-1].uses != "product"
        for number in (step.right for step in problem.steps if step.uses == "total" and step.op in "+-"):
            assert str(number) in problem.text


def test_known_problem():
    problem = generate_problems("test", 1, seed=0)[0]
    left_to_right = problem.steps[0].left
    for step in problem.steps:
        if step.uses == "product":
            product = step.result
        elif step.uses == "first":
            left_to_right = step.result
        else:
            left_to_right = OPERATIONS[step.op](left_to_right, product if step.uses == "join" else step.right)
    assert left_to_right == problem.answer


def test_splits_are_disjoint_by_arithmetic_and_stable():
    signatures = {split: {p.signature for p in generate_problems(split, 600, seed=5)} for split in SPLITS}
    assert not signatures["train"] & signatures["test"]
    assert not signatures["train"] & signatures["validation"]
    assert not signatures["validation"] & signatures["test"]
    assert generate_problems("test", 20, 1) == generate_problems("test", 20, 1)
    assert generate_problems("test", 20, 1) != generate_problems("test", 20, 2)
    assert generate_problems("test", 10, 1) == generate_problems("test", 20, 1)[:10]


def test_examples():
    data = Arithmetic(n=8, n_eval=4, seed=3)
    examples = data.load("train")
    assert len(examples) == 8 and len(data.load("validation")) == 4
    assert len({example.id for example in examples}) == 8
    assert all(example.answer.isdigit() and example.columns["steps"] in (2, 3, 4) for example in examples)


def test_names_for_results():
    assert dataset_name("arithmetic") == dataset_name({"name": "arithmetic", "n": 3}) == "arithmetic"
    assert dataset_name("folder/svamp.jsonl") == "svamp"
    assert dataset_name({"path": ["a.jsonl", {"path": "b/c.csv", "where": {"x": 1}}]}) == "a+c"


def test_bad_input():
    with pytest.raises(DataError, match="at least 1"):
        Arithmetic(n=0)
    with pytest.raises(DataError, match="train, validation, test"):
        Arithmetic().load("dev")


@pytest.mark.parametrize("kind", Arithmetic.completion_kinds)
def test_written_completions_are_right_and_repeatable(kind):
    data, again = Arithmetic(n=40, seed=2), Arithmetic(n=40, seed=2)
    examples = data.load("train")
    again.load("train")
    for example in examples:
        text = data.completion(example, kind)
        assert text == again.completion(example, kind)
        boxes = re.findall(r"\\boxed\{(\d+)\}", text)
        assert boxes == ([] if kind == "ramble" else [example.answer])
        equations = re.findall(r"(\d+)([-+*/])(\d+)=(\d+)", text)
        assert all(OPERATIONS[op](int(a), int(b)) == int(c) for a, op, b, c in equations)
        assert len(equations) == (example.columns["steps"] if kind in ("worked", "foreign") else 0)
    assert len({data.completion(example, kind) for example in examples}) > 20


def test_completions_bad_input():
    data = Arithmetic(n=2)
    example = data.load("train")[0]
    with pytest.raises(DataError, match="Did you mean 'worked'"):
        data.completion(example, "work")
    with pytest.raises(DataError, match="no example that"):
        Arithmetic(n=2).completion(example, "worked")
    assert tuple(WRITERS) == Arithmetic.completion_kinds
