"""Bad input to every command: exit code 2, no traceback, one error that says what was passed and what was expected."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    def file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return file


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# --- dgpo train: objective, schedule, model --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--objective", "dgop"], ["unknown objective 'dgop'", "did you mean 'dgpo'?", "known: aspo"]),
        (["--objective_kwargs", '{"eps_lo": 0.2}'], ["no field 'eps_lo'", "did you mean 'eps_low'?", "its fields: n,"]),
        (["--objective_kwargs", '{"n": -1}'], ["n = -1 is not allowed", "expected a number in [0, inf]"]),
        (["--objective_kwargs", '{"eps_low": 1.5}'], ["eps_low = 1.5 is not allowed", "expected a number in [0, 1)"]),
        (["--objective_kwargs", '{"n": "two"}'], ["n = 'two' is not allowed"]),
        (["--objective_kwargs", '{"n": 1'], ["--objective_kwargs", "'{\"n\": 1' is not valid JSON"]),
        (["--objective_kwargs", "n=1"], ["objective_kwargs = 'n=1' is not a mapping", "JSON text such as"]),
        (["--objective_kwargs", "[1]"], ["objective_kwargs = '[1]' is not a mapping"]),
        (["--aggregation", "token-men"], ["unknown aggregation 'token-men'", "did you mean 'token-mean'?"]),
        (["--advantage", "leave_1_out"], ["unknown advantage 'leave_1_out'", "did you mean 'leave_one_out'?"]),
        (["--correction", "truncate"], ["correction = 'truncate'", "use_vllm = True"]),
        (["--loss_type", "bnpo"], ["loss_type = 'bnpo' has no meaning here", "aggregation"]),
        (["--delta", "3"], ["delta = 3.0 has no meaning here", "dual_clip"]),
        (["--num_generations", "5"], ["generation_batch_size (32)", "divisible by num_generations (5)"]),
        (["--num_generations", "1"], ["at least 2 generations", "You provided 1"]),
        (["--gradient_accumulation_steps", "3", "--steps_per_generation", "4"], ["= 3 does not divide"]),
        (["--eval_dataset", "x.jsonl"], ["eval_dataset = 'x.jsonl' needs eval_strategy = 'steps' or 'epoch'"]),
        (["--dataset_test_split", "test"], ["dataset_test_split = 'test' needs eval_strategy"]),
        (["--eval_strategy", "steps", "--eval_dataset", "x.jsonl"], ["task = 'addition' has its own"]),
        (["--eval_strategy", "steps", "--dataset_test_split", "test"], ["task = 'addition' has its own"]),
        (["--use_vllm"], ["vLLM is not available", "pip install"]),
        (["--model_name_or_path", "no/such/folder"], ["cannot load model 'no/such/folder'", "no such folder"]),
        (["--rewards", "answer_rewar"], ["unknown reward 'answer_rewar'", "did you mean 'answer_reward'?"]),
        (["--rewards", "json.nothing"], ["cannot import the reward 'json.nothing'", "has no 'nothing'"]),
        (
            ["--rewards", "no_such_module.f"],
            ["cannot import the reward 'no_such_module.f'", "there is no module 'no_such_module'"],
        ),
        (["--rewards", "os.sep"], ["the reward 'os.sep' is of type str", "expected a function"]),
        (["--learning_rat", "1e-5"], ["unknown argument '--learning_rat'", "did you mean 'learning_rate'?"]),
        (["--beta", "nan"], ["beta = nan is not allowed; expected a number in [0, inf)"]),
        (["--entropy_coef", "inf"], ["entropy_coef = inf is not allowed; expected a number in (-inf, inf)"]),
        (["--beta", "-0.1"], ["beta = -0.1 is not allowed; expected a number in [0, inf)"]),
        (["--learning_rate", "fast"], ["--learning_rate", "invalid float value: 'fast'"]),
        (["--lr_scheduler_type", "triangle"], ["invalid choice: 'triangle'", "'cosine'"]),
        (["leftover"], ["unknown argument 'leftover'"]),
        (["--resume"], ["--resume: no checkpoint in"]),
        (["--resume_from_checkpoint", "nowhere"], ["resume_from_checkpoint = 'nowhere': no such folder"]),
        (["--resume", "--resume_from_checkpoint", "nowhere"], ["--resume and --resume_from_checkpoint"]),
        (["--config"], ["--config needs a file"]),
        (["--dataset", "x.jsonl"], ["either --task or --dataset", "task = 'addition', dataset = 'x.jsonl'"]),
        (["--chat"], ["chat = True has no meaning with task = 'addition'", "--dataset"]),
        (["--no_chat"], ["no_chat = True has no meaning with task = 'addition'", "plain text"]),
        (["--prompt_template", "Q: {prompt}"], ["prompt_template = 'Q: {prompt}' has no meaning with task"]),
    ],
    ids=lambda value: " ".join(value)[:40] if value and value[0].startswith("--") else "",
)
def test_train(dgpo: Callable[..., Any], quick: list[str], output: Path, flags: list[str], parts: list[str]) -> None:
    dgpo("train", *quick, "--task", "addition", *flags).one_error(*parts)
    assert not list(output.rglob("*.safetensors"))


def test_neither_task_nor_dataset(dgpo: Callable[..., Any], quick: list[str]) -> None:
    dgpo("train", *quick).one_error("give either --task or --dataset", "task = None, dataset = None")


def test_unknown_task(dgpo: Callable[..., Any], quick: list[str]) -> None:
    dgpo("train", *quick, "--task", "adition").one_error("unknown task 'adition'", "did you mean 'addition'?")


def test_no_model_given(dgpo: Callable[..., Any]) -> None:
    words = ("train", "--task", "addition", "--use_cpu", "--bf16", "false")
    dgpo(*words).one_error("--model_name_or_path is required", "a hub name or a folder")


def test_folder_without_a_model(dgpo: Callable[..., Any], quick: list[str], tmp_path: Path) -> None:
    for words in (["train", *quick, "--model_name_or_path", tmp_path], ["eval", "--model", tmp_path]):
        done = dgpo(*words, "--task", "addition")
        done.one_error(f"cannot load model {str(tmp_path)!r}", "the folder contains no model")


def test_output_folder_is_a_file(dgpo: Callable[..., Any], quick: list[str], tiny: Path, write: Any) -> None:
    file = write("taken", "")
    dgpo("train", *quick, "--task", "addition", "--output_dir", file).one_error(str(file), "exists")
    dgpo("eval", "--model", tiny, "--task", "addition", "--out", file).one_error(str(file), "exists")
    dgpo("starter", "--out", file).one_error(str(file), "exists")
    dgpo("demo", "--out", file).one_error(str(file), "exists")


# --- the config file -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("learning_rat: 1.0e-5", ["unknown key 'learning_rat'", "did you mean 'learning_rate'?"]),
        ("learning-rate: 1.0e-5", ["unknown key 'learning-rate'", "did you mean 'learning_rate'?"]),
        ("zzzzzz: 1", ["unknown key 'zzzzzz'", "--help"]),
        ("a: [1", ["is not valid YAML", "line 1"]),
        ("- a\n- b", ["is a list", "expected a mapping"]),
        ("", ["is empty", "expected a mapping"]),
        ("env: 3", ["'env'", "of type int", "expected a mapping"]),
        ("max_steps: 2.5", ["max_steps in", "invalid int value: '2.5'"]),
        ("learning_rate: fast", ["learning_rate in", "invalid float value: 'fast'"]),
        ("use_cpu: perhaps", ["use_cpu in", "perhaps"]),
        ("lr_scheduler_type: triangle", ["lr_scheduler_type in", "invalid choice: 'triangle'"]),
        ("max_steps: [1, 2]", ["max_steps = [1, 2]", "is a list", "expected one value"]),
        ("task: {a: 1}", ["task = {'a': 1}", "is a mapping", "expected one value"]),
        ("objective_kwargs: {n: -1}", ["n = -1 is not allowed"]),
        ("objective_kwargs: 3", ["objective_kwargs = '3' is not a mapping"]),
    ],
)
def test_config_file(
    dgpo: Callable[..., Any], quick_settings: dict[str, str], write: Any, text: str, parts: list[str]
) -> None:
    file = write("run.yaml", text)
    settings = {"task": "addition", **quick_settings}
    flags = [f"--{name}={value}" for name, value in settings.items() if name not in text]
    dgpo("train", *flags, "--config", file).one_error(*parts)


def test_config_file_that_is_not_there(dgpo: Callable[..., Any], tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    for command in ("train", "eval", "starter", "demo"):
        dgpo(command, "--config", missing).one_error(f"cannot read the config file {str(missing)!r}", "No such file")
    dgpo("train", f"--config={tmp_path}").one_error("cannot read the config file", "Is a directory")


def test_a_wrong_file_exports_nothing(dgpo: Callable[..., Any], write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DGPO_TEST_VARIABLE", raising=False)
    dgpo("train", "--config", write("run.yaml", "env: {DGPO_TEST_VARIABLE: 1}\nzzz: 1")).one_error("unknown key")
    assert "DGPO_TEST_VARIABLE" not in os.environ


# --- data ------------------------------------------------------------------------------------------------------------

ROWS = [{"prompt": f"{a}+{a}=", "answer": str(2 * a)} for a in range(8)]


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("no_answer.jsonl", lines({"prompt": "1+1="}), ["has no answer column", "its columns: prompt"]),
        (
            "no_prompt.jsonl",
            lines({"text": "1+1=", "answer": 2}),
            ["has no prompt column", "prompt, problem, question"],
        ),
        ("null.jsonl", lines(*ROWS, {"prompt": "3", "answer": None}), ["has no answer in 1 of its 9 rows"]),
        ("list.jsonl", lines({"prompt": "1", "answer": ["1", "2"]}), ["['1', '2']", "expected text or a number"]),
        ("broken.jsonl", '{"prompt": \n', ["cannot read the data file", "JSON parse error"]),
        ("empty.jsonl", "", ["cannot read the data file", "no rows"]),
        ("broken.parquet", "no parquet", ["cannot read the data file", "Parquet"]),
        ("data.csv", "prompt,answer\n1,2\n", ["expected one of .jsonl, .json, .parquet"]),
        ("data", "", ["expected one of .jsonl, .json, .parquet"]),
    ],
)
def test_data_file(
    dgpo: Callable[..., Any], quick: list[str], tiny: Path, write: Any, name: str, text: str, parts: list[str]
) -> None:
    file = write(name, text)
    dgpo("train", *quick, "--dataset", file).one_error(str(file), *parts)
    dgpo("eval", "--model", tiny, "--dataset", file).one_error(str(file), *parts)


def test_data_that_is_not_there(
    dgpo: Callable[..., Any], quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # without it: retries, for half a minute
    missing = tmp_path / "none.jsonl"
    dgpo("train", *quick, "--dataset", missing).one_error(f"no such data file: {str(missing)!r}")
    dgpo("train", *quick, "--dataset", "no-such-user/no-such-data").one_error("no-such-user/no-such-data")


def test_template_without_a_place_for_the_prompt(dgpo: Callable[..., Any], quick: list[str], write: Any) -> None:
    file = write("data.jsonl", lines(*ROWS))
    done = dgpo("train", *quick, "--dataset", file, "--prompt_template", "Solve it.")
    done.one_error("the prompt template 'Solve it.' does not contain '{prompt}'")


def test_chat_for_a_tokenizer_without_template(
    dgpo: Callable[..., Any], quick: list[str], tiny: Path, write: Any
) -> None:
    file = write("data.jsonl", lines(*ROWS))
    dgpo("train", *quick, "--dataset", file, "--chat").one_error("conversations", "no chat template", "text")
    dgpo("eval", "--model", tiny, "--dataset", file, "--chat").one_error("no chat template", "plain strings")


def test_template_or_chat_for_conversations(dgpo: Callable[..., Any], quick: list[str], write: Any) -> None:
    rows = [{"prompt": [{"role": "user", "content": row["prompt"]}], "answer": row["answer"]} for row in ROWS]
    file = write("data.jsonl", lines(*rows))
    for flags in (["--chat"], ["--prompt_template", "Q: {prompt}"]):
        done = dgpo("train", *quick, "--dataset", file, *flags)
        done.one_error("conversations", "omit prompt_template and chat")
    dgpo("train", *quick, "--dataset", file).one_error("conversations", "no chat template", "text")


def test_fewer_prompts_than_one_generation_takes(dgpo: Callable[..., Any], quick: list[str], write: Any) -> None:
    """TRL would drop the incomplete batch, and so train nothing and say that it was done."""
    file = write("data.jsonl", lines(*ROWS[:7]))
    done = dgpo("train", *quick, "--dataset", file)
    done.one_error("the data has 7 prompts", "one generation takes 8", "num_generations = 4")


def test_evaluation_on_a_file_that_is_not_named(dgpo: Callable[..., Any], quick: list[str], write: Any) -> None:
    file = write("data.jsonl", lines(*ROWS))
    for flags in (["--eval_strategy", "steps"], ["--eval_strategy", "epoch"], ["--eval_on_start"]):
        said = f"{flags[0][2:]} = "
        dgpo("train", *quick, "--dataset", file, *flags).one_error(said, "give --eval_dataset FILE", "eval_benchmarks")
    done = dgpo("train", *quick, "--dataset", file, "--eval_strategy", "steps", "--eval_dataset", "none.jsonl")
    done.one_error("no such data file: 'none.jsonl'")
    flags = ["--eval_strategy", "steps", "--eval_dataset", file, "--dataset_test_split", "dev"]
    done = dgpo("train", *quick, "--dataset", file, *flags)
    done.one_error("dataset_test_split = 'dev' is for data of the hub", "has no splits")


def test_config_of_a_local_file(dgpo: Callable[..., Any], quick: list[str], write: Any) -> None:
    file = write("data.jsonl", lines(*ROWS))
    done = dgpo("train", *quick, "--dataset", file, "--dataset_config", "main")
    done.one_error("config = 'main'", "local file")


# --- the other commands ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--samples", "-1"], ["samples = -1", "expected an integer in [0, inf)"]),
        (["--samples", "2.5"], ["--samples", "invalid int value: '2.5'"]),
        (["--temperature", "0"], ["temperature = 0.0", "a temperature > 0"]),
        (["--top_p", "2"], ["top_p = 2.0", "(0, 1]"]),
        (["--limit", "0"], ["limit = 0 is not allowed", "expected >= 1"]),
        (["--batch_size", "0"], ["batch_size = 0 is not allowed", "expected >= 1"]),
        (["--max_new_tokens", "0"], ["max_new_tokens = 0", "an integer in [1, inf)"]),
        (["--dtype", "int3"], ["invalid choice: 'int3'", "'bfloat16'"]),
        (["--task", "subtraction"], ["unknown task 'subtraction'", "known: addition"]),
        (["--dataset", "x.jsonl"], ["either --task or --dataset"]),
        (["--chat"], ["chat = True has no meaning"]),
        (["--model", "no/such/folder"], ["cannot load model 'no/such/folder'", "no such folder"]),
        (["--smaples", "4"], ["unknown argument '--smaples'", "did you mean 'samples'?"]),
    ],
    ids=lambda value: " ".join(value)[:40] if value and value[0].startswith("--") else "",
)
def test_eval(dgpo: Callable[..., Any], tiny: Path, output: Path, flags: list[str], parts: list[str]) -> None:
    flags = ["--samples", "1", "--limit", "2", *flags]
    dgpo("eval", "--model", tiny, "--task", "addition", "--out", output, *flags).one_error(*parts)
    assert not list(output.rglob("*"))


def test_eval_needs_a_model_and_data(dgpo: Callable[..., Any], tiny: Path) -> None:
    dgpo("eval", "--task", "addition").one_error("required: --model")
    dgpo("eval", "--model", tiny).one_error("either --task or --dataset", "task = None, dataset = None")


def test_eval_of_an_empty_prompt(dgpo: Callable[..., Any], tiny: Path, write: Any, output: Path) -> None:
    file = write("data.jsonl", lines({"prompt": "1+1=", "answer": "2"}, {"prompt": "", "answer": "2"}))
    done = dgpo("eval", "--model", tiny, "--dataset", file, "--out", output, "--samples", 0, "--max_new_tokens", 2)
    done.one_error("prompts[1] = '' has no tokens")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["starter"], ["required: --out"]),
        (["starter", "--out", "OUT", "--task", "adition"], ["unknown task 'adition'", "did you mean 'addition'?"]),
        (["starter", "--out", "OUT", "--max_steps", "0"], ["max_steps = 0 is not allowed", "expected >= 1"]),
        (
            ["starter", "--out", "OUT", "--max_step", "5"],
            ["unknown argument '--max_step'", "did you mean 'max_steps'?"],
        ),
        (["demo", "--out", "OUT", "--objective", "grop"], ["unknown objective 'grop'", "did you mean 'grpo'?"]),
        (["demo", "--out", "OUT", "--updates", "0"], ["updates = 0 is not allowed", "expected >= 1"]),
        (["demo", "--out", "OUT", "--update", "5"], ["unknown argument '--update'", "did you mean 'updates'?"]),
    ],
)
def test_starter_and_demo(dgpo: Callable[..., Any], output: Path, words: list[str], parts: list[str]) -> None:
    dgpo(*[str(output) if word == "OUT" else word for word in words]).one_error(*parts)


def test_starter_that_is_not_given_enough_steps(dgpo: Callable[..., Any], output: Path) -> None:
    """The steps were the user's: an error of the input, and no folder that looks like a model."""
    done = dgpo("starter", "--out", output, "--max_steps", "1")
    done.one_error("0.0% on the validation split of 'addition' after 1 steps", "at least 45%", "max_steps = 1")
    assert not list(output.rglob("*.safetensors"))
