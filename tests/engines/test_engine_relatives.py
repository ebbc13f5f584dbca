"""miles and vime, which descend from slime; rLLM and NeMo-RL: each loss against the call that its engine makes.

Read at radixark/miles@31f1ca96, vllm-project/vime@0696c9bd, rllm-org/rllm@030b08ce and @05158080, and
NVIDIA-NeMo/RL@006907a9. None of them is installed: what the losses call is stood in for, by name and signature.
"""

from __future__ import annotations

import enum
import importlib
import sys
from argparse import Namespace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo import StepTotals, aggregation, objectives, policy_loss
from dgpo.correction import Truncate
from dgpo.engines import rllm

STEADY = [name for name, cls in objectives.OBJECTIVES.items() if not {"batch", "entropy"} & cls().reads]
LENGTHS, V = (4, 2, 5), 6


def modules(monkeypatch: pytest.MonkeyPatch, **functions: dict[str, Any]) -> None:
    """Modules of these names (dots as double underscores) with these attributes."""
    for name, attributes in functions.items():
        path = name.replace("__", ".")
        parts = path.split(".")
        for end in range(1, len(parts)):
            package = ".".join(parts[:end])
            if package not in sys.modules:
                monkeypatch.setitem(sys.modules, package, ModuleType(package))
        module = ModuleType(path)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, path, module)


# --- slime's descendants ----------------------------------------------------------------------------------------------


def scores(
    logits: Tensor,
    *,
    args: Namespace,
    unconcat_tokens: list[Tensor],
    total_lengths: list[int],
    response_lengths: list[int],
    with_entropy: bool = False,
    max_seq_lens: list[int] | None = None,
) -> dict[str, list[Tensor]]:
    """`get_log_probs_and_entropy` of both, on one device, of packed sequences."""
    table = (logits.squeeze(0) / args.rollout_temperature).log_softmax(-1)
    found: dict[str, list[Tensor]] = {"log_probs": [], "entropy": []}
    end = 0
    for tokens, total, response in zip(unconcat_tokens, total_lengths, response_lengths, strict=True):
        end += total
        rows = table[end - response - 1 : end - 1]
        found["log_probs"].append(rows.gather(-1, tokens[total - response :, None]).squeeze(-1))
        found["entropy"].append(-(rows.exp() * rows).sum(-1))
    return found


def kl(new: Tensor, base: Tensor, kl_loss_type: str, importance_ratio: Tensor | None = None) -> Tensor:
    return (new - base).square() / 2


@pytest.fixture(params=["miles", "vime"])
def descendant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "miles":
        modules(
            monkeypatch,
            miles__backends__training_utils__loss_hub__logit_processors={"get_log_probs_and_entropy": scores},
            miles__backends__training_utils__loss_hub__math_utils={"compute_approx_kl": kl},
        )
    else:
        modules(
            monkeypatch,
            vime__backends__megatron_utils__loss={
                "get_log_probs_and_entropy": lambda logits, **given: (torch.empty(0), scores(logits, **given))
            },
            vime__utils__ppo_utils={"compute_approx_kl": kl},
        )
    return importlib.import_module(f"dgpo.engines.{request.param}").policy_loss_function


def micro_batch() -> tuple[dict[str, Any], Tensor]:
    total = [n + 2 for n in LENGTHS]
    masks = [torch.ones(n, dtype=torch.int) for n in LENGTHS]
    masks[2][1] = 0
    batch = {
        "unconcat_tokens": [torch.randint(V, (n,)) for n in total],
        "total_lengths": total,
        "response_lengths": list(LENGTHS),
        "loss_masks": masks,
        "advantages": [torch.full((n,), a) for n, a in zip(LENGTHS, (1.2, -0.7, 0.4), strict=True)],
        "log_probs": [-3 * torch.rand(n) - 0.2 for n in LENGTHS],
        "rollout_log_probs": [-3 * torch.rand(n) - 0.2 for n in LENGTHS],
        "ref_log_probs": [-3 * torch.rand(n) - 0.2 for n in LENGTHS],
    }
    return batch, torch.randn(1, sum(total), V, requires_grad=True)


FLAGS = {
    "advantage_estimator": "grpo", "rollout_temperature": 0.8, "eps_clip": 0.2, "eps_clip_high": 0.2, "use_tis": False,
    "tis_clip": 2.0, "use_rollout_logprobs": False, "entropy_coef": 0.0, "use_kl_loss": False, "kl_loss_coef": 0.5,
    "kl_loss_type": "k2", "use_unbiased_kl": False,
}  # fmt: skip


@pytest.mark.parametrize("name", ["dgpo", "gspo", "cispo"])
@pytest.mark.parametrize("options", [{}, {"use_tis": True}, {"use_rollout_logprobs": True}, {"use_kl_loss": True}])
def test_slimes_descendants(descendant: Any, name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    batch, logits = micro_batch()
    args = Namespace(dgpo_objective=name, **(FLAGS | options))

    def total(flat: Tensor) -> Tensor:
        return (flat * torch.cat(batch["loss_masks"])).sum()

    loss, log = descendant(args, batch, logits, total)
    lengths = {key: batch[key] for key in ("unconcat_tokens", "total_lengths", "response_lengths")}
    found = scores(logits, args=args, **lengths)
    pad = torch.nn.utils.rnn.pad_sequence
    old = batch["rollout_log_probs" if args.use_rollout_logprobs else "log_probs"]
    expected = policy_loss(
        *(pad(part, batch_first=True) for part in (found["log_probs"], old, batch["advantages"])),
        pad(batch["loss_masks"], batch_first=True).bool(),
        name,
        totals=StepTotals(tokens=1, sequences=1),
        rollout_logprob=pad(batch["rollout_log_probs"], batch_first=True),
        correction=Truncate() if args.use_tis else None,
    ).value
    if args.use_kl_loss:
        expected = expected + 0.5 * total(kl(torch.cat(found["log_probs"]), torch.cat(batch["ref_log_probs"]), "k2"))
    pair = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (loss, expected)]
    torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-6)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert not any(value.requires_grad for value in log.values())


def test_what_slimes_descendants_refuse(descendant: Any) -> None:
    batch, logits = micro_batch()
    for changed, words in (
        ({"eps_clip": 0.3}, r"(miles|vime): these settings have no effect"),
        ({"advantage_estimator": "gspo"}, r"also selects (miles|vime)'s loss"),
        ({"use_tis": True, "use_rollout_logprobs": True}, "count the same difference twice"),
    ):
        args = Namespace(dgpo_objective="dgpo", **(FLAGS | changed))
        with pytest.raises(ValueError, match=words):
            descendant(args, batch, logits, lambda flat: flat.sum())


# --- rLLM -------------------------------------------------------------------------------------------------------------


def batch_of(B: int = 3, T: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """log π_θ with gradient, log π_old, log μ, A and the mask, [B, T]."""
    new, old, sampler = (-2 * torch.rand(3, B, T, dtype=torch.float64)).unbind()
    advantage = torch.tensor([1.0, -0.5, 0.7], dtype=torch.float64)[:B, None].expand(B, T)
    mask = torch.ones(B, T, dtype=torch.float64)
    mask[-1, -2:] = 0
    return new.requires_grad_(), old, sampler, advantage, mask


@pytest.mark.parametrize("name", STEADY)
@pytest.mark.parametrize("older", [False, True])
def test_rllm(name: str, older: bool) -> None:
    """Rows of verl's workers, with the names of either version of the context; the mean over responses."""
    torch.manual_seed(0)
    new, old, sampler, advantage, mask = batch_of()

    def aggregate(losses: Tensor, mask: Tensor, mode: str | None = None) -> Tensor:
        return ((losses * mask).sum(-1) / mask.sum(-1)).mean()

    names = {"pi": new, "mu": old} if older else {"logp_curr": new, "logp_old": old, "logp_rollout": sampler}
    context = SimpleNamespace(advantages=advantage, action_mask=mask, aggregate=aggregate, params={}, **names)
    value, metrics = rllm.loss(name, context)
    expected = policy_loss(new, old, advantage, mask.bool(), name, aggregation.SeqMeanTokenMean()).value
    pair = [torch.autograd.grad(v, new)[0] for v in (value, expected)]
    torch.testing.assert_close(*pair, rtol=1e-10, atol=1e-12)
    assert value.item() == pytest.approx(expected.item(), rel=1e-10)
    assert ("objective/kl/sampler" in metrics) != older


def test_rllm_on_one_response_of_a_server() -> None:
    new, old, _, advantage, mask = (values[0].detach() for values in batch_of())
    new.requires_grad_()
    context = SimpleNamespace(
        logp_curr=new, logp_old=old, advantages=advantage, action_mask=mask, params={"objective_kwargs": {"n": 1}},
        aggregate=lambda losses, mask, mode=None: (losses * mask).sum(),
    )  # fmt: skip
    value, _ = rllm.loss("dgpo", context)
    expected = policy_loss(
        new[None], old[None], advantage[None], mask[None].bool(), objectives.make("dgpo", n=1),
        totals=StepTotals(tokens=1, sequences=1),
    )  # fmt: skip
    assert value.item() == pytest.approx(expected.value.item())


def test_what_rllm_registers_and_refuses() -> None:
    registered: dict[str, Any] = {}
    rllm.register(lambda name: lambda fn: registered.setdefault(name, fn))
    assert set(registered) == {f"dgpo:{name}" for name in objectives.OBJECTIVES}
    for params, words in (
        ({"eps_clip": 0.3}, "eps_clip = 0.3"),
        ({"kl_beta": 0.1}, "kl_beta = 0.1"),
        ({"objective_kwargs": {"eps": 1}}, "no field 'eps'"),
    ):
        with pytest.raises(ValueError, match=words):
            registered["dgpo:grpo"](SimpleNamespace(params=params))
    with pytest.raises(ValueError, match="calibrates itself"):
        registered["dgpo:bapo"](SimpleNamespace(params={}))


# --- NeMo-RL ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def nemo(monkeypatch: pytest.MonkeyPatch) -> Any:
    kinds = {
        "LossType": enum.Enum("LossType", ["TOKEN_LEVEL", "SEQUENCE_LEVEL"]),
        "LossInputType": enum.Enum("LossInputType", ["LOGIT", "LOGPROB"]),
    }
    modules(monkeypatch, nemo_rl__algorithms__loss__interfaces=kinds)
    return importlib.import_module("dgpo.engines.nemo_rl")


def shifted(values: Tensor) -> Tensor:
    """[B, S] with a first token that has no log-prob."""
    return torch.nn.functional.pad(values.detach(), (1, 0), value=123.0)


@pytest.mark.parametrize(
    ("options", "how"),
    [
        ({}, {}),
        ({"token_level_loss": False}, {"aggregation": "seq-mean-token-mean"}),
        ({"correction": "truncate"}, {"correction": "truncate"}),
        ({"anchor": "rollout"}, {"anchor": "rollout"}),
        ({"kl_coef": 0.1}, {"kl_coef": 0.1}),
    ],
)
def test_nemo_rl(nemo: Any, options: dict[str, Any], how: dict[str, Any]) -> None:
    """Two micro-batches with the counts of their step add up to it; the last response is masked as a sample."""
    torch.manual_seed(0)
    new, old, sampler, advantage, mask = batch_of()
    reference = old - 0.1
    loss = nemo.Loss("grpo", {"eps_high": 0.28}, **options)
    assert loss.input_type.name == "LOGPROB"
    assert loss.loss_type.name == ("SEQUENCE_LEVEL" if how.get("aggregation") else "TOKEN_LEVEL")
    sample_mask = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    valid = mask.bool() & sample_mask.bool()[:, None]
    count, total, metrics = valid.sum(), 0.0, []
    for rows in (slice(0, 1), slice(1, 3)):
        data = {
            "token_mask": shifted(mask)[rows].clamp(max=1), "advantages": shifted(advantage)[rows],
            "prev_logprobs": shifted(old)[rows], "generation_logprobs": shifted(sampler)[rows],
            "reference_policy_logprobs": shifted(reference)[rows], "sample_mask": sample_mask[rows],
        }  # fmt: skip
        value, found = loss(data, sample_mask.sum(), count, next_token_logprobs=new[rows])
        total = total + value
        metrics.append(found)
    expected = policy_loss(
        new, old, advantage, valid, objectives.make("grpo", eps_high=0.28), rollout_logprob=sampler,
        ref_logprob=reference if "kl_coef" in how else None, **how,
    )  # fmt: skip
    pair = [torch.autograd.grad(v, new)[0] for v in (total, expected.value)]
    torch.testing.assert_close(*pair, rtol=1e-10, atol=1e-12)
    summed = sum(found["objective/kl/old"] for found in metrics)
    assert summed == pytest.approx(expected.statistics["kl/old"].item(), rel=1e-6)
    assert max(f["objective/weight_max"] for f in metrics) == pytest.approx(expected.statistics["weight/max"].item())


def test_what_nemo_rl_refuses(nemo: Any) -> None:
    with pytest.raises(ValueError, match="NeMo-RL: objective 'bapo' calibrates itself"):
        nemo.Loss("bapo")
    with pytest.raises(ValueError, match="count the same difference twice"):
        nemo.Loss("grpo", anchor="rollout", correction="band")
