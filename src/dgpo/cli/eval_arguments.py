"""The flags of `dgpo eval`, and what follows from them before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dgpo import tasks
from dgpo.cli.arguments import argument
from dgpo.cli.data import DataArguments
from dgpo.evaluation import Sampling
from dgpo.evaluation.summary import require_ks
from dgpo.redaction import redacted
from dgpo.tasks.prompt import BOXED, PROMPTS, PromptFormat


@dataclass(kw_only=True)
class EvalArguments(DataArguments):
    """Arguments of `dgpo eval`."""

    model: str | None = argument(None, "Model: a folder, a hub name, or its name on the server.")
    benchmarks: list[str] | None = argument(
        None, "Benchmarks or other tasks, instead of --task or --dataset; `dgpo tasks` lists them."
    )
    exclude_known_wrong: bool = argument(
        False, "Leave out benchmark problems whose reference answer is known to be wrong."
    )
    prompt: Literal["boxed", "plain"] | None = argument(None, "Prompt of benchmark problems: boxed (default) or plain.")
    grader: Literal["exact", "math"] | None = argument(
        None, "For data sets: exact (equal text or rational number; default) or math (mathematically equal)."
    )
    generations: str | None = argument(None, "JSONL file of completions to grade, instead of --model.")
    samples: int | None = argument(
        None, "Sampled completions per problem, the k of avg@k (default 8; 32 with --benchmarks)."
    )
    temperature: float | None = argument(None, "Sampling temperature (default 1; 0.6 with --benchmarks).")
    top_p: float | None = argument(None, "Nucleus sampling: top-p (default 1; 0.95 with --benchmarks).")
    max_new_tokens: int | None = argument(
        None, "Longest completion in tokens (default: the budget of the task or benchmark; 512 for data sets)."
    )
    greedy: bool = argument(False, "Add one greedy completion per problem (default, except with --benchmarks).")
    no_greedy: bool = argument(False, "Leave out the greedy completions.")
    ks: list[int] | None = argument(
        None, "The k of pass@k (default: the powers of two below --samples, and --samples)."
    )
    seed: int = argument(0, "Sampling seed (default 0).")
    limit: int | None = argument(None, "Evaluate only the first N problems of each benchmark.")
    backend: Literal["transformers", "vllm", "openai"] = argument(
        "transformers", "Inference engine; openai: any server with an OpenAI-compatible API."
    )
    batch_size: int | None = argument(
        None, "Completions at a time (default: transformers 256, or 32 with --benchmarks; openai 32; vllm 2048)."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = argument(
        "auto", "Dtype of the weights. auto: as saved, but bfloat16 in place of float32 on a GPU."
    )
    base_url: str | None = argument(None, "Address of the server, such as http://127.0.0.1:8000/v1.")
    api_key_env: str | None = argument(
        None, "Environment variable that holds the API key (default OPENAI_API_KEY, if it is set)."
    )
    timeout: float | None = argument(
        None, "Timeout of one request in seconds, time in the server's queue included (default 3600)."
    )
    out: str | None = argument(
        None,
        "Output folder for results.json, results.md, generations.jsonl and run.json; rerun the same "
        "command to resume. Default: eval-NAME in the model's folder, or in outputs/MODEL for a hub model or "
        "a server; eval-NAME-FILE beside the file of --generations.",
    )

    def check(self) -> None:
        """Check the flags, before anything is loaded.

        Raises:
            ValueError: flags that are missing, contradict each other or have no meaning together, or are out of range.
        """
        if bool(self.benchmarks) + (self.task is not None) + (self.dataset is not None) != 1:
            raise ValueError(
                f"give either --task or --dataset or --benchmarks; got task = {self.task!r}, dataset = "
                f"{self.dataset!r}, benchmarks = {self.benchmarks!r}"
            )
        self._check_problems()
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit = {self.limit} is not allowed; expected >= 1")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size = {self.batch_size} is not allowed; expected >= 1")
        if self.generations is not None:
            self._without_meaning(
                "generating completions, and --generations grades existing completions",
                *("model", "samples", "temperature", "top_p", "max_new_tokens", "greedy", "no_greedy"),
                *("batch_size", "base_url", "api_key_env", "timeout"),
            )
            return
        if self.model is None:
            raise ValueError("the following arguments are required: --model (or --generations)")
        if self.backend != "openai":
            self._without_meaning("--backend openai", "base_url", "api_key_env", "timeout")
        elif self.base_url is None:
            raise ValueError("backend = 'openai' needs the server's address: --base-url http://127.0.0.1:8000/v1")
        if self.greedy and self.no_greedy:
            raise ValueError("greedy and no_greedy contradict each other; give one of them")
        if self.sampling(1).samples == 0 and not self.with_greedy():
            raise ValueError("samples = 0 with no_greedy leaves nothing to generate; drop one of them")
        sampling = self.sampling(1)
        require_ks(self.ks, sampling.samples)

    def sampling(self, budget: int) -> Sampling:
        """How to sample; `budget` is the longest completion where no flag gives it."""
        samples, temperature, top_p = (32, 0.6, 0.95) if self.benchmarks else (8, 1.0, 1.0)
        return Sampling(
            samples=samples if self.samples is None else self.samples,
            temperature=temperature if self.temperature is None else self.temperature,
            top_p=top_p if self.top_p is None else self.top_p,
            max_new_tokens=budget if self.max_new_tokens is None else self.max_new_tokens,
            seed=self.seed,
        )

    def names(self) -> list[str]:
        """Names of the tasks; none for a data set."""
        return self.benchmarks or ([self.task] if self.task is not None else [])

    def with_greedy(self) -> bool:
        """Whether there is a greedy completion per problem."""
        if self.greedy or self.no_greedy:
            return self.greedy
        return not self.benchmarks or self.samples == 0

    def prompt_format(self, tokenizer: Any) -> PromptFormat:
        """The prompt of benchmark problems for this tokenizer; None for a server."""
        base = PROMPTS[self.prompt] if self.prompt is not None else BOXED
        template = base.template
        if self.prompt_template is not None:
            # data sets call it {prompt}
            name, template = "custom", self.prompt_template.replace("{prompt}", "{problem}")
        else:
            name = base.name
        asked = True if self.chat else False if self.no_chat else None
        # a server is assumed to have a chat template: it has no tokenizer to ask
        chat = True if asked is None and tokenizer is None else asked
        form = PromptFormat(name=name, template=template, chat=chat)
        return form if tokenizer is None else form.resolve(tokenizer)

    def folder(self, name: str) -> Path:
        """Where the results go."""
        if self.out is not None:
            return Path(self.out)
        if self.generations is not None:
            file = Path(self.generations)
            # beside the file and under its name: the grades of two files are two results
            return file.parent / f"eval-{name}-{file.stem}{'' if self.limit is None else f'-first{self.limit}'}"
        assert self.model is not None
        # transformers would take a folder with the name of a hub model for the model
        beside = Path(self.model) if Path(self.model).is_dir() else Path("outputs", Path(self.model).name)
        # a quick look at a few problems must not overwrite the full result
        return beside / (f"eval-{name}" if self.limit is None else f"eval-{name}-first{self.limit}")

    def _check_problems(self) -> None:
        if self.prompt is not None and self.prompt_template is not None:
            raise ValueError(
                f"prompt = {self.prompt!r} and prompt_template = {self.prompt_template!r} exclude each other; give one"
            )
        if self.chat and self.no_chat:
            raise ValueError("chat and no_chat contradict each other; give one of them")
        if self.dataset is not None:
            self._without_meaning("benchmarks", "data_dir", "exclude_known_wrong", "prompt", "no_chat")
            return
        self._without_meaning("--dataset", "dataset_config", "dataset_split", "columns", "grader")
        known = {option for name in self.names() for option in tasks.options(name)}
        for option, flags in (
            ("prompt", ("prompt", "prompt_template", "chat", "no_chat")),
            ("data_dir", ("data_dir",)),
            ("exclude_known_wrong", ("exclude_known_wrong",)),
        ):
            if option not in known:
                self._without_meaning(f"benchmarks, and {', '.join(self.names())} makes its own problems", *flags)

    def _without_meaning(self, where: str, *names: str) -> None:
        for name in names:
            if value := getattr(self, name):
                shown = redacted(repr(value))
                raise ValueError(f"{name} = {shown} has no meaning here: it is for {where}")
