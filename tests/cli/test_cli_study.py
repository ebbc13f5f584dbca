"""`dgpo compare`: what a study may say, what it comes to, and what is the same in all of its runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from dgpo.cli.errors import UserError
from dgpo.cli.study_file import as_options, axes_of_flags, objectives_of_flag, read, seeds, study_of
from dgpo.comparison.cells import CellFolder, Progress
from dgpo.comparison.evaluations import outcomes, starting_scores
from dgpo.comparison.reading import read_summary
from dgpo.comparison.runner import Runner
from dgpo.comparison.study import Study

ROOT = Path(__file__).parents[2]

REWARD = """
import os

def told(prompts, completions, **kwargs):
    with open(os.environ["TOLD"], "a") as file:
        file.writelines(f"{prompt!r} {text!r}\\n" for prompt, text in zip(prompts, completions))
    return [float(len(text)) for text in completions]
"""


@pytest.fixture
def recipe(quick_settings: dict[str, str], tmp_path: Path) -> Path:
    """The settings of a quick run on addition, as a file."""
    lines = [f"{name}: {value}" for name, value in quick_settings.items() if name != "output_dir"]
    file = tmp_path / "recipe.yaml"
    file.write_text("\n".join(["task: addition", "max_grad_norm: 0.5", *lines, ""]))
    return file


@pytest.fixture
def written(recipe: Path, tmp_path: Path) -> Callable[..., Path]:
    """A study over that recipe, with keys changed; None leaves one out."""

    def write(**changed: object) -> Path:
        usual: dict[str, object] = {
            "config": {"base": recipe.name},
            "objectives": ["grpo", "dgpo:n=2"],
            "seeds": "0-1",
            "evaluation": {"samples": 2, "limit": 3, "every": 2},
        }
        keys = {key: value for key, value in {**usual, **changed}.items() if value is not None}
        file = tmp_path / "study.yaml"
        file.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items()))
        return file

    return write


def test_seeds_and_objectives_of_flags() -> None:
    assert seeds("0-4") == (0, 1, 2, 3, 4)
    assert seeds("0,2, 5") == (0, 2, 5)
    assert seeds("7") == (7,)
    for wrong in ("", "a", "4-0", "-1", "0-99999999", "1.5"):
        with pytest.raises(ValueError, match="cannot use|more than"):
            seeds(wrong)
    assert objectives_of_flag("dgpo:n=2,m=2,grpo,my.module:Mine:cap=2") == [
        "dgpo:n=2,m=2",
        "grpo",
        "my.module:Mine:cap=2",
    ]
    assert axes_of_flags(["learning_rate=1e-4,3e-4", "beta=0"]) == {"learning_rate": ("1e-4", "3e-4"), "beta": ("0",)}
    for words in (["beta"], ["=1"], ["beta=0", "beta=1"], ["beta=0,0"], ["seed=0,1"]):
        with pytest.raises(UserError):
            axes_of_flags(words)


def test_flags_of_dgpo_train_as_keys_of_its_file() -> None:
    flags = ["--max-steps", "3", "--beta=-0.1", "--rewards", "a", "b", "--chat", "--no_fused_loss", "--eval_steps=1e-1"]
    assert as_options(flags) == {
        **{"max_steps": "3", "beta": "-0.1", "rewards": ["a", "b"], "chat": "true", "fused_loss": "false"},
        "eval_steps": "1e-1",
    }
    for words, message in (
        (["3"], "cannot use '3'"),
        (["--seed", "1"], "--seed cannot"),
        (["--resume"], "--resume cannot"),
    ):
        with pytest.raises(UserError, match=message):
            as_options(words)


def test_a_study_is_its_recipe_with_what_it_says(written: Callable[..., Path]) -> None:
    given = written(
        tune={"learning_rate": ["1e-3", "1e-2"]},
        tuning_seeds=[5],
        settings={"beta": ["0", "0.1"]},
        baseline="dgpo:n=2, beta=0",
    )
    study = study_of(read(given))
    assert [arm.label for arm in study.arms] == [
        "grpo, beta=0",
        "grpo, beta=0.1",
        "dgpo:n=2, beta=0",
        "dgpo:n=2, beta=0.1",
    ]
    assert (study.baseline, study.updates, study.every, study.evaluated) == ("dgpo:n=2, beta=0", 4, 2, [0, 2, 4])
    assert len(study.tuning_cells()) == 4 * 2
    (first, *_) = study.tuning_cells()
    options = first.options
    # of the recipe, of the study, of the arm, of the trial
    assert (options["max_grad_norm"], options["eval_benchmark_kwargs"]) == ("0.5", {"samples": 2, "limit": 3})
    assert (options["objective"], options["beta"], options["learning_rate"], options["seed"]) == (
        "grpo",
        "0",
        "1e-3",
        "5",
    )
    assert options["eval_benchmarks"] == ["addition"]
    # 4 updates share a generation: a checkpoint inside it would sample it again
    assert (options["save_strategy"], options["save_steps"]) == ("steps", "4")


def test_the_recipe_as_a_file_and_flags_of_dgpo_train(
    written: Callable[..., Path], recipe: Path, dgpo: Callable[..., Any], tmp_path: Path
) -> None:
    assert study_of(read(written(config="recipe.yaml"))).options == study_of(read(written())).options
    evaluated = {"eval_benchmarks": ["reverse"], "eval_benchmark_steps": 3, "eval_benchmark_kwargs": {"limit": 5}}
    options = study_of(read(written(config={"base": "recipe.yaml", **evaluated}, evaluation={"limit": 7}))).options
    assert (options["eval_benchmarks"], options["eval_benchmark_steps"]) == (["reverse"], "3")
    assert options["eval_benchmark_kwargs"] == {"limit": 7, "samples": 4}
    plan = dgpo(
        *("compare", "--config", recipe, "--objectives", "grpo,dgpo:n=2,m=3", "--seeds", "0-4", "--max_steps", "12"),
        *("--tune", "learning_rate=1e-3,1e-2", "--tune", "beta=0,0.1", "--tuning_seeds", "9"),
        *("--out", tmp_path / "o", "--dry_run"),
    )
    assert plan.code == 0, plan.err
    assert "2 arms x 5 seeds = 10 runs of 12 updates" in plan.out
    assert "dgpo:n=2,m=3" in plan.out
    assert "4 settings x 1 seed for each arm = 8 runs" in plan.out
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"objectives": ["grpo", "dgop"]}, ["unknown objective 'dgop', did you mean 'dgpo'?"]),
        ({"objectives": ["grpo", "dgpo:q=1"]}, ["objective 'dgpo' has no field 'q'"]),
        ({"objectives": ["dgpo", "dgpo:n=1"]}, ["objectives 'dgpo' is given twice"]),
        ({"objectives": []}, ["objectives: none; expected at least two arms"]),
        ({"objectives": None}, ["study.yaml' has no 'objectives'"]),
        ({"seed": 1}, ["unknown key 'seed' in", "did you mean 'seeds'?"]),
        ({"seeds": "0-"}, ["study.yaml', line 3: seeds '0-': cannot use '0-'"]),
        ({"tune": {"learning_rate": [1e-3]}, "tuning_seeds": "1-2"}, ["seeds and tuning_seeds share 1"]),
        ({"tune": {"learning_rate": [1e-3]}}, ["tune is given without tuning_seeds"]),
        ({"tune": {"lerning_rate": [1e-3]}, "tuning_seeds": 7}, ["--lerning_rate", "did you mean 'learning_rate'?"]),
        ({"tune": {"learning_rate": ["fast"]}, "tuning_seeds": 7}, ["learning_rate", "'fast'"]),
        ({"tune": {"learning_rate": [1e-3, 1e-3]}, "tuning_seeds": 7}, ["expected each value once"]),
        ({"tune": [1], "tuning_seeds": 7}, ["expected a mapping of options to lists"]),
        ({"settings": {"seed": [1, 2]}}, ["seed cannot be varied here; dgpo compare sets it"]),
        ({"settings": {"objective": ["is"]}}, ["objective cannot be varied here; list it under objectives"]),
        ({"settings": {"max_steps": [4, 8]}}, ["makes 8 updates", "expected the same number in every run"]),
        ({"settings": {"beta": [0]}, "tune": {"beta": [0]}, "tuning_seeds": 7}, ["beta is in settings and in tune"]),
        ({"baseline": "is"}, ["baseline = 'is' is not compared", "grpo, dgpo:n=2"]),
        ({"criterion": "best"}, ["criterion = 'best' is not known"]),
        ({"config": "nowhere.yaml"}, ["config = 'nowhere.yaml' in", "no such file"]),
        ({"config": {"base": "nowhere.yaml"}}, ["base = 'nowhere.yaml'", "no such file"]),
        (
            {"config": {"base": "recipe.yaml", "max_step": 3}},
            ["unknown key 'max_step' in", "did you mean 'max_steps'?"],
        ),
        (
            {"config": {"base": "recipe.yaml", "preset": "dapo"}},
            ["preset in", "write aggregation and advantage instead"],
        ),
        ({"config": {"base": "recipe.yaml", "resume": True}}, ["resume in", "cannot be an option of a study"]),
        ({"config": {"base": "recipe.yaml", "task": "additio"}}, ["unknown task 'additio', did you mean 'addition'?"]),
        ({"evaluation": {"sample": 2}}, ["unknown key 'sample' in", "did you mean 'samples'?"]),
        ({"evaluation": {"samples": -1}}, ["samples = -1"]),
        ({"evaluation": {"samples": 0}}, ["samples = 0 leaves nothing to score"]),
        ({"evaluation": {"tasks": ["additio"]}}, ["unknown task 'additio'"]),
        ({"evaluation": {"tasks": []}}, ["evaluation: tasks = none; expected at least one, each once"]),
        ({"evaluation": {"tasks": ["addition", "addition"]}}, ["tasks = addition, addition; expected"]),
        ({"settings": {"task": ["addition", "reverse"]}}, ["the runs train on addition and reverse; name what all"]),
        # an evaluation samples at the temperature of training
        (
            {"tune": {"temperature": [0.7, 1]}, "tuning_seeds": 7},
            ["would not be evaluated alike", "temperature: 0.7 -> 1.0", "Give one value to all, in evaluation"],
        ),
        ({"evaluation": {"every": 0}}, ["every = 0; expected a whole number of updates"]),
        ({"evaluation": {"limit": 0}}, ["limit = 0; expected a whole number"]),
        ({"keep_models": "perhaps"}, ["'perhaps'; expected true or false"]),
    ],
)
def test_one_error_before_anything_runs(
    written: Callable[..., Path], dgpo: Callable[..., Any], tmp_path: Path, changed: dict[str, object], parts: list[str]
) -> None:
    dgpo("compare", written(**changed), "--out", tmp_path / "o").one_error(*parts)
    assert not (tmp_path / "o").exists()


def test_errors_of_the_command(
    written: Callable[..., Path], recipe: Path, dgpo: Callable[..., Any], tmp_path: Path
) -> None:
    dgpo("compare", tmp_path / "none.yaml").one_error("cannot read the config file", "none.yaml")
    dgpo("compare", recipe).one_error("has no 'config' and no 'objectives': a recipe is given as --config")
    dgpo("compare", written(), "--max_steps", "3").one_error("unknown argument '--max_steps'", "study's config")
    dgpo("compare", written(), "--jobs", "0").one_error("--jobs 0 is not allowed; expected >= 1")
    flags = ["compare", "--config", recipe, "--objectives", "grpo,dgpo", "--seeds", "0"]
    dgpo("compare", "--config", tmp_path, *flags[3:]).one_error("cannot read the config file", "Is a directory")
    dgpo(*flags, "--seed", "3").one_error("--seed cannot be given here: dgpo compare sets it")
    dgpo(*flags, "--max_step", "3").one_error("unknown argument '--max_step'", "did you mean 'max_steps'?")
    moved = written(config={"base": "recipe.yaml", "model_name_or_path": str(tmp_path / "gone")})
    dgpo("compare", moved, "--out", tmp_path / "o").one_error("cannot load model", "gone'", "no such folder")
    file = tmp_path / "file"
    file.touch()
    dgpo("compare", written(), "--out", file / "o").one_error("cannot write to", str(file))


def test_a_changed_study_is_refused_and_a_larger_one_is_not(
    written: Callable[..., Path], dgpo: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "o"
    study = study_of(read(written()))
    for cell in study.final_cells({arm.label: {} for arm in study.arms}):
        CellFolder(out, cell).save(Progress(state="finished", code=0, starts=1))
    longer = written(config={"base": "recipe.yaml", "max_steps": 8})
    dgpo("compare", longer, "--out", out, "--dry_run").one_error("max_steps: 4 -> 8", "give another --out")
    more = dgpo("compare", written(objectives=["grpo", "is", "dgpo:n=2"], seeds=[0, 1, 2]), "--out", out, "--dry_run")
    assert more.code == 0, more.err
    assert "4 of 9 are finished" in more.out
    dgpo("compare", written(), "--out", tmp_path / "p", "--summary").one_error("no final run in", "is finished")


def test_arms_whose_tuning_failed_are_named(
    written: Callable[..., Path], dgpo: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(runner: Runner, folders: Sequence[CellFolder]) -> None:
        for folder in folders:
            folder.save(Progress(state="failed", code=1, starts=1))

    monkeypatch.setattr(Runner, "run", fail)
    found = dgpo("compare", written(tune={"beta": [0, 1]}, tuning_seeds=7), "--out", tmp_path / "o")
    for arm in ("grpo", "dgpo:n=2"):
        assert f"{arm}: every tuning run failed, so that no setting can be chosen; the same command" in found.out
    found.one_error("no final run in", "is finished")


def test_two_arms_see_the_same_prompts_and_problems_and_start_alike(
    written: Callable[..., Path], dgpo: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runs themselves, in this process: 5 updates of two generations."""
    (tmp_path / "told_by_this_test.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    study = study_of(
        read(
            written(
                config={
                    "base": "recipe.yaml",
                    "max_steps": 5,
                    "learning_rate": "0.05",
                    "rewards": ["told_by_this_test.told"],
                },
                seeds=3,
                evaluation={"samples": 2, "limit": 3, "every": 4},
            )
        )
    )
    folders = [CellFolder(tmp_path / "o", cell) for cell in study.final_cells({arm.label: {} for arm in study.arms})]
    told = []
    for place, folder in enumerate(folders):
        file = tmp_path / f"told-{place}"
        monkeypatch.setenv("TOLD", str(file))
        folder.write_config()
        assert dgpo("train", "--config", folder.config).code == 0
        folder.save(Progress(state="finished", code=0, starts=1))
        told.append([tuple(line.split(" ", 1)) for line in file.read_text().splitlines()])
    prompts = [[prompt for prompt, _ in lines] for lines in told]
    assert prompts[0] == prompts[1]
    assert len(prompts[0]) == 64
    # one generation serves 4 updates of 8 completions: the first is sampled from the same policy with the same seed
    assert told[0][:32] == told[1][:32]
    assert told[0] != told[1]
    rows = [
        [
            [json.loads(line) for line in (folder.train / "eval" / str(step) / "generations.jsonl").open()]
            for step in study.evaluated
        ]
        for folder in folders
    ]
    assert rows[0][0] == rows[1][0]
    for first, second in zip(*rows, strict=True):
        assert [(row["id"], row["sample"]) for row in first] == [(row["id"], row["sample"]) for row in second]
    start, others = starting_scores(folders)
    assert others == []
    found = [outcome for folder in folders for outcome in outcomes(study, folder, start)]
    assert [outcome.steps for outcome in found] == [(0, 4, 5)] * 2
    assert len(folders[0].log()["grad_norm"]) == len(folders[0].log()["entropy"]) == 5
    assert folders[0].step() == 5


def test_the_studies_of_this_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    files = sorted(Path("studies").glob("*.yaml"))
    assert files
    for file in files:
        study = study_of(read(file))
        assert isinstance(study, Study)
        head = re.search(r"(\d+) tuning runs and (\d+) final ones", file.read_text())
        assert head is not None
        final = study.final_cells({arm.label: study.settings[0] for arm in study.arms})
        assert list(map(int, head.groups())) == [len(study.tuning_cells()), len(final)]
        if (results := file.with_suffix("") / "summary.json").exists():
            # what is committed is of the study that is committed
            summary = read_summary(results)
            assert summary.about["study"] == json.loads(json.dumps(asdict(study)))
            assert (summary.baseline, summary.seeds, summary.incomplete) == (study.baseline, study.seeds, ())
            assert all(method.tuned.runs == len(study.tuning_cells()) / len(study.arms) for method in summary.methods)
