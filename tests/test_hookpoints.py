from __future__ import annotations

import pytest

from steerkit.errors import SteerkitError
from steerkit.hookpoints import HookPoint, parse_layers


@pytest.mark.parametrize(
    "spec",
    [
        "layers.3.output",
        "layers.3",
        "layers[3]",
        "layers_output[3]",
        "blocks.3.hook_resid_post",
        "3",
        " 3 ",
        3,
        "layers.-2.output",
        "layers[-2]",
        "-2",
        -2,
        HookPoint(3),
        HookPoint(-2),
    ],
)
def test_every_spelling_is_one_point(spec):
    point = HookPoint.parse(spec, n_layers=5)
    assert point == HookPoint(3) and str(point) == "layers.3.output"


def test_printed_form_reads_back():
    assert HookPoint.parse(str(HookPoint(12))) == HookPoint(12)


def test_sorts_in_forward_order():
    assert sorted([HookPoint(10), HookPoint(2), HookPoint(0)]) == [HookPoint(0), HookPoint(2), HookPoint(10)]


@pytest.mark.parametrize(
    "spec, n_layers, message",
    [
        ("layer 3", 5, "Can't read hook point"),
        ("3.5", 5, "Can't read hook point"),
        ("", 5, "Can't read hook point"),
        ("blocks.3.hook_resid_pre", 5, "Can't read hook point"),
        ("layers.3.input", 5, "Unknown site 'input'"),
        (5, 5, r"Layer 5 is out of range: the model has 5 layers, 0 to 4 \(or -5 to -1\)"),
        (-6, 5, "Layer -6 is out of range"),
        (HookPoint(9), 5, "Layer 9 is out of range"),
        (-1, None, "counts from the end"),
    ],
)
def test_bad_points(spec, n_layers, message):
    with pytest.raises(SteerkitError, match=message):
        HookPoint.parse(spec, n_layers)


def test_parse_layers():
    assert parse_layers("all", 3) == [HookPoint(0), HookPoint(1), HookPoint(2)]
    assert parse_layers(-1, 3) == parse_layers("layers[2]", 3) == [HookPoint(2)]
    assert parse_layers([2, "0"], 3) == [HookPoint(0), HookPoint(2)]


@pytest.mark.parametrize("spec, message", [([], "No layer given"), ([1, -2], "named twice"), ([0, 3], "out of range")])
def test_bad_layers(spec, message):
    with pytest.raises(SteerkitError, match=message):
        parse_layers(spec, 3)
