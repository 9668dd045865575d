"""The doctor's questions, in the order that they are asked."""

from __future__ import annotations

from steerkit.doctor import equality, independent, memory, structure
from steerkit.doctor.rows import Check

_BLOCKS, _LOGITS, _CACHE, _TOKENS = "blocks found", "norm, unembedding", "cache", "tokenizer"
_STRUCTURE = (_BLOCKS, _LOGITS, _CACHE, _TOKENS)
_ALONE = "base by itself"
_SAY_LAYOUT = "Say where they are: --layout.blocks PATH --layout.norm PATH --layout.unembedding PATH."

CHECKS: tuple[Check, ...] = (
    Check(_BLOCKS, structure.blocks, advice=_SAY_LAYOUT),
    Check(_LOGITS, structure.logits, (_BLOCKS,), advice=_SAY_LAYOUT),
    Check("hook sites", structure.sites, (_LOGITS,)),
    Check(_CACHE, structure.cache, advice="Use a family that hands on past_key_values."),
    Check(_TOKENS, structure.tokenizer, (_BLOCKS,)),
    Check("chat template", structure.chat_template, advice="Mend chat_template, or use template: {style: plain}."),
    Check("context length", structure.context),
    Check("numbers", structure.numbers),
    Check(_ALONE, equality.alone, _STRUCTURE),
    Check("an error would show", equality.sensitive, (_ALONE,)),
    Check("padded = unpadded", equality.padded, (_ALONE,)),
    Check("cached = uncached", equality.cached_steps, (_ALONE,)),
    Check("batch = single", equality.single, (_ALONE,)),
    Check("disabled() = base", equality.disabled, _STRUCTURE),
    Check("generate() is steered", equality.generate, (_ALONE,)),
    Check("sampling = training", equality.sampled, (_ALONE,)),
    Check("fast sampling = training", equality.fast_sampled, (_ALONE,)),
    Check("gradients", equality.gradients, _STRUCTURE),
    Check("memory", memory.memory, _STRUCTURE),
    Check("speed", memory.speed, _STRUCTURE),
    # Last: nnsight wraps the modules.
    Check("hook = nnsight", independent.nnsight_edit, (_ALONE,)),
)
