"""Models, vectors and texts of the path-patching tests."""

from __future__ import annotations

import torch

from steerkit.analysis import Text, make_engine
from steerkit.analysis.parts import Parts
from steerkit.analysis.patches import shared_cast
from steerkit.analysis.texts import batches
from steerkit.analysis.variants import tiled
from steerkit.analysis.work import Work
from steerkit.hookpoints import HookPoint
from steerkit.models import LoadedModel, find_layout
from steerkit.rollouts import EncodedPrompt
from steerkit.testing import tiny_model, tiny_tokenizer
from steerkit.types import Example
from steerkit.vectors import SteeringVector, VectorMetadata

TEXTS = [Text("a", (5, 6, 7, 8, 9, 11), 3), Text("b", (10, 11, 12), 2)]
FIVE = ("llama", "qwen2", "gemma2", "gpt2", "gpt_neox")
SMALL = {"max_tokens": 4, "controls": 1, "verifier": "exact", "top": 2}
LAST = HookPoint(2)


def loaded_model(family="llama", **overrides):
    base = tiny_model(family, **overrides)
    for parameter in base.parameters():  # GPT-2 and Qwen2 start with biases of zero: a bug there would not show
        if parameter.dim() == 1:
            torch.manual_seed(len(parameter))
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return LoadedModel(base, tiny_tokenizer(), find_layout(base), "tiny")


def static(layers=(1,), mask="all", seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    tensors = {HookPoint(layer): {"vector": scale * torch.randn(32, generator=generator)} for layer in layers}
    return SteeringVector("static", tensors, {}, VectorMetadata("tiny", "", 32, 3), mask)


def prompts(answer="15"):
    rows = [(5, 6, 7), (8, 9), (9, 10, 11, 12, 13), (15, 16, 5, 6)]
    return [EncodedPrompt(Example(f"p{k}", "text", answer), "text", ids) for k, ids in enumerate(rows)]


def work_of(loaded, engine, vector, encoded=()):
    return Work(loaded, {"v": vector}, list(encoded), engine, 0, 8192, Parts(None, {}))


def streams(loaded, vector, patches, engine="batched", texts=TEXTS):
    """Patch name -> text id -> [T, D] what leaves the last block, padding taken off."""
    (batch,) = batches(texts, 0, torch.device("cpu"), 10**6)
    cast = shared_cast(patches, len(texts), torch.device("cpu"), vector)
    with make_engine(engine, loaded) as running:
        hidden = running.run(
            tiled(batch, cast.rows // len(texts)), vector, [LAST], cast.edits(patches),
            steered_rows=cast.steered(patches, torch.device("cpu")), growth=cast.growth,
        )[LAST]  # fmt: skip
    named = {patch.name: roles["patched"] for patch, roles in zip(patches, cast.roles, strict=True)}
    named |= {role: cast.roles[0][role] for role in ("vanilla", "steered")}
    return {
        name: {text.id: batch.unpad(hidden[rows], k) for k, text in enumerate(batch.texts)}
        for name, rows in named.items()
    }


# -- against an independent implementation


def by_hand(block, own, other):
    """Name -> [T, D] what leaves the block, from the formulas.

    Args:
        own: [T, D] the input of the run that is patched; ``other``: of the one that the part is taken from.
    """
    q, k, v = block.qkv(block.norm(own, "attn"))
    q2, k2, v2 = block.qkv(block.norm(other, "attn"))
    attended, other_attended = block.attention(own), block.attention(other)
    added = block.mlp(block.norm(own + attended, "mlp"))
    other_added = block.mlp(block.norm(other + other_attended, "mlp"))

    def with_attention(a):
        return own + a + block.mlp(block.norm(own + a, "mlp"))

    found = {
        "attn": with_attention(other_attended),
        "q": with_attention(block.out(block.mixed(q2, k, v))),
        "k": with_attention(block.out(block.mixed(q, k2, v))),
        "v": with_attention(block.out(block.mixed(q, k, v2))),
        "mlp": own + attended + other_added,
        "mlp-direct": own + attended + block.mlp(block.norm(other + attended, "mlp")),
        "residual": other + attended + added,
        "layer": own + other_attended + other_added,
    }
    mixed, other_mixed = block.mixed(q, k, v), block.mixed(q2, k2, v2)
    for head in range(block.heads):
        one = slice(head * block.width, (head + 1) * block.width)
        patched = mixed.clone()
        patched[:, one] = other_mixed[:, one]
        found[f"head {head}"] = with_attention(block.out(patched))
    for group in range(block.groups):
        one = slice(group * block.width, (group + 1) * block.width)
        k3, v3 = k.clone(), v.clone()
        k3[:, one], v3[:, one] = k2[:, one], v2[:, one]
        found[f"group {group}"] = with_attention(block.out(block.mixed(q, k3, v3)))
    return found


def stream_into(loaded, layer, text, added=None):
    """[T, D] what enters a block, by a plain hook on an unpadded text; ``added`` leaves the block before."""
    seen = []
    block = loaded.layout.block_list(loaded.base)[layer]
    handle = block.register_forward_pre_hook(lambda _m, args, kwargs: seen.append((args or kwargs["hidden_states"])[0]),
                                             with_kwargs=True)  # fmt: skip
    loaded.base(torch.tensor([text.ids]), use_cache=False)
    handle.remove()
    return seen[0][0] + (0 if added is None else added)


def one_reader(head=2, layer=2):
    """A model in which the vector's direction is read by one head's values of the last block and by nothing else.

    Dimension 30 holds a constant, dimension 31 nothing; the vector moves the one to the other, so the norm that all
    modules read through stays what it was.
    """
    loaded = loaded_model(num_key_value_heads=4)
    base = loaded.base
    free = slice(30, 32)
    with torch.no_grad():
        base.model.embed_tokens.weight[:, 30], base.model.embed_tokens.weight[:, 31] = 2.0, 0.0
        for block in base.model.layers:
            for projection in (block.self_attn.o_proj, block.mlp.down_proj):
                projection.weight[free] = 0.0
            for projection in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj,
                               block.mlp.gate_proj, block.mlp.up_proj):  # fmt: skip
                projection.weight[:, free] = 0.0
            block.input_layernorm.weight.fill_(1.0)
            block.post_attention_layernorm.weight.fill_(1.0)
        base.model.norm.weight.fill_(1.0)
        base.lm_head.weight[:, free] = 0.0
        width = 8
        base.model.layers[layer].self_attn.v_proj.weight[head * width : (head + 1) * width, 31] = 3.0
        base.model.layers[layer].self_attn.o_proj.weight[:30, head * width : (head + 1) * width] *= 5.0
    direction = torch.zeros(32)
    direction[30], direction[31] = -2.0, 2.0
    return loaded, SteeringVector("static", {HookPoint(1): {"vector": direction}}, {},
                                  VectorMetadata("tiny", "", 32, 3))  # fmt: skip
