"""Settings of a run that its log tells, in the names of TRL's configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from dgpo.runs.values import flat, value

SETTINGS: dict[str, tuple[str, ...]] = {
    "learning_rate": (
        "actor_rollout_ref.actor.optim.lr",
        "trainer.policy.optimizer_config.lr",
        "actor.learning_rate",
        "actor_learning_rate",
        "lr",
    ),
    "num_generations": (
        "actor_rollout_ref.rollout.n",
        "generator.n_samples_per_prompt",
        "rollout.n_samples_per_prompt",
        "n_samples_per_prompt",
        "group_size",
    ),
    "temperature": (
        "actor_rollout_ref.rollout.temperature",
        "generator.sampling_params.temperature",
        "rollout.temperature",
        "rollout_temperature",
    ),
    "top_p": (
        "actor_rollout_ref.rollout.top_p",
        "generator.sampling_params.top_p",
        "rollout.top_p",
        "rollout_top_p",
    ),
    "top_k": (
        "actor_rollout_ref.rollout.top_k",
        "generator.sampling_params.top_k",
        "rollout.top_k",
        "rollout_top_k",
    ),
    "min_p": ("generator.sampling_params.min_p",),
    "beta": (
        "actor_rollout_ref.actor.kl_loss_coef",
        "trainer.algorithm.kl_loss_coef",
        "kl_loss_coef",
        "init_kl_coef",
    ),
    "epsilon": ("actor_rollout_ref.actor.clip_ratio_low", "trainer.algorithm.eps_clip_low", "eps_clip"),
    "epsilon_high": ("actor_rollout_ref.actor.clip_ratio_high", "trainer.algorithm.eps_clip_high", "eps_clip_high"),
    "max_completion_length": (
        "data.max_response_length",
        "generator.sampling_params.max_generate_length",
        "rollout_max_response_len",
        "generate_max_len",
    ),
    "max_prompt_length": ("data.max_prompt_length",),
    "max_grad_norm": (
        "actor_rollout_ref.actor.grad_clip",
        "trainer.policy.optimizer_config.max_grad_norm",
        "clip_grad",
    ),
    "num_iterations": ("actor_rollout_ref.actor.ppo_epochs",),
    "max_steps": ("trainer.total_training_steps", "num_rollout"),
    "num_train_epochs": ("trainer.total_epochs",),
    "loss_type": ("actor_rollout_ref.actor.loss_agg_mode",),
    "scale_rewards": ("algorithm.norm_adv_by_std_in_grpo",),
    "adv_estimator": ("algorithm.adv_estimator", "trainer.algorithm.advantage_estimator", "advantage_estimator"),
    "train_batch_size": ("data.train_batch_size",),
    "ppo_mini_batch_size": ("actor_rollout_ref.actor.ppo_mini_batch_size",),
    "gradient_accumulation_steps": (),
    "steps_per_generation": (),
    "per_device_train_batch_size": (),
    "generation_batch_size": (),
    "logging_steps": (),
    "lr_scheduler_type": (),
    "warmup_ratio": (),
    "warmup_steps": (),
    "mask_truncated_completions": (),
    "importance_sampling_level": (),
    "use_vllm": (),
    "sync_ref_model": (),
    "seed": (),
}
"""Setting of TRL's `GRPOConfig` -> its names in verl, SkyRL, OpenRLHF and slime. Those without one (verl's
`adv_estimator`, `train_batch_size` in prompts, `ppo_mini_batch_size`) keep their own name."""

_NAMES = {alias: name for name, aliases in SETTINGS.items() for alias in (name, *aliases)}
_ENDINGS = sorted(_NAMES, key=len, reverse=True)

_CONFIGURATIONS = {"args", "config", "cfg", "hparams", "hyperparameters", "hyperparams", "params", "training_args"}
"""Names of objects that hold the settings."""

BANNER = {
    "max_steps": re.compile(r"Total (?:optimization )?steps\s*[=:]\s*([\d,]+)"),
    "gradient_accumulation_steps": re.compile(r"[Gg]radient [Aa]ccumulation steps\s*[=:]\s*([\d,]+)"),
    "per_device_train_batch_size": re.compile(r"(?:Instantaneous batch|Batch) size per device\s*[=:]\s*([\d,]+)"),
    "num_train_epochs": re.compile(r"Num (?:Train )?[Ee]pochs\s*[=:]\s*([\d,]+)"),
}
"""What transformers (and Unsloth) print when training begins."""

_ASSIGNED = re.compile(r"(?:^|[\s('\"+-])([A-Za-z_][\w.-]*)(?:=|\s+(?=['\"\d.]))['\"]?([^\s,'\")]+)")
"""`name=value` (a config's repr, hydra's overrides) and `--name value`."""


def of_mapping(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a nested configuration, as printed or saved."""
    found: dict[str, Any] = {}
    settings = {path.replace("/", "."): inner for path, inner in flat(config, keep=frozenset()).items()}
    for path, inner in settings.items():
        name = _name(path)
        if name is not None and _plain(inner):
            found.setdefault(name, inner)
    if any(path.endswith("use_kl_loss") and inner is False for path, inner in settings.items()):
        found.pop("beta", None)  # verl and SkyRL have a coefficient all the same
    return found


def of_text(line: str) -> dict[str, Any]:
    """The settings in a line of a console log: banner, repr of a configuration, or arguments of a command."""
    found: dict[str, Any] = {}
    if "=" not in line and ":" not in line and "--" not in line:
        return found
    if any(word in line for word in ("Total", "ccumulation", "per device", "pochs")):
        for name, expression in BANNER.items():
            if match := expression.search(line):
                found[name] = int(match[1].replace(",", ""))
    if "=" in line or "--" in line:
        for match in _ASSIGNED.finditer(line):
            known = _NAMES.get(match[1].replace("-", "_"))
            read = value(match[2])
            if known is not None and _plain(read):
                found.setdefault(known, read)
    return found


def merged(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """All settings; where two sources differ, the first."""
    found: dict[str, Any] = {}
    for part in parts:
        for name, inner in part.items():
            found.setdefault(name, inner)
    return found


def _name(path: str) -> str | None:
    """TRL's name for a setting at a path such as `actor_rollout_ref.rollout.n`; None for what is none."""
    if path in _NAMES:
        return _NAMES[path]
    outer, _, inner = path.partition(".")
    if outer in _CONFIGURATIONS and inner in _NAMES:
        return _NAMES[inner]
    # W&B and others put the configuration under a name of their own: config.actor_rollout_ref.rollout.n
    dotted = next((name for name in _ENDINGS if "." in name and path.endswith(f".{name}")), None)
    return None if dotted is None else _NAMES[dotted]


def _plain(inner: Any) -> bool:
    return isinstance(inner, int | float | bool) or (isinstance(inner, str) and 0 < len(inner) <= 60)
