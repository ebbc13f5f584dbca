"""The README stays short, its code runs as it stands, its commands are understood, its links and figures are right."""

from __future__ import annotations

import functools
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dgpo import objectives

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PLAIN = " ".join(TEXT.split())
SCRIPT, GPU, OWN = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
RESULTS = ROOT / "benchmarks" / "results"


def commands() -> list[list[str]]:
    """The lines of the console blocks, as words, without comments; a line that ends in a backslash goes on."""
    blocks = re.findall(r"^```console\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    assert all(line.startswith("$ ") for line in lines)
    return [shlex.split(line[2:], comments=True) for line in lines]


def of_dgpo(name: str) -> list[list[str]]:
    """The arguments of every `dgpo NAME` of the console blocks."""
    return [words[2:] for words in commands() if words[:2] == ["dgpo", name]]


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= 180


def test_it_counts_the_methods() -> None:
    made = {name: objectives.make(name) for name in objectives.OBJECTIVES}
    assert f"prints all {len(made)} with their fields" in PLAIN
    assert f"DGPO, MASPO, GRPO, CISPO or any of {len(made) - 4} other objectives" in PLAIN
    assert f"| objectives | {len(made)}, or a class of yours |" in TEXT
    penalised = re.search(r"((?:`\w+`, )+`\w+` and `\w+`) also subtract a penalty", PLAIN)
    assert penalised is not None
    assert set(re.findall(r"`(\w+)`", penalised[1])) == {name for name, one in made.items() if one.penalises}


def test_links_lead_somewhere() -> None:
    for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)", TEXT):
        page = ROOT / target if target else ROOT / "README.md"
        assert page.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, anchor
    for path in re.findall(r"`(?:pytest |python )?((?:tests|docs|recipes|benchmarks)/[\w./-]*)`", TEXT):
        assert (ROOT / path).exists(), path


def test_make_help_lists_the_targets_that_the_readme_uses() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^make ([\w-]+)", listed, re.MULTILINE))
    used = set(re.findall(r"(?:`|^    )make ([\w-]+)", TEXT, re.MULTILINE))
    assert {"setup", "demo", "test", "soak", "lint", "docs", "figures", "bench"} <= targets
    assert {"demo", "llm", "bench", "atlas"} <= used <= targets


# --- the table of methods ---------------------------------------------------------------------------------------------


def test_the_table_of_methods_is_current(readme_script: ModuleType, tmp_path: Path) -> None:
    assert readme_script.main(["--check"]) == 0, "run: python docs/generate_readme.py"
    copy = tmp_path / "README.md"
    copy.write_text(TEXT.replace("keeps its weight", "loses its weight", 1), encoding="utf-8")
    assert readme_script.main(["--check", "--out", str(copy)]) == 1
    assert readme_script.main(["--out", str(copy)]) == 0
    assert copy.read_text(encoding="utf-8") == TEXT
    with pytest.raises(ValueError, match="lacks the markers"):
        readme_script.written("# dgpo\n")


def rows() -> dict[str, tuple[str, str, str]]:
    """Name -> both descriptions, and the mark."""
    table = TEXT.partition("<!-- methods")[2].partition("<!-- end -->")[0]
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    found = [
        (name, (down, up, mark))
        for down, up, links in lines
        for name, mark in re.findall(r"\[`(\w+)`\]\([^)]*\) ?([✓○]?)", links)
    ]
    assert len(found) == len(dict(found)), "a method stands in two rows"
    return dict(found)


def test_every_method_is_in_the_table_with_its_paper() -> None:
    assert set(rows()) == set(objectives.OBJECTIVES)
    for name, cls in objectives.OBJECTIVES.items():
        assert re.search(rf"\[`{name}`\]\(docs/objectives\.md#{name}\)[^,|]*\({cls.papers[0].link}\)", TEXT), name


def test_what_the_table_says_of_the_known_methods() -> None:
    """By their formulas: GRPO stops, GPPO is constant, IS is the ratio, DGPO is u^(n+1) and v^(1-1/m), CISPO caps."""
    said = {name: (down, up) for name, (down, up, _) in rows().items()}
    assert said["grpo"] == ("dropped, by its ratio", "dropped")
    assert said["dac"][0] == "dropped, by the change of its probability"
    assert said["gspo"][0] == "dropped, in view of the whole response"
    assert said["bapo"][0] == "dropped; the range adapts to the batch"
    assert said["gppo"] == ("keeps its weight", "keeps its weight") == said["cispo_two_sided"]
    assert said["is"] == ("falls with its probability (no clipping)", "rises with its probability (no clipping)")
    assert said["cispo"] == ("falls with its probability (no clipping)", "keeps its weight")
    assert said["dgpo"] == ("decays faster than its probability", "rises ever more slowly")
    assert said["maspo"] == ("falls with its probability, gated", "fades out")


def test_the_marks_are_whose_code_was_recorded() -> None:
    """✓ for the repository that the paper declares, ○ for another, none without recorded values."""
    sources: dict[str, str] = {}
    for file in sorted((ROOT / "tests" / "golden").glob("*.json")):
        cases = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(cases, list):
            sources.setdefault(cases[0].get("objective", file.stem), cases[0]["source"])
    for name, (_, _, mark) in rows().items():
        if name not in sources:
            assert mark == "", name
            continue
        own = objectives.OBJECTIVES[name].papers[0].code
        assert mark == ("✓" if own and sources[name].startswith(own.removeprefix("https://github.com/")) else "○"), name


# --- figures ----------------------------------------------------------------------------------------------------------


def result(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def test_speeds_are_those_measured() -> None:
    page = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    updates = page.partition("**30 layers**")[2]
    row = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in updates.splitlines()[:12] if "|" in line}
    tools = {name: float(row[name][1]) for name in ("GRPOTrainer (TRL)", "DGPOTrainer", "verl's actor")}
    trl, verl = (tools[name] / tools["DGPOTrainer"] for name in ("GRPOTrainer (TRL)", "verl's actor"))
    assert f"{trl:.1f} times as fast as TRL's `GRPOTrainer` and {verl:.1f} times as fast as verl's actor" in PLAIN
    loop = page.partition("**SmolLM2-135M**")[2]
    seconds = {name: float(re.search(rf"\| {re.escape(name)} \| ([\d.]+)", loop)[1]) for name in list(tools)[:2]}  # type: ignore[index]
    ratio = seconds["GRPOTrainer (TRL)"] / seconds["DGPOTrainer"]
    assert f"sampling included, is {ratio:.1f} times as fast as TRL's without vLLM" in PLAIN
    grader = page.partition("## The mathematical grader")[2]
    ratios = dict(re.findall(r"\| (numbers|formulas) \| [\d,]+ \| [\d,]+ \| ([\d.]+) \|", grader))
    assert f"numbers {ratios['numbers']} times and formulas {ratios['formulas']} times as fast as math-verify" in PLAIN


def test_accuracies_are_those_of_the_other_pages() -> None:
    first_run = (ROOT / "docs" / "first-run.md").read_text(encoding="utf-8")
    avg = re.findall(r"\| \d \| avg@8 \| ([\d.]+) \| ([\d.]+) \|", first_run)
    assert {before for before, _ in avg} == {"10.7"}
    after = [value for _, value in avg]
    assert f"from 10.7 % to {after[0]}, {after[1]} and {after[2]} % (three seeds" in PLAIN
    quick = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    greedy = re.search(r"greedy +│ +([\d.]+) │ +([\d.]+)", quick)
    assert greedy is not None
    assert f"500 held-out sums goes from {greedy[1]} % to {greedy[2]} %" in PLAIN


def test_the_study_is_quoted_as_it_is_written() -> None:
    evidence = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    differences = {
        (task, k): float(value)
        for task, k, value in re.findall(r"\| (\w+), (16|64) \| dgpo\(1,2\) - grpo \| ([+-][\d.]+)", evidence)
    }
    assert f"{differences['rare', '16']:.0f} points above GRPO's at 16 updates per generation" in PLAIN
    assert f"and {differences['rare', '64']:.0f} at 64;" in PLAIN
    assert all(round(abs(value)) <= 2 for (task, _), value in differences.items() if task != "rare")
    assert "5,856 runs" in evidence
    assert "5,856 small runs (`make atlas`), 16 seeds per method" in PLAIN


def test_the_citation_is_that_of_the_model_card() -> None:
    pytest.importorskip("trl", reason="the extra train")
    from dgpo import __version__
    from dgpo.training.model_card import SOFTWARE

    entry = re.search(r"```bibtex\n(.*?)```", TEXT, re.DOTALL)
    assert entry is not None
    assert re.sub(r"[\s,]", "", entry[1]) == re.sub(r"[\s,]", "", SOFTWARE.format(version=__version__))


# --- code -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the recipes, and a model of one layer in the place of the starter."""
    pytest.importorskip("trl", reason="the quick start needs TRL: the extra train")
    from dgpo.training.starter import character_tokenizer, tiny_model

    tokenizer = character_tokenizer()
    tiny_model(tokenizer, hidden=16, layers=1).save_pretrained(tmp_path / "outputs" / "starter")
    tokenizer.save_pretrained(tmp_path / "outputs" / "starter")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    yield tmp_path
    sys.modules.pop("halved", None)


def run(*words: str) -> int:
    from dgpo.cli.main import run

    return run(list(words))


@pytest.mark.timeout(300)
def test_the_quick_start_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With 3 updates in place of 200, and rewards that a random model gets; as it stands below, and in a release."""
    short = SCRIPT.replace("max_steps=200", "max_steps=3").replace("text.strip() == gold", "text > gold")
    assert len({SCRIPT, SCRIPT.replace("max_steps=200", ""), SCRIPT.replace("text.strip() == gold", "")}) == 3
    exec(compile(short, "first.py", "exec"), {})
    (folder / "halved.py").write_text(OWN)
    (train,) = (words for words in of_dgpo("train") if "outputs/halved" in words)
    assert run("train", *train, "--max_steps", "3") == 0
    # the report shows the evaluation
    assert run("eval", *of_dgpo("eval")[0], "--samples", "0") == 0
    looks = [["report", *words] for words in of_dgpo("report")] + [["doctor", *words] for words in of_dgpo("doctor")]
    for words in [*looks, *(["replay", *words] for words in of_dgpo("replay"))]:
        assert run(*words) == 0, capsys.readouterr().err
    assert (folder / "first.html").is_file()
    assert "halved:Halved:keep=0.3" in (folder / "both.html").read_text(encoding="utf-8")
    info = json.loads((folder / "outputs" / "halved" / "record" / "run.json").read_text())
    assert info["objective"] == {"name": "halved:Halved", "keep": 0.3}


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_quick_start_as_it_stands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Line by line, in the order of the page: the model gets better."""
    from dgpo.runs.results import read_results

    assert len(commands()) == 14
    shutil.rmtree(folder / "outputs")
    assert run("starter", *of_dgpo("starter")[0]) == 0
    accuracies = {}
    evaluation = of_dgpo("eval")[0]
    for name in ("starter", "first"):
        if name == "first":
            exec(compile(SCRIPT, "first.py", "exec"), {})
        assert run("eval", *(word.replace("outputs/first", f"outputs/{name}") for word in evaluation)) == 0
        found = read_results(folder / "outputs" / name / "eval-addition")["benchmarks"]["addition"]
        accuracies[name] = found["estimates"]["greedy"]["value"]
    assert accuracies["first"] > accuracies["starter"] + 0.2
    (folder / "halved.py").write_text(OWN)
    (train,) = (words for words in of_dgpo("train") if "outputs/halved" in words)
    assert run("train", *train) == 0
    for name in ("report", "doctor", "replay"):
        for words in of_dgpo(name):
            assert run(name, *words) == 0, capsys.readouterr().err


def test_the_objective_passes_our_tests() -> None:
    from dgpo.testing import check_objective

    namespace: dict[str, Any] = {}
    exec(compile(OWN, "halved.py", "exec"), namespace)
    assert len(OWN.splitlines()) <= 15
    for made in (namespace["Halved"](), namespace["Halved"](keep=0.3)):
        check_objective(made)


def test_the_script_for_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Everything but the training itself, on two rows of the data set's columns."""
    datasets = pytest.importorskip("datasets", reason="the extra train")
    pytest.importorskip("trl", reason="the extra train")
    from dgpo import training
    from dgpo.rewards import math_reward

    given: dict[str, Any] = {}

    class Trainer:
        def __init__(self, model: str, reward: Callable[..., Any], args: Any, *, train_dataset: Any) -> None:
            given.update(model=model, reward=reward, args=args, data=train_dataset)

        def train(self) -> None:
            given["trained"] = True

    def load(name: str, config: str, *, split: str) -> Any:
        assert (name, config, split) == ("openai/gsm8k", "main", "train")
        return datasets.Dataset.from_dict({"question": ["1 + 1?", "6 * 7?"], "answer": ["so\n#### 2", "#### 42"]})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(training, "DGPOTrainer", Trainer)
    # all that a machine without a GPU needs
    monkeypatch.setattr(training, "DGPOConfig", functools.partial(training.DGPOConfig, bf16=False, use_cpu=True))
    exec(compile(GPU, "gpu.py", "exec"), {})
    args = given["args"]
    assert given["trained"]
    assert (args.make_objective().n, args.make_objective().m) == (2, 2)
    assert (args.updates_per_generation, args.use_vllm) == (16, True)
    assert args.generation_batch_size % args.num_generations == 0
    (message,) = given["data"][1]["prompt"]
    assert message["role"] == "user"
    assert message["content"].startswith("6 * 7? Let's think")
    assert r"\boxed{}" in message["content"]
    answers = [[{"role": "assistant", "content": rf"\boxed{{{x}}}"}] for x in (2, 43)]
    assert given["reward"] is math_reward
    assert math_reward(answers, answer=given["data"]["answer"]) == [1.0, 0.0]


# --- commands ---------------------------------------------------------------------------------------------------------


def test_what_pip_installs_is_there() -> None:
    (install,) = (words for words in commands() if words[0] == "pip")
    assert install == ["pip", "install", "-c", "constraints.txt", ".[train]"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert "train" in extras
    assert (ROOT / "constraints.txt").is_file()


@pytest.mark.parametrize("words", [words for words in commands() if "--use_vllm" in words or words[0] == "accelerate"])
def test_commands_for_gpus_have_a_plan(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `dgpo train` would do with these flags; nothing is downloaded."""
    launch = pytest.importorskip("accelerate.commands.launch", reason="the extra train")
    monkeypatch.chdir(ROOT)
    if words[0] == "accelerate":
        parsed = launch.launch_command_parser().parse_args(words[2:])
        assert parsed.training_script == "$(command -v dgpo)"
        words = ["dgpo", *parsed.training_script_args, "--accelerate_config", parsed.config_file]
    assert words[:2] == ["dgpo", "train"]
    more = [] if "--dry_run" in words else ["--dry_run", "--gpu", "h100"]
    assert run(*words[1:], *more) == 0, capsys.readouterr().err
    assert "updates" in capsys.readouterr().out


def test_the_overrides_for_verl(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = (" ".join(words) for words in commands() if "verl.trainer.main_ppo" in words)
    inner = re.search(r"\$\(dgpo (.*?)\)", line)
    assert inner is not None
    assert run(*shlex.split(inner[1])) == 0
    assert "actor_rollout_ref.actor.policy_loss.loss_mode=dgpo:dgpo" in capsys.readouterr().out


def test_every_other_command_is_understood() -> None:
    """Those that take minutes; the rest runs above."""
    pytest.importorskip("trl", reason="the extra train")
    from dgpo.cli import eval as evaluate
    from dgpo.cli import starter
    from dgpo.cli.arguments import parse

    (args,) = parse(starter.parser(), of_dgpo("starter")[0])
    assert (args.task, args.out) == ("addition", "outputs/starter")
    (args,) = parse(evaluate.parser(), of_dgpo("eval")[0])
    args.check()
    assert {words[0] for words in commands()} == {"python3", "pip", "export", "dgpo", "accelerate", "python"}
