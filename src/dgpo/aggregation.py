"""Aggregation: one coefficient c per token, normalised over the whole optimiser step.

A loss is Σ c · (per-token loss). Because c comes from totals of the *step*, not of the micro-batch at hand, the
gradient does not change when the same responses are split into other micro-batches, padded or spread over ranks.
In frameworks that average per micro-batch, the weight of a token depends on the responses that share its micro-batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgpo.checks import check_tensor
from dgpo.fields import REQUIRED, Checked, check_value, number
from dgpo.registry import build


@dataclass(frozen=True)
class StepTotals:
    """Token and sequence counts of one optimiser step, over all its micro-batches and ranks.

    Args:
        tokens: valid tokens of the step, > 0; a tensor is checked only if it is on the CPU.
        sequences: responses of the step with at least one valid token, > 0.

    Where gradients of W ranks are averaged (DDP, FSDP), pass totals / W.
    """

    tokens: float | Tensor
    sequences: float | Tensor

    def __post_init__(self) -> None:
        for name in ("tokens", "sequences"):
            value = getattr(self, name)
            if isinstance(value, Tensor):
                check_tensor(f"StepTotals: {name}", value, "real")
                if value.numel() != 1:
                    raise ValueError(f"StepTotals: {name} has shape {tuple(value.shape)}; expected a scalar")
                if value.device.type != "cpu":
                    continue  # reading it would synchronise
                value = value.item()
            check_value(f"StepTotals: {name}", value, "(0, inf)")

    def check_device(self, anchor: str, device: torch.device) -> None:
        """Raise ValueError unless both are numbers, on the CPU, or on this device, that of the tensor `anchor`."""
        for name in ("tokens", "sequences"):
            value = getattr(self, name)
            if isinstance(value, Tensor) and value.device not in (device, torch.device("cpu")):
                raise ValueError(f"totals.{name} is on {value.device}; expected {device}, the device of {anchor}")

    @classmethod
    def of(cls, mask: Tensor) -> StepTotals:
        """Totals of one [B, T] mask. At least 1 each, so that a batch without a valid token gives a loss of 0."""
        return cls(tokens=mask.sum().clamp(min=1), sequences=mask.any(-1).sum().clamp(min=1))


# eq=False: `Fixed` would inherit an equality that compares no field
@dataclass(frozen=True, kw_only=True, eq=False)
class Aggregation(Checked, ABC):
    """Base of all aggregations."""

    @abstractmethod
    def coefficient(self, mask: Tensor, totals: StepTotals, dtype: torch.dtype = torch.float32) -> Tensor:
        """c [B, T] >= 0; 0 where masked."""

    def check(self, mask: Tensor) -> None:
        """Raise ValueError or TypeError if `coefficient` cannot be computed for such a mask."""
        return


@dataclass(frozen=True, kw_only=True)
class TokenMean(Aggregation):
    """Every token counts the same: c = 1 / tokens. DAPO (arXiv 2503.14476), DGPO, MASPO."""

    def coefficient(self, mask: Tensor, totals: StepTotals, dtype: torch.dtype = torch.float32) -> Tensor:
        return mask.to(dtype) / totals.tokens


@dataclass(frozen=True, kw_only=True)
class SeqMeanTokenMean(Aggregation):
    """Every response counts the same: c = 1 / (sequences · length of the response). GRPO's paper, GSPO, SAPO."""

    def coefficient(self, mask: Tensor, totals: StepTotals, dtype: torch.dtype = torch.float32) -> Tensor:
        # a response without a valid token gets 0, not 0/0
        return mask.to(dtype) / mask.sum(-1, keepdim=True).clamp(min=1) / totals.sequences


@dataclass(frozen=True, kw_only=True)
class SeqMeanTokenSumNorm(Aggregation):
    """c = 1 / (sequences · length) with one fixed length, usually the generation budget. Dr. GRPO (arXiv 2503.20783).

    The MASPO, GPPO, CE-GPPO, ASPO, DCPO and BAPO releases do not divide by the number of sequences; this does.
    """

    length: float = number(REQUIRED, "(0, inf)")

    def coefficient(self, mask: Tensor, totals: StepTotals, dtype: torch.dtype = torch.float32) -> Tensor:
        return mask.to(dtype) / self.length / totals.sequences


# eq=False: compared by identity, as == of tensors is a tensor and no truth value
@dataclass(frozen=True, kw_only=True, eq=False)
class Fixed(Aggregation):
    """Given coefficients c [B, T], such as another framework's, already normalised over the step.

    Detached, and 0 where masked. It has no name in the registry.

    Raises:
        TypeError, ValueError: from `check`, if values is not such a tensor on the device of the mask.
    """

    values: Tensor

    def check(self, mask: Tensor) -> None:
        check_tensor("Fixed: values", self.values, "real", ("mask", mask.device))
        if self.values.shape != mask.shape:
            shape = tuple(self.values.shape)
            raise ValueError(f"Fixed: values has shape {shape}; expected {tuple(mask.shape)}, the shape of mask")

    def coefficient(self, mask: Tensor, totals: StepTotals, dtype: torch.dtype = torch.float32) -> Tensor:
        self.check(mask)
        return torch.where(mask, self.values.detach().to(dtype), 0.0)


AGGREGATIONS: dict[str, type[Aggregation]] = {
    "token-mean": TokenMean,
    "seq-mean-token-mean": SeqMeanTokenMean,
    "seq-mean-token-sum-norm": SeqMeanTokenSumNorm,
}


def make(name: str | Mapping[str, Any], **fields: Any) -> Aggregation:
    """Build an aggregation by its name in verl, for example `make("seq-mean-token-sum-norm", length=512)`.

    Args:
        name: as accepted by `dgpo.registry.parse`, with or without fields.
        fields: further fields.

    Raises:
        ValueError: an unknown name, with the nearest known one; an unknown, missing or impossible field.
    """
    return build("aggregation", AGGREGATIONS, name, fields)
