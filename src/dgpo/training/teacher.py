"""The teacher of an advantage that reads one: loaded and checked once, asked once per generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import add_fused_lm_head, create_model_from_path

from dgpo.advantages import Advantage
from dgpo.counts import counted
from dgpo.training.config import DGPOConfig
from dgpo.training.forwards import add_own_logits
from dgpo.training.head_comparison import compare_heads
from dgpo.training.micro_batches import loss_mask
from dgpo.training.ranks import shards_with_fsdp

Logprob = Callable[[Any, dict[str, Any]], Tensor]
"""log-probs [B, T] of the completions of a generation under a model, without gradients and in small batches."""


class Teacher:
    """A frozen model that scores the completions of a generation.

    It is treated as TRL treats a reference model: the same wrappers, the sampler's temperature, and a head that gives
    log-probs without the logits of a batch; where that head is not the model's, its own logits.

    Args:
        config: of the run, with `teacher`.
        advantage: that reads it.
        student: the model that is trained, unwrapped; the teacher gets its dtype and attention unless
            `teacher_model_init_kwargs` says otherwise.
        tokenizer: the student's.
        accelerator: of the run.

    Raises:
        ValueError: the teacher has no tokenizer, or not that of the student.
    """

    def __init__(
        self, config: DGPOConfig, advantage: Advantage, student: PreTrainedModel, tokenizer: Any, accelerator: Any
    ) -> None:
        assert config.teacher is not None  # the configuration has checked it
        _check_tokenizer(config, tokenizer)
        self._advantage, self._accelerator = advantage, accelerator
        options = {
            "device_map": None,
            "dtype": student.dtype,
            "attn_implementation": student.config._attn_implementation,
            "trust_remote_code": config.trust_remote_code,
            **config.teacher_options(),
        }
        model = create_model_from_path(config.teacher, **options)
        model.eval().requires_grad_(False)
        add_fused_lm_head(model, temperature=config.temperature, cast_lm_head_to_fp32=config.cast_lm_head_to_fp32)
        self._temperature, self._compared = config.temperature, False
        if getattr(accelerator.state, "deepspeed_plugin", None) is not None:
            self.model = prepare_deepspeed(model, accelerator)
        elif shards_with_fsdp(accelerator):
            self.model = prepare_fsdp(model, accelerator)
        else:
            self.model = accelerator.prepare_model(model, evaluation_mode=True)

    def advantages(self, output: dict[str, Any], student: Any, logprob: Logprob) -> tuple[Tensor, float]:
        """[B, T] advantages of a generation of this rank, and log π_old - log π_teacher per token over all ranks.

        Every rank must call it.

        Args:
            output: the trainer's generation, with `advantages` [B]; its log π_old is taken where it is there.
            student: the policy that the completions were sampled from.
            logprob: of a model and a generation.

        Raises:
            ValueError: the teacher gave a token that is not finite.
        """
        self._compare()
        mask = loss_mask(output).bool()
        old = output.get("old_per_token_logps")
        old = torch.where(mask, logprob(student, output) if old is None else old, 0.0)
        teacher = torch.where(mask, logprob(self.model, output), 0.0)
        if not teacher.isfinite().all():
            place = tuple((~teacher.isfinite()).nonzero()[0].tolist())
            raise ValueError(
                f"the teacher's log-prob of completion token {list(place)} is {teacher[place].item()}; expected finite "
                "numbers: check its weights and dtype"
            )
        sums = torch.stack([(old - teacher).double().sum(), mask.sum().double()])
        total, count = self._accelerator.reduce(sums, reduction="sum").tolist()
        found = self._advantage.of_tokens(output["advantages"], old, teacher)
        return torch.where(mask, found, 0.0), total / max(count, 1.0)

    def _compare(self) -> None:
        """Before the first pass, when every rank is here: whether the head that gives log-probs is the model's."""
        if self._compared:
            return
        self._compared = True
        report = compare_heads(self.model, self._accelerator, self._temperature, fused=False)
        if report.why_not_trl is not None:
            add_own_logits(self._accelerator.unwrap_model(self.model), self._temperature)


def _check_tokenizer(config: DGPOConfig, student: Any) -> None:
    """Raise ValueError unless the teacher has the student's tokenizer: one id must be one token to both."""
    teacher = config.teacher
    try:
        own = AutoTokenizer.from_pretrained(teacher, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"teacher = {teacher!r} has no tokenizer that can be loaded; expected the student's, beside the weights"
        ) from error
    ours, theirs = student.get_vocab(), own.get_vocab()
    if ours == theirs:
        return
    differing = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    raise ValueError(
        f"teacher = {teacher!r} has another tokenizer than the student: it differs in "
        f"{counted(len(differing), 'token')}, such as {differing[0]!r} (id {ours.get(differing[0])} and "
        f"{theirs.get(differing[0])} there); expected a teacher with the same vocabulary"
    )
