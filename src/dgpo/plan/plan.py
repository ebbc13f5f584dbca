"""What a configuration comes to before anything is loaded: counts, tokens, FLOPs, memory, the objective's weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from dgpo.plan.arithmetic import Quantity, counted, over, quantity
from dgpo.plan.machines import Gpu, Sharding, World
from dgpo.plan.memory import GIB, MemorySetting, Term, memory_terms, naive_logits, total
from dgpo.plan.model_shapes import ModelShape
from dgpo.plan.weights import WeightRow, weight_table
from dgpo.training.config import DGPOConfig

PROMPT_TOKENS = 512
"""Assumed for a prompt where `vllm_max_model_length` does not say it."""

TRAINING_UTILISATION, SAMPLING_UTILISATION = 0.35, 0.10
"""Assumed shares of a GPU's peak while it updates and while vLLM samples. Guesses: nothing of this was measured."""

TWO_MOMENTS = ("adamw_torch", "adamw_torch_fused", "adamw_apex_fused")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A resolved run. Tokens and FLOPs are the most there can be: every response runs to the limit.

    Attributes:
        model: name or folder.
        shape: None where it is not known without a download; then `memory` is empty and `flops` None.
        world: the ranks.
        gpu: None where none was named; then there is no verdict and no time.
        group_size: G, completions per prompt.
        prompts: per generation.
        completions: per generation, over all ranks.
        rows: completions of a micro-batch on one rank.
        accumulation: micro-batches of an optimiser update on one rank.
        updates_per_generation: optimiser updates that a generation serves.
        completion_tokens: limit of a completion.
        prompt_tokens: assumed for a prompt.
        data_rows: prompts of the data; None where unknown.
        data_source: how that is known.
        generations, updates: of the whole run; None where unknown.
        trained: parameters with a gradient; None where unknown.
        memory: its terms.
        naive_logits: bytes that a naive loss would hold beside, as a formula; None where unknown.
        update_work, sampling_work: FLOPs per generation, over all ranks, as formulas; None where unknown.
        served: whether vLLM samples on GPUs of its own.
        fused: whether the loss is computed straight from hidden states.
        objective, aggregation, correction, advantage: as text.
        weights: the objective by region.
        notes: what the numbers leave out.
    """

    model: str
    shape: ModelShape | None
    world: World
    gpu: Gpu | None
    group_size: int
    prompts: int
    completions: int
    rows: int
    accumulation: int
    updates_per_generation: float
    completion_tokens: int
    prompt_tokens: int
    data_rows: int | None
    data_source: str
    generations: float | None
    updates: int | None
    trained: int | None
    memory: tuple[Term, ...]
    naive_logits: Quantity | None
    update_work: Quantity | None
    sampling_work: Quantity | None
    served: bool
    fused: bool
    objective: str
    aggregation: str
    correction: str
    advantage: str
    weights: tuple[WeightRow, ...]
    notes: tuple[str, ...]

    @property
    def completions_per_update(self) -> int:
        """Rows of all ranks and micro-batches of one optimiser update."""
        return self.rows * self.accumulation * self.world.processes

    @property
    def tokens_per_generation(self) -> int:
        """At most, prompts not counted."""
        return self.completions * self.completion_tokens

    @property
    def tokens_per_update(self) -> int:
        """At most, prompts not counted."""
        return self.completions_per_update * self.completion_tokens

    @property
    def update_gib(self) -> float:
        """Memory of one GPU while it updates."""
        return total(self.memory, "update") / GIB

    @property
    def generation_gib(self) -> float:
        """Memory of one GPU while it generates."""
        return total(self.memory, "generation") / GIB

    @property
    def logits_not_held(self) -> float:
        """Bytes; 0 where the model is unknown."""
        return 0.0 if self.naive_logits is None else self.naive_logits.value

    @property
    def fits(self) -> bool | None:
        """Whether memory suffices in both phases, by the estimate; None where it or the GPU is unknown."""
        if self.gpu is None or not self.memory:
            return None
        return max(self.update_gib, self.generation_gib) <= self.gpu.gib

    @property
    def update_time(self) -> Quantity | None:
        """Seconds of one optimiser update: FLOPs / updates / (TRAINING_UTILISATION · W · peak)."""
        if self.gpu is None or self.update_work is None:
            return None
        return over(self.update_work, self.updates_per_generation, "update") / self._rate(TRAINING_UTILISATION)

    @property
    def sampling_time(self) -> Quantity | None:
        """Seconds of one generation on as many GPUs: FLOPs / (SAMPLING_UTILISATION · W · peak)."""
        if self.gpu is None or self.sampling_work is None:
            return None
        return self.sampling_work / self._rate(SAMPLING_UTILISATION)

    @property
    def run_time(self) -> Quantity | None:
        """Seconds of all updates and, where it is estimated, all sampling; None where number or time is unknown."""
        if self.update_time is None or self.updates is None or self.generations is None:
            return None
        total = counted(self.updates, "update") * quantity(self.update_time.value, "s")
        if self.sampling_time is None:
            return total
        return total + counted(self.generations, "generation") * quantity(self.sampling_time.value, "s")

    def _rate(self, utilisation: float) -> Quantity:
        assert self.gpu is not None
        gpus = counted(self.world.processes, "GPU")
        return quantity(utilisation, "%") * gpus * quantity(self.gpu.tflops, "TFLOP/s", 1e12)


def make_plan(
    config: DGPOConfig,
    *,
    model: str,
    shape: ModelShape | None,
    world: World,
    gpu: Gpu | None = None,
    data_rows: int | None = None,
    data_source: str = "",
    dtype: str = "float32",
    attention: str | None = None,
    lora: tuple[int, tuple[str, ...]] | None = None,
    on_cpu: bool = False,
) -> Plan:
    """The plan of a configuration.

    Without `shape` there is no memory and no time, without `gpu` no time, and vLLM's share of it is not counted.

    Args:
        config: of the run, made for `world`.
        model: its name.
        shape: its shape, if known.
        world: ranks and sharding.
        gpu: what it runs on, for the verdict, vLLM's share and the time.
        data_rows: prompts of the data, if known.
        data_source: how that is known, in words.
        dtype: of the weights as loaded.
        attention: `attn_implementation`; None is sdpa.
        lora: rank and targets of adapters; None trains everything.
        on_cpu: the run is one on the CPU.
    """
    prompt = max(0, (config.vllm_max_model_length or 0) - config.max_completion_length) or PROMPT_TOKENS
    length = prompt + config.max_completion_length
    unfused = why_no_fused_loss(config, world.sharding, lora is not None)
    completions, group = config.generation_batch_size, config.num_generations
    prompts = completions // group
    generations = None if data_rows is None else (data_rows // prompts) * config.num_train_epochs
    updates = None if generations is None else math.ceil(generations * config.updates_per_generation)
    if config.max_steps > 0:
        updates, generations = config.max_steps, config.max_steps / config.updates_per_generation
    adapters = shape.lora_parameters(*lora) if lora is not None and shape is not None else None
    setting = None
    if shape is not None:
        colocated = config.use_vllm and config.vllm_mode == "colocate"
        setting = MemorySetting(
            shape=shape,
            processes=world.processes,
            sharding=world.sharding,
            weight_bytes=4 if dtype == "float32" else 2,
            autocast=bool(config.bf16 or config.fp16),
            adapters=adapters,
            moments=2,
            reference=config.beta != 0 and lora is None,
            rows=config.per_device_train_batch_size,
            length=length,
            completion=config.max_completion_length,
            checkpointing=bool(config.gradient_checkpointing),
            attention=_attention(attention),
            fused=unfused is None,
            device="cpu" if on_cpu else "cuda",
            vllm_share=config.vllm_gpu_memory_utilization if colocated and gpu is not None else 0.0,
            vllm_gib=0.0 if gpu is None else gpu.gib,
            vllm_sleeps=bool(config.vllm_enable_sleep_mode),
            generated_rows=0 if config.use_vllm else completions // world.processes,
        )
    update_work, sampling_work = (None, None) if shape is None else _flops(config, shape, prompt, lora is not None)
    correction = config.make_correction()
    advantage = config.make_advantage()
    return Plan(
        model=model,
        shape=shape,
        world=world,
        gpu=gpu,
        group_size=group,
        prompts=prompts,
        completions=completions,
        rows=config.per_device_train_batch_size,
        accumulation=config.gradient_accumulation_steps,
        updates_per_generation=config.updates_per_generation,
        completion_tokens=config.max_completion_length,
        prompt_tokens=prompt,
        data_rows=data_rows,
        data_source=data_source,
        generations=generations,
        updates=updates,
        trained=None if setting is None else setting.trainable,
        memory=() if setting is None else memory_terms(setting),
        naive_logits=None if setting is None else naive_logits(setting),
        update_work=update_work,
        sampling_work=sampling_work,
        served=config.use_vllm and config.vllm_mode == "server",
        fused=unfused is None,
        objective=str(config.make_objective()),
        aggregation=str(config.make_aggregation()),
        correction=str(correction) if correction is not None else _trl_correction(config),
        advantage=str(advantage) if advantage is not None else f"TRL's, scale_rewards = {config.scale_rewards!r}",
        weights=weight_table(config.make_objective()),
        notes=tuple(_notes(config, world, gpu, shape, unfused)),
    )


def why_no_fused_loss(config: DGPOConfig, sharding: Sharding, adapters: bool) -> str | None:
    """What of a configuration rules the fused loss out, as far as it shows without a model; None if nothing."""
    advantage = config.make_advantage()
    reasons = {
        "fused_loss is off": not config.fused_loss,
        "ZeRO-3 trains the output head": sharding == "ZeRO-3" and not adapters,
        "fp16": bool(config.fp16),
        "torch_compile": bool(config.torch_compile),
        "positive_nll_coef": config.positive_nll_coef > 0,
        "off_policy_mask_threshold": config.off_policy_mask_threshold is not None,
        "top_entropy_quantile": config.top_entropy_quantile < 1.0,
        "the advantage reads the current entropies": advantage is not None and "entropy" in advantage.reads,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _flops(config: DGPOConfig, shape: ModelShape, prompt: int, adapters: bool) -> tuple[Quantity, Quantity | None]:
    """Of all updates of a generation, and of sampling it.

    A forward pass is f per token. Training is 3·f (2·f where only adapters have weight gradients), one more f with
    gradient checkpointing, and over the generation one f each for log π_old and the reference model. Sampling is f.
    """
    length = prompt + config.max_completion_length
    tokens = counted(config.generation_batch_size, "completion") * (
        quantity(prompt) + quantity(config.max_completion_length)
    ).of("tokens")
    forward = quantity(shape.forward_flops(length), "FLOPs a token") * tokens
    passes = (2 if adapters else 3) + bool(config.gradient_checkpointing)
    off_policy = not config.on_policy or config.use_vllm
    once = int(off_policy) + (config.beta != 0)
    updates = quantity(passes * config.num_iterations + once) * forward
    return updates, forward if config.use_vllm else None


def _attention(name: str | None) -> Any:
    if name is None or name == "sdpa":
        return "sdpa"
    return "eager" if name == "eager" else "flash"


def _trl_correction(config: DGPOConfig) -> str:
    if config.use_vllm and config.vllm_importance_sampling_correction:
        return f"TRL's, {config.vllm_importance_sampling_mode}, at most {config.vllm_importance_sampling_clip_max}"
    return "none"


def _notes(
    config: DGPOConfig,
    world: World,
    gpu: Gpu | None,
    shape: ModelShape | None,
    unfused: str | None,
) -> list[str]:
    notes = []
    if world.assumed:
        notes.append(f"sharding not given: {world.sharding} assumed; use --accelerate_config FILE to change it")
    if config.on_policy:
        notes.append("one update per generation: every ratio is 1, and objectives do not differ")
    if config.eval_strategy != "no" or config.eval_benchmarks:
        notes.append("evaluation during training (eval_strategy, eval_benchmarks) is not counted")
    if unfused is not None:
        notes.append(f"the loss is computed from log-probs, in tiles of TRL's head: {unfused}")
    if shape is None:
        return [
            *notes,
            "unknown model: memory and time are not estimated; give a local folder that has its config.json",
        ]
    optimiser = str(getattr(config.optim, "value", config.optim))
    if optimiser not in TWO_MOMENTS:
        notes.append(f"optim = {optimiser!r}: counted as two moments in the dtype of the weights")
    if config.use_vllm and config.vllm_mode == "colocate" and gpu is None:
        notes.append("vLLM's share of the GPU is not counted: name the GPU (--gpu)")
    if config.dynamic_sampling:
        notes.append(
            f"dynamic sampling may sample up to {config.max_num_gen_batches} generations for a training batch; the "
            "time is for one"
        )
    if config.use_vllm and config.vllm_mode == "server":
        notes.append("vLLM runs on its own GPUs, which are not counted; the sampling time is for as many as train")
    notes.append("activations are an estimate; the CUDA context, NCCL and fragmentation come on top")
    return notes
