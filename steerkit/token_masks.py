"""Token masks: at which positions an intervention acts.

A mask names the position *whose logits predict* the token. With a prompt of P tokens, positions 0 .. P-2 predict prompt
tokens, position P-1 (the last prompt token) predicts the first generated token, and so on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from steerkit.errors import SteerkitError
from steerkit.registry import did_you_mean

Segment = Literal["system", "role_tags", "problem", "few_shot", "prefill"]
SEGMENTS: tuple[str, ...] = get_args(Segment)
"""Parts of a rendered prompt: system text, chat markup (role tags, BOS), the problem, the worked examples, and the
beginning of the answer that was given to the model. Each prompt token belongs to exactly one."""

NAMES = ("all", "prompt", "generated", "first_generated", "not_first_generated")
_SPELLED = f"{', '.join(NAMES)}, last_prompt:N, segment:NAME (with NAME one of {', '.join(SEGMENTS)})"
_LAST = re.compile(r"^last_prompt:(\d+)$")


@dataclass(frozen=True, slots=True)
class TokenMask:
    """Which positions are steered.

    - ``all``: every position (the papers);
    - ``prompt``: positions 0 .. P-2, those that predict prompt tokens;
    - ``generated``: positions P-1, P, ..., those that predict generated tokens;
    - ``first_generated``: position P-1 alone;
    - ``not_first_generated``: every position but P-1;
    - ``last_prompt:N``: the last N prompt positions, P-N .. P-1;
    - ``segment:NAME``: the positions of the prompt tokens of one segment (``SEGMENTS``).
    """

    spec: str = "all"

    def __post_init__(self) -> None:
        if self.spec in NAMES:
            return
        last = _LAST.match(self.spec)
        if last and int(last[1]) > 0:
            return
        if self.spec.startswith("segment:"):
            if self.segment in SEGMENTS:
                return
            hint = did_you_mean(str(self.segment), SEGMENTS)
            raise SteerkitError(f"Unknown prompt segment {self.segment!r}.{hint} Segments: {', '.join(SEGMENTS)}.")
        hint = did_you_mean(self.spec, NAMES)
        raise SteerkitError(f"Unknown token mask {self.spec!r}.{hint} Masks: {_SPELLED}.")

    def __str__(self) -> str:
        return self.spec

    @property
    def everywhere(self) -> bool:
        return self.spec == "all"

    @property
    def segment(self) -> str | None:
        """The segment it names, if it names one: such a mask needs to know each prompt's segments."""
        head, _, name = self.spec.partition(":")
        return name if head == "segment" else None

    @property
    def generated(self) -> bool:
        """Whether the positions behind the prompt (P, P+1, ...) are steered."""
        return self.spec in ("all", "generated", "not_first_generated")

    def prompt_positions(self, length: int, segments: Sequence[str] = ()) -> list[bool]:
        """[P] for the positions of a prompt of ``length`` = P tokens.

        Args:
            segments: [P] the segment of each token; needed by ``segment:NAME`` only.

        Raises:
            SteerkitError: if the mask names a segment and ``segments`` does not tell them.
        """
        if self.segment is not None:
            if len(segments) != length:
                raise SteerkitError(
                    f"The token mask {self.spec!r} needs the segment of each prompt token: encode with a template."
                )
            return [name == self.segment for name in segments]
        last = _LAST.match(self.spec)
        if last:
            return [position >= length - int(last[1]) for position in range(length)]
        body, final = {
            "all": (True, True),
            "prompt": (True, False),
            "generated": (False, True),
            "first_generated": (False, True),
            "not_first_generated": (True, False),
        }[self.spec]
        return [body] * (length - 1) + [final] * min(1, length)
