"""Rewards: verifiers of answers. Standard library only."""

from dgpo.rewards.exact import answer_of, answer_reward, exact_match

__all__ = ["answer_of", "answer_reward", "exact_match"]
