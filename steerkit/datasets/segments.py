"""Which part of a rendered prompt each token belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerkit.datasets.prompts import PromptTemplate
from steerkit.errors import SteerkitError
from steerkit.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prompt_segments(
    tokenizer: PreTrainedTokenizerBase, template: PromptTemplate, problem: Example | str, text: str
) -> tuple[str, ...]:
    """The segment (``token_masks.SEGMENTS``) of each token of a rendered prompt.

    A token that reaches over a boundary counts to the segment of its first character that is not white space. What the
    template did not get from us (role tags, BOS, texts of its own) is ``role_tags``.

    Args:
        text: ``template.render(tokenizer, problem)``.

    Returns:
        [P] names, for the P tokens of ``template.encode(tokenizer, text)``.

    Raises:
        SteerkitError: if the tokenizer can't say where its tokens stand (a slow one), or the problem is not in the
            text.
    """
    if not tokenizer.is_fast:
        raise SteerkitError("Prompt segments need a fast tokenizer: this one can't say where its tokens stand.")
    labels = _character_labels(template, problem.problem if isinstance(problem, Example) else problem, text)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    names = []
    for start, end in encoded["offset_mapping"]:
        inked = next((k for k in range(start, end) if not text[k].isspace()), start)
        names.append(labels[inked] if inked < len(labels) else "role_tags")
    extra = len(template.encode(tokenizer, text)) - len(names)  # BOS, before a plain prompt
    return ("role_tags",) * extra + tuple(names)


def _character_labels(template: PromptTemplate, problem: str, text: str) -> list[str]:
    labels = ["role_tags"] * len(text)

    def paint(content: str, name: str, start: int, end: int) -> int:
        """Label the first occurrence from ``start`` on; returns where it ends. Chat templates may strip a turn's
        text.
        """
        content = content.strip()
        at = text.find(content, start, end) if content else -1
        if at < 0:
            return start
        labels[at : at + len(content)] = [name] * len(content)
        return at + len(content)

    end = len(text) - len(template.assistant_prefix)
    labels[end:] = ["prefill"] * (len(text) - end)
    # Pieces are looked for in their order, so that a problem that repeats an example's text is not mistaken for it.
    place = paint(template.system or "", "system", 0, end)
    for shot in template.few_shot:
        place = paint(template.prefix + shot["problem"] + template.suffix, "few_shot", place, end)
        place = paint(shot["completion"], "few_shot", place, end)
    before = place
    if paint(template.prefix + problem + template.suffix, "problem", before, end) == before:
        raise SteerkitError(
            "The rendered prompt doesn't contain the problem's text, so its segments are unknown: "
            "the chat template changes the text."
        )
    return labels
