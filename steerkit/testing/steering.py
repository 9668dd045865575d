"""Contracts that any intervention and any steered model must keep; for the core's tests and for plugin authors.

    from steerkit.testing import check_intervention
    def test_mine(): check_intervention(MyIntervention, rank=2)

Each check raises AssertionError with what it expected and what it got.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from steerkit.hookpoints import HookPoint
from steerkit.interventions.base import Intervention
from steerkit.models.steered import SteeredModel

TOLERANCE = 1e-5
"""Largest difference between two ways to compute the same fp32 logits (those of tiny models are about 1)."""
FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "gpt2", "gpt_neox", "phi3")


def tiny_model(family: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random model of ``family``: 3 blocks, width 32, vocabulary 97, fp32, eval; the same for the same seed.

    Weights are drawn far larger than a fresh model's, so that attention is not uniform and a wrong position shows.

    Args:
        overrides: config settings, e.g. ``mlp_bias=True``.
    """
    shape: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "tie_word_embeddings": False,
    }
    if family != "gpt2":  # its inner width is 4 D by its own rule
        shape["intermediate_size"] = 64
    if family not in ("gpt2", "gpt_neox"):
        shape["num_key_value_heads"] = 2
    if family in ("gemma2", "qwen3"):
        shape["head_dim"] = 8
    config = AutoConfig.for_model(family, **{**shape, **overrides})
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def randomize(intervention: Intervention, seed: int = 0, std: float = 0.5) -> Intervention:
    """Fill its parameters with noise: an untrained intervention is the identity and would show nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in intervention.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return intervention


def check_intervention(cls: type[Intervention], d_model: int = 16, **settings: Any) -> None:
    """The intervention contract (``interventions/base.py``): identity at start, fp32, local in b and t, saved whole."""
    points = [HookPoint(0), HookPoint(2)]
    built = cls.build(points, d_model, **settings)
    assert sorted(built) == points, f"build: expected an intervention at each of {points}, got {sorted(built)}"
    item = built[points[0]]
    parameters = list(item.parameters())
    assert parameters, f"{cls.__name__} has no parameters: nothing can be trained"
    dtypes = {p.dtype for p in parameters}
    assert dtypes == {torch.float32}, f"parameters must be fp32, got {dtypes}"
    hidden = torch.randn(2, 5, d_model, generator=torch.Generator().manual_seed(1))
    assert torch.equal(item(hidden), hidden), "an untrained intervention must be the identity"

    randomize(item)
    before = [p.detach().clone() for p in parameters]
    item.to(torch.bfloat16)
    same = all(torch.equal(a, b) for a, b in zip(before, item.parameters(), strict=True))
    assert same, "parameters must stay fp32, unrounded, through .to(bfloat16)"
    delta = item.delta(hidden)
    assert torch.broadcast_shapes(delta.shape, hidden.shape) == hidden.shape, (
        f"delta must broadcast to {list(hidden.shape)}, got {list(delta.shape)}"
    )
    steered = item(hidden)
    assert not torch.allclose(steered, hidden), "with random parameters the stream must change"
    half = item(hidden.bfloat16())
    assert half.dtype == torch.bfloat16, f"expected the stream's dtype bfloat16, got {half.dtype}"
    for b, t in ((0, 0), (1, 3)):
        alone = item(hidden[b : b + 1, t : t + 1])
        _close(alone[0, 0], steered[b, t], f"delta must depend on its own position alone (row {b}, position {t})")
    mask = torch.tensor([[True, False, True, False, False], [False] * 5])
    masked = item(hidden, mask)
    assert torch.equal(masked[~mask], hidden[~mask]), "positions that are not steered must stay bit-identical"
    assert torch.equal(masked[mask], steered[mask]), "steered positions must not depend on the mask of others"

    item(hidden).square().sum().backward()
    stuck = [name for name, p in item.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not stuck, f"no gradient reaches {stuck}"
    again = cls.build(points, d_model, **item.settings)[points[0]]
    again.load_state_dict(item.state_dict())
    assert torch.equal(again(hidden), steered), "build(**settings) and load_state_dict must give the intervention back"


@torch.no_grad()
def check_model_contract(steered: SteeredModel, tolerance: float = TOLERANCE) -> None:
    """What a steered model must keep, whatever the way that it is run. Its interventions must not be zero."""
    vocabulary = steered.base.get_input_embeddings().weight.shape[0]
    ids = torch.randint(3, int(vocabulary), (3, 9), generator=torch.Generator().manual_seed(0)).to(steered.device)
    ones = torch.ones_like(ids)
    hooks = _hook_count(steered)
    full = steered(ids, ones).logits
    plain = steered.base(input_ids=ids, attention_mask=ones).logits

    # The checks below must be able to fail: both kinds of error move the logits by far more than the tolerance.
    _apart(full, plain, tolerance, "steering must change the logits")
    _apart(steered(ids.roll(1, 1), ones).logits, full, tolerance, "a shift of the input by one must change the logits")
    with steered.disabled():
        assert torch.equal(steered(ids, ones).logits, plain), "disabled() must give the base's logits bit for bit"
    with steered.applied(), steered.applied():
        assert torch.equal(steered(ids, ones).logits, full), "nested applied() must steer once"
    _close(steered.logits(steered.hidden_states(ids, ones)), full, "logits(hidden_states()) = forward", tolerance)
    for row in range(len(ids)):
        _close(steered(ids[row : row + 1]).logits[0], full[row], f"batch = single, row {row}", tolerance)
    _check_left_padding(steered, ids, full, tolerance)
    _check_cached(steered, ids, full, tolerance)
    _check_positions(steered, ids, full, plain, tolerance)
    assert _hook_count(steered) == hooks, "hooks must not outlive their scope"


def _check_left_padding(steered: SteeredModel, ids: Tensor, full: Tensor, tolerance: float) -> None:
    padded, mask = ids.clone(), torch.ones_like(ids)
    for row in range(len(ids)):
        pad = 2 * row
        padded[row] = torch.cat([torch.zeros_like(ids[row, :pad]), ids[row, : ids.shape[1] - pad]])
        mask[row, :pad] = 0
    logits = steered(padded, mask).logits
    for row in range(len(ids)):
        pad = 2 * row
        _close(logits[row, pad:], full[row, : ids.shape[1] - pad], f"left-padded by {pad} = unpadded", tolerance)


def _check_cached(steered: SteeredModel, ids: Tensor, full: Tensor, tolerance: float) -> None:
    """Prefill of 4, then token by token; then ``base.generate``; the counter must have seen each of them."""
    rows, length, layers = ids.shape[0], ids.shape[1], len(steered.points)
    steered.counter.reset()
    ones = torch.ones_like(ids)
    output = steered(ids[:, :4], ones[:, :4], use_cache=True)
    _close(output.logits, full[:, :4], "prefill = full pass", tolerance)
    for t in range(4, length):
        output = steered(ids[:, t : t + 1], ones[:, : t + 1], past_key_values=output.past_key_values, use_cache=True)
        _close(output.logits[:, 0], full[:, t], f"cached decoding = full pass, position {t}", tolerance)
    _check_counter(steered, calls=length - 3, tokens=rows * length, layers=layers)

    steered.counter.reset()
    with steered.applied():
        made = steered.base.generate(
            input_ids=ids,
            attention_mask=ones,
            max_new_tokens=4,
            min_new_tokens=4,
            do_sample=False,
            use_cache=True,
            output_logits=True,
            return_dict_in_generate=True,
        )
    _check_counter(steered, calls=4, tokens=rows * (length + 3), layers=layers)
    again = steered(made.sequences, torch.ones_like(made.sequences)).logits[:, length - 1 : -1]
    _close(torch.stack(made.logits, 1), again, "logits of generate() = full pass", tolerance)


def _check_positions(steered: SteeredModel, ids: Tensor, full: Tensor, plain: Tensor, tolerance: float) -> None:
    """Steering position t alone changes the logits at t (not only later ones), and none before."""
    for t in (0, 4, ids.shape[1] - 1):
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[:, t] = True
        steered.counter.reset()
        with steered.applied(mask):
            logits = steered(ids).logits
        _close(logits[:, :t], plain[:, :t], f"position {t} steered: earlier logits are the base's", tolerance)
        _apart(logits[:, t], plain[:, t], tolerance, f"position {t} steered: its own logits must change")
        _check_counter(steered, calls=1, tokens=len(ids), layers=len(steered.points))
    with steered.applied(torch.ones_like(ids, dtype=torch.bool)):
        _close(steered(ids).logits, full, "a mask of all positions = no mask", tolerance)


def _check_counter(steered: SteeredModel, calls: int, tokens: int, layers: int) -> None:
    counter = steered.counter
    got = (counter.forward_calls, counter.tokens, counter.layers, counter.total)
    expected = (calls, tokens, layers, tokens * layers)
    assert got == expected, f"counter (calls, tokens, layers, total): expected {expected}, got {got}"
    assert counter.complete, f"counter says that steering was not applied everywhere: {counter}"


def _hook_count(steered: SteeredModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in steered.base.modules())


def _close(got: Tensor, expected: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    assert got.shape == expected.shape, f"{what}: expected shape {list(expected.shape)}, got {list(got.shape)}"
    worst = float((got - expected).detach().abs().max()) if got.numel() else 0.0
    assert worst <= tolerance, f"{what}: expected a difference of at most {tolerance:g}, got {worst:g}"  # NaN fails


def _apart(got: Tensor, reference: Tensor, tolerance: float, what: str) -> None:
    """Every row differs by more than 100 times the tolerance."""
    least = float((got - reference).abs().flatten(1).amax(1).min())
    assert least > 100 * tolerance, (
        f"{what}: expected a difference above {100 * tolerance:g} in each row, got {least:g}"
    )
