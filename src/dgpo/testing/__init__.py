"""Check an objective of your own against the contract: `check_objective(MyObjective())`.

Needs torch and nothing else. With pytest, one test per property::

    @pytest.mark.parametrize("check", dgpo.testing.CHECKS.values(), ids=dgpo.testing.CHECKS)
    def test_my_objective(check):
        check(MyObjective(cap=3.0))
"""

from __future__ import annotations

from collections.abc import Callable

from dgpo.objectives import Objective
from dgpo.testing import claims, contract, potentials
from dgpo.testing.batches import Batch, random_batch

Check = Callable[[Objective], None]

CHECKS: dict[str, Check] = {
    name.removeprefix("check_"): check
    for module in (contract, claims, potentials)
    for name, check in vars(module).items()
    if name.startswith("check_")
}
"""Name -> check. Each raises an AssertionError that names the objective, the property, the setting and the numbers."""

__all__ = ["CHECKS", "Batch", "Check", "check_objective", "random_batch"]


def check_objective(objective: Objective) -> None:
    """Run every check of `CHECKS`, the same that this library's own methods have to pass.

    The result may depend on the fields: check the settings that you use. What a class does not declare
    in `properties()` is not checked; what it declares has to be exact: `continuous=False` requires a jump.

    Args:
        objective: an instance.

    Raises:
        AssertionError: for the first property that is violated, with the numbers.
        TypeError: if `objective` is not an instance of `Objective`.
        Exception: whatever the objective itself raises, such as the ValueError for a weight that is not [B, T].
    """
    if not isinstance(objective, Objective):
        kind = "the class itself" if isinstance(objective, type) else f"of type {type(objective).__name__}"
        raise TypeError(f"objective is {kind}; expected an instance of a class that inherits from Objective")
    for check in CHECKS.values():
        check(objective)
