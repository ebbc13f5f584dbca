"""Rewards in the signature of TRL."""

import pickle
from collections import defaultdict

import pytest

from dgpo.rewards import FormatReward, MathReward, answer_reward, format_reward, math_reward, soft_overlong_reward


@pytest.fixture(scope="module")
def reward():
    reward = MathReward(deadline=10.0)
    yield reward
    reward.close()


class Log(defaultdict):
    def __init__(self):
        super().__init__(list)

    def __call__(self, name, value):
        self[name].append(value)


COMPLETIONS = [r"\boxed{x+x}", r"\boxed{3}", "none", r"\boxed{42}"]
GOLDS = ["2x", "4", "5", ""]


def test_math_reward_grades_logs_reasons_and_leaves_out_bad_golds(reward):
    metrics, extra = Log(), Log()
    rewards = reward(COMPLETIONS, answer=GOLDS, log_metric=metrics, log_extra=extra, level=[1, 2, 3, 4])
    assert rewards == [1.0, 0.0, 0.0, None]
    assert metrics == {
        "math_reward/match": [0.25],
        "math_reward/mismatch": [0.25],
        "math_reward/no_answer": [0.25],
        "math_reward/unparsed": [0.0],
        "math_reward/guarded": [0.0],
        "math_reward/timeout": [0.0],
        "math_reward/bad_gold": [0.25],
    }
    assert extra["reason"] == [["match", "mismatch", "no_answer", "bad_gold"]]
    assert extra["extracted"] == [["x+x", "3", "", "42"]]


def test_messages_and_the_solution_column(reward):
    turns = [[{"role": "assistant", "content": text}] for text in COMPLETIONS]
    assert reward(turns, solution=GOLDS) == reward(COMPLETIONS, GOLDS)
    assert reward([[{"role": "assistant", "content": None, "tool_calls": []}]], ["1"]) == [0.0]
    assert reward([r"\boxed{7}"], [7]) == [1.0]  # a column of numbers


def test_truncated_completions_score_nothing_unless_they_are_to_be_graded(reward):
    cut = [True, False, True, True]
    metrics = Log()
    assert reward(COMPLETIONS, GOLDS, truncated=cut, log_metric=metrics) == [0.0, 0.0, 0.0, None]
    assert (metrics["math_reward/truncated"], metrics["math_reward/match"]) == ([0.75], [0.0])
    assert metrics["math_reward/no_answer"] == [0.5]
    graded = MathReward(truncated="grade")
    assert graded(COMPLETIONS, GOLDS, truncated=cut) == [1.0, 0.0, 0.0, None]
    graded.close()
    with pytest.raises(ValueError, match="truncated = 'mask' is not allowed; expected 'zero' or 'grade'"):
        MathReward(truncated="mask")


def test_the_function_shares_one_grader_and_trl_finds_its_name(reward):
    assert math_reward([r"\boxed{x+x}"], ["2x"]) == [1.0]
    assert math_reward([r"\boxed{x+x}"], solution=["2x"]) == [1.0]
    assert math_reward.__name__ == reward.__name__ == "math_reward"


def test_a_pickled_reward_works(reward):
    copy = pickle.loads(pickle.dumps(reward))
    assert copy(COMPLETIONS, GOLDS) == [1.0, 0.0, 0.0, None]
    copy.close()


def test_a_missing_gold_is_a_bad_one(reward):
    assert reward([r"\boxed{None}", r"\boxed{2}"], [None, None]) == [None, None]
    with pytest.raises(TypeError, match="a gold is of type dict"):
        reward([r"\boxed{2}"], [{"answer": 2}])


def test_wrong_columns(reward):
    with pytest.raises(ValueError, match="needs exactly one column of golds, 'answer' or 'solution'"):
        reward(COMPLETIONS)
    with pytest.raises(ValueError, match="needs exactly one column of golds"):
        reward(COMPLETIONS, GOLDS, solution=GOLDS)
    with pytest.raises(ValueError, match="4 responses and 1 golds"):
        reward(COMPLETIONS, ["1"])
    assert reward([], []) == []


FORMATS = [
    (r"<think>a</think> It is \boxed{1}.", 1.0),
    (r"a</think> It is \boxed{1}.", 0.0),
    (r"<think>a</think> \boxed{1}<|im_end|>", 1.0),
    (r"<think>\boxed{2}</think> \boxed{1}", 1.0),
    (r" <think>a</think>\boxed{1} ", 1.0),
    (r"<think>a</think> \fbox{1}", 1.0),
    (r"<think>a</think> $\boxed 1$", 1.0),
    (r"<think>the token </s></think> \boxed{1}", 1.0),
    (r"<think>a</think> \boxed{1}<|im_end|><|endoftext|>", 1.0),
    (r"<think>a</think> \boxed{1}</s> </s>", 1.0),
    (r"<think>...</think> \boxed{1}", 1.0),
    ("<think>\u200b \u2060</think> \\boxed{1}", 0.0),
    (r"<think>a</think> \boxed{{{}}}", 0.0),
    (r"<think>a</think> \boxed{{}}", 1.0),  # the empty set
    (r"<think>a</think> \boxed{\text{}}", 0.0),
    (r"<THINK>a</THINK> \boxed{1}", 0.0),
    (r"  <think></think>\boxed{1}", 0.0),
    ("<think> \n </think>\\boxed{1}", 0.0),
    (r"</think>\boxed{1}", 0.0),
    (r"<think>a</think> \boxed{1} \fbox{1}", 0.0),
    (r"<think>a</think> \boxed \boxed{1}", 0.0),
    (r"<think>a</think> \boxed{\boxed{1}}", 0.0),
    (r"<think>a</think> \boxed{1}<|im_end|> \n and", 0.0),
    (r"<think>a</think> \boxed{1}<|im_end|><|im_start|>user", 0.0),
    (r"It is \boxed{1}.", 0.0),
    (r"<think>a</think> It is 1.", 0.0),
    (r"<think>a</think> \boxed{1} \boxed{1}", 0.0),
    (r"<think>a</think> \boxed{}", 0.0),
    (r"<think>a</think> \boxed{1", 0.0),
    (r"<think>a</think> \boxed{1} \boxed{1", 0.0),
    (r"<think>a</think><think>b</think> \boxed{1}", 0.0),
    (r"<think>a<think>b</think> \boxed{1}", 0.0),
    (r"b <think>a</think> \boxed{1}", 0.0),
    (r"<think>a</think>b</think> \boxed{1}", 0.0),
    (r"<think>a \boxed{1}", 0.0),
    ("", 0.0),
]


@pytest.mark.parametrize(("text", "score"), FORMATS)
def test_format_reward(text, score):
    assert format_reward([text]) == [score]
    assert format_reward([[{"role": "assistant", "content": text}]], answer=["1"]) == [score]


OPENED = [
    (r"a</think> It is \boxed{1}.", 1.0),
    (r"\na</think> \boxed{1}<|im_end|>", 1.0),
    (r"</think> \boxed{1}", 0.0),
    (r"<think>a</think> \boxed{1}", 0.0),
    (r"a</think>b</think> \boxed{1}", 0.0),
    (r"a \boxed{1}", 0.0),
]


@pytest.mark.parametrize(("text", "score"), OPENED)
def test_thinking_that_the_prompt_opens(text, score):
    assert FormatReward(opened_in_prompt=True)([text], prompts=["x"]) == [score]
    assert format_reward([text, text], prompts=["x<think>\n", "x"])[0] == score
    assert FormatReward(opened_in_prompt=False)([r"a</think> \boxed{1}"], prompts=["<think>"]) == [0.0]


def test_format_reward_refuses():
    with pytest.raises(ValueError, match="opened_in_prompt = 'yes' is not allowed; expected True, False or None"):
        FormatReward(opened_in_prompt="yes")
    with pytest.raises(ValueError, match="2 completions and 1 prompt"):
        format_reward(["a", "b"], prompts=["x"])
    with pytest.raises(TypeError, match=r"completions\[1\] is of type int"):
        format_reward(["a", 1])
    assert pickle.loads(pickle.dumps(FormatReward(opened_in_prompt=True)))([r"a</think>\boxed{1}"]) == [1.0]


def test_soft_overlong_reward_is_equation_13():
    reward = soft_overlong_reward(max_completion_length=100, buffer=40)
    lengths = [0, 1, 60, 61, 80, 99, 100, 101, 1000]
    assert reward(completion_ids=[[0] * n for n in lengths], completions=[""] * 9) == [
        max(-1.0, min(0.0, (60 - n) / 40)) for n in lengths
    ]
    assert reward([[0] * 60, [0] * 80, [0] * 100, [0] * 101]) == [0.0, -0.5, -1.0, -1.0]
    assert reward.__name__ == "soft_overlong_reward"
    assert pickle.loads(pickle.dumps(reward))([[0] * 80]) == [-0.5]


def test_soft_overlong_reward_is_that_of_trl():
    trl_rewards = pytest.importorskip("trl.rewards")
    ours = soft_overlong_reward(max_completion_length=20, buffer=8)
    theirs = trl_rewards.get_soft_overlong_punishment(max_completion_len=20, soft_punish_cache=8)
    ids = [[0] * n for n in range(1, 30)]
    assert ours(ids) == pytest.approx(theirs(completion_ids=ids))


@pytest.mark.parametrize(("length", "buffer"), [(100, 0), (100, 100), (0, 1), (100, -1)])
def test_soft_overlong_lengths_that_make_no_sense(length, buffer):
    with pytest.raises(ValueError, match=f"buffer = {buffer}, max_completion_length = {length}; expected 0 < buffer"):
        soft_overlong_reward(max_completion_length=length, buffer=buffer)


def test_answer_reward():
    chat = [{"role": "assistant", "content": "41"}, {"role": "assistant", "content": r"it is \boxed{42}"}]
    completions = ["so 42", chat, "43", [{"role": "assistant", "content": None}], []]
    rewards = answer_reward(completions, ["42", 42, "42", "42", "42"], prompts=["?"] * 5, trainer_state=None)
    assert rewards == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert all(type(reward) is float for reward in rewards)


def test_answer_reward_refuses_columns_of_different_length():
    with pytest.raises(ValueError, match="2 completions and 1 answer"):
        answer_reward(completions=["1", "2"], answer=["1"])
