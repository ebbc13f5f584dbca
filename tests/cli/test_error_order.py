"""What is said first, on a machine without a GPU: unknown flags, then what is missing or wrong, bf16 last."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dgpo.advantages import ADVANTAGES
from dgpo.cli.aliases import ALIASES
from dgpo.correction import CORRECTIONS
from dgpo.objectives import ELSEWHERE, OBJECTIVES

Run = Callable[..., Any]
MODEL = ["--model_name_or_path", "some/model"]
TASK = ["--task", "addition"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["give either --task or --dataset"]),
        (MODEL, ["give either --task or --dataset"]),
        (TASK, ["--model_name_or_path is required"]),
        ([*MODEL, "--task", "adition"], ["unknown task 'adition'", "did you mean 'addition'?"]),
        ([*MODEL, *TASK, "--dataset", "x.jsonl"], ["give either --task or --dataset"]),
        ([*MODEL, *TASK, "--chat"], ["chat = True has no meaning with task"]),
        ([*MODEL, *TASK, "--gpu", "h100"], ["gpu = 'h100' is for --dry_run"]),
        ([*MODEL, *TASK, "--objective", "dgop"], ["unknown objective 'dgop', did you mean 'dgpo'?"]),
        ([*MODEL, *TASK, "--objective", "ppo"], ["unknown objective 'ppo': here it is 'grpo'"]),
        ([*MODEL, *TASK, "--objective", "dgpo:n=-1"], ["n = -1 is not allowed"]),
        ([*MODEL, *TASK, "--objective_kwargs", '{"nn": 1}'], ["objective 'dgpo' has no field 'nn'"]),
        ([*MODEL, *TASK, "--aggregation", "token-men"], ["unknown aggregation 'token-men'"]),
        ([*MODEL, *TASK, "--advantage", "sdt"], ["unknown advantage 'sdt'"]),
        ([*MODEL, *TASK, "--advantage", "std", "--scale_rewards", "none"], ["advantage = 'std' takes the place of"]),
        ([*MODEL, *TASK, "--correction", "tis"], ["unknown correction 'tis'"]),
        ([*MODEL, *TASK, "--preset", "dapoo"], ["unknown preset 'dapoo'"]),
        ([*MODEL, *TASK, "--loss_type", "sapo"], ["write objective='sapo'"]),
        ([*MODEL, *TASK, "--num_iterations", "0"], ["num_iterations = 0 is not allowed"]),
        ([*MODEL, *TASK, "--eval_benchmark_kwargs", '{"sample": 1}'], ["eval_benchmark_kwargs has no 'sample'"]),
        (["--nonsense", "1"], ["unknown argument '--nonsense'"]),
        ([*TASK, "--nonsense", "1", "--objective", "dgop"], ["unknown argument '--nonsense'"]),
        (["leftover"], ["unknown argument 'leftover'"]),
    ],
    ids=lambda words: " ".join(words)[:60] if words and words[0].startswith("--") else "",
)
def test_train_says_what_is_wrong_before_it_asks_for_a_gpu(dgpo: Run, words: list[str], parts: list[str]) -> None:
    done = dgpo("train", *words)
    done.one_error(*parts)
    assert "bf16" not in done.err


def test_the_same_from_a_file(dgpo: Run, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    for text, part in (
        ("learning_rat: 1", "did you mean 'learning_rate'?"),
        ("task: addition", "--model_name_or_path"),
    ):
        file.write_text(text)
        done = dgpo("train", "--config", file)
        done.one_error(part)
        assert "bf16" not in done.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_bf16_comes_last(dgpo: Run) -> None:
    dgpo("train", *MODEL, *TASK).one_error("bf16")


@pytest.mark.parametrize(
    ("command", "wrong", "missing"), [("eval", "--modle", "--model"), ("starter", "--ot", "--out")]
)
def test_a_misspelled_flag_comes_before_the_one_that_is_missing_then(
    dgpo: Run, command: str, wrong: str, missing: str
) -> None:
    dgpo(command, wrong, "x").one_error(f"unknown argument {wrong!r}", f"did you mean {missing[2:]!r}?")
    dgpo(command).one_error("give either --task" if command == "eval" else f"required: {missing}")


@pytest.mark.parametrize(
    ("command", "flag", "meant"),
    [
        *(("train", "--model", "model_name_or_path"), ("train", "--lr", "learning_rate")),
        *(("train", "--epochs", "num_train_epochs"), ("train", "--steps", "max_steps")),
        *(("train", "--batch-size", "per_device_train_batch_size"), ("train", "--n", "num_generations")),
        *(
            ("train", "--group_size", "num_generations"),
            ("train", "--kl_coef", "beta"),
            ("train", "--kl-loss-coef", "beta"),
        ),
        *(("train", "--clip_ratio", "epsilon"), ("train", "--clip_ratio_high", "epsilon_high")),
        *(("train", "--reward_funcs", "rewards"), ("train", "--dataset_name", "dataset")),
        *(("train", "--max_tokens", "max_completion_length"), ("train", "--max_new_tokens", "max_completion_length")),
        *(("train", "--output", "output_dir"), ("train", "--out", "output_dir"), ("train", "--warmup", "warmup_steps")),
        *(("train", "--loss", "objective"), ("train", "--algorithm", "objective"), ("train", "--wandb", "report_to")),
        *(("train", "--lora", "use_peft"), ("train", "--lora_rank", "lora_r"), ("train", "--vllm", "use_vllm")),
        *(("train", "--grad_accum", "gradient_accumulation_steps"), ("train", "--cpu", "use_cpu")),
        *(("train", "--learning_rat", "learning_rate"), ("train", "--Learning-Rate=1", "learning_rate")),
        *(("eval", "--model_name_or_path", "model"), ("eval", "--n", "samples"), ("eval", "--k", "samples")),
        *(("eval", "--max_tokens", "max_new_tokens"), ("eval", "--output_dir", "out"), ("eval", "--bs", "batch_size")),
        *(("demo", "--steps", "updates"), ("demo", "--output_dir", "out"), ("starter", "--steps", "max_steps")),
    ],
)
def test_suggestions(dgpo: Run, command: str, flag: str, meant: str) -> None:
    dgpo(command, flag, "1").one_error(f"unknown argument {flag!r}, did you mean {meant!r}?")


def test_every_alias_leads_to_a_flag_of_some_command(dgpo: Run) -> None:
    helps = [dgpo("train", "--help-all").out, *(dgpo(command, "--help").out for command in ("eval", "demo", "starter"))]
    flags = {word.strip(",[") for text in helps for word in text.split() if word.strip("[").startswith("--")}
    for word, names in ALIASES.items():
        assert word == word.lower().replace("-", "_")
        assert any(f"--{name}" in flags for name in names), word


# --- one syntax for an objective -------------------------------------------------------------------------------------


@pytest.fixture
def plan(dgpo: Run, output: Path, tmp_path: Path) -> Callable[..., str]:
    def plan(*words: str, text: str | None = None) -> str:
        if text is not None:
            (tmp_path / "run.yaml").write_text(text)
            words = (*words, "--config", str(tmp_path / "run.yaml"))
        done = dgpo("train", *TASK, *MODEL, "--output_dir", output, "--dry_run", *words)
        assert done.code == 0, done.err
        return " ".join(done.out.split())

    return plan


@pytest.mark.parametrize(
    "objective",
    ["dgpo:n=3,right_cap=2.5", '{"name": "dgpo", "n": 3, "right_cap": 2.5}', " dgpo: n = 3, right_cap=2.5 "],
)
def test_train_takes_name_and_fields(plan: Callable[..., str], objective: str) -> None:
    assert "DGPO(n=3, m=2, eps_low=0.2, eps_high=0.2, reverse_cap=None, right_cap=2.5)" in plan(
        "--objective", objective
    )


@pytest.mark.parametrize(
    "text",
    [
        "objective: dgpo:n=3,m=2.5",
        "objective: 'dgpo: n=3, m=2.5'",
        "objective: {name: dgpo, n: 3, m: 2.5}",
        "objective:\n  name: dgpo\n  n: 3\n  m: 2.5",
        "objective: dgpo:n=3\nobjective_kwargs: {m: 2.5}",
        "objective: dgpo\nobjective_kwargs: {n: 3, m: 2.5}",
        'objective_kwargs: \'{"n": 3, "m": 2.5}\'',
    ],
)
def test_a_file_takes_name_and_fields(plan: Callable[..., str], text: str) -> None:
    assert "DGPO(n=3, m=2.5, eps_low=0.2" in plan(text=text)


def test_the_other_choices_take_fields_too(plan: Callable[..., str]) -> None:
    text = "aggregation: seq-mean-token-sum-norm:length=9\nadvantage: {name: entropy_shaped, alpha: 0.25}"
    out = plan(text=text)
    assert "SeqMeanTokenSumNorm(length=9)" in out
    assert "EntropyShaped(alpha=0.25" in out


WRONG = [
    ("dgop:n=2", "unknown objective 'dgop', did you mean 'dgpo'?"),
    ("ppo", "unknown objective 'ppo': here it is 'grpo'"),
    ("PPO:dual_clip=3", "unknown objective 'PPO': here it is 'grpo'"),
    ("dgpo:nn=2", "objective 'dgpo' has no field 'nn', did you mean 'n'?"),
    ("dgpo:n", "'n' in 'dgpo:n' has no value; expected NAME:FIELD=VALUE"),
    ("dgpo:n=two", "n = 'two' is not allowed"),
    ("dgpo:n=-1", "n = -1 is not allowed; expected a number in [0, inf]"),
    ("dgpo:n=2,n=3", "'n' is given twice, as 2 and as 3"),
    ("dgpo(n=2)", "fields of 'dgpo' are written NAME:FIELD=VALUE"),
    ('{"n": 2}', "has no 'name'"),
]


@pytest.mark.parametrize(("word", "part"), WRONG, ids=[word for word, _ in WRONG])
def test_every_command_says_the_same_of_a_wrong_one(dgpo: Run, tmp_path: Path, word: str, part: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    (run / "metrics.jsonl").write_text("")
    file = tmp_path / "run.yaml"
    file.write_text(f"objective: {json.dumps(word)}\n")
    for words in (
        ["train", *TASK, *MODEL, "--objective", word],
        ["train", *TASK, *MODEL, "--config", file],
        ["train", *TASK, *MODEL, "--dry_run", "--objective", word],
        ["replay", run, "--objectives", word],
        ["plot", "weights", run, "--out", tmp_path / "x.svg", "--objectives", word],
        ["verl-overrides", "--objective", word],
        ["objectives", word],
        ["demo", "--out", tmp_path / "demo", "--objective", word],
    ):
        dgpo(*words).one_error(part)


def test_verl_overrides_takes_name_and_fields(dgpo: Run) -> None:
    node = "+actor_rollout_ref.actor.policy_loss.objective_kwargs"
    for words in (
        ["--objective", "dgpo:n=3,right_cap=None"],
        ["--objective", "dgpo:n=3", "--right_cap", "none"],
        ["--objective", "dgpo", "--n", "3", "--right-cap=None"],
        ['--objective={"name": "dgpo", "n": 3, "right_cap": null}'],
    ):
        out = dgpo("verl-overrides", *words).out.splitlines()
        assert "actor_rollout_ref.actor.policy_loss.loss_mode=dgpo:dgpo" in out
        assert [line for line in out if line.startswith(node)] == [f"{node}.n=3", f"{node}.right_cap=null"]
    dgpo("verl-overrides", "--objective", "dgpo:n=3", "--n", "2").one_error("'n' is given twice, as 3 and as 2")
    dgpo("verl-overrides", "--objective", "dgpo", "--nn", "2").one_error("unknown argument '--nn'")


def test_objectives_describes_one_with_fields(dgpo: Run) -> None:
    done = dgpo("objectives", "grpo:dual_clip=3")
    assert done.out.startswith("grpo (GRPO)")
    assert "With these fields: GRPO(eps_low=0.2, eps_high=0.2, dual_clip=3)" in done.out


@pytest.mark.parametrize("name", ELSEWHERE)
def test_objectives_knows_what_others_call_it(dgpo: Run, name: str) -> None:
    dgpo("objectives", name).one_error(f"unknown objective {name!r}: here it is {ELSEWHERE[name]}")
    assert any(f"'{word}'" in ELSEWHERE[name] for word in (*OBJECTIVES, *ADVANTAGES, *CORRECTIONS))
