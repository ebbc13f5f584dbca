"""The grid of the atlas, in the order in which it runs; README.md says why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

METHODS: dict[str, str] = {
    "is": "is",
    "grpo": "grpo",
    "dapo": "grpo:eps_high=0.28",
    "cispo": "cispo",
    "cispo_two_sided": "cispo_two_sided",
    "gppo": "gppo",
    "ce_gppo": "ce_gppo",
    "aspo": "aspo",
    "sapo": "sapo",
    "dac": "dac",
    "bapo": "bapo",
    "dppo_tv": "dppo_tv",
    "maspo": "maspo",
    "dgpo(1,2)": "dgpo:n=1,m=2",
    "dgpo(2,2)": "dgpo:n=2,m=2",
    "dgpo(1,inf)": "dgpo:n=1,m=inf",
    "dgpo(0,2)": "dgpo:n=0,m=2",
}
"""Label -> objective, as `dgpo.objectives.make` reads it; defaults of the classes where no field stands."""
ABLATION: dict[str, str] = {
    **{f"dgpo({n},{m})": f"dgpo:n={n},m={m}" for n in (1, 2, 3) for m in (1, 2, 3) if (n, m) not in ((1, 2), (2, 2))},
    "dgpo(1,2) capped": "dgpo:n=1,m=2,reverse_cap=3,right_cap=3",
    "dgpo(2,2) capped": "dgpo:n=2,m=2,reverse_cap=3,right_cap=3",
}
"""The other exponents, and the recommended two with caps; at k = 16 only."""
OBJECTIVES = METHODS | ABLATION

HARD = ("grpo", "dapo", "aspo", "dac", "bapo", "dppo_tv")
"""Methods that stop a token's gradient at a boundary."""
SOFT = ("cispo", "cispo_two_sided", "gppo", "ce_gppo", "sapo", "maspo", "dgpo(1,2)", "dgpo(2,2)")
"""Methods that keep some of it beyond the boundary."""
DIVERGING = ("cispo_two_sided", "gppo", "ce_gppo")
"""Methods whose weight on ∇π has no bound as π -> 0 at A < 0."""

TASKS = ("reverse", "addition", "rare")
STALENESS = (16, 64, 4)
"""Updates per generation beyond 1, in the order in which they run."""
RATES = {
    "reverse": (3e-4, 1e-3, 3e-3, 1e-2),
    "addition": (1e-4, 3e-4, 1e-3, 3e-3),
    "rare": (1e-4, 3e-4, 1e-3, 3e-3),
}
"""Learning rates by task, the same for every method and staleness."""
TUNING_SEEDS = (100, 101, 102, 103)
FINAL_SEEDS = tuple(range(16))


@dataclass(frozen=True)
class Arm:
    """One method at one staleness on one task."""

    task: str
    k: int
    method: str

    @property
    def name(self) -> str:
        """A file name."""
        method = self.method.replace("(", "_").replace(",", "_").replace(")", "").replace(" ", "_")
        return f"{method}-k{self.k}"


def arms() -> Iterator[Arm]:
    """Every arm, in order.

    With one update per generation every ratio is 1, and every method of the grid has weight 1 there: the arm `is`
    stands for all of them.
    """
    for task in TASKS:
        yield Arm(task, 1, "is")
        for k in STALENESS[:2]:
            for method in METHODS:
                yield Arm(task, k, method)
    for task in TASKS:
        for method in METHODS:
            yield Arm(task, STALENESS[2], method)
    for task in TASKS:
        for method in ABLATION:
            yield Arm(task, 16, method)
