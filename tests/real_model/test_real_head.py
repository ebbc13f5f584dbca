"""The fused head on the activations of a real model against its own logits: values and gradients."""

from __future__ import annotations

import pytest
import torch
from real_chats import QUESTIONS, user

from dgpo import linear_policy_loss, policy_loss
from dgpo.evaluation.prompts import encode

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

ANSWERS = ("56", "Paris", "The answer is 5", "Hello! How can I help you")


@pytest.fixture(scope="module")
def activations(loaded, tokenizer):
    """Hidden states of answers to real prompts, their tokens, and an off-policy problem around them."""
    prompts = encode(tokenizer, [user(text) for text in QUESTIONS])
    answers = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in ANSWERS]
    width = max(map(len, answers))
    hidden, ids = torch.zeros(len(answers), width, loaded.config.hidden_size), torch.zeros(len(answers), width).long()
    mask = torch.zeros(len(answers), width, dtype=torch.bool)
    logits = torch.zeros(len(answers), width, loaded.config.vocab_size)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        count = len(answer)
        with torch.no_grad():
            found = loaded(input_ids=torch.tensor([[*prompt, *answer]]), output_hidden_states=True, use_cache=False)
        # the state before a token predicts it
        hidden[row, :count] = found.hidden_states[-1][0, -count - 1 : -1]
        logits[row, :count] = found.logits[0, -count - 1 : -1]
        ids[row, :count], mask[row, :count] = torch.tensor(answer), True
    generator = torch.Generator().manual_seed(0)
    logprob = logits.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    old = logprob + 0.4 * torch.randn(ids.shape, generator=generator)
    advantage = torch.tensor([1.2, -0.7, 0.4, -1.5])
    return hidden, ids, old, advantage, mask, logits


def own(objective, loaded, activations):
    """Value, log-probs and gradients by autograd through the model's own head, in float32."""
    hidden, ids, old, advantage, mask, _ = activations
    hidden = hidden.clone().requires_grad_()
    weight = loaded.lm_head.weight.detach().clone().requires_grad_()
    logits = torch.func.functional_call(loaded.lm_head, {"weight": weight}, (hidden,))
    logprob = logits.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    loss = policy_loss(logprob, old, advantage, mask, objective).value
    loss.backward()
    return loss.item(), logprob.detach(), hidden.grad, weight.grad


def fused(objective, loaded, activations, dtype):
    hidden, ids, old, advantage, mask, _ = activations
    hidden = hidden.clone().requires_grad_()
    weight = loaded.lm_head.weight.detach().clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = linear_policy_loss(hidden, weight, ids, old, advantage, mask, objective=objective, chunk_tokens=8)
    out.value.backward()
    return out.value.item(), out.logprob.detach(), hidden.grad, weight.grad


def test_the_hidden_states_are_those_of_the_logits(loaded, activations):
    hidden, _, _, _, mask, logits = activations
    with torch.no_grad():
        torch.testing.assert_close(loaded.lm_head(hidden)[mask], logits[mask], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("objective", ["dgpo", "grpo", "maspo", "gspo", "vespo", "sapo", "dppo_kl", "bapo"])
def test_float32(loaded, activations, objective):
    expected, found = (of(objective, loaded, activations, *more) for of, more in ((own, ()), (fused, (torch.float32,))))
    mask = activations[4]
    assert found[0] == pytest.approx(expected[0], rel=1e-4, abs=1e-6)
    torch.testing.assert_close(found[1][mask], expected[1][mask], rtol=1e-4, atol=1e-4)
    for gradient, own_gradient in zip(found[2:], expected[2:], strict=True):
        assert own_gradient.norm() > 0
        assert (gradient - own_gradient).norm() <= 1e-4 * own_gradient.norm()
    assert (found[2][~mask] == 0).all()


@pytest.mark.parametrize("objective", ["dgpo", "gspo"])
def test_bf16(loaded, activations, objective):
    """Products in bfloat16, everything after them in float32: log-probs within the rounding of logits around 20."""
    expected = own(objective, loaded, activations)
    found = fused(objective, loaded, activations, torch.bfloat16)
    mask = activations[4]
    assert (found[1] - expected[1])[mask].abs().max() < 0.15
    assert found[2].dtype == found[3].dtype == torch.float32
    for gradient, own_gradient in zip(found[2:], expected[2:], strict=True):
        assert (gradient - own_gradient).norm() <= 0.1 * own_gradient.norm()
