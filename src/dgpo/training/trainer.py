"""DGPOTrainer: TRL's GRPOTrainer with our loss. Everything beside the loss stays TRL's."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from accelerate.utils import DistributedType
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from huggingface_hub import ModelCard
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, Trainer, TrainerCallback
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.grpo_trainer import EnvironmentFactory, RewardFunc, RolloutFunc

from dgpo.aggregation import StepTotals
from dgpo.evaluation.decoding import faster_generate
from dgpo.files import write_json_atomic, write_text_atomic
from dgpo.kl import reference_kl
from dgpo.loss import check_loss
from dgpo.runs.log import Log
from dgpo.training import model_card
from dgpo.training.benchmark_evaluation import BenchmarkEvaluation
from dgpo.training.checkpoint_files import HISTORY_FILE
from dgpo.training.config import DGPOConfig
from dgpo.training.data_checks import check_data, columns_for_rewards, first_prompt
from dgpo.training.dynamic_sampling import DynamicSampler
from dgpo.training.factors import Factors, Terms
from dgpo.training.head import Heads, why_bypassed, why_not_fused
from dgpo.training.layout import Kind
from dgpo.training.metrics import StepMetrics, parts_of
from dgpo.training.micro_batches import MULTIMODAL_KEYS as _FORWARD_KEYS
from dgpo.training.micro_batches import Padding, correct_mask, loss_mask, totals_of
from dgpo.training.old_logprob import OldLogProbs, can_defer
from dgpo.training.recording import Recording, Sampled, check_record, describe
from dgpo.training.resumable import ResumableTrainer
from dgpo.training.reward_checks import check_signatures, checked
from dgpo.training.scoring import Scores, Scoring
from dgpo.training.step_loss import MicroBatchLoss, StepLoss
from dgpo.training.step_rows import How, Part, StepRows
from dgpo.training.teacher import Teacher
from dgpo.training.terminal import TerminalLog

if TYPE_CHECKING:  # optional packages
    from peft import PeftConfig, PeftModel
    from transformers import BitsAndBytesConfig

EvalData: TypeAlias = (
    Dataset | IterableDataset | DatasetDict | IterableDatasetDict | dict[str, Dataset | IterableDataset]
)

logger = logging.getLogger(__name__)

# as TRL defines it when this module is imported, so that a patch made afterwards can be told from it
_TRL_LOGPROB = GRPOTrainer._get_per_token_logps_and_entropies


class DGPOTrainer(ResumableTrainer):
    """Train with any objective of the registry; takes the arguments of `trl.GRPOTrainer`, with a `DGPOConfig`.

    Generation, vLLM, rewards, reference model, PEFT, MoE auxiliary loss, accumulation and distribution are TRL's. The
    normaliser is ours: totals of the whole optimiser step over all ranks (TRL divides by a share of the generation
    batch's tokens), so splitting into micro-batches or ranks changes nothing.

    The loss is computed straight from hidden states (`fused_loss`); where that is not possible, one log line gives the
    reason, and log-probs are computed first. The policy sees only what the gradient needs: in training, responses with
    advantage 0 are left out (unless a KL term, an entropy bonus or something else reads them), and so are columns of
    padding. The responses of an optimiser step are sorted by length before they are cut into micro-batches
    (`sort_by_length`), and a micro-batch may be computed in several passes (`max_tokens_per_micro_batch`). log π_old is
    computed by a separate pass only where the policy has moved. None of this changes the gradient beyond rounding. A
    subclass that overrides `compute_loss` or `_compute_loss` is given TRL's micro-batches with all their responses.

    A run prints a short line per log in place of TRL's dictionary, and all metrics are in `log.jsonl` in the output
    folder, or in the `metrics.jsonl` of a recorded run.
    `remove_callback(dgpo.training.terminal.TerminalLog)` turns the lines and `log.jsonl` off.

    Metrics beside TRL's: `objective/` followed by every key of `PolicyLoss.statistics`; `objective/rows_dropped`, the
    share of responses left out; `objective/padding`, the share of computed positions that hold no token. `entropy` and
    `objective/` are over the responses that were not left out, except for `objective/advantage/zero_fraction`, which is
    over all.

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
        RewardError: a reward that cannot be called with what TRL passes (at construction), or that returns something
            else than one number or None per completion.
        ValueError: at construction, options that exclude each other, data or rewards that they cannot have, or a
            `record` with a run that cannot be continued; during
            training, a NaN or infinity at a valid token, or in a weight (see `dgpo.check_loss`).
        RuntimeError: after the first step, if another library patched the trainer so that our loss is never called.

    `train()` also raises the errors of `ResumableTrainer` about the output folder and its checkpoints.
    """

    _tag_names = ["trl", "dgpo"]  # noqa: RUF012 - TRL's convention
    _name = "dgpo"
    _paper: ClassVar[dict[str, str]] = {}
    """Empty: title, authors and id belong to the objective (`dgpo.objectives.Paper`)."""

    data_name: str | None = None
    """What the data is called in the model card; set it for data that is not on the hub."""

    args: DGPOConfig
    entropy_coef: float
    reward_funcs: list[Any]
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
        if not args.use_vllm and rollout_func is None:
            args.check_no_sampler()
        check_record(args)
        check_signatures(
            reward_funcs,
            columns_for_rewards(args, train_dataset, eval_dataset),
            environments=environment_factory is not None,
            # either may add columns to the rows
            more=rollout_func is not None or environment_factory is not None,
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
        self._factors = Factors.of(args)
        # after TRL's constructor, which sets the data, the environments and the chat template that are checked
        check_data(
            args,
            self.train_dataset,
            self.eval_dataset,
            given=train_dataset is not None,
            environment=self.environment_factories is not None,
            conversations=bool(self.chat_template or self._has_chat_template()) or rollout_func is not None,
        )
        self._totals: tuple[int, StepTotals] | None = None
        self._rows: tuple[int, StepRows] | None = None
        self._old = OldLogProbs(args.schedule, self._write_logprob)
        self._padding = Padding.of(self.model.config, self.pad_to_multiple_of)
        # before weights are sharded; with ZeRO-3 nothing of them is here
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self._embedding_share = self.model.get_input_embeddings().weight.numel() / max(parameters, 1)
        # TRL multiplies its vespo loss by this method's result; a subclass that overrides it expects an effect
        if type(self).get_gamma_weights is not GRPOTrainer.get_gamma_weights and self.accelerator.is_main_process:
            logger.warning(
                "%s.get_gamma_weights is not called here: the weight is that of objective = %r",
                type(self).__name__,
                args.objective,
            )
        self._recording: Recording | None = None
        heads = Heads(
            args,
            self.model,
            self.ref_model,
            self.accelerator,
            why_not_fused=self._why_not_fused() if args.fused_loss else None,
            compare=not self._is_vlm,
        )
        self._check_budget()
        # looked up on each call: somebody may patch it later
        self._step_loss = StepLoss(self._factors, heads, lambda *given: self._forward(*given), self.accelerator)
        self._rewards_per_func: Tensor | None = None
        self._scored: bool | None = None  # until something is sampled in training
        self._sampled: Sampled | None = None
        named = list(zip(self.reward_func_names, self.reward_funcs, strict=True))
        self._scoring = Scoring(args, named, self.reward_weights.tolist(), self._factors.advantage)
        self._teacher: Teacher | None = None
        if self._factors.advantage is not None and self._factors.advantage_reads("teacher"):
            if self._is_vlm:
                raise ValueError(
                    f"advantage = {args.advantage!r} has a teacher that reads text, and the model reads images"
                )
            student = self.accelerator.unwrap_model(self.model)
            self._teacher = Teacher(args, self._factors.advantage, student, self._tokenizer, self.accelerator)
        self._dynamic_sampler: DynamicSampler | None = None
        if args.dynamic_sampling:
            self._dynamic_sampler = DynamicSampler(
                args, self.train_dataset, self._generate_once, self.accelerator, self._tokenizer.pad_token_id
            )
        self._step_metrics = StepMetrics()
        self._loss_was_called = False
        self.add_callback(_Guard(self))
        TerminalLog.install(self, args)
        if args.eval_benchmarks:
            # not TRL's log, which would take along, and forget, what training has gathered so far
            log = partial(Trainer.log, self)
            self.add_callback(
                BenchmarkEvaluation(args, self._tokenizer, lambda: self.model_wrapped, log, self.accelerator)
            )
        if args.record is not None:
            ranks = self.accelerator.num_processes
            self._recording = Recording(
                args,
                heads,
                lambda: describe(args, self._factors, self.model, self.train_dataset, ranks, self.reward_func_names),
                self.processing_class,
                self.accelerator,
            )
            self.add_callback(self._recording)

    @property
    def scored_any(self) -> bool:
        """False if training has sampled completions, and no reward has scored one of them: all gave None or NaN."""
        return self._scored is not False

    def _check_fresh(self) -> None:
        if self._recording is not None:
            self._recording.check_free()

    def _why_not_fused(self) -> str | None:
        return (
            self._overridden()
            or why_bypassed(self.model)
            or why_not_fused(self.args, self.model, images=self._is_vlm, aux_loss=self.aux_loss_enabled)
        )

    def _overridden(self) -> str | None:
        """The first method on the way to log-probs that is not ours or TRL's, in words: of a subclass, or patched."""
        name = None
        for own in ("_get_per_token_logps_and_entropies", "_forward"):
            found = getattr(self, own)
            # not `is` on the bound method: attribute access makes a new one each time
            if name is None and getattr(found, "__func__", found) is not DGPOTrainer.__dict__[own]:
                name = own
        theirs = GRPOTrainer._get_per_token_logps_and_entropies
        if name is None and (theirs is not _TRL_LOGPROB or theirs.__module__ != GRPOTrainer.__module__):
            name = "_get_per_token_logps_and_entropies"
        return name and f"{type(self).__name__} overrides {name}, which the fused loss would not call"

    def _own_loss(self) -> str | None:
        """The first method that passes the loss on and is not ours or TRL's, in words: of a subclass, or patched.

        It may scale the loss, add a term over all rows of its micro-batch, or give advantages to rows that have none.
        """
        for name in ("compute_loss", "_compute_loss"):
            found = getattr(self, name)
            if getattr(found, "__func__", found) is not getattr(DGPOTrainer, name):
                return f"{type(self).__name__} overrides {name}, which is to meet the micro-batches of TRL"
        return None

    def _check_budget(self) -> None:
        budget = self.args.max_tokens_per_micro_batch
        if budget is not None and (reason := self._why_not_sorted()) is not None:
            raise ValueError(f"max_tokens_per_micro_batch = {budget} is not possible here: {reason}")

    def _begin(self) -> None:
        """Forget what an earlier `train()` left behind if it was interrupted inside an optimiser step."""
        self._check_budget()  # a loss may have been patched since
        if (own := self._own_loss()) is not None and self.args.sort_by_length and self.accelerator.is_main_process:
            logger.warning("responses are neither sorted nor left out: %s", own)
        if self._step % self.args.gradient_accumulation_steps:  # type: ignore[has-type]
            # the old buffer belongs to the interrupted step; with step 0 the next micro-step generates anew
            self._step, self._buffered_inputs, self._totals = 0, None, None
        self._rows = None
        self._scored = None
        self._step_metrics = StepMetrics()
        self._entropy_window_stats = None
        self._step_loss.heads.begin(self.model, self._overridden())

    # --- rewards and advantages --------------------------------------------------------------------------------

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: Any, completions: Any, completion_ids_list: list[list[int]]
    ) -> Tensor:
        """TRL's, with one more column for the reward functions: which completions were cut off at the token limit."""
        # the rule by which TRL itself finds truncated completions: its stop tokens and padding
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        rows = [
            {**row, "truncated": not ids or ids[-1] not in ends}
            for row, ids in zip(inputs, completion_ids_list, strict=True)
        ]
        own = self.reward_funcs
        self.reward_funcs = [checked(*named) for named in zip(self.reward_func_names, own, strict=True)]
        try:
            self._rewards_per_func = super()._calculate_rewards(rows, prompts, completions, completion_ids_list)
        finally:
            self.reward_funcs = own
        self._sampled = Sampled(
            rows=inputs,
            token_ids=completion_ids_list,
            truncated=[row["truncated"] for row in rows],
            names=self.reward_func_names,
            rewards=self._rewards_per_func,
            first=self.accelerator.process_index * len(inputs),
        )
        return self._rewards_per_func

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        # an evaluation reports the prompts that it was given and does not resample them
        if self._dynamic_sampler is None or not self.model.training:
            return self._generate_once(inputs)[0]
        output, logged = self._dynamic_sampler.generate(inputs, self.state.global_step)
        for name, value in logged.items():
            self._metrics["train"][name].append(value)
        return output

    def _generate_once(self, inputs: list[dict[str, Any]]) -> tuple[dict[str, Any], Scores]:
        """One generation batch of this rank, and what the rewards say of its responses."""
        with self._old.generation(deferred=self._can_defer()):
            output = super()._generate_and_score_completions(inputs)
        # TRL gathers the rewards of all ranks before it forms advantages, so `scores` covers all ranks
        assert self._rewards_per_func is not None
        training = self.model.training
        rewards = self._rewards_per_func.cpu()
        if training:
            self._scored = self._scored or not bool(rewards.isnan().all())
        size = self.num_generations if training else self.num_generations_eval
        scores = self._scoring(
            inputs,
            rewards,
            self.reward_weights.cpu(),
            size,
            self.multi_objective_aggregation,
            training=training,
        )
        self._correct_logs(scores, size)
        given = output["advantages"]
        # the slice that TRL takes of the gathered advantages
        first = self.accelerator.process_index * len(given)
        mine = scores.of(slice(first, first + len(given)))
        output["advantages"] = mine.in_place_of(given)
        if self.args.positive_nll_coef > 0:
            output["correct"] = mine.correct.to(given.device)
        if training and self._recording is not None:
            assert self._sampled is not None
            self._recording.write(self.state.global_step, self._sampled, output)
        if self._teacher is not None:
            output["advantages"], kl = self._teacher.advantages(output, self.model, self._logprob_of)
            self._metrics["train" if training else "eval"]["objective/kl/teacher"].append(kl)
        return output, mine

    @torch.no_grad()
    def _logprob_of(self, model: Any, output: dict[str, Any]) -> Tensor:
        """[B, T] log-probs of a whole generation under a model, a micro-batch at a time."""
        with disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            logprob, _, _ = self._get_per_token_logps_and_entropies(
                model,
                torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1),
                torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1),
                output["completion_ids"].size(1),
                batch_size=self.args.per_device_train_batch_size,
            )
        return logprob

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        # vLLM has weights of its own, and continuous batching casts the model; under autocast the synchronisation
        # would also merge adapters in 16 bits
        if self.use_vllm or self.use_transformers_continuous_batching:
            return super()._generate_single_turn(*args, **kwargs)
        # autocast forgets the weights that it has cast when its outermost context ends; without this one that is the
        # forward pass of every single token
        with self.accelerator.autocast():
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                # every rank has to call the model as often as the others: until the longest response of all ends
                return super()._generate_single_turn(*args, **kwargs)
            with faster_generate(self.model):
                return super()._generate_single_turn(*args, **kwargs)

    def _correct_logs(self, scores: Scores, size: int) -> None:
        """Bring into line what TRL has just logged of its advantages of all ranks."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        # one entry per group: all responses of a group agree
        metrics["frac_reward_zero_std"][-1] = (~scores.spread[::size]).float().mean().item()
        logged = self._logs["advantages"]  # bounded: only the last ones are kept
        count = min(len(logged), len(scores.total))
        # TRL has appended the advantages of this generation at the end of the bounded list
        before = [logged.pop() for _ in range(count)][::-1]
        last = scores.of(slice(len(scores.total) - count, None))
        logged.extend(last.in_place_of(torch.tensor(before, dtype=torch.float64)).tolist())

    # --- what the policy sees -----------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        before = self._buffered_inputs
        inputs: dict[str, Any] = super()._prepare_inputs(generation_batch)
        if not self.model.training:
            return inputs
        # only after TRL has shuffled the generation and split it: log π_old is filled in per update
        if self._buffered_inputs is not before:
            self._old.fill(self._buffered_inputs, self._step)
        start = self.args.schedule.update_of(self._step).start
        # a collective: every rank is at the first micro-batch of an update at the same time
        if self._rows is None or self._rows[0] != start:
            self._rows = (start, StepRows(self._step_batches(inputs), self._how()))
        return self._rows[1].inputs(self._step - start)

    def _can_defer(self) -> bool:
        """Whether log π_old can wait for the pass of the loss."""
        # TRL's correction compares log π_old with the sampler's while it generates
        early = self.use_vllm and self.vllm_importance_sampling_correction
        # so does a teacher's advantage
        early = early or self._teacher is not None
        # a method of somebody's own is to see every pass, and its result
        return not early and self._overridden() is None and can_defer(self.args, self.model)

    def _write_logprob(self, micro_batches: list[dict[str, Any]], key: str) -> None:
        """log π [B, T], by the arithmetic of the loss, on the rows and columns that the loss will read."""
        rows = StepRows(micro_batches, self._how())
        found: list[Tensor] = []
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            for step in range(rows.layout.steps):
                found.extend(self._logprob(part) for part in rows.parts(step, rows.inputs(step)))
        rows.write(key, found)

    def _logprob(self, part: Part) -> Tensor:
        if part.inputs.get("sampling_per_token_logps") is None:
            self.args.check_no_sampler()
        return self._step_loss.logprob(self.model, part.inputs, self._terms(), part.packing, part.valid)

    def _how(self) -> How:
        """What may be done with the rows of a step, or of an evaluation's batch."""
        budget = self.args.max_tokens_per_micro_batch
        training = self.model.training
        rearrange = self._why_not_sorted() is None and (self.args.sort_by_length if training else budget is not None)
        return How(
            padding=self._padding,
            drop=training and not self._needs_all_rows(),
            rearrange=rearrange,
            budget=budget,
            agree=self._passes,
            kinds=self._kinds() if rearrange else ("padded",),
            embedding=self._embedding_share,
        )

    def _kinds(self) -> list[Kind]:
        """In which ways rows may go through the model."""
        args, heads = self.args, self._step_loss.heads
        # by default only where it was measured
        here = self.accelerator.device.type == "cpu"
        packed = (
            heads.fused and heads.why_not_packed is None and (here if args.padding_free is None else args.padding_free)
        )
        share = packed if args.shared_prompts is None else args.shared_prompts
        shared = share and heads.fused and heads.why_not_packed is None and heads.why_not_shared is None
        if args.shared_prompts and shared:
            return ["shared"]
        kinds: list[Kind] = [] if args.padding_free and packed else ["padded"]
        return kinds + ["packed"] * packed + ["shared"] * shared

    def _passes(self, count: int) -> int:
        """Forward passes of a step, where this rank's rows need `count`: the most of all ranks; a collective."""
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            # its engine fails after a micro-step in which no parameter had a gradient
            count = max(count, self._micro_batches())
        if self.accelerator.num_processes == 1:
            return count
        mine = torch.tensor([count], device=self.accelerator.device)
        return int(self.accelerator.gather(mine).max())

    def _why_not_sorted(self) -> str | None:
        """What ties rows to the micro-batch that they are in, in words."""
        reasons = {
            f"objective = {self.args.objective!r} reads its micro-batch": "batch" in self._factors.spec.objective.reads,
            "top_entropy_quantile ranks the tokens of a micro-batch": self.top_entropy_quantile < 1.0,
            "the auxiliary loss of a mixture of experts is a mean per micro-batch": self.aux_loss_enabled,
            "the model reads images": self._is_vlm,
        }
        return self._own_loss() or next((reason for reason, holds in reasons.items() if holds), None)

    def _needs_all_rows(self) -> bool:
        """True if responses with advantage 0 matter to more than the policy term, or to that of other responses."""
        return bool(
            self.beta != 0.0
            or self._own_loss()
            or self._entropy_bonus_enabled
            or self.aux_loss_enabled
            or self.args.positive_nll_coef > 0
            or self.top_entropy_quantile < 1.0
            or "batch" in self._factors.spec.objective.reads
            or self._factors.spec.objective.penalises
            or self._factors.advantage_reads("entropy")
        )

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        if self._old.skip():
            return None, None, None
        return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    # --- the loss ----------------------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._loss_was_called = True
        totals = self._step_totals(inputs)
        rows, parts = self._parts(inputs)
        if not parts:  # the rows of the update fit into fewer forward passes than it has micro-steps
            return torch.zeros((), device=self.accelerator.device, requires_grad=True)
        earlier = []
        for part in parts[:-1]:
            with self._accumulating(model):
                loss = self._loss_of_part(model, rows, part, totals, inputs)
                if self.model.training:
                    self._backward(loss)
            earlier.append(loss.detach())
        # the caller takes the gradient of the last part, which ends the micro-step
        loss = self._loss_of_part(model, rows, parts[-1], totals, inputs)
        return loss + sum(earlier) if earlier else loss

    def _parts(self, inputs: dict[str, Any]) -> tuple[StepRows, list[Part]]:
        """The forward passes of this micro-step."""
        if self.model.training and self._rows is not None:
            start, rows = self._rows
            if start == self.args.schedule.update_of(self._step).start and rows.fits(self._step - start, inputs):
                return rows, rows.parts(self._step - start, inputs)
        # an evaluation, or rows that are not those of the step: a batch by itself
        rows = StepRows([inputs], self._how())
        return rows, rows.parts(0, rows.inputs(0))

    @contextmanager
    def _accumulating(self, model: Any) -> Iterator[None]:
        """Around a forward and backward pass that others of the same micro-step follow: ranks do not reduce yet."""
        state = self.accelerator.gradient_state
        if not (self.model.training and state.sync_gradients):
            yield  # the whole micro-step is without
            return
        state._set_sync_gradients(False)
        try:
            with self.accelerator.no_sync(model):
                yield
        finally:
            state._set_sync_gradients(True)

    def _backward(self, loss: Tensor) -> None:
        # the context of the loss casts; a backward pass runs outside, as that of the last part does
        deepspeed = {"scale_wrt_gas": False} if self.accelerator.distributed_type == DistributedType.DEEPSPEED else {}
        with torch.autocast(loss.device.type, enabled=False):
            self.accelerator.backward(loss, **deepspeed)

    def _loss_of_part(
        self, model: Any, rows: StepRows, part: Part, totals: StepTotals, inputs: dict[str, Any]
    ) -> Tensor:
        if part.inputs.get("sampling_per_token_logps") is None:
            self.args.check_no_sampler()
        # a loss of somebody's own may have changed the masks in the dictionary that it was given
        valid = part.valid if self._own_loss() is None else None
        found = self._step_loss(model, part.inputs, totals, self._terms(), part.packing, valid)
        loss: Tensor = found.out.value
        if found.aux_loss is not None:
            # a mean per micro-batch by its nature, so it is divided by their number
            loss = loss + self.router_aux_loss_coef * found.aux_loss / self._micro_batches()
        if self.args.positive_nll_coef > 0:
            assert found.logprob is not None
            loss = loss + self.args.positive_nll_coef * self._positive_nll(found.logprob, part.inputs, inputs)
        if self._recording is not None and self.model.training:
            # updates are counted from 1; global_step still counts the completed ones
            self._recording.add(self.state.global_step + 1, model, part, found.tokens, totals)
        try:
            # the one read of a forward pass from the device
            spec, reference = self._factors.spec, part.inputs.get("ref_per_token_logps")
            check_loss(found.out, found.tokens, spec.objective, ref_logprob=reference, anchor=spec.anchor)
        except ValueError:
            if self._recording is not None:
                self._recording.finish()  # so that the token can be inspected
            raise
        if self.model.training:
            self._old.record(rows, part, found.tokens.logprob)
        # before the coefficient changes: the metrics show the one that this loss was computed with
        self._log_metrics(found, rows, part)
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
        totals = totals_of([correct_mask(batch) for batch in self._step_batches(inputs)], self.accelerator)
        coefficient = self._factors.spec.aggregation.coefficient(mask, totals, logprob.dtype)
        return (coefficient * -torch.where(mask, logprob, 0.0)).sum()

    def _step_batches(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """The micro-batches of the optimiser step at hand."""
        if not self.model.training:
            return [inputs]
        schedule = self.args.schedule
        # transformers counts fewer in the last update of an epoch that does not divide evenly
        steps = schedule.update_of(self._step)[: self._micro_batches()]
        return [self._buffered_inputs[schedule.micro_batch_of(step)] for step in steps]

    def _step_totals(self, inputs: dict[str, Any]) -> StepTotals:
        """Tokens and sequences of the whole optimiser step, counted once for all its micro-batches."""
        if not self.model.training:
            return totals_of([loss_mask(inputs).bool()], self.accelerator)
        start = self.args.schedule.update_of(self._step).start
        # a collective: every rank is at the first micro-batch of an update at the same time
        if self._totals is None or self._totals[0] != start:
            masks = [loss_mask(batch).bool() for batch in self._step_batches(inputs)]
            self._totals = (start, totals_of(masks, self.accelerator))
        return self._totals[1]

    def _terms(self) -> Terms:
        """TRL's options beside the factors, as they are now."""
        off_policy = high_entropy = None
        if (threshold := self.off_policy_mask_threshold) is not None:
            off_policy = partial(self.get_off_policy_mask, off_policy_threshold=threshold)
        if self.top_entropy_quantile < 1.0:
            high_entropy = partial(self.get_high_entropy_mask, threshold=1 - self.top_entropy_quantile)
        return Terms(
            entropy_coef=self._entropy_coefficient(),
            entropy_bonus=self._entropy_bonus_enabled,
            sampler_ratio=self.use_vllm and self.vllm_importance_sampling_correction,
            off_policy_mask=off_policy,
            high_entropy_mask=high_entropy,
        )

    # --- the entropy bonus (TRL's controller, on our normaliser) -------------------------------------------------

    def _entropy_coefficient(self) -> float:
        # TRL's gate: no bonus while the entropy of the last update was above the target
        if self.use_adaptive_entropy and self._last_world_entropy > self.args.entropy_target:
            return 0.0
        return float(self.entropy_coef)

    def _adapt_entropy_coefficient(self, found: MicroBatchLoss) -> None:
        if self._entropy_bonus_enabled and self.model.training:
            if self.use_adaptive_entropy:
                self._adapt(found)
            if self.accelerator.sync_gradients:
                self._metrics["train"]["entropy_coef"].append(float(self.entropy_coef))

    def _adapt(self, found: MicroBatchLoss) -> None:
        entropy = found.tokens.entropy
        assert entropy is not None
        # sum and count apart, so that the mean weighs tokens alike over micro-batches and ranks
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
        if "reward_history" in self._states() and self.args.should_save:
            write_json_atomic(folder / HISTORY_FILE, self._scoring.history)

    def _load_own_state(self, folder: Path) -> None:
        super()._load_own_state(folder)
        if "reward_history" in self._states() and (folder / HISTORY_FILE).is_file():
            self._scoring.history = json.loads((folder / HISTORY_FILE).read_text(encoding="utf-8"))

    def _states(self) -> set[str]:
        return super()._states() | ({"reward_history"} if self._factors.advantage_reads("history") else set())

    # --- the model card ------------------------------------------------------------------------------------------

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write the model card: objective and settings, the base model, the papers of the method that was used.

        Args:
            model_name: in the title; the name of the output folder if not given.
            dataset_name: of the data on the hub; for other data set `data_name`.
            tags: beside TRL's and ours.
        """
        super().create_model_card(model_name, dataset_name, tags)
        if not self.is_world_process_zero():
            return
        # the metadata and the links to trackers are TRL's, the text is not: its template knows one paper per trainer
        file = Path(self.args.output_dir) / "README.md"
        card = ModelCard.load(file)
        badges = [line for line in card.text.splitlines() if line.startswith("[<img")]
        run = self._trained(dataset_name)
        data = model_card.fill_data(card.data, run.base)
        text = model_card.text(run, model_name, badges)
        write_text_atomic(file, f"---\n{data.to_yaml()}\n---\n\n{text}")

    def _trained(self, dataset_name: str | None) -> model_card.Trained:
        return model_card.Trained(
            config=self.args,
            factors=self._factors,
            base=model_card.Base.of(self.model),
            updates=self.state.global_step,
            entropy_bonus=self._entropy_bonus_enabled,
            rewards=dict(zip(self.reward_func_names, self.reward_weights.tolist(), strict=True)),
            data=model_card.named_data(dataset_name, self.data_name),
            prompts=len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else None,
            hub_model_id=self.hub_model_id,
            example=first_prompt(self.train_dataset),
            chat=self._has_chat_template(),
            images=self._is_vlm,
            completions=self.args.per_device_train_batch_size
            * self.args.gradient_accumulation_steps
            * self.accelerator.num_processes,
            log=Log.of(self.state.log_history),
        )

    def _has_chat_template(self) -> bool:
        return getattr(self.processing_class, "chat_template", None) is not None

    # --- metrics -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _log_metrics(self, found: MicroBatchLoss, rows: StepRows, part: Part) -> None:
        kl = None
        if self.beta != 0.0:
            kl = reference_kl(found.seen, part.inputs["ref_per_token_logps"], self._factors.spec.kl)
        parts = parts_of(
            found,
            left_out=rows.left_out(part),
            dropped=rows.dropped,
            computed=part.computed,
            real=part.real,
            kl=kl,
            bonus_coef=self._entropy_coefficient() if self._entropy_bonus_enabled else None,
            trl=self._factors.trl,
        )
        self._step_metrics.add(*parts)
        # evaluation accumulates nothing: every batch is reduced by itself
        last = part.index == len(rows.layout.parts) - 1
        if not (self.accelerator.sync_gradients if self.model.training else last):
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
