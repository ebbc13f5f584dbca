"""The endpoint and vLLM: what they are asked for, and what is made of their answers."""

import base64
import http.server
import json
import logging
import re
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
from dgpo.evaluation.backends import IncompleteError
from dgpo.evaluation.backends.endpoint import Endpoint
from dgpo.evaluation.folder import differences
from dgpo.grading import FunctionGrader
from dgpo.installation import hint

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
            content = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if content.startswith(b"<") else "application/json")
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
    with pytest.raises(ValueError, match="api_key_env = 'NO_SUCH_KEY' is not set"):
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


# --- answers that are no completion ---------------------------------------------------------------------------------


@pytest.fixture
def no_wait(monkeypatch):
    monkeypatch.setattr("dgpo.evaluation.backends.openai.FIRST_WAIT", 0.0)


def answer_with(**changes):
    """What `echo` says of "ab", with some of its choice (or of its document, in capitals) changed."""

    def answer(path, body):
        status, document = echo(path, body)
        choice = document["choices"][0]
        for name, value in changes.items():
            (document if name.isupper() else choice)[name.lower()] = value
        return status, document

    return answer


NOT_ENDED = ["error", "abort", "content_filter", "tool_calls", "function_call", None, "", 7, "eos"]
INCOMPLETE = [
    *[
        ({"finish_reason": reason}, f"finish_reason = {reason!r}; a completion ends by 'stop' or 'length'")
        for reason in NOT_ENDED
    ],
    ({"CHOICES": []}, "no choice in its answer; expected one"),
    ({"ERROR": {"message": "out of memory"}}, "it answered with an error: .*out of memory"),
]


@pytest.mark.parametrize(("changes", "message"), INCOMPLETE)
def test_what_did_not_end_is_asked_again_and_then_named(changes, message, no_wait):
    left = [2]

    def at_first(path, body):
        left[0] -= 1
        return (answer_with(**changes) if left[0] >= 0 else echo)(path, body)

    requests = [Request("ab", 5, False)]
    with server(at_first) as (url, asked), OpenAIBackend("m", base_url=url, retries=2) as backend:
        assert complete(backend, requests) == {0: Completion("ba", 2, False)}
        assert len(asked) == 3
    with server(answer_with(**changes)) as (url, asked), OpenAIBackend("m", base_url=url, retries=2) as backend:
        with pytest.raises(
            IncompleteError, match=rf"{url} with model 'm' failed: request 1 \('ab', seed 5\): {message}.*3 tries"
        ):
            complete(backend, requests)
        assert len(asked) == 3


def test_null_without_reasoning_is_no_answer_and_beside_reasoning_an_empty_one(no_wait):
    def answer(message):
        return answer_with(message={"role": "assistant", **message})

    request = [Request([{"role": "user", "content": "ab"}], 0, False)]
    with (
        server(answer({"content": None})) as (url, _),
        pytest.raises(IncompleteError, match="content = null, and no reasoning"),
    ):
        complete(OpenAIBackend("m", base_url=url, retries=0), request)
    for said, text in (
        ({"content": None, "reasoning_content": "hm"}, ""),
        ({"content": [{"type": "text", "text": "ba"}]}, "ba"),
    ):
        with server(answer(said)) as (url, _):
            assert complete(OpenAIBackend("m", base_url=url, retries=0), request)[0].text == text


def test_the_others_are_finished_and_kept_and_the_rest_is_asked_again(tmp_path, no_wait):
    filtered = {"2", "5"}

    def filters(path, body):
        return (answer_with(finish_reason="content_filter") if body["prompt"] in filtered else echo)(path, body)

    problems = [{"prompt": str(number), "answer": str(number)} for number in range(8)]
    suite = Suite("echo", problems, FunctionGrader(lambda text, answer: float(text == answer), "equal"))
    with server(filters) as (url, asked), OpenAIBackend("m", base_url=url, concurrency=2, retries=1) as backend:
        with pytest.raises(ConnectionError, match=r"no completion for 4 requests, the first is request 5 \('2'"):
            evaluate(suite, backend, SAMPLING, out=tmp_path, greedy=False, progress=False)
        kept = [json.loads(line) for line in (tmp_path / "generations.jsonl").read_text().splitlines()]
        assert sorted((row["id"], row["sample"]) for row in kept) == [
            (str(number), sample) for number in (0, 1, 3, 4, 6, 7) for sample in (0, 1)
        ]
        assert not (tmp_path / "results.json").exists()
        filtered.clear()
        del asked[:]
        evaluation = evaluate(suite, backend, SAMPLING, out=tmp_path, greedy=False, progress=False)
    assert sorted(body["prompt"] for _, body, _ in asked) == ["2", "2", "5", "5"]
    assert evaluation.benchmarks["echo"].estimates["avg@2"].value == 1.0


def test_a_row_that_lacks_something_is_not_kept(tmp_path):
    suite = Suite("echo", [{"prompt": "1", "answer": "1"}], FunctionGrader(lambda text, answer: 1.0, "any"))
    with server(echo) as (url, _), OpenAIBackend("m", base_url=url) as backend:
        evaluate(suite, backend, SAMPLING, out=tmp_path, greedy=False, progress=False)
        file = tmp_path / "generations.jsonl"
        first, second = file.read_text().splitlines(keepends=True)
        for broken, message in (
            ('"completion": null', "a completion that is not a string"),
            ('"x": "1"', "no completion"),
        ):
            file.write_text(first.replace('"completion": "1"', broken) + second)
            with pytest.raises(ValueError, match=f"line 1 of .* has {message}; remove it to have it generated again"):
                evaluate(suite, backend, SAMPLING, out=tmp_path, greedy=False, progress=False)


MALFORMED = [
    (
        lambda path, body: (200, b"<html><body>Welcome</body></html>"),
        "it answered with text/html, not with JSON: '<html><body>Welcome",
    ),
    (lambda path, body: (200, b'{"choices": [{"text"'), "it answered with application/json, not with JSON: "),
    (lambda path, body: (200, b""), "it answered with application/json, not with JSON: ''"),
    (lambda path, body: (200, b"[" * 200_000), "it answered with application/json, not with JSON: "),
    (lambda path, body: (200, [1]), "it answered with a JSON list; expected an object with choices"),
    (lambda path, body: (200, {}), "choices = None in its answer; expected a list"),
    (lambda path, body: (200, {"choices": [7]}), r"choices\[0\] = 7 in its answer; expected an object"),
    (answer_with(text=7), "text = 7 in its answer; expected text"),
    (answer_with(text=None), "text = None in its answer; expected text"),
    (answer_with(USAGE={"completion_tokens": "many"}), "usage = .*'many'.* in its answer; expected completion_tokens"),
    (answer_with(USAGE={"completion_tokens": 1.5}), "usage = .*; expected completion_tokens as a whole number"),
    (answer_with(USAGE={"completion_tokens": True}), "usage = "),
    (answer_with(USAGE={"completion_tokens": -1}), "usage = "),
    (answer_with(USAGE={"completion_tokens": 10**30}), "usage = "),
    (answer_with(USAGE=3), "usage = 3"),
]
MALFORMED_CHATS = [
    (answer_with(message=None), "message = None in its answer; expected an object with content"),
    (answer_with(message={"content": 7}), "content = 7 in its answer; expected text"),
    (answer_with(message={"content": [7]}), r"content = \[7\] in its answer; expected text"),
]


@pytest.mark.parametrize(
    ("answer", "message", "prompt"),
    [*[(*case, "ab") for case in MALFORMED], *[(*case, CHAT) for case in MALFORMED_CHATS]],
)
def test_what_does_not_speak_the_protocol_is_named(answer, message, prompt):
    with (
        server(answer) as (url, _),
        OpenAIBackend("m", base_url=url, retries=0) as backend,
        pytest.raises(ConnectionError, match=f"the endpoint {url} with model 'm' failed: {message}"),
    ):
        complete(backend, [Request(prompt, 0, False)])


def test_an_answer_without_counts_has_no_count():
    with server(answer_with(USAGE={"total_tokens": 3})) as (url, _):
        assert complete(OpenAIBackend("m", base_url=url), [Request("ab", 0, False)])[0].tokens is None


def test_a_timeout():
    def slow(path, body):
        time.sleep(0.5)
        return echo(path, body)

    with (
        server(slow) as (url, _),
        OpenAIBackend("m", base_url=url, timeout=0.1, retries=0) as backend,
        pytest.raises(ConnectionError, match=rf"{url} with model 'm' failed: no answer within 0.1 s \(timeout\)"),
    ):
        complete(backend, [Request("a", 0, False)])


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_passwords_and_keys_in_an_address_are_used_and_never_shown(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-mine-12345")
    caplog.set_level(logging.DEBUG)
    asked = []

    def answer(path, body):
        asked.append(path)
        if body["prompt"] == "refused":
            return 401, {"error": {"message": f"no key-of-mine-12345, no q-secret, no {basic}"}}
        return echo(path.partition("?")[0], body)

    basic = base64.b64encode(b"me:pass/word").decode()
    suite = Suite("echo", [{"prompt": "1", "answer": "1"}], FunctionGrader(lambda text, answer: 1.0, "any"))
    with server(answer) as (url, headers):
        secret = url.replace("://", "://me:pass%2Fword@") + "?api_key=q-secret&version=2024"
        with OpenAIBackend("m", base_url=secret, retries=0) as backend:
            evaluate(suite, backend, SAMPLING, out=tmp_path, greedy=False, progress=False)
            with pytest.raises(ConnectionError) as refused:
                complete(backend, [Request("refused", 0, False)])
            assert backend.settings()["base_url"] == f"{url}?api_key=***&version=***"
            shown = [repr(backend.endpoint), str(refused.value), caplog.text]
    assert asked[0] == "/v1/completions?api_key=q-secret&version=2024"
    assert [authorization for *_, authorization in headers] == [f"Basic {basic}"] * 3
    written = [file.read_text() for file in tmp_path.iterdir()]
    for text in shown + written:
        for found in ("pass/word", "pass%2Fword", "q-secret", "key-of-mine-12345", basic):
            assert found not in text
    assert "no ***, no ***, no ***" in shown[1]
    assert "POST" in caplog.text


@pytest.mark.parametrize(
    "address",
    ["ftp://me:password@host/v1", "http://me:password@", "http://me:password@host:port/v1", "me:password@host://x@"],
)
def test_an_address_that_is_none_keeps_its_password(address):
    with pytest.raises(
        ValueError, match="base_url = .*; expected an address such as http://127.0.0.1:8000/v1"
    ) as error:
        OpenAIBackend("m", base_url=address)
    assert "password" not in str(error.value)


def test_a_key_with_other_characters_is_not_shown(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "abc\ndef")
    with pytest.raises(
        ValueError, match="the key in SOME_KEY contains characters that an HTTP header cannot have"
    ) as error:
        Endpoint.of("http://x/v1", "SOME_KEY")
    assert "abc" not in str(error.value)
    monkeypatch.setenv("SOME_KEY", " abcdef\n")
    assert Endpoint.of("http://[::1]:8000/v1", "SOME_KEY").key == "abcdef"
    assert Endpoint.of("http://[::1]:8000/v1", "SOME_KEY").shown == "http://[::1]:8000/v1"


def test_differences_to_an_older_run_hide_what_it_recorded():
    lines = differences({"base_url": "http://me:password@x/v1?token=abc"}, {"base_url": "http://x/v1"})
    assert lines == ['base_url: "http://***@x/v1?token=***" -> "http://x/v1"']


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "http://x", "timeout": 0}, "timeout = 0 is not allowed"),
        ({"base_url": "http://x", "timeout": float("nan")}, "timeout = nan is not allowed"),
        ({"base_url": "http://x", "retries": -1}, "retries = -1 is not allowed"),
        ({"base_url": "localhost:8000"}, "base_url = 'localhost:8000'; expected an address such as http://"),
        ({"base_url": "http://x", "concurrency": 0}, "concurrency = 0 is not allowed"),
        ({"base_url": "http://x", "concurrency": 1.5}, "concurrency = 1.5 is not allowed; expected an integer"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        OpenAIBackend("m", **options)


# --- vLLM: the calls are checked against a stand-in for the package, which needs a GPU -------------------------------


class Engine:
    """Answers with the seeds; its parameters are those that vLLM documents."""

    reasons = ("stop", "length")

    def __init__(self, model, *, dtype, tensor_parallel_size):
        self.calls = []

    def generate(self, prompts, sampling_params, *, use_tqdm):
        self.calls.append(list(zip(prompts, sampling_params, strict=True)))
        return [
            types.SimpleNamespace(
                outputs=[
                    types.SimpleNamespace(
                        text=f"{parameters.get('seed')}", token_ids=[1, 2], finish_reason=self.reasons[at % 2]
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


def test_vllm_that_aborts_a_request(vllm_backend, monkeypatch):
    monkeypatch.setattr(Engine, "reasons", ("stop", "abort"))
    groups = vllm_backend.complete([Request("ab", 1, False), Request("c", 2, False)], SAMPLING)
    assert next(groups) == [(0, Completion("1", 2, False))]
    with pytest.raises(IncompleteError, match="vLLM gave no completion for request 2: finish_reason = 'abort'"):
        next(groups)


def test_vllm_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=re.escape(hint("vllm"))):
        VLLMBackend("m")


def test_the_marks_of_channels_are_kept(make_tokenizer):
    from tokenizers import AddedToken

    from dgpo.evaluation.backends.transformers import _completion
    from dgpo.grading import boxed_answer

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


@pytest.mark.parametrize(
    "address", ["http://h/v1?KEYinQuery", "http://h/v1;key=KEYinQuery", "http://h/v1?a=&KEYinQuery"]
)
def test_a_key_alone_and_a_parameter_of_a_path_are_not_shown(address):
    endpoint = Endpoint.of(address, None)
    assert "KEYinQuery" not in endpoint.shown + repr(endpoint)
