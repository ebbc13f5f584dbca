"""What autograd, autocast and torch.compile see of the fused loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fused_problems import companions, gradients, make_problem, relative
from torch import Tensor, nn

import dgpo
from dgpo.fused import middle


@pytest.mark.parametrize("factor", [1.0, -2.5, 0.0])
def test_gradients_scale_with_grad_output(factor: float) -> None:
    problem = make_problem()
    _, expected = gradients(problem)
    (factor * dgpo.linear_policy_loss(**problem).value).backward()
    for name, value in expected.items():
        torch.testing.assert_close(problem[name].grad, factor * value)


def test_a_kept_graph_may_be_asked_twice() -> None:
    problem = make_problem()
    value = dgpo.linear_policy_loss(**problem).value
    first = torch.autograd.grad(value, problem["hidden"], torch.tensor(3.0, dtype=torch.float64), retain_graph=True)[0]
    second = torch.autograd.grad(value, problem["hidden"])[0]
    torch.testing.assert_close(first, 3 * second)


def test_the_second_derivative_is_refused() -> None:
    problem = make_problem()
    value = dgpo.linear_policy_loss(**problem).value
    gradient = torch.autograd.grad(value, problem["hidden"], create_graph=True)[0]
    with pytest.raises(RuntimeError, match=r"linear_policy_loss cannot be differentiated twice.*reference"):
        (gradient.square().sum() + problem["lm_head"].sum()).backward()
    reference = dgpo.linear_policy_loss(**problem, backend="reference").value
    gradient = torch.autograd.grad(reference, problem["hidden"], create_graph=True)[0]
    gradient.square().sum().backward()


class Products(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("objective", "frozen", "chunk_tokens", "products"),
    [
        ("dgpo", (), 100, 3),
        ("gspo", (), 100, 3),
        ("gspo", (), 2, None),
        ("bapo", (), 100, 4),
        ("dgpo", ("lm_head",), 100, 2),
        ("dgpo", ("hidden",), 100, 2),
        ("dgpo", ("hidden", "lm_head"), 100, 1),
        ("bapo", ("hidden", "lm_head"), 100, 1),
    ],
)
def test_how_many_products(objective: str, frozen: tuple[str, ...], chunk_tokens: int, products: int | None) -> None:
    problem = make_problem()
    for name in frozen:
        problem[name].requires_grad_(False)
    with Products() as seen:
        out = dgpo.linear_policy_loss(**problem, objective=objective, chunk_tokens=chunk_tokens)
    if products is None:  # two sweeps: one product per chunk, then three
        chunks = -(-int(out.computed.sum()) // chunk_tokens)
        products = 4 * chunks
    assert seen.count == products
    if len(frozen) < 2:
        out.value.backward()
        _, expected = gradients(problem, objective=objective, backend="reference")
        for name, value in expected.items():
            torch.testing.assert_close(problem[name].grad, value)
    else:
        assert not out.value.requires_grad


@pytest.mark.parametrize("objective", ["dgpo", "gspo", "bapo"])
def test_without_gradients_there_is_one_product(objective: str) -> None:
    problem = make_problem()
    expected, _ = gradients(problem, objective=objective)
    with torch.no_grad(), Products() as seen:
        out = dgpo.linear_policy_loss(**problem, objective=objective)
    assert seen.count == 1
    assert not out.value.requires_grad
    torch.testing.assert_close(out.value, expected.value)
    torch.testing.assert_close(out.logprob, expected.logprob, equal_nan=True)


def test_the_middle_is_passed_once_unless_responses_have_to_be_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks per chunk, so that what the first pass left is not there any more for the second."""
    monkeypatch.setitem(middle.BLOCK_ELEMENTS, "cpu", 3 * 37)
    monkeypatch.setattr(middle, "CACHED_ELEMENTS", 2 * 37)
    for objective in ("dgpo", "gspo", "bapo"):
        for dtype in (torch.float64, torch.bfloat16):
            problem = make_problem(dtype=dtype)
            extra = {"softcap": 5.0, "entropy_coef": 0.1, "objective": objective}
            _, expected = gradients(problem, backend="reference", **extra)
            _, found = gradients(problem, chunk_tokens=13, **extra)
            for name, value in expected.items():
                assert relative(found[name], value) < (1e-12 if dtype == torch.float64 else 2e-2)


@pytest.mark.parametrize("scale", [0.4, 2.0])
@pytest.mark.parametrize("options", [{}, {"entropy_coef": 0.05}, {"objective": "gspo"}, {"temperature": 0.7}], ids=str)
def test_bfloat16_errs_no_more_than_the_naive_loss(options: dict[str, Any], scale: float) -> None:
    """Against the same numbers in float64, in the relative L2 norm.

    With several chunks, a CPU rounds the product of each to bfloat16 before it is added to the float32 sum of dW: one
    more rounding of 1.7e-3 than in the naive loss, and a little more where chunks cancel. CUDA products are float32.
    """
    half = make_problem(24, 32, 64, 1000, dtype=torch.bfloat16, scale=scale / 8)
    half["mask"] = torch.ones_like(half["mask"])
    half["token_ids"] = half["token_ids"].clamp(min=0)
    exact = {k: v.detach().double().requires_grad_() if k in ("hidden", "lm_head") else v for k, v in half.items()}
    _, truth = gradients(exact, backend="reference", **options)
    _, naive = gradients(half, backend="reference", **options)
    _, one = gradients(half, backend="chunked", chunk_tokens=1000, **options)
    _, four = gradients(half, backend="chunked", chunk_tokens=200, **options)
    error = {name: relative(naive[name], value) for name, value in truth.items()}
    for name, value in truth.items():
        assert one[name].dtype == four[name].dtype == torch.bfloat16
        assert relative(one[name], value) < 1.01 * error[name], name
    assert relative(four["hidden"], truth["hidden"]) < 1.01 * error["hidden"]
    assert relative(four["lm_head"], truth["lm_head"]) < error["lm_head"] + 1e-3


def test_float32_errs_no_more_than_the_naive_loss() -> None:
    single = make_problem(16, 16, 64, 1000, dtype=torch.float32, scale=0.3)
    exact = {k: v.detach().double().requires_grad_() if k in ("hidden", "lm_head") else v for k, v in single.items()}
    _, truth = gradients(exact, backend="reference", entropy_coef=0.05)
    _, naive = gradients(single, backend="reference", entropy_coef=0.05)
    _, fused = gradients(single, backend="chunked", chunk_tokens=70, entropy_coef=0.05)
    for name, value in truth.items():
        assert relative(fused[name], value) < max(1.1 * relative(naive[name], value), 1e-6), name


def test_autocast() -> None:
    """bfloat16 products of float32 parameters: the gradients are float32, and as good as autocast's own."""
    problem = make_problem(12, 16, 32, 500, dtype=torch.float32, scale=0.3)
    bias = companions(problem)["bias"]
    _, truth = gradients(problem, bias=bias, backend="reference")
    with torch.autocast("cpu", torch.bfloat16):
        _, naive = gradients(problem, bias=bias, backend="reference")
        out, fused = gradients(problem, bias=bias, backend="chunked", chunk_tokens=50)
    assert out.value.dtype == out.logprob.dtype == torch.float32
    for name, value in truth.items():
        assert fused[name].dtype == torch.float32
        assert relative(fused[name], value) < 1.1 * relative(naive[name], value), name
    assert relative(fused["lm_head"], truth["lm_head"]) > 1e-4  # the products were rounded

    mixed = problem | {"hidden": problem["hidden"].detach().bfloat16().requires_grad_()}
    with torch.autocast("cpu", torch.bfloat16):
        _, found = gradients(mixed, chunk_tokens=50)
    assert found["hidden"].dtype == torch.bfloat16
    assert found["lm_head"].dtype == torch.float32


class Model(nn.Module):
    """An embedding, one layer, and the loss in place of a head whose weight may be the embedding's."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(37, 8)
        self.layer = nn.Linear(8, 8)
        self.lm_head = nn.Linear(8, 37, bias=False)
        if tied:
            self.lm_head.weight = self.embedding.weight

    def forward(self, token_ids: Tensor, backend: str, **options: Any) -> Tensor:
        hidden = torch.tanh(self.layer(self.embedding(token_ids)))
        hidden, target = hidden[:, :-1], token_ids[:, 1:]
        batch = (target, None, torch.tensor([1.0, -0.5, 0.0]), torch.ones(target.shape, dtype=torch.bool))
        return 3 * dgpo.linear_policy_loss(hidden, self.lm_head.weight, *batch, backend=backend, **options).value


def parameter_gradients(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tied", [False, True])
def test_tied_embeddings(tied: bool) -> None:
    model, ids = Model(tied=tied), torch.randint(0, 37, (3, 6))
    expected = parameter_gradients(model, model(ids, "reference"))
    found = parameter_gradients(model, model(ids, "chunked", chunk_tokens=4))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_a_compiled_model_has_the_same_gradients() -> None:
    model, ids = Model(tied=True), torch.randint(0, 37, (3, 6))
    expected = parameter_gradients(model, model(ids, "chunked", entropy_coef=0.1))
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def collect(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=collect)
    for _ in range(2):
        found = parameter_gradients(model, compiled(ids, "chunked", entropy_coef=0.1))
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value)
    operations = [node.target for graph in graphs for node in graph.graph.nodes]
    assert any("linear" in str(target) for target in operations)  # the model's own layer was compiled
    assert not any("softmax" in str(t) or "exp" in str(t) or "addmm" in str(t) for t in operations)
    torch._dynamo.reset()
