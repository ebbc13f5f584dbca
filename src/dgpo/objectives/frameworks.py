"""What a method declares about other frameworks: the settings there that give its gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FRAMEWORKS: dict[str, str] = {"trl": "TRL 1.16", "verl": "verl 0.9", "skyrl": "SkyRL 0.3", "liger": "Liger 0.8"}
"""Key -> the version that the records describe."""

NO_LIMIT = 1e9
"""For an option that cannot be switched off: no ratio within the clamp of ±20 nats reaches it."""

SKYRL_SUM = "SkyRL scales the advantages beforehand and sums"
"""A note shared by several methods."""


@dataclass(frozen=True, kw_only=True)
class Of:
    """The value of one of our fields, as a framework's option expects it.

    Attributes:
        field: name of the field.
        plus: offset added to the value: `Of(field="cap", plus=-1)` turns an absolute ceiling into an offset.
        none: the value of the option where the field is None.
    """

    field: str
    plus: float = 0.0
    none: float | None = None

    def value(self, objective: object) -> Any:
        """The option's value for this objective."""
        value = getattr(objective, self.field)
        if value is None:
            return self.none
        return value + self.plus if self.plus else value

    def __str__(self) -> str:
        text = self.field if not self.plus else f"{self.field} {'+' if self.plus > 0 else '-'} {abs(self.plus):g}"
        return text if self.none is None else f"{text} ({self.none:.12g} for None)"


LOW, HIGH = Of(field="eps_low"), Of(field="eps_high")
"""The clip range."""


@dataclass(frozen=True, kw_only=True)
class Conformance:
    """One method in one framework. The setting gives the weight w, `aggregation` the average.

    Attributes:
        setting: option -> value, an `Of` where it follows one of our fields; None where no setting gives the gradient.
        aggregation: our aggregation whose coefficients the setting goes with.
        averages: other names of TRL's `loss_type` for the same weight -> the aggregation of each, written as
            `dgpo.registry.parse` reads it; None for an average over a micro-batch, which no aggregation takes.
        only: our fields that must have this value for the setting to apply.
        note: differences in meaning, or the nearest setting; may be empty.
    """

    setting: Mapping[str, Of | str | float] | None = None
    aggregation: str | None = None
    averages: Mapping[str, str | None] | None = None
    only: Mapping[str, Any] | None = None
    note: str = ""

    def options(self, objective: object) -> dict[str, Any]:
        """The framework's options for this objective.

        Raises:
            ValueError: no setting gives its gradient.
        """
        for field, required in (self.only or {}).items():
            if getattr(objective, field) != required:
                raise ValueError(f"{field} = {getattr(objective, field)!r} has no setting there; expected {required!r}")
        if self.setting is None:
            raise ValueError(f"not available{': ' + self.note if self.note else ''}")
        return {
            name: value.value(objective) if isinstance(value, Of) else value for name, value in self.setting.items()
        }
