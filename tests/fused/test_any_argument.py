"""Both losses take tensors of any strides, and refuse the same arguments with the same kind of error and text."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fused_problems import companions, gradients, make_problem
from torch import Tensor

import dgpo
from dgpo.aggregation import Fixed, StepTotals
from dgpo.correction import Given

TERMS: dict[str, Any] = {"kl_coef": 0.1, "kl": "k3_ratio", "entropy_coef": 0.05, "temperature": 0.9, "softcap": 20.0}


def transposed(values: Tensor) -> Tensor:
    """Strides in the opposite order."""
    order = list(reversed(range(values.dim())))
    return values.permute(order).contiguous().permute(order)


def strided(values: Tensor) -> Tensor:
    """Every second element of a longer tensor, in every dimension."""
    wide = values.new_zeros([2 * size for size in values.shape])
    view = wide[tuple(slice(None, None, 2) for _ in values.shape)]
    view.copy_(values)
    return view


def reversed_rows(values: Tensor) -> Tensor:
    """Gathered by an index, then sliced off its storage's start."""
    return torch.cat([values[:1], values])[1:]


def expanded(values: Tensor) -> Tensor:
    """One row, repeated with stride 0."""
    return values[:1].expand(values.shape)


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": transposed,
    "strided": strided,
    "offset": reversed_rows,
    "expanded": expanded,
}


def whole_problem() -> dict[str, Any]:
    """Every tensor argument there is; all rows of a length >= 2, so that one row can stand for all."""
    problem = make_problem()
    problem["mask"] = torch.arange(7) < torch.tensor([[7], [4], [5], [2], [6]])
    problem["token_ids"] = torch.randint(0, 37, (5, 7), generator=torch.Generator().manual_seed(3))
    problem["advantage"] = problem["advantage"].unsqueeze(1).expand(5, 7).contiguous()
    return problem | companions(problem)


PER_TOKEN = ("token_ids", "old_logprob", "advantage", "mask", "rollout_logprob", "ref_logprob")
TENSORS = ("hidden", "lm_head", "bias", *PER_TOKEN)


def reshaped(problem: dict[str, Any], names: tuple[str, ...], form: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The problem with these tensors in another form, and the same values as contiguous tensors."""
    odd, plain = dict(problem), dict(problem)
    for name in names:
        value = problem[name]
        odd[name] = FORMS[form](value.detach()).requires_grad_(value.requires_grad)
        plain[name] = odd[name].detach().clone(memory_format=torch.contiguous_format)
        plain[name].requires_grad_(value.requires_grad)
    return odd, plain


@pytest.mark.parametrize("objective", ["dgpo", "gspo", "bapo"])
@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("form", FORMS)
def test_linear_policy_loss_of_any_strides(form: str, backend: str, objective: str) -> None:
    """All tensor arguments together, and with "dgpo" each of them alone; then packed."""
    problem = whole_problem()
    options = {"objective": objective, "correction": "truncate", "chunk_tokens": 4, **TERMS}
    cases = [*((name,) for name in TENSORS if objective == "dgpo"), TENSORS]
    for names in cases:
        odd, plain = reshaped(problem, names, form)
        (out, found), (truth, wanted) = (gradients(given, backend=backend, **options) for given in (odd, plain))
        torch.testing.assert_close(out.value, truth.value, rtol=1e-12, atol=0)
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(out.logprob, truth.logprob, equal_nan=True)
    # packed: [N] of everything per token
    flat = problem | {"hidden": problem["hidden"].detach().flatten(0, 1).requires_grad_()}
    flat |= {name: problem[name].flatten() for name in PER_TOKEN}
    offsets = torch.arange(0, 36, 7)
    odd, plain = reshaped(flat, TENSORS, form)
    odd["cu_seqlens"], plain["cu_seqlens"] = strided(offsets), offsets
    (out, found), (truth, wanted) = (gradients(given, backend=backend, **options) for given in (odd, plain))
    torch.testing.assert_close(out.value, truth.value, rtol=1e-12, atol=0)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)


def policy_arguments() -> dict[str, Any]:
    problem = whole_problem()
    generator = torch.Generator().manual_seed(5)
    noise = 0.4 * torch.randn(5, 7, generator=generator, dtype=torch.float64)
    return {
        "logprob": (problem["old_logprob"] + noise).clamp(max=-1e-3).requires_grad_(),
        "entropy": torch.rand(5, 7, generator=generator, dtype=torch.float64).requires_grad_(),
        **{name: problem[name] for name in PER_TOKEN if name != "token_ids"},
    }


@pytest.mark.parametrize("name", dgpo.objectives.OBJECTIVES)
@pytest.mark.parametrize("form", FORMS)
def test_policy_loss_of_any_strides(form: str, name: str) -> None:
    given = policy_arguments()
    options = {"objective": name, "correction": "truncate", "kl_coef": 0.1, "entropy_coef": 0.05}
    # of each kind of objective one with every tensor alone
    alone = given if name in ("dgpo", "gspo", "bapo", "p3o") else ()
    for names in [*((each,) for each in alone), tuple(given)]:
        pair = reshaped(given, names, form)
        outs = [dgpo.policy_loss(**one, **options) for one in pair]
        torch.testing.assert_close(outs[0].value, outs[1].value, rtol=1e-12, atol=0)
        torch.testing.assert_close(outs[0].weight, outs[1].weight, rtol=1e-12, atol=0)
        grads = [
            torch.autograd.grad(out.value, (one["logprob"], one["entropy"]))
            for out, one in zip(outs, pair, strict=True)
        ]
        torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-15)
    values = torch.rand(5, 7, dtype=torch.float64)
    outs = [dgpo.policy_loss(**given, objective=name, correction=Given(values=v)) for v in (values, transposed(values))]
    assert torch.equal(outs[0].value, outs[1].value)


# --- what is refused --------------------------------------------------------------------------------------------------

BACKENDS = ("auto", "reference", "chunked", "triton")


def errors_of(change: dict[str, Any]) -> dict[str, Exception]:
    """Loss or backend -> what it raises; a loss without such an argument is left out."""
    policy = policy_arguments() | change
    found = {}
    if not set(change) & {"hidden", "lm_head", "bias", "token_ids", "temperature", "softcap", "cu_seqlens"}:
        with pytest.raises((TypeError, ValueError)) as error:
            dgpo.policy_loss(**policy)
        found["policy_loss"] = error.value
    for backend in BACKENDS:
        with pytest.raises((TypeError, ValueError)) as error:
            dgpo.linear_policy_loss(**(whole_problem() | change), backend=backend)  # type: ignore[arg-type]
        found[backend] = error.value
    return found


def assert_one_error(change: dict[str, Any], kind: type[Exception], text: str) -> None:
    """The same class and, but for the tensor that says where the others have to be, the same words."""
    for loss, error in errors_of(change).items():
        anchor, shape = ("logprob", "logprob") if loss == "policy_loss" else ("hidden", "token_ids")
        assert type(error) is kind, (loss, error)
        assert str(error).startswith(text.format(anchor=anchor, shape=shape)), (loss, str(error))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.5, "0.1", True, None, torch.tensor(0.1)], ids=repr)
def test_a_kl_coefficient_is_a_finite_number_not_below_0(value: object) -> None:
    assert_one_error(
        {"kl_coef": value}, ValueError, f"kl_coef = {value!r} is not allowed; expected a number in [0, inf)"
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "0.1", True, None], ids=repr)
def test_an_entropy_coefficient_is_a_finite_number(value: object) -> None:
    assert_one_error(
        {"entropy_coef": value},
        ValueError,
        f"entropy_coef = {value!r} is not allowed; expected a number in (-inf, inf)",
    )


@pytest.mark.parametrize("name", ["temperature", "softcap"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0, 0.0, -1.0, "1", True], ids=repr)
def test_what_scales_logits_is_a_finite_number_above_0(name: str, value: object) -> None:
    assert_one_error({name: value}, ValueError, f"{name} = {value!r} is not allowed; expected a number in (0, inf)")


@pytest.mark.parametrize("name", ["tokens", "sequences"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0], ids=repr)
@pytest.mark.parametrize("wrap", [float, torch.tensor], ids=["number", "tensor"])
def test_totals_are_finite_numbers_above_0(name: str, value: float, wrap: Callable[[float], Any]) -> None:
    with pytest.raises(
        ValueError, match=rf"StepTotals: {name} = {value} is not allowed; expected a number in \(0, inf\)"
    ):
        StepTotals(**({"tokens": 1.0, "sequences": 1.0} | {name: wrap(value)}))


@pytest.mark.parametrize("name", ["old_logprob", "rollout_logprob", "ref_logprob", "advantage", "mask"])
def test_another_device_is_one_error(name: str) -> None:
    value = policy_arguments()[name].to("meta")
    assert_one_error({name: value}, ValueError, f"{name} is on meta; expected cpu, the device of {{anchor}}")


@pytest.mark.parametrize("name", ["lm_head", "bias", "token_ids"])
def test_another_device_than_that_of_hidden_is_one_error(name: str) -> None:
    value = whole_problem()[name].detach().to("meta")
    assert_one_error({name: value}, ValueError, f"{name} is on meta; expected cpu, the device of hidden")


def test_another_device_of_what_is_no_argument_of_its_own() -> None:
    count = torch.tensor(3.0, device="meta")
    totals = StepTotals(tokens=count, sequences=1.0)
    assert_one_error({"totals": totals}, ValueError, "totals.tokens is on meta; expected cpu, the device of {anchor}")
    given = Given(values=torch.ones(5, 7, device="meta"))
    assert_one_error({"correction": given}, ValueError, "correction.values is on meta; expected cpu, the device of")
    flat = whole_problem()
    flat |= {name: flat[name].flatten() for name in PER_TOKEN} | {"hidden": flat["hidden"].flatten(0, 1)}
    with pytest.raises(ValueError, match="cu_seqlens is on meta; expected cpu, the device of hidden"):
        dgpo.linear_policy_loss(**flat, cu_seqlens=torch.arange(0, 36, 7, device="meta"))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("name", ["old_logprob", "rollout_logprob", "ref_logprob"])
def test_log_probs_of_another_kind_of_dtype_are_one_error(name: str, dtype: torch.dtype) -> None:
    value = policy_arguments()[name].to(dtype)
    assert_one_error({name: value}, TypeError, f"{name} has dtype {dtype}; expected a floating dtype")


def test_other_tensors_of_another_kind_of_dtype_are_one_error() -> None:
    given = policy_arguments()
    for dtype in (torch.bool, torch.complex64):
        expected = f"advantage has dtype {dtype}; expected a floating dtype, or integers"
        assert_one_error({"advantage": given["advantage"].to(dtype)}, TypeError, expected)
        assert_one_error({"advantage": given["advantage"][:, 0].to(dtype)}, TypeError, expected)
    mask = given["mask"].to(torch.complex64)
    assert_one_error(
        {"mask": mask}, TypeError, "mask has dtype torch.complex64; expected bool, or 0 and 1 of a real dtype"
    )
    for values, kind, text in (
        (torch.ones(5, 7).bool(), TypeError, "correction.values has dtype torch.bool; expected a floating dtype"),
        ([1.0], TypeError, "correction.values is a list; expected a torch.Tensor"),
        (torch.ones(5), ValueError, "correction.values has shape (5,); expected [B, T] = [5, 7] or [B, 1] = [5, 1]"),
        (torch.ones(4, 7), ValueError, "correction.values has shape (4, 7); expected [B, T] = [5, 7]"),
    ):
        assert_one_error({"correction": Given(values=values)}, kind, text)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["aggregation", "entropy_aggregation"])
def test_coefficients_of_ones_own_that_do_not_fit_are_one_error(name: str) -> None:
    for values, kind, text in (
        (torch.ones(5, 7).numpy(), TypeError, "Fixed: values is a ndarray; expected a torch.Tensor"),
        (torch.ones(5, 7, device="meta"), ValueError, "Fixed: values is on meta; expected cpu, the device of mask"),
        (torch.ones(5, 6), ValueError, "Fixed: values has shape (5, 6); expected (5, 7), the shape of mask"),
        (torch.ones(1), ValueError, "Fixed: values has shape (1,); expected (5, 7)"),
        (torch.ones(5, 7).to(torch.complex64), TypeError, "Fixed: values has dtype torch.complex64; expected"),
    ):
        assert_one_error({name: Fixed(values=values), "entropy_coef": 0.1}, kind, text)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["old_logprob", "rollout_logprob", "ref_logprob", "advantage", "mask"])
def test_a_sparse_tensor_is_one_error(name: str) -> None:
    wrong = policy_arguments()[name].to_sparse()
    assert_one_error({name: wrong}, TypeError, f"{name} has layout torch.sparse_coo; expected a dense tensor")


@pytest.mark.parametrize("name", ["kl_coef", "entropy_coef"])
def test_an_integer_beyond_every_float_is_one_error(name: str) -> None:
    assert_one_error({name: 10**400}, ValueError, f"{name} = 1000000")


@pytest.mark.parametrize("name", ["old_logprob", "rollout_logprob", "ref_logprob", "advantage", "mask"])
def test_shapes_and_kinds_that_do_not_fit_are_one_error(name: str) -> None:
    wrong = policy_arguments()[name][:, :6]
    expected = "[B]" if name == "advantage" else "(5, 7), the shape of {shape}"
    text = f"{name} has shape (5, 6); expected "
    assert_one_error({name: wrong}, ValueError, text if name == "advantage" else text + expected)
    assert_one_error({name: [1.0]}, TypeError, f"{name} is a list; expected a torch.Tensor")


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        ({"kl": "k1"}, ValueError, "unknown kl 'k1'; known: k2, k3, k3_ratio, "),
        ({"kl_coef": 0.1, "ref_logprob": None}, ValueError, "kl_coef != 0 needs ref_logprob [B, T], got None"),
        ({"objective": 3}, TypeError, "objective is 3; expected a name or an instance of Objective"),
        ({"aggregation": 3}, TypeError, "aggregation is 3; expected a name or an instance of Aggregation"),
        (
            {"entropy_aggregation": 3},
            TypeError,
            "entropy_aggregation is 3; expected a name, an instance of Aggregation or",
        ),
        ({"correction": 3}, TypeError, "correction is 3; expected a name, an instance of Correction or None"),
        ({"totals": 3}, TypeError, "totals is 3; expected a StepTotals or None"),
        ({"correction": "truncate", "rollout_logprob": None}, ValueError, "a correction needs the sampler's log-probs"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_everything_else_is_one_error(change: dict[str, Any], kind: type[Exception], text: str) -> None:
    assert_one_error(change, kind, text)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_log_probs_and_advantages_of_any_floating_dtype_are_taken(dtype: torch.dtype) -> None:
    """The result is of the dtype of `logprob` or `hidden`, whatever the others are; advantages may be integers."""
    for loss, given in ((dgpo.policy_loss, policy_arguments()), (dgpo.linear_policy_loss, whole_problem())):
        others = {
            name: given[name].to(dtype) for name in ("old_logprob", "rollout_logprob", "ref_logprob", "advantage")
        }
        assert loss(**given | others).value.dtype == torch.float64  # type: ignore[operator]
        whole = given["advantage"].sign()
        same = [loss(**given | {"advantage": a}).value for a in (whole, whole.to(torch.int32))]  # type: ignore[operator]
        assert torch.equal(*same)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_dtype_for_all_operands(backend: str) -> None:
    problem = whole_problem()
    for name in ("lm_head", "bias"):
        for other in (torch.float32, torch.bfloat16):
            error = f"hidden has dtype torch.float64 and {name} {other}; expected one dtype, or torch.autocast"
            changed = problem | {name: problem[name].detach().to(other)}
            for context in (torch.autocast("cpu", enabled=False), torch.autocast("cpu", dtype=torch.bfloat16)):
                with context, pytest.raises(TypeError, match=error):
                    dgpo.linear_policy_loss(**changed, backend=backend)  # type: ignore[arg-type]
