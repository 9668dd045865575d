"""Two studies of all layers, defined once and run twice: by ``steerkit.analysis`` here, in plain nnsight beside it."""

from __future__ import annotations

import torch
from torch import Tensor
from workload import Workload

from steerkit.analysis import make_engine
from steerkit.analysis.readout import Readout
from steerkit.analysis.texts import Batch, Text
from steerkit.analysis.variants import Variant, run_variants
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Static
from steerkit.vectors import SteeringVector


class Study:
    """Texts of one length and a vector a layer.

    Attributes:
        texts: [N, T] ids: prompts (the longer ones cut at the front) and a completion of random tokens.
        vectors: [L, D], a tenth as long as the residual stream is at the layer.
        positions: the places that predict the completion.
        targets: [N, C] its tokens.
    """

    def __init__(self, work: Workload, completion: int) -> None:
        self.loaded = work.loaded
        generator = torch.Generator().manual_seed(0)
        shortest = min(len(prompt.ids) for prompt in work.prompts)
        vocabulary = work.loaded.base.config.vocab_size
        made = torch.randint(vocabulary, (len(work.prompts), completion), generator=generator)
        self.texts = torch.cat([torch.tensor([prompt.ids[-shortest:] for prompt in work.prompts]), made], dim=1)
        self.positions = slice(shortest - 1, -1)
        self.targets = made
        mask = torch.ones_like(self.texts)
        self.inputs = {"input_ids": self.texts, "attention_mask": mask, "position_ids": mask.cumsum(-1) - 1}
        self.n_layers = work.loaded.base.config.num_hidden_layers
        with torch.no_grad():
            streams = work.loaded.base(**self.inputs, output_hidden_states=True).hidden_states[1:]
        width = work.loaded.base.config.hidden_size
        drawn = torch.randn(self.n_layers, width, generator=generator)
        sizes = torch.stack([stream.norm(dim=-1).mean() for stream in streams])
        self.vectors = 0.1 * sizes[:, None] * drawn / drawn.norm(dim=-1, keepdim=True)
        rows = tuple(Text(str(n), tuple(ids), shortest) for n, ids in enumerate(self.texts.tolist()))
        self.batch = Batch(rows, tuple(range(len(rows))), self.texts, mask)
        self.engine = make_engine("batched", work.loaded)
        self.readout = Readout(work.loaded)

    def kept(self, stream: Tensor) -> Tensor:
        """[B, T, D] -> [B, C, D] at the positions that are read."""
        return stream[:, self.positions].contiguous()

    def vector(self, layers: list[int]) -> SteeringVector:
        """The static vectors of some layers."""
        points = [HookPoint(layer) for layer in layers]
        built = Static.build(points, self.vectors.shape[1])
        with torch.no_grad():
            for point, item in built.items():
                next(iter(item.parameters())).copy_(self.vectors[point.layer])
        return SteeringVector.from_interventions("static", built)


@torch.no_grad()
def lens(study: Study) -> Tensor:
    """[L + 1, L, N, C] the lens's log-probability of each completion token at each layer: of the base, then of each
    model that is steered at one layer.
    """
    points = [HookPoint(layer) for layer in range(study.n_layers)]
    variants = [Variant(), *(Variant(study.vector([layer])) for layer in range(study.n_layers))]
    found = run_variants(study.engine, study.batch, variants, points, keep=study.kept)
    of_layers = []
    for point in points:
        streams, which = found.distinct(point)
        of_layers.append(study.readout.log_probs(streams, study.targets)[which])
    return torch.stack(of_layers, dim=1)


@torch.no_grad()
def patching(study: Study) -> Tensor:
    """[L, 2, N, C] KL(steered || patched) (nats) at the completion's tokens: the model steered at every layer, and the
    same with the output of one layer's attention, or MLP, of the unsteered run.
    """
    sites = [HookPoint(layer, site) for layer in range(study.n_layers) for site in ("attn_output", "mlp_output")]
    vanilla = study.engine.run(study.batch, None, sites)
    vector, last = study.vector(list(range(study.n_layers))), HookPoint(study.n_layers - 1)
    put = [Variant(vector, {site: lambda _now, value=vanilla[site]: value}) for site in sites]
    found = run_variants(study.engine, study.batch, [Variant(vector), *put], [last], keep=study.kept)
    steered = torch.log_softmax(study.readout.logits(found.of(0, last)), -1).flatten(0, 1)
    gaps = [study.readout.divergence(steered, found.of(k, last).flatten(0, 1)) for k in range(1, len(put) + 1)]
    return torch.stack(gaps).view(study.n_layers, 2, len(study.targets), -1)
