"""How far each correction ρ leaves the expected gradient from the true one: exact, by enumeration.

python studies/sampler_correction/run.py [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tabular import EOS, Expectation, Responses, expected_gradient, true_gradient
from torch import Tensor

from dgpo.aggregation import Aggregation, SeqMeanTokenMean, SeqMeanTokenSumNorm, TokenMean
from dgpo.correction import Band, Correction, Truncate

HERE = Path(__file__).parent
DRAWS, VOCABULARY, LENGTH, SPREAD, END = 100, 4, 4, 1.5, -1.0
BATCH = 512

Sampler = Callable[[Tensor], Tensor]


def at_temperature(temperature: float, logits: Tensor) -> Tensor:
    """Log-probs of a sampler at another temperature."""
    return (logits / temperature).log_softmax(-1)


def with_noise(size: float, logits: Tensor) -> Tensor:
    """Log-probs of a sampler whose logits are off by N(0, size²), as those of other kernels are."""
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), dtype=logits.dtype)
    return (logits + size * noise).log_softmax(-1)


def top_p(share: float, logits: Tensor) -> Tensor:
    """Log-probs of a sampler that leaves out the least likely tokens beyond a share of the probability."""
    ordered, index = logits.softmax(-1).sort(-1, descending=True)
    out = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, index, ordered.cumsum(-1) - ordered >= share)
    return logits.masked_fill(out, -math.inf).log_softmax(-1)


SAMPLERS: dict[str, Sampler] = {
    "τ = 0.6": partial(at_temperature, 0.6),
    "τ = 0.8": partial(at_temperature, 0.8),
    "τ = 1.2": partial(at_temperature, 1.2),
    "τ = 1.5": partial(at_temperature, 1.5),
    "noise 0.1": partial(with_noise, 0.1),
    "top-p 0.9": partial(top_p, 0.9),
}
CORRECTIONS: dict[str, Correction | None] = {
    "none": None,
    "token, no cap": Truncate(cap=math.inf),
    "token, cap 2": Truncate(cap=2.0),
    "token, band 0.5 … 2": Band(),
    "sequence, no cap": Truncate(level="sequence", cap=math.inf),
    "sequence, cap 10": Truncate(level="sequence", cap=10.0),
    "sequence, cap 5": Truncate(level="sequence", cap=5.0),
    "sequence, cap 2": Truncate(level="sequence", cap=2.0),
    "sequence, cap 1": Truncate(level="sequence", cap=1.0),
    "sequence, band 0.5 … 2": Band(level="sequence"),
    "sequence, band 0 … 3": Band(level="sequence", band_low=0.0, band_high=3.0),  # TRL's default with vLLM
}


def problem(length: int) -> tuple[Responses, Tensor, Tensor]:
    """Responses, logits [D, S, V] and rewards [D, R], drawn once.

    Logits are N(0, SPREAD²), that of the end lowered by -END so that responses are not all short; rewards are N(0, 1).
    """
    generator = torch.Generator().manual_seed(0)
    responses = Responses.up_to(length, VOCABULARY)
    size = (DRAWS, responses.states, VOCABULARY)
    logits = SPREAD * torch.randn(size, generator=generator, dtype=torch.float64)
    logits[..., EOS] += END
    return responses, logits, torch.randn(DRAWS, len(responses.tokens), generator=generator, dtype=torch.float64)


def over_draws(values: Tensor) -> dict[str, float]:
    """Median, and the 10 % and 90 % quantiles, to 6 digits; what is rounding alone is 0."""
    low, median, high = torch.where(values.abs() < 1e-12, 0.0, values).quantile(torch.tensor([0.1, 0.5, 0.9]).double())
    return {name: float(f"{float(v):.6g}") for name, v in (("median", median), ("low", low), ("high", high))}


def distances(found: Expectation, truth: Tensor, on_policy: Expectation) -> dict[str, dict[str, float]]:
    """Bias |E g - g*| / |g*|, cosine of E g and g*, variance against on-policy sampling, error of a batch's mean."""
    bias = (found.mean - truth).norm(dim=-1) / truth.norm(dim=-1)
    error = (bias.square() + found.variance / BATCH / truth.square().sum(-1)).sqrt()
    return {
        "bias": over_draws(bias),
        "cosine": over_draws(torch.cosine_similarity(found.mean, truth, dim=-1)),
        "variance": over_draws(found.variance / on_policy.variance),
        "error": over_draws(error),
    }


def corrections(length: int, samplers: list[str], names: list[str]) -> dict[str, Any]:
    """Distances by sampler and correction, and what the metrics about the sampler would show."""
    responses, logits, reward = problem(length)
    truth = true_gradient(responses, logits, reward)
    expected = partial(expected_gradient, responses, logits, reward=reward, aggregation=SeqMeanTokenSumNorm(length=1.0))
    on_policy = expected(log_mu=logits.log_softmax(-1), correction=None)
    found: dict[str, Any] = {}
    for sampler in samplers:
        log_mu = SAMPLERS[sampler](logits)
        outcomes = {name: expected(log_mu=log_mu, correction=CORRECTIONS[name]) for name in names}
        one = next(iter(outcomes.values()))
        metrics = {"kl": over_draws(one.kl), "k1": over_draws(one.k1), "cut": over_draws(one.cut)}
        found[sampler] = {**metrics, **{name: distances(one, truth, on_policy) for name, one in outcomes.items()}}
    return found


def aggregations() -> dict[str, Any]:
    """Direction of the expected gradient of n on-policy responses: 1 - cosine with the true one."""
    responses, logits, reward = problem(LENGTH)
    truth = true_gradient(responses, logits, reward)
    log_pi = logits.log_softmax(-1)
    length = responses.lengths
    of_length = torch.zeros(DRAWS, LENGTH + 1, dtype=logits.dtype)
    of_length.index_add_(1, length, responses.of_tokens(log_pi).sum(-1).exp())

    def direction(aggregation: Aggregation, scale: Tensor | None = None) -> dict[str, float]:
        found = expected_gradient(
            responses, logits, log_pi, reward, correction=None, aggregation=aggregation, scale=scale
        )
        return over_draws(1 - torch.cosine_similarity(found.mean, truth, dim=-1))

    found = {
        "seq-mean-token-sum-norm": direction(SeqMeanTokenSumNorm(length=1.0)),
        "seq-mean-token-mean": direction(SeqMeanTokenMean()),
    }
    others, count = torch.ones(DRAWS, 1, dtype=logits.dtype), 0
    for responses_in_step in (2, 8, 64):
        while count < responses_in_step - 1:
            others, count = _convolve(others, of_length), count + 1
        totals = length.unsqueeze(-1) + torch.arange(others.shape[-1])
        # with totals.tokens = 1 the coefficient is 1; the step's is 1 / tokens, in expectation over the other responses
        scale = (others.unsqueeze(1) / totals).sum(-1)
        found[f"token-mean, n = {responses_in_step}"] = direction(TokenMean(), scale)
    return found


def _convolve(first: Tensor, second: Tensor) -> Tensor:
    out = torch.zeros(len(first), first.shape[-1] + second.shape[-1] - 1, dtype=first.dtype)
    for shift in range(second.shape[-1]):
        out[:, shift : shift + first.shape[-1]] += first * second[:, shift : shift + 1]
    return out


def study() -> dict[str, Any]:
    """Everything in results.json; deterministic."""
    lengths = range(1, 7)
    some = ["none", "token, no cap", "sequence, no cap", "sequence, cap 2"]
    return {
        "settings": {
            "draws": DRAWS,
            "vocabulary": VOCABULARY,
            "length": LENGTH,
            "spread": SPREAD,
            "end": END,
            "batch": BATCH,
        },
        "corrections": corrections(LENGTH, list(SAMPLERS), list(CORRECTIONS)),
        "length": {str(length): corrections(length, ["τ = 0.8"], some)["τ = 0.8"] for length in lengths},
        "aggregations": aggregations(),
    }


def tables(results: dict[str, Any]) -> list[str]:
    """The tables of docs/correction.md: bias, variance, length, aggregation; medians."""
    by_sampler, by_length = results["corrections"], results["length"]

    def rows(outer: str, inner: str) -> list[str]:
        cells = {n: [f"{_show(v[n][outer])} ({_show(v[n][inner])})" for v in by_sampler.values()] for n in CORRECTIONS}
        return [_row(name, found) for name, found in cells.items()]

    shown = (
        ("none", "bias"),
        ("token, no cap", "bias"),
        ("sequence, cap 2", "bias"),
        ("sequence, no cap", "variance"),
    )
    kinds = [
        [
            *_head("bias (cosine)", by_sampler),
            *rows("bias", "cosine"),
            _row("*`kl/sampler` (k3), nats per token*", [_show(one["kl"]) for one in by_sampler.values()]),
            _row("*`kl/sampler_k1`, nats per token*", [_show(one["k1"]) for one in by_sampler.values()]),
            _row("*`sampler/cut_mass`*", [_show(one["cut"]) for one in by_sampler.values()]),
        ],
        [*_head("variance (error)", by_sampler), *rows("variance", "error")],
        [
            *_head("T, at τ = 0.8", by_length),
            *(_row(f"{what}: {n}", [_show(one[n][what]) for one in by_length.values()]) for n, what in shown),
        ],
        [
            *_head("aggregation, on-policy", ["1 - cosine"]),
            *(_row(name, [_show(one, 4)]) for name, one in results["aggregations"].items()),
        ],
    ]
    return ["\n".join(lines) for lines in kinds]


def _head(first: str, columns: Iterable[str]) -> list[str]:
    columns = list(columns)
    return [_row(first, columns), f"|---|{'---:|' * len(columns)}"]


def _row(first: str, cells: Iterable[str]) -> str:
    return f"| {first} | {' | '.join(cells)} |"


def _show(values: dict[str, float], digits: int = 3) -> str:
    """The median; 0 without decimals is exact."""
    median, least = values["median"], 10.0**-digits
    return "0" if median == 0 else f"{median:.{digits}f}" if median >= least else f"< {least}"


def main() -> None:
    """Compute, write and print."""
    parser = argparse.ArgumentParser(description="Bias of sampler corrections, by enumeration.")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    out: Path = parser.parse_args().out
    results = study()
    out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print("\n\n".join(tables(results)))


if __name__ == "__main__":
    main()
