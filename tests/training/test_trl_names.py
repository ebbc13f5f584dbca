"""The names of TRL that the trainer relies on. If TRL renames one, this says which, before anything trains wrongly."""

from __future__ import annotations

import inspect

import pytest
from trl import GRPOConfig, GRPOTrainer

from dgpo.training import DGPOConfig, DGPOTrainer, trl_options
from dgpo.training.trainer import _FORWARD_KEYS

METHODS = {
    "_compute_loss": ["self", "model", "inputs"],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_generate_and_score_completions": ["self", "inputs"],
    "get_off_policy_mask": [
        "advantages",
        "per_token_logps",
        "sampling_per_token_logps",
        "mask",
        "off_policy_threshold",
    ],
    "get_high_entropy_mask": ["self", "entropies", "mask", "threshold"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
    "_get_output_dir": ["self", "trial"],
    "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
}
ATTRIBUTES = [
    "_buffered_inputs",
    "_step",
    "_metrics",
    "_tokenizer",
    "current_gradient_accumulation_steps",
    "num_generations",
    "num_generations_eval",
    "num_iterations",
    "reward_weights",
    "beta",
    "use_vllm",
    "vllm_importance_sampling_correction",
    "off_policy_mask_threshold",
    "top_entropy_quantile",
    "aux_loss_enabled",
    "router_aux_loss_coef",
    "entropy_coef",
    "use_adaptive_entropy",
    "_last_world_entropy",
    "_entropy_window_stats",
    "_entropy_bonus_enabled",
    "environment_factories",
    "multi_objective_aggregation",
    "reward_func_names",
    "reward_funcs",
    '_logs["advantages"]',
    '_metrics[mode]["frac_reward_zero_std"]',
]
INPUTS = [
    "prompt_ids",
    "prompt_mask",
    "completion_ids",
    "completion_mask",
    "advantages",
    "num_items_in_batch",
    "old_per_token_logps",
    "importance_sampling_ratio",
    "sampling_per_token_logps",
    "ref_per_token_logps",
    "tool_mask",
]
SOURCE = inspect.getsource(GRPOTrainer)


@pytest.mark.parametrize("name", METHODS)
def test_method(name):
    assert hasattr(GRPOTrainer, name), f"TRL's GRPOTrainer no longer has {name}"
    assert list(inspect.signature(getattr(GRPOTrainer, name)).parameters) == METHODS[name]


def test_forward_takes_what_we_pass_and_returns_three():
    signature = inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies)
    expected = {"model", "input_ids", "attention_mask", "logits_to_keep", "compute_entropy", "compute_aux_loss"}
    assert expected | set(_FORWARD_KEYS) <= set(signature.parameters)
    unknown = set(signature.parameters) - expected - set(_FORWARD_KEYS) - {"self", "batch_size"}
    assert not unknown, f"TRL's forward takes {unknown}, which our loss does not pass on"
    assert "return logps, entropies, aux_loss" in inspect.getsource(GRPOTrainer._get_per_token_logps_and_entropies)


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attribute(name):
    assert f"self.{name}" in SOURCE, f"TRL's GRPOTrainer no longer mentions self.{name}"


@pytest.mark.parametrize("name", INPUTS)
def test_input_of_the_loss(name):
    assert f'"{name}"' in inspect.getsource(GRPOTrainer._generate_and_score_completions)


def test_the_loss_is_ours_to_scale():
    assert GRPOTrainer.loss_is_scaled_for_ga is True


def test_the_options_about_the_loss_exist():
    known = set(GRPOConfig.__dataclass_fields__)
    assert set(trl_options.OPTIONS) <= known
    assert {"scale_rewards", "multi_objective_aggregation"} <= known
    assert sum(name.startswith("vllm_importance_sampling_") for name in known) >= 4


def test_the_arguments_of_the_trainer_are_trls():
    """Names, order, kinds and defaults; and what help and editors show is what TRL takes."""
    ours, theirs = (inspect.signature(cls.__init__).parameters.values() for cls in (DGPOTrainer, GRPOTrainer))
    shape = [(parameter.name, parameter.kind, parameter.default) for parameter in ours]
    assert shape == [(parameter.name, parameter.kind, parameter.default) for parameter in theirs]
    assert str(inspect.signature(DGPOTrainer)).count("Any") <= 1  # of a tool's result
    for parameter in ours:
        if parameter.name != "self":
            assert parameter.annotation is not inspect.Parameter.empty
            assert f"\n        {parameter.name}: " in DGPOTrainer.__doc__, f"{parameter.name} is not documented"


DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(GRPOTrainer).parameters.items()}


@pytest.mark.parametrize("name", [name for name in DEFAULTS if name != "args"])
def test_every_argument_reaches_trl(name, monkeypatch):
    """Under its own name, whatever the order in which ours passes them on."""
    seen = {}

    class Enough(Exception):
        pass

    def init(self, **arguments):
        seen.update(arguments)
        raise Enough

    monkeypatch.setattr(GRPOTrainer, "__init__", init)
    # rewards are looked at before TRL gets them
    value = (lambda completions, **kwargs: [0.0]) if name == "reward_funcs" else object()
    arguments = {"model": "folder/model", "args": DGPOConfig("unused", use_cpu=True, bf16=False), name: value}
    with pytest.raises(Enough):
        DGPOTrainer(**arguments)
    assert seen == {**DEFAULTS, **arguments}
