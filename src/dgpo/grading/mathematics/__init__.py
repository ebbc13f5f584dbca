"""Mathematics: what an answer says, and whether it equals another. A worker loads this folder by `judge.py` alone."""

from dgpo.grading.mathematics.guards import guard
from dgpo.grading.mathematics.numbers import number
from dgpo.grading.mathematics.spelling import clean, normal_form

__all__ = ["clean", "guard", "normal_form", "number"]
