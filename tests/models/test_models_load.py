from __future__ import annotations

import json
import shutil

import pytest
import torch
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from steerkit import registry
from steerkit.errors import ModelError
from steerkit.models import fingerprint, load_model
from steerkit.models import load as loading
from steerkit.testing import tiny_model


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tiny_model("llama").save_pretrained(folder)
    plain = Tokenizer(
        models.WordLevel({"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, 97)}}, unk_token="<pad>")
    )
    PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<eos>", padding_side="right").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


@pytest.fixture
def offline(monkeypatch):
    """No hub, whatever the machine: each request fails at once as it does without a network."""

    def refuse(*args, **kwargs):
        raise ConnectionError("no route to the hub\nsecond line")

    monkeypatch.setattr(HfApi, "model_info", refuse)


def edit(folder, name, **changes):
    path = folder / name
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, **changes}))


def test_local_folder(folder):
    loaded = load_model(str(folder))
    assert loaded.name == str(folder) and loaded.layout.blocks == "model.layers"
    assert not loaded.base.training and loaded.base.dtype == torch.float32
    assert loaded.tokenizer.pad_token == "<eos>" and loaded.tokenizer.padding_side == "left"
    ids = torch.arange(3, 9)[None]
    assert torch.equal(loaded.base(ids).logits, tiny_model("llama")(ids).logits)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_dtype_and_device(folder, dtype):
    assert load_model(str(folder), dtype=dtype, device="cpu").base.dtype == torch.bfloat16


def test_unknown_dtype(folder):
    with pytest.raises(ModelError, match="Unknown dtype 'float99'"):
        load_model(str(folder), dtype="float99")


def test_function_spec_and_plugin_name(folder, monkeypatch, tmp_path):
    (tmp_path / "mine.py").write_text(f"def model():\n    return {str(folder)!r}\n")
    assert load_model(f"{tmp_path}/mine.py:model").name == f"{tmp_path}/mine.py:model"
    entry = registry.Entry("models", "tiny-test", "x:y", "steerkit", "0.1")
    monkeypatch.setattr(registry, "entries", lambda kind: [entry])
    monkeypatch.setattr(registry, "resolve", lambda kind, spec: lambda: str(folder))
    assert load_model("tiny-test").name == "tiny-test"


def test_typo_names_the_nearest_and_stays_off_the_network(monkeypatch):
    monkeypatch.setattr(HfApi, "model_info", lambda *a, **k: pytest.fail("asked the hub"))
    entry = registry.Entry("models", "tiny-reasoner", "x:y", "steerkit", "0.1")
    monkeypatch.setattr(registry, "entries", lambda kind: [entry])
    with pytest.raises(
        ModelError, match=r"Did you mean 'tiny-reasoner'\? Installed: tiny-reasoner\. .*folder .*hub id"
    ):
        load_model("tiny-resoner")
    with pytest.raises(ModelError, match="no such folder"):
        load_model("./does/not/exist")


def test_hub_out_of_reach_is_one_line(offline):
    with pytest.raises(
        ModelError, match=r"not in the hub cache, and the hub can't be reached \(no route to the hub\)"
    ) as e:
        load_model("some-org/some-model")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("error, message", [(RepositoryNotFoundError, "no such model"), (GatedRepoError, "is gated")])
def test_hub_says_no(error, message, monkeypatch):
    def refuse(*args, **kwargs):
        raise error.__new__(error)

    monkeypatch.setattr(HfApi, "model_info", refuse)
    with pytest.raises(ModelError, match=message):
        load_model("some-org/some-model")


def test_hub_cache_works_offline(saved, tmp_path, monkeypatch):
    """A folder as HF_HOME/hub lays it out (the variables themselves are read when huggingface_hub is imported)."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    revision = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--some-org--tiny"
    shutil.copytree(saved, repo / "snapshots" / revision)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(revision)
    loaded = load_model("some-org/tiny")
    assert loaded.name == "some-org/tiny" and loaded.tokenizer.padding_side == "left"
    assert fingerprint(loaded.base) == fingerprint(tiny_model("llama"))
    with pytest.raises(ModelError, match=r"^No model 'some-org/other'\. It is not in .* and HF_HUB_OFFLINE is set\."):
        load_model("some-org/other")


def test_weights_that_are_not_in_the_cache_are_asked_for(saved, tmp_path, monkeypatch, offline):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--some-org--tiny" / "snapshots" / "0123"
    shutil.copytree(saved, snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0123")
    assert load_model("some-org/tiny").name == "some-org/tiny"
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="the hub can't be reached"):
        load_model("some-org/tiny")


def test_truncated_weights(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ModelError, match="damaged weights"):
        load_model(str(folder))


def test_missing_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"can't be loaded: .*model\.safetensors"):
        load_model(str(folder))


def test_a_pickle_is_not_opened_unless_told(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="can't be loaded"):
        load_model(str(folder))
    assert load_model(str(folder), allow_pickle=True).base.dtype == torch.float32


def test_a_hole_in_the_weights_is_not_filled_with_noise(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 tensors \(model.layers.1.mlp.up_proj.weight\)"):
        load_model(str(folder))


def test_wrong_shape(folder):
    edit(folder, "config.json", intermediate_size=63)
    with pytest.raises(ModelError, match="can't be loaded"):
        load_model(str(folder))


@pytest.mark.parametrize("text", ["{broken", '{"model_type": "no-such-family"}', "{}"])
def test_bad_config(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match="can't be loaded") as error:
        load_model(str(folder))
    assert "\n" not in str(error.value)


def test_no_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="can't be loaded"):
        load_model(str(folder))


def test_neither_pad_nor_eos(folder):
    data = json.loads((folder / "tokenizer_config.json").read_text())
    del data["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(data))
    with pytest.raises(ModelError, match="neither a pad nor an eos token"):
        load_model(str(folder))


def test_own_pad_token_is_kept(folder):
    edit(folder, "tokenizer_config.json", pad_token="<pad>")
    assert load_model(str(folder)).tokenizer.pad_token == "<pad>"


def test_layout_of_an_unknown_family_is_probed(folder, monkeypatch):
    probed = []
    monkeypatch.setattr(loading, "verify_layout", lambda base, layout: probed.append(layout))
    load_model(str(folder))
    assert probed == []
    said = {"blocks": "model.layers", "norm": "model.norm", "unembedding": "lm_head"}
    assert load_model(str(folder), layout=said).layout == probed[0]
    monkeypatch.setattr(loading, "FAMILIES", {})
    load_model(str(folder))
    assert len(probed) == 2


def test_fingerprint_tells_models_apart_and_ignores_the_dtype():
    model = tiny_model("llama")
    mark = fingerprint(model)
    assert mark == fingerprint(tiny_model("llama")) and len(mark) == 16
    assert fingerprint(model.to(torch.bfloat16)) == mark
    others = [tiny_model("llama", 1), tiny_model("qwen2"), tiny_model("llama", intermediate_size=65)]
    nudged = tiny_model("llama")
    nudged.model.norm.weight.data[0] += 0.1
    marks = {mark, *(fingerprint(other) for other in [*others, nudged])}
    assert len(marks) == 5
