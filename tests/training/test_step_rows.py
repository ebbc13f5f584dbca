"""Rows sorted over an optimiser step, and computed within a budget: the gradient and the metrics of the plain step."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM

from dgpo.objectives import OBJECTIVES
from dgpo.training import DGPOTrainer
from dgpo.training.old_logprob import KEY

PLAIN = {"sort_by_length": False}
BUDGET = {"max_tokens_per_micro_batch": 24}
PADDED = {"padding_free": False}
WAYS = {
    "padded": PADDED,
    "packed": {"padding_free": True, "shared_prompts": False},
    "shared": {"shared_prompts": True},
    "padded, budget": {**PADDED, **BUDGET},
    "shared, budget": {"shared_prompts": True, **BUDGET},
}
"""Ways to compute a step, beside the plain one."""

BY_MICRO_BATCH = ("mass/", "weight/ess", "objective/padding", "vespo/phi_seq_mean")
"""Metrics that are means over micro-batches of something that is not a mean over tokens."""


@pytest.fixture
def generation():
    """Makes 4 micro-batches of 4 rows: 4 prompts, ragged completions in random order, a group without spread."""

    def generation(trainer, seed=0, dtype=torch.float64):
        generator = torch.Generator().manual_seed(seed)
        count, width = 16, 12
        vocabulary = trainer.model.config.vocab_size
        prompts = torch.tensor([2, 6, 3, 4]).repeat_interleave(4)
        ids = torch.randint(3, vocabulary, (4, 6), generator=generator).repeat_interleave(4, 0)
        lengths = torch.randint(1, width + 1, (count, 1), generator=generator)
        lengths[3] = 0  # truncated, and masked for that
        advantages = torch.randn(count, generator=generator, dtype=dtype)
        advantages[8:12] = 0.0
        noise = lambda: 0.4 * torch.randn(count, width, generator=generator, dtype=dtype)  # noqa: E731
        whole = {
            "prompt_ids": ids,
            "prompt_mask": (torch.arange(6) >= 6 - prompts.unsqueeze(1)).long(),
            "completion_ids": torch.randint(3, vocabulary, (count, width), generator=generator),
            "completion_mask": (torch.arange(width) < lengths).long(),
            "advantages": advantages,
        }
        with torch.no_grad():
            logprob, _, _ = trainer._forward(trainer.model, whole)
        whole |= {
            KEY: logprob + noise(),
            "sampling_per_token_logps": logprob + noise(),
            "ref_per_token_logps": logprob + noise(),
            "importance_sampling_ratio": noise().exp(),
            "correct": torch.rand(count, generator=generator) < 0.5,
        }
        order = torch.randperm(count, generator=generator)
        shuffled = {key: value[order] for key, value in whole.items()}
        shuffled["num_items_in_batch"] = lengths.sum()
        return [
            {key: value[i : i + 4] if value.dim() else value for key, value in shuffled.items()}
            for i in range(0, count, 4)
        ]

    return generation


def in_float64(model):
    """Rotary angles and norms in float64: transformers computes them in float32, whatever the model."""
    rotary = model.model.rotary_emb
    frequencies = rotary.inv_freq.double()

    def rotate(hidden, position_ids):
        angles = position_ids.unsqueeze(-1).double() * frequencies
        angles = torch.cat([angles, angles], -1)
        return angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)

    rotary.forward = rotate
    for norm in model.modules():
        if type(norm).__name__ == "Qwen3RMSNorm":
            norm.forward = partial(
                torch.nn.functional.rms_norm,
                **{"normalized_shape": norm.weight.shape, "weight": norm.weight, "eps": norm.variance_epsilon},
            )


@pytest.fixture
def step(build, tiny_folder):
    """Runs one optimiser step over 4 micro-batches: the sum of its losses, the gradient, and the metrics."""

    def make(dtype=torch.float64, **options):
        model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=dtype)
        in_float64(model)
        trainer = build(
            DGPOTrainer, model=model, gradient_accumulation_steps=4, steps_per_generation=8, max_steps=2, **options
        )
        # no step at which TRL would generate
        trainer._step, trainer.current_gradient_accumulation_steps = 4, 4
        return trainer

    def run(trainer, micro_batches):
        trainer._buffered_inputs = [*micro_batches, *micro_batches]
        trainer.model.train()
        loss = 0.0
        for number in range(4):
            trainer.accelerator.gradient_state._set_sync_gradients(number == 3)
            value = trainer._compute_loss(trainer.model, trainer._prepare_inputs(None))
            value.backward()
            loss += value.item()
            trainer._step += 1
        gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
        return loss, gradient, {name: values[-1] for name, values in trainer._metrics["train"].items()}

    return make, run


def assert_same(found, expected, tolerance=1e-10):
    (loss, gradient, metrics), (plain_loss, plain_gradient, plain_metrics) = found, expected
    assert plain_gradient.norm() > 1e-3
    assert (gradient - plain_gradient).norm() <= tolerance * plain_gradient.norm()
    assert loss == pytest.approx(plain_loss, rel=0, abs=10 * tolerance)
    assert metrics.keys() == plain_metrics.keys()
    for name, value in metrics.items():
        if not any(part in name for part in BY_MICRO_BATCH):
            assert value == pytest.approx(plain_metrics[name], rel=1e-5, abs=1e-6, nan_ok=True), name


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_the_gradient_is_that_of_the_plain_step(step, generation, objective):
    make, run = step
    # every way for the paper's method and one of whole responses; for the others the one that differs most
    ways = WAYS if objective in ("dgpo", "gspo") else {"shared, budget": WAYS["shared, budget"]}
    if "batch" in OBJECTIVES[objective]().reads:
        ways = {"as it is": {}}
    plain = make(objective=objective, **PLAIN)
    expected = run(plain, generation(plain))
    for way in ways.values():
        trainer = make(objective=objective, **way)
        assert_same(run(trainer, generation(trainer)), expected)


@pytest.mark.parametrize("objective", ["dro", "p3o"])
def test_a_penalty_keeps_the_rows_without_an_advantage(step, generation, objective, monkeypatch):
    make, run = step
    trainer = make(objective=objective)
    found = run(trainer, generation(trainer))
    assert found[-1]["objective/rows_dropped"] == 0
    whole = make(objective=objective, **PLAIN)
    monkeypatch.setattr(whole, "_needs_all_rows", lambda: True)
    assert_same(found, run(whole, generation(whole)))


@pytest.mark.parametrize("way", ["padded", "shared, budget"])
def test_advantages_of_tokens(step, generation, way):
    """As distillation has them."""
    make, run = step

    def by_token(trainer):
        micro_batches = generation(trainer)
        for inputs in micro_batches:
            inputs["advantages"] = inputs["advantages"].unsqueeze(1) * torch.linspace(-1, 1, 12, dtype=torch.float64)
        return micro_batches

    plain, trainer = make(**PLAIN), make(**WAYS[way])
    assert_same(run(trainer, by_token(trainer)), run(plain, by_token(plain)))


@pytest.mark.parametrize(
    "options",
    [
        {"fused_loss": False},
        {"beta": 0.1, "aggregation": "seq-mean-token-mean"},
        {"entropy_coef": 0.01},
        {"use_adaptive_entropy": True, "entropy_coef": 0.01, "entropy_target": 1.0},
        {"positive_nll_coef": 0.1, "aggregation": "seq-mean-token-sum-norm"},
        {"advantage": "entropy_shaped"},
        {"correction": "band"},
        {"off_policy_mask_threshold": 0.1},
        {"gradient_checkpointing": True},
        {"pad_to_multiple_of": 4},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("way", ["padded", "shared, budget"])
def test_beside_the_options_that_share_its_masks_and_totals(step, generation, options, way):
    make, run = step
    ours = WAYS[way] if options.get("fused_loss", True) else {**BUDGET}
    plain, trainer = make(**PLAIN, **options), make(**ours, **options)
    # TRL's head for log-probs computes in float32
    tolerance = 1e-10 if trainer._step_loss.heads.fused else 1e-6
    assert_same(run(trainer, generation(trainer)), run(plain, generation(plain)), tolerance)


def test_less_of_what_is_computed_is_padding(step, generation):
    make, run = step
    computed, padding = {}, {}
    for name, options in {"plain": PLAIN, **WAYS, "default": {}}.items():
        trainer = make(**options)
        padding[name] = run(trainer, generation(trainer))[2]["objective/padding"]
        rows = trainer._rows[1]
        kept = [row for part in rows.layout.parts for row in part]
        parts = [part for number in range(4) for part in rows.parts(number, rows.inputs(number))]
        assert sum(part.real for part in parts) == sum(
            rows.lengths.real(p, rows.layout.kind) for p in rows.layout.parts
        )
        computed[name] = sum(part.computed for part in parts)
        assert padding[name] == pytest.approx(1 - sum(part.real for part in parts) / computed[name], abs=1e-6)
        assert sorted(kept) == sorted({row for part in parts for row in part.rows.tolist()})
        if "budget" in name:
            assert all(part.computed <= 24 or len(part.rows) == 1 for part in parts)
            assert len(parts) > 4
        else:
            assert len(parts) <= 4
    assert padding["plain"] > padding["padded"] > padding["packed"] == padding["shared"] == 0.0
    assert computed["plain"] > computed["padded"] > computed["packed"] > computed["shared"] == computed["default"]


def test_objectives_that_read_their_micro_batch_keep_it(step, generation):
    make, run = step
    trainer = make(objective="bapo")
    micro_batches = generation(trainer)
    run(trainer, micro_batches)
    rows = trainer._rows[1]
    assert [list(part) for part in rows.layout.parts] == [list(range(i, i + 4)) for i in range(0, 16, 4)]
    assert rows.inputs(2) is micro_batches[2]
    with pytest.raises(ValueError, match=r"max_tokens_per_micro_batch = 24 is not possible here: objective = 'bapo'"):
        make(objective="bapo", **BUDGET)


def test_an_overridden_loss_meets_the_micro_batches_of_trl(generation, step, caplog):
    """It may read every row, add to the loss, scale it, mask tokens, and give advantages to rows that have none."""
    make, run = step
    # every response keeps a token, so that the totals do not change while it masks
    make = partial(make, aggregation="seq-mean-token-sum-norm")
    trainer = make()
    micro_batches, seen = generation(trainer), []
    original = trainer._compute_loss

    def of_embeddings(model, inputs):
        return (model.get_input_embeddings().weight[inputs["completion_ids"]].square().sum(-1)).sum()

    def own(model, inputs):
        seen.append(inputs)
        inputs["completion_mask"] = inputs["completion_mask"] * (torch.arange(12) < 8)
        advantages = {"advantages": 2 * inputs["advantages"] + 1}
        return 0.5 * original(model, {**inputs, **advantages}) + of_embeddings(model, inputs)

    trainer._compute_loss = own
    trainer._begin()
    assert [record.getMessage() for record in caplog.records] == [
        "responses are neither sorted nor left out: DGPOTrainer overrides _compute_loss, which is to meet the "
        "micro-batches of TRL"
    ]
    found = run(trainer, micro_batches)[1]
    assert all(one is given for one, given in zip(seen, micro_batches, strict=True))

    other = make()
    given = [{**one, "advantages": 2 * one["advantages"] + 1} for one in generation(other)]
    for one in given:
        one["completion_mask"] = one["completion_mask"] * (torch.arange(12) < 8)
    expected = 0.5 * run(other, given)[1]
    assert other._rows[1].layout.kind != "padded"  # sorted and packed
    other.model.zero_grad()
    sum(of_embeddings(other.model, one) for one in given).backward()
    parameters = list(other.model.parameters())
    for place, p in zip(expected.split([p.numel() for p in parameters]), parameters, strict=True):
        if p.grad is not None:
            place += p.grad.flatten()
    assert (found - expected).norm() <= 1e-10 * expected.norm()


def test_no_budget_for_an_overridden_loss(build):
    class Scaled(DGPOTrainer):
        def compute_loss(self, *args, **kwargs):
            return 0.5 * super().compute_loss(*args, **kwargs)

    with pytest.raises(ValueError, match="max_tokens_per_micro_batch = 24 is not possible here: Scaled overrides comp"):
        build(Scaled, **BUDGET)


@pytest.mark.parametrize(("name", "value"), [("max_tokens_per_micro_batch", 0), ("max_tokens_per_micro_batch", -3)])
def test_a_budget_out_of_range(build, name, value):
    with pytest.raises(ValueError, match=f"{name} = {value} is not allowed"):
        build(DGPOTrainer, **{name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**BUDGET, **PLAIN}, "max_tokens_per_micro_batch = 24 needs sort_by_length = True"),
        ({"padding_free": True, **PLAIN}, "padding_free = True needs sort_by_length = True"),
        ({"shared_prompts": True, "fused_loss": False}, "shared_prompts = True needs fused_loss = True"),
        ({"shared_prompts": True, "padding_free": False}, "exclude each other: prompts are shared in a sequence"),
        ({**BUDGET, "optim": "lomo"}, "optim = .*lomo.* exclude each other"),
    ],
)
def test_what_excludes_each_other(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(DGPOTrainer, **options)
