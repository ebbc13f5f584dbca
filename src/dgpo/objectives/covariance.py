"""Clip-Cov and KL-Cov: the few tokens that lower the entropy most are held back (arXiv 2505.22617)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from dgpo.fields import integer, number
from dgpo.objectives.frameworks import FRAMEWORKS, Conformance, Of
from dgpo.objectives.hard_clip import HardClip
from dgpo.objectives.objective import Boundaries, Objective, Penalty, Properties, Read
from dgpo.objectives.paper import Paper, names
from dgpo.objectives.ranks import gathered, summed
from dgpo.tokens import TokenBatch

PAPER = Paper(
    arxiv_id="2505.22617",
    title="The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models",
    authors=names(
        "Ganqu Cui, Yuchen Zhang, Jiacheng Chen, Lifan Yuan, Zhi Wang, Yuxin Zuo, Haozhan Li, Yuchen Fan, Huayu Chen, "
        "Weize Chen, Zhiyuan Liu, Hao Peng, Lei Bai, Wanli Ouyang, Yu Cheng, Bowen Zhou, Ning Ding"
    ),
    year=2025,
    code="https://github.com/PRIME-RL/Entropy-Mechanism-of-RL",
)

UNCALIBRATED = dict.fromkeys(("mean_advantage", "mean_logprob", "threshold"))
"""What `calibrate` fills in."""

GRAIN = 4096
"""Steps per nat, or per unit of A, to which a number is rounded before it is hashed: rounding of its last bits, which
differs between two ways to compute a log-prob, then hardly ever changes what is drawn."""

_WORD = 0xFFFFFFFF


@dataclass(frozen=True, kw_only=True)
class ClipCov(HardClip):
    """A hard clip that also drops a few random tokens with a high covariance of log-prob and advantage.

    With means over all valid tokens of the batch, the covariance of a token is::

        cov = (A - mean A) · (log π_θ - mean log π_θ)

    The candidates are the tokens inside the clip with cov_low < cov < cov_high. Of N valid tokens, `calibrate` draws
    max(1, ⌊share · N⌋) candidates, or all if there are fewer. With r the importance ratio::

        drawn    w = 0                         φ = 0
        left     A < 0, r < 1 - eps_low     w = 0    φ = 1 - eps_low
        right    A > 0, r > 1 + eps_high    w = 0    φ = 1 + eps_high
        else     w = r                         φ = r

    The draw is a hash of `seed`, log π_old and A. The same batch therefore gives the same tokens, in any order and
    after a run is resumed, without the state of a generator. Tokens that agree in both are drawn together.

    Args:
        share: largest share of the valid tokens that is drawn; at least one token, if there is a candidate.
        cov_low: a candidate has a larger covariance than this.
        cov_high: a candidate has a smaller covariance than this.
        eps_low: the left boundary is 1 - eps_low; the authors' scripts set 1, which means no boundary; verl has 0.2.
        eps_high: the right boundary is 1 + eps_high; 1 in the authors' scripts as well.
        seed: seed of the draw.
        mean_advantage: None until calibrated.
        mean_logprob: None until calibrated, in nats.
        threshold: None until calibrated; a candidate is drawn if its hash, in [0, 1), is at most this.

    `calibrate` reads the batch that it is given, on all ranks if torch.distributed is initialised (the authors' code
    reads the micro-batch of the rank), and costs two host synchronisations. The weight then depends on how the step
    was split into micro-batches. Uncalibrated, nothing is drawn.

    Source: PRIME-RL/Entropy-Mechanism-of-RL@88505792 verl/trainer/ppo/core_algos.py:469-516,
    verl-project/verl@1dda039b verl/trainer/ppo/core_algos.py:1743. Deviation: there, torch's generator draws
    again in every micro-batch; here, a token that stays a candidate over several updates keeps its hash.
    """

    name = "clip_cov"
    papers = (PAPER,)
    elsewhere: ClassVar = {
        **dict.fromkeys(FRAMEWORKS, Conformance()),
        "verl": Conformance(
            note="`policy_loss.loss_mode=clip_cov` draws among the same candidates by torch's generator; share is "
            "`clip_cov_ratio`, and `clip_ratio` is 0.2 unless set"
        ),
        "skyrl": Conformance(
            note="`policy_loss_type=clip_cov` draws among the same candidates by torch's generator, with advantages "
            "that SkyRL has divided by the tokens of the step beforehand, so that `clip_cov_lb` and `clip_cov_ub` are "
            "in those units"
        ),
    }

    share: float = number(0.0002, "(0, 1]")
    cov_low: float = number(1.0, "[-inf, cov_high]")
    cov_high: float = number(5.0, "[-inf, inf]")
    eps_low: float = number(1.0, "[0, 1]")
    eps_high: float = number(1.0, "[0, inf)")
    seed: int = integer(0, "[0, inf)")
    mean_advantage: float | None = number(None, "(-inf, inf)")
    mean_logprob: float | None = number(None, "(-inf, inf)")
    threshold: float | None = number(None, "[0, 1]")

    @property
    def reads(self) -> frozenset[Read]:
        found: set[Read] = {"ratio", "advantage_sign", "advantage_size", "old_logprob"}
        if self.threshold is None:
            found.add("batch")
        return frozenset(found)

    def clip_range(self, tokens: TokenBatch) -> Boundaries:
        low = -math.inf if self.eps_low == 1 else math.log1p(-self.eps_low)
        return Boundaries.at(tokens.log_ratio, low, math.log1p(self.eps_high))

    def calibrate(self, tokens: TokenBatch) -> Self:
        if self.threshold is not None:
            return self
        mean_advantage, mean_logprob, count = batch_means(tokens)
        found = replace(self, mean_advantage=mean_advantage, mean_logprob=mean_logprob, threshold=1.0)
        hashes = gathered(self._hash(tokens)[found._candidates(tokens)])
        drawn = max(int(self.share * count), 1)
        if len(hashes) <= drawn:
            return found
        return replace(found, threshold=float(hashes.kthvalue(drawn).values))

    def _candidates(self, tokens: TokenBatch) -> Tensor:
        """[B, T] bool."""
        if self.mean_advantage is None or self.mean_logprob is None:
            return torch.zeros_like(tokens.mask)
        cov = covariance(tokens, self.mean_advantage, self.mean_logprob)
        x, allowed = self._clipped(tokens)
        return tokens.mask & (x == allowed) & (self.cov_low < cov) & (cov < self.cov_high)

    def _hash(self, tokens: TokenBatch) -> Tensor:
        """[B, T] float64, uniform in [0, 1)."""
        found = torch.full_like(tokens.mask, self.seed & _WORD, dtype=torch.long)
        for values in (tokens.old_logprob, tokens.advantage):
            found = found ^ ((values * GRAIN).round().clamp(-(2.0**31), 2.0**31).long() & _WORD)
            # the finaliser of MurmurHash3, on 32 bits
            for factor, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13)):
                found = ((found ^ (found >> shift)) * factor) & _WORD
            found = found ^ (found >> 16)
        return found.double() / (_WORD + 1)

    def _drawn(self, tokens: TokenBatch) -> Tensor:
        if self.threshold is None:
            return torch.zeros_like(tokens.mask)
        return self._candidates(tokens) & (self._hash(tokens) <= self.threshold)

    def weight(self, tokens: TokenBatch) -> Tensor:
        return torch.where(self._drawn(tokens), 0.0, super().weight(tokens))

    def potential(self, tokens: TokenBatch) -> Tensor:
        return torch.where(self._drawn(tokens), 0.0, super().potential(tokens))

    def properties(self) -> Properties:
        return Properties(
            continuous=False,
            upper_bound=math.inf,
            unit_on_policy=False,
            not_ratio_inside="a token that is drawn weighs nothing",
            limit_negative="finite" if self.eps_low == 1 else "zero",
            limit_positive="finite",
        )


def batch_means(tokens: TokenBatch) -> tuple[float, float, int]:
    """Mean A, mean log π_θ and the number of finite tokens of all ranks, with one host synchronisation."""
    there = tokens.finite
    values = (tokens.advantage, tokens.logprob.detach(), there)
    sums = torch.stack([torch.where(there, each.double(), 0.0).sum() for each in values])
    advantage, logprob, count = summed(sums).tolist()
    return advantage / max(count, 1), logprob / max(count, 1), int(count)


def covariance(tokens: TokenBatch, mean_advantage: float, mean_logprob: float) -> Tensor:
    """[B, T] product of the deviations of A and log π_θ from their means, detached."""
    return (tokens.advantage - mean_advantage) * (tokens.logprob.detach() - mean_logprob)


@dataclass(frozen=True, kw_only=True)
class KLCov(Objective):
    """Importance sampling without a clip, with a penalty on the tokens that have the highest covariance.

    With x = log r, and cov as for `ClipCov`, the ⌊share · N⌋ of the N valid tokens with the highest cov, and one at
    least, carry a penalty::

        w = r        φ = r        penalty  coef · abs(x) of these tokens

    Its slope is ±coef, however small x is, and 0 at x = 0.

    Args:
        share: of the valid tokens that carry the penalty. The authors' code has `k_percent`, which is in percent: 0.2,
            and 0.02 for 32B; verl has `kl_cov_ratio`, 0.0002, and SkyRL `kl_cov_frac`, a fraction of 0.2.
        coef: coefficient of the penalty.
        mean_advantage: None until calibrated.
        mean_logprob: None until calibrated, in nats.
        threshold: None until calibrated; a token carries the penalty from this covariance on.

    `calibrate` reads the batch that it is given, on all ranks if torch.distributed is initialised (the authors' code
    reads the micro-batch of the rank), and costs two host synchronisations. The penalty then depends on how the step
    was split into micro-batches. Uncalibrated, no token carries it.

    Source: PRIME-RL/Entropy-Mechanism-of-RL@88505792 verl/trainer/ppo/core_algos.py:426-467,
    verl-project/verl@1dda039b verl/trainer/ppo/core_algos.py:1849. Deviation: tokens that tie with the last one carry
    the penalty, too.
    """

    name = "kl_cov"
    papers = (PAPER,)
    elsewhere: ClassVar = {
        "trl": Conformance(),
        "verl": Conformance(
            setting={
                "policy_loss.loss_mode": "kl_cov",
                "policy_loss.kl_cov_ratio": Of(field="share"),
                "policy_loss.ppo_kl_coef": Of(field="coef"),
            },
            aggregation="token-mean",
            only=UNCALIBRATED,
        ),
        "skyrl": Conformance(
            note="`policy_loss_type=kl_cov` sums the penalty over tokens, as SkyRL scales the advantages beforehand: N "
            "times as much of it. `kl_cov.kl_cov_frac` is share, 0.2 unless set"
        ),
        "liger": Conformance(),
    }

    share: float = number(0.002, "(0, 1]")
    coef: float = number(1.0, "[0, inf)")
    mean_advantage: float | None = number(None, "(-inf, inf)")
    mean_logprob: float | None = number(None, "(-inf, inf)")
    threshold: float | None = number(None, "[-inf, inf]")

    @property
    def reads(self) -> frozenset[Read]:
        found: set[Read] = {"ratio", "advantage_sign", "advantage_size", "old_logprob"}
        if self.coef == 0:
            found = {"ratio"}
        elif self.threshold is None:
            found.add("batch")
        return frozenset(found)

    @property
    def penalises(self) -> bool:
        return self.coef > 0

    def calibrate(self, tokens: TokenBatch) -> Self:
        if self.threshold is not None or self.coef == 0:
            return self
        mean_advantage, mean_logprob, count = batch_means(tokens)
        found = gathered(covariance(tokens, mean_advantage, mean_logprob)[tokens.finite])
        highest = found.topk(max(int(self.share * count), 1)).values if count else found.new_full((1,), torch.inf)
        return replace(self, mean_advantage=mean_advantage, mean_logprob=mean_logprob, threshold=float(highest[-1]))

    def weight(self, tokens: TokenBatch) -> Tensor:
        return tokens.ratio

    def potential(self, tokens: TokenBatch) -> Tensor:
        return tokens.ratio

    def penalty(self, tokens: TokenBatch) -> Penalty:
        x = tokens.log_ratio
        if self.mean_advantage is None or self.mean_logprob is None or self.threshold is None:
            return Penalty.quadratic(tokens, 0.0)
        carries = tokens.mask & (covariance(tokens, self.mean_advantage, self.mean_logprob) >= self.threshold)
        return Penalty(torch.where(carries, self.coef * x.abs(), 0.0), torch.where(carries, self.coef * x.sign(), 0.0))

    def properties(self) -> Properties:
        return Properties(continuous=True, upper_bound=math.inf, limit_negative="finite", limit_positive="finite")
