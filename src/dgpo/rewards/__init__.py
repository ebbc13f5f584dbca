"""Rewards: verifiers of answers. Standard library only, but for math-verify, which runs in worker processes."""

from dgpo.grading.exact import answer_of, answer_reward, exact_match
from dgpo.grading.grader import MathGrader
from dgpo.grading.verdict import FunctionGrader, Grader, Verdict
from dgpo.rewards.functions import (
    FormatReward,
    MathReward,
    SoftOverlongReward,
    format_reward,
    math_reward,
    soft_overlong_reward,
)
from dgpo.rewards.registry import REWARDS, make
from dgpo.rewards.shaping import is_shaping, shaping_term

__all__ = [
    "REWARDS",
    "FormatReward",
    "FunctionGrader",
    "Grader",
    "MathGrader",
    "MathReward",
    "SoftOverlongReward",
    "Verdict",
    "answer_of",
    "answer_reward",
    "exact_match",
    "format_reward",
    "is_shaping",
    "make",
    "math_reward",
    "shaping_term",
    "soft_overlong_reward",
]
