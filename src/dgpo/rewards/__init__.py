"""Rewards: verifiers of answers. Standard library only, but for math-verify, which runs in worker processes."""

from dgpo.rewards.exact import answer_of, answer_reward, exact_match
from dgpo.rewards.functions import (
    FormatReward,
    MathReward,
    SoftOverlongReward,
    format_reward,
    math_reward,
    soft_overlong_reward,
)
from dgpo.rewards.grader import MathGrader
from dgpo.rewards.registry import REWARDS, make
from dgpo.rewards.shaping import is_shaping, shaping_term
from dgpo.rewards.verdict import FunctionGrader, Grader, Verdict

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
