"""`DGPOConfig(record=...)`: a run folder written by the trainer, for `dgpo doctor`, `dgpo replay` and `dgpo report`."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import logging
import math
import os
import platform
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from dgpo.aggregation import StepTotals
from dgpo.counts import counted
from dgpo.fused.head import Head
from dgpo.installation import versions
from dgpo.redaction import without_secrets
from dgpo.runs.completions import (
    CUT,
    LONGEST_COMPLETION,
    LONGEST_GOLD,
    LONGEST_PROMPT,
    STOP,
    Completion,
    CompletionWriter,
    clipped,
    prompt_id,
)
from dgpo.runs.earlier import recorded_updates, remove_recording
from dgpo.runs.info import recorded_info
from dgpo.runs.recorder import Recorder
from dgpo.tokens import TokenBatch
from dgpo.training.checkpoint_files import checkpoints
from dgpo.training.config import DGPOConfig
from dgpo.training.factors import Factors
from dgpo.training.forwards import HeadOutput, apply_to_hidden
from dgpo.training.head import Heads
from dgpo.training.step_rows import Part

logger = logging.getLogger(__name__)

PACKAGES = ("dgpo", "torch", "trl", "transformers", "accelerate", "peft", "vllm", "deepspeed", "math-verify")
GOLD = ("answer", "solution", "ground_truth", "gold", "target", "label")
"""Columns that may hold the reference answer, by preference."""

HASHED_ROWS = 10_000
"""Rows of the data that its hash reads, so that a large set does not delay the start."""


class Recording(TrainerCallback, ExportableState):
    """Writes `run.json`, every log line, and the tokens of every `record_every`-th update.

    The files of an update appear when it has ended; of an update that a non-finite token ends, what came before and
    that micro-batch. A checkpoint stores the id of its recorded run (`ExportableState`), so that another run is not
    continued in its folder.

    Args:
        config: of the run, with `record`.
        heads: by which Σπ² is computed.
        describe: what runs, when training begins (`describe`).
        processing_class: the tokenizer or processor, which is saved beside.
        accelerator: of the run.
    """

    def __init__(
        self,
        config: DGPOConfig,
        heads: Heads,
        describe: Callable[[], dict[str, Any]],
        processing_class: Any,
        accelerator: Any,
    ) -> None:
        assert config.record is not None
        self._config, self._heads, self._describe = config, heads, describe
        self._processing_class, self._accelerator = processing_class, accelerator
        self.recorder = Recorder(
            config.record,
            every=config.record_every,
            # each rank writes its own files and has its share of the limit
            limit=config.record_limit_mb * 2**20 / accelerator.num_processes,
            updates_per_generation=config.updates_per_generation,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            anchor=config.anchor,
            warn=logger.warning,
        )
        self.completions = CompletionWriter(config.record, config.record_completions)
        self._run: str | None = None
        self._update = 0
        self._wanted = False
        self._totals: StepTotals | None = None

    # --- tokens ---------------------------------------------------------------------------------------------------

    def add(self, update: int, model: Any, part: Part, tokens: TokenBatch, totals: StepTotals) -> None:
        """One forward pass of training, as the loss saw it. Every rank must call it for every one."""
        # asked once per update: the answer is a collective
        if update != self._update:
            self._update, self._wanted = update, self._agree(update)
        if not self._wanted:
            return
        self._totals = totals
        self.recorder.add(
            tokens,
            token_ids=part.inputs["completion_ids"],
            group=_groups(part.inputs),
            sum_pi_squared=self._sum_pi_squared(model, part) if self._config.record_sum_pi_squared else None,
        )

    def _agree(self, update: int) -> bool:
        """Whether this update is recorded, on all ranks or on none: Σπ² takes a forward pass that they share."""
        accelerator, recorder = self._accelerator, self.recorder
        if accelerator.num_processes > 1:
            mine = torch.tensor([[int(recorder.taking), recorder.stride, recorder.first]], device=accelerator.device)
            of_all = accelerator.gather(mine)
            # the widest stride and the latest start of all ranks, so that their files cover the same updates
            largest = of_all.amax(0).tolist()
            recorder.agree(bool(of_all[:, 0].all()), stride=largest[1], first=largest[2])
        return recorder.wants(update)

    def finish(self) -> None:
        """Write what was added since the last update ended."""
        self.recorder.finish(self._update, self._totals)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.finish()

    # --- what the model wrote -------------------------------------------------------------------------------------

    def write(self, step: int, sampled: Sampled, output: Mapping[str, Any]) -> None:
        """A sample of the completions of one generation of this rank; the main process alone writes.

        Args:
            step: updates so far.
            sampled: the completions, and the rewards of all ranks.
            output: the trainer's, with `prompt_ids`, `prompt_mask` and `advantages` of this rank.
        """
        if not self._accelerator.is_main_process or not self.recorder.on:
            return
        ids, mask = output["prompt_ids"].cpu(), output["prompt_mask"].cpu().bool()
        prompts = [one[there] for one, there in zip(ids, mask, strict=True)]
        names = [prompt_id(prompt.numpy().tobytes()) for prompt in prompts]
        given = output["advantages"].detach().float().cpu().reshape(len(names), -1)[:, 0].tolist()
        decode = getattr(self._processing_class, "tokenizer", self._processing_class).decode
        found = [
            Completion(
                update=step + 1,
                prompt_id=names[i],
                prompt=clipped(decode(prompts[i].tolist()), LONGEST_PROMPT),
                completion=clipped(decode(sampled.token_ids[i]), LONGEST_COMPLETION),
                gold=_gold(sampled.rows[i]),
                rewards=sampled.rewards_of(i),
                advantage=given[i] if math.isfinite(given[i]) else None,
                ended=CUT if sampled.truncated[i] else STOP,
                token_ids=tuple(sampled.token_ids[i]),
            )
            for i in self.completions.chosen(names, given)
        ]
        with self.recorder.guard():
            self.completions.write(found)

    def _sum_pi_squared(self, model: Any, part: Part) -> Tensor:
        """[B, T] Σ_v π(v)², from hidden states in chunks."""

        def of_hidden(hidden: Tensor, lm_head: Tensor, bias: Tensor | None) -> Any:
            return HeadOutput(value=sum_pi_squared(hidden, lm_head, bias, self._heads.head))

        device = self._accelerator.device
        # dropout must not draw from the numbers that the training draws from
        random = torch.random.fork_rng([device] if device.type == "cuda" else [])
        with random, torch.no_grad(), self._accelerator.autocast():
            found = apply_to_hidden(model, part.inputs, of_hidden, part.packing).value
        assert isinstance(found, Tensor)
        return found

    # --- the trainer's events -------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse to mix two runs; then say what runs.

        Raises:
            ValueError: the folder holds updates of another run, and this one does not continue that run.
        """
        accelerator, folder = self._accelerator, self.recorder.folder
        before = recorded_info(folder)
        mine = self._run or state.stateful_callbacks.get("Recording", {}).get("attributes", {}).get("run")
        foreign = mine is None or (before is not None and before.get("run") != mine)
        updates = recorded_updates(folder) if foreign else 0
        accelerator.wait_for_everyone()  # all ranks have looked before one writes
        if updates and state.global_step > 0:
            raise ValueError(
                f"record = {str(folder)!r} holds another run than the checkpoint at update {state.global_step}; give "
                "another folder"
            )
        if updates and not self._config.record_overwrite:
            raise ValueError(occupied(self._config, updates))
        if foreign:
            before = None
            if state.is_world_process_zero:
                with self.recorder.guard():
                    remove_recording(folder)
        # rank 0's id for all: each rank would draw another
        self._run = mine or broadcast_object_list([uuid.uuid4().hex])[0]
        self._update = 0
        self.recorder.begin(state.global_step)
        if state.is_world_process_zero:
            with self.recorder.guard():
                self.completions.begin(state.global_step)
            self._say_what_runs(before, state.global_step)

    def _say_what_runs(self, before: dict[str, Any] | None, step: int) -> None:
        now = {**self._describe(), "run": self._run}
        event: dict[str, Any] = {"event": "begin", "step": step}
        if before is None:
            now["tokenizer"] = self._save_tokenizer()
        else:
            old, new = before.get("config") or {}, now["config"]
            event["changed"] = {name: [old.get(name), new[name]] for name in new if old.get(name) != new[name]}
            if event["changed"]:
                changed = ", ".join(event["changed"])
                logger.warning("the run continues from update %d with another configuration: %s", step, changed)
            now |= {name: before.get(name) for name in ("started", "tokenizer")}
        self.recorder.info(now)
        self.recorder.metrics(event)

    def _save_tokenizer(self) -> str | None:
        processing = self._processing_class
        if not hasattr(processing, "save_pretrained") or not self.recorder.on:
            return None
        with self.recorder.guard():
            processing.save_pretrained(self.recorder.folder / "tokenizer")
            return "tokenizer"
        # reached only after a disk error, which the guard has reported
        return None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": {"run": self._run}}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs and self._run is not None:  # an evaluation before has no run
            self.recorder.metrics({"step": state.global_step, **logs})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.recorder.metrics({"event": "end", "step": state.global_step})

    def check_free(self) -> None:
        """Before a training that continues none: raise `occupied` if the folder holds updates of another run."""
        folder, config = self.recorder.folder, self._config
        if self._run is None and not config.record_overwrite and (updates := recorded_updates(folder)):
            raise ValueError(occupied(config, updates))


def check_record(config: DGPOConfig) -> None:
    """Before a model is loaded: refuse a folder with a run that no training could continue, as far as is known.

    Raises:
        ValueError: `occupied`.
    """
    if config.record is None or config.record_overwrite or config.resume_from_checkpoint is not None:
        return
    if not (updates := recorded_updates(config.record)):
        return
    # with a checkpoint, train() is told whether to continue from it, and checks again
    if not any(checkpoints(folder) for folder in (config.output_dir, recorded_output(config.record)) if folder):
        raise ValueError(occupied(config, updates))


def recorded_output(record: str) -> str | None:
    """The `output_dir` of the run that a folder has recorded, as it was given there; None if it is not known."""
    found = ((recorded_info(Path(record)) or {}).get("config") or {}).get("output_dir")
    return found if isinstance(found, str) else None


def occupied(config: DGPOConfig, updates: int) -> str:
    """The error about a folder with another run, with the ways out."""
    resume = "continue it with --resume (in Python: train(resume_from_checkpoint=True)), "
    return (
        f"record = {str(config.record)!r} already holds a run of {counted(updates, 'update')}; "
        f"{resume if checkpoints(config.output_dir) else ''}replace it with --overwrite_output_dir (in Python: "
        "record_overwrite=True), or give another folder"
    )


@dataclasses.dataclass(frozen=True)
class Sampled:
    """The completions of one generation on this rank, and the rewards of all.

    Attributes:
        rows: [B] of the data.
        token_ids: [B] of each completion.
        truncated: [B] whether it was cut off at the limit.
        names: [K] of the reward functions.
        rewards: [N, K] of all ranks; NaN where a function gave none. This rank's are B in a row.
        first: index of its first.
    """

    rows: Sequence[Mapping[str, Any]]
    token_ids: Sequence[Sequence[int]]
    truncated: Sequence[bool]
    names: Sequence[str]
    rewards: Tensor
    first: int

    def rewards_of(self, i: int) -> dict[str, float | None]:
        """Name -> reward of one completion of this rank."""
        values = self.rewards[self.first + i].tolist()
        return {name: value if math.isfinite(value) else None for name, value in zip(self.names, values, strict=True)}


def _gold(row: Mapping[str, Any]) -> str | None:
    """The reference answer of a row, under the names that rewards and data sets use; None if it has none."""
    for name in GOLD:
        if row.get(name) is not None:
            return clipped(str(row[name]), LONGEST_GOLD)
    return None


@torch.no_grad()
def sum_pi_squared(
    hidden: Tensor,
    lm_head: Tensor,
    bias: Tensor | None,
    head: Head,
    *,
    chunk: int = 1024,
) -> Tensor:
    """[B, T] Σ_v π(v)², with at most `chunk` rows of logits at a time; `head` follows hidden @ lm_headᵀ + bias."""
    rows = []
    # [B · T, H], a chunk at a time
    for part in hidden.flatten(0, -2).split(chunk):
        product = torch.nn.functional.linear(part, lm_head, bias).float()
        # in place: the logits of a chunk exist once
        rows.append(head.logits(product, out=product).softmax(-1).square().sum(-1))
    return torch.cat(rows).view(hidden.shape[:-1])


def _groups(inputs: dict[str, Any]) -> Tensor:
    """[B] a number per prompt, the same in every micro-batch: 63 bits of a hash of its tokens."""
    numbers = []
    # one copy: each waits for the device
    for ids, mask in torch.stack([inputs["prompt_ids"], inputs["prompt_mask"].long()], 1).cpu().unbind():
        # without padding, or one prompt would have another number in each micro-batch
        digest = hashlib.blake2b(ids[mask.bool()].numpy().tobytes(), digest_size=8).digest()
        # 63 bits, so that it fits a signed int64
        numbers.append(int.from_bytes(digest, "big") >> 1)
    return torch.tensor(numbers, dtype=torch.long)


def describe(
    config: DGPOConfig, factors: Factors, model: Any, data: Any, ranks: int, rewards: Sequence[str]
) -> dict[str, Any]:
    """What runs: versions, configuration, model, data and hardware, as JSON.

    Args:
        config: of the run.
        factors: of its loss.
        model: that is trained.
        data: to train on.
        ranks: processes.
        rewards: names of the reward functions, as they are logged.
    """
    return {
        "engine": "trl",
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "objective": {"name": config.objective, **dataclasses.asdict(factors.spec.objective)},
        "aggregation": {"name": config.aggregation, **dataclasses.asdict(factors.spec.aggregation)},
        "config": without_secrets(json.loads(json.dumps(config.to_dict(), default=str))),
        "updates_per_generation": config.updates_per_generation,
        "world_size": ranks,
        "seed": config.seed,
        "model": {
            "name": model.config._name_or_path,
            "class": type(model).__name__,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        },
        "data": data_of(data),
        "rewards": list(rewards),
        "versions": {"python": platform.python_version(), **versions(*PACKAGES)},
        "git": _git(),
        "hardware": {
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "device": str(config.device),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def data_of(data: Any) -> dict[str, Any]:
    """Rows of a data set, and the SHA-256 of the first `HASHED_ROWS` of them, each as JSON with sorted keys.

    What JSON has no form for, such as an image, counts by the name of its type.
    """
    if not hasattr(data, "__len__"):
        return {"rows": None, "sha256": None, "rows_hashed": 0}
    digest, count = hashlib.sha256(), 0
    encode = json.JSONEncoder(sort_keys=True, default=lambda value: type(value).__name__).encode
    for row in islice(_rows(data), HASHED_ROWS):
        digest.update(encode(row).encode() + b"\n")
        count += 1
    return {"rows": len(data), "sha256": digest.hexdigest(), "rows_hashed": count}


def _rows(data: Any) -> Iterator[Any]:
    """The rows of a data set, one by one; of one of plain columns in batches, which takes a fifth of the time."""
    if not isinstance(data, datasets.Dataset) or data.format["type"] is not None or not data.column_names:
        yield from data
        return
    for batch in data.iter(batch_size=100):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def _git() -> dict[str, Any] | None:
    """The commit of the working directory, where it is a repository."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
