"""What-if replay against the log of a real run."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from dgpo.diagnostics.replay import replay
from dgpo.objectives import OBJECTIVES
from dgpo.runs.run import load

METHODS = list(OBJECTIVES)


@pytest.mark.parametrize(("name", "options"), [("dgpo", {"n": 2, "eps_high": 0.3}), ("bapo", {}), ("gspo", {})])
def test_the_runs_own_row_is_what_its_log_says(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    from dgpo.tasks import Addition
    from dgpo.training import DGPOConfig, DGPOTrainer
    from dgpo.training.starter import character_tokenizer, tiny_model

    def digits(completions: list[str], **kwargs: Any) -> list[float]:
        return [sum(character.isdigit() for character in text) / max(len(text), 1) for text in completions]

    tokenizer = character_tokenizer()
    config = DGPOConfig(
        output_dir=str(tmp_path / "out"),
        record=str(tmp_path / "run"),
        objective=name,
        objective_kwargs=options,
        per_device_train_batch_size=8,
        num_generations=4,
        steps_per_generation=4,
        max_completion_length=5,
        learning_rate=2e-2,
        lr_scheduler_type="constant",
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        max_steps=6,
        seed=7,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = DGPOTrainer(
            tiny_model(tokenizer, hidden=32, layers=2, seed=0),
            digits,
            config,
            train_dataset=Addition().dataset("train").select(range(64)),
            processing_class=tokenizer,
        )
        trainer.train()
    run = load(tmp_path / "run")
    found = replay(run, "grpo")
    (own,) = [row for row in found.rows if row.own]
    assert own.name == name
    logged = {row["step"]: row for row in run.metrics if "objective/weight/mean" in row}
    compared = 0
    for place, update in enumerate(found.updates):
        for series in (own.series, found.series):
            for key, values in series.items():
                if (metric := f"objective/{key}") in logged[update]:
                    assert values[place] == pytest.approx(logged[update][metric], rel=1e-5, abs=1e-5), (update, key)
                    compared += 1
    # fraction and mass of five regions, four statistics of the weight, and the KL
    assert compared == 15 * len(found.updates)
    assert len(found.updates) >= 5
    assert max(found.series["fraction/left"]) + max(found.series["fraction/right"]) > 0
