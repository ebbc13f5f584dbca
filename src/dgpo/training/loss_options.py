"""The options of the loss, which every configuration of a trainer has: objective, aggregation, correction, anchor."""

# ruff: noqa: RUF009 - the calls in class bodies return dataclass fields
import dataclasses
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dgpo import advantages, objectives
from dgpo import aggregation as aggregations
from dgpo import correction as corrections
from dgpo.registry import once, parse
from dgpo.spec import check_anchor
from dgpo.training import trl_options

DEFAULT_AGGREGATION = "token-mean"

_Options = TypeVar("_Options", bound="LossOptions")


def option(default: Any, text: str) -> Any:
    """A field with the text that `--help` and the class's documentation show."""
    return field(default=default, metadata={"help": text})


def documented(cls: type[_Options]) -> type[_Options]:
    """Add a dataclass's own fields and those of `LossOptions` to its documentation, with the texts of `--help`."""
    declared = {f.name: f for f in dataclasses.fields(cls)}
    names = dict.fromkeys((*LossOptions.__annotations__, *cls.__annotations__))
    own = [declared[name] for name in names if name in declared]
    kinds = {f.name: inspect.formatannotation(f.type).replace("typing.", "") for f in own}
    rows = [f"    {f.name} ({kinds[f.name]}, default {f.default!r}): {f.metadata['help']}" for f in own]
    cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__ or ""), "", "Args:", *rows])
    return cls


@dataclass
class LossOptions:
    """Fields that a trainer's configuration inherits, and the factors that they name."""

    objective: str = option(
        "dgpo",
        "Objective, the weight on the policy gradient: a name (`dgpo objectives` lists them) or the import path of "
        "your own, my_package.my_module:MyObjective; with fields if need be, dgpo:n=2,m=2.",
    )
    objective_kwargs: dict[str, Any] | str | None = option(
        None, 'Fields of the objective, as a mapping or JSON: \'{"n": 2, "m": 2}\'.'
    )
    aggregation: str | None = option(
        None,
        "How tokens are averaged over the optimiser step: 'token-mean', 'seq-mean-token-mean' or "
        "'seq-mean-token-sum-norm'. Default: that of preset or loss_type, else token-mean.",
    )
    aggregation_kwargs: dict[str, Any] | str | None = option(
        None, "Fields of the aggregation; length defaults to max_completion_length."
    )
    correction: dict[str, Any] | str | None = option(
        None,
        "Correction for a sampler that differs from the trainer: 'truncate', 'band', 'geometric', 'reject', 'veto', "
        "'kpop', or a mapping with 'name' and fields, such as name=truncate, level=sequence, cap=2. Needs the "
        "sampler's log-probs, from vLLM or a rollout_func that returns logprobs. Default: TRL's "
        "`vllm_importance_sampling_*` options.",
    )
    anchor: str = option(
        "old",
        "Policy that the ratio of the objective is taken against: 'old' is π_old, the trainer's policy when the update "
        "started; 'rollout' is the sampler, whose difference the ratio then holds, so that there is no correction. "
        "Needs the sampler's log-probs.",
    )

    def meaning_of(self, options: Mapping[str, Any]) -> trl_options.Meaning:
        """What TRL's options about the loss mean beside the fields here. Raises ValueError where they contradict."""
        return trl_options.meaning(
            options,
            objective=self.objective,
            fields=fields_of("objective_kwargs", self.objective_kwargs),
            aggregation=self.aggregation,
            aggregation_fields=fields_of("aggregation_kwargs", self.aggregation_kwargs),
        )

    def make_objective(self) -> objectives.Objective:
        """The objective of this config. Raises ValueError for an unknown name or field, or a value out of range."""
        return objectives.make(self.objective, **fields_of("objective_kwargs", self.objective_kwargs))

    def make_aggregation(self) -> aggregations.Aggregation:
        """The aggregation of this config. Raises ValueError for an unknown name or field."""
        assert self.aggregation is not None  # resolved at construction
        fields = fields_of("aggregation_kwargs", self.aggregation_kwargs)
        cls = aggregations.AGGREGATIONS.get(self.aggregation)
        # Dr. GRPO's constant: the longest possible completion
        if cls is not None and "length" in {f.name for f in dataclasses.fields(cls)}:
            fields.setdefault("length", getattr(self, "max_completion_length"))  # noqa: B009 - a field of TRL's class
        return aggregations.make(self.aggregation, **fields)

    def make_correction(self) -> corrections.Correction | None:
        """The correction of this config, or None where none is set.

        Raises:
            ValueError: an unknown name, field or anchor; a correction beside the anchor "rollout".
        """
        made = None if self.correction is None else corrections.make(self.correction)
        check_anchor(self.anchor, made)
        return made

    def check_no_sampler(self) -> None:
        """Raise ValueError if an option needs the sampler's log-probs: for a run whose sampler gives none."""
        for option in ("correction", "anchor"):
            value = getattr(self, option)
            if value not in (None, "old"):
                raise ValueError(
                    f"{option} = {value!r} needs the sampler's log-probs: set use_vllm = True, or pass a "
                    "rollout_func that returns 'logprobs'"
                )

    def name_instances(self) -> None:
        """Replace instances, and names with fields, by name and fields, so that the config serialises."""
        for option, registry in (
            ("objective", objectives.OBJECTIVES),
            ("aggregation", aggregations.AGGREGATIONS),
            ("correction", corrections.CORRECTIONS),
            ("advantage", advantages.ADVANTAGES),
        ):
            value = getattr(self, option, None)  # not every trainer has an advantage of ours
            # a correction has no `_kwargs` field: its mapping holds name and fields, which `corrections.make` reads
            if value is None or (option == "correction" and isinstance(value, str | dict)):
                continue
            if isinstance(value, str | dict):
                name, fields = parse(option, value)
                given = fields_of(f"{option}_kwargs", getattr(self, f"{option}_kwargs"))
                fields = once([*fields.items(), *given.items()], f"{option} {name!r}")
                name = advantages.canonical(name) if option == "advantage" else name
            else:
                name, fields = _name_of(option, value, registry), dataclasses.asdict(value)
                if option == "correction":
                    self.correction = {"name": name, **fields}
                    continue
                if getattr(self, f"{option}_kwargs"):
                    raise ValueError(f"{option} is an instance already: {option}_kwargs must not be set beside it")
            setattr(self, option, name)
            setattr(self, f"{option}_kwargs", fields or None)


def _name_of(option: str, value: object, registry: Mapping[str, type]) -> str:
    """The registered name of an instance; the import path of an objective from elsewhere."""
    if isinstance(value, objectives.Objective):
        return objectives.importable_name(type(value))
    for name, cls in registry.items():
        if cls is type(value):
            return name
    raise ValueError(
        f"{option} = {value!r} is of type {type(value).__name__}; expected a name, a mapping with a name, or an "
        f"instance of one of: {', '.join(registry)}"
    )


def fields_of(option: str, value: Any) -> dict[str, Any]:
    """A mapping of fields, from a mapping, JSON text, or None for no fields. Raises ValueError for anything else."""
    if value is None:
        return {}
    if isinstance(value, str) and value.strip().startswith("{"):
        try:
            value = json.loads(value, object_pairs_hook=lambda pairs: once(pairs, option))
        except json.JSONDecodeError as error:
            raise ValueError(f"{option} = {value!r} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{option} = {value!r} is not a mapping; expected a dict, or JSON text such as '{{\"n\": 2}}'")
    return dict(value)
