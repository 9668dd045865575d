"""Checks of what the model is made of: blocks, sites, cache, tokenizer, context, numbers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from steerkit.doctor.rows import Finding
from steerkit.errors import ModelError
from steerkit.hookpoints import SITES, HookPoint
from steerkit.models.caching import has_running_state, verify_cache
from steerkit.models.layout import FAMILIES, find_layout, text_config, verify_layout
from steerkit.models.sites import find_site, verify_sites
from steerkit.rollouts.prompting import context_length
from steerkit.rollouts.sampler import stop_ids

if TYPE_CHECKING:
    from steerkit.doctor.subject import Subject


def blocks(subject: Subject) -> Finding:
    """Where the blocks are, and who says so."""
    base, family = subject.base, subject.base.config.model_type
    subject.layout = layout = find_layout(base, subject.layout_override)
    if subject.layout_override is not None:
        source = "as you said"
    else:
        source = f"row of family {family!r}" if FAMILIES.get(family) == layout else f"discovered in {family!r}"
    n = len(layout.block_list(base))
    figures = {"layers": n, "d_model": text_config(base).hidden_size, "family": family, "source": source}
    paths = {"blocks": layout.blocks, "norm": layout.norm, "unembedding": layout.unembedding}
    return Finding("pass", f"{n} blocks at {layout.blocks} ({source})", figures=figures | paths)


def logits(subject: Subject) -> Finding:
    """Last block -> final norm -> unembedding = the model's logits."""
    assert subject.layout is not None
    verify_layout(subject.base, subject.layout)
    return Finding("pass", f"{subject.layout.norm}, then {subject.layout.unembedding}")


def sites(subject: Subject) -> Finding:
    """Which hook sites there are; one that isn't there is a note: vectors at ``output`` need none of the others."""
    assert subject.layout is not None
    found, reasons = [], []
    layers = list(range(len(subject.layout.block_list(subject.base))))
    for site in SITES:
        try:
            for layer in layers:
                find_site(subject.base, subject.layout, HookPoint(layer, site))
            if site in ("attn_output", "mlp_output"):
                verify_sites(subject.base, subject.layout, layers)
            found.append(site)
        except ModelError as error:
            reasons.append(str(error))
    lacking = [site for site in SITES if site not in found]
    figures = {"sites": found, "reasons": list(dict.fromkeys(reasons))}
    if not lacking:
        return Finding("pass", ", ".join(found), figures=figures)
    why = " ".join(figures["reasons"])
    return Finding("note", f"{', '.join(found)}; not {', '.join(lacking)}: {why}", figures=figures)


def cache(subject: Subject) -> Finding:
    """A past that can be handed on."""
    verify_cache(subject.base)
    if has_running_state(subject.base):
        text = "past_key_values with a running state: in the update each completion runs with its own prompt"
        return Finding("note", text, figures={"running_state": True})
    return Finding("pass", "past_key_values; prompts are shared in the update", figures={"running_state": False})


def tokenizer(subject: Subject) -> Finding:
    """Pad and end token, and ids that the embedding has rows for."""
    tok = subject.tokenizer
    rows = next(subject.base.get_input_embeddings().parameters()).shape[0]
    highest = max(int(subject.ids.max()), subject.pad_id)
    if highest >= rows:
        return Finding(
            "fail",
            f"token id {highest}, but the embedding has {rows} rows",
            "Use the tokenizer that belongs to this checkpoint.",
        )
    stops = sorted(stop_ids(subject.bare, tok))
    figures = {"pad_token": tok.pad_token, "eos_token": tok.eos_token, "stop_ids": stops, "vocabulary": len(tok)}
    same = " (the same)" if tok.pad_token == tok.eos_token else ""
    return Finding("pass", f"pad {tok.pad_token!r}, end {tok.eos_token!r}{same}", figures=figures)


def chat_template(subject: Subject) -> Finding:
    """Base models have none: the prompt must say so."""
    if not subject.tokenizer.chat_template:
        return Finding("note", "none: give template: {style: plain}", figures={"chat_template": False})
    text = subject.tokenizer.apply_chat_template(
        [{"role": "user", "content": "2 + 3?"}], tokenize=False, add_generation_prompt=True
    )
    if "2 + 3?" not in str(text):
        return Finding("fail", f"it drops the user's text: {text!r:.80}", "Mend chat_template, or use style: plain.")
    return Finding("pass", "renders a user's turn", figures={"chat_template": True})


def context(subject: Subject) -> Finding:
    """Room for prompt and answer."""
    config = text_config(subject.base)
    length, batch = context_length(subject.base), subject.batch
    said = any(isinstance(getattr(config, n, None), int) for n in ("max_position_embeddings", "n_positions"))
    need = batch.prompt_tokens + batch.max_tokens
    figures = {"context": length, "asked": need}
    if need > length:
        found = f"{length} tokens; prompt and answer ask for {batch.prompt_tokens} + {batch.max_tokens}"
        return Finding("fail", found, f"Lower max_tokens to {max(1, length - batch.prompt_tokens)} or less.", figures)
    source = "" if said or getattr(config, "max_sequence_length", None) else " (assumed: the config doesn't say)"
    return Finding("pass", f"{length} tokens{source}", figures=figures)


def numbers(subject: Subject) -> Finding:
    """Number formats, quantisation, and the tolerance that follows."""
    base = subject.base
    kinds = Counter(str(p.dtype).removeprefix("torch.") for p in base.parameters())
    dtypes = ", ".join(f"{name} ({count} tensors)" if len(kinds) > 1 else name for name, count in kinds.most_common())
    notes = [f"{dtypes}; logits may differ by {subject.ceiling:.1g} of the largest"]
    quantised = quantisation(base)
    figures: dict[str, Any] = {"dtypes": dict(kinds), "ceiling": subject.ceiling, "quantisation": quantised}
    if quantised:
        notes.append(f"weights quantised ({quantised}): vectors stay fp32, but arm 'full' and export 'folded' won't do")
    if base.dtype != subject.dtype:
        notes.append(f"{base.dtype} is compared as bfloat16")
    if base.dtype.itemsize == 2 and base.device.type == "cpu":
        notes.append("16-bit numbers are slow on a CPU: use --dtype float32")
    status = "note" if len(notes) > 1 else "pass"
    return Finding(status, "; ".join(notes), figures=figures)  # type: ignore[arg-type]


def quantisation(base: Any) -> str | None:
    """The quantiser's name, with its bits where it says them."""
    config = getattr(base.config, "quantization_config", None)
    if config is None:
        return None
    said = config if isinstance(config, dict) else config.to_dict()
    method = said.get("quant_method") or ("bitsandbytes" if "load_in_8bit" in said else "unknown method")
    method = str(getattr(method, "value", method))
    bits = 4 if said.get("load_in_4bit") else 8 if said.get("load_in_8bit") else said.get("bits")
    return f"{method}, {bits} bits" if bits else method
