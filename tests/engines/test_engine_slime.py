"""The loss for slime against its documented call: THUDM/slime@624b824a (0.3.1), slime/backends/megatron_utils/loss.py.

slime is not on a package index and needs Megatron. The three functions of slime that the loss calls are stood in for,
by name, for one device; so are its two reducers.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from dgpo import StepTotals, aggregation, correction, objectives, policy_loss
from dgpo.engines.slime import policy_loss_function

STEADY = [name for name, cls in objectives.OBJECTIVES.items() if "batch" not in cls().reads]
PROMPTS, RESPONSES, V = (2, 1, 3), (4, 2, 5), 6


def get_log_probs_and_entropy(
    logits: Tensor,
    *,
    args: Namespace,
    unconcat_tokens: list[Tensor],
    total_lengths: list[int],
    response_lengths: list[int],
    with_entropy: bool,
) -> tuple[Tensor, dict[str, list[Tensor]]]:
    assert logits.dtype == torch.float32
    table = (logits.squeeze(0) / args.rollout_temperature).log_softmax(-1)
    found: dict[str, list[Tensor]] = {"log_probs": [], "entropy": []}
    end = 0
    for tokens, total, response in zip(unconcat_tokens, total_lengths, response_lengths, strict=True):
        end += total
        rows = table[end - response - 1 : end - 1]
        found["log_probs"].append(rows.gather(-1, tokens[total - response :, None]).squeeze(-1))
        found["entropy"].append(-(rows.exp() * rows).sum(-1))
    return torch.empty(0), found


def compute_approx_kl(new: Tensor, base: Tensor, kl_loss_type: str, importance_ratio: Tensor | None) -> Tensor:
    assert kl_loss_type == "k2"
    kl = (new - base).square() / 2
    return kl if importance_ratio is None else importance_ratio * kl


@pytest.fixture(autouse=True)
def slime(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("slime", "slime.backends", "slime.backends.megatron_utils", "slime.utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    loss, ppo = ModuleType("slime.backends.megatron_utils.loss"), ModuleType("slime.utils.ppo_utils")
    loss.get_log_probs_and_entropy = get_log_probs_and_entropy  # type: ignore[attr-defined]
    loss.get_rollout_top_p_logprob_kwargs = lambda args, batch: {}  # type: ignore[attr-defined]
    ppo.compute_approx_kl = compute_approx_kl  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, loss.__name__, loss)
    monkeypatch.setitem(sys.modules, ppo.__name__, ppo)


@dataclass
class MicroBatch:
    batch: dict[str, Any]
    logits: Tensor

    def mean(self, flat: Tensor) -> Tensor:
        """slime's `sum_of_sample_mean`, with the denominators of whole rollouts."""
        parts = zip(flat.split(RESPONSES), self.batch["loss_masks"], self.batch["rollout_mask_sums"], strict=True)
        return sum((x * mask).sum() / denominator.clamp_min(1) for x, mask, denominator in parts)  # type: ignore[return-value]

    def total(self, flat: Tensor) -> Tensor:
        """slime's `sum_of_token`, under --calculate-per-token-loss."""
        return (flat * torch.cat(self.batch["loss_masks"])).sum()


@pytest.fixture
def micro() -> MicroBatch:
    total = [p + r for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    masks = [torch.ones(r, dtype=torch.int) for r in RESPONSES]
    masks[2][1] = 0
    batch = {
        "unconcat_tokens": [torch.randint(V, (n,)) for n in total],
        "total_lengths": total,
        "response_lengths": list(RESPONSES),
        "loss_masks": masks,
        "advantages": [torch.full((r,), a) for r, a in zip(RESPONSES, (1.2, -0.7, 0.4), strict=True)],
        "log_probs": [-3 * torch.rand(r) - 0.2 for r in RESPONSES],
        "rollout_log_probs": [-3 * torch.rand(r) - 0.2 for r in RESPONSES],
        "ref_log_probs": [-3 * torch.rand(r) - 0.2 for r in RESPONSES],
        # the last two responses are of one rollout
        "rollout_mask_sums": [torch.tensor(float(n)) for n in (4, 6, 6)],
    }
    return MicroBatch(batch, torch.randn(1, sum(total), V, requires_grad=True))


def arguments(name: str = "dgpo", **changed: Any) -> Namespace:
    """slime's parsed flags, as they are by default."""
    flags: dict[str, Any] = {
        "dgpo_objective": name,
        "advantage_estimator": "grpo",
        "rollout_temperature": 0.8,
        "eps_clip": 0.2,
        "eps_clip_high": 0.2,
        "eps_clip_c": None,
        "use_opsm": False,
        "get_mismatch_metrics": False,
        "use_tis": False,
        "tis_clip": 2.0,
        "tis_clip_low": 0,
        "custom_tis_function_path": None,
        "custom_pg_loss_reducer_function_path": None,
        "use_rollout_logprobs": False,
        "entropy_coef": 0.0,
        "use_kl_loss": False,
        "kl_loss_coef": 0.0,
        "kl_loss_type": "k2",
        "use_unbiased_kl": False,
    }
    return Namespace(**(flags | changed))


def padded(micro: MicroBatch, args: Namespace) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log π_θ, log π_old, A and mask, [B, T]."""
    batch = micro.batch
    lengths = {key: batch[key] for key in ("unconcat_tokens", "total_lengths", "response_lengths")}
    _, found = get_log_probs_and_entropy(micro.logits, args=args, with_entropy=True, **lengths)
    parts = (found["log_probs"], batch["log_probs"], batch["advantages"], batch["loss_masks"])
    new, old, advantage, mask = (pad_sequence(list(part), batch_first=True) for part in parts)
    return new, old, advantage, mask.bool()


def assert_same(micro: MicroBatch, found: Tensor, expected: Tensor) -> None:
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    pair = [torch.autograd.grad(value, micro.logits, retain_graph=True)[0] for value in (found, expected)]
    torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", STEADY)
def test_per_token_loss_is_the_sum_over_tokens(name: str, micro: MicroBatch) -> None:
    args = arguments(name)
    loss, log = policy_loss_function(args, micro.batch, micro.logits, micro.total)
    expected = policy_loss(*padded(micro, args), name, totals=StepTotals(tokens=1, sequences=1))
    assert_same(micro, loss, expected.value)
    tokens = 10  # what slime divides a logged sum by
    for key, value in expected.statistics.items():
        assert log[f"objective/{key}"].item() / tokens == pytest.approx(value.item(), abs=1e-6)
    assert not any(value.requires_grad for value in log.values())


@pytest.mark.parametrize("name", STEADY)
def test_the_mean_over_rollouts_keeps_its_denominators(name: str, micro: MicroBatch) -> None:
    args = arguments(name)
    loss, log = policy_loss_function(args, micro.batch, micro.logits, micro.mean)
    new, old, advantage, mask = padded(micro, args)
    # one response at a time, each with the denominator of its rollout
    rows = [
        policy_loss(new, old, advantage, mask & (torch.arange(3) == row)[:, None], name, totals=StepTotals(n, 1)).value
        for row, n in enumerate((4.0, 6.0, 6.0))
    ]
    assert_same(micro, loss, torch.stack(rows).sum())
    assert log["loss"].item() == loss.item()
    assert log["pg_loss"].item() == loss.item()


def test_without_saved_log_probs_the_step_is_on_policy(micro: MicroBatch) -> None:
    micro.batch["log_probs"] = []
    _, log = policy_loss_function(arguments(), micro.batch, micro.logits, micro.total)
    assert log["objective/weight/mean"].item() / 10 == pytest.approx(1.0)
    assert log["objective/kl/old"].item() == 0.0


def test_the_ratio_against_the_sampler(micro: MicroBatch) -> None:
    loss, _ = policy_loss_function(arguments(use_rollout_logprobs=True), micro.batch, micro.logits, micro.total)
    micro.batch["log_probs"] = micro.batch["rollout_log_probs"]
    expected, _ = policy_loss_function(arguments(), micro.batch, micro.logits, micro.total)
    assert_same(micro, loss, expected)


def test_tis_is_the_correction(micro: MicroBatch) -> None:
    args = arguments(use_tis=True, tis_clip=1.5)
    loss, log = policy_loss_function(args, micro.batch, micro.logits, micro.total)
    expected = policy_loss(
        *padded(micro, args),
        totals=StepTotals(tokens=1, sequences=1),
        rollout_logprob=pad_sequence(micro.batch["rollout_log_probs"], batch_first=True),
        correction=correction.Truncate(cap=1.5),
    )
    assert_same(micro, loss, expected.value)
    assert log["objective/kl/sampler"] > 0
    micro.batch["rollout_log_probs"] = []
    with pytest.raises(ValueError, match="needs the sampler's log-probs"):
        policy_loss_function(args, micro.batch, micro.logits, micro.total)


def test_entropy_and_kl_terms(micro: MicroBatch) -> None:
    args = arguments(entropy_coef=0.3, use_kl_loss=True, kl_loss_coef=0.7, use_unbiased_kl=True)
    loss, log = policy_loss_function(args, micro.batch, micro.logits, micro.mean)
    plain, _ = policy_loss_function(arguments(), micro.batch, micro.logits, micro.mean)
    lengths = {key: micro.batch[key] for key in ("unconcat_tokens", "total_lengths", "response_lengths")}
    _, found = get_log_probs_and_entropy(micro.logits, args=args, with_entropy=True, **lengths)
    new, old, ref = (torch.cat(p) for p in (found["log_probs"], micro.batch["log_probs"], micro.batch["ref_log_probs"]))
    kl = micro.mean((new - old).exp() * (new - ref).square() / 2)
    assert_same(micro, loss, plain - 0.3 * micro.mean(torch.cat(found["entropy"])) + 0.7 * kl)
    assert log["kl_loss"].item() == pytest.approx(kl.item(), rel=1e-5)


def test_recomputation_of_the_loss(micro: MicroBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """--recompute-loss-function: once forward and once backward; the derivative of the reducer adds no third time."""
    calls = []

    def counted(*logits: Tensor, **rest: Any) -> Any:
        calls.append(1)
        return get_log_probs_and_entropy(*logits, **rest)

    monkeypatch.setattr(sys.modules["slime.backends.megatron_utils.loss"], "get_log_probs_and_entropy", counted)
    call = (arguments(), micro.batch, micro.logits, micro.mean)
    plain, _ = policy_loss_function(*call)
    loss, _ = checkpoint(policy_loss_function, *call, use_reentrant=False)
    gradients = []
    for value in (plain, loss):
        micro.logits.grad = None
        value.backward()
        gradients.append(micro.logits.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
    assert len(calls) == 3  # the plain one, forward, backward


def test_a_rank_without_tokens_still_runs_backward(micro: MicroBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = {"log_probs": [torch.zeros(0)] * 3, "entropy": [torch.zeros(0)] * 3}
    module = sys.modules["slime.backends.megatron_utils.loss"]
    monkeypatch.setattr(module, "get_log_probs_and_entropy", lambda logits, **_: (None, empty))
    for key in ("log_probs", "advantages", "rollout_log_probs"):
        micro.batch[key] = [torch.zeros(0)] * 3
    loss, log = policy_loss_function(arguments(), micro.batch, micro.logits, lambda flat: (flat * 1).sum())
    loss.backward()
    assert loss.item() == 0.0
    assert micro.logits.grad is not None
    assert all(value.isfinite() for value in log.values())
    with pytest.raises(ValueError, match="context parallelism leaves only parts"):
        policy_loss_function(arguments("gspo"), micro.batch, micro.logits, lambda flat: (flat * 1).sum())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (arguments(eps_clip_high=0.28), r"eps_clip_high = 0.28 \(default 0.2\)"),
        (arguments(eps_clip_c=3.0), r"eps_clip_c = 3.0 \(default None\)"),
        (arguments(use_opsm=True), "use_opsm = True"),
        (arguments(custom_tis_function_path="a.b"), "custom_tis_function_path"),
        (arguments(advantage_estimator="gspo"), "also selects slime's loss"),
        (arguments("bapo"), "slime: objective 'bapo' calibrates itself"),
        (arguments("dgop"), "did you mean 'dgpo'"),
        (arguments(dgpo_objective_kwargs={"eps": 0.2}), "no field 'eps'"),
    ],
)
def test_wrong_settings_are_refused(args: Namespace, message: str, micro: MicroBatch) -> None:
    with pytest.raises(ValueError, match=message):
        policy_loss_function(args, micro.batch, micro.logits, micro.mean)


def test_an_objective_must_be_named(micro: MicroBatch) -> None:
    args = arguments()
    del args.dgpo_objective
    with pytest.raises(ValueError, match="args has no dgpo_objective"):
        policy_loss_function(args, micro.batch, micro.logits, micro.mean)


def test_fields_of_the_objective_reach_it(micro: MicroBatch) -> None:
    args = arguments(dgpo_objective_kwargs={"n": 2, "m": 3})
    loss, _ = policy_loss_function(args, micro.batch, micro.logits, micro.total)
    expected = policy_loss(
        *padded(micro, args), objectives.DGPO(n=2, m=3), aggregation.TokenMean(), StepTotals(tokens=1, sequences=1)
    )
    assert_same(micro, loss, expected.value)


def test_the_entropy_of_slime_reaches_an_objective_that_reads_it(micro: MicroBatch) -> None:
    args = arguments("aspo", dgpo_objective_kwargs={"entropy_quantile": 0.5})
    lengths = {key: micro.batch[key] for key in ("unconcat_tokens", "total_lengths", "response_lengths")}
    _, found = get_log_probs_and_entropy(micro.logits, args=args, with_entropy=True, **lengths)
    loss, _ = policy_loss_function(args, micro.batch, micro.logits, micro.total)
    expected = policy_loss(
        *padded(micro, args),
        objectives.ASPO(entropy_quantile=0.5),
        totals=StepTotals(tokens=1, sequences=1),
        entropy=pad_sequence(found["entropy"], batch_first=True),
    )
    assert_same(micro, loss, expected.value)
