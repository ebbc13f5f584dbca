"""The plug-in for verl: every objective as a policy loss, its configuration, and a reward function over our graders.

Importing this module registers the losses. verl does so in every process that imports it, through the entry point group
`verl.plugins`. Each method is registered as `dgpo:NAME`, and as NAME where verl has no loss of that name: verl's own
losses are never replaced. An objective of the user's own is registered as `dgpo:package.module:Class` when its
configuration is built, which verl does in the driver and in every worker.
"""

from __future__ import annotations

from dgpo.installation import require

# before importing its modules: another version may lack a name, or call our losses with other arguments
require("the plug-in for verl needs", "verl", "verl")
from dgpo.engines.verl_config import DGPOPolicyLossConfig, actor_config
from dgpo.engines.verl_loss import LOSS_MODES, coefficients, loss_of
from dgpo.engines.verl_reward import compute_score

__all__ = ["LOSS_MODES", "DGPOPolicyLossConfig", "actor_config", "coefficients", "compute_score", "loss_of"]
