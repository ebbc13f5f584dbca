"""Moments of gradients that are means over prompts, and the weights per bin that would minimise their error.

A column is one way to weight tokens: the tokens of one bin of the ratio, or all tokens under one method. g_p is the
gradient of prompt p in a column, G = E g_p and V = E|g_p|² - |G|²; an update of K prompts has the gradient G on average
and the variance V/K.

The N prompts come in B equal blocks. With m_i the mean of block i, the mean of ⟨m_i, m'_j⟩ over i ≠ j estimates ⟨G, G'⟩
without bias: the noise of different blocks is independent. For a resample in which block i appears n_i times, the pairs
are weighted by n_i·n_j, again i ≠ j, since copies of one block share their noise.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Inner products of C methods' and Q bins' gradients; row 0 is the sample, the others are R resamples of blocks.

    The sum of the moments of several pairs of policies is what their summed error depends on.

    Attributes:
        mean, second, cross: [R+1, C] |G|², E|g_p|² and ⟨G, ∇⟩ of every method; ∇ is the gradient of method 0.
        bins_mean, bins_second: [R+1, Q, Q] ⟨G_b, G_c⟩ and E⟨g_pb, g_pc⟩ of the bins.
    """

    mean: Tensor
    second: Tensor
    cross: Tensor
    bins_mean: Tensor
    bins_second: Tensor

    def __add__(self, other: Self) -> Moments:
        return Moments(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


class Blocks:
    """Collects the gradients of N prompts, block by block.

    Args:
        methods, bins: C and Q; columns are the methods, the reference first, and then the bins.
        blocks: B >= 2.
        prompts: of every block; those that are never added have gradient 0.
        size: entries of a gradient.
    """

    def __init__(self, methods: int, bins: int, blocks: int, prompts: int, size: int, dtype: torch.dtype) -> None:
        self._methods, self._prompts = methods, prompts
        self._means = torch.zeros(methods + bins, blocks, size, dtype=dtype)
        self._second = torch.zeros(blocks, methods, dtype=dtype)
        self._bins_second = torch.zeros(blocks, bins, bins, dtype=dtype)

    def add(self, block: int, gradients: Tensor) -> None:
        """Gradients [C + Q, prompts, size] of prompts of a block."""
        self._means[:, block] += gradients.sum(1) / self._prompts
        self._second[block] += gradients[: self._methods].square().sum((1, 2)) / self._prompts
        bins = gradients[self._methods :]
        used = bins.flatten(1).any(1).nonzero().squeeze(1)
        flat = bins[used].flatten(1)
        self._bins_second[block][used[:, None], used] += flat @ flat.T / self._prompts

    def moments(self, resamples: int, seed: int) -> Moments:
        """Of all prompts, and of `resamples` bootstrap samples of the blocks."""
        B = self._means.shape[1]
        drawn = torch.randint(B, (resamples, B), generator=torch.Generator().manual_seed(seed))
        counts = torch.zeros(resamples, B).scatter_add_(1, drawn, torch.ones(resamples, B))
        counts = torch.cat([torch.ones(1, B), counts]).to(self._means.dtype)
        pairs = B * B - counts.square().sum(1)
        # C methods with themselves and with the reference [C, B, B], the bins with each other [Q, B, Q, B]
        methods, flat = self._means[: self._methods], self._means[self._methods :].flatten(0, 1)
        own = methods @ methods.transpose(1, 2)
        cross = methods @ methods[0].T
        bins = (flat @ flat.T).view(-1, B, len(flat) // B, B)

        def between(products: Tensor) -> Tensor:
            """[R+1, ...] from [..., B, B]: the mean over the pairs of different blocks."""
            diagonal = products.diagonal(dim1=-2, dim2=-1)
            right = torch.einsum("...ij,rj->r...i", products, counts)
            shape = (len(counts), *[1] * (products.dim() - 2), B)
            left = (right - diagonal * counts.view(shape)) * counts.view(shape)
            return left.sum(-1) / pairs.view(-1, *[1] * (products.dim() - 2))

        return Moments(
            mean=between(own),
            second=counts @ self._second / B,
            cross=between(cross),
            bins_mean=between(bins.transpose(1, 2)),
            bins_second=torch.einsum("ri,ibc->rbc", counts, self._bins_second) / B,
        )


def squared_error(found: Moments, prompts: int) -> tuple[Tensor, Tensor]:
    """bias² and variance [R+1, C] of an update's gradient of K prompts under every method, in units of |∇|²."""
    reference = found.mean[:, :1]
    bias = found.mean - 2 * found.cross + reference
    return bias / reference, (found.second - found.mean) / prompts / reference


def error_at_best_scale(found: Moments, prompts: int) -> Tensor:
    """[R+1, C] the least relative MSE of s·ĝ over all numbers s: 1 - ⟨G, ∇⟩²/(|∇|²·E|ĝ|²), ĝ of K prompts."""
    size = found.mean + (found.second - found.mean) / prompts
    return 1 - found.cross.square() / (found.mean[:, :1] * size)


def merged(found: Moments, groups: Tensor) -> Moments:
    """With bins put together: groups [Q] is the new bin of every bin, whose gradient is the sum of theirs."""
    sums = torch.nn.functional.one_hot(groups).to(found.bins_mean)
    return replace(found, bins_mean=sums.T @ found.bins_mean @ sums, bins_second=sums.T @ found.bins_second @ sums)


def alone(found: Moments, prompts: int) -> Tensor:
    """[R+1, Q] K|G|²/(K|G|² + V) of every bin, what r is multiplied by if bins are independent; 0 where |G|² < 0."""
    G = found.bins_mean.diagonal(dim1=1, dim2=2)
    V = found.bins_second.diagonal(dim1=1, dim2=2) - G
    G = G.clamp(min=0)
    return G / (G + V / prompts).clamp(min=torch.finfo(G.dtype).tiny)


def together(found: Moments, prompts: int, used: Tensor) -> Tensor:
    """[R+1, Q] multipliers c that minimise E|Σ_b c_b ĝ_b - Σ_b G_b|², ĝ of K prompts; 0 outside `used` [Q] bool."""
    G, second = (value[:, used][:, :, used].double() for value in (found.bins_mean, found.bins_second))
    target = found.bins_mean[:, used].sum(2, keepdim=True).double()
    c = torch.zeros(len(G), len(used), dtype=found.bins_mean.dtype)
    # a resample may be without tokens in a bin: the pseudo-inverse leaves it at 0
    c[:, used] = (torch.linalg.pinv(G + (second - G) / prompts, hermitian=True) @ target).squeeze(2).to(c)
    return c


def errors_of_bins(found: Moments, multipliers: Tensor, prompts: int) -> tuple[Tensor, Tensor]:
    """Relative MSE, as it is and at best scale, of an update's gradient if r is multiplied by c in every bin.

    Args:
        found: of the bins, R+1 rows.
        multipliers: c [..., R+1 or 1, Q].
        prompts: K of the update.

    Returns:
        [..., R+1] each.
    """
    G, second = found.bins_mean, found.bins_second
    c = multipliers.expand(*multipliers.shape[:-2], len(G), -1)
    squared = torch.einsum("...rb,rbc,...rc->...r", c, G + (second - G) / prompts, c)
    product = (multipliers * G.sum(2)).sum(-1)
    reference = G.sum((1, 2))
    size = (reference * squared).clamp(min=torch.finfo(G.dtype).tiny)
    return (squared - 2 * product + reference) / reference, 1 - product.square() / size
