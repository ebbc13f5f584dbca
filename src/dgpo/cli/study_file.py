"""A study of `dgpo compare`: from its file, or from flags, to a `Study` whose every run has been checked."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dgpo import objectives, tasks
from dgpo.cli import yaml_file
from dgpo.cli.dry_run import Settings, checked, updates_of
from dgpo.cli.errors import UserError, user_input
from dgpo.cli.train_arguments import ModelArguments, TrainArguments
from dgpo.cli.yaml_file import Entry
from dgpo.comparison.study import SET_BY_COMPARE, Arm, Setting, Study, product, words
from dgpo.counts import counted
from dgpo.diagnostics.naming import label
from dgpo.evaluation.folder import differences
from dgpo.registry import did_you_mean
from dgpo.training.benchmark_evaluation import sampling_of
from dgpo.training.config import EVALUATION_OPTIONS, DGPOConfig

KEYS = (
    *("config", "objectives", "settings", "seeds", "baseline", "tune", "tuning_seeds", "criterion", "evaluation"),
    *("out", "keep_models"),
)
OF_EVALUATION = ("tasks", "every", *EVALUATION_OPTIONS)
EVALUATIONS = 10
"""Evaluations of a run where the study does not say after how many updates."""

_OF_RECIPE = ("eval_benchmarks", "eval_benchmark_steps", "eval_benchmark_kwargs")
"""Set by compare, to what the recipe has where the study does not say otherwise."""
_NOT_HERE = (
    "preset",
    "resume",
    "resume_from_checkpoint",
    "overwrite_output_dir",
    "record_overwrite",
    "dry_run",
    "gpu",
    "num_gpus",
    "accelerate_config",
)


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a study file or the flags say, before it is checked.

    Attributes:
        name: of the study.
        config: options of `dgpo train`, as entries of a file.
        flags: further ones, from the command line.
        objectives: as written.
        evaluation: task names and options.
    """

    name: str
    config: Mapping[str, Entry]
    objectives: Sequence[str]
    seeds: tuple[int, ...]
    flags: tuple[str, ...] = ()
    settings: Mapping[str, tuple[str, ...]]
    baseline: str | None
    tune: Mapping[str, tuple[str, ...]]
    tuning_seeds: tuple[int, ...]
    criterion: str
    evaluation: Mapping[str, Any]
    keep_models: bool
    out: str | None


# --- reading ---------------------------------------------------------------------------------------------------------


def read(path: Path) -> Given:
    """The study of a file.

    Raises:
        UserError: what `yaml_file.read` raises; an unknown or missing key; a value of the wrong kind.
    """
    entries = yaml_file.read(path)
    if "objectives" not in entries and "config" not in entries:
        raise UserError(f"{str(path)!r} has no 'config' and no 'objectives': a recipe is given as --config {path}")
    _known(entries, KEYS, "a study")
    for key in ("config", "objectives", "seeds"):
        if key not in entries:
            raise UserError(f"{str(path)!r} has no {key!r}; a study needs config, objectives and seeds")
    return Given(
        name=path.stem,
        config=_config(entries["config"]),
        objectives=[_objective(item) for item in _items(entries["objectives"])],
        seeds=_seeds_in(entries["seeds"]),
        settings=_axes(entries.get("settings")),
        baseline=_text(entries["baseline"]) if "baseline" in entries else None,
        tune=_axes(entries.get("tune")),
        tuning_seeds=_seeds_in(entries["tuning_seeds"]) if "tuning_seeds" in entries else (),
        criterion=_text(entries["criterion"]) if "criterion" in entries else "final",
        evaluation=_evaluation(entries.get("evaluation")),
        keep_models=_switch(entries["keep_models"]) if "keep_models" in entries else True,
        out=_text(entries["out"]) if "out" in entries else None,
    )


def _config(entry: Entry) -> dict[str, Entry]:
    """The options of a recipe: its file, relative to the study, or a mapping, which may have a `base`."""
    if entry.kind == "mapping":
        return yaml_file.with_base(entry)
    file = entry.path.parent / _text(entry)
    if not file.is_file():
        raise UserError(f"config = {entry.text!r} in {entry.where}: no such file: {str(file)!r}")
    return yaml_file.read(file)


def _known(entries: Mapping[str, Entry], known: Sequence[str], what: str) -> None:
    for key, entry in entries.items():
        if key not in known:
            hint = did_you_mean(key, known)
            raise UserError(f"unknown key {key!r} in {entry.where}{hint}; keys of {what}: {', '.join(known)}")


def _text(entry: Entry) -> str:
    if entry.kind != "text":
        raise UserError(f"{entry.where}: expected one value, got {'none' if entry.kind == 'nothing' else entry.kind}")
    return entry.text


def _switch(entry: Entry) -> bool:
    value = entry.value()
    if not isinstance(value, bool):
        raise UserError(f"{entry.where}: {value!r}; expected true or false")
    return value


def _items(entry: Entry) -> list[Entry]:
    """The elements of a list, or the value itself."""
    return entry.items() if entry.kind == "list" else [entry]


def _objective(entry: Entry) -> str:
    return json.dumps(entry.value()) if entry.kind == "mapping" else _text(entry)


def _seeds_in(entry: Entry) -> tuple[int, ...]:
    try:
        return seeds(" ".join(_text(item) for item in _items(entry)))
    except ValueError as error:
        raise UserError(f"{entry.where}: {error}") from error


def seeds(text: str) -> tuple[int, ...]:
    """Seeds of `0-4`, `0,2,5` or `0-2 7`. Raises ValueError if it is none of these."""
    found: list[int] = []
    for word in re.split(r"[,\s]+", text.strip()):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", word)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f"seeds {text!r}: cannot use {word!r}; expected numbers and ranges, such as 0-4 or 0,2,5")
        if int(match[2] or match[1]) - int(match[1]) >= 10_000:
            raise ValueError(f"seeds {text!r}: {word!r} is more than 10,000 seeds")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return tuple(found)


def _axes(entry: Entry | None) -> dict[str, tuple[str, ...]]:
    if entry is None or entry.kind == "nothing":
        return {}
    if entry.kind != "mapping":
        raise UserError(
            f"{entry.where}: expected a mapping of options to lists, such as {{learning_rate: [5e-5, 1e-4]}}"
        )
    axes = {}
    for name, values in entry.entries().items():
        axes[name] = tuple(_text(item) for item in _items(values))
        _check_axis(name, axes[name], values.where)
    return axes


def axes_of_flags(given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The axes of `NAME=VALUE,VALUE ...`. Raises UserError for anything else."""
    axes: dict[str, tuple[str, ...]] = {}
    for word in given:
        name, equals, values = word.partition("=")
        if not (name and equals and values) or name in axes:
            raise UserError(f"cannot use {word!r}; expected NAME=VALUE,VALUE, each name once")
        axes[name] = tuple(values.split(","))
        _check_axis(name, axes[name], repr(word))
    return axes


def _check_axis(name: str, values: tuple[str, ...], where: str) -> None:
    if name in SET_BY_COMPARE:
        how = "list it under objectives" if name.startswith("objective") else "dgpo compare sets it"
        raise UserError(f"{where}: {name} cannot be varied here; {how}")
    if not values or len(set(values)) < len(values):
        raise UserError(f"{where}: {name} has the values {', '.join(values) or 'none'}; expected each value once")


def objectives_of_flag(text: str) -> list[str]:
    """The objectives of `dgpo:n=2,m=2,grpo`: a part with `=` and without a colon is a field of the one before."""
    found: list[str] = []
    for part in text.split(","):
        if found and "=" in part and ":" not in part:
            found[-1] += f",{part}"
        else:
            found.append(part.strip())
    return found


def _evaluation(entry: Entry | None) -> dict[str, Any]:
    if entry is None or entry.kind == "nothing":
        return {}
    if entry.kind != "mapping":
        raise UserError(f"{entry.where}: evaluation is a {entry.kind}; expected a mapping such as {{samples: 4}}")
    entries = entry.entries()
    _known(entries, OF_EVALUATION, "evaluation")
    found = {key: value.value() for key, value in entries.items() if key != "tasks"}
    if "tasks" in entries:
        found["tasks"] = [_text(item) for item in _items(entries["tasks"])]
    return found


# --- checking --------------------------------------------------------------------------------------------------------


def study_of(given: Given) -> Study:
    """The study, complete; every arm and every value that is tuned has been checked as `dgpo train` would.

    Raises:
        UserError: anything that a run would refuse before it loads its model; runs of different lengths; what `Study`
            raises.
    """
    for name in _NOT_HERE:
        if name in given.config and given.config[name].kind != "nothing":
            how = "write aggregation and advantage instead" if name == "preset" else "remove the key"
            raise UserError(f"{name} in {given.config[name].where} cannot be an option of a study; {how}")
    with user_input():
        arms = _arms(given)
        if both := sorted(set(given.settings) & set(given.tune)):
            raise ValueError(f"{both[0]} is in settings and in tune; expected it in one of them")
    config = {name: entry for name, entry in given.config.items() if _stays(name)}
    every_value: list[Setting] = list(product(given.tune)[:1])
    every_value += [{name: value} for name, values in given.tune.items() for value in values[1:]]
    trials = [{**arm.options, **every_value[0]} for arm in arms]
    trials += [{**arms[0].options, **setting} for setting in every_value[1:]]
    more = as_options(given.flags)
    with _first_warning_only():
        found = [checked([*given.flags, *_as_flags(trial)], config) for trial in trials]
    updates = _same_updates(found, [words(trial) for trial in trials])
    per_generation = math.lcm(*(max(1, round(one.config.updates_per_generation)) for one in found))
    evaluation = dict(given.evaluation)
    every = evaluation.pop("every", None)
    if every is None and "eval_benchmark_steps" in (*config, *more):
        every = found[0].config.eval_benchmark_steps
    elif every is None:
        every = per_generation * math.ceil(updates / EVALUATIONS / per_generation)
    if isinstance(every, bool) or not isinstance(every, int) or not every >= 1:
        raise UserError(f"evaluation: every = {every!r}; expected a whole number of updates >= 1")
    names = evaluation.pop("tasks", found[0].config.eval_benchmarks or None)
    names = _own_task(found) if names is None else names
    with user_input():
        if not names or len(set(names)) < len(names):
            raise ValueError(f"evaluation: tasks = {', '.join(names) or 'none'}; expected at least one, each once")
        for name in names:
            tasks.options(name)
        options = {
            **{name: entry.plain for name, entry in config.items() if name != "env"},
            **_environment(config),
            **more,
            "disable_tqdm": "true",
            # the metrics are all that is read of a recording: the tokens of one update
            "record_every": str(updates),
            "save_strategy": "steps",
            # a checkpoint inside a generation would sample it again
            "save_steps": str(per_generation * math.ceil(every / per_generation)),
            "save_total_limit": "1",
            "eval_benchmarks": list(names),
            "eval_benchmark_steps": str(every),
            "eval_benchmark_on_start": "true",
        }
        kwargs = {**found[0].config.eval_benchmark_options(), **evaluation}
        options["eval_benchmark_kwargs"] = {**kwargs, "samples": _samples(found, names, kwargs)}
        study = Study(
            name=given.name,
            options=options,
            arms=tuple(arms),
            seeds=given.seeds,
            baseline=_baseline(given, arms),
            updates=updates,
            every=every,
            tune=given.tune,
            tuning_seeds=given.tuning_seeds,
            criterion=given.criterion,  # type: ignore[arg-type]  # checked there
            keep_models=given.keep_models,
        )
    return study


def _stays(name: str) -> bool:
    """Whether a training option is taken from the recipe or the flags."""
    return name in _OF_RECIPE or name not in (*SET_BY_COMPARE, *_NOT_HERE)


def _arms(given: Given) -> list[Arm]:
    if not given.objectives:
        raise ValueError("objectives: none; expected at least two arms to compare")
    found = []
    for spec in given.objectives:
        method = label(objectives.make(spec))
        for setting in product(given.settings):
            full = f"{method}, {words(setting)}" if setting else method
            found.append(Arm(label=full, options={"objective": method, **setting}))
    return found


def _baseline(given: Given, arms: Sequence[Arm]) -> str:
    """The label that `baseline` means: a label, or an objective that one arm has; by default the first arm."""
    if given.baseline is None:
        return arms[0].label
    if given.baseline in [arm.label for arm in arms]:
        return given.baseline
    try:
        method = label(objectives.make(given.baseline))
    except ValueError:
        return given.baseline  # `Study` says what it may be
    of_it = [arm.label for arm in arms if arm.options["objective"] == method]
    return of_it[0] if len(of_it) == 1 else given.baseline


def _own_task(found: Sequence[Settings]) -> list[str]:
    how = "evaluation: {tasks: [gsm8k]} in a study or --eval_benchmarks gsm8k"
    args = found[0].args
    if args.task is None:
        raise UserError(
            f"dataset = {args.dataset!r} has nothing to evaluate on; name tasks or benchmarks (`dgpo tasks` lists "
            f"them), {how}"
        )
    if len(trained_on := dict.fromkeys(str(one.args.task) for one in found)) > 1:
        raise UserError(f"the runs train on {' and '.join(trained_on)}; name what all are evaluated on, {how}")
    return [args.task]


def _samples(found: Sequence[Settings], names: Sequence[str], kwargs: Mapping[str, Any]) -> int:
    """The samples of each problem.

    Raises:
        ValueError: what the first evaluation would refuse without a model; runs that would sample it differently.
    """
    samplings = []
    for one in found:
        config = copy.copy(one.config)
        config.eval_benchmarks, config.eval_benchmark_kwargs = list(names), dict(kwargs)
        samplings.append(asdict(sampling_of(config)))
    for other in samplings:
        if changed := differences(samplings[0], other):
            raise ValueError(
                "the runs would not be evaluated alike, as an evaluation samples as training does: "
                f"{'; '.join(changed)}. Give one value to all, in evaluation of the study or in eval_benchmark_kwargs"
            )
    samples: int = samplings[0]["samples"]
    if not samples and not kwargs.get("greedy"):
        raise ValueError("evaluation: samples = 0 leaves nothing to score; give samples >= 1, or greedy: true")
    return samples


def _same_updates(found: Sequence[Settings], told: Sequence[str]) -> int:
    counts = [count for one in found if (count := updates_of(one)) is not None]
    if len(counts) < len(found):
        raise UserError("the number of updates depends on data that is not available here; set max_steps in config")
    for count, what in zip(counts, told, strict=True):
        if count != counts[0]:
            raise UserError(
                f"{what} makes {counted(count, 'update')}, and {told[0]} makes {counts[0]}; expected the same number "
                "in every run: set max_steps in config"
            )
    return counts[0]


def _as_flags(options: Mapping[str, str]) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def as_options(flags: Sequence[str]) -> dict[str, Any]:
    """Flags of `dgpo train` as keys of its file; a flag without a value is true, and `--no_x` is `x: false`."""
    types: tuple[Any, ...] = (TrainArguments, ModelArguments, DGPOConfig)
    known = {field.name for cls in types for field in dataclasses.fields(cls)}
    given: dict[str, list[str]] = {}
    of_flag: list[str] = []
    for word in flags:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            of_flag = given[name.replace("-", "_")] = [value] if equals else []
        elif not given:
            raise UserError(f"cannot use {word!r}; expected flags of `dgpo train`, --NAME VALUE")
        else:
            of_flag.append(word)
    found: dict[str, Any] = {}
    for name, of_flag in given.items():
        off = name not in known and name.removeprefix("no_") in known
        key = name.removeprefix("no_") if off else name
        if not _stays(key):
            raise UserError(f"--{name} cannot be given here: dgpo compare sets it")
        found[key] = "false" if off else of_flag if len(of_flag) > 1 else (of_flag or ["true"])[0]
    return found


def _environment(config: Mapping[str, Entry]) -> dict[str, Any]:
    """The variables of `env:`, which were checked when they were set."""
    entry = config.get("env")
    if entry is None or entry.kind == "nothing":
        return {}
    return {"env": {name: variable.text for name, variable in entry.entries().items()}}


@contextmanager
def _first_warning_only() -> Iterator[None]:
    """What is warned of every arm is said once."""
    with warnings.catch_warnings(record=True) as caught:
        yield
    for _, of_line in itertools.groupby(sorted(caught, key=_line), key=_line):
        first = next(of_line)
        warnings.warn_explicit(first.message, first.category, first.filename, first.lineno)


def _line(caught: warnings.WarningMessage) -> tuple[str, int]:
    return caught.filename, caught.lineno
