"""A section an analyzer: its own figures (``Analyzer.panels``) from the saved numbers, picked and captioned."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from steerkit import registry
from steerkit.analysis.plots import Bars, Panel, Table
from steerkit.analysis.plots.panels import Numbers
from steerkit.analysis.result import AnalysisResult
from steerkit.errors import SteerkitError
from steerkit.study.report.blocks import Block, Section
from steerkit.study.report.captions import caption
from steerkit.study.report.openings import first_tokens
from steerkit.study.report.read import Analysed, Study
from steerkit.study.report.transfer import heading, matrix
from steerkit.study.report.words import duration


@dataclass(frozen=True)
class Topic:
    """What the report shows of an analyzer."""

    analyzer: str
    title: str
    question: str
    look: str
    picks: Sequence[str] = ()
    """Words in the titles of the panels that are shown, in this order; empty: the first ones."""
    omit: str = ""
    """A pattern of bars that are left to the analysis's own page."""


TOPICS = (
    Topic("logit_lens", "Logit lens", "Which tokens does each vector, and its effect, point at?",
          "Rows are layers, columns ranks by score; colour is the cosine with the token's unembedding row. In the "
          "stream's maps a cell is what the lens says at that layer, above the token that was generated.",
          ("top tokens of the vector", "top tokens of the induced", "what the lens gains",
           "stream along a steered completion, steered")),
    Topic("first_token", "First generated token", "Is the last layer's vector a bias on the first generated token?",
          "First: the first generated position; other: all later ones. Grey: random vectors, or the base's own first "
          "token prefilled.",
          ("change of the next token", "the first generated token", "substitutions", "accuracy at")),
    Topic("path_patching", "Path patching", "Which part of a block carries the effect?",
          "skip-X: the steered run with X of the base's run; only-X: the reverse. 1: the whole effect stays, 0: none. "
          "Grey: a random vector. Single heads are on the analysis's own page.",
          ("share of the effect kept", "accuracy"), r"(head|group) \d"),
    Topic("attention_shift", "Attention shift", "How far do attention patterns move?",
          "0: the same pattern; 1: no key in common. Grey: random vectors of the same norm. Maps: rows are layers, "
          "columns heads.",
          ("how far attention moves", "attention moved")),
    Topic("token_language", "Token language", "Of which language are the tokens that rise and fall?",
          "Above 0: more likely with the vector. Grey: random vectors.",
          ("lens probability of the class", "mean logit change of each class", ": rising and falling tokens")),
    Topic("persistence", "Persistence", "Does what a layer adds stay one direction in later layers?",
          "Rows: the layer that is steered; columns: the layer that is read. Compare each map with that of random "
          "vectors beside it."),
    Topic("diff_sae", "SAE features and the causal test",
          "Which features go with right answers, and do they cause them?",
          "Dotted line: the steered model without edits. A feature that causes right answers lowers its bar when "
          "ablated. Grey: random active features, edited in the same way.",
          ("Accuracy on held-out", "Active rate of features", "Feature ", "Training of the SAE")),
    Topic("transfer", "Transfer", "Does a vector work on another model?",
          "Each arm is one way of putting the vector on the recipient. Share of the gain: 1 is as good as the "
          "recipient's own vector, 0 as the recipient without one.",
          ("Accuracy on the recipient", "Share of the own gain")),
    Topic("composition", "Composition", "Do vectors that were trained alone work together?",
          "A cell is the pair of its row and column; the diagonal is that vector alone. Normalised gain: 1 is as good "
          "as the vector that stands for all layers together, 0 as the better of the two.",
          ("accuracy", "normalised gain", "Accuracy alone")),
    Topic("token_scale", "Token scale", "On which tokens does a vector with a gate act?",
          "Text: the stronger the colour, the larger what is added there, against the stream; two colours are two "
          "signs. Bars: a segment's share of all that is added beside its share of the tokens.",
          ("size at each token", "share of the prompt's mass", "share of mass / share of tokens")),
    Topic("geometry", "Geometry", "How long are the vectors, and which point the same way?",
          "1: the same direction, 0: nothing in common, -1: opposite.", ("Cosines", "Norm of what is added")),
)  # fmt: skip


def sections(study: Study, most: int = 8) -> list[Section]:
    """One for each analyzer of the study: those named above, then every other (a plugin's). What it did not run is
    one line at the end, not a row of empty sections.
    """
    named = [topic.analyzer for topic in TOPICS]
    there = dict.fromkeys(record["analyzer"] for record in study.results.get("analyses") or [])
    others = [Topic(name, name, "What this analyzer found.", "") for name in there if name not in named]
    made = [_section(study, topic, most) for topic in [*TOPICS, *others]]
    there_is = [section for section in made if section.blocks or section.missing]
    absent = [topic.title for topic, section in zip(TOPICS, made, strict=False) if section not in there_is]
    if not absent:
        return there_is
    note = f"The study ran none of these, by its config: {', '.join(absent)}."
    return [*there_is, Section("not-run", "Not in this study", "Which analyses were not asked for?", missing=[note])]


def _section(study: Study, topic: Topic, most: int) -> Section:
    blocks, missing = [], []
    for analysed in study.analyses(topic.analyzer):
        made = _block(study, topic, analysed, most)
        if isinstance(made, Block):
            blocks.append(made)
        else:
            missing.append(made)
    missing += [
        f"Left out: {item['what']} ({item['reason']})."
        for item in study.results.get("left_out") or []
        if topic.analyzer in str(item.get("what"))
    ]
    failed = [item for item in study.failed if topic.analyzer in str(item["id"])]
    missing += [f"Failed: {item['id']} ({item['error']})." for item in failed]
    if topic.analyzer == "first_token":
        begins = first_tokens(study)
        blocks += [begins] if begins else []
    if topic.analyzer == "transfer" and len(blocks) > 1:
        blocks.insert(0, matrix(study, topic.look))
    return Section(re.sub(r"[^a-z0-9_]+", "-", topic.analyzer.lower()), topic.title, topic.question, blocks, missing)


def _block(study: Study, topic: Topic, analysed: Analysed, most: int) -> Block | str:
    record, result = analysed.record, analysed.result
    if result is None:
        return f"{record['folder']} could not be read: {analysed.error}"
    try:
        panels = _panels(result)
        finding = caption(result)
    except (SteerkitError, LookupError, TypeError, ValueError) as error:
        # A plugin that is not installed, or numbers of another version of it: the rest of the report stands.
        return f"{record['folder']} could not be drawn ({type(error).__name__}: {error})."
    shown, left = _picked([_without(panel, topic.omit) for panel in panels], topic.picks, most)
    folder = record["folder"]
    seconds = record.get("seconds") if record.get("seconds") is not None else result.seconds
    prompts = result.prompts
    facts = [
        f"{prompts['n']} prompts {prompts['source']}" if prompts else "no prompts",
        f"numbers taken at: {result.positions}", f"seed {record.get('seed', result.seed)}, {duration(seconds)}",
    ]  # fmt: skip
    notes = [*result.notes]
    if left:
        notes.append(f"{left} more figures: steerkit analyze --redraw {folder}")
    tables = [f"{folder}/{name}.parquet" for name in result.tables]
    arrays = [f"{folder}/arrays.safetensors"] if result.arrays else []
    return Block(
        shown, finding, topic.look, heading(study, record), str(record.get("command") or result.command),
        [f"{folder}/analysis.json", *arrays, *tables], facts, notes,
    )  # fmt: skip


def _panels(result: AnalysisResult) -> list[Panel]:
    target = registry.resolve("analyzers", result.analyzer)
    made = target(**result.settings) if isinstance(target, type) else target
    found: list[Panel] = made.panels(result)
    return found


def _picked(panels: Sequence[Panel], picks: Sequence[str], most: int) -> tuple[list[Panel], int]:
    """(what is shown, how many more figures there are)"""
    figures = [panel for panel in panels if not (isinstance(panel, Table) and panel.page_only)]
    if picks:
        chosen: list[Panel] = []
        for words in picks:
            chosen += [panel for panel in figures if words in panel.title and panel not in chosen]
        figures_shown = chosen[:most]
    else:
        figures_shown = figures[:most]
    return figures_shown, len(figures) - len(figures_shown)


def _without(panel: Panel, pattern: str) -> Panel:
    """Bars without those whose label has the pattern."""
    if not pattern or not isinstance(panel, Bars):
        return panel
    kept = [k for k, label in enumerate(panel.labels) if not re.search(pattern, label)]

    def picked(values: Numbers) -> Numbers:
        return [values[k] for k in kept]

    series = [
        replace(s, y=picked(s.y), low=s.low and picked(s.low), high=s.high and picked(s.high)) for s in panel.series
    ]
    return replace(panel, labels=[panel.labels[k] for k in kept], series=series)
