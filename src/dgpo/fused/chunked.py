"""The fused loss: one sweep over chunks of tokens, three matrix products each, and never N x V of anything.

For a chunk of n tokens, with W = lm_head [V, H] and X the chunk's hidden states [n, H]::

    Z = X Wᵀ        the middle: log-probs and entropies, g and h of each token, and G = d loss/d Z in the place of Z
    dX = G W        dW += Gᵀ X

g = d loss/d logprob is a number that is known as soon as the token's own log-prob is (`signal.py`). Three things
need more log-probs first:

* a weight, or an on-policy ρ, of whole responses: chunks then end where responses end, and the middle looks at the
  logits twice. Still three products, unless a response is longer than a chunk;
* that, an adaptive objective, or a correction of unknown reach: a first sweep computes the log-probs, a second one
  the gradients of those tokens that have one. Four products.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dgpo.fused.backward import attach
from dgpo.fused.gradients import Gradients
from dgpo.fused.inputs import Inputs, Pick, everything
from dgpo.fused.middle import Middle
from dgpo.fused.products import mm, wide_products
from dgpo.fused.result import LinearPolicyLoss
from dgpo.fused.rows import Rows, Span, spans_of_sequences, spans_of_tokens
from dgpo.fused.signal import Signal, at, reach


@dataclass(frozen=True, kw_only=True)
class Operands:
    """Operands of the products: [N, H], [V, H] and [V] in the dtype of the products, detached."""

    hidden: Tensor
    lm_head: Tensor
    bias: Tensor | None


def chunked(
    inputs: Inputs, operands: Operands, middle: Middle, *, full: bool, kept: int | None, chunk_tokens: int
) -> LinearPolicyLoss:
    """Value and gradients together; `backward` only scales.

    Args:
        inputs: the checked arguments.
        operands: `inputs.hidden`, `lm_head` and `bias` in the dtype of the products.
        middle: the backend's.
        full: compute every valid token, for the statistics.
        kept: number of tokens to compute, if known.
        chunk_tokens: maximum number of tokens whose logits are held at once.
    """
    signal = Signal(inputs)
    wanted = tuple(
        torch.is_grad_enabled() and t is not None and t.requires_grad
        for t in (inputs.hidden, inputs.lm_head, inputs.bias)
    )
    with torch.no_grad():
        run = _Run(inputs, operands, middle, signal, chunk_tokens)
        run.sweep(wanted, full=full, kept=kept)
        loss = signal.loss(run.objective, run.logprob, run.entropy, run.computed)
    value = loss.value
    if any(wanted):
        # the sweep left no graph: its gradients become the backward of the value
        value = attach(value, run.gradients, (inputs.hidden, inputs.lm_head, inputs.bias))
    found = LinearPolicyLoss.of(loss, run.logprob, run.entropy, run.computed, inputs.layout)
    return replace(found, value=value)


@dataclass(frozen=True)
class _Chunk:
    """n tokens with their products: X [n, H], logits [n, V], token_ids [n], places [n] in the flattened [B, T]."""

    X: Tensor
    logits: Tensor
    token_ids: Tensor
    places: Tensor

    def part(self, i: slice) -> _Chunk:
        """Some of its tokens."""
        return _Chunk(self.X[i], self.logits[i], self.token_ids[i], self.places[i])


class _Run:
    """State of one call: what has been computed so far, [B, T]."""

    def __init__(self, inputs: Inputs, operands: Operands, middle: Middle, signal: Signal, chunk_tokens: int) -> None:
        tokens = inputs.tokens
        self._inputs, self._operands, self._middle, self._signal = inputs, operands, middle, signal
        self._chunk_tokens = chunk_tokens
        self._buffer: Tensor | None = None
        self._lse = torch.zeros_like(tokens.logprob)
        self.objective = inputs.spec.objective
        self.computed = tokens.mask
        self.logprob, self.entropy = torch.zeros_like(tokens.logprob), torch.zeros_like(tokens.logprob)
        self.gradients: tuple[Tensor | None, ...] = (None, None, None)

    def sweep(self, wanted: tuple[bool, ...], *, full: bool, kept: int | None) -> None:
        """Fills logprob, entropy, computed and, where wanted, gradients."""
        inputs, spec, tokens = self._inputs, self._inputs.spec, self._inputs.tokens
        needs = reach(spec.correction, on_policy=inputs.on_policy)
        # the two reasons to wait: for the other tokens of the response, or for the complete batch
        whole = spec.reads_response or needs == "sequence"
        ahead = "batch" in spec.objective.reads or needs == "batch"
        # --- which tokens: A = 0 gives g = 0, but a token that reads its response needs all of it
        if spec.policy_term_only and not (full or ahead):
            signed = tokens.mask & (tokens.advantage != 0)
            self.computed = tokens.mask & signed.any(-1, keepdim=True) if whole else signed
        rows = Rows.of(self.computed, inputs.layout, kept)

        # --- one sweep: three products
        spans: list[Span] | None = spans_of_tokens(len(rows), self._chunk_tokens)
        if whole and not ahead and any(wanted):
            spans = spans_of_sequences(self.computed, self._chunk_tokens)
        if spans is not None and not ahead and any(wanted):
            self._differentiate(rows, spans, wanted)
            return
        # --- two sweeps: all log-probs, then the gradients that are not 0; without gradients the first one alone
        spans = spans_of_tokens(len(rows), self._chunk_tokens)
        self._reserve(spans)
        for span in spans:
            self._read(self._chunk(rows, span))
        if "batch" in spec.objective.reads:
            batch = inputs.batch(self.logprob, self.entropy, self.computed)
            self.objective = spec.objective.calibrate(batch.anchored(spec.anchor))
        if any(wanted):
            g, h = self._derivatives(everything)
            # clipped tokens and those of A = 0 cost no product in the second sweep
            pulls = (g != 0) if h is None else (g != 0) | (h != 0)
            rows = Rows.of(pulls, inputs.layout, None)
            self._differentiate(rows, spans_of_tokens(len(rows), self._chunk_tokens), wanted, (g, h))

    def _differentiate(
        self,
        rows: Rows,
        spans: list[Span],
        wanted: tuple[bool, ...],
        known: tuple[Tensor, Tensor | None] | None = None,
    ) -> None:
        """Gradients of these rows; `known` is (g, h) [B, T], from log-probs that have been computed before."""
        self._reserve(spans)
        gradients = Gradients(self._inputs, self._operands.lm_head, rows, wanted, len(spans))
        for span in spans:
            chunk = self._chunk(rows, span)
            if known is not None:
                self._write(chunk, *known)
            elif span.responses is not None:
                self._write_responses(chunk, span.responses)
            else:
                self._write_tokens(chunk)
            gradients.add(self._as_operand(chunk.logits), chunk.X, span.rows)
        self.gradients = gradients.result()

    def _write_tokens(self, chunk: _Chunk) -> None:
        """A token's signal needs its own log-prob only: block by block, where the middle gains from what it holds."""
        # where nothing is held, one loss over the whole chunk is cheaper than one per block
        for i in self._blocks(chunk) if self._middle.holds else (slice(0, len(chunk.places)),):
            part = chunk.part(i)
            self._read(part)
            pick = at(part.places)
            # as [1, n]: to an objective at token level, how tokens form responses does not matter
            g, h = self._derivatives(pick)
            self._write_rows(part, g[0], None if h is None else h[0])

    def _write_responses(self, chunk: _Chunk, responses: slice) -> None:
        self._read(chunk)

        def pick(values: Tensor) -> Tensor:
            return values[responses]

        g, h = self._derivatives(pick)
        self._write(chunk, g, h, first=responses.start * self._inputs.layout.T)

    def _write(self, chunk: _Chunk, g: Tensor, h: Tensor | None, first: int = 0) -> None:
        """g and h [b, T] begin at the place `first`."""
        where = chunk.places - first
        self._write_rows(chunk, g.flatten()[where], None if h is None else h.flatten()[where])

    def _derivatives(self, pick: Pick) -> tuple[Tensor, Tensor | None]:
        return self._signal.gradient(self.objective, pick(self.logprob), pick(self.entropy), pick(self.computed), pick)

    def _read(self, chunk: _Chunk) -> None:
        for i in self._blocks(chunk):
            found = self._middle.stats(chunk.logits[i], chunk.token_ids[i])
            for values, result in zip((self.logprob, self.entropy, self._lse), found, strict=True):
                values.view(-1)[chunk.places[i]] = result

    def _write_rows(self, chunk: _Chunk, g: Tensor, h: Tensor | None) -> None:
        """g and h [n]."""
        found = [values.view(-1)[chunk.places] for values in (self.logprob, self.entropy, self._lse)]
        for i in self._blocks(chunk):
            logits = chunk.logits[i]
            logprob, entropy, lse = (values[i] for values in found)
            out = self._as_operand(logits)
            self._middle.gradient_(
                logits, chunk.token_ids[i], logprob, entropy, lse, g[i], None if h is None else h[i], out=out
            )

    def _blocks(self, chunk: _Chunk) -> Iterator[slice]:
        n, vocabulary = chunk.logits.shape
        step = self._middle.block_rows(vocabulary) or n
        for start in range(0, n, step):
            yield slice(start, min(start + step, n))

    def _reserve(self, spans: list[Span]) -> None:
        """The one buffer, for the largest of these chunks: float32 where the hardware gives it."""
        W, most = self._operands.lm_head, max((span.rows.stop - span.rows.start for span in spans), default=0)
        if self._buffer is None or len(self._buffer) < most:
            dtype = torch.float32 if wide_products(W.device, W.dtype) else W.dtype
            self._buffer = None  # so that the old one is freed before the new one is allocated
            self._buffer = torch.empty(most, len(W), dtype=dtype, device=W.device)

    def _chunk(self, rows: Rows, span: Span) -> _Chunk:
        """The first product, into the one buffer."""
        X, W = rows.take(self._operands.hidden, span.rows), self._operands.lm_head
        assert self._buffer is not None  # `_reserve` has been called for this span
        # the middle knows its rows by their address, which the next product reuses
        self._middle.forget()
        logits = mm(X, W.t(), out=self._buffer[: len(X)])
        return _Chunk(X, logits, rows.take(self._inputs.token_ids, span.rows), rows.places[span.rows])

    def _as_operand(self, logits: Tensor) -> Tensor:
        """The same rows in the dtype of the products: 16-bit gradients begin where their float32 logits began."""
        W = self._operands.lm_head
        return logits if logits.dtype == W.dtype else logits.view(W.dtype)[:, : len(W)]
