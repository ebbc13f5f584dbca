"""Every advantage against recorded values of the authors' or a framework's code, and against its formula."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from dgpo import advantages
from dgpo.advantages import ADVANTAGES, ALIASES, make

NAN = math.nan
FOLDER = Path(__file__).parent / "golden" / "advantages"
RECORDED = [
    pytest.param(case, id=f"{path.stem}-{number}")
    for path in sorted(FOLDER.glob("*.json"))
    for number, case in enumerate(json.loads(path.read_text(encoding="utf-8")))
]
BINARY = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def of(name: str, rewards: list[float], group_size: int, **fields: Any) -> list[float]:
    made = make(name, **fields)
    keys = [str(i) for i in range(len(rewards) // group_size)]
    found: list[float] = made.of_groups(torch.tensor(rewards, dtype=torch.float64), group_size, keys, {}).tolist()
    return found


@pytest.mark.parametrize("case", RECORDED)
def test_recorded_values(case: dict[str, Any]) -> None:
    found = of(case["advantage"], case["rewards"], case["group_size"], **case["fields"])
    # the authors of MaxRL add 1e-6 to a mean of at least 1 / 16; the zeros of the others are roundings over 1e-6
    assert found == pytest.approx(case["advantages"], rel=2e-5, abs=1e-9)


def test_recordings_are_of_several_advantages_and_name_their_source() -> None:
    cases = [case for (case,) in (param.values for param in RECORDED)]
    learns = [case for case in cases if any(case["advantages"])]
    assert {case["advantage"] for case in learns} == {"maxrl", "pass_at_k", "grpo_passk", "nsr", "w_reinforce"}
    assert all("@" in case["source"] or "verl 0.9.1" in case["source"] for case in cases)


# --- what all have in common ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ADVANTAGES)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_groups_without_spread_are_zero_where_declared(name: str, value: float) -> None:
    """And nowhere else: some other reward gives such a group a gradient where `needs_spread` is False."""
    if name == "smooth":
        pytest.skip("its history decides")
    if ADVANTAGES[name].needs_spread:
        assert of(name, [value] * 8, 4) == [0.0] * 8
    elif name != "distill":  # its tokens have advantages, whatever the rewards are
        assert any(of(name, [0.0] * 4, 4))


@pytest.mark.parametrize("name", ADVANTAGES)
def test_a_response_without_a_reward_gets_nothing_and_changes_nothing(name: str) -> None:
    if name == "gdpo":
        pytest.skip("its second normalisation is over all groups")
    with_it = of(name, [1.0, NAN, 0.0, 0.0, 1.0, 1.0], 6)
    assert with_it[1] == 0
    assert [*with_it[:1], *with_it[2:]] == pytest.approx(of(name, [1.0, 0.0, 0.0, 1.0, 1.0], 5), rel=1e-12)
    assert of(name, [NAN] * 4, 4) == [0.0] * 4


@pytest.mark.parametrize("name", ADVANTAGES)
def test_groups_do_not_see_each_other(name: str) -> None:
    if name in ("gdpo", "smooth"):
        pytest.skip("reads other groups, or other steps")
    apart = [a for start in range(0, 20, 4) for a in of(name, BINARY[start : start + 4], 4)]
    assert of(name, BINARY, 4) == apart


@pytest.mark.parametrize("name", sorted(set(ADVANTAGES) - {"nsr", "w_reinforce"}))
def test_a_response_alone_has_nothing_to_be_compared_with(name: str) -> None:
    fields = {"k": 1} if name == "pass_at_k" else {}
    assert of(name, [1.0, 0.0], 1, **fields) == [0.0, 0.0]


@pytest.mark.parametrize("name", ADVANTAGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_dtype_and_gradient(name: str, dtype: torch.dtype) -> None:
    rewards = torch.tensor(BINARY, dtype=dtype).requires_grad_()
    found = make(name).of_groups(rewards, 4, list("abcde"), {})
    assert (found.dtype, found.requires_grad, found.shape) == (dtype, False, rewards.shape)


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_other_names(alias: str, name: str) -> None:
    assert make(alias) == make(name)
    assert advantages.canonical(alias) == name
    assert advantages.canonical(name) == name
    assert alias not in ADVANTAGES


# --- formulas ---------------------------------------------------------------------------------------------------------


def test_maxrl_weighs_a_prompt_by_one_over_its_success_rate() -> None:
    """With rewards 0 and 1 the advantage of a success is (1 - p) / p: summed over a group, N (1 - p)."""
    for correct in range(1, 8):
        p, rewards = correct / 8, [1.0] * correct + [0.0] * (8 - correct)
        expected = [(1 - p) / p] * correct + [-1.0] * (8 - correct)
        assert of("maxrl", rewards, 8) == pytest.approx(expected, rel=1e-12)
        by_sum = of("maxrl", rewards, 8, divide_by="sum")
        assert by_sum == pytest.approx([a / 8 for a in expected], rel=1e-12)
    assert of("maxrl", [1.0, 0.0, 0.0, 0.0], 4) == [3.0, -1.0, -1.0, -1.0]  # prime-rl's example


def test_maxrl_refuses_negative_rewards() -> None:
    with pytest.raises(ValueError, match=r"advantage 'maxrl' needs rewards >= 0, got -0\.5"):
        of("maxrl", [1.0, -0.5, NAN, 0.0], 4)


def test_asymre_is_the_centred_reward_and_a_constant() -> None:
    rewards = [1.0, 0.0, 0.0, 0.5]
    for shift in (-0.1, 0.0, 0.2):
        expected = [r - (statistics.mean(rewards) + shift) for r in rewards]
        assert of("asymre", rewards, 4, shift=shift) == pytest.approx(expected, rel=1e-12)
    assert of("asymre", [0.1] * 7, 7) == [0.1] * 7
    assert of("asymre", rewards, 4, shift=0) == of("none", rewards, 4)


@pytest.mark.parametrize("K", [0.1, 0.3, 0.4, 0.5, 0.55, 0.6, 0.9])
@pytest.mark.parametrize("n", [2, 5, 8, 20])
def test_qae_takes_the_quantile_of_the_paper(K: float, n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    rewards = torch.randint(0, 5, (n,), generator=generator).double().tolist()
    if len(set(rewards)) < 2:
        rewards[0] += 1
    # inf{x: F(x) >= K}, with F in hundredths of n so that no rounding decides
    reached = [x for x in sorted(rewards) if 100 * sum(r <= x for r in rewards) >= round(100 * K) * n]
    std = statistics.stdev(rewards) + 1e-6
    assert of("qae", rewards, n, quantile=K) == pytest.approx([(r - reached[0]) / std for r in rewards], rel=1e-12)
    linear = torch.quantile(torch.tensor(rewards, dtype=torch.float64), K).item()
    expected = [(r - linear) / std for r in rewards]
    found = of("qae", rewards, n, quantile=K, interpolation="linear")
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_qae_learns_from_successes_of_hard_prompts_and_failures_of_easy_ones() -> None:
    """The two regimes of the paper, which meet at a success rate of 1 - K."""
    for correct in range(1, 10):
        found = of("qae", [1.0] * correct + [0.0] * (10 - correct), 10, quantile=0.4)
        hard = correct <= 6
        assert all((a > 0) == hard and (a == 0) != hard for a in found[:correct])
        assert all((a == 0) == hard and (a < 0) != hard for a in found[correct:])


@pytest.mark.parametrize(("n", "k"), [(4, 1), (4, 2), (5, 3), (6, 6)])
def test_pass_at_k_is_the_mean_over_all_subsets(n: int, k: int) -> None:
    """Each subset of k gets its reward (1 if one is correct), standardised over all subsets by mean and biased std."""
    for correct in range(n + 1):
        rewards = [1.0] * correct + [0.0] * (n - correct)
        subsets = list(itertools.combinations(range(n), k))
        best = [max(rewards[i] for i in subset) for subset in subsets]
        std = statistics.pstdev(best) + 1e-6
        values = [(b - statistics.mean(best)) / std for b in best]
        expected = [statistics.mean(v for v, s in zip(values, subsets, strict=True) if i in s) for i in range(n)]
        assert of("pass_at_k", rewards, n, k=k) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_pass_at_k_refuses() -> None:
    with pytest.raises(ValueError, match=r"needs rewards that are 0 or 1, got 0\.5"):
        of("pass_at_k", [1.0, 0.5, 0.0, 0.0], 4)
    with pytest.raises(ValueError, match="k = 4, more than the 2 responses of a group; set num_generations >= 4"):
        make("pass_at_k").check_group_size(2)
    make("pass_at_k", k=2).check_group_size(2)
    assert of("pass_at_k", [1.0, 0.0], 2) == [0.0, 0.0]  # an evaluation may have smaller groups


def test_the_best_of_a_group_is_compared_with_the_best_of_the_others() -> None:
    rewards = [0.5, 2.0, 1.25, -1.0]
    assert of("grpo_passk", rewards, 4, scale="none") == [0.0, 0.75, 0.0, 0.0]
    assert of("grpo_passk", rewards, 4)[1] == pytest.approx(0.75 / (statistics.stdev(rewards) + 1e-6))
    assert of("grpo_passk", [2.0, 2.0, 1.0], 3) == [0.0] * 3
    assert of("grpo_passk", [2.0, NAN, NAN], 3) == [0.0] * 3


def test_nsr_counts_a_group_of_failures() -> None:
    assert of("nsr", [1.0, 0.0, -0.5, 2.0], 4) == [0.0, -1.0, -1.0, 0.0]
    assert of("w_reinforce", [1.0, 0.0, 0.0, 0.0], 4) == pytest.approx([0.1, -1.0, -1.0, -1.0])
    assert of("nsr", [0.0] * 4, 2) == [-1.0] * 4
    assert math.copysign(1, of("nsr", [0.0, 1.0], 2, negative=0)[0]) == 1  # not -0.0


def test_distillation_follows_the_reverse_kl_divergence() -> None:
    """The expected gradient over all tokens of a position is minus that of KL(π ‖ teacher), times `coef`."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, generator=generator, dtype=torch.float64).requires_grad_()
    teacher = torch.randn(7, generator=generator, dtype=torch.float64).log_softmax(0)
    logp = logits.log_softmax(0)
    # every token as a response of its own, weighted by its probability
    found = make("distill", coef=0.5).of_tokens(torch.zeros(7), logp.detach().unsqueeze(1), teacher.unsqueeze(1))
    (gradient,) = torch.autograd.grad((logp.exp().detach() * found.squeeze(1) * logp).sum(), logits, retain_graph=True)
    (kl,) = torch.autograd.grad((logp.exp() * (logp - teacher)).sum(), logits)
    torch.testing.assert_close(gradient, -0.5 * kl, rtol=1e-12, atol=1e-15)


def test_distillation_beside_a_reward() -> None:
    old, teacher = torch.tensor([[-1.0, -2.0]] * 4), torch.tensor([[-1.5, -0.5]] * 4)
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0])
    for reward in ("std", "none", "maxrl"):
        made = make("distill", coef=0.1, reward=reward)
        of_rewards = made.of_groups(rewards, 4, [], {})
        assert of_rewards.tolist() == make(reward).of_groups(rewards, 4, [], {}).tolist()
        expected = of_rewards.unsqueeze(1) + torch.tensor([[-0.05, 0.15]] * 4)
        torch.testing.assert_close(made.of_tokens(of_rewards, old, teacher), expected)
    assert make("distill").of_groups(rewards, 4, [], {}).tolist() == [0.0] * 4
    with pytest.raises(ValueError, match="reward = 'smooth' is not allowed"):
        make("distill", reward="smooth")
    with pytest.raises(ValueError, match="k = 4, more than the 2 responses"):
        make("distill", reward="pass_at_k").check_group_size(2)


def test_gdpo_normalises_twice() -> None:
    """`total_rewards` normalises each reward in its group; here the sums, over all groups."""
    assert make("gdpo").aggregation == "normalize_then_sum"
    totals = [0.3, -0.3, 1.5, -1.5, 0.0, 0.0]
    mean, std = statistics.mean(totals), statistics.stdev(totals)
    assert of("gdpo", totals, 2) == pytest.approx([(t - mean) / (std + 1e-4) for t in totals], rel=1e-12)
    assert of("gdpo", [1.0, 0.0, 5.0, 5.0], 2)[2:] == [0.0, 0.0]
