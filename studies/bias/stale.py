"""One token of a softmax under stale updates: its log ratio against their number, and the equation that it follows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dgpo.fields import Checked, integer, number
from dgpo.loss import policy_loss
from dgpo.objectives import Objective
from dgpo.tokens import TokenBatch

DTYPE = torch.float64


@dataclass(frozen=True, kw_only=True)
class StaleToken(Checked):
    """Token 0 of a softmax over V logits, updated again and again with the π_old and the A of the first update.

    The other logits are 1.5 · randn; token 0's is set so that its probability is `probability`.

    Attributes:
        advantage: A, not 0; the sign says whether the token is pushed down or up.
        probability: π_old of the token.
        learning_rate: of plain gradient descent on the logits.
        vocabulary: V.
        seed: of the generator of the other logits.
    """

    advantage: float = number(-1.0, "(-inf, inf)")
    probability: float = number(0.3, "(0, 1)")
    learning_rate: float = number(0.1, "(0, inf)")
    vocabulary: int = integer(1000, "[2, inf)")
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.advantage == 0:
            raise ValueError("StaleToken: advantage = 0 moves nothing; expected a number below or above 0")

    def logits(self) -> Tensor:
        """[V] the logits before the first update."""
        generator = torch.Generator().manual_seed(self.seed)
        z = 1.5 * torch.randn(self.vocabulary, generator=generator, dtype=DTYPE)
        z[0] = z[1:].logsumexp(0) + math.log(self.probability / (1 - self.probability))
        return z


def trajectory(objective: Objective, token: StaleToken, steps: int) -> Tensor:
    """Log ratio x = log π - log π_old of the token before the first and after each of `steps` stale updates.

    Every update is one step of gradient descent on `policy_loss` of a batch that holds this token alone.

    Returns:
        [steps + 1], x[0] = 0.

    Raises:
        ValueError: steps < 1.
    """
    _check_steps(steps)
    advantage, mask = torch.tensor([token.advantage], dtype=DTYPE), torch.ones(1, 1, dtype=torch.bool)
    z = token.logits().requires_grad_()
    old = z.detach().log_softmax(0)[:1].unsqueeze(0)
    x = [0.0]
    for _ in range(steps):
        loss = policy_loss(z.log_softmax(0)[:1].unsqueeze(0), old, advantage, mask, objective)
        (gradient,) = torch.autograd.grad(loss.value, z)
        z = (z - token.learning_rate * gradient).detach().requires_grad_()
        x.append((z.detach().log_softmax(0)[0] - old).item())
    return torch.tensor(x, dtype=DTYPE)


@dataclass(frozen=True, kw_only=True)
class Flow:
    """A stale token in continuous time, at t = 0, 1, …, steps in units of one update.

    Attributes:
        log_ratio: [steps + 1] x.
        own_time: [steps + 1] τ, the time in which dx/dτ = sign(A) · w(x) whatever the vocabulary.
    """

    log_ratio: Tensor
    own_time: Tensor


def flow(objective: Objective, token: StaleToken, steps: int, substeps: int = 4) -> Flow:
    """What `trajectory` tends to for small updates: gradient flow on the logits, by Runge and Kutta's method.

    With η the learning rate, dz/dt = η · A · w · (e_0 - π). As ∇ log π_0 is e_0 - π too, the log ratio follows::

        dx/dt = sign(A) · c · w(x)        c = η · |A| · N²        N² = ‖e_0 - π‖² = 1 - 2 π_0 + Σ_j π_j²

    and in its own time dτ = c dt only w is left. N² is (1 - π_0)² · (1 + Σ_{j≠0} p_j²), with p_j the shares of the
    other tokens in what token 0 leaves. It goes to 0 as token 0 becomes certain. As token 0 vanishes N² is between 1
    and 2, and grows: a falling token gives to the others in proportion to what they have, so that one comes to lead.

    Args:
        objective: its own weight is integrated, whatever its form.
        token: where it starts.
        steps: length of time in updates, >= 1.
        substeps: of the integration per update, >= 1.

    Raises:
        ValueError: steps < 1 or substeps < 1.
    """
    _check_steps(steps)
    if substeps < 1:
        raise ValueError(f"substeps = {substeps}; expected at least 1")
    advantage, mask = torch.tensor([token.advantage], dtype=DTYPE), torch.ones(1, 1, dtype=torch.bool)
    z, h = token.logits(), 1 / substeps
    old = z.log_softmax(0)[:1].unsqueeze(0)

    def slope(z: Tensor) -> tuple[Tensor, Tensor]:
        """dz/dt and dτ/dt."""
        logprob = z.log_softmax(0)
        tokens = TokenBatch(logprob[:1].unsqueeze(0), old, advantage, mask)
        direction = -logprob.exp()
        direction[0] = -torch.expm1(logprob[0])
        w = objective.calibrate(tokens).weight(tokens)
        c = token.learning_rate * direction.square().sum()
        chosen = objective.calibrate(tokens)
        pull = chosen.penalty(tokens).slope[0, 0] if chosen.penalises else 0.0
        return token.learning_rate * (token.advantage * w[0, 0] - pull) * direction, abs(token.advantage) * c

    elapsed = torch.zeros((), dtype=DTYPE)
    x, time = [torch.zeros((), dtype=DTYPE)], [elapsed]
    for _ in range(steps):
        for _ in range(substeps):
            first, c_first = slope(z)
            second, c_second = slope(z + h / 2 * first)
            third, c_third = slope(z + h / 2 * second)
            fourth, c_fourth = slope(z + h * third)
            z = z + h / 6 * (first + 2 * second + 2 * third + fourth)
            elapsed = elapsed + h / 6 * (c_first + 2 * c_second + 2 * c_third + c_fourth)
        x.append(z.log_softmax(0)[0] - old[0, 0])
        time.append(elapsed)
    return Flow(log_ratio=torch.stack(x), own_time=torch.stack(time))


def power_flow(own_time: Tensor, *, bound: float, exponent: float, scale: float = 1.0) -> Tensor:
    """Closed form of dx/dτ = ±w(x), x(0) = 0, for a weight that is a power of the ratio beyond one boundary b.

    The sign is that of the direction in which b lies, σ = -1 for b < 1 and +1 for b > 1::

        w = r inside                        e^-x  = 1 - σ·τ                            until τ_b = σ · (1 - 1/b)
        w = scale · b · u^λ, u = r/b        u^-λ = 1 - λ · scale · b · σ · (τ - τ_b)

    At λ = 0 log u = scale · b · σ · (τ - τ_b) is a straight line. On the left, λ > 0 is a logarithm with the factor
    1/λ. On the right, λ > 0 reaches infinity at a finite time. λ = +inf on the left and -inf on the right stop at b.

    Args:
        own_time: τ >= 0; for a constant speed, c times the number of updates.
        bound: b > 0, not 1.
        exponent: λ; +inf (b < 1) or -inf (b > 1) for a hard clip.
        scale: >= 0.

    Returns:
        x at each time; inf from a blow-up on.

    Raises:
        ValueError: an argument outside its range.
    """
    if bound <= 0 or bound == 1 or scale < 0:
        raise ValueError(f"bound = {bound}, scale = {scale}; expected a bound above 0 that is not 1, and scale >= 0")
    sign = -1.0 if bound < 1 else 1.0
    if math.isnan(exponent) or exponent == sign * math.inf:
        raise ValueError(f"exponent = {exponent} at bound = {bound}; a hard clip is {-sign * math.inf} there")
    reached = sign * (1 - 1 / bound)
    inside = -torch.log1p(-sign * own_time.clamp(max=reached))
    further = sign * scale * bound * (own_time - reached).clamp(min=0)
    if math.isinf(exponent):
        return inside
    if exponent == 0:
        return inside + further
    return inside - torch.log1p((-exponent * further).clamp(min=-1)) / exponent


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps = {steps}; expected at least 1")
