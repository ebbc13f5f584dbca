"""Dynamic sampling: train on groups whose answers differ, and sample new prompts for those whose do not (DAPO)."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset, IterableDataset

if TYPE_CHECKING:
    from dgpo.training.trainer import DGPOTrainer

_MAX_SEED = 2**63 - 1


class DynamicSampler:
    """Fills a generation batch with groups that have a reward spread (arXiv 2503.14476, section 3.2).

    The batch that the data loader hands over is generated first. Groups without spread in the rewards that decide, or
    in their sum with the others (`Scores.informative`), are replaced by groups from newly drawn prompts, in further
    generation batches of the same size, `max_num_gen_batches` in all. Places that are still empty then keep a group
    without spread, with advantage exactly 0: verl's DAPO recipe raises here, which loses a run to one hard batch.

    Drawn prompts depend only on the seed and the optimiser step, so a run that is resumed at the end of a generation
    draws what it would have drawn.

    Raises:
        ValueError: groups that are spread over ranks, a streaming data set; while training, images that a tool returned
            (`check_data` refuses data that holds some).
    """

    def __init__(self, trainer: DGPOTrainer) -> None:
        args = trainer.args
        local = args.per_device_train_batch_size * args.steps_per_generation
        if local % args.num_generations:
            raise ValueError(
                f"dynamic_sampling replaces whole groups on their rank, but the {local} completions of a rank "
                f"(per_device_train_batch_size · steps_per_generation) hold no whole number of groups of "
                f"num_generations = {args.num_generations}"
            )
        if isinstance(trainer.train_dataset, IterableDataset) or not hasattr(trainer.train_dataset, "__len__"):
            raise ValueError("dynamic_sampling draws further prompts by index: a streaming train_dataset has none")
        self.trainer = trainer
        self.dataset: Dataset[Any] = trainer.train_dataset
        self.groups = local // args.num_generations

    def generate(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """One rank's generation batch with as many informative groups as `max_num_gen_batches` allows."""
        trainer, size = self.trainer, self.trainer.num_generations
        batch, informative = self._generate_groups(inputs)
        kept = [batch]
        sources = [(0, group) for group in range(self.groups) if informative[group]]
        rest = [(0, group) for group in range(self.groups) if not informative[group]]
        generations = 1
        while generations < trainer.args.max_num_gen_batches and self._any_rank(len(sources) < self.groups):
            batch, informative = self._generate_groups(self._draw(generations))
            sources += [(len(kept), group) for group in range(self.groups) if informative[group]]
            kept.append(batch)
            generations += 1
        missing = max(self.groups - len(sources), 0)
        if missing:
            warnings.warn(
                f"dynamic_sampling: after {generations} generation batches (max_num_gen_batches) {missing} of "
                f"{self.groups} groups of this rank still have no reward spread and teach nothing; the prompts may be "
                "too easy or too hard",
                UserWarning,
                stacklevel=2,
            )
        chosen = (sources + rest)[: self.groups]
        metrics = trainer._metrics["train"]
        metrics["dynamic_sampling/generation_batches"].append(float(generations))
        metrics["dynamic_sampling/groups_without_spread"].append(self._sum_over_ranks(missing))
        output = self._assemble(kept, chosen, size)
        # their rewards may still differ by shaping terms
        output["advantages"][(self.groups - missing) * size :] = 0.0
        return output

    def _generate_groups(self, inputs: list[dict[str, Any]]) -> tuple[dict[str, Any], list[bool]]:
        batch, scores = self.trainer._generate_once(inputs)
        if unexpected := [key for key, value in batch.items() if not isinstance(value, Tensor) or "pixel" in key]:
            raise ValueError(
                f"dynamic_sampling puts its batches together from text, but a tool has returned images ({unexpected}); "
                "leave the option unset"
            )
        return batch, scores.informative[:: self.trainer.num_generations].tolist()

    def _any_rank(self, condition: bool) -> bool:
        """Ranks generate together (TRL gathers inside), so all go on until none is short of groups."""
        return self._sum_over_ranks(condition) > 0

    def _sum_over_ranks(self, value: float) -> float:
        accelerator = self.trainer.accelerator
        return float(
            accelerator.reduce(torch.tensor([float(value)], device=accelerator.device), reduction="sum").item()
        )

    def _draw(self, generation: int) -> list[dict[str, Any]]:
        trainer = self.trainer
        seed = hash((trainer.args.seed, trainer.state.global_step, generation)) & _MAX_SEED
        order = torch.randperm(len(self.dataset), generator=torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
        start = trainer.accelerator.process_index * self.groups
        indices = [int(order[i % len(order)]) for i in range(start, start + self.groups)]
        return [dict(self.dataset[index]) for index in indices for _ in range(trainer.num_generations)]

    def _assemble(self, batches: list[dict[str, Any]], chosen: list[tuple[int, int]], size: int) -> dict[str, Any]:
        rows = [(source, slice(group * size, (group + 1) * size)) for source, group in chosen]
        output: dict[str, Any] = {}
        for key, first in batches[0].items():
            if first.dim() == 0:
                continue
            # prompts are padded on the left, completions on the right, each to the longest of its own generation
            left = key.startswith("prompt_")
            value = self._padding(key)
            width = max(batch[key].shape[1] for batch in batches) if first.dim() > 1 else None
            pieces = []
            for source, where in rows:
                piece = batches[source][key][where]
                if width is not None and (short := width - piece.shape[1]) > 0:
                    piece = pad(piece, (short, 0) if left else (0, short), value=value)
                pieces.append(piece)
            output[key] = torch.cat(pieces)
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        output["num_items_in_batch"] = self.trainer.accelerator.gather(mask.sum()).sum()
        return output

    def _padding(self, key: str) -> float:
        if key in ("prompt_ids", "completion_ids"):
            return float(self.trainer._tokenizer.pad_token_id)
        return 1.0 if key == "tool_mask" else 0.0
