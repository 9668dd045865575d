"""The plugin registry, against distributions faked in a temporary folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from steerkit import registry
from steerkit.errors import DataError, PluginError

Install = Callable[..., Path]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the whole of sys.path beside the standard library: no steerkit metadata is in sight."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "site"
    folder.mkdir()
    import entrypoints  # noqa: F401 - cached, for its folder leaves sys.path below

    monkeypatch.setattr(sys, "path", [str(folder)])
    before = set(sys.modules)
    yield folder  # type: ignore[misc]
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "") or "").startswith(str(tmp_path)):
            del sys.modules[name]


def install(site: Path, distribution: str, entry_points: str, folder: str = "{}-1.0.dist-info") -> None:
    info = site / folder.format(distribution)
    info.mkdir(parents=True)
    (info / "entry_points.txt").write_text(entry_points, encoding="utf-8")


def module(site: Path, name: str, text: str) -> Path:
    path = site / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    return path


LENGTH = """
class Length:
    def __init__(self, target: int, weight: float = 1.0, *, soft: bool = False) -> None:
        self.target, self.weight, self.soft = target, weight, soft
"""


def one_line(error: pytest.ExceptionInfo[PluginError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_entries_lists_without_importing(site: Path) -> None:
    module(site, "explosive", "raise RuntimeError('imported')")
    install(site, "steerkit", "[steerkit.rewards]\nlength = explosive:Length\n[steerkit.models]\nm = explosive:M\n")
    install(site, "other", "[console_scripts]\nother = explosive:main\n")
    assert registry.entries("rewards") == [registry.Entry("rewards", "length", "explosive:Length", "steerkit", "1.0")]
    assert [entry.name for entry in registry.entries("models")] == ["m"]
    assert registry.entries("analyzers") == []
    assert registry.problems() == []
    assert "explosive" not in sys.modules


def test_unknown_kind() -> None:
    with pytest.raises(PluginError, match=r"No plugin kind 'reward'. Did you mean 'rewards'\?"):
        registry.entries("reward")


def test_resolve_and_build_by_name(site: Path) -> None:
    module(site, "lengths", LENGTH)
    install(site, "steerkit", "[steerkit.rewards]\nlength = lengths:Length\n")
    assert registry.resolve("rewards", "length").__name__ == "Length"
    built = registry.build("rewards", {"name": "length", "target": 3, "soft": True}, weight=2.0)
    assert (built.target, built.weight, built.soft) == (3, 2.0, True)
    assert registry.build("rewards", "length", target=1).target == 1


def test_clash_names_both_distributions(site: Path) -> None:
    install(site, "steerkit", "[steerkit.rewards]\nlength = lengths:Length\nshort = lengths:Short\n")
    install(site, "rival", "[steerkit.rewards]\nlength = rivals:Length\n", "{}-2.1.dist-info")
    with pytest.raises(PluginError) as error:
        registry.resolve("rewards", "length")
    text = one_line(error)
    assert "Two rewards are named 'length' (group steerkit.rewards)" in text
    assert "rival 2.1 (rivals:Length) and steerkit 1.0 (lengths:Length)" in text
    assert [entry.distribution for entry in registry.entries("rewards")] == ["rival", "steerkit", "steerkit"]
    assert registry.problems() == [text]
    module(site, "lengths", "Short = object")
    assert registry.resolve("rewards", "short") is object  # the clash hurts its own name only


def test_one_distribution_seen_twice_is_no_clash(site: Path) -> None:
    text = "[steerkit.rewards]\nlength = lengths:Length\n"
    install(site, "steerkit", text, "{}.egg-info")
    install(site, "steerkit", text)
    install(site / "later", "steerkit", text, "{}-0.9.dist-info")
    sys.path += [str(site / "later"), str(site)]
    assert registry.entries("rewards") == [registry.Entry("rewards", "length", "lengths:Length", "steerkit", "1.0")]


def test_missing_name_lists_what_is_installed(site: Path) -> None:
    install(site, "steerkit", "[steerkit.rewards]\nlength = lengths:Length\nverifiable = v:V\n")
    install(site, "brevity", "[steerkit.rewards]\nbrief = b:B\n")
    with pytest.raises(PluginError) as error:
        registry.resolve("rewards", "lenght")
    assert one_line(error) == (
        "No reward named 'lenght' (group steerkit.rewards). Did you mean 'length'? "
        "Installed: brief (brevity 1.0), length, verifiable (steerkit 1.0)."
    )


def test_uninstalled_tree_says_how_to_install(site: Path) -> None:
    with pytest.raises(PluginError, match=r"None is installed. steerkit's own plugins .* `pip install -e \.`"):
        registry.resolve("rewards", "length")


def test_load_error_names_the_distribution_and_keeps_the_cause(site: Path) -> None:
    module(site, "broken", "import a_package_that_is_not_there")
    module(site, "whole", "")
    install(site, "rival", "[steerkit.rewards]\nbad = broken:Bad\ngone = whole:Gone\n")
    with pytest.raises(PluginError) as error:
        registry.resolve("rewards", "bad")
    assert "'bad' of rival 1.0 (group steerkit.rewards) failed to load from broken:Bad: ModuleNotFound" in one_line(
        error
    )
    assert isinstance(error.value.__cause__, ModuleNotFoundError)
    with pytest.raises(PluginError, match=r"'gone' of rival 1.0 .* AttributeError"):
        registry.resolve("rewards", "gone")


def test_unparsable_target(site: Path) -> None:
    install(site, "rival", "[steerkit.rewards]\nbad = not a target!\ngood = math:floor\n")
    with pytest.raises(PluginError, match=r"rival 1.0 advertises 'bad' .* as 'not a target!': expected") as error:
        registry.resolve("rewards", "bad")
    assert registry.problems() == [one_line(error)]
    assert registry.resolve("rewards", "good")(1.5) == 1


def test_unreadable_entry_points_file(site: Path) -> None:
    install(site, "rival", "a line outside any section\n")
    with pytest.raises(PluginError, match=r"can't be read: File contains no section headers.*rival-1.0") as error:
        registry.entries("rewards")
    one_line(error)


def test_percent_sign_in_metadata_is_harmless(site: Path) -> None:
    install(site, "rival", "[steerkit.rewards]\nbad = %(x)s\ngood = math:floor\n")
    assert registry.resolve("rewards", "good")(1.5) == 1


def test_module_and_name(site: Path) -> None:
    module(site, "mine", "class Outer:\n    class Inner: pass\n")
    assert registry.resolve("rewards", "mine:Outer.Inner").__name__ == "Inner"
    with pytest.raises(PluginError, match=r"mine has no 'Outr' .* Did you mean 'Outer'"):
        registry.resolve("rewards", "mine:Outr")
    with pytest.raises(PluginError, match="Can't import 'absent' of 'absent:X': ModuleNotFoundError"):
        registry.resolve("rewards", "absent:X")


def test_file_and_name(site: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    first = module(tmp_path, "reward", "from dataclasses import dataclass\n@dataclass\nclass R:\n    x: int = 1\n")
    module(tmp_path / "sub", "reward", "def R():\n    return 'second'\n")
    assert registry.build("rewards", "reward.py:R").x == 1
    assert registry.build("rewards", "sub/reward.py:R") == "second"
    assert registry.resolve("rewards", f"{first}:R") is registry.resolve("rewards", "reward.py:R")
    first.write_text("class R:\n    x = 22\n", encoding="utf-8")
    assert registry.build("rewards", "reward.py:R").x == 22
    with pytest.raises(PluginError, match=r"No file .*absent.py"):
        registry.resolve("rewards", "absent.py:R")
    module(tmp_path, "wrong", "1 / 0")
    with pytest.raises(PluginError, match=r"wrong.py .* fails on import: ZeroDivisionError: division by zero"):
        registry.resolve("rewards", "wrong.py:R")
    with pytest.raises(PluginError, match="has no 'S'"):
        registry.resolve("rewards", "reward.py:S")


@pytest.mark.parametrize(
    ("spec", "extra", "message"),
    [
        (
            {"name": "length", "target": 1, "wieght": 2},
            {},
            "no setting 'wieght'. Did you mean 'weight'? Settings: target,",
        ),
        ("length", {}, "needs the setting target. Settings: target, weight, soft."),
        ({"name": "length", "target": 1}, {"target": 2}, "target is set by steerkit itself"),
        ({"target": 1}, {}, "need a 'name', got only ['target']"),
        (3, {}, "Expected the name of one of the rewards"),
        ({"name": "bare", "x": 1}, {}, "It takes no settings"),
        ("number", {}, "is a float, not a class or a function"),
    ],
)
def test_bad_settings(site: Path, spec: object, extra: dict[str, int], message: str) -> None:
    module(site, "lengths", LENGTH + "\ndef bare():\n    return 0\n")
    install(site, "steerkit", "[steerkit.rewards]\nlength = lengths:Length\nbare = lengths:bare\nnumber = math:pi\n")
    with pytest.raises(PluginError) as error:
        registry.build("rewards", spec, **extra)  # type: ignore[arg-type]
    assert message in one_line(error)


def test_errors_of_the_plugin_itself_pass_through(site: Path) -> None:
    module(site, "strict", "from steerkit.errors import DataError\ndef make():\n    raise DataError('no rows')\n")
    install(site, "rival", "[steerkit.datasets]\nstrict = strict:make\n")
    with pytest.raises(DataError, match="no rows"):
        registry.build("datasets", "strict")
