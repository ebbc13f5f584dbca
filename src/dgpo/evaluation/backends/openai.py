"""Completions from a server that speaks OpenAI's protocol: vLLM, SGLang, `transformers serve`, a provider."""

from __future__ import annotations

import queue
import threading
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from dgpo.counts import counted
from dgpo.evaluation.backends.answer import MalformedError, read_completion
from dgpo.evaluation.backends.backend import Backend, Completion, IncompleteError, Request, Sampling
from dgpo.evaluation.backends.endpoint import Endpoint
from dgpo.fields import check_value
from dgpo.installation import require

TIMEOUT = 3600.0
FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0
"""Seconds before a request is retried because of its answer; doubled after each try."""
MOST_FAILURES = 10
"""Requests without a completion after which a run gives up; fewer are named when all others are done."""


class OpenAIBackend(Backend):
    """An OpenAI-compatible endpoint: chats through `chat/completions`, texts through `completions`.

    One request per completion, with its own `seed`. A request sets only temperature, top_p and the budget, which every
    server supports; everything else is up to the server. In particular vLLM's server takes
    `top_k` and penalties from the model's `generation_config` unless started with `--generation-config vllm`, and
    `transformers serve` ignores temperature unless that file says `do_sample: true`. A server may also ignore
    seeds, so that a repeated run can give other completions; a resumed run keeps the existing ones.

    A completion counts only if it ended by itself (`finish_reason` "stop") or at the limit ("length"). A request that
    was aborted, filtered, or answered with a tool call or not at all is retried `retries` times. If that fails, the
    other requests are finished first, and the error names it; resuming the run sends it again.

    Args:
        model: name of the model on the server.
        base_url: address of the server, with the version: `http://127.0.0.1:8000/v1`. A user and password in it are
            sent as basic authorization and its parameters with every request; neither is shown or recorded.
        api_key_env: environment variable with the key. None takes `OPENAI_API_KEY` if it is set, and otherwise a
            dummy key: self-hosted servers do not require one.
        concurrency: number of concurrent requests (default 32).
        timeout: seconds per request, including its time in the server's queue (default 3600).
        retries: number of retries after lost connections, rate limits, server errors and incomplete answers.

    Raises:
        ImportError: if the package `openai` is not installed.
        ValueError: if the environment variable is not set, or a setting is out of range.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str,
        api_key_env: str | None = None,
        concurrency: int = 32,
        timeout: float = TIMEOUT,
        retries: int = 5,
    ) -> None:
        check_value("concurrency", concurrency, "[1, inf)", whole=True)
        check_value("timeout", timeout, "(0, inf)")
        check_value("retries", retries, "[0, inf)", whole=True)
        self.endpoint = Endpoint.of(base_url, api_key_env)
        require("the backend 'openai' needs", "openai", "openai")
        import openai

        self.model = model
        self.concurrency = concurrency
        self.timeout = timeout
        self.retries = retries
        self._openai = openai
        self._client = openai.OpenAI(
            base_url=self.endpoint.url,
            api_key=self.endpoint.key,
            default_headers=self.endpoint.headers,
            default_query=self.endpoint.query,
            timeout=timeout,
            # of lost connections and HTTP errors; `_insist` repeats what was answered but is not a completion
            max_retries=retries,
        )
        self.endpoint.watch_logs()

    def complete(
        self, requests: Sequence[Request], sampling: Sampling, done: Collection[int] = ()
    ) -> Iterator[list[tuple[int, Completion]]]:
        """As in `Backend`; yields completions as they arrive.

        Raises:
            ConnectionError: if the server cannot be reached, refuses a request, violates the protocol, or gives no
                completion for some requests; quotes the server.
        """
        left = sorted(set(range(len(requests))).difference(done))
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        for position in left:
            todo.put(position)
        finished: queue.SimpleQueue[tuple[int, Completion | Exception]] = queue.SimpleQueue()
        stopped = threading.Event()

        def work() -> None:
            while not stopped.is_set():
                try:
                    position = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    finished.put((position, self._insist(requests[position], sampling, stopped)))
                except Exception as error:  # noqa: BLE001  (raised again where it can be seen)
                    finished.put((position, error))
                    # any other error ends the run: the main thread raises it
                    if not isinstance(error, IncompleteError):
                        return

        # daemon threads, unlike those of an executor: Ctrl-C must not wait for a long answer
        for _ in range(min(self.concurrency, len(left))):
            threading.Thread(target=work, daemon=True).start()
        failed: list[tuple[int, IncompleteError]] = []
        try:
            count = 0
            # every position comes back once, as a completion or as an error
            while count < len(left):
                group = list(_drain(finished))
                count += len(group)
                good = [(position, found) for position, found in group if isinstance(found, Completion)]
                if good:
                    yield good
                for position, found in group:
                    if isinstance(found, IncompleteError):
                        failed.append((position, found))
                    elif isinstance(found, Exception):
                        # the cause may contain the address with its secrets
                        raise self._explained(found) from None
                if len(failed) >= MOST_FAILURES:
                    break
        finally:
            stopped.set()
        if failed:
            position, error = min(failed, key=lambda one: one[0])
            raise IncompleteError(self._about(f"{_named(position, requests[position], len(failed))}: {error}"))

    def settings(self) -> dict[str, Any]:
        return {"kind": "openai", "base_url": self.endpoint.shown, "versions": {"openai": self._openai.__version__}}

    def close(self) -> None:
        self._client.close()
        self.endpoint.unwatch_logs()

    def _insist(self, request: Request, sampling: Sampling, stopped: threading.Event) -> Completion:
        """`_ask`, retried while there is no completion."""
        wait = FIRST_WAIT
        for left in range(self.retries, -1, -1):
            try:
                return self._ask(request, sampling)
            except IncompleteError as error:
                # True as soon as the run is over: an idle thread must not send again
                if left == 0 or stopped.wait(wait):
                    raise IncompleteError(f"{error} ({self.retries + 1 - left} tries)") from error
                wait = min(2 * wait, LONGEST_WAIT)
        raise AssertionError("the last try returns or raises")

    def _ask(self, request: Request, sampling: Sampling) -> Completion:
        options: dict[str, Any] = {"model": self.model, "n": 1, "max_tokens": sampling.max_new_tokens}
        if request.greedy:
            options |= {"temperature": 0.0}
        else:
            options |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": request.seed}
        # the raw response, since the client does not validate the answer
        if isinstance(request.prompt, str):
            raw: Any = self._client.completions.with_raw_response.create(prompt=request.prompt, **options)
        else:
            messages: Any = [dict(message) for message in request.prompt]
            raw = self._client.chat.completions.with_raw_response.create(messages=messages, **options)
        answer, chat = raw.http_response, not isinstance(request.prompt, str)
        return read_completion(answer.text, answer.headers.get("content-type", ""), chat=chat)

    def _explained(self, error: Exception) -> Exception:
        if isinstance(error, self._openai.APITimeoutError):
            return ConnectionError(self._about(f"no answer within {self.timeout:g} s (timeout)"))
        if isinstance(error, MalformedError | self._openai.OpenAIError | OSError):
            return ConnectionError(self._about(str(error)))
        return error

    def _about(self, said: str) -> str:
        said = " ".join(self.endpoint.hide(said).split())[:400]
        return f"the endpoint {self.endpoint.shown} with model {self.model!r} failed: {said}"


def _named(position: int, request: Request, failed: int) -> str:
    prompt = request.prompt if isinstance(request.prompt, str) else str(request.prompt[-1].get("content"))
    first = f"request {position + 1} ({' '.join(prompt.split())[:60]!r}, seed {request.seed})"
    return first if failed == 1 else f"no completion for {counted(failed, 'request')}, the first is {first}"


def _drain(finished: queue.SimpleQueue[Any]) -> Iterator[Any]:
    """All queued items; waits for at least one."""
    yield finished.get()
    while True:
        try:
            yield finished.get_nowait()
        except queue.Empty:
            return
