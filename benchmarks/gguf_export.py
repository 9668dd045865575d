"""Does llama.cpp steer by an exported control vector as steerkit does? On SmolLM2-135M-Instruct, in float32.

    python benchmarks/gguf_export.py --llama-python PYTHON --out runs/gguf_export

PYTHON is the interpreter of an environment with llama-cpp-python, numpy and gguf; docs/exporters.md shows how to make
both environments. The script writes the base as an F32 GGUF file with exactly the weights that steerkit loads, exports
a vector by ``steerkit export gguf``, and compares how the two engines' next-token log-probabilities change under it, at
each position of some prompts. As a control the same file with each direction one block too late.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np

PROMPTS = (
    "The capital of France is Paris, and the capital of Italy is",
    "Tom has 12 pens. Tom buys 5 more. Tom loses 4 pens. How many pens does Tom have now?",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Once upon a time there was a small dog who lived in a big red house near the sea.",
    "Water boils at 100 degrees Celsius because",
    "<|im_start|>user\nWhat is 7 times 8?<|im_end|>\n<|im_start|>assistant\n",
    "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer",
    "The three primary colours are red, yellow and blue. Mixing red and blue gives",
)
LAYERS = (6, 12, 18, 24, 29)


def write_f32(source: Path, target: Path) -> None:
    """The GGUF file ``source`` with the same fields and each tensor dequantised to F32."""
    reader = gguf.GGUFReader(str(source))
    architecture = reader.get_field("general.architecture")
    assert architecture is not None
    writer = gguf.GGUFWriter(str(target), architecture.contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        item = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=item)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def shifted(source: Path, target: Path) -> None:
    """The control vector with each direction one block later (the last one stays out)."""
    writer = gguf.GGUFWriter(str(target), "controlvector")
    for tensor in gguf.GGUFReader(str(source)).tensors:
        layer = int(tensor.name.rpartition(".")[2]) + 1
        if layer <= LAYERS[-1]:
            writer.add_tensor(f"direction.{layer}", np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_log_probs(job: dict) -> None:
    """In llama-cpp-python's environment: [N, V] float32 log-probabilities for each vector file, to ``job["out"]``."""
    import llama_cpp as ll

    ll.llama_backend_init()
    model = ll.llama_model_load_from_file(job["model"].encode(), ll.llama_model_default_params())
    settings = ll.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 256
    settings.n_threads = settings.n_threads_batch = job["threads"]
    settings.type_k = settings.type_v = 0  # F32: the cache is F16 by default
    settings.flash_attn_type = 0
    context = ll.llama_init_from_model(model, settings)
    width, depth = ll.llama_model_n_embd(model), ll.llama_model_n_layer(model)
    size = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))
    found = {}
    for name, path in job["vectors"].items():
        if path is None:
            data, length = None, 0
        else:
            # As llama.cpp's own loader (common_control_vector_load): direction.k is row k - 1.
            rows = np.zeros((depth, width), np.float32)
            for tensor in gguf.GGUFReader(path).tensors:
                rows[int(tensor.name.rpartition(".")[2]) - 1] += np.array(tensor.data)
            data = rows.ctypes.data_as(ll.ctypes.POINTER(ll.ctypes.c_float))
            length = rows.size
        if ll.llama_set_adapter_cvec(context, data, length, width, 1, depth):
            raise SystemExit(f"llama.cpp refuses {path}")
        parts = []
        for ids in job["prompts"]:
            ll.llama_memory_clear(ll.llama_get_memory(context), True)
            batch = ll.llama_batch_init(len(ids), 0, 1)
            batch.n_tokens = len(ids)
            for i, token in enumerate(ids):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
                batch.seq_id[i][0] = 0
            if ll.llama_decode(context, batch):
                raise SystemExit("llama_decode failed")
            rows_ = [
                np.ctypeslib.as_array(ll.llama_get_logits_ith(context, i), (size,)).copy() for i in range(len(ids))
            ]
            parts.append(np.stack(rows_))
            ll.llama_batch_free(batch)
        found[name] = log_softmax(np.concatenate(parts))
    np.savez(job["out"], **found)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """[N, V] -> [N, V] float32."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return (wide - np.log(np.exp(wide).sum(-1, keepdims=True))).astype(np.float32)


def compare(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], name: str) -> dict[str, float]:
    """How alike the changes of log-probability under vector ``name`` are; ours are always those of the right vector."""
    change, other = ours["vector"] - ours["base"], theirs[name] - theirs["base"]
    likely = ours["base"] > np.log(1e-3)
    rows = [float(np.corrcoef(a, b)[0, 1]) for a, b in zip(change, other, strict=True)]
    return {
        "correlation, all tokens": float(np.corrcoef(change.ravel(), other.ravel())[0, 1]),
        "correlation, tokens of base probability > 0.001": float(np.corrcoef(change[likely], other[likely])[0, 1]),
        "smallest correlation of a position": min(rows),
        "largest difference of a change (nats)": float(np.abs(change - other).max()),
        "root mean square change (nats)": float(np.sqrt(np.mean(change**2))),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-python", default=sys.executable, help="interpreter with llama-cpp-python")
    parser.add_argument("--out", type=Path, default=Path("runs/gguf_export"))
    parser.add_argument("--norm", type=float, default=0.1, help="of the vector, in mean residual norms of its layer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        llama_log_probs(json.loads(options.worker.read_text()))
        return 0
    return study(options)


def study(options: argparse.Namespace) -> int:
    import torch
    from steerkit_smollm2 import NAME, gguf_file

    from steerkit.cli import main as steerkit
    from steerkit.models import load_model

    torch.set_num_threads(options.threads)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    loaded = load_model(NAME, dtype="float32")
    model_file = out / "smollm2-135m-instruct.F32.gguf"
    write_f32(gguf_file(), model_file)
    same_weights(model_file, loaded.base)
    prompts = [loaded.tokenizer(text, add_special_tokens=False).input_ids for text in PROMPTS]
    vector = random_vector(loaded, prompts, options.norm, options.seed)
    vector.save_pretrained(out / "vector")
    file, late = out / "vector.gguf", out / "one_block_late.gguf"
    file.unlink(missing_ok=True)
    if code := steerkit(["export", "gguf", "--vector", str(out / "vector"), "--out", str(file)]):
        return code
    shifted(file, late)

    ours = steerkit_log_probs(loaded, vector, prompts)
    job = {
        "model": str(model_file),
        "vectors": {"base": None, "vector": str(file), "late": str(late)},
        "prompts": prompts,
        "threads": options.threads,
        "out": str(out / "llama.npz"),
    }
    (out / "job.json").write_text(json.dumps(job))
    with open(out / "llama.log", "w") as log:
        subprocess.run(
            [options.llama_python, __file__, "--worker", str(out / "job.json")], check=True, stdout=log, stderr=log
        )
    theirs = dict(np.load(out / "llama.npz"))
    report = {
        "layers": list(LAYERS),
        "norms": vector.norms(),
        "relative norm": options.norm,
        "positions": len(ours["base"]),
        "vocabulary": ours["base"].shape[1],
        "largest difference of the bases' log-probabilities (nats)": float(np.abs(ours["base"] - theirs["base"]).max()),
        "exported": compare(ours, theirs, "vector"),
        "one block late": compare(ours, theirs, "late"),
    }
    (out / "gguf_export.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    enough = report["exported"]["correlation, all tokens"] >= 0.99
    print("llama.cpp steers as steerkit does." if enough else "FAILED: the correlation is below 0.99.")
    return 0 if enough else 1


def same_weights(model_file: Path, base) -> None:
    """The F32 file holds the numbers of the checkpoint (llama.cpp permutes the rows of q and k)."""
    state = base.state_dict()
    tensors = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(str(model_file)).tensors}
    assert np.array_equal(tensors["token_embd.weight"], state["model.embed_tokens.weight"].numpy())
    names = {
        "ffn_down": "mlp.down_proj",
        "ffn_up": "mlp.up_proj",
        "attn_v": "self_attn.v_proj",
        "attn_q": "self_attn.q_proj",
    }
    for layer in range(base.config.num_hidden_layers):
        for short, name in names.items():
            there = tensors[f"blk.{layer}.{short}.weight"]
            here = state[f"model.layers.{layer}.{name}.weight"].numpy()
            same = (
                np.array_equal(there, here)
                if short != "attn_q"
                else np.array_equal(np.sort(there, 0), np.sort(here, 0))
            )
            assert same, f"{name} of layer {layer} differs"


def random_vector(loaded, prompts: list[list[int]], relative: float, seed: int):
    """Random directions at ``LAYERS``, each ``relative`` times the mean norm of the residual stream there."""
    import torch

    from steerkit.hookpoints import HookPoint
    from steerkit.models import fingerprint
    from steerkit.vectors import SteeringVector, VectorMetadata

    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        streams = [loaded.base(torch.tensor([ids]), output_hidden_states=True).hidden_states for ids in prompts]
    tensors = {}
    for layer in LAYERS:
        # Behind the first token, whose stream is many times longer than all others. hidden_states[-1] is final-normed,
        # so the last block's norm is taken from its input.
        norms = torch.cat([hidden[min(layer + 1, len(hidden) - 2)][0, 1:].norm(dim=-1) for hidden in streams])
        direction = torch.randn(loaded.base.config.hidden_size, generator=draw)
        tensors[HookPoint(layer)] = {"vector": direction * (relative * norms.mean() / direction.norm())}
    metadata = VectorMetadata(
        loaded.name, fingerprint(loaded.base), loaded.base.config.hidden_size, loaded.base.config.num_hidden_layers
    )
    return SteeringVector("static", tensors, {}, metadata)


def steerkit_log_probs(loaded, vector, prompts: list[list[int]]) -> dict[str, np.ndarray]:
    import torch

    steered = vector.steer(loaded.base, loaded.layout)
    found = {}
    with torch.no_grad():
        for name, call in (("base", loaded.base), ("vector", steered)):
            logits = [call(input_ids=torch.tensor([ids])).logits[0].numpy() for ids in prompts]
            found[name] = log_softmax(np.concatenate(logits))
    return found


if __name__ == "__main__":
    sys.exit(main())
