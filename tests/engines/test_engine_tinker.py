"""Losses for Tinker's API: the traced graph, run here, against `policy_loss`; and the way of a graph over the wire."""

from __future__ import annotations

import pytest
import torch
import torch.fx

from dgpo import objectives, policy_loss
from dgpo.aggregation import Fixed
from dgpo.engines import tinker as plugin

UNTRACEABLE = ("fipo",)
FIXED = [
    name
    for name, cls in objectives.OBJECTIVES.items()
    if not {"batch", "entropy"} & cls().reads and name not in UNTRACEABLE
]
ADAPTIVE = [name for name, cls in objectives.OBJECTIVES.items() if "batch" in cls().reads]


def response(advantage, length=48, seed=0):
    """[T] each: log-probs on both sides of every usual bound, some far beyond, and a prompt of three tokens."""
    generator = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(length, generator=generator) - 0.01
    new = (old + 0.5 * torch.randn(length, generator=generator)).clamp(max=-1e-3)
    new[-1], old[-2] = -30.0, -30.0
    weights = torch.rand(length, generator=generator) + 0.1
    # nothing of the prompt may reach the loss
    weights[:3], new[:3], old[:3] = 0.0, torch.nan, torch.inf
    return new.requires_grad_(), old, torch.full((length,), advantage), weights


def of_policy_loss(name, new, old, advantage, weights):
    rows = (values.unsqueeze(0) for values in (new, old, advantage, weights != 0))
    return policy_loss(*rows, name, Fixed(values=weights.unsqueeze(0)))


@pytest.mark.parametrize("advantage", [1.5, -0.7])
@pytest.mark.parametrize("name", FIXED)
def test_the_traced_graph_is_policy_loss(name, advantage):
    graph = torch.fx.symbolic_trace(plugin.loss(name))
    for length, seed in ((48, 0), (7, 1)):  # one graph for every length
        given = response(advantage, length, seed)
        value, metrics = graph(*given)
        expected = of_policy_loss(name, *given)
        torch.testing.assert_close(value, expected.value, rtol=1e-6, atol=1e-6)
        found, known = (torch.autograd.grad(v, given[0], retain_graph=True)[0] for v in (value, expected.value))
        torch.testing.assert_close(found, known, rtol=1e-6, atol=1e-6)
        for key, name_here in (
            ("weight", "weight/mean"),
            ("weight_zero", "weight/zero_fraction"),
            ("kl_old", "kl/old"),
        ):
            torch.testing.assert_close(
                metrics[f"custom/{key}:mean"], expected.statistics[name_here], rtol=1e-5, atol=1e-6
            )


def test_what_a_graph_may_hold():
    """Functions of torch and operator, methods of tensors, no tensors as constants: what Tinker's client allows."""
    for name in FIXED:
        for node in torch.fx.symbolic_trace(plugin.loss(name)).graph.nodes:
            assert node.op in ("placeholder", "call_function", "call_method", "output"), (name, node.op)
            if node.op == "call_function":
                module = (getattr(node.target, "__module__", None) or "").split(".")[0]
                assert module in ("torch", "math", "operator", "_operator") or node.target is getattr, (name, node)
            if node.op == "call_method":
                assert hasattr(torch.Tensor, node.target), (name, node)


def test_fields_and_instances():
    given = response(-1.0)
    by_name, by_instance = (
        torch.fx.symbolic_trace(loss)(*given)[0]
        for loss in (plugin.loss("grpo", dual_clip=3.0), plugin.loss(objectives.make("grpo", dual_clip=3.0)))
    )
    torch.testing.assert_close(by_name, by_instance)
    assert by_name != torch.fx.symbolic_trace(plugin.loss("grpo"))(*given)[0]
    assert plugin.loss("grpo").__name__ == "dgpo_grpo"
    assert list(plugin.RANKS) == ["logprobs", *plugin.INPUTS]


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_objectives_are_refused(name):
    with pytest.raises(ValueError, match="calibrates itself on the complete batch"):
        plugin.loss(name)
    with pytest.raises(ValueError, match="calibrates itself on the whole batch"):
        plugin.loss(objectives.make(name))


@pytest.mark.parametrize("name", UNTRACEABLE)
def test_what_cannot_be_traced_is_refused(name):
    with pytest.raises(ValueError, match="cannot be traced, since it branches on the length"):
        plugin.loss(name)


def test_other_refusals():
    with pytest.raises(ValueError, match="unknown objective 'dpgo', did you mean"):
        plugin.loss("dpgo")
    with pytest.raises(ValueError, match="reads the entropy"):
        plugin.loss("aspo", entropy_quantile=0.2)
    with pytest.raises(TypeError, match="fields beside it: n"):
        plugin.loss(objectives.make("dgpo"), n=1)
