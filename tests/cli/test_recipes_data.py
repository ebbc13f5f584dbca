"""The data of the recipes: the loader takes the hub's columns, for TRL and for verl."""

from __future__ import annotations

import json
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from datasets import Dataset, load_dataset
from recipe_plans import PLANNED, RECIPES, parsed

from dgpo.cli.yaml_file import values

ROW = {
    "prompt": "What is 1 + 1?",
    "solution": "2",
    "data_source": "math_dapo",
    "source_prompt": [{"role": "user", "content": "Solve the following math problem ... What is 1 + 1?"}],
    "ability": "MATH",
    "reward_model": {"ground_truth": "2", "style": "rule-lighteval/MATH_v2"},
    "extra_info": {"index": "a-1"},
}
"""A row with the columns of the hub's copy, as public code reads them."""


@pytest.fixture
def local_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the place of the hub: `load_dataset` reads this file, in whatever configuration."""
    path = tmp_path / "train.parquet"
    Dataset.from_list([ROW, {**ROW, "prompt": "What is 17 · 3?", "solution": "51"}]).to_parquet(str(path))

    def load(name: str, config: str | None, split: str) -> Any:
        assert (name, config, split) == ("open-r1/DAPO-Math-17k-Processed", "all", "train")
        return load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr("datasets.load_dataset", load)
    return path


@pytest.mark.usefixtures("local_copy")
@pytest.mark.parametrize("name", [name for name in PLANNED if "gsm8k" not in name])
def test_the_loader_takes_the_columns(name: str) -> None:
    args, _, _ = parsed(name)
    data = args.load_dataset("train")
    assert data["answer"][:] == ["2", "51"]
    (message,) = data[1]["prompt"]
    assert message["role"] == "user"
    assert message["content"] == (
        "What is 17 · 3?\n\nPlease reason step by step, and put your final answer within \\boxed{}."
    )
    assert "solution" not in data.column_names  # math_reward takes one column of golds


@pytest.mark.usefixtures("local_copy")
def test_data_for_verl() -> None:
    script = RECIPES / "verl" / "data.py"
    data = module_of(script).rows(values(RECIPES / "dapo-math/7b-maspo.yaml"))
    assert data[1]["prompt"] == parsed("dapo-math/1.5b-dgpo.yaml")[0].load_dataset("train")[1]["prompt"]
    assert data[1]["reward_model"] == {"style": "rule", "ground_truth": "51"}
    assert set(data.column_names) == {"data_source", "prompt", "ability", "reward_model", "extra_info"}
    assert json.loads(json.dumps(data[0]))["extra_info"] == {"index": 0, "split": "train"}


def module_of(path: Path) -> ModuleType:
    spec = util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
