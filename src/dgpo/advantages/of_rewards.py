"""Advantages that are computed from rewards."""

from __future__ import annotations

from dgpo.advantages.advantage import Advantage
from dgpo.advantages.baselines import AsymmetricReinforce, Quantile
from dgpo.advantages.by_correctness import NegativeSamples, WeightedReinforce
from dgpo.advantages.entropy_shaped import EntropyShaped
from dgpo.advantages.gdpo import DecoupledRewards
from dgpo.advantages.group_relative import Centred, LeaveOneOut, Standardised
from dgpo.advantages.maxrl import MaxRL
from dgpo.advantages.pass_at_k import BestOfGroup, PassAtK
from dgpo.advantages.smooth import Smooth

OF_REWARDS: dict[str, type[Advantage]] = {
    "std": Standardised,
    "none": Centred,
    "leave_one_out": LeaveOneOut,
    "entropy_shaped": EntropyShaped,
    "smooth": Smooth,
    "maxrl": MaxRL,
    "gdpo": DecoupledRewards,
    "asymre": AsymmetricReinforce,
    "qae": Quantile,
    "pass_at_k": PassAtK,
    "grpo_passk": BestOfGroup,
    "nsr": NegativeSamples,
    "w_reinforce": WeightedReinforce,
}
