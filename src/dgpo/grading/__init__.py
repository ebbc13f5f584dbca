"""Grading: whether a response answers its problem. Standard library only; math-verify runs in worker processes."""

from dgpo.grading.answers import boxed_answer, last_box
from dgpo.grading.exact import answer_of, exact_match
from dgpo.grading.grader import MathGrader
from dgpo.grading.responses import CHANNELS, THINKING, Completion, said, text_of, texts_of
from dgpo.grading.verdict import FunctionGrader, Grader, Verdict

__all__ = [
    "CHANNELS",
    "THINKING",
    "Completion",
    "FunctionGrader",
    "Grader",
    "MathGrader",
    "Verdict",
    "answer_of",
    "boxed_answer",
    "exact_match",
    "last_box",
    "said",
    "text_of",
    "texts_of",
]
