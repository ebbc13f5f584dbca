"""Worker processes that run one function of text under a deadline, and can always be killed."""

from dgpo.grading.workers.batch import Outcome
from dgpo.grading.workers.pool import Pool
from dgpo.grading.workers.processes import PoolSettings

__all__ = ["Outcome", "Pool", "PoolSettings"]
