"""Where the answer of a response is."""

import time

import pytest

from dgpo.engines.verl_reward import compute_score
from dgpo.grading.answers import boxed_answer, boxes, gold_answer, last_box, marked_answer
from dgpo.grading.responses import END_OF_TEXT, THINKING, said, text_of
from dgpo.rewards import FormatReward, FunctionGrader, answer_of, answer_reward, exact_match, math_reward
from dgpo.tasks.gym_scorers import final_text
from dgpo.tasks.procedural import text_grade, text_reward

BOXED = [
    (r"\boxed{42}", "42"),
    (r"$\boxed{ 42 }$ and then 7", "42"),
    (r"\fbox{42}", "42"),
    (r"\boxed {5}", "5"),
    (r"\boxed{1} or rather \boxed{2}", "2"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{\left\{ x : x > 0 \right.}", r"\left\{ x : x > 0 \right."),
    (r"\boxed{41 \boxed{42}}", "42"),  # the last to open
    (r"{ \boxed{5}", "5"),
    (r"} \boxed{5} }", "5"),
    # cut off while it was answering: what was boxed before was a thought
    (r"\boxed{5} so \boxed{6", None),
    (r"\boxed{6", None),
    (r"\boxed{}", None),
    (r"\boxed{ }", None),
    ("42", None),
    ("", None),
    (r"<think>\boxed{7}</think> It is \boxed{8}.", "8"),
    (r"\boxed{7}</think> It is 8.", None),
    (r"<think>\boxed{7}", None),
    (r"<think>a</think>\boxed{7}<think>b", None),
    (r"\fbox{7} or rather \boxed{8}", "8"),
    (r"\boxed{7} or rather \fbox{8}", "8"),
    (r"\boxed{4 \fbox 5}", "5"),
    # without braces: up to the space or the end of the formula, and nothing where an operator goes on
    (r"$\boxed 5$", "5"),
    (r"\boxed 12.", "12"),
    (r"\boxed5", "5"),
    (r"\fbox -7", "-7"),
    (r"\(\boxed 5\)", "5"),
    (r"{\boxed 5}", "5"),
    (r"\boxed\frac{1}{2}$", r"\frac{1}{2}"),
    (r"\boxed 1/2", "1/2"),
    (r"\boxed 5 + 3", None),
    (r"\boxed 2 \pi", None),
    (r"\boxed{5} as \boxed", None),
    # one backslash too many; another command
    (r"\\boxed{5}", "5"),
    (r"x \\\boxed{5}", "5"),
    (r"\boxed{3}\boxedtext{5}", "3"),
]


@pytest.mark.parametrize(("response", "answer"), BOXED)
def test_the_last_box_behind_the_thinking(response, answer):
    assert boxed_answer(response) == answer


@pytest.mark.parametrize("token", END_OF_TEXT)
def test_nothing_counts_behind_the_end_of_the_turn(token):
    assert boxed_answer(rf"\boxed{{41}}{token} user: again? \boxed{{42}}") == "41"


def test_all_boxes_in_the_order_in_which_they_open():
    text = r"\boxed{1} \boxed{2 \boxed{3}} \boxed{4"
    assert [None if place is None else text[place] for place in boxes(text)] == ["1", r"2 \boxed{3}", "3", None]


@pytest.mark.parametrize(
    ("response", "answer"),
    [("x = 4\nA: 26", "26"), ("A: 1\nA: 2\nand so on", "2"), ("A:", None), ("26", None), ("A: 1</think>26", None)],
)
def test_an_answer_behind_a_marker(response, answer):
    assert marked_answer(response, "A:") == answer


def test_what_was_said():
    assert said("<think>a</think>b</think> c<|im_end|>d") == " c"


def test_time_is_linear_in_hostile_text():
    started = time.perf_counter()
    for text in (
        r"\boxed{",
        "{",
        "}",
        "<think>",
        r"\boxed",
        r"\boxedx",
        "\\",
        r"\boxed a{",
        "<|start|>",
        "<|channel|>a",
    ):
        assert boxed_answer(text * (400_000 // len(text))) is None
    assert boxed_answer("<|im_end|><|im_start|>assistant\n" * 20_000) is None
    assert boxed_answer("x" * 5_000_000 + r"\boxed{42}") == "42"
    assert time.perf_counter() - started < 10  # 0.5 s alone


def final(analysis, answer):
    thought = f"<|channel|>analysis<|message|>{analysis}<|end|>"
    return f"{thought}<|start|>assistant<|channel|>final<|message|>{answer}<|return|>"


USER = "<|start|>user<|message|>What is it, \\boxed{1}?<|end|><|start|>assistant"
MESSAGES = [
    (final(r"\boxed{7}", r"\boxed{8}"), "8"),
    (final(r"</s><|im_end|><think> \boxed{7}", r"\boxed{8}"), "8"),
    (final(r"\boxed{7}", "It is 8."), None),
    (r"so \boxed{7}<|end|><|start|>assistant<|channel|>final<|message|>\boxed{8}", "8"),
    (r"<|channel|>commentary<|message|>\boxed{7}<|end|>" + "<|start|>assistant" + final("", r"\boxed{8}"), "8"),
    (
        r"<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|><|start|>functions.f to=assistant"
        r"<|channel|>commentary<|message|>\boxed{3}<|end|><|start|>assistant<|channel|>final<|message|>\boxed{8}",
        "8",
    ),
    # cut off in its analysis, or in the header of the answer
    (r"<|channel|>analysis<|message|>\boxed{7}", None),
    (r"<|channel|>analysis<|message|>\boxed{7}<|end|>", None),
    (r"<|channel|>analysis<|message|>\boxed{7}<|end|><|start|>assistant", None),
    (r"<|channel|>analysis<|message|>\boxed{7}<|end|><|start|>assistant<|channel|>final", None),
    # with the prompt before it; another turn behind it
    (USER + final(r"\boxed{7}", r"\boxed{8}"), "8"),
    (final("a", r"\boxed{8}") + USER + final("b", r"\boxed{9}"), "8"),
    # decoded without special tokens
    (r"analysisIt is \boxed{7}.assistantfinalIt is \boxed{8}.", "8"),
    (r"analysisIt is \boxed{7}.", None),
    (r"analysisIt is \boxed{7}.assistantfina", None),
    (r"analysis: it is \boxed{7}.", "7"),
    # of which the first tokens of a header were lost
    (r"a \boxed{7}<|end|>...final<|message|>\boxed{8}<|return|>", "8"),
    (r"a \boxed{7}<|end|>assistantfinal<|message|>\boxed{8}<|return|>", "8"),
    (r"analysis<|message|>\boxed{7}<|end|><|start|>", None),
    (r"\boxed{7}<|end|>user<|message|>\boxed{8}<|end|>", "7"),
    # with the prompt and the token before it
    ("<｜begin▁of▁sentence｜><｜User｜>\\boxed{1}<｜Assistant｜><think>\\boxed{7}</think>\\boxed{8}", "8"),
    ("<bos><start_of_turn>user\n\\boxed{1}<end_of_turn>\n<start_of_turn>model\n\\boxed{8}<end_of_turn>", "8"),
    ("[gMASK]<sop><|user|>\n\\boxed{1}<|assistant|>\n<think>\\boxed{7}</think>\\boxed{8}<|user|>", "8"),
    ("\\boxed{7}<|observation|>\n\\boxed{3}<|assistant|>\n\\boxed{8}", "8"),
    # other templates
    ("<|im_start|>assistant\n<think>a</think>\\boxed{8}<|im_end|>", "8"),
    ("\\boxed{7}<|im_end|>\n<|im_start|>assistant\n\\boxed{8}<|im_end|>", "8"),
    ("\\boxed{7}<|im_end|>\n<|im_start|>user\nno<|im_end|>\n<|im_start|>assistant\n\\boxed{8}", "7"),
    ("\\boxed{7}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n\\boxed{8}<|eot_id|>", "8"),
    ("\\boxed{7}<end_of_turn>\n<start_of_turn>model\n\\boxed{8}<end_of_turn>", "8"),
    ("\\boxed{7}<end_of_turn>\n<start_of_turn>user\nno<end_of_turn>", "7"),
    (
        "call<|im_end|>\n<|im_start|>user\n<tool_response>\\boxed{3}</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n\\boxed{8}<|im_end|>",
        "8",
    ),
    ("call<|im_end|>\n<|im_start|>user\n<tool_response>\\boxed{3}</tool_response><|im_end|>", None),
    ("call<|im_end|>\n<|im_start|>tool\n\\boxed{3}<|im_end|>", None),
    # an end token in the thinking, also where the template has opened it, is text
    (r"<think>the token </s>, \boxed{7}</think>\boxed{8}</s>", "8"),
    (r"the token <|im_end|>, \boxed{7}</think>\boxed{8}<|im_end|>", "8"),
    (r"\boxed{41}<|im_end|> user: again? <think></think>\boxed{42}", "41"),
    (r"a</think>\boxed{41}<|im_end|>b</think>\boxed{42}", "41"),
]


@pytest.mark.parametrize(("response", "answer"), MESSAGES)
def test_the_last_message_of_the_model_counts(response, answer):
    assert boxed_answer(response) == answer


@pytest.mark.parametrize(("opens", "closes"), THINKING)
def test_every_kind_of_thinking(opens, closes):
    assert boxed_answer(rf"{opens}\boxed{{7}}{closes}\boxed{{8}}") == "8"
    assert boxed_answer(rf"\boxed{{7}}{closes}\boxed{{8}}") == "8"
    assert boxed_answer(rf"{opens}\boxed{{7}}") is None


RIGHT = FormatReward(opened_in_prompt=True)
ENTRIES = {
    "math_reward": lambda completion: math_reward([completion], ["8"])[0],
    "answer_reward": lambda completion: answer_reward([completion], ["8"])[0],
    "exact_match": lambda completion: exact_match(completion, "8"),
    "format_reward": lambda completion: RIGHT([completion])[0],
    "FunctionGrader": lambda completion: (
        FunctionGrader(exact_match, "x", answer_of).grade_many([completion], ["8"])[0].score
    ),
    "compute_score": lambda completion: compute_score("x", completion, "8")["score"],
    "answer_of": lambda completion: float(answer_of(completion) == "8"),
    "final_text": lambda completion: float(final_text(completion) == "8"),
    "boxed_answer": lambda completion: float(boxed_answer(completion) == "8"),
}
TEXT = r"a</think> It is \boxed{8}"
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
TOOL = {"role": "tool", "name": "f", "content": TEXT}
COMPLETIONS = [
    (TEXT, 1.0),
    ([{"role": "assistant", "content": TEXT}], 1.0),
    ({"role": "assistant", "content": TEXT}, 1.0),
    ([{"content": TEXT}], 1.0),
    ([{"role": "gpt", "content": TEXT}], 1.0),
    ([{"role": "user", "content": TEXT}], 0.0),
    ([{"role": "assistant", "content": [{"type": "text", "text": TEXT}]}], 1.0),
    (
        [{"role": "assistant", "content": [{"type": "text", "text": TEXT[:15]}, {"type": "text", "text": TEXT[15:]}]}],
        1.0,
    ),
    (
        [{"role": "assistant", "content": [{"type": "thinking", "thinking": "x"}, {"type": "text", "text": TEXT}]}],
        1.0,
    ),
    ([{"role": "assistant", "content": ["a</think>", {"text": r"\boxed{8}"}, {"type": "image"}]}], 1.0),
    ([CALL, {"role": "tool", "content": "3"}, {"role": "assistant", "content": TEXT}], 1.0),
    ([CALL], 0.0),
    ([{"type": "text", "text": TEXT}], 1.0),  # the content alone
    ([{"type": "text", "text": TEXT[:15]}, {"type": "text", "text": TEXT[15:]}], 1.0),
    ([{"role": "assistant", "content": [{"type": "text", "text": TEXT}, {"type": "text", "text": None}]}], 1.0),
    ([CALL, TOOL], 0.0),  # what a tool says is no answer
    ([], 0.0),
    ([{"role": "assistant", "content": []}], 0.0),
]


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(("completion", "score"), COMPLETIONS)
def test_every_reward_and_grader_takes_every_form_of_a_completion(entry, completion, score):
    assert ENTRIES[entry](completion) == score


def test_procedural_tasks_take_messages():
    message = [{"role": "assistant", "content": [{"type": "text", "text": " 46\n"}]}]
    assert text_grade(message, "46") == 1.0
    assert text_reward([message, "46", [CALL]], ["46", "46", "46"]) == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("completion", "message"),
    [
        (None, "a completion is of type NoneType: None; expected text, or messages such as"),
        (8, "a completion is of type int: 8; expected text"),
        (b"8", "a completion is of type bytes"),
        ([8], r"a completion is of type list: \[8\]; expected text"),
        (
            {"role": "assistant", "content": 8},
            "a completion has a content of type int: 8; expected text, None, or parts",
        ),
        ([{"content": [8]}], "a completion has a content with the part 8 of type int; expected text, or a mapping"),
        ([{"content": [{"type": "text", "text": 8}]}], "the part {'type': 'text', 'text': 8} of type dict"),
    ],
)
def test_what_is_no_completion(completion, message):
    with pytest.raises(TypeError, match=message):
        text_of(completion)


BOXES = [r"\boxed{8}", r"\fbox{8}", r"\boxed {8}", r"\fbox 8", r"\boxed 8", r"\boxed8", r"\\boxed{8}"]
NO_BOXES = [
    r"\boxed{8",
    r"\boxed{}",
    r"\boxed{8} \boxed{",
    r"\fbox{8} \fbox",
    r"\boxed",
    r"\boxed{{{}}}",
    r"\boxed{\text{ }}",
    "\\fbox{$\u200b$}",
]


@pytest.mark.parametrize("box", BOXES)
def test_one_notion_of_the_box(box):
    for entry in ENTRIES.values():
        assert entry(f"a</think> It is {box}") == 1.0
    assert gold_answer(f"It is {box}") == "8"


@pytest.mark.parametrize("box", NO_BOXES)
def test_a_box_without_an_answer_is_none_for_all(box):
    text = f"8</think> It is 8: {box}"
    assert last_box(text).answer is None
    assert (answer_of(text), final_text(text), boxed_answer(text)) == (None, None, None)
    for entry in ENTRIES.values():
        assert entry(text) == 0.0
    for function, extract in ((exact_match, answer_of), (text_grade, final_text)):
        assert FunctionGrader(function, "x", extract).grade_many([text], ["9"])[0].reason == "no_answer"
