"""`dgpo train` on a tiny random model: flags, YAML, data files, what it leaves behind, and resuming."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from dgpo.cli import train
from dgpo.cli.arguments import parse
from dgpo.cli.parser import Parser
from dgpo.cli.train_arguments import ModelArguments, TrainArguments, held_out
from dgpo.runs.locate import find_log
from dgpo.runs.reading import read_log
from dgpo.training import DGPOConfig, DGPOTrainer

GSM8K = Path(__file__).resolve().parents[2].parent / "shared" / "benchmarks" / "gsm8k_train.jsonl"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[DGPOTrainer]:
    """Every trainer that the command makes."""
    made: list[DGPOTrainer] = []

    class Watched(DGPOTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(train, "DGPOTrainer", Watched)
    return made


def history(trainer: DGPOTrainer) -> list[dict[str, Any]]:
    return [row for row in trainer.state.log_history if "loss" in row]


def test_a_task_from_flags(
    dgpo: Callable[..., Any], quick: list[str], output: Path, tiny: Path, seen: list[DGPOTrainer]
) -> None:
    done = dgpo("train", "--task", "addition", *quick, "--objective", "dgpo", "--objective_kwargs", '{"n": 2, "m": 3}')
    assert done.code == 0, done.err
    opening, lines, last = done.out.splitlines()[:3], done.out.splitlines()[3:-1], done.out.splitlines()[-1]
    assert [line.split()[0] for line in opening] == ["objective", "schedule", "output"]
    assert opening[0].split()[1] == "dgpo:n=2,m=3,"
    assert [line.split()[0] for line in lines] == ["1/4", "2/4", "3/4", "4/4"]
    assert last == f"done: 4 updates; model saved in {output}"
    (trainer,) = seen
    config = trainer.args
    assert (trainer._factors.spec.objective.n, trainer._factors.spec.objective.m) == (2, 3)
    assert (config.learning_rate, config.max_steps, config.num_generations) == (1e-3, 4, 4)
    assert config.steps_per_generation == 4  # of DGPOConfig, not of TRL
    rows = history(trainer)
    assert len(rows) == 4
    assert all("objective/weight/mean" in row for row in rows)
    # what the lines leave out is in the file
    logged = [row for row in read_log(*find_log(output).files).lines if "loss" in row]
    assert [row["grad_norm"] for row in logged] == [row["grad_norm"] for row in rows]
    assert ["rewards/text_reward/mean" in row for row in rows] == [True, False, False, False]  # one generation


def test_it_leaves_an_ordinary_model_folder(
    dgpo: Callable[..., Any], quick: list[str], output: Path, tiny: Path
) -> None:
    """Trained weights that transformers loads, the tokenizer, and a card that cites the paper."""
    reward = ["--rewards", "dgpo_test_rewards.digits"]
    sys.modules["dgpo_test_rewards"] = rewards = type(sys)("dgpo_test_rewards")
    rewards.digits = lambda completions, **_: [float(sum(c.isdigit() for c in text)) for text in completions]
    try:
        assert dgpo("train", "--task", "addition", *quick, *reward).code == 0
    finally:
        del sys.modules["dgpo_test_rewards"]
    before = AutoModelForCausalLM.from_pretrained(tiny).state_dict()
    after = AutoModelForCausalLM.from_pretrained(output).state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert (
        AutoTokenizer.from_pretrained(output)("1+2=")["input_ids"]
        == AutoTokenizer.from_pretrained(tiny)("1+2=")["input_ids"]
    )
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "2603.14389" in card
    assert "\n- dgpo\n" in card
    assert not list(output.glob("checkpoint-*"))  # --save_strategy no


# --- YAML ------------------------------------------------------------------------------------------------------------

YAML = """
env:
  DGPO_TEST_VARIABLE: from the file
task: addition
learning_rate: 5e-5
objective: grpo
objective_kwargs: {dual_clip: 3e0}
aggregation: seq-mean-token-sum-norm
rewards: answer_reward
save_strategy: no
bf16: no
use_cpu: true
report_to: []
max_steps: 7
"""


def test_a_yaml_file_with_a_flag_over_it(
    dgpo: Callable[..., Any],
    quick_settings: dict[str, str],
    seen: list[DGPOTrainer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Flags win; env is exported; 5e-5 is a number and `no` a word or a false, as the field needs."""
    monkeypatch.setenv("DGPO_TEST_VARIABLE", "from outside")
    file = tmp_path / "run.yaml"
    file.write_text(YAML)
    in_file = ("save_strategy", "bf16", "learning_rate", "use_cpu")
    flags = [f"--{name}={value}" for name, value in quick_settings.items() if name not in in_file]
    done = dgpo("train", "--config", file, *flags, "--max_steps", "2", "--epsilon", "0.1")
    assert done.code == 0, done.err
    (trainer,) = seen
    config = trainer.args
    assert os.environ["DGPO_TEST_VARIABLE"] == "from the file"
    assert config.learning_rate == 5e-5
    assert config.max_steps == trainer.state.global_step == 2
    assert config.save_strategy == "no"
    assert (config.bf16, config.use_cpu, config.report_to) == (False, True, [])
    assert (trainer._factors.spec.objective.eps_low, trainer._factors.spec.objective.dual_clip) == (0.1, 3.0)
    assert type(trainer._factors.spec.aggregation).__name__ == "SeqMeanTokenSumNorm"
    assert trainer._factors.spec.aggregation.length == config.max_completion_length
    assert trainer.reward_func_names == ["answer_reward"]


def test_two_sources_of_one_quantity(dgpo: Callable[..., Any], quick: list[str], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("task: addition\nobjective_kwargs: {eps_low: 0.3}\n")
    done = dgpo("train", "--config", file, *quick, "--epsilon", "0.1", "--epsilon_high", "0.2")
    done.one_error("epsilon = 0.1 and objective_kwargs['eps_low'] = 0.3", "set one of them")


# --- data sets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["prompt", "problem", "question"])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_data_file(
    dgpo: Callable[..., Any], quick: list[str], tmp_path: Path, seen: list[DGPOTrainer], column: str, suffix: str
) -> None:
    data = Dataset.from_list([{column: f"{a}+{a}=", "answer": 2 * a, "source": "test"} for a in range(16)])
    file = tmp_path / f"data{suffix}"
    data.to_json(file) if suffix == ".jsonl" else data.to_parquet(file)
    done = dgpo("train", "--dataset", file, *quick, "--max_steps", 2, "--prompt_template", "Q: {prompt}")
    assert done.code == 0, done.err
    (trainer,) = seen
    assert trainer.train_dataset[3]["prompt"] == "Q: 3+3="
    assert trainer.train_dataset[3]["answer"] == "6"
    assert "rewards/answer_reward/mean" in history(trainer)[0]


def test_evaluation_during_training(
    dgpo: Callable[..., Any], quick: list[str], tmp_path: Path, seen: list[DGPOTrainer]
) -> None:
    """TRL's eval_strategy on a file of its own, with the same template; rewards are logged as TRL logs them."""
    files = []
    for name, first in (("train", 0), ("held-out", 50)):
        files.append(tmp_path / f"{name}.jsonl")
        rows = [{"problem": f"{a}+{a}=", "answer": str(2 * a)} for a in range(first, first + 8)]
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [
        "--eval_strategy",
        "steps",
        "--eval_steps",
        2,
        "--eval_dataset",
        files[1],
        "--prompt_template",
        "Q {prompt}",
    ]
    done = dgpo("train", "--dataset", files[0], *quick, *flags)
    assert done.code == 0, done.err
    (trainer,) = seen
    assert trainer.eval_dataset[0]["prompt"] == "Q 50+50="
    evaluated = [row for row in trainer.state.log_history if "eval_reward" in row]
    assert [row["step"] for row in evaluated] == [2, 4]
    assert all("eval_rewards/answer_reward/mean" in row for row in evaluated)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--task", "addition"], ("addition", "validation")),
        (["--task", "gsm8k"], ("gsm8k", "test")),
        (["--dataset", "some/data"], ("some/data", "test")),
        (["--dataset", "some/data", "--dataset_test_split", "dev"], ("some/data", "dev")),
        (["--dataset", "x.jsonl", "--eval_dataset", "y.jsonl"], ("y.jsonl", "test")),
        (["--dataset", "some/data", "--eval_dataset", "other/data"], ("other/data", "test")),
    ],
)
def test_what_is_held_out(words: list[str], expected: tuple[str, str]) -> None:
    words += ["--model_name_or_path", "m", "--use_cpu", "--bf16", "false", "--eval_strategy", "steps"]
    kinds = [TrainArguments, ModelArguments, DGPOConfig]
    args, _, config = parse(Parser(kinds, prog="x"), words)
    assert held_out(args, config) == expected


def test_gsm8k(dgpo: Callable[..., Any], quick: list[str], seen: list[DGPOTrainer]) -> None:
    """The file of benchmark problems, with the default reward of data sets, off-policy."""
    if not GSM8K.is_file():
        pytest.skip(f"needs {GSM8K.name} in the folder shared/benchmarks beside the repository")
    done = dgpo("train", "--dataset", GSM8K, *quick, "--max_completion_length", 12)
    assert done.code == 0, done.err
    (trainer,) = seen
    assert len(trainer.train_dataset) == 7473
    rows = history(trainer)
    assert [row["rewards/answer_reward/mean"] for row in rows if "reward" in row]
    assert trainer.state.global_step == 4


@pytest.fixture
def chatting(tiny: Path, tmp_path: Path) -> Path:
    """The tiny model, with a chat template."""
    model = tmp_path / "model"
    AutoModelForCausalLM.from_pretrained(tiny).save_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer.save_pretrained(model)
    return model


@pytest.mark.parametrize("chat", [True, False])
def test_chat(
    dgpo: Callable[..., Any], quick: list[str], chatting: Path, tmp_path: Path, seen: list[DGPOTrainer], chat: bool
) -> None:
    """A tokenizer with a chat template gets one user message per prompt; without the flag a note says that it may."""
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps({"problem": f"{a}+{a}=", "answer": str(2 * a)}) + "\n" for a in range(8)))
    flags = ["--model_name_or_path", chatting, "--max_steps", 1, *(["--chat"] if chat else [])]
    done = dgpo("train", "--dataset", file, *quick, *flags)
    assert done.code == 0, done.err
    assert seen[0].train_dataset[0]["prompt"] == ([{"role": "user", "content": "0+0="}] if chat else "0+0=")
    assert ("note: the prompts are plain text" in done.out) is not chat


def test_chat_of_a_benchmark_is_up_to_the_tokenizer(
    dgpo: Callable[..., Any], quick: list[str], chatting: Path, tiny: Path, seen: list[DGPOTrainer]
) -> None:
    """As in `dgpo eval` and `eval_benchmarks`, which would ask otherwise than the model was trained."""
    pytest.importorskip("reasoning_gym")
    task = ["--task", "reasoning_gym:gcd,train_size=16,validation_size=4", "--eval_on_start", "--max_steps", 1]
    kinds = []
    for model, flags in ((chatting, []), (chatting, ["--no_chat"]), (tiny, [])):
        done = dgpo("train", *task, *quick, "--model_name_or_path", model, "--overwrite_output_dir", *flags)
        assert done.code == 0, done.err
        assert "note: the prompts are plain text" not in done.out
        kinds.append({type(seen[-1].train_dataset[0]["prompt"]), type(seen[-1].eval_dataset[0]["prompt"])})
    assert kinds == [{list}, {str}, {str}]


def test_a_reward_beside_the_user(
    dgpo: Callable[..., Any],
    quick: list[str],
    tmp_path: Path,
    seen: list[DGPOTrainer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An import path is looked for in the working folder, too; several rewards are added up."""
    (tmp_path / "my_rewards_of_this_test.py").write_text(
        "def length(completions, **kwargs):\n    return [float(len(text)) for text in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    rewards = ["--rewards", "answer_reward", "my_rewards_of_this_test.length"]
    done = dgpo("train", "--task", "addition", *quick, "--max_steps", 1, *rewards)
    assert done.code == 0, done.err
    assert sys.path == path
    (row,) = history(seen[0])
    assert row["reward"] == pytest.approx(row["rewards/length/mean"] + row["rewards/answer_reward/mean"])


OWN_ERRORS = """
from dataclasses import dataclass
from dgpo.objectives import Objective

def bare(completions):
    return [0.0 for _ in completions]

def text(completions, **kwargs):
    return "0" * len(completions)

def spread(completions, **kwargs):
    return [float(i % 4) for i, _ in enumerate(completions)]

def nothing(completions, **kwargs):
    return [None for _ in completions]

@dataclass(frozen=True, kw_only=True)
class NaN(Objective):
    def weight(self, tokens):
        return (tokens.ratio - 2).log()
"""


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rewards", "errors_of_this_test:bare"], "reward 'bare' takes no **kwargs; TRL passes prompts, completions"),
        (["--rewards", "errors_of_this_test:text"], "reward 'text' returned '0"),
        (
            ["--objective", "errors_of_this_test:NaN", "--rewards", "errors_of_this_test:spread"],
            "NaN.weight returned nan at A = ",
        ),
    ],
)
def test_an_error_of_the_user_is_one_line(
    dgpo: Callable[..., Any], quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: Any, said: str
) -> None:
    (tmp_path / "errors_of_this_test.py").write_text(OWN_ERRORS)
    monkeypatch.chdir(tmp_path)
    dgpo("train", "--task", "addition", *quick, *flags).one_error(said)


def test_a_run_without_a_scored_completion_says_so(
    dgpo: Callable[..., Any], quick: list[str], output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "errors_of_this_test.py").write_text(OWN_ERRORS)
    monkeypatch.chdir(tmp_path)
    done = dgpo("train", "--task", "addition", *quick, "--rewards", "errors_of_this_test:nothing", "--max_steps", 1)
    assert done.code == 0, done.err
    last = f"done: 1 update, but no completion was scored: every reward was None or NaN; model saved in {output}"
    assert done.out.splitlines()[-1] == last


# --- resuming --------------------------------------------------------------------------------------------------------


def test_resume_continues(dgpo: Callable[..., Any], quick: list[str], output: Path, seen: list[DGPOTrainer]) -> None:
    """From the last checkpoint, on to max_steps; with --resume_from_checkpoint from the one that is named."""
    saving = ["--task", "addition", *quick, "--save_strategy", "steps", "--save_steps", 4]
    assert dgpo("train", *saving, "--max_steps", 8).code == 0
    assert {path.name for path in output.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-8"}
    done = dgpo("train", *saving, "--max_steps", 12, "--resume")
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1].startswith("done: 12 updates")
    again = dgpo("train", *saving, "--max_steps", 12, "--resume_from_checkpoint", output / "checkpoint-4")
    assert again.code == 0, again.err
    _, resumed, named = seen
    for trainer in (resumed, named):
        assert trainer.state.global_step == 12
        assert [row["step"] for row in history(trainer)] == list(range(1, 13))
    # the rows of the first run are carried over, not trained again
    assert history(resumed)[:8] == history(seen[0])
    saved = json.loads((output / "checkpoint-12" / "trainer_state.json").read_text())
    assert saved["global_step"] == saved["max_steps"] == 12


def test_options_of_the_config_reach_the_trainer(
    dgpo: Callable[..., Any], quick: list[str], seen: list[DGPOTrainer]
) -> None:
    """One of every kind: mapping as JSON, switch with and without a value, list, PEFT."""
    flags = ["--advantage", "leave_one_out", "--reward_weights", "2.0", "--mask_truncated_completions"]
    flags += ["--generation_kwargs", '{"min_new_tokens": 2}', "--beta", "0.1", "--no_shuffle_dataset"]
    flags += ["--use_peft", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj"]
    done = dgpo("train", "--task", "addition", *quick, "--max_steps", 1, *flags)
    assert done.code == 0, done.err
    (trainer,) = seen
    config: DGPOConfig = trainer.args
    assert config.advantage == "leave_one_out"
    assert config.reward_weights == [2.0]
    assert (config.mask_truncated_completions, config.shuffle_dataset) == (True, False)
    assert config.generation_kwargs == {"min_new_tokens": 2}
    assert trainer.model.peft_config["default"].r == 4


def test_a_plan_says_where_each_setting_comes_from_and_a_run_records_the_values(
    dgpo: Callable[..., Any], tiny: Path, tmp_path: Path, output: Path
) -> None:
    (tmp_path / "base.yaml").write_text(
        f"task: addition\nmodel_name_or_path: {tiny}\nlearning_rate: 3e-4\nobjective_kwargs: {{n: 2}}\n"
        "use_cpu: true\nbf16: false\nmax_completion_length: 4\nmax_steps: 9\nreport_to: none\n"
    )
    file = tmp_path / "run.yaml"
    file.write_text(f"base: base.yaml\noutput_dir: {output}\nobjective_kwargs: {{m: 3}}\nrecord: {output}/record\n")
    plan = dgpo("train", "--config", file, "--max_steps", 1, "--dry_run").out
    of_base, own = plan.index(f"set in {tmp_path}/base.yaml"), plan.index(f"set in {file}")
    flags = plan.index("set by flags")
    assert of_base < plan.index("  learning_rate: 3e-4") < own < plan.index('  objective_kwargs: {"m": 3}') < flags
    assert flags < plan.index("  max_steps: 1") == plan.rindex("max_steps: ") - 2
    done = dgpo("train", "--config", file, "--max_steps", 1)
    assert done.code == 0, done.err
    config = json.loads((output / "record" / "run.json").read_text(encoding="utf-8"))["config"]
    assert (config["learning_rate"], config["objective_kwargs"], config["max_steps"]) == (3e-4, {"m": 3}, 1)
