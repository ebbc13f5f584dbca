"""Which setting of another framework gives the gradient of a method here: data, one record per method and framework.

The settings concern the weight w. What a framework averages over, and which other terms it adds, is said apart.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dgpo.objectives.objective import Objective

FRAMEWORKS: dict[str, str] = {"trl": "TRL 1.16", "verl": "verl 0.9", "skyrl": "SkyRL 0.3", "liger": "Liger 0.8"}
"""Key -> the version that the records describe."""

NO_LIMIT = 1e9
"""For an option that cannot be switched off: no ratio within the clamp of ±20 nats reaches it."""


@dataclass(frozen=True, kw_only=True)
class Of:
    """The value of one of our fields, as a framework's option wants it.

    Attributes:
        field: name of the field.
        plus: what is added: `Of(field="cap", plus=-1)` turns an absolute ceiling into an offset.
        none: what stands for None.
    """

    field: str
    plus: float = 0.0
    none: float | None = None

    def value(self, objective: Objective) -> Any:
        """The option's value for this objective."""
        value = getattr(objective, self.field)
        if value is None:
            return self.none
        return value + self.plus if self.plus else value

    def __str__(self) -> str:
        text = self.field if not self.plus else f"{self.field} {'+' if self.plus > 0 else '-'} {abs(self.plus):g}"
        return text if self.none is None else f"{text} ({self.none:.12g} for None)"


CHECKED = {
    "trl": "in every test run",
    "verl": "by `make test-verl`, 0.9.1",
    "skyrl": "by `make test-verl`, 0.3.0",
    "liger": "run with Liger 0.8.5",
}
"""How the gradients of a framework's rows are compared with the framework itself. verl, SkyRL and Liger do not share an
environment with TRL's newest release; Liger's were run once, by hand."""


@dataclass(frozen=True, kw_only=True)
class Conformance:
    """One method in one framework.

    Attributes:
        setting: option -> value, an `Of` where it follows one of our fields; None where no setting gives the gradient.
        aggregation: our aggregation whose coefficients the setting goes with.
        only: our fields that must have this value for the setting to hold.
        note: where a name means something else there, or what comes near; may be empty.
    """

    setting: Mapping[str, Of | str | float] | None = None
    aggregation: str | None = None
    only: Mapping[str, Any] | None = None
    note: str = ""

    def options(self, objective: Objective) -> dict[str, Any]:
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


_LOW, _HIGH = Of(field="eps_low"), Of(field="eps_high")
_CEILING = Of(field="dual_clip", none=NO_LIMIT)
_NONE = Conformance()

_BAPO = Conformance(
    note="no search for bounds; once calibrated, its weight is that of `grpo` with lower bound c_low and upper c_high"
)
_BETA = Conformance(note="at beta1 = beta2 = 0 it is `grpo`")
_CORNER = Conformance(note="its corner DGPO(n=0, m=1, eps_high=c-1, reverse_cap=c) is `cispo` with cap=c")
_UPPER = Conformance(
    note="`cispo` there has no lower bound: from eps_low = 1 on this is `cispo` with cap = 1 + eps_high"
)
_GATE = Conformance(note="`sapo` there gates on both sides")

_SKYRL_SUM = "SkyRL scales the advantages beforehand and sums"

CONFORMANCE: dict[str, dict[str, Conformance]] = {
    "dgpo": dict.fromkeys(FRAMEWORKS, _CORNER),
    "maspo": dict.fromkeys(FRAMEWORKS, _NONE),
    "grpo": {
        "trl": Conformance(
            setting={"loss_type": "dapo", "epsilon": _LOW, "epsilon_high": _HIGH, "delta": Of(field="dual_clip")},
            aggregation="token-mean",
            note="`delta` clamps the ratio for both signs of A: below 1 + eps_high it also lowers the bound for A > 0. "
            "`grpo`, `bnpo`, `dr_grpo` have the same weight and another average",
        ),
        "verl": Conformance(
            setting={
                "policy_loss.loss_mode": "vanilla",
                "clip_ratio_low": _LOW,
                "clip_ratio_high": _HIGH,
                "clip_ratio_c": _CEILING,
            },
            aggregation="token-mean",
            note="the dual clip is always on, at 3 unless set. `clip_ratio` counts only where the other two are unset. "
            "Beyond ±20 nats its clamp drops the gradient",
        ),
        "skyrl": Conformance(
            setting={
                "policy_loss_type": "dual_clip",
                "eps_clip_low": _LOW,
                "eps_clip_high": _HIGH,
                "clip_ratio_c": _CEILING,
            },
            aggregation="token-mean",
            note="`regular` is the plain clip, without `clip_ratio_c`. " + _SKYRL_SUM,
        ),
        "liger": Conformance(
            setting={"loss_type": "dapo", "epsilon_low": _LOW, "epsilon_high": _HIGH, "delta": Of(field="dual_clip")},
            aggregation="token-mean",
            note="`delta` as in TRL; releases without it have no dual clip",
        ),
    },
    "is": {
        "trl": Conformance(setting={"loss_type": "cispo", "epsilon_high": NO_LIMIT}, aggregation="token-mean"),
        "verl": Conformance(
            setting={"policy_loss.loss_mode": "cispo", "clip_ratio_low": 1.0, "clip_ratio_high": NO_LIMIT},
            aggregation="token-mean",
        ),
        "skyrl": Conformance(
            setting={"policy_loss_type": "importance_sampling"},
            aggregation="token-mean",
            note="no clamp of the log ratio. " + _SKYRL_SUM,
        ),
        "liger": Conformance(setting={"loss_type": "cispo", "epsilon_high": NO_LIMIT}, aggregation="token-mean"),
    },
    "cispo": {
        "trl": Conformance(
            setting={"loss_type": "cispo", "epsilon_high": Of(field="cap")},
            aggregation="token-mean",
            note="`epsilon_high` is here the absolute cap, not an offset: left unset it is `epsilon` = 0.2, and every "
            "weight is at most 0.2",
        ),
        "verl": Conformance(
            setting={
                "policy_loss.loss_mode": "cispo",
                "clip_ratio_low": 1.0,
                "clip_ratio_high": Of(field="cap", plus=-1),
            },
            aggregation="token-mean",
            note="verl's `cispo` is two-sided; `clip_ratio_low` from 1 on takes the lower bound away. Both are offsets",
        ),
        "skyrl": Conformance(
            setting={
                "policy_loss_type": "cispo",
                "cispo.cispo_eps_clip_low": 1.0,
                "cispo.cispo_eps_clip_high": Of(field="cap", plus=-1),
            },
            aggregation="token-mean",
            note="both are offsets, and it is two-sided: older defaults, 0 and 5, clip to 1 … 6, newer ones, 1 and 4, "
            "to 0 … 5. " + _SKYRL_SUM,
        ),
        "liger": Conformance(
            setting={"loss_type": "cispo", "epsilon_high": Of(field="cap")},
            aggregation="token-mean",
            note="`epsilon_high` is the absolute cap, as in TRL",
        ),
    },
    "cispo_two_sided": {
        "trl": _UPPER,
        "verl": Conformance(
            setting={"policy_loss.loss_mode": "cispo", "clip_ratio_low": _LOW, "clip_ratio_high": _HIGH},
            aggregation="token-mean",
        ),
        "skyrl": Conformance(
            setting={"policy_loss_type": "cispo", "cispo.cispo_eps_clip_low": _LOW, "cispo.cispo_eps_clip_high": _HIGH},
            aggregation="token-mean",
            note=_SKYRL_SUM,
        ),
        "liger": _UPPER,
    },
    "gppo": dict.fromkeys(FRAMEWORKS, _NONE),
    "ce_gppo": dict.fromkeys(FRAMEWORKS, _BETA),
    "aspo": dict.fromkeys(FRAMEWORKS, _NONE),
    "sapo": {
        "trl": Conformance(
            setting={
                "loss_type": "sapo",
                "sapo_temperature_pos": Of(field="tau_pos"),
                "sapo_temperature_neg": Of(field="tau_neg"),
            },
            aggregation="seq-mean-token-mean",
        ),
        "verl": Conformance(
            setting={
                "policy_loss.loss_mode": "sapo",
                "tau_pos": Of(field="tau_pos"),
                "tau_neg": Of(field="tau_neg"),
            },
            aggregation="seq-mean-token-mean",
            note="verl forces seq-mean-token-mean, whatever `loss_agg_mode` says, and reads the actor's temperatures, "
            "not those of `policy_loss`",
        ),
        "skyrl": Conformance(
            setting={
                "policy_loss_type": "sapo",
                "sapo.tau_pos": Of(field="tau_pos"),
                "sapo.tau_neg": Of(field="tau_neg"),
                "loss_reduction": "sequence_mean",
            },
            aggregation="seq-mean-token-mean",
            note="another `loss_reduction` gives a warning",
        ),
        "liger": Conformance(
            setting={
                "loss_type": "sapo",
                "sapo_temperature_pos": Of(field="tau_pos"),
                "sapo_temperature_neg": Of(field="tau_neg"),
            },
            aggregation="seq-mean-token-mean",
        ),
    },
    "sapo_unilateral": dict.fromkeys(FRAMEWORKS, _GATE),
    "dac": dict.fromkeys(FRAMEWORKS, _NONE),
    "bapo": dict.fromkeys(FRAMEWORKS, _BAPO),
    "bapo_algorithm1": dict.fromkeys(FRAMEWORKS, _BAPO),
    "gspo": {
        "trl": Conformance(
            setting={
                "loss_type": "grpo",
                "importance_sampling_level": "sequence",
                "epsilon": _LOW,
                "epsilon_high": _HIGH,
            },
            aggregation="seq-mean-token-mean",
            note="there is no loss type of this name; the default `epsilon` of 0.2 is hundreds of times the paper's",
        ),
        "verl": Conformance(
            setting={"policy_loss.loss_mode": "gspo", "clip_ratio_low": _LOW, "clip_ratio_high": _HIGH},
            aggregation="seq-mean-token-mean",
            note="0.9.1 averages as `loss_agg_mode` says (token-mean unless set), 0.10.0.dev by seq-mean-token-mean. "
            "log s is clamped to at most 10",
        ),
        "skyrl": Conformance(
            setting={
                "policy_loss_type": "gspo",
                "eps_clip_low": _LOW,
                "eps_clip_high": _HIGH,
                "loss_reduction": "sequence_mean",
            },
            aggregation="seq-mean-token-mean",
            note="another `loss_reduction` gives a warning; log s is clamped to at most 10",
        ),
        "liger": Conformance(
            setting={
                "loss_type": "grpo",
                "importance_sampling_level": "sequence",
                "epsilon_low": _LOW,
                "epsilon_high": _HIGH,
            },
            aggregation="seq-mean-token-mean",
        ),
    },
    "gmpo": {
        "trl": Conformance(
            setting={"epsilon": Of(field="log_clip_low"), "epsilon_high": Of(field="log_clip_high")},
            aggregation="seq-mean-token-mean",
            note="a trainer of its own, `trl.experimental.gmpo.GMPOTrainer`; both options are in log space there",
        ),
        "verl": Conformance(
            setting={
                "policy_loss.loss_mode": "geo_mean",
                "clip_ratio_low": Of(field="log_clip_low"),
                "clip_ratio_high": Of(field="log_clip_high"),
            },
            aggregation="seq-mean-token-mean",
            note="called `geo_mean`; both options are in log space here, and `loss_agg_mode` is not read: the average "
            "is over the responses of the micro-batch",
        ),
        "skyrl": _NONE,
        "liger": _NONE,
    },
    "vespo": {
        "trl": Conformance(
            setting={
                "loss_type": "vespo",
                "vespo_k_pos": Of(field="k_pos"),
                "vespo_lambda_pos": Of(field="lambda_pos"),
                "vespo_k_neg": Of(field="k_neg"),
                "vespo_lambda_neg": Of(field="lambda_neg"),
            },
            aggregation="token-mean",
            note="with vLLM, TRL folds its sampler correction into W; a correction here multiplies w instead",
        ),
        "verl": _NONE,
        "skyrl": _NONE,
        "liger": Conformance(
            setting={
                "loss_type": "vespo",
                "vespo_k_pos": Of(field="k_pos"),
                "vespo_lambda_pos": Of(field="lambda_pos"),
                "vespo_k_neg": Of(field="k_neg"),
                "vespo_lambda_neg": Of(field="lambda_neg"),
            },
            aggregation="token-mean",
        ),
    },
    "dppo_tv": {
        "trl": _NONE,
        "verl": Conformance(
            setting={
                "policy_loss.loss_mode": "dppo_tv",
                "clip_ratio_low": Of(field="delta_low"),
                "clip_ratio_high": Of(field="delta_high"),
                "clip_ratio_c": Of(field="ratio_cap"),
            },
            aggregation="token-mean",
            note="the clip options are differences of probabilities here, and `clip_ratio_c` is the cap of the ratio: "
            "the actor's 3 unless set",
        ),
        "skyrl": Conformance(
            setting={
                "policy_loss_type": "dppo",
                "dppo.dppo_type": "binary_tv",
                "dppo.delta_low": Of(field="delta_low"),
                "dppo.delta_high": Of(field="delta_high"),
            },
            aggregation="token-mean",
            only={"ratio_cap": math.inf},
            note="the ratio has no cap, and is taken against the sampler where its log-probs are given. " + _SKYRL_SUM,
        ),
        "liger": _NONE,
    },
    "dppo_kl": {
        "trl": _NONE,
        "verl": Conformance(
            setting={
                "policy_loss.loss_mode": "dppo_kl",
                "clip_ratio_low": Of(field="delta_low"),
                "clip_ratio_high": Of(field="delta_high"),
                "clip_ratio_c": Of(field="ratio_cap"),
            },
            aggregation="token-mean",
            note="the clip options are in nats here; `clip_ratio_c` as for `dppo_tv`. Its logarithm adds 1e-8",
        ),
        "skyrl": Conformance(
            setting={
                "policy_loss_type": "dppo",
                "dppo.dppo_type": "binary_kl",
                "dppo.delta_low": Of(field="delta_low"),
                "dppo.delta_high": Of(field="delta_high"),
            },
            aggregation="token-mean",
            only={"ratio_cap": math.inf},
            note="as for `dppo_tv`. " + _SKYRL_SUM,
        ),
        "liger": _NONE,
    },
    "drpo": dict.fromkeys(FRAMEWORKS, _NONE),
}
"""method -> framework -> record, for every method of the registry and every framework."""


def settings_in_trl(name: str, objective: Objective) -> dict[str, Any]:
    """TRL's options that give this objective's gradient; empty where none do, or where nobody looked."""
    record = CONFORMANCE.get(name, {}).get("trl")
    if record is None or record.setting is None:
        return {}
    if any(getattr(objective, field) != required for field, required in (record.only or {}).items()):
        return {}
    return record.options(objective)


def as_text(name: str, width: int = 100) -> str:
    """The records of one method as plain text, one paragraph per framework."""
    lines: list[str] = []
    for framework, record in CONFORMANCE.get(name, {}).items():
        text = f"{FRAMEWORKS[framework]}: {_setting(record)}" + f" ({record.note})" * bool(record.note)
        text = text.replace("`", "")
        lines += textwrap.wrap(text, width, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False)
    return "\n".join(lines or ["No framework was looked at for this method."])


def as_markdown(name: str) -> str:
    """The rows of one method as a Markdown table; a method without records (registered elsewhere) says so."""
    if name not in CONFORMANCE:
        return "No framework was looked at for this method."
    lines = ["| framework | setting | goes with | note | checked |", "|---|---|---|---|---|"]
    for framework, record in CONFORMANCE[name].items():
        how = "-" if record.setting is None else CHECKED[framework]
        goes_with = f"`{record.aggregation}`" if record.aggregation else "-"
        cells = [_setting(record), goes_with, record.note or "-", how]
        lines.append("| " + " | ".join([FRAMEWORKS[framework], *cells]) + " |")
    return "\n".join(lines)


def _setting(record: Conformance) -> str:
    if record.setting is None:
        return "not available"
    text = ", ".join(f"`{option}={_shown(value)}`" for option, value in record.setting.items())
    only = ", ".join(f"`{field}={value}`" for field, value in (record.only or {}).items())
    return f"{text}; only {only}" if only else text


def _shown(value: Of | str | float) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)
