"""`compute_score`, alone and where verl calls it: in a reward manager, in a worker of a Ray cluster."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from verl import DataProto
from verl.trainer.ppo.reward import load_reward_manager
from verl_problems import compose_config

from dgpo.engines.verl import compute_score
from dgpo.engines.verl_overrides import overrides

KEYS = {"score", "acc", "no_answer", "unparsed", "guarded", "timeout", "bad_gold"}
HOSTILE = r"\boxed{\int_0^1 (\sin(x^x))^{x^x} dx}"
HOSTILE_GOLD = r"\int_0^1 (\cos(x^x))^{2} dx"
"""Computer algebra thinks about this one for seconds."""


@pytest.mark.parametrize(
    ("source", "response", "gold", "score", "flag"),
    [
        ("math_dapo", r"so it is \boxed{\frac{1}{2}}", "0.5", 1.0, None),
        ("math_dapo", r"so it is \boxed{2\sqrt{2}}", r"\sqrt{8}", 1.0, None),
        ("math_dapo", r"so it is \boxed{34}", 34, 1.0, None),
        ("math_dapo", r"so it is \boxed{35}", 34, 0.0, None),
        ("math_dapo", "it is 34", "34", 0.0, "no_answer"),
        ("math_dapo", r"\boxed{9^{9^{9^{9}}}}", "1", 0.0, "guarded"),
        ("math_dapo", r"\boxed{1}", "", 0.0, "bad_gold"),
        ("aime24", r"\boxed{204}", "204", 1.0, None),
        ("addition", "42", "42", 1.0, None),
        ("addition", r"\boxed{42}", "42", 0.0, None),
        ("reasoning_gym:gcd", r"\boxed{12}", "12", 1.0, None),
    ],
)
def test_scores(source: str, response: str, gold: str | float, score: float, flag: str | None) -> None:
    found = compute_score(source, response, gold, extra_info={"index": 3})
    assert set(found) == KEYS
    assert found["score"] == found["acc"] == score
    assert {name for name in KEYS - {"score", "acc"} if found[name]} == ({flag} if flag else set())
    assert all(type(value) is float for value in found.values())


def test_a_timeout_is_visible() -> None:
    with pytest.warns(RuntimeWarning, match="exceeded the deadline of 0.2 s"):
        found = compute_score("math_dapo", HOSTILE, HOSTILE_GOLD, deadline=0.2)
    assert (found["score"], found["timeout"]) == (0.0, 1.0)


def test_an_answer_behind_a_marker() -> None:
    assert compute_score("mine", "6 times 7\n#### 42", "42")["no_answer"] == 1.0
    assert compute_score("mine", "6 times 7\n#### 42", "42", answer_marker="####")["score"] == 1.0


def test_gsm8k_as_verl_writes_it() -> None:
    """Its script has the prompt ask for the answer after "####", and verl's own grader looks there."""
    from verl.utils.reward_score.gsm8k import compute_score as theirs

    response = "6 times 7 is 42.\n#### 42"
    assert compute_score("openai/gsm8k", response, "42")["score"] == theirs(response, "42") == 1.0
    assert compute_score("openai/gsm8k", "#### 41", "42")["score"] == 0.0
    assert compute_score("openai/gsm8k", r"\boxed{42}", "42")["score"] == 1.0
    assert compute_score("openai/gsm8k", response, "42", answer_marker=None)["no_answer"] == 1.0


@pytest.mark.parametrize("gold", [34, 34.0, np.int64(34), np.float64(34), np.float32(34)])
def test_numbers_as_golds(gold: Any) -> None:
    assert compute_score("math_dapo", r"\boxed{34}", gold)["score"] == 1.0


def test_what_verl_adds_is_not_read_and_what_nobody_knows_is_refused() -> None:
    found = compute_score("x", r"\boxed{1}", "1", reward_router_address="host:1", reward_model_tokenizer=None)
    assert found["score"] == 1.0
    with pytest.raises(ValueError, match="no option 'deadine', did you mean 'deadline'"):
        compute_score("x", r"\boxed{1}", "1", deadine=3)
    with pytest.raises(TypeError, match="gold of a row of 'x' is of type list"):
        compute_score("x", r"\boxed{1}", ["1"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"option deadline = \[3\] is of type list"):
        compute_score("x", r"\boxed{1}", "1", deadline=[3])
    with pytest.raises(ValueError, match="answer_marker = '####' has no effect on 'addition'"):
        compute_score("addition", "42", "42", answer_marker="####")
    assert compute_score("addition", "42", "42", deadline=3)["score"] == 1.0
    with pytest.raises(ValueError, match="unknown task reasoning_gym:gdc"):
        compute_score("reasoning_gym:gdc", "1", "1")


def test_threads_share_one_grader() -> None:
    def ask(number: int) -> float:
        return compute_score("x", rf"\boxed{{x^2+{number}}}", f"{number} + x^2")["score"]

    with ThreadPoolExecutor(8) as executor:
        assert list(executor.map(ask, range(24))) == [1.0] * 24


# --- verl's reward manager --------------------------------------------------------------------------------------------

ROWS = [
    ("math_dapo", r"\boxed{\frac{1}{2}}", "0.5", 1.0),
    ("addition", "42", "42", 1.0),
    ("math_dapo", HOSTILE, HOSTILE_GOLD, 0.0),
    ("math_dapo", r"\boxed{3}", "4", 0.0),
]


def characters(folder: Path) -> Any:
    """A tokenizer with a token for every printable character, saved where verl's worker finds it."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {character: number for number, character in enumerate(["<pad>", *map(chr, range(32, 127))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<pad>")
    made.save_pretrained(folder)
    return made


def rows(tokenizer: Any) -> DataProto:
    length = max(len(response) for _, response, _, _ in ROWS)
    ids = [tokenizer.encode(response, add_special_tokens=False) for _, response, _, _ in ROWS]
    valid = torch.tensor([[1] * (2 + len(row)) + [0] * (length - len(row)) for row in ids])
    responses = torch.tensor([row + [0] * (length - len(row)) for row in ids])
    return DataProto.from_dict(
        tensors={"prompts": torch.ones(len(ROWS), 2).long(), "responses": responses, "attention_mask": valid},
        non_tensors={
            "data_source": np.array([source for source, *_ in ROWS], dtype=object),
            "reward_model": np.array([{"ground_truth": gold, "style": "rule"} for _, _, gold, _ in ROWS], dtype=object),
            "extra_info": np.array([{"index": number} for number in range(len(ROWS))], dtype=object),
        },
    )


def reward_config(folder: Path) -> Any:
    return compose_config(
        *overrides("dgpo", {}),
        "+reward.custom_reward_function.reward_kwargs.deadline=0.5",
        f"actor_rollout_ref.model.path={folder}",
    )


def check(found: list[dict[str, Any]]) -> None:
    assert [one["reward_score"] for one in found] == [score for *_, score in ROWS]
    assert [set(one["reward_extra_info"]) for one in found] == [KEYS] * len(ROWS)
    assert [one["reward_extra_info"]["timeout"] for one in found] == [0.0, 0.0, 1.0, 0.0]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("manager", ["naive", "dapo"])
def test_the_reward_manager_of_verl(tmp_path: Path, manager: str) -> None:
    tokenizer = characters(tmp_path)
    config = reward_config(tmp_path)
    config.reward.reward_manager.name = manager

    async def score() -> list[dict[str, Any]]:
        judge = load_reward_manager(config, tokenizer)
        data = rows(tokenizer)
        return await asyncio.gather(*(judge.run_single(data[i : i + 1]) for i in range(len(data))))

    check(asyncio.run(score()))


def test_the_reward_worker_of_verl(cluster: Any, tmp_path: Path) -> None:
    """verl's own worker, in a process of the cluster, all rows at a time."""
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

    tokenizer = characters(tmp_path)
    worker = cluster.remote(num_cpus=0)(RewardLoopWorker).remote(reward_config(tmp_path))
    check(cluster.get(worker.compute_score_batch.remote(rows(tokenizer)), timeout=240))
    cluster.kill(worker)
