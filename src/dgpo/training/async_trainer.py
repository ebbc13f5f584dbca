"""AsyncDGPOTrainer: TRL's experimental AsyncGRPOTrainer with our loss. Everything beside the loss stays TRL's."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from trl.experimental.async_grpo import AsyncGRPOConfig, AsyncGRPOTrainer

from dgpo.aggregation import StepTotals
from dgpo.loss import check_loss, loss_of
from dgpo.objectives.hard_clip import HardClip
from dgpo.spec import LossSpec
from dgpo.tokens import TokenBatch
from dgpo.training.loss_options import DEFAULT_AGGREGATION, LossOptions, documented, option
from dgpo.training.metrics import Part, StepMetrics

TRL_EPSILON = 0.2
"""TRL's default, for its metrics of the clip where the objective has no range of its own."""


@documented
@dataclass
class AsyncDGPOConfig(LossOptions, AsyncGRPOConfig):
    """TRL's `AsyncGRPOConfig` with the factors of the loss as fields, those that `DGPOConfig` has too.

    The samples carry the log-probs of the vLLM server that drew them, some updates ago. By default the ratio is taken
    against these (`anchor="rollout"`), as TRL's is. With `anchor="old"` it is taken against the policy that the update
    starts from, which is the policy itself: every ratio is 1, and a `correction` bounds what the samples are stale by.
    """

    _VALID_DICT_FIELDS = [  # noqa: RUF012 - TRL's convention
        *AsyncGRPOConfig._VALID_DICT_FIELDS,
        "objective",
        "objective_kwargs",
        "aggregation",
        "aggregation_kwargs",
        "correction",
    ]

    anchor: str = option(
        "rollout",
        "Policy that the ratio of the objective is taken against: 'rollout' is the sampler, some updates behind; 'old' "
        "is the policy that the update starts from, so that every ratio is 1 and correction bounds the staleness.",
    )
    epsilon: float | None = option(
        None, "Sets eps_low of an objective that has it, and eps_high too unless epsilon_high is set."
    )
    epsilon_high: float | None = option(None, "Sets eps_high of an objective that has it; the cap of 'cispo'.")

    def __post_init__(self) -> None:
        self.name_instances()
        options = {name: value for name in ("epsilon", "epsilon_high") if (value := getattr(self, name)) is not None}
        if options:
            found = self.meaning_of(options)
            self.objective_kwargs = found.fields or None
        self.aggregation = self.aggregation or DEFAULT_AGGREGATION
        # built once here, so that a wrong value fails at construction and not at the first step
        self.make_spec()
        super().__post_init__()

    def make_spec(self) -> LossSpec:
        """The loss of this config. Raises ValueError for an unknown name or field, or a value out of range."""
        return LossSpec(
            objective=self.make_objective(),
            aggregation=self.make_aggregation(),
            correction=self.make_correction(),
            anchor=self.anchor,
        )


class AsyncDGPOTrainer(AsyncGRPOTrainer):
    """Train asynchronously with any objective of the registry; takes TRL's arguments, with an `AsyncDGPOConfig`.

    Generation, the queue, the synchronisation of weights, packing and checkpoints are TRL's, which calls this trainer
    experimental. The loss is `policy_loss` of each micro-batch, divided as TRL divides: by what the micro-batch has on
    all ranks, and by the number of micro-batches of the update, because those that follow are still in the queue. With
    one micro-batch per update this is the normalisation over the update that `DGPOTrainer` has.

    Metrics beside TRL's: `objective/` followed by every key of `PolicyLoss.statistics`. `objective/kl/sampler` is the
    distance of the sampler from the current policy, staleness included. TRL's `clip_ratio/` is logged for objectives
    with a hard clip only.

    There is no recording, fused loss, KL term or advantage of ours here.

    Raises:
        TypeError: `args` is not an `AsyncDGPOConfig`.
        ValueError: during training, a NaN or infinity at a valid token, or in a weight (see `dgpo.check_loss`).
    """

    _tag_names = ["trl", "async-dgpo"]  # noqa: RUF012 - TRL's convention
    _name = "AsyncDGPO"
    _paper: ClassVar[dict[str, str]] = {}
    """Empty: title, authors and id belong to the objective (`dgpo.objectives.Paper`)."""

    def __init__(
        self,
        model: str,
        reward_funcs: Any = None,
        args: AsyncDGPOConfig | None = None,
        *others: Any,
        **options: Any,
    ) -> None:
        if args is None:
            args = AsyncDGPOConfig(f"{model.split('/')[-1]}-AsyncDGPO")
        elif not isinstance(args, AsyncDGPOConfig):
            raise TypeError(f"args is a {type(args).__name__}; expected a dgpo.training.async_trainer.AsyncDGPOConfig")
        self._spec = args.make_spec()
        self._step_metrics = StepMetrics()
        super().__init__(model, reward_funcs, args, *others, **options)
        # TRL reads these for its metrics of the clip alone, since its loss is not used
        self.epsilon_low = getattr(self._spec.objective, "eps_low", TRL_EPSILON)
        self.epsilon_high = getattr(self._spec.objective, "eps_high", TRL_EPSILON)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        kept = _Kept(model)
        # for its forward pass, metrics and accounting; its loss has no part in the gradient
        super().compute_loss(kept, inputs, return_outputs, num_items_in_batch)
        if not isinstance(self._spec.objective, HardClip):
            for name in [name for name in self._metrics["train"] if name.startswith("clip_ratio/")]:
                del self._metrics["train"][name]
        tokens = _rows(kept.outputs, inputs)
        accumulation = self.current_gradient_accumulation_steps
        out = loss_of(self._spec, tokens, totals=self._totals(tokens, inputs, accumulation))
        check_loss(out, tokens, self._spec.objective, anchor=self._spec.anchor)
        loss = out.value
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * kept.outputs.aux_loss / accumulation
        self._log_statistics(out.statistics, tokens.mask.sum())
        return loss

    def _totals(self, tokens: TokenBatch, inputs: dict[str, Any], accumulation: int) -> StepTotals:
        """Of the micro-batch on all ranks, per rank on average, as if all micro-batches of the update were alike."""
        ranks = self.accelerator.num_processes
        count = inputs["global_n_tokens"][0] / ranks
        sequences = self.accelerator.reduce(tokens.mask.any(-1).sum().to(count.dtype), reduction="sum") / ranks
        return StepTotals(tokens=count.clamp(min=1) * accumulation, sequences=sequences.clamp(min=1) * accumulation)

    def _log_statistics(self, statistics: dict[str, Tensor], count: Tensor) -> None:
        self._step_metrics.add(
            Part(values={f"objective/{name}": value for name, value in statistics.items()}, count=count.float())
        )
        if self.accelerator.sync_gradients:
            for name, value in self._step_metrics.reduce(self.accelerator).items():
                self._metrics["train"][name].append(value)


class _Kept:
    """The model, which keeps what its last call returned."""

    outputs: Any = None

    def __init__(self, model: Callable[..., Any]) -> None:
        self._model = model

    def __call__(self, **inputs: Any) -> Any:
        self.outputs = self._model(**inputs)
        return self.outputs


def _rows(outputs: Any, inputs: dict[str, Any]) -> TokenBatch:
    """[B, T] of TRL's packed loss terms [M], a row for each of the B samples; π_old is the policy itself."""
    there = inputs["token_index"] >= 0
    index, sample = inputs["token_index"][there], inputs["segment_id"][there]
    counts = torch.bincount(sample)
    # TRL packs the terms sample by sample, each from left to right
    place = torch.arange(len(sample), device=sample.device) - (counts.cumsum(0) - counts)[sample]
    shape = len(counts), int(counts.max()) if len(counts) else 0

    def padded(values: Tensor) -> Tensor:
        return values.new_zeros(shape).index_put((sample, place), values)

    return TokenBatch(
        padded(outputs.log_probs.flatten()[index]),
        None,
        padded(inputs["advantages"][there]),
        padded(torch.ones_like(sample, dtype=torch.bool)),
        rollout_logprob=padded(inputs["old_log_probs"][there]),
        entropy=padded(outputs.entropy.flatten()[index].detach()),
    )
