"""Two runs of the real trainer, recorded, with an evaluation beside them; and a run whose every word is an attack."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
from browsing import CHROMIUM, opened
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from dgpo.evaluation.estimates import Estimate
from dgpo.files import write_json_atomic
from dgpo.report import write_report
from dgpo.runs.results import BenchmarkResult, Evaluation
from dgpo.tasks import Addition
from dgpo.training import DGPOConfig, DGPOTrainer
from dgpo.training.starter import character_tokenizer, tiny_model

ATTACK = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>"


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """24 updates each, 4 per generation: dgpo with n = 2, and grpo."""
    folder = tmp_path_factory.mktemp("runs")
    tokenizer = character_tokenizer()
    tiny_model(tokenizer, hidden=32, layers=2, seed=0).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")

    def digits(completions: list[str], **kwargs: object) -> list[float]:
        return [sum(c.isdigit() for c in text) / max(len(text), 1) for text in completions]

    made = []
    for name, objective in (("first", {"n": 2}), ("second", {})):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            DGPOTrainer(
                AutoModelForCausalLM.from_pretrained(folder / "tiny"),
                digits,
                DGPOConfig(
                    output_dir=str(folder / "out"),
                    record=str(folder / name),
                    objective="dgpo" if objective else "grpo",
                    objective_kwargs=objective,
                    per_device_train_batch_size=8,
                    num_generations=4,
                    steps_per_generation=4,
                    max_completion_length=6,
                    learning_rate=5e-3,
                    max_steps=24,
                    logging_steps=1,
                    bf16=False,
                    use_cpu=True,
                    gradient_checkpointing=False,
                    save_strategy="no",
                    report_to=[],
                    disable_tqdm=True,
                    dataloader_pin_memory=False,
                    seed=7,
                ),
                train_dataset=Addition().dataset("train").select(range(64)),
                processing_class=AutoTokenizer.from_pretrained(folder / "tiny"),
            ).train()
        made.append(folder / name)
    return made


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of an evaluation."""
    found = BenchmarkResult(
        problems=500,
        grader="1",
        data={},
        estimates={
            "greedy": Estimate(value=0.8, low=0.76, high=0.84, se=0.02),
            "avg@8": Estimate(value=0.5, low=0.47, high=0.53, se=0.015),
        },
        rates={},
        per_problem=[],
        excluded=[],
    )
    folder = tmp_path_factory.mktemp("evaluations") / "after"
    evaluation = Evaluation(
        model="tiny",
        backend={},
        sampling={},
        prompt={},
        versions={},
        benchmarks={"addition": found},
        average={},
        timing={"seconds": 1.0, "completions": 4000},
        generations=[],
    )
    write_json_atomic(folder / "results.json", evaluation.document())
    return folder


@pytest.fixture(scope="session")
def report(runs: list[Path], results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the two runs."""
    return write_report(runs, tmp_path_factory.mktemp("report") / "report.html", evaluation=[results])


@pytest.fixture(scope="session")
def hostile(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a run whose folder, names, settings, metrics and tokens all try to become HTML."""
    folder = tmp_path_factory.mktemp("hostile") / "<img src=x onerror=window.hacked=1>"
    shutil.copytree(runs[0], folder)
    info = json.loads((folder / "run.json").read_text())
    info["model"]["name"] = ATTACK
    info["config"] |= {ATTACK: ATTACK, "{{script}}": "{{data}}"}
    (folder / "run.json").write_text(json.dumps(info))
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        for step in (25, 26):
            file.write(json.dumps({"step": step, f"eval/{ATTACK}/avg@8": 0.5, f"eval/{ATTACK}/avg@8_se": 0.1}) + "\n")
    size = len(AutoTokenizer.from_pretrained(folder / "tokenizer"))
    shutil.rmtree(folder / "tokenizer")
    words = {f"{ATTACK}{i}": i for i in range(size)}
    tokenizer = Tokenizer(WordLevel(words, unk_token=next(iter(words))))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright, which drives the browser, is missing")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, headless=True)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def shared(browser, report):
    problems = []
    return opened(browser, report, problems), problems


@pytest.fixture
def page(shared):
    """The report, wide and light; a test leaves it as it found it."""
    page, problems = shared
    yield page
    assert problems == []


@pytest.fixture
def open_page(browser):
    """A page of its own."""
    problems, pages = [], []

    def open_page(path, **look):
        pages.append(opened(browser, path, problems, **look))
        return pages[-1]

    yield open_page
    for page in pages:
        page.context.close()
    assert problems == []
