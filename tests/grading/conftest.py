"""One pool of workers for the tests of the grader: starting it takes a second."""

import pytest

from dgpo.rewards import MathGrader


@pytest.fixture(scope="session")
def grader():
    # the deadline is generous because test machines are shared; the tests of the deadline make graders of their own
    with MathGrader(workers=2, deadline=10.0) as grader:
        yield grader


@pytest.fixture
def grade(grader):
    """The reason of a boxed answer against a gold."""
    return lambda answer, gold: grader.grade(rf"So it is $\boxed{{{answer}}}$.", gold).reason
