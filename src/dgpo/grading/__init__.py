"""Grading: whether a response answers its problem. Standard library only, but for math-verify in worker processes."""

from dgpo.grading.exact import answer_of, exact_match
from dgpo.grading.grader import MathGrader
from dgpo.grading.verdict import FunctionGrader, Grader, Verdict

__all__ = ["FunctionGrader", "Grader", "MathGrader", "Verdict", "answer_of", "exact_match"]
