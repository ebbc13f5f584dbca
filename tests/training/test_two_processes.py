"""Every way to spread a run over processes (gloo, CPU) trains what one process trains.

Six updates, at least four of them off-policy, on responses of 1 to 6 tokens; the world size and the wrapper are
asserted, because most mistakes of a launch end in one process, or in several that do not know of each other.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from distributed_launch import Run, start, train
from transformers import AutoModelForCausalLM

SCENARIOS: dict[str, dict[str, Any]] = {
    "token-mean": {"aggregation": "token-mean", "idle": True, "padding_free": False},
    "packed": {"aggregation": "token-mean", "idle": True, "padding_free": True, "shared_prompts": False},
    "shared": {"aggregation": "token-mean", "idle": True, "shared_prompts": True, "gradient_checkpointing": True},
    "log-probs": {"aggregation": "token-mean", "idle": True, "fused_loss": False},
    "gspo": {"aggregation": "seq-mean-token-mean", "objective": "gspo", "idle": True},
    "entropy": {"aggregation": "seq-mean-token-mean", "advantage": "leave_one_out", "entropy_coef": 0.01},
    "reference": {"aggregation": "seq-mean-token-sum-norm", "objective": "maspo", "beta": 0.05},
    # log π_old by a pass of its own for all but the first update of a generation
    "old": {"steps_per_generation": 4, "num_iterations": 2, "idle": True},
    # tokens without a log-prob of the sampler, on half of the ranks
    "unscored": {"correction": "truncate", "unscored": True},
    "untied": {"untied": True, "idle": True},
    # several forward and backward passes in one micro-step, not equally many on each rank by itself
    "budget": {"aggregation": "seq-mean-token-mean", "max_tokens_per_micro_batch": 24, "beta": 0.05},
    "budget, old": {"steps_per_generation": 4, "num_iterations": 2, "max_tokens_per_micro_batch": 24, "idle": True},
}
BY_MICRO_BATCH = ("objective/weight/ess", "objective/rows_dropped", "objective/padding")
DYNAMIC = {"dynamic_sampling": True, "max_num_gen_batches": 20, "unrewarded": "135678", "num_iterations": 2}
WRAPPED_LINEAR = {"transformer_layer_cls_to_wrap": ["Qwen3DecoderLayer", "Linear"]}


def deepspeed(stage: int) -> dict[str, Any]:
    """The shortest DeepSpeed configuration that trains on a CPU with one of torch's optimisers."""
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True},
    }


def launch(ranks: int, folder: Path, out: Path, options: dict[str, Any]) -> Run:
    """One scenario, named after `out`."""
    return train("torchrun" if ranks > 1 else "python", ranks, folder, out.parent, {out.name: options})[out.name]


@pytest.fixture(scope="module")
def one(tiny_folder, tmp_path_factory):
    runs = train("python", 1, tiny_folder, tmp_path_factory.mktemp("one"), SCENARIOS)
    before = dict(AutoModelForCausalLM.from_pretrained(tiny_folder).named_parameters())
    for name, run in runs.items():
        assert run.ranks[0]["world"] == 1
        assert run.ranks[0]["fused"] == (name != "log-probs")
        assert "DistributedDataParallel" not in run.ranks[0]["wrapper"]
        assert max(distance(run.parameters[key], value) for key, value in before.items()) > 1e-2
        # off-policy and ragged, or nothing was shown
        assert sum(row["objective/fraction/inside"] < 0.99 for row in run.log) >= 4, name
        assert run.log[0]["completions/min_length"] < run.log[0]["completions/max_length"]
    for name in ("packed", "shared"):
        check_equal(runs["token-mean"], runs[name])
        assert {row["objective/padding"] for row in runs[name].log} == {0.0}
    return runs


def distance(a, b):
    return (a - b).abs().max().item()


def check_equal(one: Run, many: Run) -> None:
    assert one.parameters.keys() == many.parameters.keys()
    assert max(distance(one.parameters[key], many.parameters[key]) for key in one.parameters) < 1e-5
    saved = dict(AutoModelForCausalLM.from_pretrained(many.model).named_parameters())
    assert all(distance(many.parameters[key], saved[key]) == 0 for key in saved)
    for alone, together in zip(one.log, many.log, strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], abs=1e-5)
        assert together["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4)
        for key in alone:
            # shares of a micro-batch, which is another one on every number of ranks
            split = key.startswith("objective/mass/") or key in BY_MICRO_BATCH
            if key == "entropy" or (key.startswith("objective/") and not split):
                assert together[key] == pytest.approx(alone[key], rel=1e-4, abs=1e-5), key


def check_idle(run: Run) -> None:
    """Every rank had micro-batches with nothing but zero advantages while another rank was learning."""
    together = list(zip(*(facts["informative"] for facts in run.ranks), strict=True))
    for rank in range(len(run.ranks)):
        assert any(not step[rank] and any(step) for step in together)
        assert any(step[rank] for step in together)


def check_all(one: dict[str, Run], many: dict[str, Run], ranks: int, wrapper: str) -> None:
    for name, run in many.items():
        assert [facts["world"] for facts in run.ranks] == [ranks] * ranks
        assert all(wrapper in facts["wrapper"] for facts in run.ranks)
        # each rank takes the same of the two ways to the loss
        assert len({facts["log_prob_passes"] for facts in run.ranks}) == 1
        if name in one:
            check_equal(one[name], run)
            assert run.ranks[0]["fused"] == one[name].ranks[0]["fused"]
            # how many depends on the number of parts that an update is cut into
            assert (run.ranks[0]["log_prob_passes"] > 0) == (one[name].ranks[0]["log_prob_passes"] > 0)
        if SCENARIOS.get(name, {}).get("idle"):
            check_idle(run)


@pytest.fixture(scope="module")
def two(tiny_folder, tmp_path_factory):
    """Replicated and sharded runs in one launch: two more processes would import for as long as they train."""
    scenarios = {**SCENARIOS, "dynamic": {**DYNAMIC, "max_steps": 4}}
    names = ["token-mean", "packed", "shared", "log-probs", "old", "unscored", "untied", "budget", "budget, old"]
    sharded = {name: {**SCENARIOS[name], "fsdp": True} for name in names}
    apart = {"fsdp": True, "fsdp_config": WRAPPED_LINEAR, "untied": True}
    sharded["head apart"] = {**apart, **SCENARIOS["untied"]}
    # one rank cannot take the fused way; if the other did, they would wait for each other for ever
    sharded["unscored, head apart"] = {**apart, **SCENARIOS["unscored"], "max_steps": 2}
    sharded["sampled"] = {"fsdp": True, "sampled": True, "max_steps": 2}
    # the sharded ones last: they tell accelerate that these are GPUs
    both = scenarios | {f"{name}, FSDP2": options for name, options in sharded.items()}
    runs = train("accelerate", 2, tiny_folder, tmp_path_factory.mktemp("two"), both)
    return {name: runs[name] for name in scenarios}, {name: runs[f"{name}, FSDP2"] for name in sharded}


def test_two_processes_of_accelerate(one, two):
    runs, _ = two
    check_all(one, runs, 2, "DistributedDataParallel")
    # ranks find different numbers of informative groups, and still generate and train together to the end
    log = runs["dynamic"].log
    assert len(log) == 4
    assert max(row.get("dynamic_sampling/generation_batches", 0) for row in log) > 1
    assert {row.get("dynamic_sampling/groups_without_spread", 0.0) for row in log} == {0.0}
    assert {row["objective/advantage/zero_fraction"] for row in log} == {0.0}


@pytest.mark.soak
def test_four_processes_of_torchrun(one, tiny_folder, tmp_path):
    scenarios = {name: SCENARIOS[name] for name in ("token-mean", "gspo", "reference", "old")}
    check_all(one, train("torchrun", 4, tiny_folder, tmp_path, scenarios), 4, "DistributedDataParallel")


def test_fsdp2(one, two):
    """Sharded by accelerate, and with an output head in a group of its own, which nothing gathers before the loss."""
    _, runs = two
    check_all(one, runs, 2, "FSDPModule")
    assert all(facts["sharded"] == len(run.parameters) for run in runs.values() for facts in run.ranks)
    check_equal(one["untied"], runs["head apart"])
    assert [math.isfinite(row["loss"]) for row in runs["sampled"].log] == [True] * 2


@pytest.mark.soak
@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install deepspeed"
)
def test_zero(one, tiny_folder, tmp_path):
    names = ["token-mean", "packed", "shared", "log-probs", "old", "budget, old"]
    two = {f"{name}, ZeRO-2": {**SCENARIOS[name], "deepspeed": deepspeed(2)} for name in names}
    three = {f"{name}, ZeRO-3": {**SCENARIOS[name], "deepspeed": deepspeed(3)} for name in names}
    runs = train("torchrun", 2, tiny_folder, tmp_path, {**two, **three})
    check_all(one, runs, 2, "DeepSpeedEngine")
    for name, run in runs.items():
        stage = int(name[-1])
        assert [facts["zero_stage"] for facts in run.ranks] == [stage] * 2
        assert [facts["sharded"] for facts in run.ranks] == [len(run.parameters) * (stage == 3)] * 2
        assert run.ranks[0]["fused"] == (stage == 2 and not name.startswith("log-probs"))
        check_equal(one[name.rpartition(",")[0]], run)
        check_idle(run)


WATCHED_REWARD = """
import os
import torch.distributed as dist

def watched(completions, **kwargs):
    with open(f"rank-{os.environ['RANK']}", "w") as file:
        file.write(f"{dist.get_world_size()} {len(completions)}")
    return [float(len(text)) for text in completions]
"""


def test_the_command_under_torchrun(tiny_folder, tmp_path):
    """`dgpo train` on two processes: both generate, one logs a line per update and saves the model."""
    (tmp_path / "watched_by_this_test.py").write_text(WATCHED_REWARD)
    options = {
        "rewards": "watched_by_this_test.watched",
        "task": "addition",
        "model_name_or_path": tiny_folder,
        "output_dir": tmp_path / "out",
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 5,
        "learning_rate": 1e-3,
        "bf16": "false",
        "use_cpu": "true",
        "gradient_checkpointing": "false",
        "dataloader_pin_memory": "false",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": "true",
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    executable = Path(sysconfig.get_path("scripts"), "dgpo")
    if not executable.exists():
        pytest.skip("dgpo is not installed in this environment, so there is no console script")
    done = start("torchrun", 2, executable, "train", *flags, cwd=tmp_path)
    # 4 updates of 8 completions on each rank
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in range(2)] == ["2 32", "2 32"]
    # the main process alone prints and logs
    assert [line.split()[0] for line in done.stdout.splitlines() if "  reward " in line] == ["1/4", "2/4", "3/4", "4/4"]
    assert done.stdout.count("schedule   4 updates") == 1
    logged = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged if "objective/weight/mean" in row] == [1, 2, 3, 4]
    assert done.stdout.count("done: 4 updates") == 1
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
