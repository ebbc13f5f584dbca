"""Hydra overrides that put an objective into a verl run. verl itself is not needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dgpo import objectives
from dgpo.engines.common import make_objective

PREFIX = "dgpo:"
"""Every objective is registered in verl as `dgpo:NAME`: `gspo` and some other names are losses of verl's own."""

PLUG_IN = "dgpo.engines.verl"

ACTOR_SETTINGS = ("clip_ratio", "clip_ratio_low", "clip_ratio_high", "clip_ratio_c", "tau_pos", "tau_neg")
"""Settings of `actor_rollout_ref.actor` that verl's own losses read and ours do not: they must keep verl's defaults."""


def overrides(
    objective: str, fields: Mapping[str, Any], *, reward: bool = True, record: str | None = None
) -> list[str]:
    """The arguments to add to `python -m verl.trainer.main_ppo ...`, one override each.

    Args:
        objective: a name of `dgpo.objectives.OBJECTIVES`, or the import path of an objective of your own.
        fields: fields of that objective; those not given keep their defaults.
        reward: also make `dgpo.engines.verl.compute_score` the reward function.
        record: a folder for the tokens of every micro-batch.

    The classes of the configuration are overridden (`_target_`) for three reasons: verl's own class refuses unknown
    fields; ours for the actor checks the settings beside the loss before anything starts; and every process that builds
    the configuration then imports the plug-in.

    Raises:
        ValueError: an unknown objective or field, a field out of range, or an objective that reads entropy (verl
            provides none).
    """
    made = make_objective("verl", objective, fields)
    objective = objectives.name_of(type(made))
    node = "actor_rollout_ref.actor.policy_loss"
    lines = [
        f"actor_rollout_ref.actor._target_={PLUG_IN}.actor_config",
        f"{node}._target_={PLUG_IN}.DGPOPolicyLossConfig",
        f"{node}.loss_mode={PREFIX}{objective}",
        f"+{node}.objective={objective}",
        # one override per field: a mapping in braces would be expanded by the shell
        *(f"+{node}.objective_kwargs.{name}={_literal(value)}" for name, value in fields.items()),
    ]
    if record is not None:
        lines.append(f"+{node}.record={record}")
    if reward:
        function = "reward.custom_reward_function"
        lines += [f"{function}.path=pkg://{PLUG_IN}", f"{function}.name=compute_score"]
    return lines


def must_stay() -> str:
    """A note for the user beside the overrides: the settings that raise an error if they are changed."""
    names = ", ".join(f"actor.{name}" for name in ACTOR_SETTINGS)
    return (
        f"leave {names} and the other fields of actor.policy_loss at verl's defaults, or remove them from your script: "
        "they belong to verl's own losses, and if they are changed the run stops before it starts. The clip range "
        "of an objective is set by its own fields (eps_low, eps_high, dual_clip, ...)"
    )


def _literal(value: Any) -> str:
    """A value in hydra's grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool | str):
        return json.dumps(value)
    return repr(value)
