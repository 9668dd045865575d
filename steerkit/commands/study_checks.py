"""What is looked at before a study begins: rules, base, data, and each command by its own parser."""

from __future__ import annotations

import dataclasses
import io
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from steerkit import registry
from steerkit.commands.study_config import CONFIG
from steerkit.errors import SteerkitError
from steerkit.files import write_text
from steerkit.study.config import StudyConfig

if TYPE_CHECKING:
    from steerkit.models import LoadedModel
    from steerkit.study.cost import PromptLengths
    from steerkit.study.plan import Plan, Planner


def check_rules(config: StudyConfig) -> None:
    """Before anything is run: a rule with a mistake is no rule."""
    from importlib import import_module
    from importlib.util import find_spec

    if config.claims and find_spec("steerkit.study.claims") is not None:
        import_module("steerkit.study.claims").parse_rules(config.claims)


def base_and_data(config: StudyConfig) -> tuple[LoadedModel, PromptLengths]:
    """The base and the lengths of training prompts; a mistake in either shows now."""
    from steerkit.commands.evaluate import default_device
    from steerkit.datasets import PromptTemplate, open_dataset
    from steerkit.models import load_model
    from steerkit.rollouts.beginnings import common_prefix
    from steerkit.study.cost import PromptLengths

    data, model = config.fit.get("data", {}), config.fit.get("model", {})
    source = open_dataset(data.get("dataset", "arithmetic"), config.data_root)
    examples = {split: source.load(split) for split in ("train", "validation")}
    test = data.get("test_dataset")
    examples["test"] = (source if test is None else open_dataset(test, config.data_root)).load("test")
    for split, found in examples.items():
        if not found:
            raise SteerkitError(f"The {split} split of the study's data is empty.")
    loaded = load_model(config.base, dtype=model.get("dtype", "auto"), device=default_device())
    template = PromptTemplate.from_dict(model.get("template") or {})
    shown = [template.render(loaded.tokenizer, example) for example in examples["train"][:16]]
    encoded = [template.encode(loaded.tokenizer, text) for text in shown]
    mean = round(sum(map(len, encoded)) / len(encoded))
    return loaded, PromptLengths(mean, common_prefix(encoded) if len(encoded) > 1 else 0)


def make_planner(config: StudyConfig, out: Path, loaded: LoadedModel, lengths: PromptLengths) -> Planner:
    """The plan of a study in ``out``."""
    from steerkit.study.cost import Costs, core_speed, describe
    from steerkit.study.plan import Planner
    from steerkit.study.plan_analyses import add_analyses

    base = describe(loaded, lengths)
    planner = Planner(config, out, base, Costs(base, core_speed()))
    planner.screen()
    planner.fits()
    add_analyses(planner)
    return planner


def check_commands(config: StudyConfig, loaded: LoadedModel, lengths: PromptLengths) -> None:
    """Let the verbs' own parsers read each command once, so that a typo shows before an hour of work.

    Raises:
        SteerkitError: the verb's own line.
    """
    from steerkit.commands import analyze, train

    with tempfile.TemporaryDirectory() as name:
        planner = make_planner(config, Path(name), loaded, lengths)
        write_files(Path(name), config, planner.plan)
        seen: set[str] = set()
        for item in planner.plan.items:
            try:
                if item.kind == "analyze":
                    target = registry.resolve("analyzers", item.argv[1])
                    words = [word for word in item.argv[2:] if word != "--allow_code"]
                    parsed = analyze.build_parser(target).parse_args(words)
                    registry.instantiate(
                        target, {f.name: parsed[f.name] for f in dataclasses.fields(target)}, target.name
                    )
                elif item.kind in ("fit", "sweep"):
                    file = item.argv[item.argv.index("--config") + 1]
                    if file in seen:
                        continue
                    seen.add(file)
                    words = [_readable(word) for word in item.argv[1:] if word != "--allow_code"]
                    _check_plugins(planner.plan.files[Path(file).relative_to(name).as_posix()].get("model", {}))
                    with redirect_stdout(io.StringIO()):
                        train.run("fit", [*words, "--print_config"])
            except SteerkitError as error:
                raise SteerkitError(f"{item.id}: {error}") from None
            except SystemExit:
                pass  # --print_config ends this way


def _check_plugins(model: Mapping[str, Any]) -> None:
    """The names that a fit would look up only when it begins.

    Raises:
        SteerkitError: none of that name, or settings that it does not take.
    """
    from steerkit.rewards import Rubric

    Rubric(model.get("rewards", "verifiable"))
    registry.build("objectives", model.get("objective", "rloo"))
    registry.build("samplers", model.get("sampler", "fast"))
    intervention = model.get("intervention", "static")
    name = intervention.get("name", "static") if isinstance(intervention, Mapping) else intervention
    registry.resolve("interventions", str(name))


def _readable(word: str) -> str:
    """A number in the place of a rate that is not chosen yet."""
    return "0.1" if word.startswith("<rate of ") else word


def write_files(out: Path, config: StudyConfig, plan: Plan) -> None:
    """The config as run, and the files that the commands read."""
    for name, content in {CONFIG: config.record(), **plan.files}.items():
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
        if not (out / name).is_file() or (out / name).read_text(encoding="utf-8") != text:
            write_text(out / name, text)
