"""What the short help of ``fit`` and its kin shows; ``--help_all`` shows the rest."""

from __future__ import annotations

from collections.abc import Mapping

_SETTINGS = (
    "A setting stands in the YAML file (section: {setting: value}) or on the command line, which wins: --model.lr 0.1."
)
ABOUT: Mapping[str, str] = {
    "fit": f"Train a vector with RL on a frozen base, then compare base, steered and controls. {_SETTINGS}",
    "validate": f"Accuracy of model.vector, or of a checkpoint, on the validation split. {_SETTINGS}",
    "test": f"Accuracy of model.vector, or of a checkpoint, on the test split. {_SETTINGS}",
    "predict": f"Write sampled completions of the test split to predictions.parquet. {_SETTINGS}",
}
"""verb -> what it does."""

_MODEL = (
    *("base", "intervention", "layers", "site", "token_mask", "vector", "lr", "warmup_steps", "decay_steps"),
    *("objective", "rewards", "minibatches", "samples_per_prompt", "temperature", "max_tokens", "dtype"),
)
COMMON: Mapping[str, str] = {
    "config": "YAML file with the settings",
    "print_config": "write all settings as YAML, and exit",
    "run_dir": "",
    "data_root": "",
    "dry_run": "memory and time of a step, and what is missing; trains nothing (fit)",
    "seed_everything": "of rollouts, initial values and the order of the problems",
    "ckpt_path": "checkpoint to go on from; last: the newest of run_dir",
    **dict.fromkeys((f"model.{name}" for name in _MODEL), ""),
    **dict.fromkeys((f"data.{name}" for name in ("dataset", "prompts_per_step", "n_validation", "n_test")), ""),
    "trainer.max_steps": "steps of the run, one a batch",
    "trainer.max_time": "end after DD:HH:MM:SS",
    "trainer.val_check_interval": "steps between validations",
    **dict.fromkeys((f"report.{name}" for name in ("arms", "temperatures", "k", "split")), ""),
}
"""Setting -> text in place of the long help's (Lightning's are long); empty: the long help's own."""

TITLES: Mapping[str, str] = {
    "options": "options",
    "On-policy": "model: on-policy RL of steering vectors, one step a batch",
    "Problems": "data: problems for training, validation and test",
    "Customize": "trainer (Lightning's)",
    "What ``fit``": "report: what fit measures when training is over",
    "Run": "checkpoint",
    "Perform": "checkpoint",
}
"""How a group's title begins -> what the short help calls it, in this order."""
