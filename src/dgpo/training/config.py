"""DGPOConfig: TRL's GRPOConfig, plus which weight, coefficient, factor and advantage to train with."""

# ruff: noqa: RUF009 - the calls in class bodies return dataclass fields
import dataclasses
from dataclasses import dataclass
from typing import Any

from trl import GRPOConfig

from dgpo import advantages, objectives
from dgpo import correction as corrections
from dgpo.objectives import presets
from dgpo.registry import did_you_mean, written
from dgpo.training import schedule, trl_options
from dgpo.training.loss_options import DEFAULT_AGGREGATION, LossOptions, documented, fields_of, option
from dgpo.training.numbers import check_numbers
from dgpo.warning import warn

EVALUATION_OPTIONS = (
    "samples",
    "temperature",
    "top_p",
    "max_new_tokens",
    "seed",
    "batch_size",
    "limit",
    "greedy",
    "data_dir",
    "chat",
)
"""Keys of `eval_benchmark_kwargs`."""

CHOICES: dict[str, tuple[str, ...]] = {
    "scale_rewards": ("group", "batch", "none"),
    "multi_objective_aggregation": advantages.REWARD_AGGREGATIONS,
    "vllm_mode": ("server", "colocate"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
}
"""TRL's options that are one of a few words, and that TRL itself looks at in the first generation only."""

_TRL_DEFAULTS = {f.name: f.default for f in dataclasses.fields(GRPOConfig)}


@documented
@dataclass
class DGPOConfig(LossOptions, GRPOConfig):
    """TRL's `GRPOConfig` with the factors of the policy gradient as fields; every TRL option beside the loss works.

    Defaults are the paper's setting where it is known: DGPO with n=1, m=2, no KL, token mean over the optimiser step,
    advantages divided by the group's standard deviation, four optimiser updates per generation where TRL's schedule
    would make one (`steps_per_generation` = 4 · `gradient_accumulation_steps`, unless it or `generation_batch_size` is
    set or `num_iterations` > 1).

    An objective, aggregation or advantage may be given as a name, as a name with fields (`"dgpo:n=2,m=2"` or
    `{"name": "dgpo", "n": 2, "m": 2}`), or as an instance; an objective also by its import path. After construction the
    name or import path is there, and the fields are in `objective_kwargs` and so on.
    """

    _VALID_DICT_FIELDS = [  # noqa: RUF012 - TRL's convention
        *GRPOConfig._VALID_DICT_FIELDS,
        "objective",
        "objective_kwargs",
        "aggregation",
        "aggregation_kwargs",
        "correction",
        "advantage",
        "advantage_kwargs",
        "teacher_model_init_kwargs",
        "eval_benchmark_kwargs",
    ]

    advantage: str | None = option(
        None,
        "Advantage: 'std' (divides by the standard deviation + 1e-6, as verl does), 'none', 'leave_one_out', "
        "'entropy_shaped', 'smooth', 'maxrl', 'gdpo', 'asymre', 'qae', 'pass_at_k', 'grpo_passk', 'nsr', "
        "'w_reinforce' or 'distill'. Default: TRL's own, by scale_rewards (+ 1e-4).",
    )
    advantage_kwargs: dict[str, Any] | str | None = option(None, "Fields of the advantage.")
    teacher: str | None = option(
        None,
        "Teacher for the advantage 'distill': a folder or a name on the hub, with the student's tokenizer.",
    )
    teacher_model_init_kwargs: dict[str, Any] | str | None = option(
        None, "With teacher: keyword arguments of from_pretrained, such as dtype. Default: the student's dtype."
    )
    preset: str | None = option(
        None,
        "'dapo', 'dr_grpo' or 'luspo': sets objective, aggregation and advantage, none of which may be set too.",
    )
    positive_nll_coef: float = option(
        0.0,
        "Coefficient of an auxiliary negative log-likelihood on responses whose rewards, shaping terms aside, sum to "
        "more than 0 (GPPO, CE-GPPO: 0.1).",
    )
    fused_loss: bool = option(
        True,
        "Compute the loss directly from hidden states, without holding the logits of a batch. Where the model or an "
        "option rules this out, the log says why.",
    )
    sort_by_length: bool = option(
        True,
        "Sort the responses of an optimiser step by length before they are cut into micro-batches, and leave out those "
        "without a gradient first, so that little of what is computed is padding. The gradient does not change. Where "
        "the composition of micro-batches matters (adaptive objectives, top_entropy_quantile, an auxiliary loss), "
        "responses stay where they are.",
    )
    max_tokens_per_micro_batch: int | None = option(
        None,
        "Maximum number of positions, prompts and padding included, of one forward and backward pass: a micro-batch "
        "with more is computed in several. Memory then depends on this number, not on per_device_train_batch_size "
        "and the longest response. A single longer response gets a separate pass.",
    )
    padding_free: bool | None = option(
        None,
        "Compute the responses of a micro-batch as one sequence without padding. Default: where the model takes packed "
        "sequences exactly, which is compared at the start, and it is faster by estimate; on GPUs only if True. Needs "
        "sort_by_length and the fused loss.",
    )
    shared_prompts: bool | None = option(
        None,
        "With that: compute a prompt once for all its responses in a micro-batch. Default: as for padding_free.",
    )
    dynamic_sampling: bool = option(
        False,
        "Before training, replace groups with equal rewards by newly sampled prompts (DAPO, arXiv 2503.14476).",
    )
    dynamic_sampling_rewards: list[str] | None = option(
        None,
        "With dynamic_sampling: names of the rewards whose weighted sum must differ within a group, such as "
        "math_reward; one of weight 0 counts with weight 1. Default: all that are not shaping terms, as "
        "soft_overlong_reward and format_reward are.",
    )
    max_num_gen_batches: int = option(
        10, "With dynamic_sampling: maximum number of generation batches per training batch, the first included."
    )
    record: str | None = option(
        None,
        "Folder to record the run to, for dgpo doctor, replay and report: configuration, metrics, tokens of updates.",
    )
    record_overwrite: bool = option(
        False,
        "With record: a run that starts from scratch replaces the run that the folder holds. Without it, such a folder "
        "is refused.",
    )
    record_every: int = option(1, "With record: record the tokens of every N-th update.")
    record_limit_mb: float = option(
        1024.0,
        "With record: maximum size of the token files in MiB; beyond it, every other generation is dropped.",
    )
    record_sum_pi_squared: bool = option(
        False,
        "With record: also record the sum of squared probabilities of every token, for exact norms of logit gradients; "
        "costs one more forward pass.",
    )
    record_completions: int = option(
        4,
        "With record: number of prompts per generation whose completions are recorded as text; 0 records none.",
    )
    eval_benchmarks: list[str] | None = option(
        None,
        "Tasks and benchmarks to evaluate on during training, with the code of dgpo eval; `dgpo tasks` lists them. "
        "Logged as eval/BENCHMARK/avg@k, written to output_dir/eval/STEP.",
    )
    eval_benchmark_steps: int = option(
        100, "Number of updates between evaluations on eval_benchmarks; one more runs at the end."
    )
    eval_benchmark_on_start: bool = option(
        False, "With eval_benchmarks: evaluate before the first update too, as update 0."
    )
    eval_benchmark_kwargs: dict[str, Any] | str | None = option(
        None,
        'Options of these evaluations, such as \'{"samples": 4, "limit": 100}\': samples (4), temperature, top_p and '
        "max_new_tokens (those of training), seed (0), batch_size (64), limit (all problems), greedy (false), data_dir "
        "(the hub), chat (if the tokenizer has a template).",
    )
    rank_timeout: float = option(
        300.0,
        "Seconds without a heartbeat from a rank (a stopped process, a machine that hangs) after which the other ranks "
        "exit with an error that names it; 0 relies on ddp_timeout alone.",
    )
    resume_allow_missing: list[str] | None = option(
        None,
        "States that the checkpoint to resume from may lack, and that then start afresh: optimizer, scheduler, "
        "rng_state, scaler, reward_history, entropy_controller, ref_model. A checkpoint written with save_only_model "
        "lacks the first three.",
    )
    resume_allow_changed: list[str] | None = option(
        None, "Options (or model, data, rewards, objective) that may differ from those of the checkpoint's run."
    )

    # TRL's options about the loss: None where the objective's own value holds, so that what is set can be told
    loss_type: str | None = option(
        None, "TRL's name of a weight and an average, where it agrees with objective; or the name of an aggregation."
    )
    importance_sampling_level: str | None = option(None, "'token' or 'sequence', where it agrees with objective.")
    epsilon: float | None = option(
        None, "Sets eps_low of an objective that has it, and eps_high too unless epsilon_high is set."
    )
    epsilon_high: float | None = option(
        None, "Sets eps_high of an objective that has it; with loss_type 'cispo', the cap of 'cispo'."
    )
    delta: float | None = option(None, "Sets dual_clip of the objective 'grpo'.")
    sapo_temperature_neg: float | None = option(None, "Sets tau_neg of the objective 'sapo'.")
    sapo_temperature_pos: float | None = option(None, "Sets tau_pos of the objective 'sapo'.")
    vespo_k_pos: float | None = option(None, "Sets k_pos of the objective 'vespo'.")
    vespo_lambda_pos: float | None = option(None, "Sets lambda_pos of the objective 'vespo'.")
    vespo_k_neg: float | None = option(None, "Sets k_neg of the objective 'vespo'.")
    vespo_lambda_neg: float | None = option(None, "Sets lambda_neg of the objective 'vespo'.")

    def __post_init__(self) -> None:
        check_numbers(self)
        self._check_choices()
        # before the default is filled in: an error below names the option that the user set
        generation_size = "generation_batch_size" if self.generation_batch_size else "steps_per_generation"
        sizes = (self.steps_per_generation, self.generation_batch_size)  # type: ignore[has-type]
        if sizes == (None, None) and self.num_iterations == 1:
            self.steps_per_generation = schedule.DEFAULT_UPDATES_PER_GENERATION * self.gradient_accumulation_steps
        # before TRL's, which looks for a GPU: what is wrong with the method is wrong on every machine
        self._apply_preset()
        self.name_instances()
        self._take_trl_options()
        # built once here, so that a wrong value fails at construction and not at the first step
        self.make_objective()
        self.make_aggregation()
        self.make_correction()
        self.make_advantage()
        self._check_dynamic_sampling_rewards()
        self.eval_benchmark_options()
        if self.record is None and self.record_sum_pi_squared:
            raise ValueError("record_sum_pi_squared = True needs record, the folder to write to")
        self._check_packing()
        try:
            super().__post_init__()
        except ValueError as error:
            if "support bf16/gpu" not in str(error):
                raise
            # transformers names neither the flags nor that bf16 is on by default
            raise ValueError(
                "no GPU that computes in bfloat16 was found; train on the CPU with --use_cpu --bf16 false (in Python: "
                "use_cpu=True, bf16=False), or on an older GPU with --bf16 false (bf16=False)"
            ) from error
        self._check_schedule(generation_size)
        if self.anchor == "rollout" and self.use_vllm:
            warn(
                "anchor = 'rollout' takes the ratio against the sampler: TRL's correction "
                "(vllm_importance_sampling_correction) is left out"
            )
        self._warn_of_lengths()

    def _check_choices(self) -> None:
        # a flag and a file bring TRL's two booleans as text
        given: str | bool = getattr(self, "scale_rewards")  # noqa: B009 - mypy cannot tell the type of TRL's field
        self.scale_rewards = {"true": True, "false": False}.get(str(given).lower(), given)
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value not in known and not (name == "scale_rewards" and isinstance(value, bool)):
                raise ValueError(
                    f"{name} = {value!r} is not known{did_you_mean(value, known)}; expected one of {', '.join(known)}"
                )
        if self.top_k is not None and self.top_k < 0 and not self.use_vllm:
            raise ValueError(f"top_k = {self.top_k} is not allowed; expected >= 1, or 0 for all tokens")

    def _check_packing(self) -> None:
        budget = self.max_tokens_per_micro_batch
        for name in ("max_tokens_per_micro_batch", "padding_free", "shared_prompts"):
            if getattr(self, name) and not self.sort_by_length:
                raise ValueError(f"{name} = {getattr(self, name)} needs sort_by_length = True")
        for name in ("padding_free", "shared_prompts"):
            if getattr(self, name) and not self.fused_loss:
                raise ValueError(f"{name} = True needs fused_loss = True")
        if self.shared_prompts and self.padding_free is False:
            raise ValueError(
                "shared_prompts = True and padding_free = False exclude each other: prompts are shared in "
                "a sequence without padding"
            )
        if budget is not None and "lomo" in str(self.optim):
            raise ValueError(
                f"max_tokens_per_micro_batch = {budget} and optim = {str(self.optim)!r} exclude each other: LOMO "
                "updates the weights in every backward pass, of which a micro-batch may have several"
            )

    def _check_dynamic_sampling_rewards(self) -> None:
        """The names themselves are known to the trainer, which has the rewards."""
        names = self.dynamic_sampling_rewards
        if names is None:
            return
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ValueError(
                f"dynamic_sampling_rewards = {names!r}; expected a list of names of rewards, such as ['math_reward']"
            )
        if not self.dynamic_sampling:
            raise ValueError(f"dynamic_sampling_rewards = {names!r} needs dynamic_sampling = True")

    @property
    def schedule(self) -> schedule.Schedule:
        """When completions are generated and when an optimiser step ends."""
        return schedule.Schedule(
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            steps_per_generation=self.steps_per_generation,
            num_iterations=self.num_iterations,
        )

    @property
    def updates_per_generation(self) -> float:
        """Optimiser updates that one batch of completions serves."""
        return self.schedule.updates_per_generation

    @property
    def like_any_other(self) -> bool:
        """Whether every ratio is 1, so that the objective has the gradient of any other that weighs ratio 1 by 1."""
        return self.on_policy and self.anchor == "old" and self.make_objective().properties().unit_on_policy

    @property
    def on_policy(self) -> bool:
        """Whether every generation serves one update: all ratios against π_old are then 1."""
        return self.schedule.on_policy

    def eval_benchmark_options(self) -> dict[str, Any]:
        """`eval_benchmark_kwargs`, checked. Raises ValueError for an unknown key, or without `eval_benchmarks`."""
        options = fields_of("eval_benchmark_kwargs", self.eval_benchmark_kwargs)
        for name in options:
            if name not in EVALUATION_OPTIONS:
                raise ValueError(
                    f"eval_benchmark_kwargs has no {name!r}{did_you_mean(name, EVALUATION_OPTIONS)}; known: "
                    f"{', '.join(EVALUATION_OPTIONS)}"
                )
        if options and not self.eval_benchmarks:
            raise ValueError(f"eval_benchmark_kwargs = {options} needs eval_benchmarks to be set")
        return options

    def make_correction(self) -> corrections.Correction | None:
        """The correction of this config, or None where TRL's own stands.

        Raises:
            ValueError: an unknown correction or anchor, or one beside options of TRL about the same.
        """
        made = super().make_correction()
        changed = self._changed(name for name in _TRL_DEFAULTS if name.startswith("vllm_importance_sampling_"))
        if self.anchor == "rollout" and changed:
            raise ValueError(
                f"anchor = 'rollout' takes the ratio against the sampler and leaves out TRL's correction, but "
                f"{changed[0]} was changed from TRL's default; set one of them"
            )
        if made is None:
            return None
        # TRL's deprecated name comes first: its __post_init__ copies it over the other, but may not have run yet
        high = self.vllm_importance_sampling_cap or self.vllm_importance_sampling_clip_max
        theirs = trl_options.sampler_correction(
            self.vllm_importance_sampling_mode, self.vllm_importance_sampling_clip_min, high
        )
        if changed and (theirs is None or theirs[1] != made or not self.vllm_importance_sampling_correction):
            here = "" if theirs is None else f"; TRL's would be written correction={written(*theirs)!r}"
            raise ValueError(
                f"correction = {self.correction!r} takes the place of TRL's correction, but {changed[0]} was changed "
                f"from TRL's default too; set one of them{here}"
            )
        return made

    def make_advantage(self) -> advantages.Advantage | None:
        """The advantage of this config, or None where TRL's own stands. Raises ValueError for an unknown one."""
        fields = fields_of("advantage_kwargs", self.advantage_kwargs)
        if self.advantage is None:
            if fields:
                raise ValueError(f"advantage_kwargs = {fields} needs advantage to be set")
            if self.teacher is not None:
                raise ValueError(f"teacher = {self.teacher!r} is read by advantage = 'distill' alone; set it too")
            return None
        made = advantages.make(self.advantage, **fields)
        changed = self._changed(["scale_rewards", "multi_objective_aggregation"])
        same = {
            "scale_rewards": trl_options.SCALES.get(self.scale_rewards),
            "multi_objective_aggregation": trl_options.REWARD_NORMALISERS.get(self.multi_objective_aggregation),
        }
        if changed and not (len(changed) == 1 and same[changed[0]] == self.advantage):
            here = f"; that one is advantage={same[changed[0]]!r} here" if same[changed[0]] else ""
            raise ValueError(
                f"advantage = {self.advantage!r} takes the place of {changed[0]} = {getattr(self, changed[0])!r}; "
                f"set one of them{here}"
            )
        if not made.needs_spread and self.dynamic_sampling:
            raise ValueError(
                f"advantage = {self.advantage!r} gives groups without reward spread a gradient, and "
                "dynamic_sampling replaces them; set one of them"
            )
        if ("teacher" in made.reads) != (self.teacher is not None):
            if self.teacher is None:
                raise ValueError(f"advantage = {self.advantage!r} needs teacher, a folder or a name on the hub")
            raise ValueError(f"teacher = {self.teacher!r} is not read by advantage = {self.advantage!r}; unset it")
        if self.teacher_options() and self.teacher is None:
            raise ValueError("teacher_model_init_kwargs needs teacher to be set")
        made.check_group_size(self.num_generations)
        return made

    def teacher_options(self) -> dict[str, Any]:
        """`teacher_model_init_kwargs` as a mapping. Raises ValueError if it is not one."""
        return fields_of("teacher_model_init_kwargs", self.teacher_model_init_kwargs)

    def why_not_fused(self, *, float16: bool = False) -> str | None:
        """What rules the fused loss out, of the options and float16 weights; None if nothing does."""
        advantage = self.make_advantage()
        reasons = {
            "float16 gradients vanish before the loss is scaled": self.fp16 or float16,
            "torch_compile would compile a new forward for every micro-batch": self.torch_compile,
            "positive_nll_coef differentiates the log-probs by itself": self.positive_nll_coef > 0,
            "off_policy_mask_threshold masks by the current log-probs": self.off_policy_mask_threshold is not None,
            "top_entropy_quantile masks by the current entropies": self.top_entropy_quantile < 1.0,
            f"advantage = {self.advantage!r} reads the current entropies": advantage is not None
            and "entropy" in advantage.reads,
        }
        return next((reason for reason, holds in reasons.items() if holds), None)

    def _check_schedule(self, generation_size: str) -> None:
        if self.schedule.splits_an_update:
            raise ValueError(
                f"gradient_accumulation_steps = {self.gradient_accumulation_steps} does not divide "
                f"steps_per_generation · num_iterations = {self.steps_per_generation} · {self.num_iterations}: an "
                "optimiser step would span two generations, and its normaliser would not be known when it starts; "
                + self._larger_generation(generation_size)
            )
        if self.like_any_other:
            by_steps = generation_size == "steps_per_generation"
            warn(
                "This config is on-policy: with one optimiser update per generation every importance ratio is exactly "
                f"1, and objective = {self.objective!r} has the same gradient as any other. Set {generation_size} to "
                f"several times {'gradient_accumulation_steps' if by_steps else 'the completions of an update'}, or "
                "num_iterations > 1."
            )

    def _larger_generation(self, option: str) -> str:
        """What to set the size of a generation to, so that no optimiser step spans two."""
        steps = self.gradient_accumulation_steps
        if option == "steps_per_generation":
            return f"set steps_per_generation to a multiple of gradient_accumulation_steps, such as {steps}"
        completions = self.per_device_train_batch_size * self.world_size * steps
        return f"set generation_batch_size to a multiple of {completions} completions, those of an optimiser step"

    def _apply_preset(self) -> None:
        if self.preset is None:
            return
        chosen = presets.preset(self.preset)
        values = {
            "objective": chosen.objective,
            "objective_kwargs": dict(chosen.objective_kwargs) or None,
            "aggregation": chosen.aggregation,
            "aggregation_kwargs": dict(chosen.aggregation_kwargs) or None,
            "advantage": chosen.advantage,
        }
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        for name, value in values.items():
            if getattr(self, name) not in (defaults[name], value):
                raise ValueError(
                    f"preset = {self.preset!r} sets {name} = {value!r}, but it was set to "
                    f"{getattr(self, name)!r}; set one of them"
                )
            setattr(self, name, value)
        # said aloud, because a config file that names a default would seem to be heeded
        warn(
            f"preset = {self.preset!r} trains with objective = {chosen.objective!r}, aggregation = "
            f"{chosen.aggregation!r} and advantage = {chosen.advantage!r}"
        )

    def _take_trl_options(self) -> None:
        """Take over what TRL's options about the loss say, where objective and aggregation agree with it."""
        # one spelling for every way to write an import path, so that a run can be compared with its checkpoint
        self.objective = objectives.name_of(objectives.find(self.objective))
        options = {name: value for name in trl_options.OPTIONS if (value := getattr(self, name)) is not None}
        average = trl_options.average(self.loss_type)
        if self.preset is not None and average not in (None, self.aggregation):
            raise ValueError(
                f"preset = {self.preset!r} sets aggregation = {self.aggregation!r}, but loss_type = "
                f"{self.loss_type!r}; set one of them"
            )
        if options:
            found = self.meaning_of(options)
            self.objective_kwargs = found.fields or None
            self.aggregation, self.aggregation_kwargs = found.aggregation, found.aggregation_fields or None
        if self.aggregation is None:
            self.aggregation = DEFAULT_AGGREGATION

    def _warn_of_lengths(self) -> None:
        assert self.aggregation is not None
        # a preset has its average on purpose
        if self.preset is None and trl_options.weighs_by_length(self.objective, self.aggregation, self.loss_type):
            warn(
                f"objective = {self.objective!r} has one ratio per response, and aggregation = {self.aggregation!r} "
                "sums over tokens, so that every response is weighted by its length; the paper averages over "
                "responses: aggregation = 'seq-mean-token-mean'"
            )

    def _changed(self, options: Any) -> list[str]:
        return [option for option in options if getattr(self, option) != _TRL_DEFAULTS[option]]
