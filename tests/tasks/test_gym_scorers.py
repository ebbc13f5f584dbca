"""The exact scorers for reasoning-gym: what is right, what is not, and text that wants to be run."""

from __future__ import annotations

import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpo.tasks.gym_scorers import MAX_EXPRESSION, SCORERS, caseless, expression, final_text, literal, reduced, value


@pytest.mark.parametrize(
    ("response", "text"),
    [
        ("42", "42"),
        (" 42 \n", "42"),
        (r"so \boxed{41}, no: \boxed{42}", "42"),
        (r"\boxed{a} <think></think> \boxed{ \frac{1}{2} }", r"\frac{1}{2}"),
        ("<think>1 or 2</think>\n2", "2"),
        ("2<|im_end|>3", "2"),
        ("", None),
        (r"\boxed{}", None),
        (r"it is 42: \boxed{42", None),
        (r"\fbox 42", "42"),
    ],
)
def test_the_answer_of_a_response(response: str, text: str | None) -> None:
    assert final_text(response) == text


@pytest.mark.parametrize(
    ("response", "answer", "score"),
    [
        ("42", "42", 1.0),
        (r"It is \boxed{42.0}", "42", 1.0),
        ("1,042", "1042", 1.0),
        ("13/4096", "0.003173828125", 1.0),
        ("0.00317", "0.003173828125", 0.0),
        ("-1", "1", 0.0),
        ("The answer is 42", "42", 0.0),
        ("421", "42", 0.0),
        (r"\boxed{42", "42", 0.0),
        ("True", "True", 1.0),
        ("nan", "1", 0.0),
        ("", "1", 0.0),
        ("1 2\n3 4 \n\n", "1 2\n3 4", 1.0),
        ("1 2 3 4", "1 2\n3 4", 0.0),
        ("1 2\n3 5", "1 2\n3 4", 0.0),
        ("[[0, 1], [1,0]]", "[[0,1],[1,0]]", 1.0),
        ("[[0,1],\n [1,0]]", "[[0,1],[1,0]]", 0.0),
        ("a,b", "a, b", 1.0),
        ("a b", "a, b", 0.0),
        ("123", "1 2 3", 0.0),
        ("1 2 3", "123", 0.0),
        ("true", "True", 0.0),
    ],
)
def test_value(response: str, answer: str, score: float) -> None:
    assert value(response, answer) == score


def test_caseless_and_literal() -> None:
    assert caseless(r"\boxed{Carol}", "carol") == caseless("0xAb", "0xab") == 1.0
    assert caseless("Karl", "carol") == 0.0
    assert literal("1/60", "1/60") == 1.0
    assert literal("2/120", "1/60") == literal("0100", "100") == 0.0


@pytest.mark.parametrize(
    ("response", "answer", "score"),
    [
        (r"$\frac{131}{319}$", r"$\frac{131}{319}$", 1.0),
        ("131/319", r"$\dfrac{131}{319}$", 1.0),
        (r"\boxed{\dfrac{131}{319}}", "131/319", 1.0),
        (r"\boxed{\frac {131} {319}}", "131/319", 1.0),
        ("$131/319$", "131 / 319", 1.0),
        (r"\frac{262}{638}", "131/319", 0.0),
        ("12445/30305", "131/319", 0.0),
        ("319/131", "131/319", 0.0),
        ("0.41", "131/319", 0.0),
        ("0/0", "131/319", 0.0),
        ("1" * 31 + "/2", "131/319", 0.0),
    ],
)
def test_reduced(response: str, answer: str, score: float) -> None:
    assert reduced(response, answer) == score


GOLD = "49*(85 - 1)/14 - 42 - 73"


@pytest.mark.parametrize(
    ("response", "answer", "score"),
    [
        (GOLD, GOLD, 1.0),
        (rf"\boxed{{{GOLD}}}", GOLD, 1.0),
        ("(85-1)*49/14-(42+73)", GOLD, 1.0),
        ("-73 - 42 + 49/14*(85-1)", GOLD, 1.0),
        ("179", GOLD, 0.0),
        ("49*(85 - 1)/14 - 42 - 73 + 1 - 1", GOLD, 0.0),
        ("49*85/14 - 42 - 73 - 1", GOLD, 0.0),
        (f"{GOLD} = 179", GOLD, 0.0),
        ("8*3", "8*(5*1 - 2)", 0.0),
        ("(8-5)*(1+2) + 15", "8*(5*1 - 2)", 0.0),
        ("(5-2)*8*1", "8*(5*1 - 2)", 1.0),
        ("3/8*8*8", "8*3*8/8", 1.0),
        ("8/(3-8/3)", "3*8*1", 0.0),
        ("8/(3-8/3)", "3*8*8/(8*1)", 0.0),
        ("1/3*3*24", "3*24/3*1", 1.0),
        ("2**3*3", "2*3*3", 0.0),
        ("24//1", "24/1", 0.0),
        ("24/(1-1)", "24/1*1", 0.0),
        ("2 4", "24", 0.0),
        ("024", "24", 0.0),
        ("2(4)", "2*4", 0.0),
        ("", "24", 0.0),
        ("(", "24", 0.0),
    ],
)
def test_expression(response: str, answer: str, score: float) -> None:
    assert expression(response, answer) == score


@given(st.lists(st.integers(1, 99), min_size=2, max_size=5), st.data())
def test_an_expression_is_right_by_value_and_numbers(numbers: list[int], data: st.DataObject) -> None:
    """Against Python's own arithmetic on fractions, over random expressions of the same numbers."""

    def make(order: list[int]) -> tuple[str, Fraction]:
        text, total = str(order[0]), Fraction(order[0])
        for number in order[1:]:
            sign = data.draw(st.sampled_from("+-*/"))
            text = f"({text}){sign}{number}"
            total = {"+": total + number, "-": total - number, "*": total * number, "/": total / number}[sign]
        return text, total

    (gold, target), (given_text, reached) = make(numbers), make(data.draw(st.permutations(numbers)))
    assert expression(given_text, gold) == float(reached == target)


CANARY = "canary-of-the-scorers"
DEEP = "(" * 90 + "24" + ")" * 90
HOSTILE = [
    "9**9**9**9",
    "9" * 100_000,
    "9*" * 100_000 + "9",
    "-" * 100_000 + "1",
    "(" * 100_000,
    DEEP,
    "[" * 100_000 + "]" * 100_000,
    "1/" * 90 + "3",
    "{" * 100_000,
    r"\boxed{" * 20_000,
    r"\boxed{" * 5_000 + "}" * 5_000,
    "</think>" * 20_000,
    ", " * 100_000,
    "\n" * 100_000,
    "\u2028 \x00 ١٢",
    "1e999999999",
    "0x18",
    "1_2+1_2",
    "True*24",
    "24j",
    "(lambda: 24)()",
    f"__import__('os').system('touch {CANARY}')",
    f"(lambda: open('{CANARY}', 'w').close())()",
    f"[open('{CANARY}', 'w') for _ in (1,)]",
    rf"\boxed{{__import__('pathlib').Path('{CANARY}').touch()}}",
    "$$" * 50_000,
    r"\frac{" * 20_000,
    "1" * 30 + "/" + "1" * 29 + "$" * 50_000,
]


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("text", HOSTILE, ids=[text[:12] for text in HOSTILE])
def test_hostile_text_scores_nothing_at_once(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for answer in ("24", "8*(5*1 - 2)", "131/319", "carol", "1 2\n3 4"):
        started = time.process_time()
        score = SCORERS[name](text, answer)
        assert time.process_time() - started < 3  # seconds; what is not linear takes minutes
        # parentheses around the one number of the answer are not hostile, only many
        assert score == float(name == "expression" and answer == "24" and text == DEEP)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scorer", SCORERS.values())
@given(text=st.text(alphabet="0123456789+-*/() .,[]{}$\\boxedfrac\n<think>", max_size=MAX_EXPRESSION + 10))
def test_no_text_raises(scorer: object, text: str) -> None:
    assert scorer(text, "8*(5*1 - 2)") in (0.0, 1.0)  # type: ignore[operator]
    assert scorer(text, text) in (0.0, 1.0)  # type: ignore[operator]
