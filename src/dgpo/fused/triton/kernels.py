"""The two row kernels: one program per row of a chunk of logits, one read of the row in each.

Triton is imported by `kernels()` and nowhere else, so that the package can be imported without it. The functions below
are plain Python until then; `kernels()` binds the globals `tl` and `tanh` that they use.

On a Hopper GPU, about 13 instructions can be issued per logit while bf16 logits are read at 4.3 TB/s. So a thread reads
one 16-byte vector (WIDTH logits) per lane, takes their maximum in registers and rescales its running sums once per
vector; nothing crosses threads before the end of the row. That is 14 instructions per logit, in 32 registers, so that
all 2048 threads of a multiprocessor are resident; two lanes per thread keep two vectors in flight.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

tl: Any
"""triton.language, once `kernels` has run."""

tanh: Any
"""`_tanh` as a device function, once `kernels` has run."""


class Kernels(NamedTuple):
    """The kernels, compiled (or interpreted) at their first launch."""

    stats: Any
    gradient: Any


@cache
def kernels() -> Kernels:
    """Import triton and wrap the functions of this module.

    With TRITON_INTERPRET=1 in the environment, before anything has imported triton, they run in numpy on the CPU.
    """
    import triton

    global tl, tanh
    tl = triton.language
    tanh = triton.jit(_tanh)
    return Kernels(stats=triton.jit(_stats), gradient=triton.jit(_gradient))


def _tanh(a):  # type: ignore[no-untyped-def]  # device code: arguments are triton tensors
    """(tanh a, 1 - tanh² a), neither by a difference of nearly equal numbers.

    u = exp(-2|a|);  tanh |a| = (1 - u)/(1 + u), below 1/4 its series to a⁹;  1 - tanh² = 4u/(1 + u)².
    """
    size = tl.abs(a)
    u = tl.exp(-2.0 * size)
    s = a * a
    series = size * (1.0 + s * (-1.0 / 3.0 + s * (2.0 / 15.0 + s * (-17.0 / 315.0 + s * (62.0 / 2835.0)))))
    value = tl.where(size < 0.25, series, (1.0 - u) / (1.0 + u))
    return tl.where(a < 0, -value, value), 4.0 * u / ((1.0 + u) * (1.0 + u))


def _stats(  # type: ignore[no-untyped-def]
    logits,
    token_ids,
    bias,
    logprob,
    entropy,
    lse,
    row_stride,
    V,
    inv_temperature,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """logprob, entropy and lse of one row in one pass.

    Per lane, with d = z - m and m the running maximum: s = Σ exp(d), t = Σ exp(d)·d; a maximum that grows by δ turns
    (s, t) into exp(-δ)·(s, t - δ·s). Then lse = m + log s and entropy = log s - t/s.
    """
    # row · row_stride exceeds int32 from 14,000 rows of 152k on
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    y = tl.load(token_ids + row).to(tl.int64)

    # finite, because -inf - -inf is NaN; anything below it counts as -inf
    m = tl.full((LANES,), -1e30, tl.float32)
    s = tl.zeros((LANES,), tl.float32)
    t = tl.zeros((LANES,), tl.float32)
    offsets = tl.arange(0, LANES)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    for start in range(0, V, LANES * WIDTH):
        columns = start + offsets
        x = tl.load(logits + columns, mask=columns < V, other=-float("inf")).to(tl.float32)
        if HAS_BIAS:
            x += tl.load(bias + columns, mask=columns < V, other=0.0).to(tl.float32)
        if HAS_SOFTCAP:
            # the cap lifts -inf to -softcap; columns beyond V have to stay out
            x = tl.where(columns < V, softcap * tanh(x / softcap)[0], -float("inf"))
        grown = tl.maximum(m, tl.max(x, 1) * inv_temperature)
        # bounded: exp(-200) is 0 already, and 0·inf is NaN
        delta = tl.minimum(grown - m, 200.0)
        shrink = tl.exp(-delta)
        d = x * inv_temperature - grown[:, None]
        e = tl.exp(d)
        t = shrink * (t - delta * s) + tl.sum(e * tl.maximum(d, -200.0), 1)
        s = shrink * s + tl.sum(e, 1)
        m = grown

    top = tl.max(m, 0)
    d = tl.maximum(m - top, -200.0)
    e = tl.exp(d)
    total = tl.sum(e * s, 0)
    log_total = tl.log(total)

    # an id outside the vocabulary must give NaN, not read a neighbour's memory
    known = (y >= 0) & (y < V)
    target = tl.load(logits + y, mask=known, other=float("nan")).to(tl.float32)
    if HAS_BIAS:
        target += tl.load(bias + y, mask=known, other=0.0).to(tl.float32)
    if HAS_SOFTCAP:
        target = softcap * tanh(target / softcap)[0]
    # not target - lse, which loses the last bits of a log-prob near 0
    tl.store(logprob + row, (target * inv_temperature - top) - log_total)
    tl.store(entropy + row, log_total - tl.sum(e * (t + d * s), 0) / total)
    tl.store(lse + row, top + log_total)


def _gradient(  # type: ignore[no-untyped-def]
    logits,
    out,
    token_ids,
    bias,
    at_target,
    entropy,
    lse,
    g,
    h,
    row_stride,
    out_stride,
    V,
    inv_temperature,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_H: tl.constexpr,
    OVERLAP: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """dlogits of one row in one pass; g and h are scalars of the row, at_target = -g·expm1(logprob).

    dz_j = g·(1[j = y] - p_j) - h·p_j·(log p_j + H);  dx_j = dz_j · (1 - tanh²(x_j/softcap)) / temperature.
    """
    # backwards: the rows that `_stats` read last may still be in L2
    row = (tl.num_programs(0) - 1 - tl.program_id(0)).to(tl.int64)
    logits += row * row_stride
    out += row * out_stride
    y = tl.load(token_ids + row).to(tl.int64)
    shift = tl.load(lse + row)
    row_g = tl.load(g + row)
    row_target = tl.load(at_target + row) * inv_temperature
    row_h = 0.0
    row_entropy = 0.0
    if HAS_H:
        row_h = tl.load(h + row)
        row_entropy = tl.load(entropy + row)
    scaled_g = row_g * inv_temperature
    scaled_h = row_h * inv_temperature
    offsets = tl.arange(0, LANES)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    # a row whose weight is 0 is neither read nor computed, whatever it holds
    if (row_g != 0.0) | (row_h != 0.0):
        for start in range(0, V, LANES * WIDTH):
            columns = start + offsets
            x = tl.load(logits + columns, mask=columns < V, other=0.0).to(tl.float32)
            if HAS_BIAS:
                x += tl.load(bias + columns, mask=columns < V, other=0.0).to(tl.float32)
            if HAS_SOFTCAP:
                x, slope = tanh(x / softcap)
                x *= softcap
            log_p = x * inv_temperature - shift
            p = tl.exp(log_p)
            dz = tl.where(columns == y, row_target, -scaled_g * p)
            if HAS_H:
                # where p has underflowed, log p may be -inf
                dz -= tl.where(p == 0.0, 0.0, scaled_h * p * (log_p + row_entropy))
            if HAS_SOFTCAP:
                dz *= slope
            if OVERLAP:
                # narrower elements in the same memory: those of the first block overwrite logits of that block
                tl.debug_barrier()
            tl.store(out + columns, dz.to(out.dtype.element_ty), mask=columns < V)
    else:
        for start in range(0, V, LANES * WIDTH):
            columns = start + offsets
            tl.store(out + columns, tl.zeros((LANES, WIDTH), out.dtype.element_ty), mask=columns < V)
