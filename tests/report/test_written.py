"""What the model wrote, on the page: which completions, the colour of their tokens, and that text stays text."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import groupby

import pytest

from dgpo.report import written
from dgpo.report.data import collect
from dgpo.report.tokens import decoder
from dgpo.runs.completions import Completion
from dgpo.runs.info import objective_of
from dgpo.runs.run import load


def test_completions_of_the_whole_run_with_the_colours_of_its_tokens(runs):
    run = load(runs[0])
    objective, (decode, _) = objective_of(run.info), decoder(run)
    found = written.written(run, objective, decode)
    assert {one["update"] for one in found} == {one.update for one in run.completions}
    coloured = 0
    assert sum(one["times"] for one in found) == len(run.completions)
    for one in found:
        text = "".join(text for _, text in one["spans"])
        same = [
            there
            for there in run.completions
            if (there.update, there.prompt_id, there.completion) == (one["update"], one["prompt_id"], text)
        ]
        assert len(same) == one["times"]
        recorded = same[0]
        if one["changed"] is None:
            assert all(there.advantage == 0 for there in same), "a response with an advantage is in the token files"
            continue
        # one update of its generation has it
        parts = list(run.recorded(range(one["update"], one["update"] + 4)))
        part, row = [
            (part, row)
            for part in parts
            for row, mask in enumerate(part.tokens.mask)
            if tuple(part.token_ids[row][mask].tolist()) == recorded.token_ids
            # not those of another prompt with the same answer
            and part.tokens.advantage[row][mask][0].item() == pytest.approx(recorded.advantage)
        ][-1]
        mask = part.tokens.mask[row]
        pushed = (objective.weight(part.tokens) * part.tokens.advantage)[row][mask]
        signs = [name.partition("-")[0] for name, _ in one["spans"]]
        expected = ["unpushed" if push == 0 else "up" if push > 0 else "down" for push in pushed]
        assert [name for name, _ in groupby(signs)] == [name for name, _ in groupby(expected)]
        assert one["changed"] == pytest.approx(part.tokens.log_ratio[row][mask].abs().mean().item(), rel=1e-3)
        coloured += 1
    assert coloured > 3


def test_the_same_answer_to_another_prompt_does_not_get_its_colours(runs):
    run = load(runs[0])
    objective = objective_of(run.info)
    there = run.completions
    found = written._tokens(run, there, objective)
    number = next(iter(found))
    one = there[number]
    others = [replace(one, prompt_id="another", advantage=advantage) for advantage in (-one.advantage, 0.0, None)]
    assert written._tokens(run, [*others, one], objective) == {3: found[number]}


def _bytes(ids):
    return bytes(ids).decode(errors="replace")


def _words(ids):
    """Strips the first space, as decoders of SentencePiece do."""
    return "".join([" one", " two", ",", " three"][i] for i in ids).removeprefix(" ")


@pytest.mark.parametrize(
    ("text", "ids", "decode", "pushes", "expected"),
    [
        # the bytes of a character are several tokens, each with a push of its own
        ("né 😀!", tuple("né 😀!".encode()), _bytes, (1, -1, 1, 1, -1, 1, -1, 1, -1), ["n", "é ", "😀", "!"]),
        ("家", tuple("家".encode()), _bytes, (1, -1, 1), ["家"]),
        # a byte that begins no character, and a text that is cut off within one
        ("a\ufffdb\ufffd", (97, 255, 98, 240), _bytes, (1, 1, -1, 1), ["a", "\ufffdb", "\ufffd"]),
        ("one two, three", (0, 1, 2, 3), _words, (1, -1, 1, -1), ["one", " two", ",", " three"]),
        # recorded with another tokenizer: the text is what counts
        ("another text", (0, 1, 2, 3), _words, (1, -1, 1, -1), ["another text"]),
    ],
)
def test_the_coloured_parts_are_the_text(text, ids, decode, pushes, expected):
    one = _completion(1, completion=text, token_ids=ids)
    tokens = written.Tokens(changed=0.0, pushed=tuple(map(float, pushes)))
    parts = written._spans(one, tokens, 1.0, decode)
    assert [words for _, words in parts] == expected
    if len(expected) > 1:
        assert parts[0][0] == "up-4"
        assert {name for name, _ in parts} == {"up-4", "down-4"}


def test_the_page_holds_a_bounded_part_from_the_first_to_the_last():
    there = [_completion(update) for update in range(1, 4001, 4) for _ in range(8)]
    chosen = written._chosen(there, written.MOST, written.MOST_CHARACTERS)
    assert len(chosen) <= written.MOST
    assert (chosen[0].update, chosen[-1].update) == (1, 3997)
    long = [_completion(update, completion="x" * 4000) for update in range(1, 401, 4) for _ in range(8)]
    assert sum(len(one.completion) for one in written._chosen(long, 160, 300_000)) <= 300_000
    assert written._chosen([], 160, 300_000) == []


def test_the_shade_is_the_size_of_the_push():
    assert [written._class(push, 1.0) for push in (0.0, 1e-9, 0.3, -0.6, 2.0, -9.0)] == [
        "unpushed",
        "up-1",
        "up-2",
        "down-3",
        "up-4",
        "down-4",
    ]


def test_the_reward_is_the_weighted_sum():
    rewards = {"right": 1.0, "format": 0.5}
    assert written._total(rewards, None) == 1.5
    assert written._total(rewards, [1.0, 0.2]) == pytest.approx(1.1)
    assert written._total(rewards, ["x", None]) == 1.5
    assert written._total({"right": None}, None) is None


def test_hostile_text_stays_text(hostile):
    attack = '</p><script>window.hacked=1</script><img src=x onerror="window.hacked=1">'
    run = load(hostile)
    run.__dict__["completions"] = [_completion(1, prompt=attack, completion=attack, gold=attack, rewards={attack: 1.0})]
    data = {"label": "a", "written": written.written(run, None, None)}
    markup = written.section([data])
    assert "<script" not in markup
    assert "<img" not in markup
    assert markup.count("&lt;script&gt;") == 4


def test_a_run_without_completions_says_how_to_record_them(runs):
    (run,) = collect([runs[1]])["runs"]
    assert "No completions were recorded" in written.section([{**run, "written": []}])
    assert len(re.findall(r"<article class=\"written\"", written.section([run]))) == len(run["written"]) > 0


def _completion(update, **changes):
    given = {
        "update": update,
        "prompt_id": "a",
        "prompt": "1+1=",
        "completion": "2",
        "gold": "2",
        "rewards": {"right": 1.0},
        "advantage": 0.5,
        "ended": "stop",
        "token_ids": (3,),
    }
    return Completion(**{**given, **changes})
