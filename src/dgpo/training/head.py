"""Which path a loss takes: from hidden states, through TRL's head for log-probs, or through the model's own logits."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers.integrations import is_deepspeed_zero3_enabled

from dgpo.fused.head import Head
from dgpo.training.config import DGPOConfig
from dgpo.training.forwards import add_own_logits, add_policy_loss, causal_model, hooks_of
from dgpo.training.head_comparison import compare_heads
from dgpo.training.ranks import shards_with_fsdp

logger = logging.getLogger(__name__)


class Heads:
    """The head that computes the losses of a trainer: ours, TRL's, or the model's own.

    Decided at construction, in one line of the log where it is not ours. Where the whole model is not there yet (FSDP,
    ZeRO-3, or weights on another device), it is compared before the first loss.

    Args:
        config: of the run.
        model: that is trained.
        reference: that of a KL term, if there is one.
        accelerator: of the run.
        why_not_fused: what rules the fused loss out, as far as that is known before (`why_not_fused`).
        compare: whether to compare at all: text alone does not say what a model makes of images.

    Attributes:
        fused: whether the loss comes straight from hidden states.
        head: what follows the product with the output layer, the temperature of the run included.
        why_not_packed: why the rows of a micro-batch may not be packed without padding (`packing.py`); None where they
            may.
        why_not_shared: likewise, with one computation of a prompt for all of its responses.

    Raises:
        ValueError: `record_sum_pi_squared` needs the fused loss, which is off.
    """

    def __init__(
        self,
        config: DGPOConfig,
        model: Any,
        reference: Any,
        accelerator: Any,
        *,
        why_not_fused: str | None,
        compare: bool,
    ) -> None:
        self._config, self._reference, self._accelerator = config, reference, accelerator
        # the head is the product alone until the comparison has measured scale and cap
        self.head = Head(temperature=config.temperature)
        self._own_logits = False
        self.why_not_packed: str | None = "the model has not been compared yet"
        self.why_not_shared: str | None = self.why_not_packed
        self.fused = config.fused_loss and why_not_fused is None
        if self.fused:
            add_policy_loss(causal_model(model), cast_lm_head_to_fp32=config.cast_lm_head_to_fp32)
        else:
            self._refuse(why_not_fused or "fused_loss = False")
        self._to_compare = compare
        self._compared: tuple[Any, ...] | None = None
        if self._to_compare and self._all_here(model):
            self.compare(model, why_not_fused)
        else:
            self._say(why_not_fused, None)

    def compare(self, model: Any, reason: str | None = None) -> None:
        """Compare the heads, unless that has been done; every rank must call it.

        Args:
            model: the trainer's, as it is called: wrapped, once it has been.
            reason: why the loss is not fused, where that is known before.

        Raises:
            ValueError: as the class.
        """
        if not self._to_compare:
            return
        self._to_compare = False
        accelerator = self._accelerator
        report = compare_heads(model, accelerator, self._config.temperature, fused=self.fused)
        self.head = report.head
        blind = _why_not_compared(self._config, accelerator.unwrap_model(model))
        self.why_not_packed, self.why_not_shared = blind or report.why_not_packed, blind or report.why_not_shared
        if self.fused and report.why_not_fused is not None:
            self.fused, reason = False, report.why_not_fused
            self._refuse(reason)
        why_not_trl = None if self._own_logits else report.why_not_trl
        if why_not_trl is not None:
            self._own_logits = True
            # the reference gives log-probs that are subtracted from the policy's: both must come from the same path
            for one in (model, self._reference):
                if one is not None:
                    add_own_logits(causal_model(accelerator.unwrap_model(one)), self._config.temperature)
        self._compared = self._looks(accelerator.unwrap_model(model, keep_torch_compile=False))
        self._say(reason, why_not_trl)

    def begin(self, model: Any, overridden: str | None) -> None:
        """At the beginning of `train()`: compare again if the model or the trainer has been changed.

        Args:
            model: that is trained.
            overridden: what replaces the trainer's own path to log-probs, in words.
        """
        if self._compared is not None and self._compared != self._looks(model):
            self._to_compare = True
        reason = (overridden or why_bypassed(model)) if self.fused else None
        if reason is not None:
            self.fused = False
            self._say(reason, None)

    def _refuse(self, reason: str) -> None:
        if self._config.record_sum_pi_squared:
            raise ValueError(f"record_sum_pi_squared = True needs the fused loss, which is off here: {reason}")

    def _looks(self, model: Any) -> tuple[Any, ...]:
        """What another head, or another forward, would change."""
        causal = causal_model(model)
        head = causal.get_output_embeddings()
        # in vars: a forward that a library has put on the instance
        return head, type(head), head is None or vars(head).get("forward"), vars(causal).get("forward")

    def _say(self, reason: str | None, why_not_trl: str | None) -> None:
        parts = []
        if reason is not None:
            parts.append(f"fused_loss is off, log-probs are computed first: {reason}")
        if why_not_trl is not None:
            parts.append(f"log-probs are taken from the model's own logits: with TRL's head {why_not_trl}")
        if self.fused and self.why_not_packed is not None and self._compared is not None:
            parts.append(f"sequences are padded: {self.why_not_packed}")
        if parts and self._accelerator.is_main_process:
            logger.warning("%s", "; ".join(parts))

    def _all_here(self, model: Any) -> bool:
        # sharded or offloaded weights are whole only inside the wrapped model's forward
        if shards_with_fsdp(self._accelerator) or is_deepspeed_zero3_enabled():
            return False
        device = self._accelerator.device
        return all(parameter.device.type == device.type for parameter in model.parameters())


def _why_not_compared(config: DGPOConfig, model: Any) -> str | None:
    """What makes packed sequences differ in training though the comparison of a few tokens does not show it."""
    if config.neftune_noise_alpha:
        return "the noise of neftune_noise_alpha is scaled by the length of a row"
    adapters = getattr(model, "peft_config", {}).values()
    if any(getattr(adapter, "alora_invocation_tokens", None) for adapter in adapters):
        return "adapters with invocation tokens look for one place in every row"
    return None


def why_not_fused(config: DGPOConfig, model: Any, *, images: bool, aux_loss: bool) -> str | None:
    """What keeps a run from the fused loss, in words; None where it can be used.

    Everything named here needs the log-probs before the loss, with a gradient of their own, or another head than
    `hidden @ weight.T + bias`. What the model does to the product is compared afterwards (`Heads`).

    Args:
        config: of the run.
        model: that is trained.
        images: whether it reads images.
        aux_loss: whether it has the auxiliary loss of a mixture of experts.
    """
    causal = causal_model(model)
    head = causal.get_output_embeddings()
    adapters = getattr(model, "peft_config", {}).values()
    reasons = {
        "the model reads images": images,
        "ZeRO-3 has released the head when its gradient is computed": is_deepspeed_zero3_enabled()
        and any(parameter.requires_grad for parameter in head.parameters()),
        f"the output head is a {type(head).__name__}, not a torch.nn.Linear": type(head) is not torch.nn.Linear,
        "the model is spread over devices": len(set(getattr(causal, "hf_device_map", {}).values())) > 1,
        "prompt-learning adapters lengthen the sequence": any(a.is_prompt_learning for a in adapters),
        "the auxiliary loss of a mixture of experts is computed beside the log-probs": aux_loss,
    }
    of_options = config.why_not_fused(float16=causal.dtype == torch.float16)
    return of_options or next((reason for reason, holds in reasons.items() if holds), None)


def why_bypassed(model: Any) -> str | None:
    """What the fused loss would go around in a model: hooks on its output head; None where there is nothing."""
    head = causal_model(model).get_output_embeddings()
    return "hooks on the output head would not be called" if head is not None and hooks_of(head) else None
