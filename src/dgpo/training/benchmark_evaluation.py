"""Benchmarks during training: the model of the moment, evaluated by the code of `dgpo eval`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback
from trl.models.utils import unwrap_model_for_generation

from dgpo import tasks
from dgpo.evaluation import Evaluation, Sampling, Suite, TransformersBackend, write
from dgpo.evaluation.grading import graded_rows
from dgpo.evaluation.prompts import encode
from dgpo.evaluation.suite import Slot, plan
from dgpo.evaluation.summary import summary
from dgpo.grading import MathGrader
from dgpo.runs.results import RATES
from dgpo.tasks.prompt import describe_all
from dgpo.tasks.task import grader_of
from dgpo.training.config import DGPOConfig


class BenchmarkEvaluation(TrainerCallback):
    """Evaluates every `eval_benchmark_steps` updates, at the end, and with `eval_benchmark_on_start` before the first.

    Logged are `eval/BENCHMARK/avg@k` and the like, the standard error as `.../avg@k_se`, and the rates `truncated`,
    `no_answer`, `unparsed`, `guarded`, `timeout`, `bad_gold` and `mean_tokens`. On the disk: `output_dir/eval/STEP`,
    with the files of `dgpo eval`. Problems are shared out among the ranks. Weights that are sharded over ranks (FSDP,
    ZeRO-3) are gathered by TRL's context manager where it can; that was not run.

    Args:
        config: of the run, with `eval_benchmarks`.
        tokenizer: of the model.
        model: the model as it is wrapped now.
        log: takes metrics by name.
        accelerator: of the run.

    Raises:
        ImportError: math-verify is not installed.
        ValueError: an unknown benchmark or option, problems that do not load, a setting out of range, a benchmark
            twice, nothing to generate, chats for a tokenizer without a chat template.
    """

    def __init__(
        self,
        config: DGPOConfig,
        tokenizer: Any,
        model: Callable[[], Any],
        log: Callable[[dict[str, float]], None],
        accelerator: Any,
    ) -> None:
        assert config.eval_benchmarks
        self._output_dir = config.output_dir
        self._tokenizer, self._model, self._log, self._accelerator = tokenizer, model, log, accelerator
        options = config.eval_benchmark_options()
        self.every, self.on_start = config.eval_benchmark_steps, config.eval_benchmark_on_start
        self.greedy = bool(options.get("greedy", False))
        self.batch_size = options.get("batch_size", 64)
        limit, data_dir, chat = (options.get(name) for name in ("limit", "data_dir", "chat"))
        self.tasks = [self._make(name, data_dir, chat) for name in config.eval_benchmarks]
        self.sampling = sampling_of(config)
        self._problems = [task.problems("test")[:limit] for task in self.tasks]
        self._done = -1
        # at construction, not after hours of training
        self._check()

    def _check(self) -> None:
        """Whatever the first evaluation would refuse."""
        self._backend(self._model())
        with closing(MathGrader()) as grader:
            suites = self._suites(grader)
            plan(suites, self.sampling, self.greedy)
        encode(self._tokenizer, [suite.problems[0]["prompt"] for suite in suites])

    def _suites(self, grader: MathGrader) -> list[Suite]:
        return [
            Suite(task.name, problems, grader_of(task) or grader, task.provenance("test"))
            for task, problems in zip(self.tasks, self._problems, strict=True)
        ]

    def _backend(self, model: Any) -> TransformersBackend:
        if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int):
            raise ValueError(f"eval_benchmark_kwargs: batch_size = {self.batch_size!r}; expected a whole number")
        return TransformersBackend(model, self._tokenizer, batch_size=self.batch_size)

    def _make(self, name: str, data_dir: str | None, chat: bool | None) -> tasks.Task:
        known = tasks.options(name)
        if chat is None:
            chat = self._tokenizer.chat_template is not None
        given = {"data_dir": data_dir, "chat": chat}
        return tasks.make(name, **{option: value for option, value in given.items() if option in known})

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # not on_train_begin, where a recording has not begun yet
        if self.on_start and state.global_step == 0 and self._done < 0:
            self.evaluate(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            due = control.should_log
            self.evaluate(state.global_step)
            control.should_log = due  # our own log has cleared it, and training has not logged this step yet

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # the last update may have been evaluated by on_step_end
        if state.global_step != self._done:
            self.evaluate(state.global_step)

    def evaluate(self, step: int) -> Evaluation:
        """Evaluate now; logs, writes the files, and returns the same on every rank."""
        started = time.perf_counter()
        with closing(MathGrader()) as grader:  # its workers start only if an answer needs one
            suites = self._suites(grader)
            slots = plan(suites, self.sampling, self.greedy)
            rows = self._rows(slots)
            run = {
                "model": f"{self._output_dir} at update {step}",
                "backend": {"kind": "transformers", "batch_size": self.batch_size},
                "sampling": {**asdict(self.sampling), "greedy": self.greedy},
                "prompt": describe_all([task.prompt for task in self.tasks], self._tokenizer),
                "benchmarks": {suite.name: {"grader": suite.grader.version, "data": suite.data()} for suite in suites},
            }
            timing = {"completions": len(rows), "seconds": time.perf_counter() - started}
            evaluation = summary(suites, run, rows, None, timing)
        if self._accelerator.is_main_process:
            write(evaluation, Path(self._output_dir, "eval", str(step)))
        self._log(metrics(evaluation))
        self._done = step
        return evaluation

    def _rows(self, slots: Sequence[Slot]) -> list[dict[str, Any]]:
        """One row per slot, in order; every rank generates and grades its share of the problems."""
        accelerator = self._accelerator
        # every k-th, so that each rank gets a share of every benchmark
        mine = [slot for slot in slots if slot.index % accelerator.num_processes == accelerator.process_index]
        # one context for all tokens: autocast casts the weights once in each
        with unwrap_model_for_generation(self._model(), accelerator) as model, accelerator.autocast():
            backend = self._backend(model)
            requests = [slot.request(self.sampling.seed) for slot in mine]
            rows = [
                row
                for group in backend.complete(requests, self.sampling)
                for row in graded_rows([(mine[position], completion) for position, completion in group])
            ]
        order = {slot.key: place for place, slot in enumerate(slots)}
        # a collective; then into the order of the slots, whichever rank a row came from
        gathered: list[dict[str, Any]] = gather_object(rows)
        return sorted(gathered, key=lambda row: order[row["benchmark"], row["id"], row["sample"]])


def sampling_of(config: DGPOConfig) -> Sampling:
    """How it is sampled: as in training, where the options of the evaluation do not say otherwise.

    Raises:
        ValueError: an option out of range; an unknown one.
    """
    options = config.eval_benchmark_options()
    limit = options.get("limit")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"eval_benchmark_kwargs: limit = {limit!r}; expected a whole number >= 1")
    usual = {
        "samples": 4,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_new_tokens": config.max_completion_length,
        "seed": Sampling.seed,
    }
    return Sampling(**{name: options.get(name, value) for name, value in usual.items()})


def metrics(evaluation: Evaluation) -> dict[str, float]:
    """What is logged: estimates with their standard errors, and rates, by benchmark."""
    found: dict[str, float] = {}
    for name, result in evaluation.benchmarks.items():
        for key, estimate in result.estimates.items():
            found[f"eval/{name}/{key}"] = estimate.value
            found[f"eval/{name}/{key}_se"] = estimate.se
        for key in ("truncated", "mean_tokens", *RATES):
            if (rate := result.rates[key]) is not None:
                found[f"eval/{name}/{key}"] = rate
    return found
