"""A bounded sample of what the model wrote: which completions, how many, and what a reader makes of a damaged file."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from dgpo.runs import completions
from dgpo.runs.completions import CUT, STOP, Completion, CompletionWriter, clipped, prompt_id, read_completions
from dgpo.runs.run import load


def one(update=1, **changes):
    given = {
        "update": update,
        "prompt_id": "a",
        "prompt": "1+1=",
        "completion": "nan\u2028<b>\x1b\ud83d",
        "gold": "2",
        "rewards": {"right": 1.0, "format": None},
        "advantage": -0.5,
        "ended": STOP,
        "token_ids": (3, 0, 7),
    }
    return Completion(**{**given, **changes})


def read(path):
    complaints = []
    found = read_completions(path, leave_out=lambda number, why: complaints.append((number, why)))
    return found, complaints


def test_what_was_written_is_read(tmp_path):
    writer = CompletionWriter(tmp_path / "deep", 4)
    written = [one(), one(update=5, gold=None, advantage=None, ended=CUT, token_ids=())]
    for each in written:
        writer.write([each])
    assert read(writer.path) == (written, [])
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    assert load(tmp_path).completions == []


def test_the_same_prompts_are_chosen_whenever_they_come_up():
    writer = CompletionWriter("nowhere", 2)
    assert writer.chosen(["c", "b", "a", "b", "c", "a"], [0.0] * 6) == [2, 5, 1, 3]
    assert writer.chosen(["d", "a", "z"], [0.0] * 3) == [1, 0]
    assert CompletionWriter("nowhere", 0).chosen(["a"], [0.0]) == []
    # the best and the worst of a large group are among those chosen
    advantages = [float((7 * i) % 31) for i in range(31)]
    chosen = writer.chosen(["a"] * 31, advantages)
    assert len(chosen) == completions.MOST_PER_PROMPT
    assert {advantages.index(0.0), advantages.index(30.0)} <= set(chosen)
    assert chosen == sorted(chosen)


def test_a_file_beyond_the_limit_keeps_every_other_generation(tmp_path, monkeypatch):
    writer = CompletionWriter(tmp_path, 1)
    monkeypatch.setattr(completions, "LIMIT", 12 * len(json.dumps(vars(one(update=10)))))
    for update in range(1, 400, 4):
        if writer.chosen(["a"], [0.0]):
            writer.write([one(update=update)])
    found, complaints = read(writer.path)
    assert not complaints
    assert writer.path.stat().st_size <= completions.LIMIT
    updates = [each.update for each in found]
    assert updates[0] == 1
    assert len({b - a for a, b in pairwise(updates)}) == 1, "evenly over the run"
    assert updates[-1] > 300


def test_what_a_resume_makes_invalid_is_dropped(tmp_path):
    writer = CompletionWriter(tmp_path, 4)
    writer.begin(0)
    writer.write([one(update=1), one(update=5), one(update=9)])
    with open(writer.path, "a") as file:
        file.write('{"update": 3, "prom')
    CompletionWriter(tmp_path, 4).begin(6)
    found, complaints = read(writer.path)
    assert ([each.update for each in found], complaints) == ([1, 5], [])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"update": "1"}, "update"),
        ({"update": True}, "update"),
        ({"update": -1}, "update"),
        ({"prompt": None}, "prompt = None"),
        ({"gold": 5}, "gold = 5"),
        ({"rewards": [1.0]}, "rewards"),
        ({"rewards": {"a": "1"}}, "rewards"),
        ({"rewards": {"a": 10**400}}, "rewards"),
        ({"advantage": "x"}, "advantage"),
        ({"token_ids": [-1]}, "token_ids"),
        ({"token_ids": "3"}, "token_ids"),
        ({"ended": 1}, "ended"),
    ],
)
def test_a_damaged_line_is_left_out_and_named(tmp_path, change, why):
    lines = [{**vars(one()), **change}, {**vars(one()), "later": "field"}]
    (tmp_path / "completions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n')
    run = load(tmp_path)
    with pytest.warns(UserWarning, match=r"completions.jsonl', line 1 .*" + why):
        assert run.completions == [one()]
    assert run.damaged == ["completions.jsonl:1"]


def test_texts_are_clipped_in_the_middle_and_ids_are_of_the_tokens():
    assert clipped("abc", 3) == "abc"
    text = clipped("a" * 50 + "b" * 60, 20)
    assert text == "a" * 10 + "\n[… 90 characters …]\n" + "b" * 10
    assert prompt_id(b"1") == prompt_id(b"1") != prompt_id(b"2")
