"""`dgpo train --dry_run`: prints the plan, loads nothing, asks nobody, and refuses what a run would refuse."""

from __future__ import annotations

import json
import re
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dgpo.cli.dry_run import plan_of, world_of
from dgpo.cli.errors import UserError

Run = Callable[..., Any]
HUB = "Qwen/Qwen2.5-1.5B"
FILES = Path(__file__).resolve().parents[2] / "recipes" / "accelerate"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, no model, no launcher."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"a dry run loads nothing: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", refuse)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", refuse)
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def hub(output: Path) -> list[str]:
    """A run of a hub model; bf16 is TRL's default, which asks for a GPU in a real run."""
    return ["--task", "addition", "--model_name_or_path", HUB, "--output_dir", str(output), "--num_generations", "4"]


def test_prints_the_plan(dgpo: Run, hub: list[str], output: Path) -> None:
    done = dgpo("train", *hub, "--dry-run", "--gpu", "h100", "--max_steps", 10)
    assert done.code == 0, done.err
    for words in (
        "1,543,714,304 parameters",
        "28 layers, hidden 1,536, 12 heads (2 of keys and values), MLP 8,960, vocabulary 151,936, head tied",
        "1 process (no --accelerate_config and no --num_gpus)",
        "8 prompts x 4 completions = 32; up to 16,384 tokens of 512 each",
        "8 rows x 1 micro-batch x 1 process = 8 completions (2 prompts' worth); up to 4,096 tokens",
        "10 updates, 2.5 generations",
        "DGPO(n=1, m=2, eps_low=0.2, eps_high=0.2",
        "4 B x 1,543,714,304 parameters",
        "not held: logits",
        "fits in 79 GiB of an H100 80 GB",
        "weight w on ∇log π by ratio r",
        "reverse_left",
        "generation with transformers is not estimated",
        "9,000 prompts, counted",
        "activations are an estimate",
    ):
        assert words in " ".join(done.out.split()), words
    assert "\x1b" not in done.out  # plain where it is piped
    assert not output.exists()


@pytest.mark.parametrize(
    ("flags", "updates", "prompts"),
    [
        ([], 4, 8),
        (["--num_iterations", "3"], 3, 2),
        (["--num_iterations", "2", "--gradient_accumulation_steps", "2"], 2, 4),
        (["--steps_per_generation", "6", "--gradient_accumulation_steps", "2"], 3, 12),
        (["--generation_batch_size", "8"], 1, 2),
    ],
)
def test_the_schedule_is_the_configs(dgpo: Run, hub: list[str], flags: list[str], updates: int, prompts: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = " ".join(dgpo("train", *hub, "--dry_run", "--max_steps", 12, *flags).out.split())
    assert f"updates per generation {updates} " in out
    assert f"{prompts} prompts x 4 completions" in out
    assert f"12 updates, {12 / updates:g} generations" in out
    assert ("every ratio is 1" in out) is (updates == 1)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--task", "math500"], "unknown size"),
        (["--task", "gsm8k"], "7,473 prompts, as published"),
        (["--dataset", "openai/gsm8k", "--dataset_config", "main"], "7,473 prompts, as published"),
        (
            ["--dataset", "open-r1/DAPO-Math-17k-Processed", "--dataset_config", "all"],
            "17,398 prompts, the data card's",
        ),
        (["--dataset", "open-r1/DAPO-Math-17k-Processed", "--dataset_config", "cn"], "3,282 prompts, the data card's"),
        (["--dataset", "open-r1/DAPO-Math-17k-Processed"], "unknown size"),
        (["--dataset", "openai/gsm8k", "--dataset_config", "main", "--dataset_split", "train[:9]"], "unknown size"),
    ],
)
def test_the_size_of_the_data(dgpo: Run, hub: list[str], flags: list[str], text: str) -> None:
    done = dgpo("train", *hub[2:], *flags, "--dry_run")
    assert done.code == 0, done.err
    assert text in done.out
    assert ("the run" in done.out and "unknown\n" in done.out.replace(" ", "")) == (text == "unknown size")


def test_what_does_not_fit_says_so_first_and_last_and_fails(dgpo: Run, hub: list[str]) -> None:
    """Weights, gradients and Adam are 23.0 GiB; activations come on top."""
    fits = dgpo("train", *hub, "--dry_run", "--gpu", "h100", "--max_steps", 10)
    assert fits.code == 0
    assert fits.out.splitlines()[0].startswith("fits in 79 GiB of an H100 80 GB, by this estimate: ")
    assert "NOT" not in fits.out
    large = dgpo("train", *hub, "--dry_run", "--gpu", "rtx4090", "--per_device_train_batch_size", 64)
    assert large.code == 3
    first, *_, last = large.out.strip().splitlines()
    assert first.strip() == last.strip()
    assert first.startswith("does NOT fit in 23.5 GiB of an RTX 4090 24 GB, by this estimate: ")
    plan = plan_of([*hub, "--gpu", "rtx4090", "--per_device_train_batch_size", "64"])
    assert f"{plan.update_gib:.1f} in an update, {plan.generation_gib:.1f} in generation" in first


def test_the_time_of_the_run(dgpo: Run, hub: list[str]) -> None:
    """On the GPUs of the plan, by their name; vLLM on others takes as many again."""
    vllm = ["--use_vllm", "--vllm_mode", "server", "--num_gpus", 2]
    for flags, end in (
        ([], "on one H100; assumed"),
        (["--num_gpus", 2], "on 2 H100; assumed"),
        (vllm, "on 2 H100, and as many that sample; assumed"),
    ):
        out = " ".join(dgpo("train", *hub, "--dry_run", "--gpu", "h100", "--max_steps", 1000, *flags).out.split())
        assert end in out
        # the result before the arithmetic
        found = re.search(r"takes at most (\S+ \w+) on ", out)
        assert found is not None
        assert f"= {found[1]} on " in out[found.end() :]
        assert out.index("FLOPs per generation") > found.end()
        assert (f"on {end.split()[1]} H100, generation not included" in out) == ("--use_vllm" not in flags)
        assert ("the run without generation at most 1,000 updates x " in out) == ("--use_vllm" not in flags)
    assert "the run at most 1,000 updates x " in out
    assert " + 250 generations x " in out


def test_without_a_gpu_there_is_no_verdict_and_no_time(dgpo: Run, hub: list[str]) -> None:
    out = dgpo("train", *hub, "--dry_run").out
    assert "fits" not in out
    assert "time, computed" not in out
    assert "FLOPs per generation" in out


def test_an_unknown_model(dgpo: Run, hub: list[str]) -> None:
    done = dgpo("train", *hub, "--dry_run", "--model_name_or_path", "nobody/nothing")
    assert done.code == 0
    assert "unknown model: memory and time are not estimated; give a local folder" in done.out
    assert "memory of one GPU" not in done.out


def test_a_folder_and_a_data_file(dgpo: Run, tiny: Path, tmp_path: Path, output: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i} + 1 =", "answer": str(i + 1)}) + "\n" for i in range(40)))
    flags = ["--dataset", data, "--model_name_or_path", tiny, "--output_dir", output, "--use_cpu", "--bf16", "false"]
    done = dgpo("train", *flags, "--dry_run", "--num_train_epochs", 2)
    assert done.code == 0, done.err
    out = " ".join(done.out.split())
    assert "40 prompts, counted" in out
    assert "80 updates, 20 generations" in out  # 4 prompts x 8 completions a generation, 4 updates, 2 epochs


@pytest.mark.parametrize(
    ("flags", "processes", "sharding", "source"),
    [
        ([], 1, "one process", "no --accelerate_config and no --num_gpus"),
        (["--num_gpus", "4"], 4, "DDP", "--num_gpus"),
        (["--accelerate_config", str(FILES / "fsdp2-8gpu.yaml")], 8, "FSDP2", str(FILES / "fsdp2-8gpu.yaml")),
        (["--accelerate_config", str(FILES / "zero3-8gpu.yaml"), "--num_gpus", "16"], 16, "ZeRO-3", "--num_gpus, "),
    ],
)
def test_the_world(hub: list[str], flags: list[str], processes: int, sharding: str, source: str) -> None:
    world = plan_of([*hub, "--dry_run", *flags]).world
    assert (world.processes, world.sharding) == (processes, sharding)
    assert world.source.startswith(source)


@pytest.mark.parametrize(
    ("flags", "assumed"),
    [
        ([], False),
        (["--num_gpus", "1"], False),
        (["--num_gpus", "4"], True),
        (["--num_gpus", "4", "--accelerate_config", str(FILES / "fsdp2-8gpu.yaml")], False),
    ],
)
def test_a_sharding_that_was_not_given_is_said_to_be_assumed(
    dgpo: Run, hub: list[str], flags: list[str], assumed: bool
) -> None:
    out = dgpo("train", *hub, "--dry_run", *flags).out
    assert ("note: sharding not given: DDP assumed; use --accelerate_config FILE to change it" in out) == assumed


def test_one_of_a_thing_is_not_several(dgpo: Run, hub: list[str]) -> None:
    flags = ["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "4", "--steps_per_generation", "4"]
    with pytest.warns(UserWarning, match="on-policy"):
        done = dgpo("train", *hub, "--dry_run", *flags, "--max_steps", "1")
    out = " ".join(done.out.split())
    assert "1 prompt x 4 completions = 4;" in out
    assert "1 row x 4 micro-batches x 1 process = 4 completions (1 prompt's worth)" in out
    assert "1 update, 1 generation " in out


def test_the_world_of_a_launcher(hub: list[str], monkeypatch: pytest.MonkeyPatch, dgpo: Run) -> None:
    """Several ranks: their number is WORLD_SIZE, and the first prints."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert plan_of(hub).world.processes == 2
    assert plan_of(hub).world.source == "WORLD_SIZE"
    monkeypatch.setenv("RANK", "1")
    assert dgpo("train", *hub, "--dry_run").out == ""


def test_batches_are_those_of_the_world(hub: list[str]) -> None:
    """One row a rank makes no group of four on one GPU; on four it does."""
    flags = ["--per_device_train_batch_size", "1", "--steps_per_generation", "2", "--gradient_accumulation_steps", "1"]
    with pytest.raises(UserError, match="num_generations"):
        plan_of([*hub, *flags])
    assert plan_of([*hub, *flags, "--num_gpus", "4"]).prompts == 2


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--gpu", "h1000"], ["unknown GPU 'h1000'", "did you mean 'h100'"]),
        (["--num_gpus", "0"], ["num_gpus = 0 is not allowed; expected >= 1"]),
        (["--accelerate_config", "nowhere.yaml"], ["accelerate_config = 'nowhere.yaml': no such file"]),
        (
            ["--rewards", "math_reward", "--dynamic_sampling", "--dynamic_sampling_rewards", "maths_reward"],
            ["dynamic_sampling_rewards: unknown reward 'maths_reward'", "did you mean 'math_reward'"],
        ),
        (
            ["--dynamic_sampling", "--dynamic_sampling_rewards", "test_reward"],
            ["dynamic_sampling_rewards: unknown reward 'test_reward'", "did you mean 'text_reward'"],
        ),
        (["--reward_weights", "1", "2"], ["reward_weights = [1.0, 2.0]", "expected one for each reward: text_reward"]),
        (
            ["--rewards", "math_reward", "format_reward", "--reward_weights", "1"],
            ["reward_weights = [1.0]", "expected one for each reward: math_reward, format_reward"],
        ),
        (
            ["--rewards", "format_reward", "--dynamic_sampling"],
            ["no reward to select groups by", "dynamic_sampling_rewards"],
        ),
        (
            ["--use_vllm", "--vllm_mode", "colocate", "--vllm_tensor_parallel_size", "2", "--num_gpus", "3"],
            ["vllm_tensor_parallel_size = 2 does not divide the 3 ranks"],
        ),
        (
            ["--load_best_model_at_end", "--eval_strategy", "steps", "--save_strategy", "no"],
            ["requires the save and eval strategy to match", "but found - Evaluation strategy"],
        ),
        (["--load_in_4bit"], ["does not estimate quantised weights"]),
        (["--objective", "dgop"], ["unknown objective 'dgop'", "'dgpo'"]),
        (["--correction", "truncate"], ["needs the sampler's log-probs"]),
        (["--rewards", "math_rewrd"], ["unknown reward 'math_rewrd'", "did you mean 'math_reward'"]),
        (["--num_gpu", "2"], ["unknown argument '--num_gpu'", "did you mean 'num_gpus'"]),
        (["--use_peft", "--lora_target_modules", "lm_head"], ["'lm_head' is not counted here"]),
    ],
)
def test_wrong_settings(dgpo: Run, hub: list[str], flags: list[str], parts: list[str]) -> None:
    dgpo("train", *hub, "--dry_run", *flags).one_error(*parts)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 1}}, "with fsdp_version: 2"),
        ({"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2, "fsdp_offload_params": True}}, "offloads"),
        (
            {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 3, "offload_param_device": "cpu"}},
            "offloads to none, cpu",
        ),
        ({"distributed_type": "MEGATRON_LM"}, "distributed_type MEGATRON_LM, which --dry_run does not estimate"),
        ({"num_processes": "many"}, "is not a configuration of accelerate"),
    ],
)
def test_accelerate_files_that_are_not_estimated(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    base = yaml.safe_load((FILES / "fsdp2-8gpu.yaml").read_text())
    del base["fsdp_config"]
    file = tmp_path / "accelerate.yaml"
    file.write_text(yaml.safe_dump({**base, "distributed_type": "MULTI_GPU", **changes}))
    with pytest.raises(ValueError, match=words):
        world_of(str(file), None)


@pytest.mark.parametrize("text", ["no mapping", "{distributed_type: FSDP, unknown_key: 1}", "a: [1"])
def test_files_that_are_none_of_accelerate(tmp_path: Path, text: str) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match="is not a configuration of accelerate"):
        world_of(str(file), None)


@pytest.mark.parametrize("flag", [["--num_gpus", "2"], ["--gpu", "h100"], ["--accelerate_config", "x.yaml"]])
def test_flags_of_the_plan_without_it(dgpo: Run, quick: list[str], flag: list[str]) -> None:
    """A run would not heed them."""
    dgpo("train", *quick, "--task", "addition", *flag).one_error("is for --dry_run", "accelerate launch")


def test_a_setting_of_a_file_is_no_flag(dgpo: Run, quick: list[str], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("dry_run: true\n")
    dgpo("train", "--config", file, *quick, "--task", "addition").one_error("give --dry_run on the command line")


def test_help_lists_the_flags(dgpo: Run) -> None:
    out = dgpo("train", "--help", "--dry_run").out
    for flag in ("--dry_run", "--accelerate_config", "--num_gpus", "--gpu "):
        assert flag in out
    assert "Exit code 3 if it does not fit" in " ".join(out.split())


def test_an_adaptive_and_a_sequence_level_objective(dgpo: Run, hub: list[str]) -> None:
    for name in ("bapo", "gspo"):
        done = dgpo("train", *hub, "--dry_run", "--objective", name)
        assert done.code == 0, done.err
        assert "reverse_right" in done.out


def test_lora_beside_a_frozen_model(hub: list[str]) -> None:
    plan = plan_of([*hub, "--use_peft", "--lora_r", "8", "--dtype", "bfloat16", "--beta", "0.1"])
    weights, *_ = plan.memory
    assert plan.setting.trainable == plan.shape.lora_parameters(8, ("q_proj", "v_proj"))
    assert weights.bytes == 2 * plan.shape.parameters + 4 * plan.setting.trainable
    assert "reference model" not in {term.name for term in plan.memory}
    assert {"reference model"} <= {term.name for term in plan_of([*hub, "--beta", "0.1"]).memory}


def test_the_model_of_the_run_may_be_told_apart_in_model_init_kwargs(hub: list[str]) -> None:
    halved = plan_of([*hub, "--model_init_kwargs", '{"dtype": "bfloat16", "attn_implementation": "flash_attention_2"}'])
    assert halved.memory[0].bytes == 2 * halved.shape.parameters
    assert "attention mask" not in {term.name for term in halved.memory}
