"""`dgpo watch`: the report of runs that go on, served on this machine alone and written anew when they have moved."""

from __future__ import annotations

import http.server
import os
import sys
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from dgpo.files import one_line
from dgpo.report.data import collect
from dgpo.report.markup import tag
from dgpo.report.page import page
from dgpo.runs.schema import COMPLETIONS, INFO, METRICS

HOST = "127.0.0.1"

Stamp = tuple[tuple[int, int], ...]
"""Time and size of each file."""


class Pages:
    """The page of some runs, rendered again when a file of theirs has changed. Safe to call from several threads.

    Args:
        runs: as `collect` takes them.
        evaluation: results of `dgpo eval`.
    """

    def __init__(self, runs: Sequence[str | os.PathLike[str]], evaluation: Sequence[str | os.PathLike[str]]) -> None:
        self._runs, self._evaluation = list(runs), list(evaluation)
        self._lock = threading.Lock()
        self._stamp: Stamp | None = None
        self._page = ""

    def __call__(self) -> str:
        """The page; where a run has nothing to show yet, or cannot be read, a page that says so."""
        with self._lock:
            # before the files are read: what comes while they are is for the next page
            stamp = self._now()
            if stamp != self._stamp:
                try:
                    self._page = page(collect(self._runs, self._evaluation))
                except (ValueError, OSError) as error:
                    self._page = _waiting(error)
                self._stamp = stamp
            return self._page

    def _now(self) -> Stamp:
        paths = [Path(run) for run in self._runs]
        inside = (METRICS, INFO, COMPLETIONS)
        files = [*paths, *(folder / name for run in paths for folder in (run, run / "record") for name in inside)]
        files += [Path(path) / "results.json" for path in self._evaluation]
        found = []
        for file in files:
            try:
                about = file.stat()
                found.append((about.st_mtime_ns, about.st_size))
            except OSError:
                found.append((0, 0))
        return tuple(found)


def _waiting(error: Exception) -> str:
    text = tag("p", f"Nothing to show yet: {one_line(error)}")
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>dgpo watch</title>{text}</html>'


def server(made: Callable[[], str], *, port: int = 0, every: float = 15.0) -> http.server.ThreadingHTTPServer:
    """A server of one page on the loopback interface; `serve_forever` runs it.

    It answers to requests for this host alone, so that no web site can read the page through a name of its own.

    Args:
        made: returns the page.
        port: to listen on; 0 takes a free one.
        every: seconds after which a browser asks again.

    Raises:
        OSError: if the port is taken, or not allowed; names it.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # without a port where it is that of HTTP
            name = (self.headers.get("Host") or "").partition(":")[0]
            if name not in (HOST, "localhost"):
                self.send_error(HTTPStatus.FORBIDDEN, "not a name of this machine")
            elif self.path.partition("?")[0] != "/":
                self.send_error(HTTPStatus.NOT_FOUND)
            else:
                content = made().encode()
                self.send_response(HTTPStatus.OK)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Cache-Control", "no-store")
                self.send_header("Refresh", f"{every:g}")
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """No line per request on the terminal."""

    try:
        return _Server((HOST, port), Handler)
    except OSError as error:
        raise OSError(
            f"cannot listen on port {port} of {HOST}: {error.strerror}; expected a free port, or 0"
        ) from error


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        # a browser that loads the page again drops the answer that it is reading
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)
