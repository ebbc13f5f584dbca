"""The loss inside the model's forward, straight from hidden states: no logits of the whole batch, no second forward.

TRL patches `model.forward` so that `model(..., fused_lm_head=True)` returns log-probs; we patch it once more, so that
`model(..., policy_loss=f)` returns what `f` makes of hidden states and output head. The product with the head then
happens inside the wrapped model's forward, where DDP's hooks are armed and FSDP2 has gathered the weights.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import ModelOutput
from trl.trainer.utils import maybe_gather_lm_head_ctx

from dgpo.training.config import DGPOConfig

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

    Without `policy_loss` the forward is the one it was, so generation and TRL's own head are unchanged. To be called
    after TRL's `add_fused_lm_head` and before the model is wrapped.

    Args:
        model: a causal language model whose head is a plain linear layer (`why_not_fused`).
        cast_lm_head_to_fp32: TRL's option: the product in float32, outside autocast.
    """
    # the function and not the bound method, so that a deep copy of the model runs its own weights
    original = model.forward.__func__

    @functools.wraps(type(model).forward)  # `generate` validates its keyword arguments against the signature
    def forward(
        self: Any, *args: Any, policy_loss: LossOfHidden | None = None, completions: int = 0, **kwargs: Any
    ) -> Any:
        if policy_loss is None:
            return original(self, *args, **kwargs)
        kwargs["use_cache"] = False
        # looked up on each call: FSDP and PEFT replace parts of the model after this
        head = self.get_output_embeddings()
        hidden = self.base_model(*args, **kwargs).last_hidden_state
        # the token in column i is predicted from column i - 1
        hidden = hidden[:, -completions - 1 : -1]
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


def _gathered(parameter: Tensor | None) -> Tensor | None:
    """A parameter that FSDP2 holds in shards of its own, whole; its gradient is averaged over the ranks."""
    if not isinstance(parameter, DTensor):
        return parameter
    # without placements DTensor takes the gradients of all ranks for equal, and drops all but a slice of each
    return parameter.full_tensor(grad_placements=[Partial("avg")] * parameter.device_mesh.ndim)


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
    advantage = config.make_advantage()
    adapters = getattr(model, "peft_config", {}).values()
    reasons = {
        "the model reads images": images,
        "float16 gradients vanish before the loss is scaled": config.fp16 or causal.dtype == torch.float16,
        "ZeRO-3 has let go of the head when its gradient is made": is_deepspeed_zero3_enabled()
        and any(parameter.requires_grad for parameter in head.parameters()),
        f"the output head is a {type(head).__name__}, not a torch.nn.Linear": type(head) is not torch.nn.Linear,
        "the model is spread over devices": len(set(getattr(causal, "hf_device_map", {}).values())) > 1,
        "prompt-learning adapters lengthen the sequence": any(a.is_prompt_learning for a in adapters),
        "the auxiliary loss of a mixture of experts is computed beside the log-probs": aux_loss,
        "torch_compile would compile a new forward for every micro-batch": bool(config.torch_compile),
        "positive_nll_coef differentiates the log-probs by itself": config.positive_nll_coef > 0,
        "off_policy_mask_threshold masks by the current log-probs": config.off_policy_mask_threshold is not None,
        "top_entropy_quantile masks by the current entropies": config.top_entropy_quantile < 1.0,
        f"advantage = {config.advantage!r} reads the current entropies": advantage is not None
        and "entropy" in advantage.reads,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def why_bypassed(model: Any) -> str | None:
    """What the fused loss would go around in a model: hooks on its output head; None where there is nothing."""
    head = causal_model(model).get_output_embeddings()
    return "hooks on the output head would not be called" if head is not None and hooks_of(head) else None


def hooks_of(module: nn.Module) -> list[Any]:
    """Forward hooks of a module, without those of the wrappers of distributed training."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return [hook for hook in hooks if not str(getattr(hook, "__module__", "")).startswith(_WRAPPERS)]


def causal_model(model: Any) -> Any:
    """The causal language model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if is_peft_model(model) else model
