"""The served page: new when the run has moved, on this machine alone."""

from __future__ import annotations

import http.client
import json
import threading

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
    assert get(host=f"attacker.example:{get.address[1]}")[0] == 403
    assert get("/etc/passwd")[0] == 404
    assert get(method="POST")[0] == 501
