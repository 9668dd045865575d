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

from steerkit.hookpoints import SITES, HookPoint
from steerkit.interventions.base import Intervention
from steerkit.models.steered import SteeredModel
from steerkit.testing.equalities import cached, generated, left_padded, single_rows
from steerkit.testing.families import tiny_settings

TOLERANCE = 1e-5
"""Largest difference between two ways to compute the same fp32 logits (those of tiny models are about 1)."""
FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "gpt2", "gpt_neox", "phi3")


def tiny_model(family: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random model of ``family``: 3 blocks, width 32, vocabulary 97, fp32, eval; the same for the same seed.

    Weights are drawn far larger than a fresh model's, so that attention is not uniform and a wrong position shows.

    Args:
        overrides: config settings, e.g. ``mlp_bias=True``.
    """
    config = AutoConfig.for_model(family, **tiny_settings(family, **overrides))
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
    """The intervention contract (``interventions/base.py``): identity at start, fp32, local in b and t, saved whole.

    Args:
        settings: those of the intervention; what it ``needs`` of a base model is filled in.
    """
    unknown = [site for site in cls.sites if site not in SITES]
    assert cls.sites and not unknown, f"sites must name one or more of {', '.join(SITES)}, got {cls.sites}"
    settings = {**dict.fromkeys(cls.needs, d_model + 8), **settings}
    points = [HookPoint(0, cls.sites[0]), HookPoint(2, cls.sites[0])]
    built = cls.build(points, d_model, **settings)
    assert sorted(built) == points, f"build: expected an intervention at each of {points}, got {sorted(built)}"
    item = built[points[0]]
    parameters = list(item.parameters())
    assert parameters, f"{cls.__name__} has no parameters: nothing can be trained"
    dtypes = {p.dtype for p in parameters}
    assert dtypes == {torch.float32}, f"parameters must be fp32, got {dtypes}"
    noise = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 5, d_model, generator=noise)
    read = torch.randn(2, 5, item.settings["d_inner"], generator=noise) if cls.reads == "module_input" else hidden
    assert torch.equal(item(hidden, None, read), hidden), "an untrained intervention must be the identity"

    randomize(item)
    before = [p.detach().clone() for p in parameters]
    item.to(torch.bfloat16)
    same = all(torch.equal(a, b) for a, b in zip(before, item.parameters(), strict=True))
    assert same, "parameters must stay fp32, unrounded, through .to(bfloat16)"
    delta = item.delta(read)
    assert torch.broadcast_shapes(delta.shape, hidden.shape) == hidden.shape, (
        f"delta must broadcast to {list(hidden.shape)}, got {list(delta.shape)}"
    )
    steered = item(hidden, None, read)
    assert not torch.allclose(steered, hidden), "with random parameters the stream must change"
    half = item(hidden.bfloat16(), None, read.bfloat16())
    assert half.dtype == torch.bfloat16, f"expected the stream's dtype bfloat16, got {half.dtype}"
    for b, t in ((0, 0), (1, 3)):
        place = (slice(b, b + 1), slice(t, t + 1))
        alone = item(hidden[place], None, read[place])
        _close(alone[0, 0], steered[b, t], f"delta must depend on its own position alone (row {b}, position {t})")
    mask = torch.tensor([[True, False, True, False, False], [False] * 5])
    masked = item(hidden, mask, read)
    assert torch.equal(masked[~mask], hidden[~mask]), "positions that are not steered must stay bit-identical"
    assert torch.equal(masked[mask], steered[mask]), "steered positions must not depend on the mask of others"

    _check_linear(cls, item, hidden, read)
    item(hidden, None, read).square().sum().backward()
    stuck = [name for name, p in item.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not stuck, f"no gradient reaches {stuck}"
    again = cls.build(points, d_model, **item.settings)[points[0]]
    again.load_state_dict(item.state_dict())
    assert torch.equal(again(hidden, None, read), steered), (
        "build(**settings) and load_state_dict must give the intervention back"
    )


def _check_linear(cls: type[Intervention], item: Intervention, hidden: Tensor, read: Tensor) -> None:
    """``constant`` and ``scale_by`` are what vector algebra rests on."""
    with torch.no_grad():
        delta = item.delta(read).expand_as(hidden).clone()
        if cls.constant:
            _close(delta, delta[:1, :1].expand_as(delta), "constant is True: delta must be the same at every position")
        if cls.scale_by:
            named = dict(item.named_parameters())
            missing = [name for name in cls.scale_by if name not in named]
            assert not missing, f"scale_by names {missing}, its parameters are {sorted(named)}"
            before = {name: named[name].clone() for name in cls.scale_by}
            for name in cls.scale_by:
                named[name].mul_(-3.0)
            _close(item.delta(read).expand_as(hidden), -3.0 * delta, "scale_by: -3 times these gives -3 times delta")
            for name in cls.scale_by:
                named[name].copy_(before[name])


@torch.no_grad()
def check_model_contract(steered: SteeredModel, tolerance: float = TOLERANCE) -> None:
    """What a steered model must keep, whatever the way that it is run. Its interventions must not be zero."""
    vocabulary = next(steered.base.get_input_embeddings().parameters()).shape[0]
    ids = torch.randint(3, vocabulary, (3, 9), generator=torch.Generator().manual_seed(0)).to(steered.device)
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
    for what, got, expected in (*single_rows(steered, ids, full), *left_padded(steered, ids, full)):
        _close(got, expected, what, tolerance)
    rows, length, layers = *ids.shape, len(steered.points)
    steered.counter.reset()
    for what, got, expected in cached(steered, ids, full):
        _close(got, expected, what, tolerance)
    _check_counter(steered, calls=length - 3, tokens=rows * length, layers=layers)
    for what, got, expected in generated(steered, ids):
        _check_counter(steered, calls=4, tokens=rows * (length + 3), layers=layers)
        _close(got, expected, what, tolerance)
    _check_positions(steered, ids, full, plain, tolerance)
    assert _hook_count(steered) == hooks, "hooks must not outlive their scope"


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
