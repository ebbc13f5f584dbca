"""benchmarks/whole_loop.py ends responses where its lengths say; benchmarks/growth.py asks for what it names."""

from __future__ import annotations

from statistics import fmean

import growth
import pytest
import torch
from updates import TOKENIZER, Case
from whole_loop import Clock, Countdown, shares

from dgpo.evaluation.decoding import faster_generate

PROMPT = torch.tensor([[5, 6, 7]] * 4)
CASE = Case(layers=0, mean=8, longest=24)


def lengths_of(model, prompts: int, rows: int) -> list[int]:
    ids = PROMPT[:1].repeat(prompts * rows, 1)
    made = model.generate(
        input_ids=ids, do_sample=True, top_k=0, max_new_tokens=24, pad_token_id=TOKENIZER.pad_token_id
    )
    ended = made[:, 3:] == TOKENIZER.eos_token_id
    assert ended.any(1).all()
    return (ended.int().argmax(1) + 1).tolist()


@pytest.fixture(scope="module")
def model():
    made = CASE.model()
    Countdown(made, CASE)
    return made


def test_a_model_generates_lengths_of_the_case_by_any_loop(model) -> None:
    torch.manual_seed(0)
    theirs = lengths_of(model, 2, 64)
    assert fmean(theirs) == pytest.approx(float(shares(CASE) @ torch.arange(1.0, 25.0).double()), rel=0.15)
    assert len(set(theirs)) > 10
    torch.manual_seed(0)
    with faster_generate(model):
        assert lengths_of(model, 2, 64) == theirs


def test_outside_of_generation_a_model_is_as_it_was(model) -> None:
    torch.testing.assert_close(model(input_ids=PROMPT).logits, CASE.model()(input_ids=PROMPT).logits)


def test_shares_are_those_of_the_lengths_that_are_scripted() -> None:
    drawn = torch.tensor(CASE.lengths(100_000, torch.Generator().manual_seed(0)))
    found = torch.bincount(drawn, minlength=25)[1:] / 100_000
    torch.testing.assert_close(shares(CASE).float(), found, rtol=0, atol=0.005)
    equal = shares(Case(layers=0, mean=5, sigma=0.0, longest=9))
    assert equal.tolist() == [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]


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
