"""The heads of verl's launch scripts: their numbers are those of the plan of the YAML beside them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from recipe_plans import ROOT, SIZES, head_of, joined, of_verl, plan_of_script, setting, text_of


@pytest.mark.parametrize("size", SIZES)
def test_the_numbers_of_the_head(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A micro-batch is packed up to as many tokens as the YAML's has at full length."""
    monkeypatch.chdir(ROOT)
    plan = plan_of_script(size)
    tokens = int(setting(size, "TOKENS_PER_GPU"))
    assert tokens == plan.config.per_device_train_batch_size * (plan.prompt_tokens + plan.config.max_completion_length)
    found = of_verl(plan, tokens)
    head = joined(head_of(text_of(f"verl/dapo-math-{size}.sh")))
    for phrase in ("memory", "sums", "time", "run"):
        assert str(found[phrase]) in head
    assert plan.gpu is not None
    assert max(float(found["update"]), plan.generation_gib) < 0.95 * plan.gpu.gib


@pytest.mark.parametrize("size", SIZES)
def test_what_the_head_has_to_say(size: str) -> None:
    head = head_of(text_of(f"verl/dapo-math-{size}.sh"))
    assert len(head.splitlines()) <= 45
    for word in ("Hardware:", "Memory:", "Time:", "Expect:"):
        assert re.search(rf"^{word} +\S", head, re.MULTILINE), word
    assert "NOT A RESULT: we have not run it" in head
    assert "pip install 'verl[vllm,fsdp]==0.9.1' '.[verl]'" in head
    assert f"bash recipes/verl/dapo-math-{size}.sh dgpo" in head
    assert Path(f"dapo-math-{size}.sh").name in text_of("README.md")
