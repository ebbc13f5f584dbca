"""The quantities of a training log, and the names under which frameworks log them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A quantity that doctor and report read.

    Attributes:
        words: what it is, with its unit.
        names: framework -> its names, most telling first; `*` matches any text. Frameworks are tried in this order,
            so that the statistics of our loss come before what a framework has of its own.
        like: words of unknown names that may mean this quantity, such as `reward mean`; every word must be in the name.
    """

    words: str
    names: Mapping[str, tuple[str, ...]]
    like: tuple[str, ...] = ()

    @property
    def patterns(self) -> tuple[str, ...]:
        """All names, by preference."""
        return tuple(dict.fromkeys(name for names in self.names.values() for name in names))


OURS, TRL, TRL_OLD, VERL, OPENRLHF, SKYRL, SLIME, PRIME, SWIFT, MINIMIND, OWN = (
    "dgpo",
    "TRL",
    "TRL before 0.17",
    "verl",
    "OpenRLHF",
    "SkyRL",
    "slime",
    "prime-rl",
    "ms-swift",
    "MiniMind",
    "own loops",
)


def _ours(name: str, **elsewhere: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """A statistic of the loss: of our trainer, of our plug-ins (`actor/objective/...` in verl), and as a mean."""
    return {OURS: (f"objective/{name}", f"*/objective/{name}", f"objective/{name}/mean"), **elsewhere}


QUANTITIES: dict[str, Quantity] = {
    "reward": Quantity(
        words="mean reward of the responses",
        names={
            TRL: ("reward",),
            VERL: ("critic/score/mean", "critic/rewards/mean"),
            OPENRLHF: ("rollout/reward_mean", "reward"),
            SKYRL: ("reward/avg_raw_reward",),
            SLIME: ("rollout/raw_reward",),
            PRIME: ("train/agg/all/*/reward/mean",),
        },
        like=("reward", "rewards", "score", "return"),
    ),
    "reward_std": Quantity(
        words="standard deviation of the reward within a group",
        names={TRL: ("reward_std",), OPENRLHF: ("group_reward_std",)},
        like=("reward std", "rewards std", "score std"),
    ),
    "reward_max": Quantity(
        words="largest reward of a step",
        names={VERL: ("critic/score/max", "critic/rewards/max"), PRIME: ("train/agg/all/*/reward/max",)},
        like=("reward max", "rewards max", "score max"),
    ),
    "reward_min": Quantity(
        words="smallest reward of a step",
        names={VERL: ("critic/score/min", "critic/rewards/min"), PRIME: ("train/agg/all/*/reward/min",)},
        like=("reward min", "rewards min", "score min"),
    ),
    "zero_std": Quantity(
        words="share of the groups whose responses have the same reward",
        names={TRL: ("frac_reward_zero_std",)},
        like=("zero std", "zero variance", "zero adv", "flat reward", "same reward", "degenerate"),
    ),
    "mixed_groups": Quantity(
        words="share of the groups with right and wrong responses", names={PRIME: ("train/agg/all/*/solved_some",)}
    ),
    "skipped": Quantity(
        words="1 where no update was made, 0 where one was", names={OWN: ("skipped",)}, like=("skipped", "skip")
    ),
    "advantage_mean": Quantity(
        words="mean advantage",
        names={
            VERL: ("critic/advantages/mean",),
            SKYRL: ("loss/avg_raw_advantages",),
            SLIME: ("rollout/advantages",),
            MINIMIND: ("adv_mean", "advantages_mean"),
        },
        like=("advantage mean", "advantages mean"),
    ),
    "advantage_max": Quantity(
        words="largest advantage", names={VERL: ("critic/advantages/max",)}, like=("advantage max", "advantages max")
    ),
    "advantage_min": Quantity(
        words="smallest advantage", names={VERL: ("critic/advantages/min",)}, like=("advantage min", "advantages min")
    ),
    "truncated": Quantity(
        words="share of the responses cut off at the limit",
        names={
            TRL: ("completions/clipped_ratio",),
            TRL_OLD: ("clipped_completions_ratio",),
            VERL: ("response_length/clip_ratio",),
            OPENRLHF: ("rollout/truncated_rate",),
            SLIME: ("rollout/truncated_ratio",),
            PRIME: ("train/agg/all/*/stop_condition/generation_truncated", "train/agg/all/*/is_truncated/mean"),
        },
        like=("truncated", "truncation", "clipped ratio"),
    ),
    "length": Quantity(
        words="mean length of the responses, in tokens",
        names={
            TRL: ("completions/mean_length",),
            TRL_OLD: ("completion_length", "mean_completion_length"),
            VERL: ("response_length/mean",),
            OPENRLHF: ("rollout/response_length_mean", "response_length"),
            SKYRL: ("generate/avg_num_tokens",),
            SLIME: ("rollout/response_len/mean", "rollout/response_lengths"),
            PRIME: ("train/agg/all/*/num_output_tokens/mean",),
            MINIMIND: ("avg_response_len",),
        },
        like=("length", "len", "num tokens", "completion tokens", "response tokens"),
    ),
    "length_max": Quantity(
        words="length of the longest response of a step, in tokens",
        names={
            TRL: ("completions/max_length",),
            TRL_OLD: ("max_completion_length",),
            VERL: ("response_length/max",),
            SKYRL: ("generate/max_num_tokens",),
            SLIME: ("rollout/response_len/max",),
            PRIME: ("train/agg/all/*/num_output_tokens/max",),
        },
        like=("length max", "len max"),
    ),
    "length_min": Quantity(
        words="length of the shortest response of a step, in tokens",
        names={
            TRL: ("completions/min_length",),
            TRL_OLD: ("min_completion_length",),
            VERL: ("response_length/min",),
            SKYRL: ("generate/min_num_tokens",),
            SLIME: ("rollout/response_len/min",),
            PRIME: ("train/agg/all/*/num_output_tokens/min",),
        },
        like=("length min", "len min"),
    ),
    "length_terminated": Quantity(
        words="mean length of the responses that ended by themselves, in tokens",
        names={
            TRL: ("completions/mean_terminated_length",),
            TRL_OLD: ("mean_terminated_completion_length",),
        },
    ),
    "loss": Quantity(
        words="the value of the loss",
        names={
            OURS: ("policy_loss",),
            TRL: ("loss",),
            VERL: ("actor/pg_loss", "actor/loss"),
            OPENRLHF: ("policy_loss",),
            SKYRL: ("policy/policy_loss", "policy/final_loss"),
            SLIME: ("pg_loss",),
            PRIME: ("loss/mean",),
            MINIMIND: ("actor_loss",),
        },
        like=("loss", "pg loss", "policy loss"),
    ),
    "grad_norm": Quantity(
        words="norm of the gradient before clipping",
        names={
            TRL: ("grad_norm",),
            VERL: ("actor/grad_norm",),
            OPENRLHF: ("actor_grad_norm",),
            SKYRL: ("policy/grad_norm", "policy/raw_grad_norm"),
            PRIME: ("optim/grad_norm",),
        },
        like=("grad norm", "gradient norm", "gnorm"),
    ),
    "learning_rate": Quantity(
        words="learning rate",
        names={
            TRL: ("learning_rate",),
            VERL: ("actor/lr",),
            OPENRLHF: ("actor_lr",),
            SKYRL: ("policy/policy_lr",),
            SLIME: ("lr-pg_0",),
            PRIME: ("optim/lr",),
            OWN: ("lr",),
        },
        like=("learning rate", "lr"),
    ),
    "entropy": Quantity(
        words="mean entropy per token, in nats",
        names={
            TRL: ("entropy",),
            VERL: ("actor/entropy", "actor/entropy_loss"),
            OPENRLHF: ("entropy_loss",),
            SKYRL: ("policy/policy_entropy",),
            SLIME: ("entropy_loss", "rollout/entropy"),
            PRIME: ("entropy/all/mean",),
            SWIFT: ("entropy/mean",),
        },
        like=("entropy",),
    ),
    "kl_reference": Quantity(
        words="KL from the current policy to the reference model, in nats per token",
        names={
            TRL: ("kl",),
            VERL: ("actor/kl_loss", "actor/reward_kl_penalty"),
            SKYRL: ("policy/policy_kl", "loss/avg_kl"),
            SLIME: ("kl_loss",),
        },
        like=("kl loss", "kl ref", "ref kl", "kl div", "kl divergence", "mean kl", "approx kl"),
    ),
    "kl_coef": Quantity(
        words="coefficient of the KL to the reference model",
        names={VERL: ("actor/kl_coef", "actor/reward_kl_penalty_coeff"), SKYRL: ("loss/kl_loss_coef",)},
    ),
    "kl_old": Quantity(words="KL(π_old ‖ π), in nats per token", names=_ours("kl/old")),
    "mean_log_ratio": Quantity(
        words="mean of log π_old - log π, in nats per token",
        names={VERL: ("actor/ppo_kl",), OPENRLHF: ("ppo_kl",), SLIME: ("ppo_kl",)},
        like=("ppo kl",),
    ),
    "clipped": Quantity(
        words="share of the tokens outside the clip bounds",
        names={
            TRL: ("clip_ratio/region_mean", "cispo_clip_ratio"),
            TRL_OLD: ("clip_ratio",),
            VERL: ("actor/pg_clipfrac",),
            OPENRLHF: ("ppo_clip_ratio",),
            SKYRL: ("policy/loss_metrics/clip_ratio", "policy/ppo_clip_ratio"),
            SLIME: ("pg_clipfrac",),
        },
        like=("clip frac", "clip fraction", "clipfrac", "clip ratio"),
    ),
    "clipped_low": Quantity(
        words="share of the tokens below the lower clip bound", names={TRL: ("clip_ratio/low_mean",)}
    ),
    "clipped_high": Quantity(
        words="share of the tokens above the upper clip bound", names={TRL: ("clip_ratio/high_mean",)}
    ),
    "inside": Quantity(words="share of the tokens inside the bounds", names=_ours("fraction/inside")),
    "reverse_right": Quantity(
        words="share of Σ|A·w| where A < 0 and r is above the upper bound", names=_ours("mass/reverse_right")
    ),
    "weight_max": Quantity(
        words="largest weight",
        names={
            OURS: (
                *_ours("weight/max")[OURS],
                "*objective/weight_max",
                "*objective/weight/max/max",
            )
        },
    ),
    "ess": Quantity(words="effective share of the tokens, by their weights", names=_ours("weight/ess")),
    "weight_zero": Quantity(words="share of the tokens with weight 0", names=_ours("weight/zero_fraction")),
    "advantage_zero": Quantity(words="share of the tokens with advantage 0", names=_ours("advantage/zero_fraction")),
    "kl_sampler": Quantity(
        words="KL(μ ‖ π_old) by the estimator k3, in nats per token",
        names={
            **_ours("kl/sampler"),
            VERL: ("rollout_corr/k3_kl",),
            SWIFT: ("rollout_correction/k3_kl",),
        },
    ),
    "kl_sampler_k1": Quantity(
        words="the same by the estimator k1",
        names={
            **_ours("kl/sampler_k1"),
            VERL: ("rollout_corr/kl",),
            OPENRLHF: ("vllm_kl",),
            SWIFT: ("rollout_correction/kl",),
        },
    ),
    "sampler_cut": Quantity(
        words="mean(1 - π_old/μ), the probability cut off by the sampler", names=_ours("sampler/cut_mass")
    ),
    "sampler_difference": Quantity(
        words="mean |log μ - log π_old|, in nats",
        names={
            TRL: ("sampling/sampling_logp_difference/mean",),
            SKYRL: ("policy/rollout_train_logprobs_abs_diff_mean",),
            SLIME: ("train_rollout_logprob_abs_diff",),
        },
    ),
    "sampler_probability": Quantity(
        words="mean |μ - π_old| of the sampled tokens", names={VERL: ("training/rollout_probs_diff_mean",)}
    ),
    "kl_sampler_and_old": Quantity(
        words="KL from the sampler to the current policy: mismatch and staleness together",
        names={PRIME: ("mismatch_kl/all/mean",)},
    ),
    "timeout": Quantity(
        words="share of the answers that were not graded in time",
        names={OURS: ("math_reward/timeout", "*/timeout", "*/timeout_rate")},
    ),
    "step_time": Quantity(
        words="seconds per step",
        names={
            TRL: ("step_time",),
            VERL: ("perf/time_per_step", "timing_s/step"),
            OPENRLHF: ("timing/step_total",),
            SKYRL: ("timing/step",),
            SLIME: ("perf/step_time",),
            PRIME: ("time/step",),
            SWIFT: ("train_speed(s/it)",),
        },
    ),
    "tokens_per_second": Quantity(
        words="tokens per second; in verl and SkyRL per GPU",
        names={
            VERL: ("perf/throughput",),
            SKYRL: ("trainer/tokens_per_second_per_gpu",),
            PRIME: ("perf/throughput",),
        },
    ),
    "tokens_seen": Quantity(words="tokens that the run has processed so far", names={TRL: ("num_tokens",)}),
    "epoch": Quantity(
        words="passes over the data", names={TRL: ("epoch",), VERL: ("training/epoch",), SKYRL: ("trainer/epoch",)}
    ),
}
"""The vocabulary of doctor and report."""

STEPS = (
    "step",
    "global_step",
    "global_step/max_steps",
    "train/global_step",
    "training/global_step",
    "trainer/global_step",
    "train/step",
    "rollout/step",
    "iteration",
    "iter",
    "train_step",
    "update",
    "Step",
    "_step",
)
"""Names of the optimiser step, by preference; W&B's `_step` counts its own calls."""

SUMMARY = "train_runtime"
"""Stands in the line that transformers logs after the last step, with means over the run."""

STRIPPED = ("train/",)
"""Prefixes that loggers (W&B, TensorBoard) put before the names of a framework."""

PLACES = frozenset({*STEPS, "epoch", "train/epoch", "time", "_timestamp", "_runtime", "percentage", "elapsed_time"})
"""Names that say where a line stands, and that every line may have."""

EVALUATION = ("eval_", "eval/", "val-", "val/", "test_", "test/")
"""Beginnings of names of evaluations, which are not metrics of training."""

REWARD_FUNCTIONS = (
    "rewards/*/mean",
    "rewards/*",
    "train/agg/all/*/rewards/*/mean",
)
"""Where the mean of each reward function stands: TRL and ms-swift, TRL before 0.17, prime-rl."""

PRINTED = {
    "Loss": "loss/mean",
    "Entropy": "entropy/all/mean",
    "Mismatch KL": "mismatch_kl/all/mean",
    "Grad. Norm": "optim/grad_norm",
    "LR": "optim/lr",
    "Throughput": "perf/throughput",
    "Reward": "train/agg/all/policy/reward/mean",
    "Truncation": "train/agg/all/policy/is_truncated/mean",
}
"""What prime-rl prints -> the name under which it logs it."""

_PREFERENCES = frozenset({"chosen", "rejected", "margins", "accuracies"})
"""What DPO logs under `rewards/`, which are no reward functions."""

_STATISTICS = frozenset(
    {"std", "max", "min", "var", "median", "p10", "p90", "ratio", "frac", "fraction", "rate", "gap", "count", "num"}
    | {"coef", "coeff", "time", "weight", "weights", "penalty", "bonus", "nonzero", "zero", "group", "groups"}
)
"""Words that make a name another statistic than the one that is looked for."""

_NEUTRAL = frozenset(
    {"mean", "avg", "average", "train", "training", "batch", "step", "raw", "env", "total", "policy", "actor", "value"}
)
"""Words that do not."""

_SHARES = frozenset({"ratio", "frac", "fraction", "rate", "group", "groups"})
"""Nor these, where a share is looked for."""


def evaluation(key: str) -> bool:
    """Whether a name is that of an evaluation."""
    return key.startswith(EVALUATION)


@cache
def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, pattern.split("*"))))


@lru_cache(maxsize=10_000)  # a log has few forms of lines
def trains(names: tuple[str, ...]) -> bool:
    """Whether the names of a line say that it is of training and not of an evaluation alone."""
    return any(find(quantity, names) for quantity in ("loss", "reward", "grad_norm", "learning_rate"))


def _bare(key: str) -> str:
    """The name without the prefix of a logger."""
    return next((key.removeprefix(prefix) for prefix in STRIPPED if key.startswith(prefix)), key)


def find(quantity: str, keys: Iterable[str]) -> str | None:
    """The name among `keys` under which a quantity was logged; None if there is none.

    Names are tried by preference, keys in their order. Those of evaluations are not metrics of training.
    """
    keys = [key for key in keys if not evaluation(key)]
    for bare in (False, True):  # the name as it is first: prime-rl has names of its own that begin with train/
        for pattern in QUANTITIES[quantity].patterns:
            expression = _expression(pattern)
            for key in keys:
                if expression.fullmatch(_bare(key) if bare else key):
                    return key
    return None


def reward_functions(keys: Iterable[str]) -> dict[str, str]:
    """Name of each reward function -> the key of its mean."""
    found: dict[str, str] = {}
    for key in keys:
        for pattern in REWARD_FUNCTIONS:
            match = (
                None
                if evaluation(key)
                else re.fullmatch(_groups(pattern), _bare(key)) or re.fullmatch(_groups(pattern), key)
            )
            if match and match[1] not in _PREFERENCES:
                found.setdefault(match[1], key)
                break
    return found


@cache
def _groups(pattern: str) -> str:
    """The last `*` is the name of the function; a name has no slash."""
    *outer, last = pattern.split("*")
    return "[^/]+".join(map(re.escape, outer)) + "([^/]+)" + re.escape(last)


def offers(quantity: str, keys: Iterable[str]) -> tuple[str, ...]:
    """Keys whose words resemble a quantity, the closest first; `keys` that are known names are not for this."""
    found = []
    shares = _SHARES if QUANTITIES[quantity].words.startswith("share") else frozenset()
    for key in keys:
        if evaluation(key):
            continue
        words = frozenset(re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower()))
        for like in QUANTITIES[quantity].like:
            wanted = frozenset(like.split())
            others = words - wanted - _NEUTRAL - shares
            if wanted <= words and not others & _STATISTICS and len(others) <= 2:
                found.append((len(others), key))
                break
    return tuple(key for _, key in sorted(found, key=lambda one: one[0]))


def as_markdown() -> str:
    """The table of the quantities and their names, as in the documentation."""
    lines = ["| quantity | meaning | names |", "| --- | --- | --- |"]
    for name, quantity in QUANTITIES.items():
        names = "; ".join(
            f"{framework}: {', '.join(f'`{one}`' for one in names)}" for framework, names in quantity.names.items()
        )
        cells = (f"`{name}`", quantity.words, names)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)
