"""Every recipe goes through the parser and the config classes of `dgpo train`, and says what it is."""

from __future__ import annotations

import re
import shlex
import socket
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from recipe_plans import (
    NAMES,
    OWN_PLAN,
    PLANNED,
    RECIPES,
    ROOT,
    SAME_PLAN,
    SIZES,
    dry_run_argv,
    head_of,
    joined,
    of_plan,
    parsed,
    planned,
    text_of,
    under_zero3,
)
from trl.scripts.vllm_serve import ScriptArguments, build_command

from dgpo.cli.dry_run import plan_of
from dgpo.cli.yaml_file import values
from dgpo.correction import Truncate
from dgpo.objectives import DGPO, GRPO, MASPO
from dgpo.plan.plan import Plan
from dgpo.rewards import REWARDS
from dgpo.tasks import TASKS
from dgpo.training.demo import SETTINGS, UPDATES

OBJECTIVE_KEYS = {"objective", "objective_kwargs", "output_dir"}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"a dry run asked for the network: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the commands of the heads are to be typed."""
    monkeypatch.chdir(ROOT)


def test_there_are_recipes() -> None:
    methods = {"dgpo", "maspo", "grpo"}
    papers = {f"dapo-math/{size}-{method}.yaml" for size in SIZES for method in methods}
    others = {"addition.yaml", "gsm8k-0.5b.yaml", "dapo-math/1.5b-dapo.yaml"}
    single = {"single-gpu/1.5b-lora-24gb.yaml", "single-gpu/1.5b-h200.yaml"}
    assert set(NAMES) == papers | others | single


@pytest.mark.parametrize("name", NAMES)
def test_recipe(name: str) -> None:
    """Off-policy, or objectives could not differ; the data is a task or a data set; rewards exist."""
    args, config, _ = parsed(name)
    assert config.updates_per_generation > 1
    assert (args.task in TASKS) != (args.dataset is not None)
    for reward in args.rewards or []:
        assert (reward if isinstance(reward, str) else reward["name"]) in REWARDS
    assert args.prompt_template is None or "{prompt}" in args.prompt_template
    assert config.save_strategy == "no" or config.save_steps % config.updates_per_generation == 0


@pytest.mark.parametrize("name", NAMES)
def test_head_comment(name: str) -> None:
    """Hardware, time and what to expect; the command that launches it; a line in the table."""
    head = head_of(text_of(name))
    assert len(head.splitlines()) <= 45
    if name in SAME_PLAN:
        words = joined(head)
        assert f"see {Path(SAME_PLAN[name]).name}" in words
        assert "Hardware, memory, time, what to expect" in words
    else:
        for word in ("Hardware:", "Time:", "Expect:"):
            assert re.search(rf"^{word} +\S", head, re.MULTILINE), word
    launch = re.search(rf"train (\\\n +)?--config recipes/{re.escape(name)}(?!.*--dry_run)", head)
    assert launch is not None
    assert f"`{name}`" in text_of("README.md")
    assert ("NOT A RESULT: we have not run it" in head) == (name != "addition.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_output_goes_where_git_does_not_look(name: str) -> None:
    assert values(RECIPES / name)["output_dir"].startswith("outputs/")


def test_no_two_recipes_write_into_one_folder() -> None:
    assert len({values(RECIPES / name)["output_dir"] for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_only_what_differs_from_its_base(name: str) -> None:
    own = yaml.safe_load(text_of(name))
    if base := own.pop("base", None):
        inherited = values((RECIPES / name).parent / base)
        assert {key for key, value in values(RECIPES / name).items() if inherited.get(key) != value} == set(own)


@pytest.mark.usefixtures("no_network", "from_the_root")
@pytest.mark.parametrize("name", OWN_PLAN)
def test_the_numbers_of_the_head_are_those_of_the_dry_run(name: str) -> None:
    """And the run fits on the GPU that the head names."""
    argv = dry_run_argv(text_of(name))
    assert argv[:2] == ["--config", f"recipes/{name}"]
    plan = plan_of(argv)
    head = joined(head_of(text_of(name)))
    for phrase in of_plan(plan).values():
        assert phrase in head
    assert plan.gpu is not None
    assert max(plan.update_gib, plan.generation_gib) < 0.95 * plan.gpu.gib
    consistent(plan)
    if plan.world.processes > 1:
        assert plan.world.sharding == "FSDP2"
        assert under_zero3(argv) in head


@pytest.mark.usefixtures("no_network", "from_the_root")
@pytest.mark.parametrize("name", SAME_PLAN)
def test_another_objective_has_the_same_plan(name: str) -> None:
    argv, base = dry_run_argv(text_of(name)), dry_run_argv(text_of(SAME_PLAN[name]))
    assert [word.replace(name, SAME_PLAN[name]) for word in argv] == base
    assert of_plan(plan_of(argv)) == of_plan(plan_of(base))


def consistent(plan: Plan) -> None:
    """16 updates of one generation; micro-batches of all ranks are all of its completions, groups whole."""
    assert plan.config.updates_per_generation == 16
    assert plan.config.generation_batch_size == plan.prompts * plan.config.num_generations
    assert plan.config.generation_batch_size == 16 * plan.completions_per_update
    assert plan.completions_per_update % plan.config.num_generations == 0
    assert plan.why_not_fused is None


@pytest.mark.usefixtures("no_network", "from_the_root")
@pytest.mark.parametrize("size", SIZES)
def test_the_papers_batches(size: str) -> None:
    plan = plan_of(dry_run_argv(text_of(f"dapo-math/{size}-dgpo.yaml")))
    assert (plan.world.processes, plan.prompts, plan.completions_per_update) == (
        8,
        512,
        32 * plan.config.num_generations,
    )
    assert plan.model == f"deepseek-ai/DeepSeek-R1-Distill-Qwen-{SIZES[size]}"
    assert (plan.data_rows, plan.data_source) == (17_398, "the data card's count, second-hand")


@pytest.mark.usefixtures("no_network", "from_the_root")
def test_what_the_accelerate_file_says_of_two_nodes() -> None:
    """Half the micro-batches on twice the GPUs is the same generation."""
    argv = dry_run_argv(text_of("dapo-math/14b-dgpo.yaml"))
    one = plan_of(argv)
    halved = {
        "gradient_accumulation_steps": one.config.gradient_accumulation_steps // 2,
        "steps_per_generation": one.config.gradient_accumulation_steps // 2 * 16,
    }
    two = plan_of([*argv, "--num_gpus", "16", *(f"--{name}={value}" for name, value in halved.items())])
    consistent(two)
    assert (two.prompts, two.completions_per_update) == (one.prompts, one.completions_per_update)
    assert two.update_gib < one.update_gib
    assert "--num_processes 16" in (RECIPES / "accelerate" / "fsdp2-8gpu.yaml").read_text(encoding="utf-8")


@pytest.mark.usefixtures("no_network", "from_the_root")
def test_what_the_head_says_of_14b_on_one_node() -> None:
    """vLLM on the same GPUs fits too."""
    name = "dapo-math/14b-dgpo.yaml"
    found = re.search(r"one node is enough.*?: (--vllm_mode .*? 0\.5)\.", joined(head_of(text_of(name))))
    assert found is not None
    plan = plan_of([*dry_run_argv(text_of(name)), *shlex.split(found.group(1))])
    assert plan.gpu is not None
    assert {term.name for term in plan.memory} >= {"vLLM"}
    assert max(plan.update_gib, plan.generation_gib) < 0.8 * plan.gpu.gib


def test_the_server_of_14b_is_started_as_the_pinned_trl_starts_it() -> None:
    """`trl vllm-serve` is deprecated: it makes this command, which the head has without what are vLLM's defaults."""
    name = "dapo-math/14b-dgpo.yaml"
    head = head_of(text_of(name))
    found = re.search(r"VLLM_SERVER_DEV_MODE=1 vllm (serve .*?)  #", head.replace("\\\n", " "))
    assert found is not None
    words = shlex.split(found.group(1))
    _, config, model = parsed(name)
    assert words[1] == model.model_name_or_path
    made = build_command(
        ScriptArguments(
            model=words[1],
            tensor_parallel_size=8,
            max_model_len=config.vllm_max_model_length,
            enable_prefix_caching=None,
        )
    )
    pairs = set(pairwise(made))
    assert set(zip(words[2::2], words[3::2], strict=True)) <= pairs
    assert {"--tensor-parallel-size", "--max-model-len"} | set(imposed(made)) == set(words[2::2])


def imposed(command: list[str]) -> list[str]:
    """The flags that TRL adds to every server."""
    return [word for word in command[command.index("--weight-transfer-config") :] if word.startswith("--")]


@pytest.mark.parametrize("name", NAMES)
def test_no_head_copies_a_dense_model(name: str) -> None:
    """TRL 1.16 says of --data_parallel_size that above 1 it is an error for these models."""
    assert "data_parallel" not in text_of(name).replace("-", "_")


@pytest.mark.parametrize("name", [name for name in PLANNED if "gsm8k" not in name])
def test_the_correction_is_per_token(name: str) -> None:
    assert parsed(name)[1].make_correction() == Truncate(level="token", cap=2.0)
    assert values(RECIPES / name)["correction"]["level"] == "token"


@pytest.mark.parametrize("size", SIZES)
def test_objectives_of_one_size_differ_in_the_objective_alone(size: str) -> None:
    """Every other value is the same, so that a comparison is one of objectives."""
    recipes = [values(RECIPES / f"dapo-math/{size}-{method}.yaml") for method in ("dgpo", "maspo", "grpo")]
    rest = [{key: value for key, value in one.items() if key not in OBJECTIVE_KEYS} for one in recipes]
    assert rest[0] == rest[1] == rest[2]
    made = [parsed(f"dapo-math/{size}-{method}.yaml")[1].make_objective() for method in ("dgpo", "maspo", "grpo")]
    small = size == "1.5b"
    assert made == [DGPO(n=2 if small else 1, m=2), MASPO(alpha=0.5 if small else 0.3), GRPO(dual_clip=3.0)]


@pytest.mark.parametrize("name", ["fsdp2-8gpu.yaml", "zero3-8gpu.yaml"])
def test_accelerate_reads_its_files(name: str) -> None:
    config = load_config_from_file(str(RECIPES / "accelerate" / name))
    assert isinstance(config, ClusterConfig)
    assert (config.num_processes, config.num_machines, config.mixed_precision) == (8, 1, "bf16")
    kind = {"fsdp2-8gpu.yaml": "FSDP", "zero3-8gpu.yaml": "DEEPSPEED"}[name]
    assert str(config.distributed_type).endswith(kind)
    assert f"`{name}`" in text_of("README.md")


# --- one by one -------------------------------------------------------------------------------------------------------


def test_addition_is_the_demo() -> None:
    args, config, _ = parsed("addition.yaml")
    assert args.task == "addition"
    assert (config.objective, config.make_objective(), config.max_steps) == ("dgpo", DGPO(), UPDATES)
    for field, value in SETTINGS.items():
        assert getattr(config, field) == value, field


@pytest.mark.usefixtures("no_network")
def test_addition_is_planned_for_a_folder(tiny: Path) -> None:
    plan = plan_of(["--config", str(RECIPES / "addition.yaml"), "--model_name_or_path", str(tiny)])
    assert (plan.prompts, plan.config.updates_per_generation, plan.updates) == (32, 4, UPDATES)
    assert plan.memory


def test_gsm8k_is_the_schedule_that_its_comments_say() -> None:
    """16 updates per generation, and the counts of prompts and updates in the head."""
    args, config, model = parsed("gsm8k-0.5b.yaml")
    assert (args.dataset, args.dataset_config, args.chat) == ("openai/gsm8k", "main", True)
    assert config.make_objective() == DGPO(n=2, m=2)
    assert config.updates_per_generation == 16
    assert config.generation_batch_size == 1024
    assert config.generation_batch_size // config.num_generations == 128
    assert (7473 // 128, 7473 // 128 * 16) == (58, 928)
    assert "58 generations of 1,024 completions and 928 updates" in joined(head_of(text_of("gsm8k-0.5b.yaml")))
    assert model.model_name_or_path == "Qwen/Qwen2.5-0.5B-Instruct"


@pytest.mark.usefixtures("no_network")
def test_gsm8k_without_vllm() -> None:
    """The cache that the head speaks of."""
    plan = plan_of(["--config", str(RECIPES / "gsm8k-0.5b.yaml"), "--gpu", "rtx4090"])
    (cached,) = [term for term in plan.memory if term.name == "key-value cache"]
    assert f"their cache takes up to {cached.bytes / 2**30:.1f} GiB" in joined(head_of(text_of("gsm8k-0.5b.yaml")))
    assert plan.generation_gib > 0.95 * 23.5


def test_dapo_has_all_its_parts() -> None:
    args, config, _ = parsed("dapo-math/1.5b-dapo.yaml")
    assert config.make_objective() == GRPO(eps_high=0.28)
    assert (config.aggregation, config.advantage, config.dynamic_sampling) == ("token-mean", "std", True)
    assert args.rewards == ["math_reward", {"name": "soft_overlong_reward", "buffer": 2048, "weight": 0.5}]


def test_addition_trains(dgpo: Callable[..., Any], tiny: Path, output: Path) -> None:
    """One generation of it, on a model that is too small to learn."""
    flags = ["--model_name_or_path", tiny, "--output_dir", output, "--max_steps", 4]
    done = dgpo("train", "--config", RECIPES / "addition.yaml", *flags)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1].startswith("done: 4 updates")
    card = (output / "README.md").read_text(encoding="utf-8")
    assert f"Trained from the local folder `{tiny}`" in card
    assert "| data | `addition`, 9,000 prompts |" in card
    assert "| optimiser updates | 4 |" in card


@pytest.mark.usefixtures("no_network", "from_the_root")
def test_numbers_of_a_dry_run_are_text() -> None:
    found = planned(dry_run_argv(text_of("dapo-math/1.5b-dgpo.yaml")))
    assert set(found) == {"memory", "sums", "logits", "time", "run"}
