"""DGPOConfig: defaults, what of TRL's options it maps, and what it refuses, each with a message that helps."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings

import pytest
from transformers import HfArgumentParser
from trl import GRPOConfig

from dgpo import advantages, aggregation, correction, objectives
from dgpo.training import DGPOConfig, numbers
from dgpo.training.resuming import correction_of


def make(**options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return DGPOConfig("unused", bf16=False, use_cpu=True, **options)


def test_defaults_are_the_papers_setting():
    config = make()
    assert config.make_objective() == objectives.DGPO(n=1, m=2, eps_low=0.2, eps_high=0.2)
    assert config.make_aggregation() == aggregation.TokenMean()
    assert config.make_correction() is None
    assert (config.beta, config.entropy_coef, config.scale_rewards) == (0.0, 0.0, "group")
    assert config.updates_per_generation == 4
    assert isinstance(config, GRPOConfig)


def stock_schedule(**options):
    """(steps_per_generation, generation_batch_size, updates per generation) of TRL; None where it refuses."""
    try:
        config = GRPOConfig("unused", bf16=False, use_cpu=True, **options)
    except ValueError:
        return None
    steps = config.steps_per_generation
    return steps, config.generation_batch_size, steps * config.num_iterations / config.gradient_accumulation_steps


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("iterations", [1, 2, 4])
@pytest.mark.parametrize(
    "size",
    [
        *({}, {"steps_per_generation": 1}, {"steps_per_generation": 2}, {"steps_per_generation": 8}),
        *({"generation_batch_size": 8}, {"generation_batch_size": 32}, {"generation_batch_size": 36}),
        {"steps_per_generation": 4, "generation_batch_size": 32},
    ],
    ids=str,
)
def test_the_schedule_is_trls_unless_that_would_be_on_policy_by_default(accumulation, iterations, size):
    options = {"gradient_accumulation_steps": accumulation, "num_iterations": iterations, **size}
    options["per_device_train_batch_size"] = 8
    expected = stock_schedule(**options)
    if expected is None or expected[2] != int(expected[2]):
        with pytest.raises(ValueError, match="generation"):
            make(**options)
        return
    if not size and iterations == 1:
        expected = (4 * accumulation, 32 * accumulation, 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = DGPOConfig("unused", bf16=False, use_cpu=True, **options)
    assert (config.steps_per_generation, config.generation_batch_size, config.updates_per_generation) == expected
    assert config.on_policy is (expected[2] == 1)
    assert any("on-policy" in str(warning.message) for warning in caught) is config.on_policy


def test_the_default_of_the_schedule():
    assert make().updates_per_generation == 4
    assert make(gradient_accumulation_steps=3).steps_per_generation == 12
    assert make(num_iterations=4).updates_per_generation == 4  # 16 in versions that took four times TRL's schedule
    assert make(num_iterations=2, gradient_accumulation_steps=4).updates_per_generation == 2


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (
            {"steps_per_generation": 2},
            "set steps_per_generation to a multiple of gradient_accumulation_steps, such as 4",
        ),
        ({"generation_batch_size": 16}, "set generation_batch_size to a multiple of 32 completions"),
    ],
    ids=str,
)
def test_a_generation_of_less_than_a_step_says_which_option_to_change(size, said):
    with pytest.raises(ValueError, match=said):
        make(gradient_accumulation_steps=4, **size)


@pytest.mark.parametrize(("objective", "alike"), [("dgpo", True), ("clip_cov", False)])
def test_a_method_that_drops_tokens_at_ratio_1_differs_on_policy_too(objective, alike):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = DGPOConfig("unused", use_cpu=True, bf16=False, objective=objective, steps_per_generation=1)
    assert made.on_policy
    assert made.like_any_other is alike
    assert any("is on-policy" in str(warning.message) for warning in caught) is alike


def test_an_on_policy_schedule_says_which_option_to_change():
    with pytest.warns(UserWarning, match="Set steps_per_generation to several times gradient_accumulation_steps"):
        make(steps_per_generation=1)
    with pytest.warns(UserWarning, match="Set generation_batch_size to several times the completions of an update"):
        make(generation_batch_size=8)


def test_objective_fields_from_a_dict_or_json_text():
    assert make(objective_kwargs={"n": 2}).make_objective() == objectives.DGPO(n=2)
    assert make(objective_kwargs='{"n": 2, "m": 3.5}').make_objective() == objectives.DGPO(n=2, m=3.5)
    assert make(objective="grpo", objective_kwargs={"dual_clip": 3.0}).make_objective() == objectives.GRPO(dual_clip=3)


def test_epsilon_of_trl_sets_the_bounds():
    assert make(epsilon=0.1).make_objective() == objectives.DGPO(eps_low=0.1, eps_high=0.1)
    assert make(epsilon_high=0.28).make_objective() == objectives.DGPO(eps_low=0.2, eps_high=0.28)
    assert make(epsilon=0.1, epsilon_high=0.3).make_objective() == objectives.DGPO(eps_low=0.1, eps_high=0.3)
    same = make(epsilon_high=0.28, objective_kwargs={"eps_high": 0.28, "n": 2})
    assert same.make_objective() == objectives.DGPO(n=2, eps_high=0.28)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"objective": "dgop"}, r"unknown objective 'dgop', did you mean 'dgpo'\?"),
        ({"objective": "gpppo"}, r"unknown objective 'gpppo', did you mean 'gppo'\?"),
        ({"objective": "cispo", "epsilon": 0.1}, r"objective 'cispo' has no 'eps_low'"),
        ({"objective": "bapo", "objective_kwargs": {"c_low": 0.7}}, r"c_low = 0.7 and c_high = None; expected both"),
        ({"advantage": "entropy"}, r"unknown advantage 'entropy', did you mean 'entropy_shaped'\?"),
        ({"advantage": "entropy_shaped", "advantage_kwargs": {"kappa": 1}}, r"kappa = 1 is not allowed; .* \(1, inf\]"),
        ({"advantage": "entropy_shaped", "advantage_kwargs": {"alpha": -1}}, r"alpha = -1 is not allowed"),
        ({"advantage": "pass_at_k:k=9"}, "k = 9, more than the 8 responses of a group; set num_generations >= 9"),
        ({"advantage": "nsr", "dynamic_sampling": True}, "dynamic_sampling replaces them"),
        ({"advantage": "distill"}, "advantage = 'distill' needs teacher, a folder or a name on the hub"),
        ({"teacher": "model"}, "teacher = 'model' is read by advantage = 'distill' alone"),
        ({"teacher": "model", "advantage": "std"}, "teacher = 'model' is not read by advantage = 'std'; unset it"),
        ({"advantage": "std", "teacher_model_init_kwargs": {"dtype": "bfloat16"}}, "needs teacher to be set"),
        (
            {"advantage": "std", "multi_objective_aggregation": "normalize_then_sum"},
            "takes the place of multi_objective_aggregation = 'normalize_then_sum'; .* that one is advantage='gdpo'",
        ),
        ({"advantage": "smooth", "advantage_kwargs": {"alpha": 1}}, r"advantage 'smooth' has no field 'alpha'"),
        (
            {"advantage": advantages.Smooth(), "advantage_kwargs": {"a": 1}},
            r"advantage_kwargs must not be set beside it",
        ),
        ({"objective_kwargs": {"nn": 1}}, r"no field 'nn', did you mean 'n'\?"),
        ({"objective_kwargs": {"n": -1}}, r"n = -1 is not allowed; expected a number in \[0, inf\]"),
        ({"objective_kwargs": {"eps_low": 1.5}}, r"eps_low = 1.5 is not allowed; expected a number in \[0, 1\)"),
        ({"objective_kwargs": "n=1"}, r"objective_kwargs = 'n=1' is not a mapping"),
        ({"epsilon": 0.1, "objective_kwargs": {"eps_low": 0.3}}, r"epsilon = 0.1 and objective_kwargs\['eps_low'\]"),
        ({"epsilon_high": 0.3, "objective_kwargs": {"eps_high": 0.2}}, r"epsilon_high .* = 0.3 and objective_kwargs"),
        ({"objective": "maspo", "epsilon": 0.1}, r"objective 'maspo' has no 'eps_low'"),
        ({"aggregation": "token_mean"}, r"unknown aggregation 'token_mean', did you mean 'token-mean'\?"),
        ({"aggregation_kwargs": {"length": 5}}, r"'token-mean' has no field 'length'"),
        ({"aggregation": "seq-mean-token-sum-norm", "aggregation_kwargs": {"length": 0}}, r"length = 0 is not allowed"),
        ({"correction": "tis"}, r"unknown correction 'tis'"),
        ({"correction": {"cap": 2.0}}, r"has no 'name'"),
        ({"correction": {"name": "truncate", "capp": 2.0}}, r"no field 'capp', did you mean 'cap'\?"),
        ({"correction": "truncate", "vllm_importance_sampling_clip_max": 5.0}, r"vllm_importance_sampling_clip_max"),
        ({"advantage": "sdt"}, r"unknown advantage 'sdt', did you mean 'std'\?"),
        ({"advantage": "std", "advantage_kwargs": {"alpha": 1}}, r"advantage 'std' has no field 'alpha'"),
        ({"advantage_kwargs": {"alpha": 1}}, r"needs advantage"),
        ({"advantage": "std", "scale_rewards": "none"}, r"takes the place of scale_rewards = 'none'"),
        ({"loss_type": "dr_grpo"}, r"loss_type = 'dr_grpo' has no meaning here"),
        ({"loss_type": "token-mean", "aggregation": "seq-mean-token-mean"}, r"loss_type = 'token-mean' has no meaning"),
        ({"delta": 4.0}, r"delta = 4.0 has no meaning here.*dual_clip"),
        ({"importance_sampling_level": "sequence"}, r"importance_sampling_level = 'sequence' has no meaning here"),
        ({"sapo_temperature_pos": 2.0}, r"sapo_temperature_pos = 2.0 has no meaning here"),
        ({"vespo_k_neg": 1.0}, r"vespo_k_neg = 1.0 has no meaning here"),
        ({"gradient_accumulation_steps": 4, "steps_per_generation": 2}, r"gradient_accumulation_steps = 4 does not"),
        ({"gradient_accumulation_steps": 3, "steps_per_generation": 4}, r"gradient_accumulation_steps = 3 does not"),
        ({"scale_rewards": "GROUP"}, r"scale_rewards = 'GROUP' is not known, did you mean 'group'\?"),
        ({"multi_objective_aggregation": "sum"}, r"multi_objective_aggregation = 'sum' is not known"),
        ({"vllm_mode": "offline"}, r"vllm_mode = 'offline' is not known; expected one of server, colocate"),
        ({"vllm_importance_sampling_mode": "token"}, r"vllm_importance_sampling_mode = 'token' is not known, did you"),
        ({"top_k": -1}, r"top_k = -1 is not allowed; expected >= 1, or 0 for all tokens"),
        ({"ref_model_sync_steps": 0}, r"ref_model_sync_steps = 0 is not allowed"),
        ({"max_num_gen_batches": 0}, r"max_num_gen_batches = 0 is not allowed"),
        ({"per_device_train_batch_size": 6, "num_generations": 5, "steps_per_generation": 2}, r"divisible by num_gen"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_settings_fail_at_construction(options, said):
    with pytest.raises(ValueError, match=said):
        make(**options)


@pytest.mark.parametrize(("text", "meant"), [("true", "group"), ("True", "group"), ("false", "none"), (False, "none")])
def test_whether_to_scale_as_a_flag_and_a_file_say_it(text, meant):
    assert make(scale_rewards=text).scale_rewards == meant


def test_accumulation_over_several_iterations_of_one_generation_is_fine():
    config = make(gradient_accumulation_steps=4, steps_per_generation=2, num_iterations=4)
    assert config.updates_per_generation == 2


def test_loss_type_may_name_our_aggregation():
    config = make(loss_type="seq-mean-token-sum-norm", max_completion_length=77)
    assert config.make_aggregation() == aggregation.SeqMeanTokenSumNorm(length=77)


def test_length_defaults_to_the_completion_budget():
    assert make(aggregation="seq-mean-token-sum-norm").make_aggregation().length == 512
    given = make(aggregation="seq-mean-token-sum-norm", aggregation_kwargs={"length": 9})
    assert given.make_aggregation() == aggregation.SeqMeanTokenSumNorm(length=9)


def test_corrections_by_name_dict_and_json():
    assert make(correction="band").make_correction() == correction.Band()
    given = {"name": "truncate", "level": "sequence", "cap": 3.0}
    assert make(correction=given).make_correction() == correction.Truncate(level="sequence", cap=3.0)
    assert make(correction=json.dumps(given)).make_correction() == correction.Truncate(level="sequence", cap=3.0)


def test_instances_are_named_so_that_the_config_serialises():
    config = make(
        objective=objectives.DGPO(n=2, m=math.inf, reverse_cap=5.0),
        aggregation=aggregation.SeqMeanTokenSumNorm(length=64),
        correction=correction.Truncate(cap=1.5),
    )
    restored = make(**{key: config.to_dict()[key] for key in ("objective", "aggregation", "correction")})
    assert config.objective == "dgpo"
    assert config.make_objective() == objectives.DGPO(n=2, m=math.inf, reverse_cap=5.0)
    assert config.make_aggregation() == aggregation.SeqMeanTokenSumNorm(length=64)
    assert restored.make_correction() == config.make_correction() == correction.Truncate(cap=1.5)
    with pytest.raises(ValueError, match="objective_kwargs must not be set beside it"):
        make(objective=objectives.DGPO(), objective_kwargs={"n": 2})


def test_one_update_per_generation_is_warned_about_in_words():
    with pytest.warns(UserWarning, match=r"on-policy: with one optimiser update per generation every importance ratio"):
        make(steps_per_generation=2, gradient_accumulation_steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        make()


def test_every_field_is_a_flag():
    flags = '--output_dir x --objective maspo --objective_kwargs {"alpha":0.5} --aggregation seq-mean-token-mean'
    (config,) = HfArgumentParser(DGPOConfig).parse_args_into_dataclasses(
        [*flags.split(), "--dynamic_sampling", "--bf16", "false", "--use_cpu", "--advantage", "leave_one_out"]
    )
    assert config.make_objective() == objectives.MASPO(alpha=0.5)
    assert (config.aggregation, config.dynamic_sampling, config.advantage) == (
        "seq-mean-token-mean",
        True,
        "leave_one_out",
    )


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_every_objective_by_name_and_as_an_instance(name):
    made = make(objective=name).make_objective()
    assert type(made) is objectives.OBJECTIVES[name]
    assert made == objectives.make(name)
    config = make(objective=made)
    assert (config.objective, config.make_objective()) == (name, made)
    assert json.loads(json.dumps(config.objective_kwargs)) == config.objective_kwargs


@pytest.mark.parametrize("name", advantages.ADVANTAGES)
def test_every_advantage_by_name_and_as_an_instance(name):
    options = {"teacher": "model"} if "teacher" in advantages.ADVANTAGES[name].reads else {}
    made = make(advantage=name, **options).make_advantage()
    assert made == advantages.make(name)
    config = make(advantage=made, **options)
    assert (config.advantage, config.make_advantage()) == (name, made)


def test_corrections_with_the_same_fields_are_told_apart_on_resuming():
    band = "band_low=0.5,band_high=2"
    veto, geometric = (correction_of(make(correction=f"{name}:{band}")) for name in ("veto", "geometric"))
    assert veto.items() - geometric.items() == {("name", "veto")}
    assert correction_of(make(correction={"name": "veto", "band_low": 0.5, "band_high": 2.0})) == veto
    assert correction_of(make()) is None


def test_fields_of_an_advantage_from_a_dict_or_json_text():
    expected = advantages.EntropyShaped(alpha=0.1, kappa=3)
    assert make(advantage="entropy_shaped", advantage_kwargs={"alpha": 0.1, "kappa": 3}).make_advantage() == expected
    text = '{"alpha": 0.1, "kappa": 3}'
    assert make(advantage="entropy_shaped", advantage_kwargs=text).make_advantage() == expected
    assert make().make_advantage() is None


FLOATS = [
    field.name
    for field in dataclasses.fields(DGPOConfig)
    if "float" in str(field.type) and field.name not in ("objective", "reward_weights")
]


@pytest.mark.parametrize("name", FLOATS)
def test_nan_is_no_value_of_any_number(name):
    with pytest.raises(ValueError, match=f"DGPOConfig: {name} = nan is not allowed; expected a"):
        make(**{name: math.nan})


LIMITS = {name for name, interval in numbers.RANGES.items() if interval.endswith("inf]")}


@pytest.mark.parametrize("name", sorted(set(FLOATS) - LIMITS))
@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinity_is_a_value_of_upper_limits_only(name, value):
    with pytest.raises(ValueError, match=f"DGPOConfig: {name} = {value} is not allowed; expected a number in"):
        make(**{name: value})


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_minus_infinity_is_no_upper_limit(name):
    with pytest.raises(ValueError, match=rf"{name} = -inf is not allowed; expected a number in [\[(].*, inf\]"):
        make(**{name: -math.inf})


def test_limits_are_fields_and_may_be_infinite():
    assert {
        "delta",
        "entropy_coef_max",
        "epsilon_high",
        "max_grad_norm",
        "off_policy_mask_threshold",
        "record_limit_mb",
        "vllm_importance_sampling_cap",
        "vllm_importance_sampling_clip_max",
    } == LIMITS
    assert set(FLOATS) >= LIMITS
    config = make(max_grad_norm=math.inf, correction={"name": "truncate", "cap": math.inf})
    assert (config.max_grad_norm, config.make_correction().cap) == (math.inf, math.inf)


def test_ranges_are_of_fields():
    assert {field.name for field in dataclasses.fields(DGPOConfig)} >= set(numbers.RANGES)


OUTSIDE = {
    "(-inf, inf]": [],
    "[0, inf]": [-1e-3],
    "[0, inf)": [-1e-3],
    "(0, inf]": [0.0, -1.0],
    "(0, inf)": [0.0, -1.0],
    "[0, 1]": [-0.1, 1.1],
    "[0, 1)": [-0.1, 1.0],
    "(0, 1]": [0.0, 1.5],
    "[1, inf)": [0, -1],
}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [(name, value, interval) for name, interval in numbers.RANGES.items() for value in OUTSIDE[interval]],
)
def test_numbers_out_of_range_are_refused(name, value, expected):
    with pytest.raises(ValueError) as error:
        make(**{name: value})
    assert str(error.value) == f"DGPOConfig: {name} = {value} is not allowed; expected a number in {expected}"


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"reward_weights": [1.0, math.nan]}, "reward_weights[1] = nan"),
        ({"reward_weights": [math.inf]}, "reward_weights[0] = inf"),
        ({"objective_kwargs": {"n": math.nan}}, "objective_kwargs['n'] = nan"),
        ({"generation_kwargs": {"top_p": math.nan}}, "generation_kwargs['top_p'] = nan"),
    ],
    ids=str,
)
def test_numbers_inside_lists_and_dictionaries_are_looked_at(options, place):
    with pytest.raises(ValueError) as error:
        make(**options)
    assert place in str(error.value)


def test_a_penalty_on_the_entropy_is_a_choice():
    assert make(entropy_coef=-0.01).entropy_coef == -0.01


def test_without_a_gpu_the_error_names_the_flags(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: False)
    with pytest.raises(ValueError, match=r"--use_cpu --bf16 false \(in Python: use_cpu=True, bf16=False\)"):
        DGPOConfig(str(tmp_path), bf16=True)
