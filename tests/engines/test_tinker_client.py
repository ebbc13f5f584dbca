"""Losses for Tinker's API through Tinker's own client: its tracing, its wire format, and a stand-in for its server.

tinker is no dependency; these tests run where it is installed. The server here rebuilds the graph that it is sent from
a list of allowed operations, as Tinker's client says that the real one does, and answers with loss and gradient.
"""

from __future__ import annotations

import json
import operator
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.request import Request, urlopen

import pytest
import torch
import torch.fx

from dgpo import objectives, policy_loss
from dgpo.aggregation import Fixed
from dgpo.engines import tinker as plugin

tinker = pytest.importorskip("tinker")
client = pytest.importorskip("tinker.lib.public_interfaces.custom_loss")

UNTRACEABLE = ("fipo",)
FIXED = [
    name
    for name, cls in objectives.OBJECTIVES.items()
    if not {"batch", "entropy"} & cls().reads and name not in UNTRACEABLE
]


def decoded(value: Any, known: dict[str, torch.fx.Node]) -> Any:
    """An argument in Tinker's wire format."""
    if isinstance(value, list):
        return [decoded(one, known) for one in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "ref":
        return known[content]
    if kind == "float":
        return float(content)
    if kind == "tuple":
        return tuple(decoded(one, known) for one in content)
    if kind == "dict":
        return {key: decoded(one, known) for key, one in content.items()}
    if kind == "slice":
        return slice(*(decoded(one, known) for one in content))
    if kind == "dtype":
        return getattr(torch, content)
    raise AssertionError(f"the stand-in server does not know {kind!r}")


def function_of(target: str) -> Any:
    """A function of torch or operator by its qualified name; nothing else is allowed."""
    if target == "getattr":
        return getattr  # of a tensor's shape or dtype; Tinker's client allows it
    first, *rest = target.split(".")
    found: Any = {"torch": torch, "operator": operator}[first]
    for name in rest:
        found = getattr(found, name)
    return found


def rebuilt(request: dict[str, Any]) -> torch.fx.GraphModule:
    graph, known = torch.fx.Graph(), dict[str, torch.fx.Node]()
    for node in request["graph"]["nodes"]:
        args = decoded({"tuple": node.get("args", [])}, known)
        kwargs = decoded({"dict": node.get("kwargs", {})}, known)
        assert node["op"] in ("placeholder", "call_function", "call_method", "output")
        target = function_of(node["target"]) if node["op"] == "call_function" else node["target"]
        known[node["name"]] = graph.create_node(node["op"], target, args, kwargs, node["name"])
    return torch.fx.GraphModule(torch.nn.Module(), graph)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """POST /create_custom_loss and /forward_backward; log-probs of the model are sent along."""
    losses: dict[str, torch.fx.GraphModule] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/api/v1/create_custom_loss":
                name = f"loss-{len(losses)}"
                losses[name] = rebuilt(given)
                answer: dict[str, Any] = {"loss_id": name, "type": "create_custom_loss"}
            else:
                logprobs = torch.tensor(given["logprobs"], requires_grad=True)
                value, metrics = losses[given["loss_id"]](logprobs, *map(torch.tensor, given["inputs"]))
                (gradient,) = torch.autograd.grad(value, logprobs)
                answer = {"loss": value.item(), "gradient": gradient.tolist()}
                answer["metrics"] = {key: one.item() for key, one in metrics.items()}
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *given: Any) -> None: ...

    running = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}/api/v1"
    running.shutdown()


def post(url: str, body: Any) -> Any:
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=30) as answer:
        return json.load(answer)


@pytest.mark.parametrize("name", FIXED)
def test_a_loss_that_runs_on_the_server(name: str, server: str) -> None:
    torch.manual_seed(0)
    new, old = (-2 * torch.rand(2, 12)).unbind()
    advantage, weights = torch.full((12,), -0.8), torch.cat([torch.zeros(2), torch.full((10,), 0.1)])
    handle = client.trace_loss(plugin.loss(name), plugin.RANKS, "session")
    assert handle.input_names == tuple(plugin.INPUTS)
    datum = tinker.Datum(
        model_input=tinker.ModelInput.from_ints(list(range(12))),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData.from_torch(torch.arange(12)),
            "old_logprobs": tinker.TensorData.from_torch(old),
            "advantages": tinker.TensorData.from_torch(advantage),
            "weights": tinker.TensorData.from_torch(weights),
        },
    )
    client.check_loss_inputs(handle, [datum])
    request = tinker.types.CreateCustomLossRequest(
        session_id="session", custom_loss_seq_id=0, name=handle.name, inputs=list(handle.inputs),
        graph=client.encode_graph(handle),
    )  # fmt: skip
    created = post(f"{server}/create_custom_loss", json.loads(request.model_dump_json()))
    inputs = [datum.loss_fn_inputs[key].to_torch().tolist() for key in handle.input_names]
    answer = post(
        f"{server}/forward_backward", {"loss_id": created["loss_id"], "logprobs": new.tolist(), "inputs": inputs}
    )
    new.requires_grad_()
    rows = (values.unsqueeze(0) for values in (new, old, advantage, weights != 0))
    expected = policy_loss(*rows, name, Fixed(values=weights.unsqueeze(0)))
    assert answer["loss"] == pytest.approx(expected.value.item(), rel=1e-5, abs=1e-7)
    found, known = torch.tensor(answer["gradient"]), torch.autograd.grad(expected.value, new)[0]
    torch.testing.assert_close(found, known, rtol=1e-5, atol=1e-7)
    assert answer["metrics"]["custom/weight:mean"] == pytest.approx(expected.statistics["weight/mean"].item(), rel=1e-5)
    # a server that takes no graphs: the client runs the handle itself
    value, _ = client.run_loss_handle(handle, [datum], [new])
    assert value.item() == pytest.approx(expected.value.item(), rel=1e-5, abs=1e-7)
