"""Which checkpoint a run may continue from: a complete one, of this very run, with every state that the run needs."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from transformers.trainer import OPTIMIZER_NAME, OPTIMIZER_NAME_BIN, SCALER_NAME, SCHEDULER_NAME

from dgpo.evaluation.folder import differences
from dgpo.redaction import without_secrets
from dgpo.registry import did_you_mean, parse
from dgpo.runs.schema import in_words
from dgpo.training import trl_options
from dgpo.training.checkpoint_files import ENTROPY_FILE, HISTORY_FILE, REFERENCE_FILE, checkpoints, damage, run_of
from dgpo.training.config import DGPOConfig
from dgpo.training.recording import data_of

STATES = ("optimizer", "scheduler", "rng_state", "scaler", "reward_history", "entropy_controller", "ref_model")
"""What `resume_allow_missing` may name."""

_RESOLVED = {
    *trl_options.OPTIONS,
    "objective",
    "objective_kwargs",
    "aggregation",
    "aggregation_kwargs",
    "correction",
    "advantage",
    "advantage_kwargs",
    "preset",
    "model_init_kwargs",
}
"""Options that are compared as what they come to: the objective with all its fields, and so on."""

_FREE_PREFIXES = (
    *("logging_", "log_", "eval_", "save_", "hub_", "trackio_", "record", "resume_", "do_"),
    *("ddp_", "fsdp", "dataloader_num", "dataloader_p", "dataloader_m", "dataloader_in", "torch_", "include_"),
    *("activation_checkpointing", "gradient_checkpointing", "vllm_server_", "transformers_continuous_batching"),
)
_FREE = {
    *("output_dir", "run_name", "project", "report_to", "push_to_hub", "disable_tqdm", "num_completions_to_print"),
    # how long, which the schedule of the learning rate follows
    *("max_steps", "num_train_epochs"),
    # how a batch is split; completions per update and per generation are compared
    *("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation", "generation_batch_size"),
    *("per_device_eval_batch_size", "num_generations_eval", "auto_find_batch_size", "use_cpu", "local_rank"),
    *("deepspeed", "accelerator_config", "parallelism_config", "ds3_gather_for_generation", "trust_remote_code"),
    *("vllm_mode", "vllm_enable_sleep_mode", "vllm_group_port", "vllm_gpu_memory_utilization", "vllm_model_impl"),
    *("vllm_tensor_parallel_size", "vllm_max_model_length", "use_transformers_continuous_batching"),
    *("use_transformers_paged", "cache_implementation", "use_cache"),
    # the same numbers but for rounding
    *("fused_loss", "use_liger_kernel", "liger_kernel_config", "tf32", "pad_to_multiple_of", "full_determinism"),
    *("bf16_full_eval", "fp16_full_eval", "prediction_loss_only", "batch_eval_metrics", "load_best_model_at_end"),
    *("metric_for_best_model", "greater_is_better", "restore_callback_states_from_checkpoint", "enable_jit_checkpoint"),
    *("debug", "skip_memory_metrics", "rank_timeout", "average_tokens_across_devices"),
}
_FREE_IN_MODEL = ("attn_implementation", "device_map", "trust_remote_code")


class CheckpointError(ValueError):
    """No checkpoint to continue from, or not this one."""


@dataclass(frozen=True)
class Resume:
    """Where to continue.

    Attributes:
        checkpoint: the folder.
        notes: a line for each newer checkpoint that was skipped, with the reason, and for what was not compared.
    """

    checkpoint: str
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ThisRun:
    """The run that is to continue.

    Attributes:
        config: of the run.
        described: what makes it this run (`describe_run`).
        states: those of `STATES` that it has.
        fsdp: whether FSDP shards the model.
        deepspeed: whether DeepSpeed runs it.
    """

    config: DGPOConfig
    described: dict[str, Any]
    states: frozenset[str]
    fsdp: bool
    deepspeed: bool


def describe_run(config: DGPOConfig, model: Any, data: Any, rewards: Sequence[Any], *, sharded: bool) -> dict[str, Any]:
    """What makes a run this run, as JSON: everything that changes a gradient, and the number of ranks.

    Args:
        config: of the run.
        model: that is trained, unwrapped.
        data: to train on.
        rewards: its functions and models.
        sharded: whether a rank may hold only a part of the weights, so that they are not counted.
    """
    options = {name: value for name, value in config.to_dict().items() if not _is_free(name) and name not in _RESOLVED}
    name = model.config._name_or_path
    run = {
        "objective": {"name": config.objective, **_fields(config.make_objective())},
        "aggregation": {"name": config.aggregation, **_fields(config.make_aggregation())},
        "advantage": {"name": config.advantage, **_fields(config.make_advantage())},
        "correction": correction_of(config),
        "model": os.path.realpath(name) if os.path.isdir(name) else name,
        "model_init_kwargs": {
            key: value
            for key, value in (config.model_init_kwargs or {}).items()
            if key not in _FREE_IN_MODEL and value is not None
        },
        # a rank of FSDP or ZeRO-3 may hold only a slice of each parameter
        "parameters": sum(parameter.numel() for parameter in model.parameters()) if not sharded else None,
        "peft": {key: _peft(config) for key, config in getattr(model, "peft_config", {}).items()},
        "data": data_of(data),
        "rewards": [_reward(reward) for reward in rewards],
        "completions_per_update": config.per_device_train_batch_size
        * config.gradient_accumulation_steps
        * config.world_size,
        "completions_per_generation": config.generation_batch_size,
        **options,
    }
    # JSON and back, as the checkpoint will hold it: tuples become lists, so that equal settings compare equal
    plain = without_secrets(in_words(json.loads(json.dumps(run, default=str))))
    return {"compared": plain, "ranks": config.world_size}


def _is_free(name: str) -> bool:
    return name in _FREE or name.startswith(_FREE_PREFIXES)


def correction_of(config: DGPOConfig) -> dict[str, Any] | None:
    """The correction with its name and all fields, since two of them may have the same; None where TRL's stands."""
    if config.correction is None:
        return None
    name, _ = parse("correction", config.correction)
    return {"name": name, **_fields(config.make_correction())}


def _fields(made: Any) -> dict[str, Any]:
    return {} if made is None else dataclasses.asdict(made)


def _peft(config: Any) -> dict[str, Any]:
    kept = {name: value for name, value in config.to_dict().items() if name not in ("inference_mode", "revision")}
    return {name: sorted(value) if isinstance(value, set) else value for name, value in kept.items()}


def _reward(reward: Any) -> Any:
    """A reward: its name and the plain values of its options."""
    options: dict[str, Any] = {}
    # a partial has no name of its own
    if isinstance(reward, functools.partial):
        options, reward = dict(reward.keywords), reward.func
    elif not hasattr(reward, "__code__") and hasattr(reward, "__dict__"):
        options = {name: value for name, value in vars(reward).items() if not name.startswith("_")}
    # a reward model is identified by its name or path
    if hasattr(reward, "config"):
        return reward.config._name_or_path
    plain = {name: value for name, value in options.items() if isinstance(value, str | int | float | bool)}
    return {"name": getattr(reward, "__name__", type(reward).__name__), **plain}


# --- choosing --------------------------------------------------------------------------------------------------------


class _Verdict(NamedTuple):
    reason: str
    allow: tuple[str, ...] = ()
    """States that `resume_allow_missing` would have to name."""


def find(run: ThisRun, where: str | os.PathLike[str] | bool) -> Resume:
    """The checkpoint to continue from; on the main process, for all.

    Args:
        run: that is to continue.
        where: a checkpoint; or True for the newest in `output_dir` that is whole and has every state of the run.

    Raises:
        CheckpointError: nothing there is whole and has every state, or it belongs to another run.
    """
    _check_names(run)
    if where is not True:
        checkpoint = Path(os.fspath(where))  # type: ignore[arg-type]
        if verdict := _examine(run, checkpoint):
            raise CheckpointError(f"cannot continue from {str(checkpoint)!r}: {verdict.reason}{_way_out([verdict])}")
        return _own(run, checkpoint, [])
    folder = run.config.output_dir
    passed: list[tuple[str, _Verdict]] = []
    for checkpoint in checkpoints(folder):
        verdict = _examine(run, checkpoint)
        if verdict is None:
            return _own(run, checkpoint, [f"{name} is skipped: {of.reason}" for name, of in passed])
        passed.append((checkpoint.name, verdict))
    if not passed:
        raise CheckpointError(f"no checkpoint in {folder!r} to continue from")
    reasons = "; ".join(f"{name}: {verdict.reason}" for name, verdict in passed[:3])
    more = f"; and {len(passed) - 3} more" if len(passed) > 3 else ""
    raise CheckpointError(
        f"no checkpoint in {folder!r} can be continued from: {reasons}{more}{_way_out([of for _, of in passed])}"
    )


def _way_out(verdicts: Iterable[_Verdict]) -> str:
    allow = next((verdict.allow for verdict in verdicts if verdict.allow), ())
    return f"; to start those afresh: --resume_allow_missing {' '.join(allow)}" if allow else ""


def _examine(run: ThisRun, checkpoint: Path) -> _Verdict | None:
    if reason := damage(checkpoint):
        return _Verdict(reason)
    missing = _missing_states(run, checkpoint)
    lacking = {name: reason for name, reason in missing.items() if name not in (run.config.resume_allow_missing or ())}
    if lacking:
        return _Verdict("; ".join(lacking.values()), tuple(missing))
    return None


def _missing_states(run: ThisRun, checkpoint: Path) -> dict[str, str]:
    """What this run would start afresh after the checkpoint: name, as in `STATES`, -> what is not there."""
    names = {path.name for path in checkpoint.iterdir()}
    missing = {}
    # DeepSpeed keeps optimiser and scheduler inside its own folder
    engine = run.deepspeed and any(name.startswith("global_step") for name in names)
    parts = any(name.startswith(OPTIMIZER_NAME_BIN.split(".")[0] + "_") for name in names)
    if not (engine or parts or names & {OPTIMIZER_NAME, OPTIMIZER_NAME_BIN}):
        missing["optimizer"] = f"it has no {OPTIMIZER_NAME}"
    if not (engine or SCHEDULER_NAME in names):
        missing["scheduler"] = f"it has no {SCHEDULER_NAME}"
    if run.fsdp and missing:  # there the two are loaded together or not at all
        missing = dict.fromkeys(("optimizer", "scheduler"), "; ".join(missing.values()))
    if reason := _missing_generators(run, checkpoint, names):
        missing["rng_state"] = reason
    history = (
        f"advantage = {run.config.advantage!r} continues the history of rewards by prompt, but it has no "
        f"{HISTORY_FILE}: it was trained with another advantage"
    )
    for state, file, reason in (
        ("scaler", SCALER_NAME, f"it has no {SCALER_NAME}"),
        ("reward_history", HISTORY_FILE, history),
        ("entropy_controller", ENTROPY_FILE, f"it has no {ENTROPY_FILE}"),
        ("ref_model", REFERENCE_FILE, f"it has no {REFERENCE_FILE}, the reference that sync_ref_model has moved"),
    ):
        if state in run.states and file not in names:
            missing[state] = reason
    return missing


def _missing_generators(run: ThisRun, checkpoint: Path, names: set[str]) -> str | None:
    """Of the random generators of all ranks on this machine."""
    ranks = run.config.world_size
    # torchrun's number of ranks here; without it all are here
    machine = int(os.environ.get("LOCAL_WORLD_SIZE") or ranks)
    wrote = (run_of(checkpoint) or {}).get("ranks")
    # a checkpoint without `dgpo_checkpoint.json`: count the files, if all ranks wrote to this machine
    if wrote is None and ranks == machine:
        numbered = sum(name.startswith("rng_state_") for name in names)
        wrote = numbered or (1 if "rng_state.pth" in names else None)
    if wrote is not None and wrote != ranks:
        return f"its generator states are those of {wrote} ranks, and this run has {ranks}"
    expected = [f"rng_state_{rank}.pth" for rank in range(machine)] if ranks > 1 else ["rng_state.pth"]
    if ranks != machine:
        expected = expected[:1]  # numbered over all machines: this is the first
    lacking = [name for name in expected if name not in names]
    return f"it has no {lacking[0]}" if lacking else None


# --- whose it is -----------------------------------------------------------------------------------------------------


def _own(run: ThisRun, checkpoint: Path, notes: list[str]) -> Resume:
    before = run_of(checkpoint)
    if before is None:
        notes.append(
            f"{checkpoint.name} does not say which run wrote it (TRL, or an older version); nothing was compared"
        )
    elif changed := _changes(run, before["compared"], run.described["compared"]):
        # "model_init_kwargs.dtype: ..." -> the option that --resume_allow_changed takes
        names = list(dict.fromkeys(line.split(":")[0].split(".")[0] for line in changed))
        raise CheckpointError(
            f"{str(checkpoint)!r} belongs to another run. Differences (checkpoint -> now): {'; '.join(changed)}. "
            "Restore these settings, use another output_dir, or allow the changes: --resume_allow_changed "
            f"{' '.join(names)}"
        )
    return Resume(str(checkpoint), tuple(notes))


def _changes(run: ThisRun, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    defaults = {f.name: f.default for f in dataclasses.fields(run.config)}
    # an option that did not exist then had no other effect than its default
    then = {name: before.get(name, json.loads(json.dumps(defaults.get(name), default=str))) for name in now}
    allowed = set(run.config.resume_allow_changed or ())
    return differences(
        {name: value for name, value in then.items() if name not in allowed},
        {name: value for name, value in now.items() if name not in allowed},
    )


def _check_names(run: ThisRun) -> None:
    for option, known in (("resume_allow_missing", STATES), ("resume_allow_changed", tuple(run.described["compared"]))):
        for name in getattr(run.config, option) or ():
            if name not in known:
                hint = did_you_mean(name, known)
                raise CheckpointError(f"{option} names {name!r}{hint}; known: {', '.join(known)}")
