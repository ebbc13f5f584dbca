"""Token statistics against closed forms, brute-force loops and what the loss itself says, for every method."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dgpo import TokenBatch, policy_loss
from dgpo.diagnostics.weighed import LOWEST_LOGPROB, QUANTILES, logit_norm, quantiles
from dgpo.diagnostics.weights import describe, histogram, over_generation
from dgpo.objectives import OBJECTIVES, make
from dgpo.regions import REGIONS, regions
from dgpo.runs.tokens import Recorded

METHODS = list(OBJECTIVES)


def one_row(log_ratios: list[float], advantages: list[float], old: float = -1.0) -> TokenBatch:
    x = torch.tensor([log_ratios], dtype=torch.float64)
    return TokenBatch(
        old + x, torch.full_like(x, old), torch.tensor([advantages], dtype=torch.float64), torch.ones_like(x).bool()
    )


# --- the norm of a token's gradient -----------------------------------------------------------------------------------


@given(st.integers(2, 50), st.floats(0.1, 8.0), st.integers(0, 10_000))
def test_the_norm_is_that_of_the_gradient_in_the_logits(vocabulary: int, spread: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = (spread * torch.randn(vocabulary, generator=generator, dtype=torch.float64)).requires_grad_()
    logprob = z.log_softmax(0)
    logprob[0].backward()
    assert z.grad is not None
    exact = logit_norm(logprob[0].detach(), logprob.detach().exp().square().sum())
    assert exact.item() == pytest.approx(z.grad.norm().item(), rel=1e-7, abs=3e-8)
    bound = logit_norm(logprob[0].detach()).item()
    assert bound <= exact.item() <= math.sqrt(2) * bound * (1 + 1e-12)


def test_a_certain_token_has_no_gradient_and_rounding_is_forgiven() -> None:
    certain = torch.tensor([0.0, 1e-7, -1e-9])
    assert logit_norm(certain).tolist() == [0.0, 0.0, pytest.approx(1e-9)]
    assert logit_norm(torch.tensor([0.0]), torch.tensor([0.999])).tolist() == [0.0]
    nearly = torch.tensor([-1e-5])
    assert logit_norm(nearly, (2 * nearly).exp() + 6e-8).item() == pytest.approx(math.sqrt(2) * 1e-5, rel=1e-4)


# --- describe ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_shares_against_a_loop_over_tokens(name: str, make_batch: Callable[..., Any]) -> None:
    batch = make_batch(6, 9, seed=3)
    tokens = batch.tokens()
    square = (2 * batch.logprob).exp() + 0.3 * (1 - batch.logprob.exp()).square()
    ids = torch.arange(54).view(6, 9)
    found = describe(tokens, name, token_ids=ids, sum_pi_squared=square, top=4)

    objective = make(name).calibrate(tokens)
    w = objective.weight(tokens)
    compared, low, high = objective.boundaries(tokens)
    rows = []
    for i, j in tokens.mask.nonzero().tolist():
        a, pi = float(tokens.advantage[i, j]), float(tokens.logprob[i, j].exp())
        r, weight = float(tokens.ratio[i, j]), float(w[i, j])
        n = math.sqrt(1 - 2 * pi + float(square[i, j]))
        region = "inside"
        x = compared[i, j]
        if a != 0 and not low[i, j] <= x <= high[i, j]:
            region = {(True, True): "left", (True, False): "reverse_right", (False, True): "reverse_left"}.get(
                (a < 0, bool(x < low[i, j])), "right"
            )
        sign = "zero" if a == 0 else "negative" if a < 0 else "positive"
        rows.append((abs(a * weight) * n, abs(a * weight), region, sign, int(ids[i, j]), weight, pi, r, a, (i, j)))
    gradient, mass = sum(row[0] for row in rows), sum(row[1] for row in rows)

    assert found.exact
    assert found.tokens == len(rows)
    assert found.step_size == pytest.approx(gradient / len(rows))
    for place, shares in ((2, found.regions), (3, found.signs)):
        for name_of, share in shares.items():
            own = [row for row in rows if row[place] == name_of]
            assert share.tokens == len(own)
            assert share.fraction == pytest.approx(len(own) / len(rows))
            assert share.mass == pytest.approx(sum(row[1] for row in own) / mass)
            assert share.gradient == pytest.approx(sum(row[0] for row in own) / gradient)
    largest = sorted(rows, key=lambda row: -row[0])[:4]
    assert [token.share for token in found.top] == pytest.approx([row[0] / gradient for row in largest])
    assert found.top_share == pytest.approx(sum(row[0] for row in largest) / gradient)
    assert found.top_percent_share == pytest.approx(largest[0][0] / gradient)  # 1 % of fewer than 100 is one token
    for token, row in zip(found.top, largest, strict=True):
        if row[0] > 0:
            assert (token.response, token.position) == row[9]
            assert token.token_id == row[4]
            assert token.old_prob == pytest.approx(float(tokens.old_logprob[row[9]].exp()))
            assert (token.weight, token.ratio, token.advantage) == pytest.approx(row[5:6] + row[7:9])
    weights = torch.tensor([row[5] for row in rows], dtype=torch.float64)
    on_prob = torch.tensor([row[5] / row[6] for row in rows], dtype=torch.float64)
    for q in QUANTILES:
        assert found.weight[q] == pytest.approx(weights.quantile(q).item())
        assert found.weight_on_prob[q] == pytest.approx(on_prob.quantile(q).item())


@pytest.mark.parametrize("name", METHODS)
def test_regions_are_those_that_the_loss_logs(name: str, make_batch: Callable[..., Any]) -> None:
    batch = make_batch(8, 11, seed=5, dtype=torch.float32)
    logged = policy_loss(batch.logprob, batch.old_logprob, batch.advantage, batch.mask, objective=name).statistics
    found = describe(batch.tokens(), name)
    assert not found.exact
    for region in REGIONS:
        assert found.regions[region].fraction == pytest.approx(float(logged[f"fraction/{region}"]), abs=1e-6)
        assert found.regions[region].mass == pytest.approx(float(logged[f"mass/{region}"]), abs=1e-6)
    assert found.weight[1.0] == pytest.approx(float(logged["weight/max"]), rel=1e-6)


def test_closed_form_of_one_token_per_region() -> None:
    """The hard clip keeps the reverse regions and the inside, each with |A| r (1 - π)."""
    x = [0.0, -1.0, 1.0, -1.0, 0.5]
    tokens = one_row(x, [1.0, -1.0, 1.0, 2.0, -1.0], old=-2.0)
    found = describe(tokens, "grpo")
    sizes = {
        "inside": 1 - math.exp(-2.0),
        "left": 0.0,
        "right": 0.0,
        "reverse_left": 2 * math.exp(-1.0) * (1 - math.exp(-3.0)),
        "reverse_right": math.exp(0.5) * (1 - math.exp(-1.5)),
    }
    assert {name: share.tokens for name, share in found.regions.items()} == dict.fromkeys(REGIONS, 1)
    for name, size in sizes.items():
        assert found.regions[name].gradient == pytest.approx(size / sum(sizes.values()))
    assert found.step_size == pytest.approx(sum(sizes.values()) / 5)


def test_deciles_are_tenths_in_the_order_of_the_old_probability(make_batch: Callable[..., Any]) -> None:
    tokens = make_batch(20, 12, seed=2).tokens()
    found = describe(tokens, "maspo").deciles
    count = int(tokens.mask.sum())
    assert len(found) == 10
    assert sum(decile.tokens for decile in found) == count
    assert {decile.tokens for decile in found} <= {count // 10, count // 10 + 1}
    assert sum(decile.gradient for decile in found) == pytest.approx(1)
    assert sum(decile.mass for decile in found) == pytest.approx(1)
    edges = [edge for decile in found for edge in (decile.low, decile.high)]
    assert edges == sorted(edges)
    rarest = tokens.old_logprob[tokens.mask].sort().values[: int(found[0].tokens)].exp()
    assert (found[0].low, found[0].high) == pytest.approx((rarest[0].item(), rarest[-1].item()))
    few = describe(one_row([0.0, 0.1, 0.2], [1.0, 1.0, -1.0]), "dgpo").deciles
    assert [decile.tokens for decile in few] == [1, 1, 1]


@pytest.mark.parametrize("name", METHODS)
def test_what_stands_at_masked_positions_does_not_matter(name: str, make_batch: Callable[..., Any]) -> None:
    batch = make_batch(seed=9)
    broken = batch.logprob.masked_fill(~batch.mask, math.nan)
    other = TokenBatch(broken, batch.old_logprob, batch.advantage, batch.mask, entropy=batch.entropy)
    assert describe(other, name) == describe(batch.tokens(), name)


@pytest.mark.parametrize("name", METHODS)
def test_extreme_tokens_give_finite_json(name: str) -> None:
    x = torch.tensor([[-500.0, 40.0, -1e-8, 30.0]])
    old = torch.tensor([[-300.0, -50.0, 0.0, -1e4]])
    tokens = TokenBatch(old + x, old, torch.tensor([[1.0, -1.0, 0.0, 1.0]]), torch.ones(1, 4))
    found = describe(tokens, name)
    text = json.dumps(found.as_dict(), allow_nan=False)
    assert json.loads(text)["weight_on_prob"]["1.0"] == found.weight_on_prob[1.0]
    assert found.weight_on_prob[1.0] <= math.exp(20.0 - LOWEST_LOGPROB)


def test_a_batch_without_advantage_has_shares_of_nothing() -> None:
    found = describe(one_row([0.1, -0.4], [0.0, 0.0]), "dgpo")
    assert found.step_size == 0
    assert {share.gradient for share in found.regions.values()} == {0.0}
    assert found.signs["zero"].fraction == 1
    assert found.top_share == found.top_percent_share == 0


def test_wrong_input() -> None:
    tokens = one_row([0.1, -0.4], [1.0, -1.0])
    with pytest.raises(ValueError, match="unknown objective 'dgop', did you mean 'dgpo'"):
        describe(tokens, "dgop")
    with pytest.raises(ValueError, match=r"token_ids has shape \(2, 1\); expected \(1, 2\)"):
        describe(tokens, "dgpo", token_ids=torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"sum_pi_squared has shape \(2,\); expected \(1, 2\)"):
        describe(tokens, "dgpo", sum_pi_squared=torch.zeros(2))
    with pytest.raises(ValueError, match="top = -1"):
        describe(tokens, "dgpo", top=-1)
    with pytest.raises(ValueError, match="no valid token"):
        describe(TokenBatch(torch.zeros(1, 2), None, torch.ones(1), torch.zeros(1, 2)), "dgpo")
    with pytest.raises(ValueError, match=r"logprob\[0, 1\] = nan"):
        describe(TokenBatch(torch.tensor([[0.0, math.nan]]), None, torch.ones(1), torch.ones(1, 2)), "dgpo")


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_quantiles_are_torchs(values: list[float]) -> None:
    vector = torch.tensor(values, dtype=torch.float64)
    expected = [vector.quantile(q).item() for q in QUANTILES]
    assert quantiles(vector, QUANTILES).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_quantiles_of_nothing() -> None:
    assert quantiles(torch.zeros(0), QUANTILES).tolist() == [0.0] * len(QUANTILES)


# --- over a generation ------------------------------------------------------------------------------------------------


def recorded(update: int, tokens: TokenBatch) -> Recorded:
    return Recorded(
        tokens=tokens,
        token_ids=None,
        group=torch.arange(tokens.mask.shape[0]),
        sum_pi_squared=None,
        update=update,
        generation=(update - 1) // 4,
        totals=None,
    )


def test_the_regions_empty_and_fill_along_a_generation() -> None:
    """Update k of a generation has drifted by 0.1 k nats: the last two of four are beyond the range for A > 0."""
    updates = [recorded(u, one_row([0.1 * ((u - 1) % 4)] * 2, [1.0, -1.0])) for u in range(3, 11)]
    found = over_generation(updates, "dgpo", updates_per_generation=4)
    assert [(stage.index, stage.updates) for stage in found] == [(0, (5, 9)), (1, (6, 10)), (2, (3, 7)), (3, (4, 8))]
    occupied = [{name for name, share in stage.regions.items() if share.tokens} for stage in found]
    assert occupied == [{"inside"}, {"inside"}, {"right", "reverse_right"}, {"right", "reverse_right"}]
    last = describe(updates[1].tokens, "dgpo").regions
    for name in REGIONS:
        assert found[3].regions[name].gradient == pytest.approx(last[name].gradient)


def test_stages_are_means_and_need_the_length_of_a_generation(make_batch: Callable[..., Any]) -> None:
    batches = [make_batch(seed=seed).tokens() for seed in range(3)]
    empty = TokenBatch(torch.zeros(1, 2), None, torch.ones(1), torch.zeros(1, 2))
    parts = [recorded(1, batches[0]), recorded(1, batches[1]), recorded(2, empty), recorded(3, batches[2])]
    (stage,) = over_generation(parts, "maspo", updates_per_generation=1)
    assert stage.updates == (1, 3)
    each = [describe(batch, "maspo").regions["right"] for batch in batches]
    assert stage.regions["right"].mass == pytest.approx(sum(share.mass for share in each) / 3)
    assert stage.regions["right"].tokens == pytest.approx(sum(share.tokens for share in each) / 3)
    with pytest.raises(ValueError, match="updates_per_generation = 0"):
        over_generation(parts, "maspo", updates_per_generation=0)


# --- histogram --------------------------------------------------------------------------------------------------------


def test_the_histogram_counts_every_token_with_an_advantage_once(make_batch: Callable[..., Any]) -> None:
    tokens = make_batch(30, 10, seed=1).tokens()
    found = histogram(tokens, 25)
    x = tokens.log_ratio.detach()
    for counts, of in ((found.negative, tokens.advantage < 0), (found.positive, tokens.advantage > 0)):
        values = x[of & tokens.mask].numpy()
        for place, count in enumerate(counts):
            low, high = found.edges[place], found.edges[place + 1]
            last = place == len(counts) - 1
            assert count == ((values >= low) & ((values < high) | last)).sum()
        assert sum(counts) == len(values)
    assert found.edges[0] == -found.edges[-1]


def test_the_histogram_at_given_edges() -> None:
    tokens = one_row([-9.0, -0.5, 0.0, 0.25, 9.0, 0.1], [1.0, 1.0, 1.0, -1.0, -1.0, 0.0])
    found = histogram(tokens, [-1.0, 0.0, 0.25, 1.0])
    assert found.positive == (2, 1, 0)
    assert found.negative == (0, 0, 2)
    assert histogram(one_row([0.0], [0.0]), 2).edges == (-0.01, 0.0, 0.01)
    with pytest.raises(ValueError, match="bins = 0"):
        histogram(tokens, 0)
    with pytest.raises(ValueError, match=r"bins = \[1.0, 1.0\] are not edges"):
        histogram(tokens, [1.0, 1.0])


def test_the_histogram_agrees_with_the_regions(make_batch: Callable[..., Any]) -> None:
    """Edges at the clip range cut the tokens as `regions` does; r on an edge has measure zero here."""
    tokens = make_batch(40, 10, seed=8).tokens()
    found = histogram(tokens, [-30.0, math.log(0.8), math.log(1.2), 30.0])
    where = {name: int(mask.sum()) for name, mask in regions(tokens, make("grpo").boundaries(tokens)).items()}
    assert (found.negative[0], found.negative[2]) == (where["left"], where["reverse_right"])
    assert (found.positive[0], found.positive[2]) == (where["reverse_left"], where["right"])
