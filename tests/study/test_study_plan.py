"""Configs, plans and choices: pure functions, no model is run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from studies import settings

from steerkit import registry
from steerkit.commands import analyze, evaluate
from steerkit.commands.study import build_parser
from steerkit.commands.study_config import read_config
from steerkit.errors import PluginError, SteerkitError
from steerkit.study import Item, Planner, StudyConfig, WorkList
from steerkit.study.choice import best, choose, resolved
from steerkit.study.cost import Base, Costs
from steerkit.study.plan_analyses import add_analyses
from steerkit.study.run import clock, time_left, why
from steerkit.study.values import merged, refuse_untyped_code

BASE = Base(n_layers=4, parameters=10**6)


def planned(**changes) -> Planner:
    planner = Planner(StudyConfig.read(settings(**changes)), Path("out"), BASE, Costs(BASE, 1e10))
    planner.screen()
    planner.fits()
    add_analyses(planner)
    return planner


def test_items_of_a_study():
    planner = planned(seeds=[0, 1])
    items = {item.id: item for item in planner.plan.items}
    assert list(items) == [
        *("all/choose/0.1", "all/choose/0.2", "all/choice", "all/seed0", "all/seed1"),
        *("layers/choose", "layers/choice", "layers/final", "geometry-all-static_last"),
    ]
    assert items["all/choice"].needs == ["all/choose/0.1", "all/choose/0.2"]
    assert items["all/seed1"].needs == ["all/choice"]
    assert set(items["geometry-all-static_last"].needs) == {"all/seed0", "layers/final"}
    words = " ".join(items["all/seed0"].argv)
    assert '--report.arms ["base", "steered", "random"]' in words and "--model.lr <rate of all>" in words
    assert '--report.arms ["steered", "random"]' in " ".join(items["all/seed1"].argv)
    assert "--report.split validation" in " ".join(items["all/choose/0.1"].argv)
    assert '{"default": 0.1, "-1": 0.3}' in items["all/choose/0.1"].argv
    assert list(planner.arms) == ["base", "all", "random_vector", "static_0", "static_3"]
    assert planner.arms["static_3"].aliases == ("static_last",)
    assert planner.arms["static_3"].label == "static, layer 3"
    assert "static_3=out/arms/layers/final/sweep/layer3_seed0/vector" in items["geometry-all-static_last"].argv


def test_rates_that_are_taken_or_stated():
    arms = {
        "a": {"grid": [0.1, 0.3], "lr": 0.2, "last": 2.0},
        "b": {"lr_of": "a"},
        "c": {"lr": 0.5},
        "layers": {"each_layer": "all", "grid": [1.0, 3.0], "lr": 2.0},
        "d": {"lr_of": "static_last"},
    }
    chosen = {i.id: i for i in planned(arms=arms, analyses={}).plan.items}
    assert chosen["b/seed0"].needs == ["a/choice"] and "<rate of a>" in chosen["b/seed0"].argv
    assert chosen["c/seed0"].needs == [] and "0.5" in chosen["c/seed0"].argv
    assert chosen["d/seed0"].needs == ["layers/choice"] and "<rate of static_3>" in chosen["d/seed0"].argv
    stated = {i.id: i for i in planned(arms=arms, analyses={}, choice={"enabled": False}).plan.items}
    assert sorted(stated) == ["a/seed0", "b/seed0", "c/seed0", "d/seed0", "layers/final"]
    assert '{"default": 0.2, "-1": 0.4}' in stated["b/seed0"].argv and "2.0" in stated["d/seed0"].argv


def test_an_opening_that_is_chosen_on_the_way(tmp_path):
    arms = {
        "late": {"opening_of": "prefix", "lr": 0.1},
        "all": {"lr": 0.1},
        "prefix": {"row": "prefix", "of": "all", "role": "control"},
    }
    items = {i.id: i for i in planned(arms=arms, analyses={}).plan.items}
    assert items["late/seed0"].needs == ["prefix/opening"]
    results = {"openings": [{"text": ' "To', "accuracy": 0.9}]}
    write(tmp_path / "arms/all/seed0/results.json", results)
    choose(tmp_path, items["prefix/opening"])
    argv = resolved(tmp_path, items["late/seed0"].argv, {})
    template = json.loads(argv[argv.index("--model.template") + 1])
    assert template == {"assistant_prefix": ' "To'}


def test_a_screen_comes_first():
    items = {i.id: i for i in planned(screen={"limit": 8, "k": 2, "temperature": [0.7]}).plan.items}
    assert items["screen"].argv[:4] == ["evaluate", "--model", "model", "--data"]
    assert items["screen"].argv[-2:] == ["--out", "out/screen"]
    assert all("screen" in items[name].needs for name in ("all/choose/0.1", "all/seed0", "layers/choose"))
    flags = {"limit": 8, "k": 2, "max_tokens": settings()["fit"]["model"]["max_tokens"]}  # the fits' own, if not given
    assert items["screen"].expected == Costs(BASE, 1e10).screen(flags)


def test_what_is_not_installed_is_left_out_if_the_config_says_so():
    gone = {"analyzer": "no_such_thing", "arms": ["all"]}
    planner = planned(analyses={"x": {**gone, "if_installed": True}})
    assert planner.plan.left_out == [{"what": "x", "reason": "analyzer 'no_such_thing' is not installed"}]
    with pytest.raises(SteerkitError, match=r"analyses\.x: no analyzer named"):
        planned(analyses={"x": gone})
    planner = planned(
        analyses={"transfer": {"arms": ["all"], "recipients": ["other"]}},
        recipients={"other": {"base": "no/such/folder", "like": "all"}},
    )
    assert planner.plan.left_out[0]["what"] == "transfer-all-other"


def test_a_recipient_gets_a_vector_of_its_own(tmp_path):
    planner = planned(
        analyses={"transfer": {"arms": ["all"], "recipients": ["other"]}},
        recipients={"other": {"base": str(tmp_path), "like": "all"}},
    )
    own, transfer = planner.plan.items[-2:]
    assert own.id == "recipients/other/own" and own.needs == ["all/choice"]
    assert planner.plan.files["recipients/other/fit.yaml"]["model"]["base"] == str(tmp_path)
    assert transfer.needs == ["recipients/other/own", "all/seed0"]
    assert transfer.argv[transfer.argv.index("--own") + 1] == "out/recipients/other/own/vector"


def test_a_recipient_chooses_its_rate_and_has_its_own_length(tmp_path):
    recipient = {"base": str(tmp_path), "like": "all", "grid": [0.1, 0.5], "lr": 0.2, "max_steps": 77}
    analyses = {"transfer": {"arms": ["all"], "recipients": ["other"]}}

    def rate(argv):
        return json.loads(argv[argv.index("--model.lr") + 1])["default"]

    planner = planned(analyses=analyses, recipients={"other": recipient})
    first, second, choice, own = (item for item in planner.plan.items if item.id.startswith("recipients/"))
    assert planner.plan.files["recipients/other/fit.yaml"]["trainer"]["max_steps"] == 77
    for item, lr in ((first, "0.1"), (second, "0.5")):
        assert item.out == f"recipients/other/choose/{lr}"
        assert rate(item.argv) == float(lr)
        assert item.argv[item.argv.index("--config") + 1] == "out/recipients/other/fit.yaml"
        assert item.argv[item.argv.index("--report.split") + 1] == "validation"
        (tmp_path / item.out).mkdir(parents=True)
        row = {"accuracy": float(lr), "ci95": None}
        (tmp_path / item.out / "results.json").write_text(json.dumps({"rows": [row]}))
    assert choice.needs == [first.id, second.id] and own.needs == [choice.id]
    choose(tmp_path, choice)
    argv = resolved(tmp_path, own.argv, planner.arms)
    assert rate(argv) == 0.5 and own.out == "recipients/other/own"
    # Where nothing is chosen it takes its stated rate.
    stated = {"all": {"lr": 0.3, "last": 3.0}}
    planner = planned(arms=stated, analyses=analyses, recipients={"other": recipient}, choice={"enabled": False})
    (own,) = (item for item in planner.plan.items if item.id.startswith("recipients/"))
    assert rate(own.argv) == 0.2


def test_a_recipient_has_its_arms_opening_and_the_last_layers_rate(tmp_path):
    arms = {
        "base": {"row": "base", "of": "all", "role": "base"},
        "all": {"grid": [0.1], "last": 3.0},
        "open": {"row": "prefix", "of": "all"},
        "behind": {"lr_of": "all", "opening_of": "open"},
    }
    recipients = {"other": {"base": str(tmp_path), "like": "behind", "grid": [0.2, 0.4]}}
    planner = planned(
        arms=arms, analyses={"transfer": {"arms": ["all"], "recipients": ["other"]}}, recipients=recipients
    )
    first, _, _, own = (item for item in planner.plan.items if item.id.startswith("recipients/"))
    assert json.loads(first.argv[first.argv.index("--model.lr") + 1]) == {"default": 0.2, "-1": pytest.approx(0.6)}
    for item in (first, own):
        assert "open/opening" in item.needs
        assert "<opening of open>" in item.argv[item.argv.index("--model.template") + 1]


def test_a_vector_of_another_arm_makes_one_analysis_a_seed():
    one = {"analyzer": "geometry", "arms": ["static_last"], "seeds": [0, 1], "options": {"x": "<vector of all>"}}
    items = planned(seeds=[0, 1], analyses={"g": one}).plan.items[-2:]
    assert [item.id for item in items] == ["g-static_3-seed0", "g-static_3-seed1"]
    assert items[1].argv[items[1].argv.index("--x") + 1] == "out/arms/all/seed1/vector"
    assert items[1].needs == ["layers/final", "all/seed1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [1, 1]}, "seeds needs one or more different values"),
        ({"fit": {"run_dir": "x"}}, "fit.run_dir: the study sets it"),
        ({"fit": {"report": {"split": "test"}}}, "fit.report.split"),
        ({"arms": {"a": {}}}, "arms.a has no learning rate"),
        ({"arms": {"a": {"grid": [1.0, 1.0]}}}, "different rates"),
        ({"arms": {"a": {"row": "base"}}}, "'row' and 'of' go together"),
        ({"arms": {"a": {"lr": 1.0}, "b": {"row": "base", "of": "aa"}}}, "Did you mean 'a'"),
        ({"arms": {"a": {"lr_of": "b"}, "b": {"lr_of": "c"}, "c": {"lr": 1.0}}}, "takes another's rate itself"),
        ({"arms": {"a": {"lr": 1.0, "lr_of": "a"}}}, "leave 'grid' and 'lr' out"),
        ({"arms": {"a": {"lr_of": "b"}}, "analyses": {}}, "there is no arm 'b'"),
        ({"arms": {"a": {"lr": 1.0, "each_layer": "all", "last": 3.0}}}, "each_layer goes without"),
        ({"arms": {"a": {"lr": 1.0, "each_layer": [0, 9]}}, "analyses": {}}, "a list of layers of 4"),
        ({"arms": {"../a": {"lr": 1.0}}}, "An arm's name is a folder's"),
        ({"arms": {"a": {"lr": 1.0, "opening_of": "p"}}}, "opening_of"),
        ({"analyses": {"geometry": {"arms": []}}}, "arms is empty"),
        ({"analyses": {"geometry": {"arms": ["al"]}}}, "Did you mean 'all'"),
        ({"analyses": {"geometry": {"arms": ["base"]}}}, "base has no vector"),
        ({"analyses": {"geometry": {"arms": ["all"], "options": {"out": "x"}}}}, "options.out"),
        ({"analyses": {"transfer": {"arms": ["all"], "recipients": ["x"]}}}, "no recipient 'x'"),
        ({"recipients": {"x": {"base": "b", "like": "y"}}}, "recipients.x.like"),
        ({"recipients": {"x": {"base": "b", "like": "all", "grid": [0.1, 0.1]}}}, "recipients.x.grid"),
        ({"recipients": {"a b": {"base": "b", "like": "all"}}}, "A recipient's name is a folder's"),
    ],
)
def test_what_does_not_go_together(changes, message):
    with pytest.raises(SteerkitError, match=message.replace(".", r"\.")):
        planned(**changes)


def test_the_best_rate_and_its_ties():
    grid = [{"lr": 0.3, "accuracy": 50.0}, {"lr": 0.1, "accuracy": 50.0}, {"lr": 1.0, "accuracy": None}]
    assert best(grid) == {"lr": 0.1, "ties": [0.1, 0.3], "at_end": True}
    assert best([{"lr": lr, "accuracy": a} for lr, a in ((1, 2.0), (3, 9.0), (10, 1.0))]) == {
        "lr": 3,
        "ties": [],
        "at_end": False,
    }
    with pytest.raises(SteerkitError, match="no rate"):
        best([{"lr": 1.0, "accuracy": None}])


def write(path: Path, record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def test_choices_read_validation_results(tmp_path):
    for lr, accuracy in (("0.1", 0.25), ("0.2", 0.5)):
        write(tmp_path / f"arms/a/choose/{lr}/results.json", {"rows": [{"accuracy": accuracy, "ci95": [0.1, 0.6]}]})
    places = {lr: f"arms/a/choose/{lr}/results.json" for lr in ("0.1", "0.2", "0.9")}  # 0.9 broke down
    choose(tmp_path, Item("a/choice", "choose", [], "arms/a/choice.json", about={"grid": places, "last": 3.0}))
    record = json.loads((tmp_path / "arms/a/choice.json").read_text())
    assert record["lr"] == 0.2 and record["rate"] == {"default": 0.2, "-1": 0.6} and not record["at_end"]
    assert record["grid"][1] == {"lr": 0.2, "accuracy": 50.0, "low": 10.0, "high": 60.0}
    assert record["grid"][2]["accuracy"] is None
    assert resolved(tmp_path, ["--model.lr", "<rate of a>"], {})[1] == '{"default": 0.2, "-1": 0.6}'


def test_choices_of_a_sweep(tmp_path):
    planner = planned()
    rows = [
        {"accuracy": a, "ci95": [0, 1], "sweep": {"layer": layer, "lr": lr}}
        for layer, lr, a in ((0, 0.1, 0.5), (0, 0.3, 0.4), (3, 0.1, 0.1), (3, 0.3, 0.2))
    ]
    item = next(item for item in planner.plan.items if item.id == "layers/choice")
    rows.append({"accuracy": 0.9, "ci95": [0, 1], "sweep": {"layer": 3, "lr": 0.9}, "failed": "its loss was NaN"})
    write(tmp_path / "arms/layers/choose/results.json", {"rows": rows})
    choose(tmp_path, item)
    record = json.loads((tmp_path / "arms/layers/choice.json").read_text())
    assert record["layers"]["3"]["grid"][-1]["failed"] == "its loss was NaN"
    assert resolved(tmp_path, ["<rate of layers>"], planner.arms) == ['{"default": 0.1, "0": 0.1, "3": 0.3}']
    assert resolved(tmp_path, ["<rate of static_3>"], planner.arms) == ["0.3"]


def test_quick_changes_are_merged():
    plain = {"a": {"b": {"c": 1}, "d": [1, 2]}, "e": {"f": 1}, "g": 3}
    over = {"a": {"b": {"x": 2}, "d": [3]}, "e": None, "g": None}
    assert merged(plain, over) == {"a": {"b": {"c": 1, "x": 2}, "d": [3]}, "g": None}
    assert plain["a"]["d"] == [1, 2]


def test_order_and_time_left():
    items = [
        Item("a", "fit", ["fit"], "a", [], 10.0),
        Item("b", "fit", ["fit"], "b", [], 20.0),
        Item("c", "choose", [], "c", ["a"]),
        Item("d", "fit", ["fit"], "d", ["c"], 30.0),
    ]
    work = WorkList(Path(), items)
    assert [item.id for item in work.ready()] == ["a", "b"]  # a: 40 s to the end, b: 20 s
    assert time_left(work, 1) == 60.0 and time_left(work, 4) == 40.0
    work.items["a"].state, work.items["a"].seconds = "done", 20.0  # twice what was expected
    assert [item.id for item in work.ready()] == ["b", "c"] or [item.id for item in work.ready()] == ["c", "b"]
    assert time_left(work, 1) == 100.0


def test_what_needs_a_failed_item_fails_and_a_choice_goes_on():
    items = [
        Item("x1", "fit", ["fit"], "x1", state="failed"),
        Item("x2", "fit", ["fit"], "x2", state="done"),
        Item("choice", "choose", [], "c", ["x1", "x2"]),
        Item("y", "fit", ["fit"], "y", ["x1"]),
        Item("z", "analyze", ["analyze"], "z", ["y"]),
    ]
    work = WorkList(Path(), items)
    assert [item.id for item in work.ready()] == ["choice"]
    assert work.failed[1:] == [
        {"id": "y", "error": "needs x1, which failed"},
        {"id": "z", "error": "needs y, which failed"},
    ]


def test_code_named_by_a_config_needs_the_command_line():
    config = StudyConfig.read(settings()).record()
    with registry.code_named_by(["--out", "x"]), pytest.raises(PluginError, match=r"rewards\.py:vowels"):
        refuse_untyped_code(config)
    for words, trusted in ((["--x", "rewards.py:vowels"], False), ([], True)):
        with registry.code_named_by(words, trusted):
            refuse_untyped_code(config)


def test_a_command_inside_a_study_may_not_import_what_the_study_was_not_called_with():
    with registry.code_named_by(["study"]), registry.code_named_by(["evil.py:f"], True):
        assert not registry.may_import("evil.py:f") and not registry.trusted()
    with registry.code_named_by(["good.py:f"]), registry.code_named_by(["good.py:f"]):
        assert registry.may_import("good.py:f")


def test_words():
    assert [clock(s) for s in (0.2, 59, 90, 4000)] == ["1 s", "59 s", "2 min", "1 h 07 min"]


def test_why_reads_the_end_of_the_log(tmp_path):
    (tmp_path / "log").write_text("much\nsteerkit fit: no such thing.\n")
    assert why(tmp_path / "log", 2, False) == "steerkit fit: no such thing."
    assert why(tmp_path / "none", -9, True) == "its process ended (signal 9); exit code -9"


@pytest.mark.parametrize("name", ["study_tiny", "study_smollm2"])
@pytest.mark.parametrize("quick", [False, True])
def test_the_configs_that_come_with_steerkit(name, quick):
    """They are read, planned, and each analysis has its vectors; nothing is run."""
    path = Path(__file__).parents[2] / "configs" / f"{name}.yaml"
    options = build_parser().parse_args(["--config", str(path), "--out", "out", *["--quick"] * quick])
    config = read_config(options)
    base = Base(n_layers=6 if name == "study_tiny" else 30, parameters=10**6)
    planner = Planner(config, Path("out"), base, Costs(base, 1e11))
    planner.screen()
    planner.fits()
    add_analyses(planner)
    items = {item.id: item for item in planner.plan.items}
    assert set(planner.arms) >= {"base", "static_all", "full", "random_vector", "random_reward"}
    assert all(need in items for item in items.values() for need in item.needs)
    if name == "study_tiny":
        assert planner.find("static_last", "").name == "static_5" and len(config.seeds) == (1 if quick else 3)
        assert "C1" in config.claims and ("static_all/choice" in items) != quick
        # Planned where the recipients are installed, else left out with the reason.
        left_out = [one["what"] for one in planner.plan.left_out if one["what"].startswith("transfer")]
        planned = [name for name in items if "transfer" in name]
        assert quick or len(left_out) + len(planned) == 3


def test_lists_are_words_or_json_as_the_verbs_take_them():
    """Held to the verbs' own parsers."""
    options = {"variants": ["attn", "mlp"], "limit": 3}
    planner = planned(
        analyses={"path_patching": {"arms": ["all"], "options": options}}, screen={"temperature": [0.7, 1.0]}
    )
    screen, patching = planner.plan.items[0], planner.plan.items[-1]
    assert evaluate.build_parser().parse_args(screen.argv[1:]).temperature == [0.7, 1.0]
    parser = analyze.build_parser(registry.resolve("analyzers", "path_patching"))
    assert parser.parse_args(patching.argv[2:]).variants == ["attn", "mlp"]
