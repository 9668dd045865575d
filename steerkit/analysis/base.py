"""The analyzer contract: the base class owns the plumbing, a subclass writes the idea."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from steerkit.analysis.engine import ENGINES, make_engine
from steerkit.analysis.parts import Parts
from steerkit.analysis.result import FILE, SCHEMA, AnalysisResult, Findings
from steerkit.analysis.statistics import without_nan
from steerkit.analysis.work import Progress, Work
from steerkit.datasets import PromptTemplate
from steerkit.errors import DataError, SteerkitError, VectorError
from steerkit.evaluation.journal import differences
from steerkit.evaluation.results import versions
from steerkit.files import output_folder, set_aside
from steerkit.models import LoadedModel, fingerprint
from steerkit.models.layout import text_config
from steerkit.registry import did_you_mean
from steerkit.rollouts import EncodedPrompt, encode_prompts
from steerkit.types import Example
from steerkit.vectors import SteeringVector

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from steerkit.analysis.plots.panels import Panel

Vectors = SteeringVector | Mapping[str, SteeringVector]
Prompts = Sequence[EncodedPrompt] | Sequence[Example]


class Analyzer(ABC):
    """Looks at what vectors do inside a model.

    A subclass is a frozen dataclass whose fields are its settings (JSON values, each with a default), and final.
    """

    name: ClassVar[str]
    """Its plugin name."""
    needs_prompts: ClassVar[bool] = True
    needs_answers: ClassVar[bool] = False
    """Whether it judges completions."""
    n_vectors: ClassVar[tuple[int, int | None]] = (1, None)
    """The fewest and the most vectors that it takes; None: any number."""

    def inputs(self) -> Mapping[str, str]:
        """Name -> digest of what settings name by its place (a second vector, say): results depend on its content."""
        return {}

    @abstractmethod
    def analyze(self, work: Work) -> Findings:
        """The idea: numbers from forward passes.

        Runs the model through ``work.engine`` and ``work.generations``, keeps what took long by ``work.part``.
        """

    def panels(self, result: AnalysisResult) -> list[Panel]:
        """What is drawn of a result, from its saved numbers alone; by default its rows and its arrays as they are."""
        from steerkit.analysis.plots.default import panels

        return panels(result)

    @property
    def settings(self) -> dict[str, Any]:
        """The fields, as JSON values."""
        if not dataclasses.is_dataclass(self):
            raise SteerkitError(f"{type(self).__name__} must be a dataclass: its fields are its settings.")
        return {f.name: json.loads(json.dumps(getattr(self, f.name))) for f in dataclasses.fields(self)}

    def run(
        self,
        loaded: LoadedModel,
        vectors: Vectors,
        prompts: Prompts = (),
        *,
        engine: str = "nnsight",
        seed: int = 0,
        folder: str | Path | None = None,
        template: PromptTemplate | None = None,
        source: str = "",
        batch_tokens: int = 8192,
        progress: Progress | None = None,
        command: str = "",
        restart: bool = False,
    ) -> AnalysisResult:
        """Analyse, and leave the model as it was.

        Args:
            vectors: a vector, or name -> vector.
            prompts: encoded, or examples to be encoded by ``template``.
            engine: ``nnsight`` or ``batched``; the same numbers.
            seed: of controls, samples and bootstraps.
            folder: where the result is saved, and finished parts are kept on the way: a killed run goes on there, a
                finished one of the same settings is read and nothing is run.
            template: of the prompts; default: the first vector's, else the paper's.
            source: what the prompts are, for the record.
            batch_tokens: padded tokens of one forward pass, about.
            progress: told (label, done, total).
            command: for the record.
            restart: set aside what is in ``folder``.

        Raises:
            VectorError: if a vector does not fit the model.
            DataError: if prompts or their answers are needed and missing.
            SteerkitError: for an unknown engine, or a folder with an unfinished analysis of other settings.
        """
        began = time.perf_counter()
        named = {"vector": vectors} if isinstance(vectors, SteeringVector) else dict(vectors)
        self._check(loaded, named, prompts, engine)
        template = _template(named, prompts, template)
        encoded = self._encoded(loaded, prompts, template)
        identity = self._identity(loaded, named, encoded, engine, seed, batch_tokens)
        if folder is not None:
            done = _finished(Path(folder), identity, restart)
            if done is not None:
                return done
        with nullcontext() if folder is None else output_folder(folder), Parts(folder, identity) as parts:
            with left_as_found(loaded.base), make_engine(engine, loaded) as running:
                work = Work(loaded, named, encoded, running, seed, batch_tokens, parts, progress or _silent, template)
                findings = self.analyze(work)
            facts = {"template": template.to_dict() if template else None, "source": source}
            result = self._result(loaded, named, findings, identity, facts, command, time.perf_counter() - began)
            if folder is not None:
                result.save(folder)
                parts.discard()
        return result

    def _result(
        self,
        loaded: LoadedModel,
        vectors: Mapping[str, SteeringVector],
        findings: Findings,
        identity: Mapping[str, Any],
        of_prompts: Mapping[str, Any],
        command: str,
        seconds: float,
    ) -> AnalysisResult:
        config = text_config(loaded.base)
        return AnalysisResult(
            analyzer=self.name,
            settings=self.settings,
            rows=[without_nan(row) for row in findings.rows],
            positions=findings.positions,
            arrays=dict(findings.arrays),
            tables={name: [without_nan(row) for row in table] for name, table in findings.tables.items()},
            notes=[*findings.notes, *_strangers(vectors, identity["model"]["fingerprint"])],
            model=identity["model"] | {"n_layers": config.num_hidden_layers, "d_model": config.hidden_size},
            vectors={name: _facts(vector) for name, vector in vectors.items()},
            prompts={**identity["prompts"], **of_prompts} if identity["prompts"] else None,
            engine=identity["engine"],
            seed=identity["seed"],
            command=command,
            versions=versions() | _more_versions(),
            seconds=round(seconds, 2),
            identity=identity,
        )

    def _check(self, loaded: LoadedModel, vectors: dict[str, SteeringVector], prompts: Prompts, engine: str) -> None:
        if engine not in ENGINES:
            raise SteerkitError(f"No engine {engine!r}.{did_you_mean(engine, ENGINES)} Engines: {', '.join(ENGINES)}.")
        least, most = self.n_vectors
        if len(vectors) < least or (most is not None and len(vectors) > most):
            wanted = f"{least} or more" if most is None else str(least) if least == most else f"{least} to {most}"
            raise VectorError(f"{self.name} takes {wanted} vectors, got {len(vectors)}.")
        if "base" in vectors:  # parts and rows have that name for the model without a vector
            raise VectorError("No vector can be named 'base', the model without one: write --vector NAME=folder.")
        for name, vector in vectors.items():
            try:
                vector.check_fits(loaded.base)
            except VectorError as error:
                raise VectorError(f"{name}: {error}") from None
        if self.needs_prompts and not prompts:
            raise DataError(f"{self.name} needs prompts, got none.")
        if self.needs_answers:
            examples = [p if isinstance(p, Example) else p.example for p in prompts]
            lacking = next((example for example in examples if not example.answer), None)
            if lacking is not None:
                raise DataError(f"{self.name} measures accuracy, and prompt {lacking.id!r} has no answer: give prompts "
                                "with an answer column.")  # fmt: skip

    def _encoded(self, loaded: LoadedModel, prompts: Prompts, template: PromptTemplate | None) -> list[EncodedPrompt]:
        if not self.needs_prompts:
            return []
        if template is None:
            return [prompt for prompt in prompts if isinstance(prompt, EncodedPrompt)]
        examples = [prompt for prompt in prompts if isinstance(prompt, Example)]
        room = int(getattr(self, "max_tokens", 1))
        return encode_prompts(loaded.base, loaded.tokenizer, template, examples, room, segments=True)

    def _identity(
        self,
        loaded: LoadedModel,
        vectors: dict[str, SteeringVector],
        prompts: list[EncodedPrompt],
        engine: str,
        seed: int,
        batch_tokens: int,
    ) -> dict[str, Any]:
        base = loaded.base
        digest = hashlib.sha256(json.dumps([[p.example.id, p.example.answer, list(p.ids)] for p in prompts]).encode())
        found = {
            "schema": SCHEMA,
            "analyzer": self.name,
            "settings": self.settings,
            "model": {
                "name": loaded.name,
                "fingerprint": fingerprint(base),
                "dtype": str(base.dtype).removeprefix("torch."),
                "device": base.device.type,
            },
            "vectors": {name: vector.digest() for name, vector in vectors.items()},
            "prompts": {"n": len(prompts), "digest": digest.hexdigest()[:16]} if prompts else None,
            "engine": engine,
            "seed": seed,
            "batch_tokens": batch_tokens,
        }
        inputs = dict(self.inputs())
        return found | {"inputs": inputs} if inputs else found


@contextmanager
def left_as_found(base: PreTrainedModel) -> Iterator[None]:
    """Put back, at the end: what asks for a gradient, and which modules are in training mode."""
    wants = [(parameter, parameter.requires_grad) for parameter in base.parameters()]
    modes = [(module, module.training) for module in base.modules()]
    try:
        base.eval()
        yield
    finally:
        for parameter, wanted in wants:
            parameter.requires_grad_(wanted)
        for module, mode in modes:
            module.training = mode


def at_least_one(analyzer: Analyzer, *names: str) -> None:
    """Refuse settings that count something and are below 1.

    Raises:
        SteerkitError: naming the first.
    """
    for name in names:
        if getattr(analyzer, name) < 1:
            raise SteerkitError(f"{name} must be at least 1, got {getattr(analyzer, name)}.")


def check_final(target: type[Analyzer]) -> None:
    """A concrete analyzer is a dataclass with defaults, and has a name.

    Raises:
        SteerkitError: saying what it lacks.
    """
    if inspect.isabstract(target) or not dataclasses.is_dataclass(target):
        raise SteerkitError(f"{target.__name__} must be a dataclass that implements analyze().")
    if not isinstance(getattr(target, "name", None), str):
        raise SteerkitError(f"{target.__name__} needs a class attribute name.")


def _finished(folder: Path, identity: Mapping[str, Any], restart: bool) -> AnalysisResult | None:
    """The result in ``folder`` if it is of these settings; a finished one of others is renamed, never overwritten."""
    if restart:
        set_aside(folder)
        return None
    if not (folder / FILE).is_file():
        return None
    there = AnalysisResult.load(folder)
    if not differences(there.identity, identity):
        return there
    set_aside(folder)
    return None


def _template(
    vectors: Mapping[str, SteeringVector], prompts: Prompts, given: PromptTemplate | None
) -> PromptTemplate | None:
    """That of the prompts; None: they are encoded."""
    if any(isinstance(prompt, EncodedPrompt) for prompt in prompts):
        return None
    receipts = next(iter(vectors.values())).metadata.receipts if vectors else {}
    return given or PromptTemplate.from_dict(receipts.get("prompt", {}))


def _strangers(vectors: Mapping[str, SteeringVector], fingerprint_: str) -> list[str]:
    """A note for each vector of another base."""
    return [
        f"{name} was trained on another model than this one ({vector.metadata.model or 'unnamed'}, fingerprint "
        f"{vector.metadata.fingerprint})."
        for name, vector in vectors.items()
        if vector.metadata.fingerprint not in ("", fingerprint_)
    ]


def _facts(vector: SteeringVector) -> dict[str, Any]:
    receipts = vector.metadata.receipts
    return {
        "digest": vector.digest(),
        "intervention": vector.intervention,
        "token_mask": vector.token_mask,
        "points": [str(point) for point in vector.tensors],
        "norms": vector.norms(),
        "model": vector.metadata.model,
        "fingerprint": vector.metadata.fingerprint,
        "command": receipts.get("command"),
    }


def _more_versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"nnsight": version("nnsight")}


def _silent(label: str, done: int, total: int) -> None:
    pass
