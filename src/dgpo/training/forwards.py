"""Patches of a model's forward: the loss straight from hidden states, and log-probs from the model's own logits.

TRL patches `model.forward` so that `model(..., fused_lm_head=True)` returns log-probs; we patch it once more, so that
`model(..., policy_loss=f)` returns what `f` makes of hidden states and output layer. That product then happens inside
the wrapped model's forward, where DDP's hooks are armed and FSDP2 has gathered the weights.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial
from transformers.modeling_outputs import ModelOutput
from trl.trainer.utils import FusedCausalLMOutput, maybe_gather_lm_head_ctx

from dgpo.fused.head import Head
from dgpo.training.packing import Packing

_WRAPPERS = ("torch.distributed.", "accelerate.", "deepspeed.")
"""Whose hooks gather the weights of a head that is sharded, as `add_policy_loss` does itself."""


@dataclass
class HeadOutput(ModelOutput):
    """What the patched forward returns, in a form in which wrappers (FSDP2, accelerate) find tensors.

    [B, T] tensors and statistics are detached; see `LinearPolicyLoss`.
    """

    value: Tensor | None = None
    weight: Tensor | None = None
    logprob: Tensor | None = None
    entropy: Tensor | None = None
    statistics: dict[str, Tensor] | None = None


LossOfHidden = Callable[..., Any]
"""Called with `hidden` [B, T, H], `lm_head` [V, H] and `bias` [V] or None; returns what `linear_policy_loss` does."""


def add_policy_loss(model: Any, *, cast_lm_head_to_fp32: bool = False) -> None:
    """Let `model(input_ids, attention_mask, policy_loss=f, completions=T)` return `f` of its last T predictions.

    `model(input_ids, policy_loss=f, packing=p)` does the same for ids that are packed (`Packing.ids`).

    Without `policy_loss` the forward is the one it was, so generation and TRL's own head are unchanged. To be called
    after TRL's `add_fused_lm_head` and before the model is wrapped.

    Args:
        model: a causal language model whose head is a plain linear layer (`why_not_fused`).
        cast_lm_head_to_fp32: TRL's option: the product in float32, outside autocast.
    """
    # the function and not the bound method, so that a deep copy of the model runs its own weights
    original = model.forward.__func__

    @wraps(type(model).forward)  # `generate` validates its keyword arguments against the signature
    def forward(
        self: Any,
        *args: Any,
        policy_loss: LossOfHidden | None = None,
        completions: int = 0,
        packing: Packing | None = None,
        **kwargs: Any,
    ) -> Any:
        if policy_loss is None:
            # TRL's `add_fused_lm_head` has patched it before; generation and TRL's own calls go through that
            return original(self, *args, **kwargs)
        # a training pass reads every position at once and has no use for a key-value cache
        kwargs["use_cache"] = False
        # looked up on each call: FSDP and PEFT replace parts of the model after this
        head = self.get_output_embeddings()
        if packing is not None:
            kwargs |= packing.arguments(self.config)
        hidden = self.base_model(*args, **kwargs).last_hidden_state
        # the token in column i is predicted from column i - 1
        hidden = hidden[:, -completions - 1 : -1] if packing is None else packing.aligned(hidden)
        autocast: AbstractContextManager[Any] = nullcontext()
        if cast_lm_head_to_fp32:
            hidden, autocast = hidden.float(), torch.autocast(hidden.device.type, enabled=False)
        weight, bias = _gathered(head.weight), _gathered(head.bias)
        with autocast, maybe_gather_lm_head_ctx(weight, bias):
            if not torch.is_autocast_enabled(hidden.device.type):  # a float32 norm or head in a bfloat16 model
                assert weight is not None
                weight, bias = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
            out = policy_loss(hidden=hidden, lm_head=weight, bias=bias)
        return HeadOutput(
            value=out.value,
            weight=out.weight,
            logprob=out.logprob,
            entropy=out.entropy,
            statistics=out.statistics,
        )

    model.forward = types.MethodType(forward, model)


def apply_to_hidden(
    model: Any, inputs: dict[str, Any], policy_loss: LossOfHidden, packing: Packing | None = None
) -> Any:
    """What `policy_loss` makes of the hidden states [B, T, H] of a micro-batch's completions; see `add_policy_loss`.

    With a `packing` of these `inputs` the model reads them without padding.
    """
    if packing is not None:
        return model(input_ids=packing.ids(inputs), policy_loss=policy_loss, packing=packing)
    return model(
        input_ids=torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
        attention_mask=torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
        policy_loss=policy_loss,
        completions=inputs["completion_ids"].size(1),
    )


def _gathered(parameter: Tensor | None) -> Tensor | None:
    """The full tensor of a parameter that FSDP2 shards by itself; its gradient is averaged over the ranks."""
    if not isinstance(parameter, DTensor):
        return parameter
    # without placements DTensor takes the gradients of all ranks for equal, and drops all but a slice of each
    return parameter.full_tensor(grad_placements=[Partial("avg")] * parameter.device_mesh.ndim)


def hooks_of(module: nn.Module) -> list[Any]:
    """Forward hooks of a module, without those of the wrappers of distributed training."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return [hook for hook in hooks if not str(getattr(hook, "__module__", "")).startswith(_WRAPPERS)]


def causal_model(model: Any) -> Any:
    """The causal language model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if is_peft_model(model) else model


def add_own_logits(model: Any, temperature: float) -> None:
    """Let TRL's call for log-probs, `model(..., labels=labels, fused_lm_head=True)`, take the model's own logits.

    They are held for the labelled positions, as in a loss that is not fused. To be called after TRL's
    `add_fused_lm_head`.
    """
    original, head = model.forward, Head(temperature=temperature)
    keeps = "logits_to_keep" in inspect.signature(type(model).forward).parameters

    @wraps(type(model).forward)
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, labels: Tensor | None = None, **kwargs: Any) -> Any:
        if not fused_lm_head or labels is None:
            return original(*args, **({} if labels is None else {"labels": labels}), **kwargs)
        width = labels.shape[1]
        # argmax has no kernel for bool; the first column with a label, 0 where there is none
        first = int((labels != -100).any(0).int().argmax())
        if keeps and first > 0:  # the first label is predicted one column before
            kwargs["logits_to_keep"] = width - first + 1
        # a hook on the model is to see its logits
        out = (self if hooks_of(self) else original)(*args, use_cache=False, **kwargs)
        aux_loss = getattr(out, "aux_loss", None)
        if kwargs.get("output_router_logits") and aux_loss is None:
            raise ValueError(
                f"{type(self).__name__} computes no auxiliary loss in its own forward; set router_aux_loss_coef=0.0"
            )
        # counted from the end, because logits_to_keep has cut the columns in front
        logits = out.logits[:, -(width - max(first - 1, 0)) : -1]
        kept = labels[:, max(first, 1) :]
        mask = kept != -100
        found = head.scores(logits[mask].float(), kept[mask])
        # TRL's forward returns the columns before the first label too
        left = width - 1 - kept.shape[1]
        # masked_scatter: without a single label the result is still connected to the model, as backward needs
        logprob, entropy = (
            nn.functional.pad(x.new_zeros(mask.shape).masked_scatter(mask, x), (left, 0)) for x in found
        )
        return FusedCausalLMOutput(log_probs=logprob, entropy=entropy, aux_loss=aux_loss)

    model.forward = types.MethodType(forward, model)
