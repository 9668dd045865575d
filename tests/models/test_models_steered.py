from __future__ import annotations

import pytest
import torch
from torch import nn

from steerkit.errors import SteerkitError, VectorError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Static
from steerkit.models import SteeredModel
from steerkit.testing import randomize, tiny_model

IDS = torch.arange(3, 13)[None]


@pytest.fixture
def model():
    items = Static.build([HookPoint(2), HookPoint(0)], 32)
    for item in items.values():
        randomize(item)
    return SteeredModel(tiny_model("llama"), items)


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.base.modules())


def test_properties(model):
    assert (model.d_model, model.n_layers, model.dtype) == (32, 3, torch.float32)
    assert model.device == torch.device("cpu")
    assert model.points == (HookPoint(0), HookPoint(2))
    assert list(model.interventions) == [HookPoint(0), HookPoint(2)]
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert names == ["steering.layers_0_output.vector", "steering.layers_2_output.vector"]


def test_base_stays_in_eval_and_frozen(model):
    model.train()
    assert model.training and model.steering.training
    assert not any(m.training for m in model.base.modules())
    model(IDS).logits.sum().backward()
    assert all(p.grad is None for p in model.base.parameters())
    assert all(item.vector.grad.abs().sum() > 0 for item in model.interventions.values())


def test_nothing_below_the_lowest_steered_layer_is_on_the_graph():
    model = SteeredModel(tiny_model("llama"), Static.build([HookPoint(1)], 32))
    seen = {}
    for i, block in enumerate(model.base.model.layers):
        block.register_forward_hook(lambda m, a, out, i=i: seen.update({i: out.requires_grad}))
    model(IDS)
    # The block's own hooks run first, so block 1 is seen before steering.
    assert seen == {0: False, 1: False, 2: True}


def test_hooks_are_removed_after_an_exception(model):
    with pytest.raises(RuntimeError, match="boom"), model.applied():
        assert hooks(model) == 3
        raise RuntimeError("boom")
    assert hooks(model) == 0
    model.base.model.norm.register_forward_hook(lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(IDS)
    assert hooks(model) == 1  # the test's own
    assert model._scopes == []


def test_a_failed_scope_leaves_the_outer_one_in_place(model):
    expected = model(IDS).logits
    with model.applied():
        with pytest.raises(ZeroDivisionError), model.disabled():
            raise ZeroDivisionError
        assert torch.equal(model.base(IDS).logits, expected)


def test_innermost_scope_decides(model):
    steered, base = model(IDS).logits, model.base(IDS).logits
    mask = torch.zeros_like(IDS, dtype=torch.bool)
    with model.applied(mask):
        assert torch.equal(model(IDS).logits, base)
        with model.applied():
            assert torch.equal(model.base(IDS).logits, steered)
            with model.disabled():
                assert hooks(model) == 0
                assert torch.equal(model(IDS).logits, base)
            assert torch.equal(model(IDS).logits, steered)
        assert torch.equal(model(IDS).logits, base)
    assert not torch.equal(steered, base)


def test_zero_vectors_are_the_base():
    model = SteeredModel(tiny_model("gpt2"), Static.build([HookPoint(i) for i in range(3)], 32))
    assert torch.equal(model(IDS).logits, model.base(IDS).logits)


def test_no_interventions():
    model = SteeredModel(tiny_model("gpt2"))
    assert model.points == () and torch.equal(model(IDS).logits, model.base(IDS).logits)
    assert model.counter.complete


@pytest.mark.parametrize("mask", [torch.ones(1, 4, dtype=torch.bool), torch.ones(2, 10, dtype=torch.bool)])
def test_mask_of_another_shape(model, mask):
    with model.applied(mask), pytest.raises(SteerkitError, match=r"layers.0.output: positions is .*its own mask"):
        model(IDS)


@pytest.mark.parametrize("mask", [torch.ones(1, 10), torch.ones(10, dtype=torch.bool)])
def test_mask_must_be_bool_and_two_dimensional(model, mask):
    with pytest.raises(SteerkitError, match="bool tensor"), model.applied(mask):
        pass


def test_width_and_range_are_checked():
    with pytest.raises(VectorError, match=r"expected width 32 .*got 31"):
        SteeredModel(tiny_model("gpt2"), Static.build([HookPoint(0)], 31))
    with pytest.raises(VectorError, match=r"layers.3.output is outside the model: it has layers 0 to 2"):
        SteeredModel(tiny_model("gpt2"), Static.build([HookPoint(3)], 32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_base(dtype):
    model = SteeredModel(tiny_model("llama").to(dtype), Static.build([HookPoint(1)], 32))
    randomize(model.interventions[HookPoint(1)])
    before = model.interventions[HookPoint(1)].vector.detach().clone()
    model = model.to(dtype)  # as Lightning's bf16-true does
    assert model.dtype == dtype and torch.equal(model.interventions[HookPoint(1)].vector, before)
    assert model(IDS).logits.dtype == dtype
    hidden = model.hidden_states(IDS)
    torch.testing.assert_close(model.logits(hidden), model(IDS).logits)
    hidden.float().sum().backward()
    assert model.interventions[HookPoint(1)].vector.grad.dtype == torch.float32


def test_hidden_states_run_no_unembedding(model):
    model.base.lm_head.register_forward_hook(lambda *a: pytest.fail("the unembedding was run"))
    assert model.hidden_states(IDS).shape == (1, 10, 32)


def test_blocks_that_return_tuples(model):
    class Wrapped(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, *args, **kwargs):
            return (self.block(*args, **kwargs), "weights")

    class Unwrapped(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, *args, **kwargs):
            output = self.block(*args, **kwargs)
            assert output[1] == "weights"
            return output[0]

    expected = model(IDS).logits
    wrapped = nn.ModuleList([Wrapped(block) for block in model.base.model.layers])
    model.base.model.layers = nn.ModuleList([Unwrapped(w) for w in wrapped])
    model.base.wrapped = wrapped
    said = {"blocks": "wrapped", "norm": "model.norm", "unembedding": "lm_head"}
    again = SteeredModel(model.base, model.interventions, said)
    assert torch.equal(again(IDS).logits, expected)


def test_counter_reset_and_complete(model):
    model(IDS)
    assert (model.counter.forward_calls, model.counter.tokens, model.counter.total) == (1, 10, 20)
    with model.disabled():
        model(IDS)
    assert model.counter.total == 20 and model.counter.complete
    model.counter.steered(-1)
    assert not model.counter.complete
    model.counter.reset()
    assert (model.counter.forward_calls, model.counter.tokens, model.counter.total, model.counter.layers) == (
        0,
        0,
        0,
        2,
    )
