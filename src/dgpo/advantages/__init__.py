"""Advantages A: how good a response was within its group of responses to the same prompt."""

from dgpo.advantages.advantage import Advantage, History, Read
from dgpo.advantages.baselines import AsymmetricReinforce, Quantile
from dgpo.advantages.by_correctness import NegativeSamples, WeightedReinforce
from dgpo.advantages.distill import Distill
from dgpo.advantages.entropy_shaped import EntropyShaped, entropy_shaped
from dgpo.advantages.gdpo import DecoupledRewards
from dgpo.advantages.group_relative import SCALES, Centred, LeaveOneOut, Standardised, group_advantage
from dgpo.advantages.groups import degenerate_groups
from dgpo.advantages.maxrl import MaxRL
from dgpo.advantages.pass_at_k import BestOfGroup, PassAtK
from dgpo.advantages.registry import ADVANTAGES, ALIASES, canonical, make
from dgpo.advantages.smooth import Smooth, smooth_advantage
from dgpo.advantages.totals import REWARD_AGGREGATIONS, total_rewards

__all__ = [
    "ADVANTAGES",
    "ALIASES",
    "REWARD_AGGREGATIONS",
    "SCALES",
    "Advantage",
    "AsymmetricReinforce",
    "BestOfGroup",
    "Centred",
    "DecoupledRewards",
    "Distill",
    "EntropyShaped",
    "History",
    "LeaveOneOut",
    "MaxRL",
    "NegativeSamples",
    "PassAtK",
    "Quantile",
    "Read",
    "Smooth",
    "Standardised",
    "WeightedReinforce",
    "canonical",
    "degenerate_groups",
    "entropy_shaped",
    "group_advantage",
    "make",
    "smooth_advantage",
    "total_rewards",
]
