import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpo.grading import answer_of, exact_match

ANSWERS = [
    ("42", "42"),
    ("The answer is 42.", "42"),
    ("12 + 30 = 42", "42"),
    ("It costs $1,234.50.", "$1,234.50"),
    ("so $x = -3$", "-3"),
    ("so -$7 in all", "-$7"),
    (r"so \$7 in all", r"\$7"),
    ("5-3", "3"),
    ("x^{2}-3", "3"),
    ("3/4 of them", "3/4"),
    ("about .5", ".5"),
    ("1, 2, 3", "3"),
    ("1,234,5678", "5678"),
    ("1,2345", "2345"),
    ("#### 42", "42"),
    (r"\boxed{42}", "42"),
    (r"\boxed{ 42 } and then 7", "42"),
    (r"\boxed{1} or rather \boxed{2}", "2"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{\left\{ x : x > 0 \right.}", r"\left\{ x : x > 0 \right."),
    (r"\boxed{a_{b_{c}}} \text{ done}", r"a_{b_{c}}"),
    (r"\boxed{\boxed{3}}", "3"),
    (r"\boxed {5}", "5"),
    (r"{ \boxed{5}", "5"),
    (r"} \boxed{5} }", "5"),
    (r"\boxed{5} \boxed{6", None),
    (r"so \boxed{6", None),
    (r"\boxed{}", None),
    ("<think>it is 7</think> The answer is 8", "8"),
    ("<think>1</think>2<think>3</think> four", "four"),
    (r"<think>\boxed{7}</think>", None),
    ("<think>never closed 7", None),
    (" Paris \n", "Paris"),
    ("", None),
    (" \n", None),
]


@pytest.mark.parametrize(("text", "answer"), ANSWERS)
def test_answer_of(text, answer):
    assert answer_of(text) == answer


MATCHES = [
    ("42", "42"),
    ("42", 42),
    ("The answer is 42.", " 42 "),
    ("42.0", "42"),
    ("042", "42"),
    ("1234", "1,234"),
    ("It is $1,234.", "1234"),
    ("She has #### 42", "so 40 + 2 = 42\n#### 42"),
    ("1,234", "#### 1234"),
    ("-$7", "-7"),
    ("−7", "-7"),
    ("-0", "0"),
    ("1/2", "0.5"),
    ("2/4", "1/2"),
    ("0.5", 0.5),
    (r"\boxed{1{,}234}", "1234"),
    (r"in all 1{,}234 apples", "1234"),
    (r"\boxed{42.}", "42"),
    (r"\boxed{$42$}", "42"),
    (r"\boxed{\$42}", "42"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    ("Paris", "Paris"),
    ("3 apples", "3 apples"),
    ("x+2", "x+2"),
    ("<think>7</think>8", "8"),
    ("9" * 1000, "9" * 1000),
    ("1/0", "1/0"),
]


@pytest.mark.parametrize(("completion", "answer"), MATCHES)
def test_matches(completion, answer):
    assert exact_match(completion, answer) == 1.0


MISMATCHES = [
    ("43", "42"),
    ("-42", "42"),
    ("0.333", "1/3"),
    ("1/3", "0.3333333333333333"),
    ("42.0000001", "42"),
    ("9007199254740993", "9007199254740992"),
    ("1e-400", "0"),
    ("42 or 43", "42"),
    (r"\boxed{41} is not \boxed{42", "42"),
    (r"42 \boxed{x}", "42"),
    (r"\boxed{42 or 43}", "42"),
    (r"\boxed{41=42}", "42"),
    (r"\boxed{1,2}", "12"),
    (r"\boxed{10**10**10}", "10" + "0" * 10),
    (r"\boxed{__import__('os').getcwd()}", "0"),
    (r"\boxed{1_000}", "1000"),
    (r"\boxed{٤٢}", "42"),
    ("<think>42</think>", "42"),
    ("2", "3x+2"),
    ("paris", "Paris"),
    ("1/0", "0"),
    ("0/0", "1/0"),
    ("nan", "0"),
    ("", ""),
    ("anything", ""),
    ("", "42"),
    ("none", "####"),
    ("9" * 1000 + ".0", "9" * 1000),
]


@pytest.mark.parametrize(("completion", "answer"), MISMATCHES)
def test_mismatches(completion, answer):
    assert exact_match(completion, answer) == 0.0


HOSTILE = {
    "digits": "9" * 100_000,
    "digits in a box": rf"\boxed{{{'9' * 100_000}}}",
    "grouped digits": "1" + ",234" * 30_000 + "5",
    "fractions": "1/" * 60_000,
    "dots": "1." * 60_000,
    "minus signs": "-" * 100_000 + "x",
    "dollars": "$" * 100_000 + "x",
    "commas": "1," * 60_000,
    "open braces": "{" * 100_000,
    "open boxes": r"\boxed{" * 20_000,
    "nested boxes": r"\boxed{" * 20_000 + "42" + "}" * 20_000,
    "box and blanks": r"\boxed" + " " * 100_000,
    "backslashes": "\\" * 100_001,
    "thoughts": "</think>" * 20_000,
    "power tower": r"\boxed{10**10**10}",
    "factorial": r"\boxed{1000000000!}",
    "exponent": r"\boxed{1e1000000000}",
    "call": r"\boxed{(lambda: exit(1))()}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_cheap_and_wrong(name):
    started = time.perf_counter()
    assert exact_match(HOSTILE[name], "41") == 0.0
    assert exact_match("41", HOSTILE[name]) == 0.0
    assert time.perf_counter() - started < 1.0


@given(st.text(alphabet="0123456789.,/-$\\{}boxed #\n", max_size=60))
def test_any_text_has_a_verdict_and_agrees_with_itself(text):
    assert exact_match(text, "7") in (0.0, 1.0)
    given_answer = answer_of(text)
    if given_answer is not None and "####" not in given_answer:
        assert exact_match(given_answer, given_answer) == 1.0


@given(st.fractions())
def test_fractions_match_in_any_writing(number):
    doubled = f"{2 * number.numerator}/{2 * number.denominator}"
    assert exact_match(f"The result is {doubled}.", str(number)) == 1.0
    assert exact_match(f"The result is {doubled}.", str(number + 1)) == 0.0


@given(st.integers())
def test_integers_match_with_separators(number):
    assert exact_match(f"That makes {number:,}.", str(number)) == 1.0
