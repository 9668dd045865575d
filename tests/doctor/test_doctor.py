"""The doctor passes sound models of many families, and each of its checks fails for the fault that it is there for."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from helpers import checkpoint, tokenizer

from steerkit.cli import main
from steerkit.doctor import CHECKS, Batch, Check, Finding, Subject, examine, structure, subject
from steerkit.models import SteeredModel
from steerkit.models import layout as layouts
from steerkit.models import steered as steered_module
from steerkit.testing import tiny_model
from steerkit.testing.families import TINY_FAMILIES

TOK = tokenizer()
ROOM = {"vocab_size": len(TOK), "max_position_embeddings": 300, "eos_token_id": TOK.eos_token_id}


def patient(family="llama", dtype=torch.float32, **overrides) -> Subject:
    return Subject(tiny_model(family, **{**ROOM, **overrides}).to(dtype), TOK)


def rows_of(who: Subject, *names: str):
    """Name -> row, of all checks or of those up to the last that is named."""
    last = max((k for k, check in enumerate(CHECKS) if check.name in names), default=len(CHECKS) - 1)
    rows = {row.name: row for row in examine(who, CHECKS[: last + 1])}
    return rows if not names else {name: rows[name] for name in names}


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_sound_models_pass(family):
    rows = rows_of(patient(family))
    wrong = [(row.name, row.status, row.found) for row in rows.values() if row.status in ("fail", "skipped")]
    assert not wrong
    assert len(rows) == len(CHECKS)
    json.dumps([dict(row.figures) for row in rows.values()], allow_nan=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "lfm2"])
def test_sixteen_bits_pass_with_a_note(family, dtype):
    rows = rows_of(patient(family, dtype))
    assert not [(row.name, row.found) for row in rows.values() if row.status in ("fail", "skipped")]
    assert rows["numbers"].status == "note" and "slow on a CPU" in rows["numbers"].found


# -- faults of the base


def broken_base(change) -> Subject:
    who = patient("gpt2")
    forward = who.base.forward

    @functools.wraps(forward)
    def wrapped(*args, **kwargs):
        return forward(*args, **change(dict(kwargs)))

    who.base.forward = wrapped
    return who


def without_padding(kwargs):
    return {**kwargs, "attention_mask": None, "position_ids": None}


def later_positions_when_cached(kwargs):
    cache = kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        kwargs["position_ids"] = kwargs["position_ids"] + 1
    return kwargs


def test_a_base_that_ignores_padding():
    rows = rows_of(broken_base(without_padding))
    row = rows["base by itself"]
    assert row.status == "fail" and "left padding" in row.advice and "KV cache" not in row.advice
    assert rows["padded = unpadded"].status == "skipped" and "base by itself" in rows["padded = unpadded"].found


def test_a_base_with_a_wrong_cache():
    row = rows_of(broken_base(later_positions_when_cached), "base by itself")["base by itself"]
    assert row.status == "fail" and "KV cache" in row.advice and "left padding" not in row.advice


def test_a_base_whose_rows_change_each_other():
    who = patient()
    who.base.model.layers[1].register_forward_hook(lambda _m, _a, out: out + out.mean(0, keepdim=True))
    row = rows_of(who, "base by itself")["base by itself"]
    assert row.status == "fail" and "Rows of a batch" in row.advice


def test_a_base_that_gives_other_numbers_each_time():
    who = patient()
    who.base.model.layers[1].register_forward_hook(lambda _m, _a, out: out + 1e-6 * torch.randn_like(out))
    assert rows_of(who, "disabled() = base")["disabled() = base"].status == "fail"


def test_a_base_that_lets_no_gradient_through():
    who = patient()
    who.base.model.layers[2].forward = torch.no_grad()(who.base.model.layers[2].forward)
    row = rows_of(who, "gradients")["gradients"]
    assert row.status == "fail" and "layers.0.output, layers.1.output" in row.found and "layers.2" not in row.found


def test_a_model_that_can_not_be_sampled_from():
    rows = rows_of(patient("mamba", state_size=4))
    assert rows["cache"].status == "fail" and "cache_params" in rows["cache"].found
    assert {rows[name].status for name in ("base by itself", "gradients", "hook = nnsight")} == {"skipped"}


# -- faults of the steering


def steered_by(cls) -> Subject:
    who = patient("gpt2")
    list(examine(who, CHECKS[:8]))
    real = who.steered
    who.__dict__["steered"] = cls(who.base, real.interventions, who.layout)
    return who


class OffInCachedDecoding(SteeredModel):
    """nnsight issue 466: the hook misses the decoded tokens."""

    def _steer_hook(self, site, intervention, *more):
        inner = super()._steer_hook(site, intervention, *more)
        return lambda module, args, output: None if output.shape[1] == 1 else inner(module, args, output)


class WrongCachedPositions(SteeredModel):
    def _arguments(self, input_ids, mask, positions):
        if mask is not None:
            positions = steered_module.positions_from_mask(mask)[:, : input_ids.shape[1]]
        return super()._arguments(input_ids, mask, positions)


class SteersPadding(SteeredModel):
    """The change at a position depends on how many columns stand before it."""

    def _steer_hook(self, site, intervention, *more):
        inner = super()._steer_hook(site, intervention, *more)

        def hook(module, args, output):
            out = inner(module, args, output)
            return out * (1 + 0.01 * torch.arange(out.shape[1])[None, :, None]) if out.shape[1] > 1 else out

        return hook


class DependsOnTheBatch(SteeredModel):
    def _steer_hook(self, site, intervention, *more):
        inner = super()._steer_hook(site, intervention, *more)
        return lambda module, args, output: inner(module, args, output) + (len(output) - 1) * torch.eye(32)[0]


class DisabledAddsIt(SteeredModel):
    def disabled(self):
        return self.applied()


class SteersTheNextBlock(SteeredModel):
    """Adds the vectors of the first and the middle block one block later."""

    def _steer_hook(self, site, intervention, *more):
        inner = super()._steer_hook(site, intervention, *more)
        return lambda module, args, output: inner(module, args, output) * 1.1


FAULTS = {
    (OffInCachedDecoding, "cached = uncached"): "KV cache",
    (OffInCachedDecoding, "generate() is steered"): "generate() runs",
    (OffInCachedDecoding, "sampling = training"): "off-policy",
    (OffInCachedDecoding, "fast sampling = training"): "off-policy",
    (WrongCachedPositions, "base by itself"): "KV cache",
    (SteersPadding, "padded = unpadded"): "left padding",
    (DependsOnTheBatch, "batch = single"): "Rows of a batch",
    (DisabledAddsIt, "disabled() = base"): "report a bug",
    (SteersTheNextBlock, "hook = nnsight"): "Two ways",
}


@pytest.mark.parametrize(("cls", "name"), FAULTS, ids=lambda value: getattr(value, "__name__", value))
def test_a_fault_fails_its_check(cls, name):
    row = rows_of(steered_by(cls), name)[name]
    assert row.status == "fail" and FAULTS[cls, name] in row.advice, row


def test_an_error_that_could_not_be_seen_is_a_failure(monkeypatch):
    monkeypatch.setattr(subject, "STRENGTH", 1e-6)
    row = rows_of(patient(), "an error would show")["an error would show"]
    assert row.status == "fail" and "float32" in row.advice


# -- structure


def test_blocks_that_can_not_be_found(monkeypatch):
    monkeypatch.setattr(layouts, "FAMILIES", {})
    who = patient()
    del who.base.model.norm
    rows = rows_of(who)
    assert rows["blocks found"].status == "fail" and "--layout.blocks" in rows["blocks found"].advice
    assert rows["hook sites"].status == rows["base by itself"].status == "skipped"


def test_where_the_blocks_come_from(monkeypatch):
    assert "row of family 'llama'" in rows_of(patient(), "blocks found")["blocks found"].found
    said = {"blocks": "model.layers", "norm": "model.norm", "unembedding": "lm_head"}
    who = Subject(tiny_model("llama", **ROOM), TOK, said)
    assert "as you said" in rows_of(who, "blocks found")["blocks found"].found
    wrong = Subject(tiny_model("llama", **ROOM), TOK, {**said, "norm": "model.layers.0.input_layernorm"})
    row = rows_of(wrong, "norm, unembedding")["norm, unembedding"]
    assert row.status == "fail" and "do not give the model's logits" in row.found
    monkeypatch.setattr(structure, "FAMILIES", {})
    assert "discovered in 'llama'" in rows_of(patient(), "blocks found")["blocks found"].found


def test_a_missing_site_is_a_note():
    row = rows_of(patient("bloom"), "hook sites")["hook sites"]
    assert row.status == "note" and row.figures["sites"] == ["output", "down_proj"] and "do not add up" in row.found
    assert rows_of(patient("mixtral"), "hook sites")["hook sites"].figures["sites"][-1] == "mlp_output"


def test_a_tokenizer_of_another_model():
    row = rows_of(patient(vocab_size=50), "tokenizer")["tokenizer"]
    assert row.status == "fail" and "the embedding has 50 rows" in row.found and "this checkpoint" in row.advice


def test_chat_templates():
    who = patient()
    assert rows_of(who, "chat template")["chat template"].status == "pass"
    who.tokenizer = tokenizer()
    who.tokenizer.chat_template = None
    row = rows_of(who, "chat template")["chat template"]
    assert row.status == "note" and "style: plain" in row.found
    who.tokenizer.chat_template = "always this"
    assert rows_of(who, "chat template")["chat template"].status == "fail"


def test_context_that_is_too_short():
    who = Subject(tiny_model("llama", **ROOM), TOK, None, Batch(prompt_tokens=200, max_tokens=200))
    row = rows_of(who, "context length")["context length"]
    assert row.status == "fail" and "Lower max_tokens to 100" in row.advice


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq, 4 bits"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes, 4 bits"),
        ({"load_in_8bit": True}, "bitsandbytes, 8 bits"),
        ({"quant_method": "awq"}, "awq"),
    ],
)
def test_quantised_weights_are_told(config, told):
    who = patient()
    who.base.config.quantization_config = config
    row = rows_of(who, "numbers")["numbers"]
    assert row.status == "note" and f"({told})" in row.found


# -- the loop


def test_a_crash_is_the_checks_failure_and_with_debug_a_traceback():
    def crash(_subject):
        raise KeyError("no\nsuch thing")

    checks = (Check("one", crash, advice="Do this."), Check("two", lambda _s: Finding("pass", "fine"), ("one",)))
    first, second = examine(patient(), checks)
    assert (first.status, first.found, first.advice) == ("fail", "KeyError: 'no\\nsuch thing'", "Do this.")
    assert second.status == "skipped" and "one" in second.found
    with pytest.raises(KeyError):
        list(examine(patient(), checks, debug=True))


def test_checks_need_only_earlier_ones():
    seen: set[str] = set()
    for check in CHECKS:
        assert set(check.needs) <= seen, check.name
        seen.add(check.name)
    assert len(seen) == len(CHECKS)


# -- the command


def run(*arguments):
    return main(["doctor", "--device", "cpu", *map(str, arguments)])


def test_command(tmp_path, capsys):
    folder = checkpoint(tmp_path / "model", max_position_embeddings=300)
    assert run("--model", folder, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "All checks passed." in printed and "hook = nnsight" in printed
    record = json.loads((tmp_path / "out" / "doctor.json").read_text())
    assert record["passed"] and [row["name"] for row in record["checks"]] == [check.name for check in CHECKS]
    assert record["command"].startswith("steerkit doctor") and record["environment"]["torch"]
    assert record["checks"][8]["figures"]["noise"]["padded"] < 1e-4


def test_command_fails_with_1_and_says_what_to_do(tmp_path, capsys):
    folder = checkpoint(tmp_path / "model")
    assert run("--model", folder, "--max_tokens", 4000) == 1
    printed = capsys.readouterr().out
    assert "1 of" in printed and "checks failed: context length" in printed and "-> Lower max_tokens" in printed
    wrong = ["--layout.blocks", "model.blocks", "--layout.norm", "model.norm", "--layout.unembedding", "lm_head"]
    assert run("--model", folder, *wrong) == 1
    assert "layout names 'model.blocks'" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nothing-here"], "nothing-here"),
        (["--model", "FOLDER", "--dtype", "float99"], "Unknown dtype"),
        (["--model", "FOLDER", "--batch", "0"], "prompts must be at least 1"),
    ],
)
def test_bad_input_is_2_and_one_line(tmp_path, capsys, arguments, words):
    folder = checkpoint(tmp_path / "model")
    assert run(*[folder if word == "FOLDER" else word for word in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("steerkit")]
    assert len(lines) == 1 and words in lines[0]


def test_debug_reaches_the_checks(tmp_path, monkeypatch):
    folder = checkpoint(tmp_path / "model")

    def crash(_subject):
        raise ZeroDivisionError

    monkeypatch.setattr("steerkit.commands.doctor.CHECKS", (Check("one", crash),))
    assert run("--model", folder) == 1
    with pytest.raises(ZeroDivisionError):
        run("--model", folder, "--debug")


def test_the_page_explains_every_check(request):
    page = (request.config.rootpath / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert [check.name for check in CHECKS if f"| {check.name} |" not in page] == []
