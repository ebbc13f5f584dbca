"""The elementwise middle of a chunk: logits in, log-probs and entropies out, and the gradient of the logits in place.

Between the products every logit is touched once for the statistics of its row and once for its gradient. On a CPU
these passes are bound by memory, so they run over a few rows at a time, and what `stats` leaves in its scratch is what
`gradient_` starts from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dgpo.fused.head import Head

LOWEST = -1e30
"""Stands for -inf in a shifted logit: its exponential is 0 as well, and 0 times it is 0, not NaN."""

BLOCK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 25}
"""Logits of one block: the scratch is two blocks in float32. 2^22 on a CPU: the last-level cache holds most of it."""

CACHED_ELEMENTS = 1 << 19
"""Logits per thread whose passes run one after the other on a CPU: 2 MiB in float32, about a second-level cache."""


class Middle(Protocol):
    """What a backend supplies: two steps over some rows of products [n, V]. Nothing in it knows an objective."""

    @property
    def holds(self) -> bool:
        """True if `gradient_` is faster right after `stats` of the same rows."""

    def block_rows(self, vocabulary: int) -> int | None:
        """Rows per call; None for all of them."""

    def forget(self) -> None:
        """The memory of the logits is about to be overwritten with other products."""

    def stats(self, logits: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """logprob, entropy and log-sum-exp, each [n], from products [n, V]."""

    def gradient_(
        self,
        logits: Tensor,
        token_ids: Tensor,
        logprob: Tensor,
        entropy: Tensor,
        lse: Tensor,
        g: Tensor,
        h: Tensor | None,
        *,
        out: Tensor,
    ) -> None:
        """Write d loss / d product [n, V] into `out`, which may be `logits` or share its memory row by row.

        Follows `stats` of the same rows, at once or after `stats` of other rows (and then from `lse`).
        """


class TorchMiddle:
    """The middle in torch operations. With p_j = exp(z_j - lse), g = d loss/d logprob and h = d loss/d entropy::

        logprob = z_y - lse        entropy H = -Σ_j p_j log p_j
        d loss/dz_j = g · (1[j = y] - p_j) - h · p_j · (log p_j + H)

    and the chain rule of `Head` down to the product. The target's 1 - p_y is -expm1(logprob). Arithmetic is float32,
    float64 for float64 logits. Not safe to share between threads: it owns scratch.
    """

    def __init__(self, head: Head, dtype: torch.dtype, device: torch.device) -> None:
        self._head = head
        self._device = device
        self._dtype = torch.float64 if dtype == torch.float64 else torch.float32
        # the exponential inside softmax is faster and good to 5e-6, far below the rounding of 16-bit operands
        self._fast = dtype in (torch.bfloat16, torch.float16)
        # only a bias, or an overflowing product in float16, makes a logit -inf
        self._bounded = head.bias is None and dtype != torch.float16
        self._scratch: tuple[Tensor, Tensor] | None = None
        self._held: _Held | None = None

    @property
    def holds(self) -> bool:
        # elsewhere an exponential costs less than one more loss per block
        return self._device.type == "cpu"

    def block_rows(self, vocabulary: int) -> int:
        return max(1, BLOCK_ELEMENTS[_kind(self._device)] // vocabulary)

    def forget(self) -> None:
        self._held = None

    def stats(self, logits: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, vocabulary = logits.shape
        z, e = self._buffers(n, vocabulary)
        highest = torch.empty(n, 1, dtype=self._dtype, device=self._device)
        total, spread = torch.empty_like(highest), torch.empty_like(highest)
        for i in self._cached(n, vocabulary):
            self._shifted(logits[i], z[i], highest[i])
            if self._fast:
                torch.softmax(z[i], -1, out=e[i])
                torch.amax(e[i], -1, keepdim=True, out=total[i])  # the largest z is 0: its probability is 1 / sum
            else:
                torch.exp(z[i], out=e[i])
                torch.sum(e[i], -1, keepdim=True, out=total[i])
            spread[i, 0] = torch.linalg.vecdot(e[i], z[i])
        if self._fast:
            # e is p already, and its maximum 1 / sum
            log_total, mean = -total.log(), spread
        else:
            log_total, mean = total.log(), spread / total
        scale = torch.ones_like(total) if self._fast else 1 / total
        self._held = _Held(logits.data_ptr(), n, highest, log_total, scale)
        logprob = z.gather(1, token_ids.unsqueeze(1)) - log_total
        # the difference of two rounded sums; an entropy is not negative
        entropy = (log_total - mean).clamp(min=0)
        return logprob.squeeze(1), entropy.squeeze(1), (highest + log_total).squeeze(1)

    def gradient_(
        self,
        logits: Tensor,
        token_ids: Tensor,
        logprob: Tensor,
        entropy: Tensor,
        lse: Tensor,
        g: Tensor,
        h: Tensor | None,
        *,
        out: Tensor,
    ) -> None:
        z, e = self._buffers(*logits.shape)
        held, self._held = self._held, None
        if held is None or (held.address, held.rows) != (logits.data_ptr(), logits.shape[0]):
            # the scratch holds other rows: shifted by lse instead of the maximum, e is p itself
            shift = lse.unsqueeze(1)
            self._shifted(logits, z, shift, known=True)
            torch.exp(z, out=e)
            held = _Held(0, 0, shift, torch.zeros_like(shift), torch.ones_like(shift))
        target = token_ids.unsqueeze(1)
        logprob, entropy, g = logprob.unsqueeze(1), entropy.unsqueeze(1), g.unsqueeze(1)
        # g · (1 - p_y), without the cancellation for an almost certain token
        at_target = -g * torch.expm1(logprob)
        # the derivative of the cap wants z, which the entropy term overwrites
        kept = z.clone() if h is not None and self._head.softcap is not None else z
        if h is None:
            factor = -g * held.scale
            if self._head.pulls_nothing:
                for i in self._cached(*logits.shape):
                    if out.dtype == e.dtype:
                        # one pass, which ends where the result belongs
                        torch.mul(e[i], factor[i], out=out[i]).scatter_(1, target[i], at_target[i])
                    else:
                        out[i].copy_(e[i].mul_(factor[i]).scatter_(1, target[i], at_target[i]))
                return
            e.mul_(factor)
        else:
            h = h.unsqueeze(1)
            at_target = at_target - h * logprob.exp() * (logprob + entropy)
            # p · (-g - h · (log p + H)) with log p = z - log_total, in the place of e
            e.mul_(held.scale).mul_(z.mul_(-h).sub_(g + h * (entropy - held.log_total)))
        e.scatter_(1, target, at_target)
        if self._head.softcap is not None:
            # the cap acts on z itself, not on z less its maximum
            kept.add_(held.shift)
        self._head.pull_back_(e, kept)
        out.copy_(e)

    def _shifted(self, logits: Tensor, z: Tensor, highest: Tensor, *, known: bool = False) -> None:
        """z - highest into `z`; `highest` is the row's maximum, written here unless it is `known`."""
        source = logits
        if not self._head.plain or logits.dtype != self._dtype:
            source = self._head.logits(z.copy_(logits), out=z)
        if not known:
            torch.amax(source, -1, keepdim=True, out=highest)
        torch.sub(source, highest, out=z)
        if not self._bounded:
            z.clamp_(min=LOWEST)

    def _cached(self, n: int, vocabulary: int) -> Iterator[slice]:
        """On a CPU a few rows at a time, which stay in its caches from pass to pass; elsewhere all of them."""
        step = n if self._device.type != "cpu" else max(1, CACHED_ELEMENTS * torch.get_num_threads() // vocabulary)
        for start in range(0, n, step):
            yield slice(start, start + step)

    def _buffers(self, n: int, vocabulary: int) -> tuple[Tensor, Tensor]:
        if self._scratch is None or self._scratch[0].shape[0] < n:
            z = torch.empty(n, vocabulary, dtype=self._dtype, device=self._device)
            self._scratch = (z, torch.empty_like(z))
        return self._scratch[0][:n], self._scratch[1][:n]


@dataclass(frozen=True)
class _Held:
    """Contents of the scratch buffers: z - shift and e, with log p = z - shift - log_total and p = e · scale."""

    address: int
    rows: int
    shift: Tensor
    log_total: Tensor
    scale: Tensor


def _kind(device: torch.device) -> str:
    return device.type if device.type in BLOCK_ELEMENTS else "cuda"
