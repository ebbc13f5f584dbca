"""The served page: new when the run has moved, on this machine alone."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
import time

import pytest

from dgpo.report.watch import HOST, Pages, server


@pytest.fixture
def served():
    """Starts a server of a page; returns a function from path and host to (status, headers, body)."""
    started = []

    def served(made):
        listening = server(made, every=7)
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        started.append((listening, thread))

        def get(path="/", host=None, method="GET"):
            connection = http.client.HTTPConnection(HOST, listening.server_port, timeout=20)
            connection.request(method, path, headers={} if host is None else {"Host": host})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode()

        get.address = listening.server_address
        return get

    yield served
    for listening, thread in started:
        listening.shutdown()
        listening.server_close()
        thread.join()


def log(folder, *steps):
    with open(folder / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps({"step": step, "reward": 0.1 * step}) + "\n" for step in steps)


def test_the_page_is_made_anew_when_the_run_has_logged(served, tmp_path, monkeypatch):
    made = Pages([tmp_path], [])
    get = served(made)
    status, headers, text = get()
    assert (status, headers["Refresh"]) == (200, "7")
    assert "Nothing to show yet: " in text
    log(tmp_path, 1, 2, 3)
    first = get()[2]
    assert '<section id="curves"' in first
    assert "<dd>3</dd>" in first
    assert get()[2] == first
    monkeypatch.setattr("dgpo.report.watch.collect", lambda *_: pytest.fail("read again although nothing has changed"))
    assert get()[2] == first
    monkeypatch.undo()
    log(tmp_path, 4)
    assert "<dd>4</dd>" in get()[2]


def test_it_answers_to_this_machine_and_to_one_path(served):
    get = served(lambda: "<p>page</p>")
    assert get.address[0] == "127.0.0.1"
    assert get("/?again")[0] == 200
    assert get(host=f"localhost:{get.address[1]}")[0] == 200
    assert get(host="127.0.0.1")[0] == 200  # on port 80
    assert get(host=f"attacker.example:{get.address[1]}")[0] == 403
    assert get(host="127.0.0.1.attacker.example")[0] == 403
    assert {get(path)[0] for path in ("/etc/passwd", "/../run.json", "//etc/passwd", "/%2e%2e/")} == {404}
    assert get(method="POST")[0] == 501


def test_a_port_that_is_taken_is_named(served):
    port = served(lambda: "").address[1]
    with pytest.raises(OSError, match=f"cannot listen on port {port} of 127.0.0.1: .*; expected a free port, or 0"):
        server(lambda: "", port=port)


def test_a_browser_that_goes_away_leaves_the_terminal_clean(served, capfd):
    asked, gone = threading.Event(), threading.Event()

    def made():
        asked.set()
        gone.wait(20)
        return "x" * 10**7

    get = served(made)
    with socket.create_connection(get.address) as browser:
        browser.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close resets
        browser.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        assert asked.wait(20)
    gone.set()
    assert get()[0] == 200
    time.sleep(0.1)
    assert capfd.readouterr().err == ""
