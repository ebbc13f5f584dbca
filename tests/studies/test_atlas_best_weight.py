"""The best weight per bin: estimates against sums over a vocabulary, per-prompt gradients against the engine's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import best_weight_view
import pytest
import torch
from best_weight import analyse, distance, interval
from best_weight_cells import COMPARED, Cell, bins, exponents
from engine import MiniBatch, Setting, gradient, shape_of, train
from gradient_moments import Blocks, alone, errors_of_bins, merged, squared_error, together
from per_prompt import Fresh, calibrated, fresh, gradients, measure, states, token_batch
from problems import END, PROBLEMS
from softmax_bias import drifted, estimator

from dgpo import TokenBatch, objectives

NAMES = ("is", "grpo", "maspo", "dgpo:n=1,m=2")
ADDITION = PROBLEMS["addition"]


def simulated(N: int, blocks: int, groups: int = 4, size: int = 5) -> tuple[torch.Tensor, torch.Tensor, Blocks]:
    """Gradients of `groups` bins with known means and covariances; method 0 is their sum."""
    generator = torch.Generator().manual_seed(3)
    means = 0.1 * torch.randn(groups, 1, size, generator=generator, dtype=torch.float64)
    found = means + torch.randn(groups, N, size, generator=generator, dtype=torch.float64)
    collected = Blocks(1, groups, blocks, N // blocks, size, torch.float64)
    for i, part in enumerate(found.chunk(blocks, 1)):
        collected.add(i, torch.cat([part.sum(0, keepdim=True), part]))
    return means.squeeze(1), found, collected


def test_the_squared_mean_is_unbiased_and_that_of_a_sample_is_not() -> None:
    # 40,000 samples of 8 prompts in 4 blocks at once: a bin each
    means, samples = torch.tensor([0.3, 0.4], dtype=torch.float64), 2000
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(samples, 8, 2, generator=generator, dtype=torch.float64)
    collected = Blocks(samples, 1, 4, 2, 2, torch.float64)
    for i, part in enumerate((means + noise).chunk(4, 1)):
        collected.add(i, torch.cat([part, part[:1]]))
    found = collected.moments(1, seed=0)
    error = found.mean[0].std() / samples**0.5
    assert abs(found.mean[0].mean() - 0.25) < 3 * error
    naive = (means + noise).mean(1).square().sum(1).mean()
    assert naive - 0.25 == pytest.approx(2 / 8, rel=0.1)
    assert found.second[0].mean() == pytest.approx(2.25, rel=0.03)


def test_moments_are_those_of_the_block_means() -> None:
    _, found, collected = simulated(N=96, blocks=24)
    moments = collected.moments(20, seed=1)
    means = found.view(4, 24, 4, 5).mean(2)
    pairs = [(i, j) for i in range(24) for j in range(24) if i != j]
    for a in range(4):
        for b in range(4):
            expected = sum(means[a, i] @ means[b, j] for i, j in pairs) / len(pairs)
            assert moments.bins_mean[0, a, b] == pytest.approx(float(expected))
            assert moments.bins_second[0, a, b] == pytest.approx(float((found[a] * found[b]).sum(1).mean()))
    # |mean|² less the variance of the mean
    total = found.sum(0).view(24, 4, 5).mean(1)
    assert moments.mean[0, 0] == pytest.approx(float(total.mean(0).square().sum() - total.var(0).sum() / 24))
    assert moments.bins_mean.sum((1, 2)) == pytest.approx(moments.mean[:, 0])
    assert moments.bins_second.sum((1, 2)) == pytest.approx(moments.second[:, 0])
    # resamples scatter around the sample, without the bias that copies of one block would bring
    many = collected.moments(4000, seed=2).mean
    assert many[1:].mean() == pytest.approx(float(many[0, 0]), abs=3 * float(many[1:].std()) / 4000**0.5)


def test_the_best_multipliers_are_the_least_errors() -> None:
    _, _, collected = simulated(N=2000, blocks=20)
    moments = collected.moments(1, seed=0)
    c = together(moments, 8, torch.ones(4, dtype=torch.bool))
    least, _ = errors_of_bins(moments, c, 8)
    generator = torch.Generator().manual_seed(0)
    others = c + 0.1 * torch.randn(50, 1, 4, generator=generator, dtype=torch.float64)
    assert (errors_of_bins(moments, others, 8)[0] > least).all()
    one = torch.ones(1, 4, dtype=torch.float64)
    bias, variance = squared_error(moments, 8)
    assert errors_of_bins(moments, one, 8)[0] == pytest.approx((bias + variance)[:, 0])
    # one bin alone and all together are the same question if there is one bin
    single = merged(moments, torch.zeros(4, dtype=torch.long))
    assert alone(single, 8) == pytest.approx(together(single, 8, torch.ones(1, dtype=torch.bool)))
    # an error at best scale does not depend on the scale, and is the least over it
    scaled = errors_of_bins(moments, torch.linspace(0.01, 1, 400).double()[:, None, None] * c, 8)
    assert scaled[1][:, 0] == pytest.approx(scaled[1][:1, 0].expand(400))
    assert scaled[1][0, 0] <= scaled[0][:, 0].min() + 1e-9


def test_the_exact_laboratory_of_the_page_on_bias() -> None:
    """One state, where all expectations are sums: bias, variance and the best multipliers of 256 draws."""
    V, N, K, seed, drift = 400, 1 << 12, 256, 0, 1.0
    z_old, z, advantage = drifted(drift, seed, V)
    old, new = z_old.log_softmax(0), z.log_softmax(0)

    def tokens(index: torch.Tensor) -> TokenBatch:
        pick = index.unsqueeze(1)
        return TokenBatch(new[pick], old[pick], advantage[pick], torch.ones_like(pick).bool())

    def of(index: torch.Tensor, coefficient: torch.Tensor) -> torch.Tensor:
        return coefficient.unsqueeze(-1) * (torch.nn.functional.one_hot(index, V) - new.exp())

    methods = [objectives.make(name) for name in NAMES]
    where = bins()
    drawn = torch.multinomial(old.exp(), N, replacement=True, generator=torch.Generator().manual_seed(5))
    collected = Blocks(len(methods), len(where), 16, N // 16, V, torch.float64)
    for i, index in enumerate(drawn.chunk(16)):
        batch = tokens(index)
        A, inside = advantage[index], where.of(batch).squeeze(1)
        weights = [m.weight(batch).squeeze(1) for m in methods]
        per_bin = [torch.where(inside == b, weights[0], 0.0) for b in range(len(where))]
        collected.add(i, torch.stack([of(index, A * w) for w in [*weights, *per_bin]]))
    found = collected.moments(100, seed=0)

    bias, variance = squared_error(found, K)
    for i, objective in enumerate(methods):
        exact = estimator(objective, drift, [seed], V, K)
        assert variance[0, i] == pytest.approx(float(exact.variance), rel=0.15), NAMES[i]
        spread = float(bias[1:, i].std())
        assert abs(float(bias[0, i] - exact.bias.square())) < 4 * spread + 1e-9, NAMES[i]

    # the optimum, by enumeration
    every = torch.arange(V)
    inside, p, r = where.of(tokens(every)).squeeze(1), old.exp(), (new - old).exp()
    G = torch.stack([(p[:, None] * of(every, advantage * r * (inside == b))).sum(0) for b in range(len(where))])
    second = torch.stack(
        [(p * of(every, advantage * r * (inside == b)).square().sum(1)).sum() for b in range(len(where))]
    )
    squared = G.square().sum(1)
    optimum = squared / (squared + (second - squared) / K)
    share = torch.zeros(len(where)).double().index_add_(0, inside, p)
    used = share > 0.02
    estimated = alone(found, K)
    assert used.sum() >= 4
    assert estimated[0, used] == pytest.approx(optimum[used], abs=0.1)
    # bins are disjoint, so E<g_b, g_c> = 0 and the covariance is -<G_b, G_c>
    size = G @ G.T * (1 - 1 / K) + torch.diag(second) / K
    joint = torch.linalg.solve(size[used][:, used], (G @ G.T)[used].sum(1))
    estimated = together(found, K, used)[0, used]
    rest = (G @ G.T).sum()
    cost = [float(c @ size[used][:, used] @ c - 2 * c @ (G @ G.T)[used].sum(1) + rest) for c in (joint, estimated)]
    assert cost[0] <= cost[1] < cost[0] + 0.02 * float(rest)


def drifted_data(prompts: int, group: int) -> tuple[torch.Tensor, Fresh]:
    """Parameters of a small policy, and samples of it that claim to come from another one, with advantages."""
    shape = shape_of(ADDITION, width=8)
    generator = torch.Generator().manual_seed(0)
    flat = 0.4 * torch.randn(shape.size, generator=generator, dtype=torch.float64)
    data = fresh(ADDITION, shape, flat, 0, 5, prompts, group)
    old = data.old_logprob + 0.5 * torch.randn(data.old_logprob.shape, generator=generator).double()
    advantage = torch.randn(prompts, group, generator=generator).double()
    advantage[1] = 0
    return flat, replace(data, old_logprob=old.clamp(max=0), advantage=advantage)


def test_the_gradients_of_the_prompts_have_the_mean_of_the_engine() -> None:
    shape, names = shape_of(ADDITION, width=8), (*NAMES, "bapo")
    flat, data = drifted_data(prompts=8, group=4)
    methods = [objectives.make(name) for name in names]
    tokens = token_batch(data, data.old_logprob, slice(None))
    columns = [calibrated(objective, data, data.old_logprob, 8) for objective in methods]
    rows = torch.arange(8)
    found = dict(gradients(shape, flat, data, rows, columns, bins(), 8))
    batch = MiniBatch(
        data.prompts[None],
        data.responses[None],
        tokens.mask,
        torch.zeros(32).double(),
        data.advantage.flatten(),
        data.old_logprob.flatten(0, 1),
    )
    into = torch.zeros(1, shape.size, dtype=torch.float64)
    for i, objective in enumerate(methods[:-1]):
        gradient(Setting(ADDITION, objective, prompts=8, group=4), shape, flat[None], batch, into)
        torch.testing.assert_close(found[i].mean(0), into[0], rtol=1e-9, atol=1e-12)
        assert found[i][1].abs().max() == 0
        assert not torch.allclose(found[i][0], found[i][2])
    # the bins are all tokens, once each
    torch.testing.assert_close(sum(found[c] for c in found if c >= len(methods)), found[0], rtol=1e-9, atol=1e-12)


def test_a_method_that_reads_its_batch_is_calibrated_on_every_update() -> None:
    shape, bapo = shape_of(ADDITION, width=8), objectives.make("bapo")
    flat, data = drifted_data(prompts=8, group=4)
    scored = replace(data, old_logprob=data.old_logprob)
    columns = [calibrated(bapo, scored, data.old_logprob + 0.3, 4)]
    assert len(columns[0]) == 2
    assert columns[0][0] != columns[0][1]
    whole = dict(gradients(shape, flat, data, torch.arange(8), columns, bins(), 4))[0]
    for i, objective in enumerate(columns[0]):
        rows = torch.arange(4 * i, 4 * i + 4)
        alone_in_it = dict(gradients(shape, flat, data, rows, [[objective]], bins(), 4))[0]
        torch.testing.assert_close(whole[rows], alone_in_it, rtol=1e-9, atol=1e-12)


def test_what_is_measured_adds_up() -> None:
    shape = shape_of(ADDITION, width=8)
    flat, data = drifted_data(prompts=16, group=2)
    methods = [objectives.make(name) for name in NAMES]
    found = measure(shape, flat, data, methods, methods, bins(), update=2, block=2, resamples=5, seed=0)
    moments, valid = found.moments, data.mask & (data.advantage != 0).unsqueeze(-1)
    assert found.tokens.sum() == valid.sum()
    assert torch.equal(found.weights[: len(NAMES)], found.weights[len(NAMES) :])
    torch.testing.assert_close(moments.bins_mean.sum((1, 2)), moments.mean[:, 0])
    torch.testing.assert_close(moments.bins_second.sum((1, 2)), moments.second[:, 0])
    every = dict(gradients(shape, flat, data, torch.arange(16), [[m] * 8 for m in methods], bins(), 2))
    for i in range(len(methods)):
        assert moments.second[0, i] == pytest.approx(float(every[i].square().sum(1).mean()))


def test_the_policies_are_those_of_the_run() -> None:
    # a task that a policy without any training solves now and then
    task = replace(
        ADDITION, response=2, draw=lambda n, g: (torch.randint(0, 9, (n, 5), generator=g), torch.full((n, 2), END))
    )
    setting = Setting(task, objectives.make("is"), updates_per_generation=4, prompts=4, group=8)
    shape = shape_of(task)
    start = shape.initial([0])
    found = states(setting, start, [0], 1e-2, olds=(4, 8), positions=(2, 3))
    assert sorted(found) == [(4, 0), (4, 2), (4, 3), (8, 0), (8, 2), (8, 3)]
    for (old, since), flat in found.items():
        run = replace(setting, updates=old + since, evaluate_every=100)
        assert torch.equal(flat, train(run, shape, start, [0], torch.tensor([1e-2])).parameters)
    # a longer generation is cut where π_old is remembered, and only there
    longer = states(replace(setting, updates_per_generation=8), start, [0], 1e-2, olds=(4,), positions=(3, 7))
    assert torch.equal(longer[4, 3], found[4, 3])
    assert not torch.equal(longer[4, 7], found[8, 3])


def test_the_distance_of_curves_and_the_grid() -> None:
    share, used = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([True, True, False])
    w, best = torch.tensor([1.0, 2.0, 9.0]), torch.tensor([[0.5, 1.0, 1.0], [1.0, 2.0, 1.0]])
    assert distance(w, best, share, used) == pytest.approx([(5 * 0.25 + 3) / 8, 0])
    assert distance(w, best, share, used, scaled=True) == pytest.approx([0, 0], abs=1e-6)
    assert (1.0, 2.0) in exponents()
    assert (0.0, float("inf")) in exponents()
    assert interval(torch.tensor([5.0, *range(101)])) == [5, 2.5, 97.5]


def test_the_results_are_written_from_the_cells_that_are_done(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    Q, C = len(bins()), len(COMPARED)
    rows = C + len(exponents())
    for seed in (0, 1):
        collected = Blocks(C, Q, 16, 2, 6, torch.float32)
        for i in range(16):
            parts = 1 + torch.randn(Q, 2, 6, generator=generator)
            collected.add(i, torch.cat([parts.sum(0).expand(C, -1, -1), parts]))
        counts = {"tokens": torch.full((Q,), 9.0).double(), "weights": torch.full((rows, Q), 9.0).double()}
        values = vars(collected.moments(20, seed)) | counts | {"log_ratio": torch.zeros(Q).double()}
        path = Cell("rare", 16, seed, 32, 15).path(tmp_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(values | {"rate": 1e-3, "cpu_seconds": 1.0}, path)
    # no arm has its learning rate, so that nothing is computed
    analyse(tmp_path, tmp_path)
    written = json.loads((tmp_path / "best_weight.json").read_text())
    (piece,) = written["pieces"].values()
    assert piece["cells"] == [[0, 32, 15], [1, 32, 15]]
    # every weight is 1: a method is as far from w* as importance sampling, and has its error
    for label in COMPARED:
        assert piece["methods"][label]["all"]["mse_over_is"] == [1, 1, 1]
        assert piece["distance"]["alone"][label] == piece["distance"]["alone"]["is"]
    assert piece["best"]["together"]["mse"][0] <= piece["methods"]["is"]["all"]["mse"][0]
    text = best_weight_view.tables(written)
    assert all(f"| {label} |" in text for label in COMPARED)
    assert len(best_weight_view.figure(written).axes) == 2
