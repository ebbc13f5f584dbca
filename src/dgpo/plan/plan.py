"""What a configuration comes to before anything is loaded: counts, tokens, FLOPs, memory and time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from dgpo.plan.arithmetic import Quantity, counted, over, quantity
from dgpo.plan.machines import Gpu, World
from dgpo.plan.memory import GIB, MemorySetting, Term, memory_terms, naive_logits, total
from dgpo.plan.model_shapes import ModelShape
from dgpo.training.config import DGPOConfig

PROMPT_TOKENS = 512
"""Assumed for a prompt where `vllm_max_model_length` does not say it."""

TRAINING_UTILISATION, SAMPLING_UTILISATION = 0.35, 0.10
"""Assumed shares of a GPU's peak while it updates and while vLLM samples. Guesses: nothing of this was measured."""

TWO_MOMENTS = ("adamw_torch", "adamw_torch_fused", "adamw_apex_fused")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will do and cost. Tokens and FLOPs are upper bounds: every response runs to the limit.

    Without `shape` there is no memory and no time. Without `gpu` there is no verdict and no time, and vLLM's share of
    the GPU is not counted.

    Args:
        config: of the run, made for `world`.
        model: name or folder.
        shape: None where it is not known without a download.
        world: ranks and sharding.
        gpu: what it runs on.
        data_rows: number of prompts in the data; None where unknown.
        data_source: how that is known, in words.
        dtype: of the weights as loaded.
        attention: `attn_implementation`; None is sdpa.
        lora: rank and targets of adapters; None trains everything.
        on_cpu: whether the run is on the CPU.
    """

    config: DGPOConfig
    model: str
    shape: ModelShape | None
    world: World
    gpu: Gpu | None = None
    data_rows: int | None = None
    data_source: str = ""
    dtype: str = "float32"
    attention: str | None = None
    lora: tuple[int, tuple[str, ...]] | None = None
    on_cpu: bool = False

    @property
    def prompt_tokens(self) -> int:
        """Tokens of a prompt: what `vllm_max_model_length` leaves for it, or else `PROMPT_TOKENS`."""
        return max(0, (self.config.vllm_max_model_length or 0) - self.config.max_completion_length) or PROMPT_TOKENS

    @property
    def prompts(self) -> int:
        """Prompts of a generation."""
        return self.config.generation_batch_size // self.config.num_generations

    @property
    def completions_per_update(self) -> int:
        """Rows of all ranks and micro-batches of one optimiser update."""
        config = self.config
        return config.per_device_train_batch_size * config.gradient_accumulation_steps * self.world.processes

    @property
    def rows_per_pass(self) -> int:
        """Responses of full length that one forward pass of an update computes, on one GPU."""
        rows, budget = self.config.per_device_train_batch_size, self.config.max_tokens_per_micro_batch
        longest = self.prompt_tokens + self.config.max_completion_length
        return rows if budget is None else min(rows, max(budget // longest, 1))

    @property
    def tokens_per_generation(self) -> int:
        """Upper bound, prompts not counted."""
        return self.config.generation_batch_size * self.config.max_completion_length

    @property
    def tokens_per_update(self) -> int:
        """Upper bound, prompts not counted."""
        return self.completions_per_update * self.config.max_completion_length

    @property
    def generations(self) -> float | None:
        """Generations of the whole run; None where unknown."""
        if self.config.max_steps > 0:
            return self.config.max_steps / self.config.updates_per_generation
        # TRL's sampler drops the last prompts of an epoch that do not fill a generation
        return None if self.data_rows is None else (self.data_rows // self.prompts) * self.config.num_train_epochs

    @property
    def updates(self) -> int | None:
        """Optimiser updates of the whole run; None where unknown."""
        if self.config.max_steps > 0:
            return self.config.max_steps
        return None if self.generations is None else math.ceil(self.generations * self.config.updates_per_generation)

    @cached_property
    def why_not_fused(self) -> str | None:
        """What rules the fused loss out, as far as it shows without a model; None if nothing does."""
        if not self.config.fused_loss:
            return "fused_loss is off"
        if self.world.sharding == "ZeRO-3" and self.lora is None:
            return "ZeRO-3 trains the output head"
        return self.config.why_not_fused()

    @cached_property
    def setting(self) -> MemorySetting | None:
        """What memory depends on; None for an unknown model."""
        config, gpu = self.config, self.gpu
        if self.shape is None:
            return None
        colocated = config.use_vllm and config.vllm_mode == "colocate"
        attention = "sdpa" if self.attention is None else self.attention
        return MemorySetting(
            shape=self.shape,
            processes=self.world.processes,
            sharding=self.world.sharding,
            weight_bytes=4 if self.dtype == "float32" else 2,
            autocast=bool(config.bf16 or config.fp16),
            adapters=None if self.lora is None else self.shape.lora_parameters(*self.lora),
            # with adapters the reference model is the base model, whose weights are there already
            reference=config.beta != 0 and self.lora is None,
            rows=self.rows_per_pass,
            length=self.prompt_tokens + config.max_completion_length,
            completion=config.max_completion_length,
            checkpointing=bool(config.gradient_checkpointing),
            # flash_attention_2, flash_attention_3 and kernels of the hub: none holds scores or a mask
            attention=attention if attention in ("sdpa", "eager") else "flash",  # type: ignore[arg-type]
            fused=self.why_not_fused is None,
            device="cpu" if self.on_cpu else "cuda",
            vllm_share=config.vllm_gpu_memory_utilization if colocated and gpu is not None else 0.0,
            vllm_gib=0.0 if gpu is None else gpu.gib,
            vllm_sleeps=bool(config.vllm_enable_sleep_mode),
            generated_rows=0 if config.use_vllm else config.generation_batch_size // self.world.processes,
        )

    @cached_property
    def memory(self) -> tuple[Term, ...]:
        """Terms of the memory of one GPU; empty for an unknown model."""
        return () if self.setting is None else memory_terms(self.setting)

    @property
    def naive_logits(self) -> Quantity:
        """Bytes that a naive loss would hold for its logits; 0 for an unknown model."""
        return quantity(0) if self.setting is None else naive_logits(self.setting)

    @property
    def update_gib(self) -> float:
        """Memory of one GPU during an update."""
        return total(self.memory, "update") / GIB

    @property
    def generation_gib(self) -> float:
        """Memory of one GPU during generation."""
        return total(self.memory, "generation") / GIB

    @property
    def fits(self) -> bool | None:
        """Whether memory suffices in both phases, by the estimate; None where it or the GPU is unknown."""
        if self.gpu is None or not self.memory:
            return None
        return max(self.update_gib, self.generation_gib) <= self.gpu.gib

    @property
    def _forward(self) -> Quantity | None:
        """FLOPs of a forward pass over a generation."""
        prompt, completion = self.prompt_tokens, self.config.max_completion_length
        if self.shape is None:
            return None
        tokens = (quantity(prompt) + quantity(completion)).of("tokens")
        work = quantity(self.shape.forward_flops(prompt + completion), "FLOPs a token")
        return work * (counted(self.config.generation_batch_size, "completion") * tokens)

    @property
    def update_work(self) -> Quantity | None:
        """FLOPs of all updates of a generation, over all ranks; None for an unknown model.

        A forward pass is f per token. Training is 3·f (2·f where only adapters have weight gradients), one more f with
        gradient checkpointing, and over the generation one f each for log π_old and the reference model.
        """
        config, forward = self.config, self._forward
        if forward is None:
            return None
        passes = (3 if self.lora is None else 2) + bool(config.gradient_checkpointing)
        # on-policy the loss's own pass gives log π_old, unless TRL compares it with vLLM's log-probs
        off_policy = not config.on_policy or config.use_vllm
        once = int(off_policy) + (config.beta != 0)
        return quantity(passes * config.num_iterations + once) * forward

    @property
    def sampling_work(self) -> Quantity | None:
        """FLOPs of sampling a generation with vLLM, one forward pass; None without vLLM or for an unknown model."""
        return self._forward if self.config.use_vllm else None

    @property
    def update_time(self) -> Quantity | None:
        """Seconds of one optimiser update: FLOPs / updates / (TRAINING_UTILISATION · W · peak)."""
        if self.gpu is None or self.update_work is None:
            return None
        return over(self.update_work, self.config.updates_per_generation, "update") / self._rate(TRAINING_UTILISATION)

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

    @property
    def notes(self) -> list[str]:
        """What the numbers leave out or assume."""
        config, notes = self.config, []
        if self.world.assumed:
            notes.append(
                f"sharding not given: {self.world.sharding} assumed; use --accelerate_config FILE to change it"
            )
        if config.like_any_other:
            notes.append("one update per generation: every ratio is 1, and objectives do not differ")
        if config.eval_strategy != "no" or config.eval_benchmarks:
            notes.append("evaluation during training (eval_strategy, eval_benchmarks) is not counted")
        if self.why_not_fused is not None:
            notes.append(f"the loss is computed from log-probs, in tiles of TRL's head: {self.why_not_fused}")
        if self.shape is None:
            return [
                *notes,
                "unknown model: memory and time are not estimated; give a local folder that has its config.json",
            ]
        optimiser = str(getattr(config.optim, "value", config.optim))
        if optimiser not in TWO_MOMENTS:
            notes.append(f"optim = {optimiser!r}: counted as two moments in the dtype of the weights")
        if config.use_vllm and config.vllm_mode == "colocate" and self.gpu is None:
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
