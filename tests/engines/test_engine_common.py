"""What the adapters share: given coefficients and refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dgpo import objectives, policy_loss
from dgpo.aggregation import Fixed
from dgpo.engines.common import (
    fixed_objective,
    make_objective,
    refuse_ignored,
    to_floats,
)

STEADY = [name for name, cls in objectives.OBJECTIVES.items() if "batch" not in cls().reads]


@pytest.mark.parametrize("name", STEADY)
def test_given_coefficients_are_the_coefficients(name: str, make_batch: Callable[..., Any]) -> None:
    """With the coefficients of the token mean, value and gradient are those of the token mean; NaN stays masked."""
    batch = make_batch()
    arguments = (batch.logprob.requires_grad_(), batch.old_logprob, batch.advantage, batch.mask, name)
    c = torch.where(batch.mask, 1.0 / batch.mask.sum(), torch.nan)
    expected, found = policy_loss(*arguments), policy_loss(*arguments, Fixed(values=c))
    assert found.value.item() == pytest.approx(expected.value.item(), rel=1e-6)
    pair = [torch.autograd.grad(out.value, batch.logprob)[0] for out in (found, expected)]
    torch.testing.assert_close(*pair, rtol=1e-6, atol=1e-9)


def test_coefficients_of_another_shape_are_refused(make_batch: Callable[..., Any]) -> None:
    batch = make_batch()
    with pytest.raises(ValueError, match=r"values has shape \(1, 7\); expected \(5, 7\)"):
        policy_loss(
            batch.logprob,
            batch.old_logprob,
            batch.advantage,
            batch.mask,
            aggregation=Fixed(values=torch.ones(1, 7)),
        )


def test_an_adaptive_objective_is_refused() -> None:
    adaptive = sorted(set(objectives.OBJECTIVES) - set(STEADY))
    assert adaptive
    for name in adaptive:
        with pytest.raises(ValueError, match=f"Engine: objective '{name}' calibrates itself"):
            fixed_objective("Engine", name, {})
    assert fixed_objective("Engine", "dgpo", {"n": 2, "m": 2}) == objectives.DGPO(n=2, m=2)
    with pytest.raises(ValueError, match="no field 'nn', did you mean 'n'"):
        fixed_objective("Engine", "dgpo", {"nn": 2})


@pytest.mark.parametrize("fields", [None, {}])
def test_no_fields_are_the_defaults(fields: Any) -> None:
    assert make_objective("Engine", "dgpo", fields) == fixed_objective("Engine", "dgpo", fields) == objectives.DGPO()


def test_fields_that_are_no_mapping_are_refused() -> None:
    with pytest.raises(TypeError, match=r"Engine: objective_kwargs = 'n=2' is of type str; expected a mapping"):
        make_objective("Engine", "dgpo", "n=2")  # type: ignore[arg-type]


def test_a_weight_that_reads_entropy_needs_an_engine_that_has_it() -> None:
    fields = {"entropy_quantile": 0.8}
    for make in (make_objective, fixed_objective):
        with pytest.raises(ValueError, match="Engine: the weight of ASPO.*reads the entropy.*Engine does not provide"):
            make("Engine", "aspo", fields)
        assert make("Engine", "aspo", fields, entropy=True) == objectives.ASPO(entropy_quantile=0.8)
        assert make("Engine", "aspo", None) == objectives.ASPO()


def test_ignored_settings_are_named_with_their_defaults() -> None:
    refuse_ignored("Engine", {"clip": 0.2, "cap": None}, {"clip": 0.2, "cap": None}, "Set that.")
    with pytest.raises(ValueError, match=r"^Engine: .*cap = 3 \(default None\)\. Set that\.$"):
        refuse_ignored("Engine", {"clip": 0.2, "cap": 3}, {"clip": 0.2, "cap": None}, "Set that.")


def test_statistics_become_floats() -> None:
    assert to_floats({"a": torch.tensor(0.5), "b": torch.tensor(2.0)}) == {"a": 0.5, "b": 2.0}
