"""`dgpo eval`: avg@k, pass@k and more of a model, or of saved completions, with intervals over problems."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console

from dgpo.cli.arguments import parse
from dgpo.cli.errors import user_input
from dgpo.cli.eval_arguments import EvalArguments
from dgpo.cli.models import load_model, load_tokenizer
from dgpo.cli.parser import Parser
from dgpo.cli.suites import load_problems
from dgpo.evaluation import (
    Backend,
    Evaluation,
    OpenAIBackend,
    TransformersBackend,
    VLLMBackend,
    evaluate,
    evaluate_saved,
    table,
)
from dgpo.evaluation.backends.openai import TIMEOUT


def parser() -> Parser:
    """The flags of `dgpo eval`."""
    return Parser([EvalArguments], prog="dgpo eval", description=__doc__ or "")


def run(argv: list[str]) -> int:
    """Run `dgpo eval argv`."""
    (args,) = parse(parser(), argv)
    with user_input():
        args.check()
    with ExitStack() as stack:
        evaluation, folder = _generate(args, stack) if args.generations is None else _grade(args, stack)
    Console().print(table(evaluation))
    print(f"{folder / 'results.json'}\n{folder / 'generations.jsonl'}")
    return 0


def _generate(args: EvalArguments, stack: ExitStack) -> tuple[Evaluation, Path]:
    assert args.model is not None
    with user_input():
        tokenizer = None if args.backend == "openai" else load_tokenizer(args.model)
        problems = load_problems(args, tokenizer, stack)
        backend = stack.enter_context(_backend(args, args.model))
    if (note := args.note_of_plain_text(problems.suites[0].problems[0]["prompt"], tokenizer)) is not None:
        print(note, flush=True)
    folder = args.folder(problems.name)
    with user_input((ValueError, OSError)), _told(folder):
        evaluation = evaluate(
            problems.suites,
            backend,
            args.sampling(problems.max_new_tokens),
            out=folder,
            greedy=args.with_greedy(),
            ks=args.ks,
            prompt=problems.prompt,
        )
    return evaluation, folder


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Say on an interrupt where the progress is."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nprogress is saved in {folder}; rerun the same command to resume", flush=True)
        raise


def _grade(args: EvalArguments, stack: ExitStack) -> tuple[Evaluation, Path]:
    assert args.generations is not None
    with user_input():
        problems = load_problems(args, None, stack)
        folder = args.folder(problems.name)
        evaluation = evaluate_saved(args.generations, problems.suites, out=folder, ks=args.ks)
    return evaluation, folder


def _backend(args: EvalArguments, model: str) -> Backend:
    if args.backend == "transformers":
        loaded, tokenizer = load_model(model, args.dtype)
        size = args.batch_size or (32 if args.benchmarks else 256)
        return TransformersBackend(loaded, tokenizer, batch_size=size, name=model)
    if args.backend == "vllm":
        return VLLMBackend(model, dtype=args.dtype, group_size=args.batch_size or 2048)
    assert args.base_url is not None
    return OpenAIBackend(
        model,
        base_url=args.base_url,
        api_key_env=args.api_key_env,
        concurrency=args.batch_size or 32,
        timeout=TIMEOUT if args.timeout is None else args.timeout,
    )
