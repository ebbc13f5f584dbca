"""Advantages from several rewards, some of which are None: TRL's wherever there is spread, and 0 everywhere else."""

from __future__ import annotations

import math
import random
import warnings
from itertools import product

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from dgpo.advantages import ADVANTAGES
from dgpo.tasks import Addition
from dgpo.training import DGPOConfig, DGPOTrainer

REWARDS = 3
"""Columns; a case that has fewer leaves the others None throughout."""


class Table:
    """Three reward functions, one of them asynchronous, that give what the case says."""

    def __init__(self):
        self.columns = []

    def functions(self):
        def first(completions, **_):
            return self.columns[0]

        async def second(completions, **_):
            return self.columns[1]

        def third(completions, **_):
            return self.columns[2]

        return [first, second, third]


@pytest.fixture(scope="module")
def pair(tiny_folder, tmp_path_factory):
    """Stock TRL and ours on the same table of rewards; neither runs its model, so that hundreds of cases are quick."""
    table = Table()
    options = {
        "output_dir": str(tmp_path_factory.mktemp("run")),
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 4,
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
    }
    trainers = []
    for trainer_class, config_class in ((GRPOTrainer, GRPOConfig), (DGPOTrainer, DGPOConfig)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = trainer_class(
                AutoModelForCausalLM.from_pretrained(tiny_folder),
                table.functions(),
                config_class(**options),
                train_dataset=Addition().dataset("train").select(range(16)),
                processing_class=AutoTokenizer.from_pretrained(tiny_folder),
            )
        trainer._generate = lambda prompts: (
            *([[5]] * len(prompts), [[6]] * len(prompts), None, ["x"] * len(prompts)),
            *(None, {}, None, None),
        )
        trainer._get_per_token_logps_and_entropies = lambda model, ids, *_, **__: (torch.zeros(len(ids), 1), None, None)
        trainers.append(trainer)
    return (*trainers, table)


def score(trainer, table, rows, *, weights, size, training, **options):
    """One generation of these rewards: its advantages, as they are trained on and as the table of completions has
    them, and TRL's metric about their spread."""
    table.columns = [list(column) for column in zip(*rows, strict=True)]
    trainer.reward_weights = torch.tensor(weights)
    trainer.num_generations = trainer.num_generations_eval = size
    for name, value in options.items():
        setattr(trainer, name, value)
    trainer.model.train(training)
    metrics = trainer._metrics["train" if training else "eval"]
    metrics.clear()
    output = trainer._generate_and_score_completions([{"prompt": f"{place // size}="} for place in range(len(rows))])
    assert output["advantages"].dtype == torch.float32
    return (
        output["advantages"],
        list(trainer._logs["advantages"])[-len(rows) :],
        metrics["frac_reward_zero_std"],
        {name: values for name, values in metrics.items() if name.startswith("reward")},
    )


def random_case(seed):
    """Sixteen rows of three rewards in eighths, so that sums are exact, and whatever TRL lets one choose."""
    chance = random.Random(seed)
    number = chance.choice([1, 2, 3])
    size = chance.choice([1, 2, 4, 8])

    def reward():
        return None if chance.random() < 0.25 else chance.randint(-8, 8) / 8

    rows = []
    for _ in range(16 // size):
        constant = [chance.random() < 0.4 for _ in range(number)]
        first = [reward() for _ in range(number)]
        for _ in range(size):
            row = [a if same else reward() for a, same in zip(first, constant, strict=True)]
            rows.append(row + [None] * (REWARDS - number))
    return rows, {
        "weights": [chance.choice([1.0, 1.0, 0.5, 2.0, 0.0, -1.0]) for _ in range(REWARDS)],
        "size": size,
        "training": size > 1 and chance.random() < 0.5,
        "scale_rewards": chance.choice(["group", "batch", "none"]),
        "multi_objective_aggregation": chance.choice(["sum_then_normalize", "normalize_then_sum"]),
    }


def totals(rows, options):
    """R by the formulas of TRL's documentation, in float64."""
    rewards = torch.tensor([[math.nan if r is None else r for r in row] for row in rows], dtype=torch.float64)
    if options["multi_objective_aggregation"] == "normalize_then_sum":
        groups = rewards.view(-1, options["size"], REWARDS)
        centred = groups - groups.nanmean(1, keepdim=True)
        count = (~groups.isnan()).sum(1, keepdim=True)
        deviation = (centred.square().nansum(1, keepdim=True) / (count - 1)).sqrt()
        rewards = (centred / (deviation + 1e-4)).view(-1, REWARDS)
    weighted = (rewards * torch.tensor(options["weights"], dtype=torch.float64)).nansum(1)
    given = torch.tensor([[r is not None for r in row] for row in rows]).any(1)
    return torch.where(given, weighted, math.nan)


def has_spread(total, size):
    groups = total.view(-1, size)
    found = []
    for group in groups:
        scored = group[~group.isnan()]
        found.append(len(scored) > 1 and float(scored.max() - scored.min()) > 1e-9)
    return torch.tensor(found).repeat_interleave(size)


def test_trls_advantages_wherever_there_is_spread(pair):
    stock, ours, table = pair
    taught = untaught = 0
    for seed in range(150):
        rows, options = random_case(seed)
        spread = has_spread(totals(rows, options), options["size"])
        expected, _, _, metrics = score(stock, table, rows, **options)
        found, logged, without, same = score(ours, table, rows, **options)
        torch.testing.assert_close(found, torch.where(spread, expected, 0.0), rtol=0, atol=0, msg=f"case {seed}")
        assert logged == pytest.approx(found.tolist(), abs=0), seed
        assert without == [pytest.approx(1 - spread.float().mean().item())], seed
        assert str(same) == str(metrics), seed  # as text: NaN equals NaN
        taught, untaught = taught + int(spread.sum()), untaught + int((~spread).sum())
    assert min(taught, untaught) > 500


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (([1, 1, 1, 1], [2, 2, None, None]), [0.866, 0.866, -0.866, -0.866]),
        (([1, None, None, None], [0, 0, 0, 0]), [1.5, -0.5, -0.5, -0.5]),
        (([None, 1, None, None], [0, 0, 0, 0]), [-0.5, 1.5, -0.5, -0.5]),
        (([1, 0, 0, 1], [0, 1, 1, 0]), [0, 0, 0, 0]),
        (([100.1] * 4, [None] * 4), [0, 0, 0, 0]),
        (([0.1, 0.3, 0.1, 0.3], [0.2, 0.0, 0.2, 0.0]), [0, 0, 0, 0]),
    ],
)
def test_where_one_of_two_rewards_is_none(pair, columns, expected):
    stock, ours, table = pair
    rows = [[a, b, None] for a, b in zip(*columns, strict=True)]
    settings = {"weights": [1.0] * 3, "size": 4, "training": True, "scale_rewards": "group"}
    settings["multi_objective_aggregation"] = "sum_then_normalize"
    found, logged, without, _ = score(ours, table, rows, **settings)
    assert found.tolist() == pytest.approx(expected, abs=1e-3)
    assert logged == pytest.approx(expected, abs=1e-3)
    assert without == [float(not any(expected))]
    if any(expected):
        assert torch.equal(found, score(stock, table, rows, **settings)[0])
    else:
        assert found.abs().max() == 0


def test_our_own_advantages_have_the_same_groups_without_spread(pair):
    """Those with 0 in such a group, on the same totals; centred ones have the sign of the centred total elsewhere."""
    _, ours, table = pair
    centring = ("std", "none", "leave_one_out", "entropy_shaped")
    # the others of these refuse rewards below 0
    names = [name for name in ADVANTAGES if name in (*centring, "qae", "grpo_passk")]
    try:
        for seed, name in product(range(20), names):
            rows, options = random_case(seed)
            options["multi_objective_aggregation"] = "sum_then_normalize"
            ours._scoring._advantage = ADVANTAGES[name]()
            total = totals(rows, options)
            spread = has_spread(total, options["size"])
            found, logged, without, _ = score(ours, table, rows, **options)
            assert found[~spread].eq(0).all()
            groups = total.view(-1, options["size"])
            centred = (groups - groups.nanmean(1, keepdim=True)).flatten()
            moved = spread & ~total.isnan() & (centred.abs() > 1e-9) & (name in centring)
            assert torch.equal(found[moved].sign(), centred[moved].sign().float())
            assert logged == pytest.approx(found.tolist())
            assert without == [pytest.approx(1 - spread.float().mean().item())]
    finally:
        ours._scoring._advantage = None


def test_gdpo_is_trls_normalize_then_sum(pair):
    """Wherever there is spread; also where the option itself says something else, which a configuration refuses."""
    stock, ours, table = pair
    taught = 0
    try:
        ours._scoring._advantage = ADVANTAGES["gdpo"]()
        for seed in range(60):
            rows, options = random_case(seed)
            options["multi_objective_aggregation"] = "normalize_then_sum"
            spread = has_spread(totals(rows, options), options["size"])
            expected = torch.where(spread, score(stock, table, rows, **options)[0], 0.0)
            options["multi_objective_aggregation"] = "sum_then_normalize"
            found = score(ours, table, rows, **options)[0]
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, msg=f"case {seed}")
            taught += int(spread.sum())
    finally:
        ours._scoring._advantage = None
    assert taught > 200


def test_an_infinite_reward_is_named(pair):
    _, ours, table = pair
    rows = [[1.0, 0.0, None], [0.0, math.inf, None]] * 8
    with pytest.raises(ValueError, match="reward 'second' returned an infinity; expected a finite number, or None"):
        score(ours, table, rows, weights=[1.0] * 3, size=4, training=True)
