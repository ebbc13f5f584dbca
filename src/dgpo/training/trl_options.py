"""TRL's options about the loss, in our terms: what agrees with the objective is taken over, the rest is translated.

TRL's `loss_type` joins a weight and an average; `importance_sampling_level`, `epsilon`, `delta` and temperatures tune
whichever weight that is. Here the weight is the objective with its fields, and the average the aggregation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from trl import GRPOConfig

from dgpo import aggregation, objectives
from dgpo import correction as corrections
from dgpo.diagnostics.naming import label
from dgpo.objectives.frameworks import Conformance, Of
from dgpo.registry import did_you_mean, parse

LEVEL = "importance_sampling_level"

_BOUNDS = {"epsilon": "eps_low", "epsilon_high": "eps_high"}

Average = tuple[str, Mapping[str, Any]]
"""An aggregation and its fields."""


def _losses() -> tuple[dict[str, tuple[str, ...]], dict[str, Average | None], dict[str, None]]:
    """`WEIGHTS`, `AVERAGES` and `PARAMETERS`, from the rows of TRL that the methods declare."""
    weights: dict[str, tuple[str, ...]] = {}
    averages: dict[str, Average | None] = {}
    parameters: dict[str, None] = {}
    for name, cls in objectives.OBJECTIVES.items():
        row = cls.elsewhere.get("trl", Conformance())
        setting = dict(row.setting or {})
        own = setting.pop("loss_type", None)
        setting.pop(LEVEL, None)
        # a row with a constant is one point of another method's loss; one without a loss type is another trainer's
        if own is None or not all(isinstance(value, Of) for value in setting.values()):
            continue
        parameters |= dict.fromkeys(setting)
        for loss_type, average in {str(own): row.aggregation, **(row.averages or {})}.items():
            weights[loss_type] = (*weights.get(loss_type, ()), name)
            averages[loss_type] = None if average is None else parse("aggregation", average)
    return weights, averages, parameters


_WEIGHTS, _AVERAGES, _PARAMETERS = _losses()

WEIGHTS: Mapping[str, tuple[str, ...]] = _WEIGHTS
"""`loss_type` -> the objectives whose weight it can mean; the level decides between two."""

AVERAGES: Mapping[str, Average | None] = _AVERAGES
"""`loss_type` -> aggregation and its fields; None where it averages over a micro-batch, which no aggregation does."""

PARAMETERS = tuple(_PARAMETERS)
OPTIONS = ("loss_type", LEVEL, *PARAMETERS)
"""All of them; in `DGPOConfig` each is None unless it is set."""


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What the options come to, beside what was said in our terms.

    Attributes:
        fields: of the objective.
        aggregation: its name; None where neither side sets it.
        aggregation_fields: its fields.
    """

    fields: dict[str, Any]
    aggregation: str | None
    aggregation_fields: dict[str, Any]


def meaning(
    options: Mapping[str, Any],
    *,
    objective: str,
    fields: Mapping[str, Any],
    aggregation: str | None,
    aggregation_fields: Mapping[str, Any],
) -> Meaning:
    """The options that are set, taken over into the objective's fields and the aggregation.

    Args:
        options: of `OPTIONS`, those that are not None.
        objective: a name of the registry.
        fields: its fields, as set.
        aggregation: a name, or None where it is not set.
        aggregation_fields: its fields, as set.

    Raises:
        ValueError: an option that contradicts the objective or the aggregation, with what to write instead;
            two settings of one quantity that differ.
    """
    name, given = _average(options, objective, fields, aggregation, dict(aggregation_fields))
    if LEVEL in options:
        _check_level(options, objective, fields)
    _check_parameters(options, objective, fields)
    found = dict(fields)
    for field, option in _setters(options, objective).items():
        value = options[option]
        if found.setdefault(field, value) != value:
            # either field is set by epsilon_high, or by epsilon in its absence
            shown = "epsilon_high (or epsilon)" if field in ("eps_high", "cap") else option
            raise ValueError(
                f"{shown} = {value} and objective_kwargs[{field!r}] = {found[field]} set the same quantity to "
                "different values; set one of them"
            )
    if "delta" in options and (lowest := _lowest_delta(objective, found)) > options["delta"]:
        raise ValueError(
            f"delta = {options['delta']} has no meaning here: below 1 + epsilon_high = {lowest:g} TRL lowers the bound "
            "of positive advantages with it, which no objective here does. "
            + _instead_of_delta(objective, options["delta"])
        )
    return Meaning(fields=found, aggregation=name, aggregation_fields=given)


def average(loss_type: str | None) -> str | None:
    """The aggregation that a `loss_type` names or goes with; None where there is none."""
    if loss_type in aggregation.AGGREGATIONS:
        return loss_type
    known = AVERAGES.get(loss_type or "")
    return None if known is None else known[0]


SCALES: Mapping[Any, str] = {"group": "std", True: "std", "none": "none", False: "none"}
"""`scale_rewards` -> the advantage that divides as it does; TRL adds 1e-4 to the standard deviation, ours 1e-6."""

REWARD_NORMALISERS: Mapping[str, str] = {"normalize_then_sum": "gdpo"}
"""`multi_objective_aggregation` -> the advantage that is the same."""


def sampler_correction(mode: str, low: float | None, high: float | None) -> tuple[str, corrections.Correction] | None:
    """Name and correction that TRL's `vllm_importance_sampling_mode` and its two bounds mean; None if there is none."""
    level: Literal["token", "sequence"] = "sequence" if mode.startswith("sequence") else "token"
    if mode.endswith("mask"):
        band = corrections.Band(level=level, band_low=low or 0.0, band_high=math.inf if high is None else high)
        return "band", band
    return None if low is not None or high is None else ("truncate", corrections.Truncate(level=level, cap=high))


def weighs_by_length(name: str, chosen: str, loss_type: str | None) -> bool:
    """Whether a method of one ratio per response, whose paper averages over responses, is averaged over tokens.

    Not with a `loss_type` that means this method alone: TRL has that average for it on purpose.
    """
    objective = objectives.find(name)
    papers = objective.elsewhere.get("trl", Conformance()).aggregation
    by_response = objective.level == "sequence" and papers == "seq-mean-token-mean"
    return by_response and chosen != papers and WEIGHTS.get(loss_type or "") != (name,)


def _average(
    options: Mapping[str, Any],
    objective: str,
    objective_fields: Mapping[str, Any],
    chosen: str | None,
    fields: dict[str, Any],
) -> tuple[str | None, dict[str, Any]]:
    """Name and fields of the aggregation, after a look at `loss_type`."""
    loss_type = options.get("loss_type")
    if loss_type is None:
        return chosen, fields
    if loss_type in aggregation.AGGREGATIONS:
        found: Average | None = (loss_type, {})
    elif loss_type not in WEIGHTS:
        raise ValueError(
            f"unknown loss_type {loss_type!r}{did_you_mean(loss_type, WEIGHTS)}; TRL's are {', '.join(WEIGHTS)}, and "
            f"here it may name an aggregation: {', '.join(aggregation.AGGREGATIONS)}"
        )
    elif objective not in WEIGHTS[loss_type]:
        _refuse("loss_type", options, objective, objective_fields)
    else:
        found = AVERAGES[loss_type]
    if found is None:
        raise ValueError(
            f"loss_type = {loss_type!r} has no meaning here: it averages over a micro-batch, so that it changes with "
            f"per_device_train_batch_size. Nearest: objective={objective!r}, aggregation='token-mean'"
        )
    name, own = found
    if chosen not in (None, name):
        raise ValueError(
            f"loss_type = {loss_type!r} has no meaning here with aggregation = {chosen!r}: it is the average "
            f"aggregation={name!r}; set one of them"
        )
    for field, value in own.items():
        if fields.setdefault(field, value) != value:
            raise ValueError(
                f"loss_type = {loss_type!r} has {field} = {value}, but aggregation_kwargs[{field!r}] = "
                f"{fields[field]}; set one of them"
            )
    return name, fields


def _check_level(options: Mapping[str, Any], objective: str, fields: Mapping[str, Any]) -> None:
    level = options["importance_sampling_level"]
    if level not in ("token", "sequence"):
        raise ValueError(f"importance_sampling_level = {level!r} is not allowed; expected 'token' or 'sequence'")
    if level not in _levels_of(objective):
        _refuse("importance_sampling_level", options, objective, fields)


def _check_parameters(options: Mapping[str, Any], objective: str, fields: Mapping[str, Any]) -> None:
    known = _parameters_of(objective)
    for option in options:
        if option in PARAMETERS and option not in known:
            _refuse(option, options, objective, fields)
    high = known.get("epsilon_high")
    own = _setting_of(objective).get("loss_type")
    if "epsilon_high" in options and high != "eps_high" and options.get("loss_type") != own:
        raise ValueError(
            f"epsilon_high = {options['epsilon_high']} has no meaning here with objective = {objective!r}: elsewhere "
            f"it is an offset from 1, in TRL's loss of that name the {high} itself. Write "
            f"objective='{objective}:{high}={options['epsilon_high']}' for the {high}"
        )


def _setters(options: Mapping[str, Any], objective: str) -> dict[str, str]:
    """The objective's field -> the option that sets it; `epsilon` sets both bounds unless there is `epsilon_high`."""
    known = _parameters_of(objective)
    found = {known[option]: option for option in options if option in known}
    if "epsilon" in options and "epsilon_high" in known:
        # `epsilon` alone sets both bounds, so it does not override epsilon_high
        found.setdefault(known["epsilon_high"], "epsilon")
    return found


def _fields_of(objective: str) -> list[str]:
    return [field.name for field in dataclasses.fields(objectives.find(objective))]


def _setting_of(objective: str) -> Mapping[str, Any]:
    """Of TRL's GRPOTrainer, as the method declares it; empty where it has no such loss, or another trainer has it."""
    setting = objectives.find(objective).elsewhere.get("trl", Conformance()).setting
    return setting if setting and "loss_type" in setting else {}


def _levels_of(objective: str) -> set[str]:
    """What `importance_sampling_level` may say beside this objective: its own level, and what TRL goes with it."""
    setting = _setting_of(objective)
    return {objectives.find(objective).level, *([str(setting.get(LEVEL, "token"))] if setting else [])}


def _parameters_of(objective: str) -> dict[str, str]:
    """option -> field, as the method declares it; the clip range also for methods that TRL does not have."""
    fields = _fields_of(objective)
    known = {option: field for option, field in _BOUNDS.items() if field in fields}
    return known | {option: of.field for option, of in _setting_of(objective).items() if isinstance(of, Of)}


def _lowest_delta(objective: str, fields: Mapping[str, Any]) -> float:
    """1 + epsilon_high: a lower delta also bounds positive advantages in TRL."""
    return 1 + float(objectives.make(objective, **fields).eps_high)  # type: ignore[attr-defined]


def _instead_of_delta(objective: str, delta: Any) -> str:
    # some methods have no ceiling below 1 + eps_high either
    if not _takes(objective, "dual_clip", delta):
        return "Raise it, or remove it"
    return f"Write objective='{objective}:dual_clip={delta}' for a ceiling of negative advantages alone"


def _takes(objective: str, field: str, value: Any) -> bool:
    """Whether an objective may have this field at this value, with its others at their defaults."""
    try:
        objectives.make(objective, **{field: value})
    except ValueError:
        return False
    return True


def _refuse(option: str, options: Mapping[str, Any], objective: str, fields: Mapping[str, Any]) -> NoReturn:
    """Raise the error for an option that does not fit the objective, with the translation of what was set."""
    there = _translated(options)
    place = f", in place of {_listed(options)}" if len(options) > 1 else ""
    if there.lost:
        advice = f"no objective here has {there.lost}; nearest: {there.text}{place}"
    elif there.name == objective:
        advice = f"remove it: {objective!r} has no field for it"
    else:
        advice = f"write {there.text} for what TRL calls this{place}"
    if there.name != objective:
        other = AVERAGES.get(options["loss_type"]) if option == "loss_type" else None
        if other is not None:
            own = _with_its_fields(options, objective, fields)
            text = _written(other) + " alone" if own == objective else f"objective={own!r}, {_written(other)}"
            advice += f", or {text} to keep objective={objective!r}"
        elif (field := _parameters_of(there.name).get(option)) in _fields_of(objective) and _takes(
            objective, field, options[option]
        ):
            advice += f", or objective='{objective}:{field}={options[option]}' for the field of {objective!r}"
        else:
            advice += f", or remove {_listed(_foreign(options, objective))} to keep objective={objective!r}"
    names = ", ".join(_fields_of(objective)) or "none"
    bound = _BOUNDS.get(option)
    lacks = f"objective {objective!r} has no {bound!r} (its fields: {names}); " if bound else ""
    raise ValueError(
        f"{option} = {options[option]!r} has no meaning here with objective = {objective!r}: {lacks}{advice}"
    )


def _foreign(options: Mapping[str, Any], objective: str) -> list[str]:
    """The options that do not fit the objective."""
    known, level = _parameters_of(objective), options.get(LEVEL)
    own = _setting_of(objective).get("loss_type")
    found = [name for name in options if name in PARAMETERS and name not in known]
    if "delta" in options and "delta" in known:
        of_options = {field: options[option] for field, option in _setters(options, objective).items()}
        found += ["delta"] if options["delta"] < _lowest_delta(objective, of_options) else []
    if level is not None and level not in _levels_of(objective):
        found.append(LEVEL)
    if objective not in WEIGHTS.get(options.get("loss_type", ""), (objective,)):
        found.append("loss_type")
    if "epsilon_high" in options and known.get("epsilon_high") == "cap" and options.get("loss_type") != own:
        found.append("epsilon_high")
    return found


def _listed(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _with_its_fields(options: Mapping[str, Any], objective: str, fields: Mapping[str, Any]) -> str:
    """The objective as text, with the fields that are set, by the options too."""
    found = {field: options[option] for field, option in _setters(options, objective).items() if field != "cap"}
    return label(objectives.make(objective, **found | dict(fields)))


@dataclass(frozen=True, kw_only=True)
class _Translation:
    """Attributes: the objective, how it and its average are written, and what TRL has there that it has not."""

    name: str
    text: str
    lost: str


def _translated(options: Mapping[str, Any]) -> _Translation:
    """What TRL means by the options, or the nearest to it. Options that TRL does not read there are left out."""
    loss_type, level = str(options.get("loss_type")), options.get(LEVEL)
    lost = []
    tuned = [(kind,) for kind in WEIGHTS if any(option.startswith(f"{kind}_") for option in options)]
    # without a loss_type, parameters such as vespo_k_pos tell which of TRL's losses is meant; else its default
    candidates = WEIGHTS.get(loss_type) or [*tuned, WEIGHTS[GRPOConfig.loss_type]][0]
    # a loss type with two weights needs the level (token unless set); one with a single weight implies it
    wanted = level if len(candidates) > 1 else level or objectives.find(candidates[0]).level
    fitting = [name for name in candidates if (wanted or "token") in _levels_of(name)]
    name = (fitting or candidates)[0]
    if not fitting:
        loss = loss_type if loss_type in WEIGHTS else name
        lost.append(f"TRL's {loss!r} with importance_sampling_level={level!r}")
    fields = {field: options[option] for field, option in _setters(options, name).items()}
    by_response = objectives.find(name).level == "sequence"
    # elsewhere epsilon is an offset such as 0.2 from 1; in TRL's cispo it is the cap of the ratio itself
    if fields.get("cap", 1) < 1:
        lost.append(f"a cap below 1 (TRL takes {fields.pop('cap')} from epsilon_high or epsilon)")
    delta = options.get("delta")
    if delta is not None and by_response:
        lost.append("delta at the level of the sequence")
    elif delta is not None and "dual_clip" in fields and delta < _lowest_delta(name, fields):
        lost.append("a delta below 1 + epsilon_high, with which TRL lowers the bound of positive advantages")
        del fields["dual_clip"]
    text = f"objective={label(objectives.make(name, **fields))!r}"
    goes_with = AVERAGES[loss_type] if loss_type in WEIGHTS else None
    # without a loss_type: the average of the papers with one ratio per response
    if level == "sequence" and by_response and goes_with is None:
        goes_with = ("seq-mean-token-mean", {})
    if loss_type in WEIGHTS and AVERAGES[loss_type] is None:
        lost.append(f"an average over a micro-batch (loss_type={loss_type!r})")
        goes_with = ("token-mean", {})
    if goes_with is not None:
        text += f", {_written(goes_with)}"
    return _Translation(name=name, text=text, lost=", or ".join(lost))


def _written(average: Average) -> str:
    name, fields = average
    return f"aggregation={':'.join([name, *(f'{field}={value}' for field, value in fields.items())])!r}"
