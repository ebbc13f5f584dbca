"""Generation with a real tokenizer and chat template: where it ends, what the prompt is, padding, sampled text."""

from __future__ import annotations

import json

import pytest
import torch
from real_chats import END, QUESTIONS, SYSTEM, greedy, user

from dgpo.evaluation import Sampling, Suite, TransformersBackend, evaluate
from dgpo.evaluation.prompts import encode, left_padded
from dgpo.grading import FunctionGrader, exact_match

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

# --- where it ends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("declared", ["the tokenizer's", "another", "several", None])
def test_a_completion_ends_at_the_end_of_the_turn(model, tokenizer, declared):
    """Whatever the model declares: `<|im_end|>` is the tokenizer's end token, and the template ends turns with it."""
    ends = {"the tokenizer's": tokenizer.eos_token_id, "another": 0, "several": [0, 3], None: None}
    model.generation_config.eos_token_id = ends[declared]
    (completion,) = greedy(model, tokenizer, [user(QUESTIONS[1])])
    assert completion.truncated is False
    assert "Paris" in completion.text
    # the end token counts, and nothing after it
    assert completion.tokens == len(tokenizer(completion.text)["input_ids"]) + 1
    assert END not in completion.text


def test_a_completion_without_an_end_is_truncated(model, tokenizer):
    (completion,) = greedy(model, tokenizer, [user("Count from one to a hundred.")], budget=5)
    assert (completion.truncated, completion.tokens) == (True, 5)


# --- the prompt ------------------------------------------------------------------------------------------------------


def test_the_template_gives_the_system_prompt_once(tokenizer):
    own = [{"role": "system", "content": "Answer in French."}, *user("Hello.")]
    (default, given), plain = encode(tokenizer, [user("Hello."), own]), encode(tokenizer, ["Hello."])[0]
    assert tokenizer.decode(default) == (
        f"<|im_start|>system\n{SYSTEM}{END}\n<|im_start|>user\nHello.{END}\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(given) == (
        f"<|im_start|>system\nAnswer in French.{END}\n<|im_start|>user\nHello.{END}\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(plain) == "Hello."


# --- padding ---------------------------------------------------------------------------------------------------------


def test_a_padded_batch_completes_as_each_prompt_alone(model, tokenizer):
    prompts = [user(text) for text in QUESTIONS]
    assert len({len(ids) for ids in encode(tokenizer, prompts)}) == len(prompts)  # so there is padding
    together = greedy(model, tokenizer, prompts, budget=12)
    alone = greedy(model, tokenizer, prompts, batch_size=1, budget=12)
    assert together == alone


def test_log_probs_of_a_padded_batch_are_those_without_padding(model, tokenizer):
    rows = [
        [*ids, *tokenizer(" 42 is the answer")["input_ids"]] for ids in encode(tokenizer, [user(q) for q in QUESTIONS])
    ]
    ids, mask = left_padded(rows, tokenizer.pad_token_id, model.device)

    def logprobs(ids, mask):
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -6:-1]
        return logits.log_softmax(-1).gather(-1, ids[:, -5:, None]).squeeze(-1)

    alone = torch.cat([logprobs(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long)) for row in rows])
    torch.testing.assert_close(logprobs(ids, mask), alone, rtol=1e-4, atol=1e-4)


# --- sampled text ----------------------------------------------------------------------------------------------------


def test_pass_at_k_on_sampled_text(model, tokenizer, tmp_path):
    """The estimates against the grades of the texts themselves; the same seed gives the same texts."""
    problems = [
        {"id": f"{a}x{b}", "prompt": user(f"What is {a} * {b}? Reply with the number only."), "answer": str(a * b)}
        for a, b in [(2, 3), (4, 5), (9, 8)]
    ]
    suite = Suite("products", problems, FunctionGrader(exact_match, "exact_match"))
    sampling = Sampling(samples=6, max_new_tokens=8, temperature=1.0, seed=3)
    backend = TransformersBackend(model, tokenizer, batch_size=32, name="a real model")
    found = evaluate([suite], backend, sampling, out=tmp_path / "first", ks=[1, 3, 6])
    rows = [json.loads(line) for line in (tmp_path / "first" / "generations.jsonl").read_text().splitlines()]
    sampled = [row for row in rows if row["kind"] == "sample"]
    assert len(sampled) == 18
    assert len({row["completion"] for row in sampled}) > 3
    assert not any("<|" in row["completion"] for row in rows)
    right = {p["id"]: int(sum(row["score"] for row in sampled if row["id"] == p["id"])) for p in problems}
    assert sum(right.values()) > 0
    estimates = found.benchmarks["products"].estimates
    assert estimates["avg@6"].value == pytest.approx(sum(right.values()) / 18)
    # 1 - C(n - c, 3) / C(n, 3)
    misses = [(6 - c) * (5 - c) * (4 - c) / 120 if c < 4 else 0.0 for c in right.values()]
    assert estimates["pass@3"].value == pytest.approx(1 - sum(misses) / 3)
    assert estimates["pass@6"].value == pytest.approx(sum(c > 0 for c in right.values()) / 3)
    again = evaluate([suite], backend, sampling, out=tmp_path / "second", ks=[1, 3, 6])
    assert again.benchmarks["products"].estimates == found.benchmarks["products"].estimates
