"""Dynamic sampling: train on groups whose answers differ, and sample new prompts for those whose do not (DAPO)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset, IterableDataset

from dgpo.counts import counted
from dgpo.training.config import DGPOConfig
from dgpo.training.scoring import Scores
from dgpo.warning import warn

_MAX_SEED = 2**63 - 1

Generate = Callable[[list[dict[str, Any]]], tuple[dict[str, Any], Scores]]
"""From the rows of a rank to its generation batch and the scores of its responses."""


class DynamicSampler:
    """Fills a generation batch with groups that have a reward spread (arXiv 2503.14476, section 3.2).

    The batch that the data loader hands over is generated first. Groups without spread in the rewards that decide, or
    in their sum with the others (`Scores.informative`), are replaced by groups from newly drawn prompts, in further
    generation batches of the same size, `max_num_gen_batches` in all. Places that are still empty then keep a group
    without spread, with advantage exactly 0: verl's DAPO recipe raises here, which loses a run to one hard batch.

    Drawn prompts depend only on the seed and the optimiser step, so a run that is resumed at the end of a generation
    draws what it would have drawn.

    Args:
        config: of the run.
        dataset: of the prompts.
        generate: one generation batch; all ranks call it together.
        accelerator: of the run.
        pad_token_id: what token ids are padded with.

    Raises:
        ValueError: groups that are spread over ranks, a streaming data set; while training, images that a tool returned
            (`check_data` refuses data that holds some).
    """

    def __init__(
        self, config: DGPOConfig, dataset: Any, generate: Generate, accelerator: Any, pad_token_id: int
    ) -> None:
        local = config.per_device_train_batch_size * config.steps_per_generation
        if local % config.num_generations:
            raise ValueError(
                f"dynamic_sampling replaces whole groups on their rank, but the {counted(local, 'completion')} of a "
                f"rank (per_device_train_batch_size · steps_per_generation) are not a whole number of groups of "
                f"num_generations = {config.num_generations}"
            )
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise ValueError("dynamic_sampling draws further prompts by index: a streaming train_dataset has none")
        self._config, self._generate, self._accelerator = config, generate, accelerator
        self._dataset: Dataset[Any] = dataset
        self._pad_token_id = pad_token_id
        self._size = config.num_generations
        self._groups = local // self._size

    def generate(self, inputs: list[dict[str, Any]], update: int) -> tuple[dict[str, Any], dict[str, float]]:
        """One rank's generation batch with as many informative groups as `max_num_gen_batches` allows.

        Args:
            inputs: rows of the data loader.
            update: optimiser steps so far.

        Returns:
            The batch, and metrics by name.
        """
        batch, informative = self._generate_groups(inputs)
        kept = [batch]
        sources = [(0, group) for group in range(self._groups) if informative[group]]
        rest = [(0, group) for group in range(self._groups) if not informative[group]]
        generations = 1
        # TRL gathers while it generates, so all ranks continue until every one has enough groups
        while generations < self._config.max_num_gen_batches and self._sum_over_ranks(len(sources) < self._groups):
            batch, informative = self._generate_groups(self._draw(update, generations))
            sources += [(len(kept), group) for group in range(self._groups) if informative[group]]
            kept.append(batch)
            generations += 1
        missing = max(self._groups - len(sources), 0)
        if missing:
            warn(
                f"dynamic_sampling: after {generations} generation batches (max_num_gen_batches) the "
                f"rewards in {missing} of {counted(self._groups, 'group')} of this rank are still all equal, so they "
                "give no gradient; the prompts may be too easy or too hard",
            )
        chosen = (sources + rest)[: self._groups]
        output = self._assemble(kept, chosen)
        # their rewards may still differ by shaping terms
        output["advantages"][(self._groups - missing) * self._size :] = 0.0
        return output, {
            "dynamic_sampling/generation_batches": float(generations),
            "dynamic_sampling/groups_without_spread": self._sum_over_ranks(missing),
        }

    def _generate_groups(self, inputs: list[dict[str, Any]]) -> tuple[dict[str, Any], list[bool]]:
        batch, scores = self._generate(inputs)
        if unexpected := [key for key, value in batch.items() if not isinstance(value, Tensor) or "pixel" in key]:
            raise ValueError(
                f"dynamic_sampling puts its batches together from text, but a tool has returned images ({unexpected}); "
                "leave the option unset"
            )
        # all G responses of a group agree, so the first speaks for it
        return batch, scores.informative[:: self._size].tolist()

    def _sum_over_ranks(self, value: float) -> float:
        mine = torch.tensor([float(value)], device=self._accelerator.device)
        return float(self._accelerator.reduce(mine, reduction="sum").item())

    def _draw(self, update: int, generation: int) -> list[dict[str, Any]]:
        # a hash of integers does not depend on PYTHONHASHSEED
        seed = hash((self._config.seed, update, generation)) & _MAX_SEED
        # the same order on every rank, of which each takes its own stretch
        order = torch.randperm(len(self._dataset), generator=torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
        start = self._accelerator.process_index * self._groups
        indices = [int(order[i % len(order)]) for i in range(start, start + self._groups)]
        # G copies side by side, as TRL's sampler repeats a prompt
        return [dict(self._dataset[index]) for index in indices for _ in range(self._size)]

    def _assemble(self, batches: list[dict[str, Any]], chosen: list[tuple[int, int]]) -> dict[str, Any]:
        size = self._size
        rows = [(source, slice(group * size, (group + 1) * size)) for source, group in chosen]
        # 1 as TRL pads its tool mask; completion_mask is 0 there anyway
        padding = {"prompt_ids": self._pad_token_id, "completion_ids": self._pad_token_id, "tool_mask": 1.0}
        output: dict[str, Any] = {}
        for key, first in batches[0].items():
            # a count of one generation; formed anew below
            if first.dim() == 0:
                continue
            # prompts are padded on the left, completions on the right, each to the longest of its own generation
            left = key.startswith("prompt_")
            value = padding.get(key, 0.0)
            width = max(batch[key].shape[1] for batch in batches) if first.dim() > 1 else None
            pieces = []
            for source, where in rows:
                piece = batches[source][key][where]
                if width is not None and (short := width - piece.shape[1]) > 0:
                    piece = pad(piece, (short, 0) if left else (0, short), value=value)
                pieces.append(piece)
            output[key] = torch.cat(pieces)
        # TRL's total of valid tokens over all ranks
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        output["num_items_in_batch"] = self._accelerator.gather(mask.sum()).sum()
        return output
