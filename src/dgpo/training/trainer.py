"""DGPOTrainer: TRL's GRPOTrainer with our loss. Everything beside the loss stays TRL's."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from huggingface_hub import ModelCard
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback
from trl import GRPOTrainer
from trl.trainer.grpo_trainer import EnvironmentFactory, RewardFunc, RolloutFunc

from dgpo.advantages import History
from dgpo.aggregation import StepTotals
from dgpo.files import write_json_atomic, write_text_atomic
from dgpo.loss import reference_kl
from dgpo.objectives.conformance import settings_in_trl
from dgpo.tokens import check
from dgpo.training import model_card
from dgpo.training.benchmark_evaluation import BenchmarkEvaluation
from dgpo.training.checkpoint_files import HISTORY_FILE
from dgpo.training.config import DGPOConfig
from dgpo.training.data_checks import check_data
from dgpo.training.dynamic_sampling import DynamicSampler
from dgpo.training.metrics import Part, StepMetrics, ratio_parts
from dgpo.training.micro_batches import MULTIMODAL_KEYS as _FORWARD_KEYS
from dgpo.training.micro_batches import MicroBatch, Padding, correct_mask, loss_mask
from dgpo.training.old_logprob import OldLogProbs
from dgpo.training.recording import Recording
from dgpo.training.resumable import ResumableTrainer
from dgpo.training.scoring import Scores, Scoring
from dgpo.training.step_loss import MicroBatchLoss, StepLoss

if TYPE_CHECKING:  # optional packages
    from peft import PeftConfig, PeftModel
    from transformers import BitsAndBytesConfig

EvalData: TypeAlias = (
    Dataset | IterableDataset | DatasetDict | IterableDatasetDict | dict[str, Dataset | IterableDataset]
)

logger = logging.getLogger(__name__)

_TRL_LOGPROB = GRPOTrainer._get_per_token_logps_and_entropies


class DGPOTrainer(ResumableTrainer):
    """Train with any objective of the registry; takes the arguments of `trl.GRPOTrainer`, with a `DGPOConfig`.

    Generation, vLLM, rewards, reference model, PEFT, MoE auxiliary loss, accumulation and distribution are TRL's. The
    normaliser is ours: totals of the whole optimiser step over all ranks (TRL divides by a share of the generation
    batch's tokens), so splitting into micro-batches or ranks changes nothing.

    The loss is computed straight from hidden states (`fused_loss`); where that cannot be, one line in the log says why,
    and log-probs are computed first. Of every micro-batch the policy sees what the gradient needs: responses whose
    advantage is 0 are left out in training (not with a KL term, an entropy bonus, or anything else that reads them),
    columns of padding too, and log π_old is computed by a pass of its own only where the policy has moved. Neither
    changes the gradient beyond rounding.

    Metrics beside TRL's: `objective/` followed by every key of `PolicyLoss.statistics`, and `objective/rows_dropped`,
    the share of responses left out. `entropy` and `objective/` are over the responses that were not left out, except
    for `objective/advantage/zero_fraction`, which is over all.

    Args:
        model: a name of the hub, a folder, a causal language model, or a PEFT model.
        reward_funcs: one reward or several: functions (also asynchronous) that take `prompts`, `completions`,
            `completion_ids` and the columns of the data, `truncated` among them, and return a number or None for each
            completion; reward models or their names. Optional where an environment has `get_reward`.
        args: the configuration; by default a `DGPOConfig` with its defaults.
        train_dataset: rows with `prompt`, a text or messages. Optional where an environment writes the prompts.
        eval_dataset: likewise, or several by name.
        processing_class: the tokenizer or processor; by default the model's.
        reward_processing_classes: tokenizers of reward models, one per reward; by default the models' own.
        callbacks: of transformers, beside the default ones.
        optimizers: optimizer and scheduler; by default those of the configuration.
        quantization_config: for a model that is loaded by its name.
        peft_config: wraps the model in adapters.
        tools: functions with types and docstrings that the model may call while it generates.
        rollout_func: generates in place of TRL: takes prompts and the trainer; returns `prompt_ids`,
            `completion_ids`, `logprobs`, and columns for the rewards.
        environment_factory: makes the environment of a rollout, whose methods the model may call; or several by name.

    The arguments are those of the installed TRL, in its order and with its defaults; its documentation has more.

    Raises:
        TypeError: `args` is not a `DGPOConfig`.
        ValueError: at construction, options that exclude each other, or data or rewards that they cannot have; during
            training, a NaN or infinity at a valid token (see `dgpo.check`).
        RuntimeError: after the first step, if another library patched the trainer so that our loss is never called.

    `train()` also raises what `ResumableTrainer` says, about the output folder and its checkpoints.
    """

    _tag_names = ["trl", "dgpo"]  # noqa: RUF012 - TRL's convention
    _name = "dgpo"
    _paper: ClassVar[dict[str, str]] = {}
    """Empty: title, authors and id belong to the objective (`dgpo.objectives.Paper`)."""

    data_name: str | None = None
    """What the data is called in the model card; set it for data that is not on the hub."""

    args: DGPOConfig
    entropy_coef: float
    _buffered_inputs: Any
    _entropy_window_stats: Tensor | None

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        reward_funcs: RewardFunc | list[RewardFunc] | None = None,
        args: DGPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: EvalData | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        tools: list[Callable[..., Any]] | None = None,
        rollout_func: RolloutFunc | None = None,
        environment_factory: EnvironmentFactory | dict[str, EnvironmentFactory] | None = None,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = DGPOConfig(f"{name.split('/')[-1] or 'model'}-DGPO")
        elif not isinstance(args, DGPOConfig):
            raise TypeError(f"args is a {type(args).__name__}; expected a dgpo.training.DGPOConfig")
        if args.correction is not None and not args.use_vllm and rollout_func is None:
            raise ValueError(
                f"correction = {args.correction!r} needs the sampler's log-probs: use vLLM, or a rollout_func that "
                "returns 'logprobs'"
            )
        super().__init__(
            model=model,
            reward_funcs=reward_funcs,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            reward_processing_classes=reward_processing_classes,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
            tools=tools,
            rollout_func=rollout_func,
            environment_factory=environment_factory,
        )
        self._advantage = args.make_advantage()
        check_data(self, train_dataset)
        self._objective = args.make_objective()
        self._aggregation = args.make_aggregation()
        self._correction = args.make_correction()
        self._trl_options = settings_in_trl(args.objective, self._objective)
        self._kl = self._kl_estimator()
        self._reward_history: History = {}
        self._totals: tuple[int, StepTotals] | None = None
        self._old = OldLogProbs(self)
        self._padding = Padding.of(self.model.config, self.pad_to_multiple_of)
        if type(self).get_gamma_weights is not GRPOTrainer.get_gamma_weights and self.accelerator.is_main_process:
            logger.warning(
                "%s.get_gamma_weights is not called here: the weight is that of objective = %r",
                type(self).__name__,
                args.objective,
            )
        self._recording: Recording | None = None
        self._step_loss = StepLoss(self)
        self._rewards_per_func: Tensor | None = None
        self._scoring = Scoring(self)
        self._dynamic_sampler = DynamicSampler(self) if args.dynamic_sampling else None
        self._step_metrics = StepMetrics()
        self._loss_was_called = False
        self.add_callback(_Guard(self))
        if args.eval_benchmarks:
            self.add_callback(BenchmarkEvaluation(self))
        if args.record is not None:
            self._recording = self._record()

    def _kl_estimator(self) -> str:
        """TRL's: weighted by the ratio that its setting for this objective has, of a token or of a response."""
        if not self.args.use_bias_correction_kl:
            return "k3"
        by_response = self._trl_options.get("importance_sampling_level") == "sequence"
        return "k3_sequence_ratio" if by_response else "k3_ratio"

    def _record(self) -> Recording:
        if self.args.record_sum_pi_squared and not self._step_loss.fused:
            raise ValueError("record_sum_pi_squared = True needs the fused loss, which is off here (see the log)")
        recording = Recording(self)
        self.add_callback(recording)
        return recording

    def _overridden(self) -> str | None:
        """The first method on the way to log-probs that is not ours or TRL's: of a subclass, or patched."""
        for name in ("_get_per_token_logps_and_entropies", "_forward"):
            found = getattr(self, name)
            if getattr(found, "__func__", found) is not DGPOTrainer.__dict__[name]:
                return name
        theirs = GRPOTrainer._get_per_token_logps_and_entropies
        patched = theirs is not _TRL_LOGPROB or theirs.__module__ != GRPOTrainer.__module__
        return "_get_per_token_logps_and_entropies" if patched else None

    def _begin(self) -> None:
        """Forget what an earlier `train()` left behind if it was interrupted inside an optimiser step."""
        if self._step % self.args.gradient_accumulation_steps:  # type: ignore[has-type]
            self._step, self._buffered_inputs, self._totals = 0, None, None
        self._step_metrics = StepMetrics()
        self._entropy_window_stats = None
        self._step_loss.heads.begin()

    # --- rewards and advantages --------------------------------------------------------------------------------

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: Any, completions: Any, completion_ids_list: list[list[int]]
    ) -> Tensor:
        """TRL's, with one more column for the reward functions: which completions were cut off at the token limit."""
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        rows = [
            {**row, "truncated": not ids or ids[-1] not in ends}
            for row, ids in zip(inputs, completion_ids_list, strict=True)
        ]
        self._rewards_per_func = super()._calculate_rewards(rows, prompts, completions, completion_ids_list)
        return self._rewards_per_func

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self._dynamic_sampler is not None and self.model.training:
            return self._dynamic_sampler.generate(inputs)
        return self._generate_once(inputs)[0]

    def _generate_once(self, inputs: list[dict[str, Any]]) -> tuple[dict[str, Any], Scores]:
        """One generation batch of this rank, and what the rewards say of its responses."""
        with self._old.generation():
            output = super()._generate_and_score_completions(inputs)
        assert self._rewards_per_func is not None
        scores = self._scoring(inputs, self._rewards_per_func, output)
        if self.args.positive_nll_coef > 0:
            output["correct"] = scores.correct.to(output["advantages"].device)
        return output, scores

    # --- what the policy sees -----------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        before = self._buffered_inputs
        inputs: dict[str, Any] = super()._prepare_inputs(generation_batch)
        if self.model.training and self._buffered_inputs is not before:
            self._old.fill()
        return inputs

    def _micro_batch(self, inputs: dict[str, Any]) -> MicroBatch:
        return MicroBatch.of(inputs, self._padding, drop=self.model.training and not self._needs_all_rows())

    def _needs_all_rows(self) -> bool:
        """True if responses with advantage 0 matter to more than the policy term, or to that of other responses."""
        return bool(
            self.beta != 0.0
            or self._entropy_bonus_enabled
            or self.aux_loss_enabled
            or self.args.positive_nll_coef > 0
            or self.top_entropy_quantile < 1.0
            or "batch" in self._objective.reads
            or (self._advantage is not None and "entropy" in self._advantage.reads)
        )

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        if self._old.skip():
            return None, None, None
        return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    # --- the loss ----------------------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._loss_was_called = True
        batch = self._micro_batch(inputs)
        totals = self._step_totals(inputs)
        found = self._step_loss(model, batch.inputs, totals)
        loss: Tensor = found.out.value
        if found.aux_loss is not None:
            # a mean per micro-batch by its nature, so it is divided by their number
            loss = loss + self.router_aux_loss_coef * found.aux_loss / self._micro_batches()
        if self.args.positive_nll_coef > 0:
            assert found.logprob is not None
            loss = loss + self.args.positive_nll_coef * self._positive_nll(found.logprob, batch.inputs, inputs)
        if self._recording is not None:
            self._recording.add(model, batch.inputs, found.tokens, totals)
        try:
            # TRL reads metrics off the device in this very step, so one more read costs nothing
            check(found.tokens, batch.inputs.get("ref_per_token_logps"))
        except ValueError:
            if self._recording is not None:
                self._recording.finish()  # so that the token can be looked at
            raise
        self._old.record(inputs, batch, found.tokens.logprob)
        self._log_metrics(found, batch, inputs)
        self._adapt_entropy_coefficient(found)
        return loss

    def _forward(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        logprob, entropies, aux_loss = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].size(1),
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
            **{key: inputs.get(key) for key in _FORWARD_KEYS},
        )
        return logprob, entropies, aux_loss

    def _micro_batches(self) -> int:
        """Micro-batches of the optimiser step at hand; 1 in evaluation, which accumulates nothing."""
        return self.current_gradient_accumulation_steps if self.model.training else 1

    def _positive_nll(self, logprob: Tensor, present: dict[str, Any], inputs: dict[str, Any]) -> Tensor:
        """Mean negative log-likelihood of the step's responses with a positive reward, by the aggregation."""
        mask = correct_mask(present)
        totals = self._totals_of([correct_mask(batch) for batch in self._step_batches(inputs)])
        coefficient = self._aggregation.coefficient(mask, totals, logprob.dtype)
        return (coefficient * -torch.where(mask, logprob, 0.0)).sum()

    def _window_start(self) -> int:
        """The micro-step at which the optimiser step at hand began."""
        return int(self._step - self._step % self.args.gradient_accumulation_steps)

    def _step_batches(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """The micro-batches of the optimiser step at hand."""
        if not self.model.training:
            return [inputs]
        start = self._window_start()
        steps = range(start, start + self._micro_batches())
        return [self._buffered_inputs[step % self.args.steps_per_generation] for step in steps]

    def _step_totals(self, inputs: dict[str, Any]) -> StepTotals:
        """Tokens and sequences of the whole optimiser step, counted once for all its micro-batches."""
        if not self.model.training:
            return self._totals_of([loss_mask(inputs).bool()])
        start = self._window_start()
        if self._totals is None or self._totals[0] != start:
            masks = [loss_mask(batch).bool() for batch in self._step_batches(inputs)]
            self._totals = (start, self._totals_of(masks))
        return self._totals[1]

    def _totals_of(self, masks: list[Tensor]) -> StepTotals:
        """Totals over all ranks, per rank on average: ranks average their gradients."""
        counts = torch.stack(
            [torch.stack([mask.sum() for mask in masks]).sum(), torch.stack([m.any(-1).sum() for m in masks]).sum()]
        )
        counts = self.accelerator.reduce(counts, reduction="sum").clamp(min=1) / self.accelerator.num_processes
        return StepTotals(tokens=counts[0], sequences=counts[1])

    # --- the entropy bonus (TRL's controller, on our normaliser) -------------------------------------------------

    def _entropy_coefficient(self) -> float:
        if self.use_adaptive_entropy and self._last_world_entropy > self.args.entropy_target:
            return 0.0
        return float(self.entropy_coef)

    def _adapt_entropy_coefficient(self, found: MicroBatchLoss) -> None:
        if not self._entropy_bonus_enabled or not self.model.training:
            return
        if self.use_adaptive_entropy:
            self._adapt(found)
        if self.accelerator.sync_gradients:
            self._metrics["train"]["entropy_coef"].append(float(self.entropy_coef))

    def _adapt(self, found: MicroBatchLoss) -> None:
        entropy = found.tokens.entropy
        assert entropy is not None
        counts = torch.stack([(entropy * found.kept).sum(), found.kept.sum().to(entropy.dtype)])
        window = self._entropy_window_stats
        self._entropy_window_stats = counts if window is None else window + counts
        if not self.accelerator.sync_gradients:
            return
        total, count = self.accelerator.reduce(self._entropy_window_stats, reduction="sum").tolist()
        mean = total / max(count, 1.0)
        step = self.args.entropy_coef_delta if mean <= self.args.entropy_target else -self.args.entropy_coef_delta
        self.entropy_coef = min(max(self.entropy_coef + step, self.args.entropy_coef_min), self.args.entropy_coef_max)
        self._last_world_entropy = mean
        self._entropy_window_stats = None

    # --- the history that some advantages keep, in every checkpoint ------------------------------------------------

    def _save_own_state(self, folder: Path) -> None:
        super()._save_own_state(folder)
        if self._keeps_history() and self.args.should_save:
            write_json_atomic(folder / HISTORY_FILE, self._reward_history)

    def _load_own_state(self, folder: Path) -> None:
        super()._load_own_state(folder)
        if self._keeps_history() and (folder / HISTORY_FILE).is_file():
            self._reward_history = json.loads((folder / HISTORY_FILE).read_text(encoding="utf-8"))

    def _keeps_history(self) -> bool:
        return self._advantage is not None and "history" in self._advantage.reads

    # --- the model card ------------------------------------------------------------------------------------------

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write the model card: objective and settings, the base model, the papers of the method that was used.

        Args:
            model_name: in the title; the name of the output folder if not given.
            dataset_name: of the data on the hub; `data_name` says what other data is called.
            tags: beside TRL's and ours.
        """
        super().create_model_card(model_name, dataset_name, tags)
        if not self.is_world_process_zero():
            return
        # the metadata and the links to trackers are TRL's, the text is not: its template knows one paper per trainer
        file = Path(self.args.output_dir) / "README.md"
        card = ModelCard.load(file)
        badges = [line for line in card.text.splitlines() if line.startswith("[<img")]
        data = model_card.fill_data(card.data, model_card.Base.of(self.model))
        text = model_card.text(self, model_name, dataset_name, badges)
        write_text_atomic(file, f"---\n{data.to_yaml()}\n---\n\n{text}")

    # --- metrics -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _log_metrics(self, found: MicroBatchLoss, batch: MicroBatch, inputs: dict[str, Any]) -> None:
        tokens = found.tokens
        assert tokens.entropy is not None
        count = tokens.mask.sum().to(tokens.dtype)
        values = {f"objective/{name}": value for name, value in found.out.statistics.items()}
        values["entropy"] = tokens.entropy.sum() / count.clamp(min=1)
        if self.beta != 0.0:
            kl = reference_kl(tokens, batch.inputs["ref_per_token_logps"], self._kl)
            values["kl"] = kl.sum() / count.clamp(min=1)
        whole = values.pop("objective/advantage/zero_fraction")
        mask = tokens.mask if batch.rows is None else loss_mask(inputs).bool()
        everything, responses = mask.sum().to(tokens.dtype), mask.any(-1).sum().to(tokens.dtype)
        if batch.rows is not None:
            whole = 1 - ((tokens.advantage != 0) & tokens.mask).sum() / everything.clamp(min=1)
        of_all = {
            "objective/advantage/zero_fraction": whole,
            "objective/rows_dropped": torch.full_like(count, batch.dropped),
        }
        one = torch.ones_like(count)
        parts = [Part(values=values, count=count), Part(values=of_all, count=everything)]
        if found.aux_loss is not None:
            parts.append(Part(values={"aux_loss": found.aux_loss}, count=one))
        if self._entropy_bonus_enabled:
            policy = found.out.value + self._entropy_coefficient() * found.bonus
            parts.append(Part(values={"policy_loss": policy}, count=one, how="sum"))
        parts += ratio_parts(self._trl_options, tokens, found.out.weight, everything, responses)
        self._step_metrics.add(*parts)
        if self.model.training and not self.accelerator.sync_gradients:
            return
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, value in self._step_metrics.reduce(self.accelerator).items():
            metrics[name].append(value)


class _Guard(TrainerCallback):
    """Clean windows at the beginning of `train()`, and our loss in the first step of it."""

    def __init__(self, trainer: DGPOTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer._begin()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if not self.trainer._loss_was_called:
            kind = type(self.trainer)
            name = "compute_loss" if kind._compute_loss is DGPOTrainer._compute_loss else "_compute_loss"
            found = getattr(kind, name)
            raise RuntimeError(
                f"DGPOTrainer._compute_loss was not called during the first optimiser step: something replaced {name} "
                f"(found {found.__module__}.{found.__qualname__}), so another loss was trained. A subclass calls "
                f"super().{name}(...); libraries that patch TRL (unsloth does) must not be imported before this "
                "trainer runs"
            )
