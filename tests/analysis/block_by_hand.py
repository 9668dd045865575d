"""One transformer block of Llama, Qwen2 and GPT-2 in plain torch, part by part: the independent truth of patching.

Written from the papers' formulas and the checkpoint's weights; no forward of a model or module is called, but for
weights, norms' epsilons and the final unembedding.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


class Block:
    """The parts of block ``layer`` of a model; texts are unpadded, [T, D]."""

    def __init__(self, base, layer):
        self.config, self.family = base.config, base.config.model_type
        self.block = base.transformer.h[layer] if self.family == "gpt2" else base.model.layers[layer]
        self.heads = self.config.num_attention_heads
        self.groups = getattr(self.config, "num_key_value_heads", None) or self.heads
        self.width = getattr(self.config, "head_dim", None) or self.config.hidden_size // self.heads

    def norm(self, x, where):
        """``attn`` or ``mlp``: what the module is given."""
        if self.family == "gpt2":
            norm = self.block.ln_1 if where == "attn" else self.block.ln_2
            mean = x.mean(-1, keepdim=True)
            spread = ((x - mean) ** 2).mean(-1, keepdim=True)
            return (x - mean) / torch.sqrt(spread + norm.eps) * norm.weight + norm.bias
        norm = self.block.input_layernorm if where == "attn" else self.block.post_attention_layernorm
        return x / torch.sqrt((x**2).mean(-1, keepdim=True) + norm.variance_epsilon) * norm.weight

    def qkv(self, normed):
        """q, k, v before rotation, [T, heads x width]."""
        if self.family == "gpt2":
            c = self.block.attn.c_attn
            return (normed @ c.weight + c.bias).split(self.config.hidden_size, dim=-1)
        a = self.block.self_attn
        return tuple(F.linear(normed, p.weight, p.bias) for p in (a.q_proj, a.k_proj, a.v_proj))

    def pattern(self, q, k):
        """[heads, T, T] attention weights."""
        t = len(q)
        q = q.view(t, self.heads, self.width).transpose(0, 1)
        k = k.view(t, self.groups, self.width).transpose(0, 1)
        if self.family != "gpt2":
            q, k = self.rotated(q), self.rotated(k)
        k = k.repeat_interleave(self.heads // self.groups, dim=0)
        scores = q @ k.transpose(1, 2) / math.sqrt(self.width)
        later = torch.ones(t, t, dtype=torch.bool).triu(1)
        return scores.masked_fill(later, float("-inf")).softmax(-1)

    def rotated(self, x):
        """Rotary embedding of [heads, T, width] (Su et al., 2021), in the half-split form of these checkpoints."""
        theta = self.config.rope_parameters["rope_theta"]
        half = self.width // 2
        rates = theta ** (-torch.arange(half, dtype=torch.float32) / half)
        angles = torch.arange(x.shape[1], dtype=torch.float32)[:, None] * rates
        first, second = x[..., :half], x[..., half:]
        turned = (first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin())
        return torch.cat(turned, dim=-1)

    def mixed(self, q, k, v):
        """The heads' results side by side, [T, heads x width]."""
        v = v.view(len(v), self.groups, self.width).transpose(0, 1)
        v = v.repeat_interleave(self.heads // self.groups, dim=0)
        return (self.pattern(q, k) @ v).transpose(0, 1).reshape(len(q), -1)

    def out(self, heads):
        """What attention adds."""
        if self.family == "gpt2":
            return heads @ self.block.attn.c_proj.weight + self.block.attn.c_proj.bias
        return F.linear(heads, self.block.self_attn.o_proj.weight, self.block.self_attn.o_proj.bias)

    def mlp(self, normed):
        """What the MLP adds."""
        m = self.block.mlp
        if self.family == "gpt2":
            x = normed @ m.c_fc.weight + m.c_fc.bias
            x = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
            return x @ m.c_proj.weight + m.c_proj.bias
        gate, up = F.linear(normed, m.gate_proj.weight), F.linear(normed, m.up_proj.weight)
        return F.linear(gate * torch.sigmoid(gate) * up, m.down_proj.weight)

    def attention(self, x):
        return self.out(self.mixed(*self.qkv(self.norm(x, "attn"))))

    def run(self, x):
        attended = self.attention(x)
        return x + attended + self.mlp(self.norm(x + attended, "mlp"))
