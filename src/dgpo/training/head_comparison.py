"""What a model makes of its hidden states, measured, and compared with its own logits.

Both ours (`add_policy_loss`) and TRL's head for log-probs, which knows the names of some models' scales and caps, take
the product of hidden states and output layer themselves. What else a model does in its forward (a scale under another
name, a truncated vocabulary, hooks, a patch of another library) they would silently leave out. So a few tokens go
through the model on each path, and a path that gives other log-probs is not used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from dgpo.files import first_line
from dgpo.fused import linear_policy_loss
from dgpo.fused.head import Head
from dgpo.training.forwards import HeadOutput, apply_to_hidden, causal_model, hooks_of
from dgpo.training.packing import ObservedPacking, why_not_packed, why_not_shared

_ROWS, _COLUMNS = 2, 8
_RAGGED, _PROMPTS = ((3, 4), (3, 1), (2, 5), (3, 2)), (0, 0, 1, 0)
"""Tokens of prompt and response of the rows that are packed, and which prompt each has."""
_NARROW = 3
"""Keys of a sliding window that those rows are longer than."""
_NOT_FUSED = "the loss is not fused"
# 2^20: large enough that any tanh cap has reached its limit, and exact in bfloat16
_LARGE = 2.0**20
_VISIBLE_LOGIT = 32.0
"""Logits of this size show the caps that models have (15 … 50); those of a fresh model would not."""


@dataclass(frozen=True, kw_only=True)
class HeadReport:
    """What the comparison found, the same on all ranks.

    Attributes:
        head: what follows the product, as it was measured; the plain product where it cannot be.
        why_not_fused: why the loss from hidden states is not the model's; None where it is, or was not tried.
        why_not_trl: why TRL's head for log-probs is not the model's; None where it is.
        why_not_packed: why sequences without padding have other log-probs; None where they have the same.
        why_not_shared: why responses that share their prompt do; None where they do not.
    """

    head: Head
    why_not_fused: str | None = None
    why_not_trl: str | None = None
    why_not_packed: str | None = _NOT_FUSED
    why_not_shared: str | None = _NOT_FUSED


def compare_heads(model: Any, accelerator: Any, temperature: float, *, fused: bool) -> HeadReport:
    """Compare log-probs and entropies of a few tokens on every path. The report is rank 0's, on every rank.

    About a dozen forward passes of up to 32 tokens, half as many again for a model with a sliding window, in evaluation
    mode and without gradients; the state of random numbers and the mode of every module are what they were.
    """
    device = accelerator.device
    with _undisturbed(model, device), torch.no_grad(), accelerator.autocast():
        report = _Comparison(model, accelerator.unwrap_model(model), device, temperature, fused).report()
    found = [report]
    # one decision for all: ranks on different paths would run different collectives, and hang
    broadcast_object_list(found)
    return found[0]


@contextmanager
def _undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    # per module: a user may have frozen some in evaluation mode, which `model.train()` would undo
    modes = [(module, module.training) for module in model.modules()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


class _Comparison:
    def __init__(self, model: Any, unwrapped: Any, device: torch.device, temperature: float, fused: bool) -> None:
        # the model's own logits, which have its scale and cap already
        self._own_head, self._model, self._fused = Head(temperature=temperature), model, fused
        self._causal = causal_model(unwrapped)
        self._head = self._causal.get_output_embeddings()
        vocabulary = self._causal.config.get_text_config().vocab_size
        count = _ROWS * _COLUMNS
        # ids from all parts of the vocabulary, so that a truncated one shows
        spread = 1 + torch.arange(count, device=device) * max(vocabulary - 2, 1) // count
        self._ids = spread.view(_ROWS, _COLUMNS)
        self._mask = torch.ones_like(self._ids)
        self._mask[1, :3] = 0  # prompts are padded on the left
        # a column is compared where both its token and the one that it is predicted from are real
        self._scored = self._mask[:, 1:].bool() & self._mask[:, :-1].bool()

    def report(self) -> HeadReport:
        if self._head is None:
            reason = "the model has no output head"
            return HeadReport(head=self._own_head, why_not_fused=reason, why_not_trl=reason)
        measured = self._measure()
        head = replace(measured or self._own_head, temperature=self._own_head.temperature)
        plain = self._own()
        # a power of two changes exponents only, so that the louder states are not rounded again
        amplifier = 2.0 ** max(math.ceil(math.log2(_VISIBLE_LOGIT / max(plain.largest, 1e-3))), 0)
        with self._louder(amplifier) as calls:
            loud = self._own()
        pairs = [(plain, 1.0)] + ([(loud, amplifier)] if calls else [])
        if measured is None and max(own.spread for own, _ in pairs) < 1e-3:
            reason = "all its logits are equal, so that nothing can be compared"
            return HeadReport(head=head, why_not_fused=reason if self._fused else None, why_not_trl=reason)
        if hooks_of(self._head):
            trl: str | None = "hooks on the output head would not be called"
        else:
            trl = self._why_not(self._of_trl, pairs)
        fused = self._why_not(lambda: self._of_hidden(head), pairs) if self._fused else None
        packed: str | None = _NOT_FUSED
        shared: str | None = _NOT_FUSED
        if self._fused and fused is None:
            packed = shared = why_not_packed(self._causal)
            if packed is None:
                padded = self._padded(head, pairs)
                packed = self._why_not_packed(padded, head, None)
                shared = packed or why_not_shared(self._causal) or self._why_not_packed(padded, head, _PROMPTS)
        return HeadReport(
            head=head,
            why_not_fused=fused,
            why_not_trl=trl,
            why_not_packed=packed,
            why_not_shared=shared,
        )

    def _why_not(self, path: Callable[[], tuple[Tensor, Tensor]], pairs: list[tuple[_Own, float]]) -> str | None:
        for own, amplifier in pairs:
            with self._louder(amplifier):
                try:
                    logprob, entropy = path()
                except Exception as error:  # noqa: BLE001 - whatever it is, it is said, and this path not used
                    return f"its forward fails there ({type(error).__name__}: {first_line(error)})"
            for name, found, expected in (("log-probs", logprob, own.logprob), ("entropies", entropy, own.entropy)):
                distance = (found.float() - expected)[self._scored].abs().max().item()
                # `not <=`: NaN must fail too
                if not distance <= own.tolerance:
                    return f"{name} differ by {distance:.2g} nats from those of the model's own logits"
        return None

    def _padded(self, head: Head, pairs: list[tuple[_Own, float]]) -> list[_Padded]:
        """What packed sequences are to meet: as it is, louder, and each with a narrow window too where there is one."""
        inputs = self._ragged()
        # masks are made from the configuration in every forward; some models have a window there and do not use it
        window = getattr(self._causal.config.get_text_config(), "sliding_window", None)
        found = []
        for own, amplifier in pairs:
            for narrow in (None,) if window is None else (None, _NARROW):
                with self._louder(amplifier), self._window(narrow):
                    logprob = self._scored_by(head, inputs, None)
                found.append(_Padded(logprob=logprob, tolerance=own.tolerance, amplifier=amplifier, window=narrow))
        return found

    def _why_not_packed(self, padded: list[_Padded], head: Head, prompts: Sequence[int] | None) -> str | None:
        """Why the log-probs of packed sequences are not those of padded ones."""
        inputs = self._ragged()
        valid = inputs["completion_mask"].bool()
        packing = ObservedPacking.of(inputs, prompts=prompts)
        assert packing is not None
        for expected in padded:
            with self._louder(expected.amplifier), self._window(expected.window):
                try:
                    found = self._scored_by(head, inputs, packing)
                except Exception as error:  # noqa: BLE001 - said, and this path not used
                    return f"its forward fails on packed sequences ({type(error).__name__}: {first_line(error)})"
            distance = (found - expected.logprob)[valid].abs().max().item()
            if not distance <= expected.tolerance:
                return f"log-probs of packed sequences differ by {distance:.2g} nats from those of padded ones"
        layers = getattr(self._causal.config.get_text_config(), "num_hidden_layers", 0)
        if packing.unseen(layers * len(padded)):
            return "not all of its layers attend through scaled_dot_product_attention"
        return None

    @contextmanager
    def _window(self, narrow: int | None) -> Iterator[None]:
        """A sliding window of so many keys, shorter than the sequences here; None for the model's own."""
        config = self._causal.config.get_text_config()
        if narrow is None:
            yield
            return
        window, config.sliding_window = config.sliding_window, narrow
        try:
            yield
        finally:
            config.sliding_window = window

    def _ragged(self) -> dict[str, Tensor]:
        columns = [max(counts) for counts in zip(*_RAGGED, strict=True)]
        place = torch.arange(len(_RAGGED) * sum(columns)).view(len(_RAGGED), -1) % self._ids.numel()
        prompts, completions = self._ids.flatten()[place.to(self._ids.device)].split(columns, dim=1)
        device = self._ids.device
        before, after = torch.tensor(_RAGGED, device=device).unsqueeze(-1).unbind(1)
        return {
            "prompt_ids": prompts[torch.tensor(_PROMPTS, device=device)],
            # padded on the left
            "prompt_mask": (torch.arange(columns[0], 0, -1, device=before.device) <= before).long(),
            "completion_ids": completions,
            "completion_mask": (torch.arange(columns[1], device=after.device) < after).long(),
        }

    # --- the paths --------------------------------------------------------------------------------------------------

    def _own(self) -> _Own:
        # a wrapper of PEFT may have put virtual tokens before ours
        logits = self._model(input_ids=self._ids, attention_mask=self._mask, use_cache=False).logits
        return _Own.of(logits[:, -_COLUMNS:], self._ids, self._own_head)

    def _of_trl(self) -> tuple[Tensor, Tensor]:
        labels = self._ids.masked_fill(self._mask == 0, -100)
        out = self._model(input_ids=self._ids, attention_mask=self._mask, labels=labels, fused_lm_head=True)
        # [B, T - 1], as `_of_hidden` returns
        return out.log_probs[:, -_COLUMNS + 1 :], out.entropy[:, -_COLUMNS + 1 :]

    def _of_hidden(self, head: Head) -> tuple[Tensor, Tensor]:
        ids = self._ids[:, 1:]
        loss = _scores(head, ids, torch.ones_like(ids).bool())
        out = self._model(input_ids=self._ids, attention_mask=self._mask, policy_loss=loss, completions=ids.shape[1])
        return out.logprob, out.entropy

    def _scored_by(self, head: Head, inputs: dict[str, Tensor], packing: ObservedPacking | None) -> Tensor:
        def scores(hidden: Tensor, lm_head: Tensor, bias: Tensor | None) -> HeadOutput:
            # the fused loss has been compared by now, and this is a third of its time
            product = nn.functional.linear(hidden, lm_head, bias).float()
            return HeadOutput(logprob=head.scores(product, inputs["completion_ids"])[0])

        logprob: Tensor = apply_to_hidden(self._model, inputs, scores, packing).logprob
        return logprob

    # --- what the model does around its head ------------------------------------------------------------------------

    @contextmanager
    def _louder(self, factor: float) -> Iterator[list[nn.Module]]:
        """The hidden states times `factor`, for every caller of the model's body; yields the calls."""
        calls: list[nn.Module] = []

        def amplify(module: nn.Module, args: Any, output: Any) -> Any:
            calls.append(module)
            if isinstance(output, tuple):
                return (output[0] * factor, *output[1:])
            output["last_hidden_state"] = output.last_hidden_state * factor
            return output

        body = self._causal.base_model
        # the body is the model itself: a hook on it would scale its logits and not its hidden states
        if factor == 1.0 or body is self._causal:
            yield calls
            return
        handle = body.register_forward_hook(amplify)
        try:
            yield calls
        finally:
            handle.remove()

    def _measure(self) -> Head | None:
        """Scale and cap from known numbers in the place of the head's product; None where they do not explain it."""
        calls = []

        def replace(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            # small integers and a power of two, which bfloat16 has too
            row = (torch.arange(output.shape[-1], device=output.device) % 129 - 64).float()
            row[0] = _LARGE
            calls.append(row)
            return row.expand(output.shape)

        handle = self._head.register_forward_hook(replace)
        try:
            out = self._model(input_ids=self._ids, attention_mask=self._mask, use_cache=False)
        finally:
            handle.remove()
        # called several times, or cut: then the product is not all that follows the hidden states
        if len(calls) != 1 or out.logits.shape[-1] != len(calls[0]):
            return None
        # float64, so that the fit adds no rounding of its own
        return _fit(calls[0].double(), out.logits[:, -_COLUMNS:].double())


def _scores(head: Head, ids: Tensor, mask: Tensor) -> Callable[..., Any]:
    """A loss from hidden states, for its log-probs and entropies [B, T] alone."""
    return partial(
        linear_policy_loss,
        token_ids=ids,
        old_logprob=None,
        advantage=torch.zeros(ids.shape, device=ids.device),
        mask=mask,
        statistics="full",
        temperature=head.divisor,
        softcap=head.cap,
    )


@dataclass(frozen=True, kw_only=True)
class _Padded:
    """Log-probs [b, T] of the padded rows, and under which conditions packed ones are to meet them how exactly."""

    logprob: Tensor
    tolerance: float
    amplifier: float
    window: int | None


@dataclass(frozen=True)
class _Own:
    """Log-probs and entropies [B, T - 1] of the model's own logits, and how exactly they can be met."""

    logprob: Tensor
    entropy: Tensor
    largest: float
    spread: float
    tolerance: float

    @classmethod
    def of(cls, logits: Tensor, ids: Tensor, head: Head) -> _Own:
        coarse = torch.finfo(logits.dtype).eps
        if torch.is_autocast_enabled(logits.device.type):
            coarse = max(coarse, torch.finfo(torch.get_autocast_dtype(logits.device.type)).eps)
        if logits.device.type == "cuda":
            coarse = max(coarse, 2.0**-10)  # TF32
        z = logits[:, :-1].float()
        # a model may mask entries of its vocabulary with -inf
        largest = z[z.isfinite()].abs().max().item()
        logprob, entropy = head.scores(z, ids[:, 1:])
        return cls(
            logprob=logprob,
            entropy=entropy,
            largest=largest,
            spread=(z.amax(-1) - z.amin(-1)).max().item(),
            tolerance=2e-4 + 8 * coarse * largest / head.temperature,
        )


def _fit(raw: Tensor, found: Tensor) -> Head | None:
    """The scale and cap that make `found` [B, T, V] of `raw` [V]."""
    row = found[0, -1]
    # without a cap the large entry gives the scale directly
    scale, softcap = (row[0] / _LARGE).item(), None
    if not torch.allclose(row, scale * raw, rtol=1e-5, atol=0):
        softcap = row[0].item()  # tanh has reached 1
        if not (math.isfinite(softcap) and softcap > 0):
            return None
        # where tanh is neither straight nor flat
        place = (row.abs() / softcap - 0.5).abs().argmin()
        share = (row[place] / softcap).item()
        if not 0 < abs(share) < 1 or raw[place] == 0:
            return None
        # invert softcap · tanh(scale · raw / softcap) at that place
        scale = softcap * math.atanh(share) / raw[place].item()
    if not (math.isfinite(scale) and scale > 0):
        return None
    head = Head(scale=scale, softcap=softcap)
    near = torch.allclose(found, head.logits(raw).expand(found.shape), rtol=1e-4, atol=1e-4 * scale)
    return head if near else None
