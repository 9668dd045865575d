"""Vectors on the Hugging Face hub."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from steerkit.errors import VectorError
from steerkit.vectors.files import CONFIG_FILE, TENSOR_FILE, save

if TYPE_CHECKING:
    from steerkit.vectors.value import SteeringVector

HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")


def fetch(source: str, revision: str | None = None) -> Path:
    """The local folder of ``source``: itself, or the hub's snapshot of a repository."""
    if Path(source).expanduser().is_dir():
        return Path(source).expanduser()
    if not HUB_ID.match(source):
        raise VectorError(f"No vector at {source!r}: give a folder written by save_pretrained, or a hub id (org/name).")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(source, revision=revision, allow_patterns=[CONFIG_FILE, TENSOR_FILE, "README.md"])
        )
    except Exception as error:  # the HTTP library, and so its errors, changes with huggingface_hub's version
        raise VectorError(
            f"No folder {source!r} here; taken for a hub id, the hub did not give it ({_reason(error)})."
        ) from error


def push(vector: SteeringVector, repo_id: str, private: bool, message: str) -> str:
    """Upload the vector's folder."""
    if not HUB_ID.match(repo_id):
        raise VectorError(f"{repo_id!r} is not a hub id: write org/name.")
    from huggingface_hub import HfApi

    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        save(vector, folder, repo_id)
        try:
            address = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
        except Exception as error:
            raise VectorError(f"The hub did not take {repo_id} ({_reason(error)}): is `hf auth login` done?") from error
    return str(address)


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
