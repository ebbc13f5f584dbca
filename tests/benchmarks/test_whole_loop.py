"""benchmarks/whole_loop.py ends responses where its lengths say; benchmarks/growth.py asks for what it names."""

from __future__ import annotations

from statistics import fmean

import growth
import pytest
import torch
from scripted import random_numbers
from updates import TOKENIZER, Case
from whole_loop import Clock, EndsAt, end_at

PROMPT = torch.tensor([[5, 6, 7]] * 4)


def test_before_its_end_a_row_cannot_stop_and_there_it_must() -> None:
    ends, end = EndsAt([1, 2, 2, 9]), TOKENIZER.eos_token_id
    scores = torch.randn(4, len(TOKENIZER), generator=torch.Generator().manual_seed(0))
    first = ends(PROMPT, scores).softmax(-1)[:, end]
    second = ends(torch.cat([PROMPT, PROMPT[:, :1]], dim=1), scores).softmax(-1)[:, end]
    assert first.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert second.tolist() == [1.0, 1.0, 1.0, 0.0]
    others = torch.arange(len(TOKENIZER)) != end
    expected = scores[3, others].softmax(-1)
    torch.testing.assert_close(ends(PROMPT, scores)[3, others].softmax(-1), expected)


def test_a_model_generates_the_lengths_of_the_case() -> None:
    case = Case(layers=0, mean=4, longest=12)
    model = case.model()
    end_at(model, case, round_=3)
    for call in range(2):
        made = model.generate(input_ids=PROMPT, do_sample=True, max_new_tokens=12, pad_token_id=TOKENIZER.pad_token_id)
        found = (made[:, 3:] == TOKENIZER.eos_token_id).int().argmax(1) + 1
        assert found.tolist() == case.lengths(4, random_numbers(4, 3000 + call))


def test_a_clock_counts_nested_methods_and_passes_their_results_and_errors_on() -> None:
    class Trainer:
        def outer(self, count: int) -> int:
            return self.inner(count) + 1

        def inner(self, count: int) -> int:
            return sum(range(count)) // (count > 0)

    trainer = Trainer()
    clock = Clock(trainer, ("outer", "inner"))
    assert trainer.outer(300_000) == sum(range(300_000)) + 1
    assert clock.seconds["outer"] >= clock.seconds["inner"] > 0
    with pytest.raises(ZeroDivisionError):
        trainer.outer(0)
    clock.reset()
    assert clock.seconds == {"outer": 0.0, "inner": 0.0}


@pytest.mark.parametrize("tokens", growth.TOKENS)
def test_a_point_has_the_tokens_that_it_is_called_by(tokens: int) -> None:
    case = growth.case(tokens, 0.0)
    (length,) = set(case.lengths(64, torch.Generator()))
    assert 64 * (case.prompt + length) == tokens
    spread = growth.case(tokens, 0.8)
    drawn = fmean(fmean(spread.lengths(64, torch.Generator().manual_seed(seed))) for seed in range(100))
    assert 64 * (case.prompt + drawn) == pytest.approx(tokens, rel=0.04)
