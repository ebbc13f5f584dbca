"""Trains, kills the training with SIGKILL at random moments, continues it, and looks at every checkpoint that is there.

    python killing_script.py MODEL OUT KILLS SEED

Prints one JSON object: kills, how many of them while a checkpoint was being written, and the update that was reached.
Every process is a fork of this one, which has imported everything and trained nothing.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from dgpo.tasks import Addition
from dgpo.training import DGPOConfig, DGPOTrainer
from dgpo.training.checkpoint_files import checkpoints, damage
from dgpo.training.resumable import STAGING


def digits(completions: list[str], **columns: Any) -> list[float]:
    return [sum(character.isdigit() for character in text) / max(len(text), 1) for text in completions]


def train(model: str, out: Path, updates: int) -> None:
    config = DGPOConfig(
        output_dir=str(out),
        advantage="smooth",
        per_device_train_batch_size=4,
        num_generations=4,
        steps_per_generation=2,
        max_completion_length=4,
        max_steps=updates,
        save_steps=1,
        save_total_limit=3,
        lr_scheduler_type="constant",
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = DGPOTrainer(
        AutoModelForCausalLM.from_pretrained(model),
        digits,
        config,
        train_dataset=Addition().dataset("train").select(range(64)),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.train(resume_from_checkpoint=bool(checkpoints(out)))


def fork(model: str, out: Path, updates: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        train(model, out, updates)
        code = 0
    except BaseException:  # noqa: BLE001 - what it is, is printed
        traceback.print_exc()
    os._exit(code)


def main(model: str, out: Path, kills: int, seed: int) -> dict[str, int]:
    chance = random.Random(seed)
    while_saving = 0
    for _ in range(kills):
        before = checkpoints(out)[:1]
        child = fork(model, out, 10**6)
        # until it has continued, so that every kill is one resume too
        while checkpoints(out)[:1] == before:
            done, status = os.waitpid(child, os.WNOHANG)
            assert not done, f"the resume failed with {os.waitstatus_to_exitcode(status)}"
            time.sleep(0.005)
        if chance.random() < 0.7:  # most of them inside a save
            while not (out / STAGING).exists():
                pass
            time.sleep(chance.random() * 0.05)
        else:
            time.sleep(chance.random() * 0.3)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while_saving += (out / STAGING).exists()
        for checkpoint in checkpoints(out):
            assert damage(checkpoint) is None, f"{checkpoint}: {damage(checkpoint)}"
    reached = int(checkpoints(out)[0].name.split("-")[1])
    last = fork(model, out, reached + 2)
    assert os.waitstatus_to_exitcode(os.waitpid(last, 0)[1]) == 0
    assert checkpoints(out)[0].name == f"checkpoint-{reached + 2}"
    assert len(checkpoints(out)) == 3
    assert not (out / STAGING).exists()
    return {"kills": kills, "while_saving": while_saving, "reached": reached + 2}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
