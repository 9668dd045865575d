"""Inject faults into a small training run and say what each printed, and what was left.

    python benchmarks/faults.py --out runs/faults            # all of them, some minutes
    python benchmarks/faults.py --out runs/faults --only signals disks

Each fault is a process of its own: a tiny random model, a reward over the verifier pool, 8 steps. Writes
``faults.json`` and prints a Markdown table. Full disk and read-only disk are real (a small tmpfs in a mount
namespace, where the system allows that); running out of memory and a NaN are injected by a patch.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

COUNT = """
import os, signal
calls = []
def at(call, do):
    def reward(completions, **columns):
        calls.append(1)
        if len(calls) == call:
            do()
        return [(len(text) % 7) / 7 for text in completions]
    return reward
"""
REWARDS = {
    "sigterm": "reward = at(5, lambda: os.kill(os.getpid(), signal.SIGTERM))",
    "ctrl_c": "reward = at(5, lambda: os.kill(os.getpid(), signal.SIGINT))",
    "sigkill": "reward = at(5, lambda: os.kill(os.getpid(), signal.SIGKILL))",
    "reward_raises": "reward = at(5, lambda: {}['answer'])",
    "reward_infinite": "inner = at(99, None)\ndef reward(completions, **columns):\n"
    "    values = inner(completions)\n    return [float('inf'), *values[1:]] if len(calls) == 5 else values",
    "rank_raises": "reward = at(5, lambda: {}['answer'] if os.environ.get('LOCAL_RANK') == '1' else None)",
    "rank_killed": "reward = at(5, lambda: os.environ.get('LOCAL_RANK') == '1' and os.kill(os.getpid(), 9))",
    "sigterm_ddp": "reward = at(5, lambda: os.environ.get('LOCAL_RANK', '0') == '0' and os.kill(os.getpid(), 15))",
    "workers_killed": "import psutil\nreward = at(5, lambda: [c.kill() for c in psutil.Process().children()])",
}
BEFORE = {
    "out_of_memory": "limit = 300",
    "out_of_memory_always": "limit = 1",
    "nan_loss": "poison = 5",
    "vector_breaks_model": "blast = 5",
}
PATCH = """
import sys, torch
sys.argv[0] = "steerkit"
limit = poison = blast = None
{setting}
import steerkit.training.memory as memory
accumulate, adam, steps = memory.accumulate_gradients, torch.optim.AdamW.step, []
def accumulate_gradients(model, objective, groups, advantages, n_tokens, pad_id, temperature, tokens, backward):
    steps.append(1)
    def limited(loss):
        backward(loss)  # a part of the gradient is there already
        if limit and tokens > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    advantages = advantages * (float("nan") if len(steps) == poison else 1.0)
    return accumulate(model, objective, groups, advantages, n_tokens, pad_id, temperature, tokens, limited)
def step(self, *a, **k):
    done = adam(self, *a, **k)
    if len(steps) == blast:
        [p.data.fill_(3e38) for group in self.param_groups for p in group["params"]]
    return done
memory.accumulate_gradients, torch.optim.AdamW.step = accumulate_gradients, step
from steerkit.cli import main
sys.exit(main(sys.argv[1:]))
"""
MOUNT = """mount -t tmpfs -o size={size} tmpfs disk && {then} {command}
code=$?; ls disk/run/checkpoints > left.txt 2> /dev/null; exit $code"""

KILL_EVALUATION = """
import os, signal, time
from steerkit.rollouts.transformers_sampler import TransformersSampler
class Killing(TransformersSampler):
    calls = 0
    def stream(self, *arguments):
        Killing.calls += 1
        if Killing.calls == 4 and os.environ.get("KILL"):
            time.sleep(2)
            os.kill(os.getpid(), signal.SIGKILL)
        yield from super().stream(*arguments)
"""
HANGS = {"gold": r"\sum_{k=1}^{n} k", "completion": r"\boxed{10^{10^{123456789}}}"}


class Study:
    """The folder where it all happens, and what was found."""

    def __init__(self, folder: Path) -> None:
        from steerkit.testing import tiny_model
        from steerkit.zoo.tokenizer import train_tokenizer

        self.folder = folder.resolve()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        texts = ["Tom has 12 apples. Anna gives Tom 3 more.", "To find the answer, step 1: 12+3=15.", "\\boxed{15}"]
        tokenizer = train_tokenizer(texts * 4, 300)
        sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 256, "eos_token_id": tokenizer.eos_token_id}
        tiny_model("llama", **sizes).save_pretrained(self.folder / "model")
        tokenizer.save_pretrained(self.folder / "model")
        self.rows: list[dict[str, Any]] = []

    def config(self, name: str, **changes: Any) -> None:
        import yaml

        rewards: list[Any] = [{"name": "verifiable", "weight": 1.0}]
        if name in REWARDS:
            (self.folder / f"{name}.py").write_text(COUNT + REWARDS[name] + "\n")
            rewards.append({"name": f"{name}.py:reward"})
        elif not name.startswith("config_"):  # a stranger's has one thing that is wrong
            (self.folder / "plain.py").write_text(COUNT + "reward = at(-1, None)\n")
            rewards.append({"name": "plain.py:reward"})
        config = {
            "seed_everything": 0,
            "run_dir": f"{name}/run",
            "vector_every": 2,
            "samples_every": 0,
            "model": {"base": "model", "lr": 0.1, "rewards": rewards, "samples_per_prompt": 4, "max_tokens": 8},
            "data": {"dataset": {"name": "arithmetic", "n": 64, "n_eval": 8}, "prompts_per_step": 4, "n_validation": 4},
            "trainer": {"max_steps": 8, "accelerator": "cpu", "enable_progress_bar": False, "val_check_interval": 4},
            "report": {"arms": []},
        }
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump({**config, **changes}))

    def fit(self, name: str, *more: str, before: list[str] | None = None) -> subprocess.CompletedProcess[str]:
        program = before or ["-m", "steerkit"]
        command = [sys.executable, *program, "fit", "--config", f"{name}.yaml", "--allow_code", *more]
        return self.run(command)

    def evaluate(self, out: str, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
        options = ["--model", "model", "--temperature", "0", "--limit", "12", "--max_tokens", "8", "--out", out]
        options += ["--sampler", "kill.py:Killing", "--batch_tokens", "100", *more]
        return self.run([sys.executable, "-m", "steerkit", "evaluate", *options], **environment)

    def run(self, command: list[str], **more: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=600)

    def left(self, run: str) -> list[str]:
        """The vector, with its step, and the checkpoints in a run's folder."""
        found = sorted(path.name for path in (self.folder / run / "checkpoints").glob("*.ckpt"))
        config = self.folder / run / "vector" / "steering_config.json"
        vector = [f"vector of step {json.loads(config.read_text())['receipts']['steps']}"] if config.exists() else []
        return [*vector, *[re.sub(r"step=0*", "checkpoint ", name).removesuffix(".ckpt") for name in found]]

    def note(self, fault: str, done: subprocess.CompletedProcess[str], run: str | None, also: str = "") -> None:
        said = [line for line in done.stderr.splitlines() if line.strip() and "━" not in line]
        said = [line.replace(str(self.folder), ".") for line in said]
        left = self.left(run) if run is not None else []
        self.rows.append({"fault": fault, "exit": done.returncode, "said": said, "left": left, "also": also})
        print(json.dumps(self.rows[-1]), flush=True)


def signals(study: Study) -> None:
    for name in ("sigterm", "ctrl_c", "sigkill"):
        study.config(name)
        study.note(name, study.fit(name), f"{name}/run")
        again = study.fit(name, "--ckpt_path", "last")
        study.rows[-1]["also"] = f"gone on with to {', '.join(study.left(f'{name}/run')[:1])}, exit {again.returncode}"


def failures(study: Study) -> None:
    for name in ("reward_raises", "reward_infinite", "workers_killed"):
        study.config(name)
        study.note(name, study.fit(name), f"{name}/run")
    for name, setting in BEFORE.items():
        study.config(name)
        script = study.folder / f"patch_{name}.py"
        script.write_text(PATCH.format(setting=setting))
        study.note(name, study.fit(name, before=[script.name]), f"{name}/run")


def processes(study: Study) -> None:
    for name in ("rank_raises", "rank_killed", "sigterm_ddp"):
        study.config(name)
        study.note(name, study.fit(name, "--trainer.devices", "2", "--trainer.strategy", "ddp"), f"{name}/run")
    study.config("three_devices")
    study.note("three_devices", study.fit("three_devices", "--trainer.devices", "3"), None)


def damaged(study: Study) -> None:
    for name in ("checkpoint_cut", "checkpoint_flipped", "checkpoints_all_cut", "checkpoint_pickle"):
        study.config(name)
        assert study.fit(name, "--trainer.max_steps", "4").returncode == 0
        found = sorted((study.folder / name / "run" / "checkpoints").glob("*.ckpt"))
        for path in found if name == "checkpoints_all_cut" else found[-1:]:
            data = bytearray(path.read_bytes())
            if name == "checkpoint_flipped":
                state = torch.load(path, weights_only=True)["state_dict"]
                data[data.index(next(iter(state.values())).numpy().tobytes()) + 5] ^= 1
            path.write_bytes(data if name == "checkpoint_flipped" else data[: len(data) // 2])
            if name == "checkpoint_pickle":
                torch.save({"state_dict": {}, "x": Mark()}, path)
        done = study.fit(name, "--ckpt_path", "last")
        owned = (study.folder / "owned").exists()
        study.note(name, done, f"{name}/run", "code was run" if owned else "")


class Mark:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("owned",)


def disks(study: Study) -> None:
    (study.folder / "disk").mkdir()
    for name, size, then in (("full_disk", "60k", ""), ("read_only", "2m", "mount -o remount,ro disk &&")):
        study.config(name, run_dir="disk/run")
        command = f"{sys.executable} -m steerkit fit --config {name}.yaml --allow_code"
        shell = MOUNT.format(size=size, then=then, command=command)
        done = study.run(["unshare", "-rm", "sh", "-c", shell])
        study.note(name, done, None, ", ".join((study.folder / "left.txt").read_text().split()))


def strangers(study: Study) -> None:
    from steerkit.hookpoints import HookPoint
    from steerkit.interventions import Static
    from steerkit.vectors import SteeringVector

    (study.folder / "evil.py").write_text("import os\nos.mkdir('owned')\nclass Evil: pass\n")
    vector = SteeringVector.from_interventions("static", Static.build([HookPoint(0)], 32))
    files = {"vector_names_code": {"intervention": "evil.py:Evil"}, "vector_is_absurd": {"d_model": 2**40}}
    files["vector_receipts_name_code"] = {"receipts": {"dataset_spec": {"name": "subprocess:Popen", "args": "ls"}}}
    for name, changes in files.items():
        place = vector.save_pretrained(study.folder / name)
        config = json.loads((place / "steering_config.json").read_text()) | changes
        (place / "steering_config.json").write_text(json.dumps(config))
        command = ["-m", "steerkit", "evaluate", "--model", "model", "--vector", name, "--out", f"{name}/out"]
        study.note(name, study.run([sys.executable, *command]), None, owned(study))
    settings: dict[str, dict[str, Any]] = {
        "config_names_code": {"trainer": {"callbacks": [{"class_path": "evil.Evil"}]}},
        "config_names_a_command": {"data": {"dataset": {"name": "subprocess:Popen", "args": "ls"}}},
        "config_writes_outside": {"run_dir": "../elsewhere"},
    }
    for name, changes in settings.items():
        study.config(name, **changes)
        command = [sys.executable, "-m", "steerkit", "fit", "--config", f"{name}.yaml"]
        study.note(name, study.run(command), None, owned(study))


def evaluations(study: Study) -> None:
    (study.folder / "kill.py").write_text(KILL_EVALUATION)
    study.evaluate("whole")
    done = study.evaluate("killed", KILL="1")
    (shard,) = (study.folder / "killed" / "journal").glob("samples-*.jsonl")
    lines = shard.read_text()
    with shard.open("a") as file:
        file.write('{"arm": "ba')  # and as if a line had been cut
    study.evaluate("killed")
    rows, samples = (
        [(study.folder / out / name) for out in ("whole", "killed")] for name in ("results.json", "samples.parquet")
    )
    equal = samples[0].read_bytes() == samples[1].read_bytes()
    equal &= len({json.dumps(json.loads(path.read_text())["rows"]) for path in rows}) == 1
    kept = f"{lines.count(chr(10))} of 12 samples on disk; resumed: {'the same results' if equal else 'OTHER RESULTS'}"
    study.note("evaluation_killed", done, None, kept)

    study.evaluate("damaged", KILL="1")
    (shard,) = (study.folder / "damaged" / "journal").glob("samples-*.jsonl")
    shard.write_text("nonsense\n" + shard.read_text())
    study.note("journal_damaged", study.evaluate("damaged"), None)
    study.evaluate("changed", KILL="1")
    study.note("evaluation_of_other_settings", study.evaluate("changed", "--max_tokens", "9"), None)

    (study.folder / "cases.jsonl").write_text(
        json.dumps(HANGS) + "\n" + json.dumps({"gold": "2", "completion": "\\boxed{2}"})
    )
    verify = ["verify", "--input", "cases.jsonl", "--verifier", '{"name": "math", "timeout": 2}', "--limit", "0"]
    done = study.run([sys.executable, "-m", "steerkit", *verify])
    study.note("answer_hangs_the_verifier", done, None, " ".join(done.stdout.splitlines()[:1]))


def owned(study: Study) -> str:
    return "code was run" if (study.folder / "owned").exists() else "nothing was run"


PARTS = (signals, failures, processes, damaged, disks, strangers, evaluations)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--only", nargs="*", choices=[part.__name__ for part in PARTS], help="parts of the study")
    options = parser.parse_args()
    study = Study(Path(options.out))
    for part in PARTS:
        if not options.only or part.__name__ in options.only:
            part(study)
    (study.folder / "faults.json").write_text(json.dumps(study.rows, indent=2) + "\n")
    print("\n| fault | exit | printed | left |\n|---|---|---|---|")
    for row in study.rows:
        said = "<br>".join(line.replace("|", "\\|") for line in row["said"]) or "(nothing)"
        left = ", ".join([*row["left"], *[row["also"]] * bool(row["also"])]) or "-"
        print(f"| {row['fault']} | {row['exit']} | {said} | {left} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
