"""TRL's options about the loss: what agrees with the objective is taken over, everything else is translated."""

from __future__ import annotations

import re
import warnings
from itertools import product

import pytest

from dgpo import advantages, objectives
from dgpo import correction as corrections
from dgpo.aggregation import AGGREGATIONS, SeqMeanTokenMean, SeqMeanTokenSumNorm, TokenMean
from dgpo.aggregation import make as make_aggregation
from dgpo.registry import parse
from dgpo.training import DGPOConfig, trl_options

GSPO = {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4}


def make(**options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return DGPOConfig("unused", bf16=False, use_cpu=True, **options)


def error(**options):
    with pytest.raises(ValueError) as caught:
        make(**options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "objective", "aggregation"),
    [
        ({"objective": "grpo", "loss_type": "grpo"}, objectives.GRPO(), SeqMeanTokenMean()),
        ({"objective": "grpo", "loss_type": "dapo"}, objectives.GRPO(), TokenMean()),
        ({"objective": "grpo", "loss_type": "dr_grpo"}, objectives.GRPO(), SeqMeanTokenSumNorm(length=512)),
        ({"objective": "sapo", "loss_type": "sapo"}, objectives.SAPO(), SeqMeanTokenMean()),
        ({"objective": "cispo", "loss_type": "cispo", "epsilon_high": 3.0}, objectives.CISPO(cap=3), TokenMean()),
        ({"objective": "vespo", "loss_type": "vespo"}, objectives.VESPO(), TokenMean()),
        ({"objective": "vespo", "importance_sampling_level": "token"}, objectives.VESPO(), TokenMean()),
        ({"objective": "gspo", "importance_sampling_level": "sequence"}, objectives.GSPO(), TokenMean()),
        ({"objective": "gspo", "loss_type": "grpo", **GSPO}, objectives.GSPO(), SeqMeanTokenMean()),
        ({"objective": "gspo", "loss_type": "luspo"}, objectives.GSPO(), SeqMeanTokenSumNorm(length=1)),
        ({"objective": "gspo", "epsilon": 0.2}, objectives.GSPO(eps_low=0.2, eps_high=0.2), TokenMean()),
        ({"objective": "grpo", "importance_sampling_level": "token"}, objectives.GRPO(), TokenMean()),
        ({"objective": "grpo", "delta": 4.0}, objectives.GRPO(dual_clip=4), TokenMean()),
        ({"objective": "grpo:dual_clip=4", "delta": 4.0}, objectives.GRPO(dual_clip=4), TokenMean()),
        ({"objective": "sapo", "sapo_temperature_neg": 2.0}, objectives.SAPO(tau_neg=2), TokenMean()),
        ({"objective": "vespo", "vespo_k_pos": 1.0}, objectives.VESPO(k_pos=1), TokenMean()),
        (
            {"objective": "grpo", "loss_type": "grpo", "aggregation": "seq-mean-token-mean"},
            objectives.GRPO(),
            SeqMeanTokenMean(),
        ),
        (
            {"objective": "grpo", "loss_type": "dr_grpo", "aggregation_kwargs": {"length": 9}},
            objectives.GRPO(),
            SeqMeanTokenSumNorm(length=9),
        ),
        ({"preset": "dapo", "loss_type": "dapo"}, objectives.GRPO(eps_high=0.28), TokenMean()),
        ({"loss_type": "seq-mean-token-mean"}, objectives.DGPO(), SeqMeanTokenMean()),
    ],
    ids=str,
)
def test_what_agrees_is_taken_over(options, objective, aggregation):
    config = make(**options)
    assert (config.make_objective(), config.make_aggregation()) == (objective, aggregation)
    kept = {name: getattr(config, name) for name in (*options, "objective_kwargs", "aggregation", "aggregation_kwargs")}
    again = make(**{**kept, "objective": config.objective})
    assert (again.make_objective(), again.make_aggregation()) == (objective, aggregation)


@pytest.mark.parametrize(
    ("options", "write", "keep"),
    [
        (
            {"loss_type": "grpo"},
            "objective='grpo', aggregation='seq-mean-token-mean'",
            "aggregation='seq-mean-token-mean'",
        ),
        (
            {"objective": "maspo", "loss_type": "dr_grpo"},
            "objective='grpo', aggregation='seq-mean-token-sum-norm'",
            "aggregation='seq-mean-token-sum-norm'",
        ),
        ({"loss_type": "dapo", "epsilon_high": 0.28}, "objective='grpo:eps_high=0.28', aggregation='token-mean'", None),
        ({"loss_type": "cispo", "epsilon_high": 3.0}, "objective='cispo:cap=3.0', aggregation='token-mean'", None),
        (
            {"objective": "grpo", "loss_type": "sapo", "sapo_temperature_neg": 2.0},
            "objective='sapo:tau_neg=2.0', aggregation='seq-mean-token-mean'",
            "aggregation='seq-mean-token-mean'",
        ),
        ({"loss_type": "vespo", "vespo_k_neg": 1.0}, "objective='vespo:k_neg=1.0', aggregation='token-mean'", None),
        ({"loss_type": "luspo"}, "objective='gspo', aggregation='seq-mean-token-sum-norm:length=1'", None),
        ({"importance_sampling_level": "sequence"}, "objective='gspo', aggregation='seq-mean-token-mean'", None),
        (
            {"importance_sampling_level": "sequence", "loss_type": "grpo", "epsilon": 0.1},
            "objective='gspo:eps_low=0.1,eps_high=0.1', aggregation='seq-mean-token-mean'",
            None,
        ),
        ({"objective": "gspo", "importance_sampling_level": "token"}, "objective='grpo'", None),
        ({"delta": 4.0}, "objective='grpo:dual_clip=4.0'", None),
        ({"objective": "gppo", "delta": 4.0}, "objective='grpo:dual_clip=4.0'", "objective='gppo:dual_clip=4.0'"),
        ({"sapo_temperature_pos": 2.0}, "objective='sapo:tau_pos=2.0'", None),
        (
            {"objective": "sapo_unilateral", "sapo_temperature_pos": 2.0},
            "objective='sapo:tau_pos=2.0'",
            "objective='sapo_unilateral:tau_pos=2.0'",
        ),
        ({"objective": "maspo", "epsilon": 0.1}, "objective='grpo:eps_low=0.1,eps_high=0.1'", None),
        ({"objective": "cispo", "epsilon": 0.1}, "objective='grpo:eps_low=0.1,eps_high=0.1'", None),
    ],
    ids=str,
)
def test_everything_else_is_translated_in_lines_that_can_be_written(options, write, keep):
    said = error(**options)
    assert f"write {write} for what TRL calls this" in said
    assert len(said) < 420
    for text in re.findall(r"((?:objective|aggregation)='[^']*'(?:, aggregation='[^']*')?)(?= for| alone)", said):
        make(**eval(f"dict({text})"))
    if keep is not None:
        assert f"or {keep} " in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss_type": "grop"}, "unknown loss_type 'grop', did you mean 'grpo'?"),
        ({"objective": "grpo", "loss_type": "bnpo"}, "it averages over a micro-batch"),
        ({"importance_sampling_level": "word"}, "importance_sampling_level = 'word' is not allowed"),
        (
            {"objective": "cispo", "loss_type": "cispo", "importance_sampling_level": "sequence"},
            "no objective here has TRL's 'cispo' with importance_sampling_level='sequence'; nearest: objective="
            "'cispo', aggregation='token-mean', in place of loss_type and importance_sampling_level",
        ),
        (
            {"loss_type": "luspo", "importance_sampling_level": "token"},
            "no objective here has TRL's 'luspo' with importance_sampling_level='token'",
        ),
        (
            {"importance_sampling_level": "sequence", "sapo_temperature_neg": 1.1},
            "no objective here has TRL's 'sapo' with importance_sampling_level='sequence'; nearest: objective='sapo",
        ),
        ({"loss_type": "bnpo"}, "micro-batch (loss_type='bnpo'); nearest: objective='grpo', aggregation='token-mean'"),
        (
            {"loss_type": "cispo", "epsilon": 0.1},
            "no objective here has a cap below 1 (TRL takes 0.1 from epsilon_high or epsilon); nearest: objective",
        ),
        ({"loss_type": "grpo", "delta": 1.1}, "no objective here has a delta below 1 + epsilon_high"),
        (
            {"loss_type": "grpo", "importance_sampling_level": "sequence", "delta": 4.0},
            "no objective here has delta at the level of the sequence; nearest: objective='gspo'",
        ),
        (
            {"objective": "dgpo:n=2", "loss_type": "grpo", "epsilon": 0.1},
            "in place of loss_type and epsilon, or objective='dgpo:n=2,eps_low=0.1,eps_high=0.1', "
            "aggregation='seq-mean-token-mean' to keep objective='dgpo'",
        ),
        ({"objective": "cispo", "epsilon_high": 3.0}, "Write objective='cispo:cap=3.0' for the cap"),
        ({"objective": "grpo", "delta": 1.1}, "Write objective='grpo:dual_clip=1.1' for a ceiling of negative"),
        (
            {"objective": "grpo", "loss_type": "grpo", "aggregation": "token-mean"},
            "loss_type = 'grpo' has no meaning here with aggregation = 'token-mean'",
        ),
        ({"objective": "gspo", "loss_type": "luspo", "aggregation_kwargs": {"length": 2}}, "length = 1, but"),
        (
            {"objective": "sapo", "sapo_temperature_neg": 1.1, "objective_kwargs": {"tau_neg": 1.2}},
            "sapo_temperature_neg = 1.1 and objective_kwargs['tau_neg'] = 1.2 set the same quantity",
        ),
        ({"preset": "dapo", "loss_type": "dr_grpo"}, "preset = 'dapo' sets aggregation = 'token-mean', but loss_type"),
        ({"preset": "dr_grpo", "aggregation": "token-mean"}, "but it was set to 'token-mean'"),
        (
            {"objective": "dgpo:n=2", "objective_kwargs": {"n": 3}},
            "objective 'dgpo': 'n' is given twice, as 2 and as 3",
        ),
        ({"objective": "dgpo:n"}, "'n' in 'dgpo:n' has no value; expected NAME:FIELD=VALUE"),
        ({"objective": "dgop:n=2"}, "unknown objective 'dgop', did you mean 'dgpo'?"),
        ({"objective": "ppo"}, "unknown objective 'ppo': here it is 'grpo'"),
        ({"objective": {"n": 2}}, "objective {'n': 2} has no 'name'"),
        ({"objective_kwargs": '{"n": 2, "n": 3}'}, "objective_kwargs: 'n' is given twice, as 2 and as 3"),
    ],
    ids=str,
)
def test_contradictions(options, said):
    assert said in error(**options)


PARAMETERS = [
    {},
    {"epsilon": 0.1},
    {"epsilon": 0.2, "epsilon_high": 5.0},
    {"delta": 4.0},
    {"delta": 1.1, "epsilon_high": 0.3},
    {"sapo_temperature_pos": 1.5, "sapo_temperature_neg": 2.0},
    {"vespo_lambda_neg": 1.5},
]


@pytest.mark.parametrize("objective", objectives.OBJECTIVES)
def test_every_refusal_says_what_to_write_and_what_to_remove(objective):
    """Pasted in place of the options that it names, every line is accepted; so is the rest without what it removes."""

    def take(name, options):
        name, fields = parse("objective", name)
        options = {option: value for option, value in options.items() if value is not None}
        settings = {"objective": name, "fields": fields, "aggregation": None, "aggregation_fields": {}}
        return objectives.make(name, **trl_options.meaning(options, **settings).fields)

    refused = 0
    for loss_type, level, more in product([None, *trl_options.WEIGHTS], [None, "token", "sequence"], PARAMETERS):
        options = {"loss_type": loss_type, "importance_sampling_level": level, **more}
        try:
            take(objective, options)
        except ValueError as caught:
            said, refused = str(caught), refused + 1
        else:
            continue
        written = re.findall(r"objective='([^']*)'(?! \(its)|aggregation='([^']*)'", said)
        assert written or "remove it" in said, said
        for name, aggregation in written:
            take(name or objective, {})
            make_aggregation(aggregation or "token-mean", **({"length": 4} if aggregation.endswith("norm") else {}))
        if removed := re.search("or remove (.*) to keep", said):
            take(objective, {k: v for k, v in options.items() if k not in re.split(", | and ", removed[1])})
    assert refused > 50


def test_an_advantage_beside_the_scale_that_it_is():
    assert make(advantage="none", scale_rewards="none").make_advantage() == advantages.make("none")
    assert make(advantage="none", scale_rewards=False).make_advantage() == advantages.make("none")
    assert make(advantage="std", scale_rewards=True).make_advantage() == advantages.make("std")
    assert make(preset="dr_grpo", loss_type="dr_grpo", scale_rewards="none").make_advantage() == advantages.make("none")
    assert "set one of them; that one is advantage='none' here" in error(advantage="std", scale_rewards="none")
    assert "scale_rewards = 'batch'; set one of them" in error(advantage="std", scale_rewards="batch")
    said = error(advantage="std", multi_objective_aggregation="normalize_then_sum")
    assert "takes the place of multi_objective_aggregation" in said


@pytest.mark.parametrize(
    ("vllm", "correction"),
    [
        ({"mode": "token_truncate", "clip_max": 2.0}, "truncate"),
        ({"mode": "token_truncate"}, "truncate:cap=3.0"),
        ({"mode": "token_truncate", "cap": 4.0}, "truncate:cap=4.0"),
        ({"mode": "sequence_truncate", "clip_max": 5.0}, "truncate:level=sequence,cap=5.0"),
        ({"mode": "token_mask", "clip_min": 0.5, "clip_max": 2.0}, "band"),
        ({"mode": "token_mask"}, "band:band_low=0.0,band_high=3.0"),
        ({"clip_max": None, "clip_min": 0.1}, "band:band_low=0.1,band_high=inf,level=sequence"),
    ],
    ids=str,
)
def test_a_correction_beside_the_one_of_trl_that_it_is(vllm, correction):
    options = {f"vllm_importance_sampling_{name}": value for name, value in vllm.items()}
    assert make(correction=correction, **options).make_correction() == corrections.make(correction)
    other = "truncate:cap=9"
    assert f"set one of them; TRL's would be written correction={correction!r}" in error(correction=other, **options)


def test_no_correction_here_cuts_both_ends():
    options = {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_min": 0.5}
    assert error(correction="truncate", **options).endswith("set one of them")


def test_name_and_fields_in_one_text():
    assert make(objective="dgpo:n=2,m=3").make_objective() == objectives.DGPO(n=2, m=3)
    assert make(objective={"name": "dgpo", "n": 2}).make_objective() == objectives.DGPO(n=2)
    config = make(
        objective='{"name": "maspo", "alpha": 0.5}',
        aggregation="seq-mean-token-sum-norm:length=9",
        advantage="entropy_shaped:alpha=0.1",
        correction="truncate:level=sequence,cap=3",
    )
    assert (config.objective, config.objective_kwargs) == ("maspo", {"alpha": 0.5})
    assert (config.aggregation, config.aggregation_kwargs) == ("seq-mean-token-sum-norm", {"length": 9})
    assert (config.advantage, config.advantage_kwargs) == ("entropy_shaped", {"alpha": 0.1})
    assert config.make_correction().level == "sequence"
    assert make(objective="dgpo:n=2", epsilon=0.1).make_objective() == objectives.DGPO(n=2, eps_low=0.1, eps_high=0.1)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", ["gspo", "gmpo", "vespo", "grpo", "sapo"])
def test_one_ratio_per_response_over_tokens_is_warned_about(name, aggregation):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        DGPOConfig("unused", bf16=False, use_cpu=True, objective=name, aggregation=aggregation)
    warned = [str(warning.message) for warning in caught if "weighted by its length" in str(warning.message)]
    assert bool(warned) is (name in ("gspo", "gmpo") and aggregation != "seq-mean-token-mean")
    assert all(f"objective = {name!r}" in text and "'seq-mean-token-mean'" in text for text in warned)


def test_luspo_weighs_by_length_on_purpose():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        DGPOConfig("unused", bf16=False, use_cpu=True, objective="gspo", loss_type="luspo")


def test_losses_and_averages_of_trl_are_what_the_methods_declare():
    """All values of TRL 1.16's `loss_type`; importance sampling is one point of its `cispo`, and no loss of its own."""
    assert trl_options.WEIGHTS == {
        "cispo": ("cispo",),
        "dapo": ("grpo", "gspo"),
        "grpo": ("grpo", "gspo"),
        "dr_grpo": ("grpo", "gspo"),
        "bnpo": ("grpo", "gspo"),
        "luspo": ("gspo",),
        "sapo": ("sapo",),
        "vespo": ("vespo",),
    }
    assert trl_options.AVERAGES == {
        "grpo": ("seq-mean-token-mean", {}),
        "sapo": ("seq-mean-token-mean", {}),
        "dapo": ("token-mean", {}),
        "cispo": ("token-mean", {}),
        "vespo": ("token-mean", {}),
        "dr_grpo": ("seq-mean-token-sum-norm", {}),
        "luspo": ("seq-mean-token-sum-norm", {"length": 1}),
        "bnpo": None,
    }


def test_two_methods_agree_on_the_average_of_a_loss():
    for loss_type, names in trl_options.WEIGHTS.items():
        found = set()
        for name in names:
            row = objectives.OBJECTIVES[name].elsewhere["trl"]
            found.add({row.setting["loss_type"]: row.aggregation, **(row.averages or {})}[loss_type])
        assert len(found) == 1
