"""What of a micro-batch the policy does not need to see: rows without advantage, and columns of padding."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    Llama4TextConfig,
    LlamaConfig,
    Phi3Config,
    Qwen3Config,
)

from dgpo.training import DGPOTrainer
from dgpo.training.micro_batches import Padding, loss_mask
from dgpo.training.step_rows import How, StepRows

BOTH = Padding(left=True, right=True)


def batch(**changes):
    """4 rows; prompts of 2, 3, 1, 3 in 5 columns, completions of 4, 2, 5, 1 in 6."""
    prompts, completions = torch.tensor([2, 3, 1, 3]), torch.tensor([4, 2, 5, 1])
    generator = torch.Generator().manual_seed(0)
    made = {
        "prompt_ids": torch.randint(3, 50, (4, 5), generator=generator),
        "prompt_mask": (torch.arange(5) >= 5 - prompts.unsqueeze(1)).long(),
        "completion_ids": torch.randint(3, 50, (4, 6), generator=generator),
        "completion_mask": (torch.arange(6) < completions.unsqueeze(1)).long(),
        "advantages": torch.tensor([0.5, 0.0, -0.5, 0.0]),
        "num_items_in_batch": torch.tensor(12),
    }
    return made | changes


def part_of(inputs, padding=BOTH, *, drop=False):
    """The step that is this micro-batch alone, and its one forward pass."""
    rows = StepRows([inputs], How(padding=padding, drop=drop, rearrange=False))
    [part] = rows.parts(0, rows.inputs(0))
    return rows, part


def restored(rows, values):
    rows.write("restored", [values])
    return rows._micro_batches[0].pop("restored")


# --- trimming ---------------------------------------------------------------------------------------------------------


def test_columns_without_a_token_are_cut():
    inputs = batch(old_per_token_logps=torch.rand(4, 6), importance_sampling_ratio=torch.rand(4, 1))
    rows, made = part_of(inputs)
    assert made.inputs["prompt_ids"].tolist() == inputs["prompt_ids"][:, 2:].tolist()
    assert made.inputs["completion_ids"].tolist() == inputs["completion_ids"][:, :5].tolist()
    assert made.inputs["old_per_token_logps"].shape == made.inputs["completion_mask"].shape == (4, 5)
    assert made.inputs["importance_sampling_ratio"].shape == (4, 1)
    assert made.inputs["num_items_in_batch"] == 12
    assert (made.rows.tolist(), rows.dropped) == ([0, 1, 2, 3], 0.0)
    assert (made.computed, made.real) == (4 * (3 + 5), 9 + 12)


@pytest.mark.parametrize(
    ("padding", "prompt", "completion"),
    [
        (Padding(left=False, right=False), 5, 6),
        (Padding(left=False, right=True), 5, 5),
        (Padding(left=True, right=True, multiple=2), 4, 6),
        (Padding(left=True, right=True, multiple=4), 4, 6),
    ],
)
def test_what_padding_allows(padding, prompt, completion):
    inputs = part_of(batch(), padding)[1].inputs
    assert (inputs["prompt_ids"].shape[1], inputs["completion_ids"].shape[1]) == (prompt, completion)


def test_a_column_of_each_is_left():
    empty = batch(prompt_mask=torch.zeros(4, 5).long(), completion_mask=torch.zeros(4, 6).long())
    inputs = part_of(empty, drop=True)[1].inputs
    assert inputs["prompt_ids"].shape == inputs["completion_ids"].shape == (1, 1)


@pytest.mark.parametrize(
    ("config", "left", "right"),
    [
        (Qwen3Config(), True, True),
        (Gemma3TextConfig(), True, True),
        (GPT2Config(), False, True),  # learned positions, counted from the first column
        (Llama4TextConfig(), False, True),  # attention in chunks, counted from the first column
        (LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}), False, False),
        (
            Phi3Config(
                rope_parameters={
                    "rope_type": "longrope",
                    "short_factor": [1.0] * 48,
                    "long_factor": [2.0] * 48,
                    "rope_theta": 1e4,
                    "original_max_position_embeddings": 4096,
                }
            ),
            False,
            False,
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_padding_by_model(config, left, right):
    assert Padding.of(config, None) == Padding(left=left, right=right)
    assert Padding.of(config, 8).multiple == 8


def test_images_are_left_alone():
    inputs = batch(pixel_values=torch.zeros(4, 3))
    assert part_of(inputs, drop=True)[1].inputs is inputs


def test_trimming_does_not_change_log_probs(build, tiny_folder):
    """Rotary positions shift with the padding that goes; the log-probs do not."""
    trainer = build(DGPOTrainer)
    inputs = batch()
    rows, made = part_of(inputs, trainer._padding)
    assert made.inputs["prompt_ids"].shape[1] < 5
    with torch.no_grad():
        whole, _, _ = trainer._forward(trainer.model, inputs)
        logprob, _, _ = trainer._forward(trainer.model, made.inputs)
    mask = inputs["completion_mask"].bool()
    torch.testing.assert_close(restored(rows, logprob)[mask], whole[mask], rtol=0, atol=2e-6)


def test_learned_positions_would_change_them():
    """Why prompts of a model with learned positions keep their padding."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2, n_positions=32, initializer_range=0.5)
    model = AutoModelForCausalLM.from_config(config).eval()
    inputs = batch()
    logits = []
    for made in (inputs, part_of(inputs)[1].inputs):
        ids = torch.cat([made["prompt_ids"], made["completion_ids"]], 1)
        mask = torch.cat([made["prompt_mask"], made["completion_mask"]], 1)
        with torch.no_grad():
            logits.append(model(input_ids=ids, attention_mask=mask).logits[:, made["prompt_ids"].shape[1]])
    assert (logits[0] - logits[1]).abs().max() > 1e-2


# --- rows -------------------------------------------------------------------------------------------------------------


def test_rows_without_advantage_or_token_are_dropped():
    mask = batch()["completion_mask"]
    mask[0] = 0
    inputs = batch(completion_mask=mask, old_per_token_logps=torch.rand(4, 6), correct=torch.ones(4).bool())
    rows, made = part_of(inputs, drop=True)
    assert made.rows.tolist() == [2]
    assert rows.dropped == 0.75
    assert made.inputs["prompt_ids"].shape == (1, 1)
    assert torch.equal(made.inputs["old_per_token_logps"], inputs["old_per_token_logps"][2:3, :5])
    assert made.inputs["correct"].shape == (1,)
    whole = restored(rows, made.inputs["old_per_token_logps"])
    assert torch.equal(whole[2, :5], inputs["old_per_token_logps"][2, :5])
    assert whole[[0, 1, 3]].abs().max() == whole[2, 5] == 0


def test_tool_results_alone_are_no_reason_to_keep_a_row():
    tools = torch.ones(4, 6).long()
    tools[0] = 0
    assert part_of(batch(tool_mask=tools), drop=True)[1].rows.tolist() == [2]


def test_advantages_of_tokens_and_nan():
    advantages = torch.zeros(4, 6)
    advantages[1, 1], advantages[3, 0] = -1e-30, torch.nan
    assert part_of(batch(advantages=advantages), drop=True)[1].rows.tolist() == [1, 3]


def test_one_row_is_kept():
    """The shortest, and none of its tokens counts."""
    rows, made = part_of(batch(advantages=torch.zeros(4)), drop=True)
    assert (made.rows.tolist(), made.idle, made.real) == ([3], True, 0)
    assert made.inputs["completion_mask"].tolist() == [[0]]
    assert restored(rows, torch.ones(1, 1)).tolist() == [[0.0] * 6] * 4


# --- in the trainer ---------------------------------------------------------------------------------------------------

SPARSE = torch.tensor([1.2, 0.0, 0.0, -1.5])


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "log-probs"])
@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"])
@pytest.mark.parametrize("objective", ["dgpo", "gspo", "gmpo"])
@pytest.mark.parametrize("advantages", [SPARSE, torch.zeros(4)], ids=["half", "all-zero"])
def test_the_gradient_is_that_of_all_rows(build, micro_batch, gradient_of, fused, aggregation, objective, advantages):
    trainer = build(DGPOTrainer, fused_loss=fused, aggregation=aggregation, objective=objective)
    inputs = {**micro_batch(trainer), "advantages": advantages}
    loss, gradient = gradient_of(trainer, inputs)
    trainer._needs_all_rows = lambda: True
    expected_loss, expected = gradient_of(trainer, inputs)
    assert loss == pytest.approx(expected_loss, abs=1e-7)
    assert (gradient - expected).norm() <= 1e-6 * expected.norm()
    dropped = trainer._metrics["train"]["objective/rows_dropped"]
    assert dropped == [0.5 if advantages is SPARSE else 1.0, 0.0]
    zero = trainer._metrics["train"]["objective/advantage/zero_fraction"]
    assert zero[0] == pytest.approx(zero[1], abs=1e-6)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "log-probs"])
def test_a_penalty_needs_the_responses_with_advantage_0(build, micro_batch, gradient_of, fused):
    """Their gradient is the penalty's alone: in the loss and in the trainer no row and no token is left out."""
    trainer = build(DGPOTrainer, fused_loss=fused, objective="dro:beta=0.5")
    inputs = micro_batch(trainer)
    _, alone = gradient_of(trainer, {**inputs, "advantages": torch.zeros(4)})
    _, both = gradient_of(trainer, {**inputs, "advantages": SPARSE})
    assert alone.norm() > 1e-4
    other = build(DGPOTrainer, fused_loss=fused, objective="dro:beta=0")
    _, without = gradient_of(other, {**inputs, "advantages": SPARSE})
    assert (both - alone - without).norm() <= 1e-5 * both.norm()
    assert trainer._metrics["train"]["objective/rows_dropped"] == [0.0, 0.0]
    assert other._metrics["train"]["objective/rows_dropped"] == [0.5]


def test_metrics_are_of_what_is_left(build, micro_batch, gradient_of):
    trainer = build(DGPOTrainer)
    inputs = {**micro_batch(trainer), "advantages": SPARSE}
    gradient_of(trainer, inputs)
    with torch.no_grad():
        _, entropy, _ = trainer._forward(trainer.model, inputs)
    left = loss_mask(inputs).bool() & (SPARSE != 0).unsqueeze(1)
    assert trainer._metrics["train"]["entropy"] == pytest.approx([entropy[left].mean().item()], abs=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.1},
        {"entropy_coef": 0.1},
        {"use_adaptive_entropy": True, "entropy_target": 1.0},
        {"positive_nll_coef": 0.1},
        {"top_entropy_quantile": 0.5},
        {"advantage": "entropy_shaped"},
        {"objective": "bapo"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_rows_stay_where_something_else_reads_them(build, micro_batch, options):
    trainer = build(DGPOTrainer, **options)
    assert rows_seen(trainer, micro_batch, training=True) == [0, 1, 2, 3]


def rows_seen(trainer, micro_batch, *, training):
    trainer.model.train(training)
    _, parts = trainer._parts({**micro_batch(trainer), "advantages": SPARSE})
    return sorted(row for part in parts for row in part.rows.tolist())


def test_rows_stay_in_evaluation(build, micro_batch):
    trainer = build(DGPOTrainer)
    assert rows_seen(trainer, micro_batch, training=True) == [0, 3]
    assert rows_seen(trainer, micro_batch, training=False) == [0, 1, 2, 3]


@pytest.mark.parametrize("reward", [0.1, 0.3, 1 / 3, 0.9, 1.0])
def test_a_constant_reward_teaches_nothing_whatever_rounding_leaves(build, reward):
    """TRL's (r - mean) / (std + 1e-4) of equal rewards is not 0 for most of them."""
    constant = lambda completions, **columns: [reward] * len(completions)  # noqa: E731
    trainer = build(DGPOTrainer, reward=constant, num_generations=8, per_device_train_batch_size=8, max_steps=2)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "grad_norm" in row]
    assert [row["grad_norm"] for row in rows] == [0.0, 0.0]
    assert rows[0]["objective/advantage/zero_fraction"] == 1.0
