"""The noise model of the rules: levels of a run with their uncertainty, at every prefix of its log at once.

Every rule about a curve compares a level, the mean of a stretch, with a limit. The uncertainty of a level comes from
the run itself: from the differences of neighbouring block means (von Neumann's estimate of a variance, in which a trend
hardly counts), on blocks because neighbouring steps share a policy and are correlated. A finding begins where the
interval of the level is beyond the limit, and ends only where the interval is beyond the limit on the other side
(hysteresis), so that noise about a limit does not make it come and go as a log grows. All of this is causal: the state
after n points is that of a log that ends there. Where a change began is Pettitt's change point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCKS = 8
"""Number of blocks that a stretch of a log is divided into; with fewer points, every point is a block."""

SHORT = 10
"""Minimum number of points of the recent stretch, where the log has that many."""

FEWEST = 3
"""Points that a rule needs to say anything about a curve: two may agree by chance."""

# 99th percentile of Student's t distribution with 1 .. 7 degrees of freedom
STUDENT = (31.82, 6.965, 4.541, 3.747, 3.365, 3.143, 2.998)

TOLD = 1.5
"""Half the width of the 98 % interval is widened by this where a change from 0 is told: to about 99.9 %."""

CHANGED = 0.05
"""Level of significance of a change point, whose existence a rule has established otherwise: it is to be located."""

Values = Sequence[float] | Tensor


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean and its two-sided 98 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True, kw_only=True, eq=False)
class Level:
    """The mean of a stretch after each of N points, and half the width of its 98 % interval; both [N]."""

    value: Tensor
    half: Tensor

    @property
    def low(self) -> Tensor:
        return self.value - self.half

    @property
    def high(self) -> Tensor:
        return self.value + self.half

    @property
    def now(self) -> Mean:
        """After the last point."""
        return Mean(value=float(self.value[-1]), low=float(self.low[-1]), high=float(self.high[-1]))

    def less(self, other: Level, factor: float = 1.0) -> Level:
        """self - factor · other, of independent stretches."""
        return Level(value=self.value - factor * other.value, half=(self.half**2 + (factor * other.half) ** 2).sqrt())


@dataclass(frozen=True)
class Held:
    """Whether a condition holds after the last point, and the index of the point at which it last began to."""

    holds: bool
    index: int

    def __bool__(self) -> bool:
        return self.holds


def recent(values: Values, share: int = 3, least: int = SHORT, *, pooled: bool = True) -> Level:
    """Level of the last 1/`share` of the points, at least of `least`, after each of them.

    Args:
        values: of the whole log.
        share, least: the stretch.
        pooled: the error is at least that of independent points with the noise of the whole log so far. A short stretch
            may be quiet by chance; not for quantities with spikes, which would count everywhere.
    """
    x = _tensor(values)
    n = torch.arange(1, len(x) + 1)
    width = torch.minimum(n, torch.clamp(n // share, min=least))
    level = _level(x, n - width, n)
    return _pooled(x, level, width) if pooled else level


def start(values: Values) -> Level:
    """Level of the first tenth of the points, at least of `FEWEST`, after each of them; with the pooled error."""
    x = _tensor(values)
    n = torch.arange(1, len(x) + 1)
    width = torch.minimum(n, torch.clamp(n // 10, min=FEWEST))
    return _pooled(x, _level(x, torch.zeros_like(n), width), width)


def _pooled(x: Tensor, level: Level, width: Tensor) -> Level:
    """With at least the noise of all points so far (von Neumann's estimate), and only that where blocks are too few."""
    squares = torch.cat([torch.zeros(1, dtype=torch.float64), ((x[1:] - x[:-1]) ** 2).cumsum(0)])
    pairs = torch.arange(len(x))
    half = _student(pairs) * (squares / (2 * pairs.clamp(min=1)) / width).sqrt()
    half = torch.where(pairs > 0, half, torch.full_like(half, math.inf))
    return Level(value=level.value, half=torch.where(width < BLOCKS, half, torch.maximum(half, level.half)))


def _student(degrees: Tensor) -> Tensor:
    """99th percentile of Student's t; that of 7 degrees for more, which is a little too wide."""
    return torch.tensor((math.inf, *STUDENT), dtype=torch.float64)[degrees.clamp(max=len(STUDENT))]


def share(values: Values, groups: int = 1) -> Level:
    """As `recent`, of a share of `groups` groups (or responses) per point, with at least the error of a binomial.

    A stretch in which every group went the same way has no spread, but does not make the share certain: as in Agresti
    and Coull's interval, one group of each kind is added.
    """
    x = _tensor(values)
    n = torch.arange(1, len(x) + 1)
    width = torch.minimum(n, torch.clamp(n // 3, min=SHORT))
    level = _level(x, n - width, n)
    count = width * max(groups, _granularity(x))
    p = (level.value * count + 1) / (count + 2)
    # a known distribution, not an estimate from few blocks: the normal quantile
    floor = 2.326 * (p * (1 - p) / count).clamp(min=0).sqrt()
    return Level(value=level.value, half=torch.maximum(level.half, floor))


def mean(values: Sequence[float]) -> Mean:
    """Mean of a stretch with its 98 % interval.

    The variance of the mean of b blocks m_i is Σ (m_{i+1} - m_i)² / (2 (b - 1) b), with Student's t for
    b - 1 degrees of freedom.

    Raises:
        ValueError: without values.
    """
    if not len(values):
        raise ValueError("values is empty; expected at least one number")
    if len(values) == 1:
        return Mean(value=values[0], low=-math.inf, high=math.inf)
    end = torch.tensor([len(values)])
    return _level(_tensor(values), end - len(values), end).now


def geometric(values: Sequence[float], floor: float = 1e-12) -> list[float]:
    """Logarithms of the values, for levels of quantities with a heavy tail; no value below `floor`."""
    return [math.log(max(abs(value), floor)) for value in values]


def back(logarithm: float) -> float:
    """e to the power of it; the largest number where that is none."""
    return math.exp(min(logarithm, 709.0))


def above(level: Level, limit: float | Tensor, first: int = FEWEST) -> Held:
    """Whether a level is above a limit: from where its interval is, until the interval is below it.

    Args:
        level: after each point.
        limit: one number, or one after each point.
        first: number of points before which nothing is said.
    """
    # the mean of equal values is off by rounding
    slack = 1e-9 * level.value.abs().clamp(min=1e-6)
    return _latched(level.low >= limit - slack, level.high < limit - slack, first)


def below(level: Level, limit: float | Tensor, first: int = FEWEST) -> Held:
    """As `above`, on the other side."""
    slack = 1e-9 * level.value.abs().clamp(min=1e-6)
    return _latched(level.high <= limit + slack, level.low > limit + slack, first)


def rising(change: Level) -> Held:
    """Whether there is a change: from where it is half as far again from 0 as its interval needs, until it is gone.

    Every prefix of a log is a chance to seem to change, so that 98 % at each are not enough.
    """
    return _latched(change.value > TOLD * change.half, change.value <= 0, FEWEST)


def falling(change: Level) -> Held:
    """As `rising`, downwards."""
    return _latched(change.value < -TOLD * change.half, change.value >= 0, FEWEST)


def _latched(enters: Tensor, leaves: Tensor, first: int) -> Held:
    at = torch.arange(len(enters))
    told = at >= first - 1
    inside, outside = at[enters & told], at[leaves & told]
    if not len(inside):
        return Held(False, 0)
    last = int(outside[-1]) if len(outside) else -1
    since = inside[inside > last]
    return Held(bool(len(since)), int(since[0]) if len(since) else 0)


def changed(values: Values, *, up: bool) -> int:
    """Index of the first point after the most likely change of level; 0 where none is significant in that direction.

    Pettitt's test: U_t = Σ_{i <= t} (2 rank_i - n - 1) is largest at the change, p ≈ 2 exp(-6 U² / (n³ + n²)). Ranks,
    so that a spike is not a change.
    """
    x = _tensor(values)
    n = len(x)
    if n < 2 * FEWEST:
        return 0
    # equal values share their mean rank
    _, back, counts = torch.unique(x, return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0).double() - (counts - 1) / 2)[back]
    # low ranks first: the sum is negative before a rise
    u = (2 * ranks - n - 1).cumsum(0)[:-1] * (-1 if up else 1)
    at = int(u.argmax())
    return at + 1 if 2 * math.exp(-6 * float(u[at]) ** 2 / (n**3 + n**2)) < CHANGED and u[at] > 0 else 0


def _tensor(values: Values) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def _level(x: Tensor, first: Tensor, last: Tensor) -> Level:
    """Mean of x[first:last], element by element, with its standard error."""
    # sums are differences of cumulative sums: centred, so that they cancel as little as possible
    center = x.median()
    sums = torch.cat([torch.zeros(1, dtype=torch.float64), (x - center).cumsum(0)])
    width = last - first
    count = width.clamp(max=BLOCKS)
    i = torch.arange(BLOCKS + 1)
    # [N, BLOCKS + 1]; beyond the last block the ends coincide
    ends = first[:, None] + torch.minimum(i * width[:, None] // count[:, None], width[:, None])
    sizes = (ends[:, 1:] - ends[:, :-1]).clamp(min=1)
    means = (sums[ends[:, 1:]] - sums[ends[:, :-1]]) / sizes
    there = i[1:-1] < count[:, None]
    squares = ((means[:, 1:] - means[:, :-1]) ** 2 * there).sum(1)
    error = (squares / (2 * (count - 1).clamp(min=1) * count)).sqrt()
    # a single point has no interval
    half = torch.where(count > 1, _student(count - 1) * error, torch.full_like(error, math.inf))
    return Level(value=(sums[last] - sums[first]) / width + center, half=half)


def _granularity(x: Tensor) -> int:
    """Number of groups (or responses) per point: the smallest m of which all values are multiples of 1/m, up to 64."""
    values = torch.tensor(sorted(set(x.tolist()))[:256], dtype=torch.float64)
    m = torch.arange(1, 65, dtype=torch.float64)
    scaled = values * m[:, None]
    fits = ((scaled - scaled.round()).abs() < 1e-3).all(1)
    return int(m[fits][0]) if fits.any() else 64
