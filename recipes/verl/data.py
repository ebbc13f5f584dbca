"""Write the data of a recipe as the parquet file that verl reads: the same prompts, templates and answers.

python recipes/verl/data.py recipes/dapo-math/1.5b-dgpo.yaml data/dapo-math.parquet
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dgpo.cli.yaml_file import values
from dgpo.tasks.data import load


def rows(recipe: dict[str, Any]) -> Any:
    """A data set with verl's columns, from the data settings of a recipe."""
    data = load(
        recipe["dataset"],
        recipe.get("dataset_split", "train"),
        config=recipe.get("dataset_config"),
        columns=dict(column.split("=", 1) for column in recipe.get("columns", [])),
        template=recipe.get("prompt_template"),
        chat=True,
    )

    def shape(row: dict[str, Any], index: int) -> dict[str, Any]:
        return {
            "data_source": recipe["dataset"],
            "prompt": row["prompt"],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": row["answer"]},
            "extra_info": {"index": index, "split": "train"},
        }

    return data.map(shape, with_indices=True, remove_columns=data.column_names)


def main() -> None:
    """Read the recipe, write the file."""
    parser = argparse.ArgumentParser(description="Write the data of a recipe in the form that verl reads.")
    parser.add_argument("recipe", type=Path, help="a YAML file of recipes/")
    parser.add_argument("out", type=Path, help="the parquet file to write")
    arguments = parser.parse_args()
    data = rows(values(arguments.recipe))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    data.to_parquet(str(arguments.out))
    print(f"{len(data):,} prompts in {arguments.out}")


if __name__ == "__main__":
    main()
