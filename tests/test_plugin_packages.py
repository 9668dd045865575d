"""The packages in plugins/ are built and installed into a folder of their own; their names are then known."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PLUGINS = Path(__file__).parents[1] / "plugins"
NAMES = ("steerkit-ablation", "steerkit-countdown", "steerkit-repetition", "steerkit-smollm2", "steerkit-vllm")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which they are installed, beside the one that runs this."""
    folder = tmp_path_factory.mktemp("plugins")
    for name in NAMES:  # copies: a build leaves folders behind
        shutil.copytree(
            PLUGINS / name, folder / name, ignore=shutil.ignore_patterns("build", "*.egg-info", ".*", "__*")
        )
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "HF_HUB_OFFLINE": "1"}
    options = ["-q", "--no-deps", "--no-build-isolation", "--target", str(folder / "site")]
    command = [sys.executable, "-m", "pip", "install", *options, *(str(folder / name) for name in NAMES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return {**environment, "PYTHONPATH": str(folder / "site")}


def steerkit(environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-m", "steerkit", *arguments]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, cwd=environment["PYTHONPATH"]
    )
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(900)  # a few seconds of work; the limit is for a machine that has other things to do
def test_they_are_listed_with_their_distributions(installed: dict[str, str]) -> None:
    rows = {tuple(line.split()) for line in steerkit(installed, "plugins").splitlines()}
    assert rows >= {
        ("interventions", "ablation", "steerkit_ablation:Ablation", "steerkit_ablation", "0.1.0"),
        ("datasets", "countdown", "steerkit_countdown.puzzles:Countdown", "steerkit_countdown", "0.1.0"),
        ("verifiers", "countdown", "steerkit_countdown.verifier:CountdownVerifier", "steerkit_countdown", "0.1.0"),
        ("rewards", "countdown", "steerkit_countdown.reward:CountdownReward", "steerkit_countdown", "0.1.0"),
        ("rewards", "repetition", "steerkit_repetition:Repetition", "steerkit_repetition", "0.1.0"),
        ("models", "smollm2-135m-instruct", "steerkit_smollm2:smollm2_135m_instruct", "steerkit_smollm2", "0.1.0"),
        ("samplers", "vllm", "steerkit_vllm.sampler:VllmSampler", "steerkit_vllm", "0.1.0"),
    }


@pytest.mark.timeout(900)
def test_countdown_keeps_its_contracts_by_name(installed: dict[str, str]) -> None:
    """The command of docs/plugins.md."""
    gold = "numbers=3,6,7; target=24"
    pairs = ("--right", r"\boxed{(7-3)*6}", gold, "--wrong", r"\boxed{24}", gold)
    lines = steerkit(installed, "plugins", "check", "countdown", "--data", "countdown", *pairs).splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        "datasets countdown",
        "rewards countdown",
        "verifiers countdown",
        f"{len(lines) - 4} checks, all pass.",
    ]
