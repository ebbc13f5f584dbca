"""Reward functions for trainers. Standard library only; math-verify runs in worker processes."""

from dgpo.grading import FunctionGrader, Grader, MathGrader, Verdict, answer_of, exact_match
from dgpo.rewards.functions import (
    FormatReward,
    MathReward,
    SoftOverlongReward,
    answer_reward,
    format_reward,
    math_reward,
    soft_overlong_reward,
)
from dgpo.rewards.registry import REWARDS, RewardFunction, build, make
from dgpo.rewards.shaping import is_shaping, shaping_term

__all__ = [
    "REWARDS",
    "FormatReward",
    "FunctionGrader",
    "Grader",
    "MathGrader",
    "MathReward",
    "RewardFunction",
    "SoftOverlongReward",
    "Verdict",
    "answer_of",
    "answer_reward",
    "build",
    "exact_match",
    "format_reward",
    "is_shaping",
    "make",
    "math_reward",
    "shaping_term",
    "soft_overlong_reward",
]
