import logging
import subprocess
import sys
from collections import Counter

import pytest
import torch
from tokenizers import processors
from transformers import GenerationConfig

from dgpo.evaluation import Completion, generate
from dgpo.evaluation.prompts import encode

PROMPTS = ["12+34=", "7", "what is 5+5?", "a", "12+34=", "0123456789 and more: "]
BUDGET = {"max_new_tokens": 12, "progress": False}


def test_greedy_in_a_batch_is_greedy_one_by_one(model, tokenizer):
    """Which is what left padding, its mask and the restored order have to achieve."""
    together = generate(model, tokenizer, PROMPTS, samples=None, **BUDGET)
    alone = [generate(model, tokenizer, [prompt], samples=None, **BUDGET)[0] for prompt in PROMPTS]
    assert together == alone
    assert together == generate(model, tokenizer, PROMPTS, samples=None, batch_size=4, **BUDGET)
    assert len({found[0].text for found in together}) == len(set(PROMPTS))


def test_greedy_is_the_argmax_of_the_unpadded_prompt(model, tokenizer):
    model.eval()
    for prompt, (found,) in zip(PROMPTS, generate(model, tokenizer, PROMPTS, samples=None, **BUDGET), strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        width = ids.shape[1]
        while ids.shape[1] < width + 12 and ids[0, -1] != tokenizer.eos_token_id:
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        assert found.text == tokenizer.decode(ids[0, width:], skip_special_tokens=True)
        assert found.tokens == ids.shape[1] - width


def test_temperature_zero_is_greedy(model, tokenizer):
    greedy = generate(model, tokenizer, PROMPTS, samples=None, **BUDGET)
    assert generate(model, tokenizer, PROMPTS, samples=3, temperature=0, **BUDGET) == [one * 3 for one in greedy]


def test_samples_repeat_with_the_seed_and_differ_otherwise(model, tokenizer):
    first = generate(model, tokenizer, PROMPTS, samples=4, batch_size=5, **BUDGET)
    assert [len(found) for found in first] == [4] * len(PROMPTS)
    assert first == generate(model, tokenizer, PROMPTS, samples=4, batch_size=5, **BUDGET)
    assert first != generate(model, tokenizer, PROMPTS, samples=4, batch_size=5, seed=1, **BUDGET)
    assert all(len({one.text for one in found}) > 1 for found in first)
    assert first[0] != first[4]  # the same prompt twice


def test_order_is_that_of_the_prompts(model, tokenizer):
    """A model that repeats its last token tells which prompt a completion belongs to."""
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.copy_(1000 * model.model.embed_tokens.weight)
        model.lm_head.weight[:3] = 0
        model.lm_head.weight.div_(model.lm_head.weight.norm(dim=1, keepdim=True).clamp(min=1e-6)).mul_(1000)
    prompts = ["x" * (1 + 7 * place % 5) + letter for place, letter in enumerate("qwertyuiop")]
    found = generate(model, tokenizer, prompts, samples=2, batch_size=3, max_new_tokens=3, progress=False)
    assert [[one.text for one in row] for row in found] == [[prompt[-1] * 3] * 2 for prompt in prompts]


def test_samples_follow_the_whole_tempered_distribution(make_model, tokenizer):
    """Not transformers' top-50: all 69 tokens of a flat model come up, as often as they should."""
    model, count, temperature = make_model(initializer_range=0.1).eval(), 6000, 0.7
    (found,) = generate(
        model, tokenizer, ["5+5="], samples=count, temperature=temperature, max_new_tokens=1, progress=False
    )
    with torch.no_grad():
        logits = model(tokenizer("5+5=", return_tensors="pt")["input_ids"]).logits[0, -1]
    expected = (logits / temperature).softmax(-1)
    drawn = Counter(one.text for one in found)
    shares = torch.tensor([drawn[tokenizer.decode([token])] / count for token in range(3, len(expected))])
    assert len(drawn) > 60
    assert (shares - expected[3:]).abs().max() < 5 * (expected.max() / count).sqrt()


def test_top_p_narrows(make_model, tokenizer):
    model = make_model(initializer_range=0.1)
    options = {"samples": 300, "max_new_tokens": 1, "progress": False}
    (whole,) = generate(model, tokenizer, ["5+5="], **options)
    (nucleus,) = generate(model, tokenizer, ["5+5="], top_p=0.1, **options)
    assert len(set(nucleus)) < len(set(whole)) / 3


def test_the_saved_generation_config_does_not_leak(model, tokenizer):
    clean = generate(model, tokenizer, PROMPTS, samples=3, **BUDGET)
    clean_greedy = generate(model, tokenizer, PROMPTS, samples=None, **BUDGET)
    saved = GenerationConfig(
        do_sample=True,
        temperature=0.01,
        top_k=1,
        min_p=0.9,
        typical_p=0.1,
        repetition_penalty=7.0,
        no_repeat_ngram_size=1,
        suppress_tokens=[5, 6, 7],
        min_new_tokens=12,
        max_length=3,
        eos_token_id=1,
    )
    model.generation_config = saved
    assert generate(model, tokenizer, PROMPTS, samples=3, **BUDGET) == clean
    assert generate(model, tokenizer, PROMPTS, samples=None, **BUDGET) == clean_greedy
    assert model.generation_config is saved


def test_end_tokens_of_model_and_tokenizer_end_a_completion(model, make_tokenizer):
    ends = "0123456789ABCDEFGHIJ"
    tokenizer = make_tokenizer(eos_token="z")
    with torch.no_grad():  # as likely as a digit
        model.lm_head.weight[tokenizer.eos_token_id] = model.lm_head.weight[tokenizer.convert_tokens_to_ids("0")]
    model.generation_config.eos_token_id = [tokenizer.convert_tokens_to_ids(end) for end in ends]
    (found,) = generate(model, tokenizer, ["12+34="], samples=200, max_new_tokens=4, progress=False)
    assert not any(set(one.text) & set(ends + "z") for one in found)
    whole = [one for one in found if not one.truncated]
    cut = [one for one in found if one.truncated]
    assert whole
    assert cut
    assert all(one.tokens == 4 for one in cut)
    # "<eos>" is an ordinary token of this tokenizer, and neither <pad> nor <unk> show in a text
    assert all(len(one.text.replace("<eos>", "e")) < one.tokens <= 4 for one in whole)
    assert Completion(text="", tokens=1, truncated=False) in whole

    model.generation_config.eos_token_id = None
    (found,) = generate(model, tokenizer, ["12+34="], samples=200, max_new_tokens=4, progress=False)
    assert 0 < sum(one.truncated for one in found) < 200


def test_without_any_end_or_pad_token_every_completion_is_truncated(model, make_tokenizer):
    model.generation_config.eos_token_id = None
    tokenizer = make_tokenizer(eos_token=None, pad_token=None)
    found = generate(model, tokenizer, PROMPTS, samples=None, **BUDGET)
    assert all(one.truncated and one.tokens == 12 for (one,) in found)


def test_everything_is_put_back(model, tokenizer):
    model.train()
    model.model.layers[0].eval()  # a frozen part must not be thawed
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    generate(model, tokenizer, PROMPTS, samples=2, **BUDGET)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert tokenizer.padding_side == "right"


def test_everything_is_put_back_after_an_error(model, tokenizer, monkeypatch):
    seen = []

    def fail(**arguments):
        seen.append(model.training)
        raise RuntimeError("out of memory")

    model.train()
    saved = model.generation_config
    monkeypatch.setattr(model, "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        generate(model, tokenizer, PROMPTS, samples=2, **BUDGET)
    assert seen == [False]
    assert model.training
    assert model.generation_config is saved


def test_adapters(model, tokenizer):
    peft = pytest.importorskip("peft")
    plain = generate(model, tokenizer, PROMPTS, samples=2, **BUDGET)
    model.generation_config = saved = GenerationConfig(do_sample=True, top_k=1, eos_token_id=1)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    assert generate(adapted, tokenizer, PROMPTS, samples=2, **BUDGET) == plain  # LoRA starts at 0
    assert model.generation_config is saved
    assert adapted.generation_config is saved


def test_chats_go_through_the_template(model, tokenizer):
    chats = [[{"role": "user", "content": text}] for text in ("5+5", "a")]
    with pytest.raises(ValueError, match=r"prompts\[1\] is a list of messages.*no chat template"):
        generate(model, tokenizer, ["5+5", chats[0]], samples=None, **BUDGET)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '|' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    written = ["user:5+5|assistant:", "user:a|assistant:"]
    expected = generate(model, tokenizer, written, samples=None, **BUDGET)
    assert generate(model, tokenizer, chats, samples=None, **BUDGET) == expected


def test_special_tokens_come_from_the_tokenizer_or_the_template_but_not_from_both(tokenizer):
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<unk> $A", special_tokens=[("<unk>", 2)]
    )
    tokenizer.chat_template = "<unk>{{ messages[0]['content'] }}"
    text, chat = encode(tokenizer, ["ab", [{"role": "user", "content": "ab"}]])
    assert text == chat == [2, *tokenizer.convert_tokens_to_ids(["a", "b"])]


def test_no_prompts_and_no_warnings(model, tokenizer, caplog, capfd, recwarn):
    assert generate(model, tokenizer, [], samples=2, **BUDGET) == []
    logging.getLogger("transformers").propagate = True
    generate(model, tokenizer, PROMPTS, samples=None, **BUDGET)
    generate(model, tokenizer, PROMPTS, samples=1, top_p=0.9, **BUDGET)
    assert not caplog.records
    assert capfd.readouterr().err == ""
    assert not [warning for warning in recwarn if warning.category is UserWarning]


def test_progress_counts_completions(model, tokenizer, capfd):
    generate(model, tokenizer, PROMPTS, samples=2, max_new_tokens=2)
    assert "12/12" in capfd.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        {"samples": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"max_new_tokens": 0},
        {"batch_size": 0},
    ],
)
def test_settings_out_of_range(model, tokenizer, options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} = .*expected"):
        generate(model, tokenizer, PROMPTS, **{"samples": 1, **BUDGET, **options})


def test_a_prompt_without_tokens_is_named(model, tokenizer):
    with pytest.raises(ValueError, match=r"prompts\[1\] = '' has no tokens"):
        generate(model, tokenizer, ["a", ""], samples=1, **BUDGET)


def test_dgpo_does_not_import_the_room_and_the_room_is_cheap():
    code = (
        "import sys, dgpo; assert not [name for name in sys.modules if name.startswith('dgpo.evaluation')];"
        "import dgpo.evaluation; print(sorted({'transformers', 'rich', 'datasets', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
