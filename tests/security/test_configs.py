"""A config from a stranger: it can't run code, or write outside the working directory, unless the user says so."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from helpers import checkpoint
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from steerkit import registry
from steerkit.cli import main
from steerkit.commands.trust import check_configs
from steerkit.errors import PluginError, SteerkitError

EVIL = """
open('owned', 'w').close()
def reward(completions, **columns):
    return [0.0] * len(completions)
class Evil:
    pass
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    monkeypatch.syspath_prepend(inside)
    (inside / "evil.py").write_text(EVIL)
    checkpoint(inside / "model")
    return inside


def fit(config, *more):
    Path("config.yaml").write_text(config if isinstance(config, str) else yaml.safe_dump(config))
    try:
        return main(["fit", "--config", "config.yaml", *more])
    except SystemExit as exit_:  # the config parser's own refusals
        return exit_.code


def small(**changes):
    config = {
        "run_dir": "run",
        "samples_every": 0,
        "model": {"base": "model", "samples_per_prompt": 2, "max_tokens": 3},
        "data": {"dataset": "arithmetic", "prompts_per_step": 2, "n_test": 2, "n_validation": 2},
        "trainer": {"max_steps": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "report": {"arms": []},
    }
    for path, value in changes.items():
        *sections, last = path.split("__")
        place = config
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return config


CODE = {
    "reward, file": small(model__rewards=["evil.py:reward"]),
    "reward, module": small(model__rewards={"evil:reward": 1.0}),
    "reward with settings": small(model__rewards=[{"name": "subprocess:Popen", "args": ["touch", "owned"]}]),
    "verifier": small(model__rewards=[{"name": "verifiable", "verifier": {"name": "evil:Evil"}}]),
    "data set": small(data__dataset={"name": "subprocess:Popen", "args": ["touch", "owned"]}),
    "test set": small(data__test_dataset="evil:Evil", report={"arms": ["base"]}),
    "model": small(model__base="evil.py:reward"),
    "intervention": small(model__intervention="evil:Evil"),
    "objective": small(model__objective={"name": "evil:Evil"}),
    "sampler": small(model__sampler="evil:Evil"),
    "callback": small(trainer__callbacks=[{"class_path": "evil.Evil"}]),
    "callback, flat": {"trainer.callbacks": [{"class_path": "evil.Evil"}]},
    "logger by name": small(trainer__logger="evil.Evil"),
    "strategy": small(trainer__strategy={"class_path": "evil.Evil", "init_args": {}}),
    "hook": small(
        trainer__callbacks={
            "class_path": "lightning.pytorch.callbacks.LambdaCallback",
            "init_args": {"setup": "evil.reward"},
        }
    ),
}


@pytest.mark.parametrize("name", CODE)
def test_code_is_not_run(folder, capsys, name):
    assert fit(CODE[name]) == 2
    assert not Path("owned").exists()
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "names code to run" in error and error.endswith("repeat the command with --allow_code.")


def test_code_in_a_file_that_the_config_names(folder, capsys):
    Path("trainer.yaml").write_text(yaml.safe_dump({"callbacks": [{"class_path": "evil.Evil"}]}))
    assert fit({"run_dir": "run", "trainer": "trainer.yaml"}) == 2
    assert not Path("owned").exists()
    assert "trainer.yaml names code to run, 'evil.Evil'" in capsys.readouterr().err


def test_the_refusal_names_the_file(folder, capsys):
    """Before anything is loaded."""
    assert fit(CODE["reward, file"]) == 2
    assert "config.yaml names code to run, 'evil.py:reward'" in capsys.readouterr().err


def test_what_the_user_says_is_run(folder, capsys):
    assert fit(small(model__rewards=["evil.py:reward"]), "--allow_code") == 0
    assert Path("owned").exists()
    Path("owned").unlink()
    assert fit(small(run_dir="second"), "--model.rewards", '["evil.py:reward"]') == 0  # typed, so the user's own
    command = yaml.safe_load(Path("second/config.yaml").read_text())["model"]["rewards"]
    assert command == ["evil.py:reward"]
    assert fit(small(run_dir="third") | {"allow_code": True}) == 2  # not from a file
    assert "allow_code" in capsys.readouterr().err


def test_a_program_is_not_restricted(folder):
    """Outside of a command, a caller could import the code itself."""
    assert registry.resolve("rewards", "evil.py:reward")
    with registry.code_named_by(["--model.rewards", '["evil.py:reward"]']):
        assert registry.resolve("rewards", "evil.py:reward")
        with pytest.raises(PluginError, match="names code to run, 'evil.py:Evil'"):
            registry.resolve("rewards", "evil.py:Evil")
        assert registry.resolve("rewards", "verifiable")
    assert registry.resolve("rewards", "evil.py:Evil")


@pytest.mark.parametrize("place", ["../out", "/tmp/steerkit-owned", "~/x", ".", "link/run", "a/../../out"])
def test_nothing_is_written_outside(folder, capsys, place):
    outside = folder.parent / "elsewhere"
    outside.mkdir()
    (folder / "link").symlink_to(outside)
    before = sorted(path.name for path in folder.parent.iterdir())
    for config in (small(run_dir=place), small(trainer__default_root_dir=place)):
        assert fit(config) == 2
        assert "is not inside the working directory" in capsys.readouterr().err
    assert fit(small(model__rewards=[{"name": "verifiable", "replay_file": f"{place}/x"}])) == 2 or place == "."
    assert sorted(path.name for path in folder.parent.iterdir()) == before and not list(outside.iterdir())


def test_a_place_on_the_command_line_is_the_users_own(folder):
    assert fit(small(run_dir="../ignored"), "--run_dir", str(folder.parent / "mine")) == 0
    assert (folder.parent / "mine" / "vector").is_dir() and not (folder.parent / "ignored").exists()


LINES = (f"{name}: &{name} [{', '.join(['*' + before] * 10)}]\n" for before, name in pairwise("abcdefghij"))
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(LINES)


@pytest.mark.parametrize("text", [BOMB, "run_dir: &x [*x]", "model: &m {base: *m}"], ids=["bomb", "loop", "loop2"])
def test_aliases_of_aliases(folder, capsys, text):
    assert fit(text) == 2
    assert "a config has no more than" in capsys.readouterr().err


def test_modelling_code_in_a_checkpoint_is_not_run(folder, capsys):
    model = folder / "model"
    (model / "configuration_evil.py").write_text(EVIL)
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "configuration_evil.Evil"}}
    (model / "config.json").write_text(json.dumps(config))
    for verb in (["evaluate", "--out", "out"], ["chat", "--prompt", "x"]):
        assert main([*verb, "--model", "model"]) == 2
        assert "model can't be loaded" in capsys.readouterr().err
    assert fit(small()) == 2
    assert not list(folder.glob("**/owned"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**6) | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=6), inner, max_size=2),
    max_leaves=4,
)
PATHS = [
    *("seed_everything", "run_dir", "vector_every", "samples_every", "report", "report__arms", "report__k"),
    *("model", "model__base", "model__layers", "model__lr", "model__rewards", "model__intervention", "model__template"),
    *("model__max_tokens", "model__token_mask", "model__dtype", "model__layout", "model__grad_clip"),
    *("data", "data__dataset", "data__prompts_per_step", "data__screen", "trainer__callbacks", "trainer__precision"),
]


@settings(
    max_examples=10,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.generate],  # each example is a command: shrinking would take minutes
)
@given(path=st.sampled_from(PATHS), value=VALUES)
@example(path="model__base", value="x" * 5000)
@example(path="model__lr", value={"layers." + "9" * 5000: 1.0})
@example(path="run_dir", value="\0")
@example(path="model__layers", value=[[]])
@example(path="model__base", value=None)
@example(path="report", value=None)
@example(path="vector_every", value=None)
def test_any_value_is_refused_in_one_line_or_taken(folder, path, value):
    """No traceback: the exit code is the parser's or ours."""
    config = small(**{path: value}) if "__" not in path or isinstance(small()[path.split("__")[0]], dict) else {}
    config["trainer"] = {**config["trainer"], "max_steps": 0} if isinstance(config.get("trainer"), dict) else {}
    assert fit(config) in (0, 2)


@settings(
    max_examples=60,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(text=st.text(max_size=60) | st.binary(max_size=60) | st.builds(yaml.safe_dump, VALUES))
@example(text="- " * 40_000)
@example(text="{" * 40_000)
@example(text="2001-99-99")
def test_any_file_can_be_looked_through(folder, text):
    Path("any.yaml").write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    try:
        check_configs(["--config", "any.yaml"])
    except SteerkitError as error:
        assert "\n" not in str(error)
