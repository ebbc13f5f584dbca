"""The endpoint and vLLM: what they are asked for, and what is made of their answers."""

import http.server
import json
import sys
import threading
import time
import types
from contextlib import contextmanager

import pytest

from dgpo.evaluation import (
    Completion,
    OpenAIBackend,
    Request,
    Sampling,
    Suite,
    TransformersBackend,
    VLLMBackend,
    evaluate,
    generate,
)
from dgpo.rewards.verdict import FunctionGrader

SAMPLING = Sampling(samples=2, temperature=0.7, top_p=0.9, max_new_tokens=5)
CHAT = [{"role": "user", "content": "hello"}]


@contextmanager
def server(answer):
    """A real HTTP server that answers `(path, body)` with `(status, document)`; its address and what it was asked."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, body, self.headers["Authorization"]))
            status, document = answer(self.path, body)
            content = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request, client_address):
            """A client that went away is none of a test's business."""

    running = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/v1", asked
    finally:
        running.shutdown()
        running.server_close()


def echo(path, body):
    """The prompt backwards; four letters at most; no usage for the text `mute`."""
    text = body["prompt"] if path.endswith("/v1/completions") else body["messages"][-1]["content"]
    finish = "length" if len(text) > 4 else "stop"
    choice = {"index": 0, "finish_reason": finish}
    if path.endswith("/chat/completions"):
        choice["message"] = {"role": "assistant", "content": text[::-1] if text != "silent" else None}
    else:
        choice["text"] = text[::-1]
    document = {"id": "x", "object": "completion", "created": 0, "model": body["model"], "choices": [choice]}
    if text != "mute":
        document["usage"] = {"prompt_tokens": 1, "completion_tokens": len(text), "total_tokens": 1 + len(text)}
    return 200, document


def complete(backend, requests, done=()):
    found = [one for group in backend.complete(requests, SAMPLING, done) for one in group]
    assert len(found) == len(dict(found))
    return dict(found)


def test_requests_and_answers():
    requests = [Request("abc", 11, True), Request("mute", 12, False), Request(CHAT, 13, False), Request(CHAT, 14, True)]
    with server(echo) as (url, asked), OpenAIBackend("m", base_url=url, concurrency=1) as backend:
        assert complete(backend, requests) == {
            0: Completion("cba", 3, False),
            1: Completion("etum", None, False),
            2: Completion("olleh", 5, True),
            3: Completion("olleh", 5, True),
        }
        assert backend.settings()["base_url"] == url
    common = {"model": "m", "n": 1, "max_tokens": 5}
    drawn = {"temperature": 0.7, "top_p": 0.9}
    assert [(path, body) for path, body, _ in asked] == [
        ("/v1/completions", {**common, "prompt": "abc", "temperature": 0.0}),
        ("/v1/completions", {**common, **drawn, "prompt": "mute", "seed": 12}),
        ("/v1/chat/completions", {**common, **drawn, "messages": CHAT, "seed": 13}),
        ("/v1/chat/completions", {**common, "messages": CHAT, "temperature": 0.0}),
    ]


def test_reasoning_without_an_answer_is_an_empty_completion():
    silent = [{"role": "user", "content": "silent"}]
    with server(echo) as (url, _):
        assert complete(OpenAIBackend("m", base_url=url), [Request(silent, 0, False)]) == {0: Completion("", 6, True)}


def test_the_key(monkeypatch):
    requests = [Request("a", 0, False)]
    with server(echo) as (url, asked):
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        complete(OpenAIBackend("m", base_url=url), requests)
        monkeypatch.setenv("OPENAI_API_KEY", "usual")
        complete(OpenAIBackend("m", base_url=url), requests)
        monkeypatch.setenv("OTHER_KEY", "other")
        complete(OpenAIBackend("m", base_url=url, api_key_env="OTHER_KEY"), requests)
    assert [key for *_, key in asked] == ["Bearer none", "Bearer usual", "Bearer other"]
    with pytest.raises(ValueError, match="api_key_env = 'NO_SUCH_KEY': there is no such environment variable"):
        OpenAIBackend("m", base_url=url, api_key_env="NO_SUCH_KEY")


def test_side_by_side_up_to_the_limit_and_only_what_is_left():
    at_work, most = set(), []

    def slow(path, body):
        at_work.add(body["seed"])
        most.append(len(at_work))
        time.sleep(0.05)
        at_work.discard(body["seed"])
        return echo(path, body)

    requests = [Request(f"{number}", number, False) for number in range(12)]
    with server(slow) as (url, asked):
        found = complete(OpenAIBackend("m", base_url=url, concurrency=4), requests, done={0, 5, 11})
    assert sorted(found) == [1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert sorted(body["seed"] for _, body, _ in asked) == sorted(found)
    assert 2 <= max(most) <= 4
    assert all(completion.text == str(position)[::-1] for position, completion in found.items())


def test_an_error_comes_after_what_was_finished_and_the_run_can_be_continued(tmp_path):
    broken = threading.Event()
    broken.set()

    def breaks(path, body):
        if broken.is_set() and body["prompt"] == "5":
            return 404, {"error": {"message": "the model `m` is gone", "type": "x", "code": 404}}
        return echo(path, body)

    problems = [{"prompt": str(number), "answer": str(number)} for number in range(8)]
    suite = Suite("echo", problems, FunctionGrader(lambda text, answer: float(text == answer), "equal"))
    with server(breaks) as (url, asked):
        backend = OpenAIBackend("m", base_url=url, concurrency=1)
        with pytest.raises(ConnectionError, match=rf"{url} with model 'm' failed: .*the model `m` is gone"):
            evaluate(suite, backend, SAMPLING, out=tmp_path, greedy=False, progress=False)
        kept = (tmp_path / "generations.jsonl").read_text().splitlines()
        assert len(kept) == 10
        broken.clear()
        del asked[:]
        evaluation = evaluate(suite, backend, SAMPLING, out=tmp_path, greedy=False, progress=False)
    assert len(asked) == 6
    assert (tmp_path / "generations.jsonl").read_text().splitlines()[:10] == kept
    assert evaluation.benchmarks["echo"].estimates["avg@2"].value == 1.0
    assert evaluation.benchmarks["echo"].rates["mean_tokens"] == 1.0


def test_retries_are_the_clients():
    left = [2]

    def busy(path, body):
        if left[0]:
            left[0] -= 1
            return 500, {"error": {"message": "busy"}}
        return echo(path, body)

    with server(busy) as (url, asked):
        assert complete(OpenAIBackend("m", base_url=url), [Request("ab", 0, False)])[0].text == "ba"
    assert len(asked) == 3


def test_no_server():
    backend = OpenAIBackend("m", base_url="http://127.0.0.1:9/v1", retries=0)
    with pytest.raises(ConnectionError, match=r"http://127.0.0.1:9/v1 with model 'm' failed: Connection error"):
        complete(backend, [Request("a", 0, False)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "localhost:8000"}, "base_url = 'localhost:8000'; expected an address such as http://"),
        ({"base_url": "http://x", "concurrency": 0}, "concurrency = 0; expected at least 1"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        OpenAIBackend("m", **options)


# --- vLLM: the calls are checked against a stand-in for the package, which needs a GPU -------------------------------


class Engine:
    """Answers with the seeds; its parameters are those that vLLM documents."""

    def __init__(self, model, *, dtype, tensor_parallel_size):
        self.calls = []

    def generate(self, prompts, sampling_params, *, use_tqdm):
        self.calls.append(list(zip(prompts, sampling_params, strict=True)))
        return [
            types.SimpleNamespace(
                outputs=[
                    types.SimpleNamespace(
                        text=f"{parameters.get('seed')}", token_ids=[1, 2], finish_reason=("stop", "length")[at % 2]
                    )
                ]
            )
            for at, parameters in enumerate(sampling_params)
        ]


@pytest.fixture
def vllm_backend(model, tokenizer, tmp_path, monkeypatch):
    def parameters(*, n, temperature, max_tokens, skip_special_tokens, top_p=1.0, seed=None):
        assert skip_special_tokens
        return {"temperature": temperature, "max_tokens": max_tokens, "top_p": top_p, "seed": seed}

    stand_in = types.SimpleNamespace(LLM=Engine, SamplingParams=parameters, __version__="0")
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}|{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    return VLLMBackend(str(tmp_path), group_size=2)


def test_vllm_gets_the_token_ids_and_the_parameters(vllm_backend, tokenizer):
    requests = [Request("ab", 1, True), Request(CHAT, 2, False), Request("c", 3, False), Request("d", 4, False)]
    assert vllm_backend._engine is None
    found = complete(vllm_backend, requests, done={2})
    assert found == {0: Completion("None", 2, False), 1: Completion("2", 2, True), 3: Completion("4", 2, False)}
    first, second = vllm_backend._engine.calls
    ids = [tokenizer(text)["input_ids"] for text in ("ab", "hello|", "d")]
    assert [prompt for prompt, _ in first + second] == [{"prompt_token_ids": one} for one in ids]
    assert [parameters["temperature"] for _, parameters in first + second] == [0.0, 0.7, 0.7]
    assert first[1][1] == {"temperature": 0.7, "max_tokens": 5, "top_p": 0.9, "seed": 2}
    assert vllm_backend.settings()["weights"] is not None


def test_vllm_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r"pip install 'dgpo\[vllm\]'"):
        VLLMBackend("m")


def test_the_marks_of_channels_are_kept(make_tokenizer):
    from tokenizers import AddedToken

    from dgpo.evaluation.backends.transformers import _completion
    from dgpo.rewards.answers import boxed_answer

    tokenizer = make_tokenizer()
    ids = tokenizer("a")["input_ids"]
    assert _completion(tokenizer, [*ids, 0, *ids, 1], {1}).text == "aa"
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|channel|>"), AddedToken("<|message|>")]})
    marks = tokenizer.convert_tokens_to_ids(["<|channel|>", "<|message|>"])
    text = _completion(tokenizer, [marks[0], *ids, marks[1], *ids, 1], {1}).text
    assert text == "<|channel|>a<|message|>a"
    assert boxed_answer(text) is None


# --- transformers -----------------------------------------------------------------------------------------------------


def test_done_positions_are_left_out_and_the_others_are_what_they_were(model, tokenizer):
    requests = [Request("1+1=" * (1 + number % 3), number, number % 4 == 0) for number in range(20)]
    backend = TransformersBackend(model, tokenizer, batch_size=3)
    whole = complete(backend, requests)
    assert sorted(whole) == list(range(20))
    for done in ({0}, {1, 2, 3}, set(range(19)), set(range(20))):
        assert complete(backend, requests, done) == {at: whole[at] for at in whole if at not in done}


def test_seeds_and_batches_do_not_share_their_random_numbers(model, tokenizer):
    """Batch 1 of seed 0 is not batch 0 of seed 1."""
    drawn = [
        generate(model, tokenizer, ["a"], samples=8, max_new_tokens=12, batch_size=4, seed=seed, progress=False)[0]
        for seed in (0, 1)
    ]
    batches = [tuple(row[start : start + 4]) for row in drawn for start in (0, 4)]
    assert len(set(batches)) == 4


def test_the_fingerprint_of_the_weights_sees_one_bit(model, tokenizer):
    import torch

    backend = TransformersBackend(model, tokenizer)
    before = backend.settings()["weights"]
    assert before == backend.settings()["weights"]
    with torch.no_grad():
        weight = model.lm_head.weight
        weight[1, 1] = torch.nextafter(weight[1, 1], torch.tensor(9.0))
    assert backend.settings()["weights"] != before
    assert TransformersBackend(model.to(torch.bfloat16), tokenizer).settings()["dtype"] == "bfloat16"
