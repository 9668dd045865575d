"""From a problem to prompt text and token ids; a steering vector records the template that it was trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from steerkit.errors import DataError, SteerkitError
from steerkit.registry import did_you_mean
from steerkit.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
"""The system text of arXiv 2509.06608."""


@dataclass(frozen=True)
class PromptTemplate:
    """How a problem is put to the model.

    ``chat`` renders the tokenizer's chat template: system turn, few-shot turns, the problem, the generation prompt,
    ``assistant_prefix``. ``plain`` joins the same pieces with blank lines and adds nothing of its own, so a base
    model's format is spelled out by ``prefix`` and ``suffix`` (``"Question: "`` and ``"\\nAnswer:"``).
    """

    style: Literal["chat", "plain"] = "chat"
    system: str | None = BOXED
    """None: no system turn (some chat templates then write their own; an empty text prevents that)."""
    prefix: str = ""
    """Before each problem, the few-shot ones included."""
    suffix: str = ""
    """After each problem."""
    few_shot: list[dict[str, str]] = field(default_factory=list)
    """Solved problems, each ``{problem: ..., completion: ...}``."""
    assistant_prefix: str = ""
    """The beginning of the completion, given to the model (a prefilled token, say)."""

    def __post_init__(self) -> None:
        if self.style not in ("chat", "plain"):
            raise SteerkitError(f"Prompt style {self.style!r} is unknown: write 'chat' or 'plain'.")
        for number, shot in enumerate(self.few_shot):
            if set(shot) != {"problem", "completion"}:
                raise SteerkitError(f"few_shot[{number}] has the keys {sorted(shot)}: expected problem and completion.")

    def render(self, tokenizer: PreTrainedTokenizerBase, problem: Example | str) -> str:
        """The prompt text, special tokens of the chat template included.

        Raises:
            SteerkitError: for style ``chat`` with a tokenizer that has no chat template, or whose template fails.
        """
        text = problem.problem if isinstance(problem, Example) else problem
        return self._chat(tokenizer, text) if self.style == "chat" else self._plain(text)

    def encode(self, tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
        """Token ids [P] of a rendered prompt, with the one BOS that the model expects and no EOS.

        Args:
            text: what ``render`` returned.
        """
        ids = list(tokenizer.encode(text, add_special_tokens=False))
        bos = tokenizer.bos_token
        if self.style == "chat" or (bos is not None and text.startswith(bos)):
            return ids  # a chat template writes the special tokens itself; so may a plain prompt's author
        framed = list(tokenizer.encode(text, add_special_tokens=True))
        for start in range(len(framed) - len(ids) + 1):
            if framed[start : start + len(ids)] == ids:
                return framed[:start] + ids  # what the tokenizer puts after a text (EOS) would end it before the answer
        return framed

    def with_opening(self, opening: str) -> PromptTemplate:
        """The same template with ``opening`` prefilled behind its own ``assistant_prefix``."""
        return replace(self, assistant_prefix=self.assistant_prefix + opening)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready settings; ``from_dict`` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> PromptTemplate:
        """Raises SteerkitError for an unknown setting, or one of the wrong kind (a vector's file may hold anything)."""
        known = [f.name for f in fields(cls)]
        for key, value in settings.items():
            if key not in known:
                raise SteerkitError(
                    f"A prompt template has no setting {key!r}.{did_you_mean(key, known)} Settings: {', '.join(known)}."
                )
            if not (_are_shots(value) if key == "few_shot" else value is None or isinstance(value, str)):
                raise SteerkitError(f"The prompt template's {key} can't be {value!r:.60}.")
        return cls(**settings)

    def _ask(self, problem: str) -> str:
        return f"{self.prefix}{problem}{self.suffix}"

    def _plain(self, problem: str) -> str:
        pieces = [self.system] if self.system else []
        pieces += [self._ask(shot["problem"]) + shot["completion"] for shot in self.few_shot]
        return "\n\n".join([*pieces, self._ask(problem) + self.assistant_prefix])

    def _chat(self, tokenizer: PreTrainedTokenizerBase, problem: str) -> str:
        from jinja2 import TemplateError

        if not tokenizer.chat_template:
            raise SteerkitError(
                "This tokenizer has no chat template (a base model?): set the prompt's style to 'plain', or use the "
                "instruction-tuned model."
            )
        turns = []
        for shot in self.few_shot:
            turns += [_turn("user", self._ask(shot["problem"])), _turn("assistant", shot["completion"])]
        turns.append(_turn("user", self._ask(problem)))
        try:
            return self._with_system(tokenizer, turns) + self.assistant_prefix
        except TemplateError as error:
            raise SteerkitError(f"The tokenizer's chat template fails on this prompt: {error}") from error

    def _with_system(self, tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> str:
        from jinja2 import TemplateError

        if self.system is None:
            return _apply(tokenizer, turns)
        # Gemma's template, for one, raises on a system turn; others drop it without a word.
        with suppress(TemplateError):
            text = _apply(tokenizer, [_turn("system", self.system), *turns])
            if self.system.strip() in text:
                return text
        folded = _turn("user", f"{self.system}\n\n{turns[0]['content']}".lstrip())
        return _apply(tokenizer, [folded, *turns[1:]])


def _are_shots(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(shot, Mapping) and all(isinstance(text, str) for text in (*shot, *shot.values())) for shot in value
    )


def fit_to_context(
    encoded: Sequence[Sequence[int]], max_prompt_tokens: int, policy: Literal["refuse", "drop"]
) -> tuple[list[int], int]:
    """Which prompts fit; none is ever cut, for a cut problem has another answer.

    Args:
        encoded: token ids of each prompt.
        max_prompt_tokens: the most tokens a prompt may have.
        policy: ``refuse``: raise if one is longer; ``drop``: leave the longer ones out.

    Returns:
        Indices of the prompts that fit, in order, and the number dropped.

    Raises:
        DataError: under ``refuse`` if one is too long, under ``drop`` if all are.
    """
    if policy not in ("refuse", "drop"):
        raise SteerkitError(f"The policy for long prompts must be 'refuse' or 'drop', got {policy!r}.")
    kept = [index for index, ids in enumerate(encoded) if len(ids) <= max_prompt_tokens]
    dropped = len(encoded) - len(kept)
    if dropped and (policy == "refuse" or not kept):
        longest = max(range(len(encoded)), key=lambda index: len(encoded[index]))
        advice = "raise max_prompt_tokens" + (", or drop them with policy 'drop'" if policy == "refuse" else "")
        raise DataError(
            f"{dropped} of {len(encoded)} prompts are longer than {max_prompt_tokens} tokens (the longest, number "
            f"{longest}, has {len(encoded[longest])}): {advice}."
        )
    return kept, dropped


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _apply(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> str:
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
