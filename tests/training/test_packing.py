"""Loss and gradient of packed sequences, with and without shared prompts, are those of each row by itself."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_architectures import NAMES, tiny
from torch import nn

from dgpo import StepTotals, linear_policy_loss
from dgpo.objectives import OBJECTIVES
from dgpo.training import DGPOTrainer
from dgpo.training.forwards import HeadOutput, add_policy_loss, apply_to_hidden
from dgpo.training.packing import Packing, shared_prompts, why_not_packed, why_not_shared

# tokens of prompt and response; the window of the tiny models is 16
LENGTHS = ((5, 9), (3, 1), (5, 17), (1, 4), (5, 0), (3, 20), (1, 1))
PROMPTS = (0, 1, 0, 2, 0, 1, 3)


def batch(lengths=LENGTHS, prompts=PROMPTS, *, pad=0):
    """A micro-batch of random tokens; rows with the same number have the same prompt."""
    generator = torch.Generator().manual_seed(0)
    before, after = (torch.tensor([one[i] for one in lengths]).unsqueeze(1) for i in (0, 1))
    left, right = int(before.max()) + pad, max(int(after.max()), 1) + pad
    of_prompts, of_completions = (
        torch.randint(3, 120, (len(lengths), width), generator=generator) for width in (left, right)
    )
    first = [prompts.index(number) for number in prompts]
    return {
        "prompt_ids": of_prompts[first],
        "prompt_mask": (torch.arange(left, 0, -1) <= before).long(),
        "completion_ids": of_completions,
        "completion_mask": (torch.arange(right) < after).long(),
    }


def row(inputs, index):
    """One row of a micro-batch without its padding."""
    prompt, response = (int(inputs[f"{kind}_mask"][index].sum()) for kind in ("prompt", "completion"))
    start = inputs["prompt_ids"].shape[1] - prompt
    return {
        key: value[index : index + 1, start:] if "prompt" in key else value[index : index + 1, : max(response, 1)]
        for key, value in inputs.items()
    }


def gradients(model, calls):
    """Sum of the values of `calls` and the gradient of every parameter."""
    model.zero_grad()
    values = [call().value for call in calls]
    sum(values).backward()
    return sum(values).item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def both(model, lengths=LENGTHS, prompts=PROMPTS, *, share, pad=0):
    """Value and gradients of a sum over hidden states: each row by itself, and packed."""
    inputs = batch(lengths, prompts, pad=pad)
    width = inputs["completion_ids"].shape[1]
    hidden_size = model.get_output_embeddings().weight.shape[1]
    factors = torch.randn(len(lengths), width, hidden_size, generator=torch.Generator().manual_seed(1))
    factors *= inputs["completion_mask"].unsqueeze(-1)

    def of(weights):
        return lambda hidden, lm_head, bias: HeadOutput(value=(hidden * weights.to(hidden.dtype)).sum() / 100)

    alone = []
    for index in range(len(lengths)):
        mine = row(inputs, index)
        weights = factors[index : index + 1, : mine["completion_ids"].shape[1]]
        alone.append(lambda mine=mine, weights=weights: apply_to_hidden(model, mine, of(weights)))
    packing = Packing.of(inputs, prompts=prompts if share else None)
    assert packing.sequences.shared == share
    expected = gradients(model, alone)
    return expected, gradients(model, [lambda: apply_to_hidden(model, inputs, of(factors), packing)])


def check(expected, found, tolerance):
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    assert expected[1].keys() == found[1].keys()
    for name, gradient in expected[1].items():
        distance = (found[1][name] - gradient).abs().max() / gradient.abs().max().clamp(min=1e-3)
        assert distance <= tolerance, name


def exact(name):
    """A tiny model in float64, which computes in float64 throughout; starcoder2 with the window of its release."""
    model = tiny(name).double()
    if name == "starcoder2":
        model.config.sliding_window = 16
    add_policy_loss(model)
    return model


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("name", ["starcoder2", "gpt_neox", "phi", "stablelm"])
def test_float64(name, share):
    # starcoder2: grouped keys and a window shorter than the sequences
    check(*both(exact(name), share=share, pad=2), 1e-10)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text", "mistral"])
def test_norms_in_float32(name, share):
    # the norms of these models compute in float32, whatever the model; gemma3_text has a window in some layers
    check(*both(exact(name), share=share), 3e-6)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    model = exact("starcoder2").train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    check(*both(model, share=True), 1e-10)


def test_long_responses_are_attended_to_in_parts(monkeypatch):
    monkeypatch.setattr("dgpo.training.packed_attention._QUERIES", 4)
    for name in ("starcoder2", "phi"):  # with and without a window
        check(*both(exact(name), share=True), 1e-10)
        check(*both(exact(name), ((5, 17), (5, 17), (5, 9)), (0, 0, 0), share=True), 1e-10)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("name", ["starcoder2", "phi"])
def test_sequences_of_the_same_length_are_computed_together(name, share):
    lengths = ((5, 17), (5, 17), (5, 3), (5, 3), (4, 17), (4, 18), (4, 18))
    prompts = (0, 0, 0, 0, 1, 1, 1)
    model = exact(name)
    check(*both(model, lengths, prompts, share=share), 1e-10)
    runs = Packing.of(batch(lengths, prompts), prompts=prompts if share else None).sequences.runs
    assert [(run.rows, run.length, run.responses) for run in runs] == (
        [(1, 5, ((2, 17), (2, 3))), (1, 4, ((1, 17), (2, 18)))]
        if share
        else [(2, 22, ()), (2, 8, ()), (1, 21, ()), (2, 22, ())]
    )


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("lengths", [((1, 1),), ((1, 0),), ((4, 0), (4, 0)), ((7, 3),), ((2, 0), (2, 5))])
def test_few_tokens(lengths, share):
    prompts = (0,) * len(lengths)
    check(*both(exact("starcoder2"), lengths, prompts, share=share and len(lengths) > 1), 1e-10)


def test_where_tokens_are():
    inputs = batch(((2, 3), (2, 1), (1, 2)), (7, 7, 5), pad=1)
    packing = Packing.of(inputs, prompts=[7, 7, 5])
    ids, completions = inputs["prompt_ids"], inputs["completion_ids"]
    expected = [*ids[0, 1:], *completions[0, :3], *completions[1, :1], *ids[2, 2:], *completions[2, :2]]
    assert packing.ids(inputs).tolist() == [[int(one) for one in expected]]
    assert packing.positions.tolist() == [[0, 1, 2, 3, 4, 2, 0, 1, 2]]
    assert packing.sequences.groups == ((2, (3, 1)), (1, (2,)))
    assert (packing.sequences.tokens, packing.sequences.longest) == (9, 5)
    valid = inputs["completion_mask"].bool()
    assert packing.predicts[valid].tolist() == [1, 2, 3, 1, 6, 7]
    # whatever the host knows already is the same
    known = Packing.of(inputs, prompts=[7, 7, 5], lengths=[(2, 3), (2, 1), (1, 2)])
    assert known.sequences == packing.sequences
    assert known.predicts.equal(packing.predicts)


def test_a_prompt_without_a_token_is_not_packed():
    assert Packing.of(batch(((0, 3), (2, 1)), (0, 1))) is None


def test_rows_with_the_same_prompt():
    inputs = batch(((2, 3), (2, 1), (1, 2), (2, 2)), (7, 7, 5, 7), pad=1)
    found = shared_prompts(inputs)
    assert [found.index(number) for number in found] == [0, 0, 2, 0]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective(name):
    model = exact("phi")
    inputs = batch()
    mask = inputs["completion_mask"].bool()
    old = -1 - torch.rand(mask.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    advantage = torch.linspace(-1, 1, len(mask), dtype=torch.float64)

    def loss(**hidden):
        return linear_policy_loss(
            token_ids=inputs["completion_ids"],
            old_logprob=old,
            advantage=advantage,
            mask=mask,
            objective=name,
            totals=StepTotals.of(mask),
            **hidden,
        )

    # the rows are padded on the left here, and positions start at the padding
    padded = gradients(model, [lambda: apply_to_hidden(model, inputs, loss)])
    for prompts in (None, PROMPTS):
        packed = gradients(
            model, [lambda p=prompts: apply_to_hidden(model, inputs, loss, Packing.of(inputs, prompts=p))]
        )
        check(padded, packed, 1e-5)


# --- inside of other libraries' wrappers ------------------------------------------------------------------------------


def test_lora():
    model = get_peft_model(tiny("starcoder2").double(), LoraConfig(target_modules=["q_proj", "v_proj", "c_fc"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at first, which would hide an error
                parameter.normal_(generator=torch.Generator().manual_seed(0), std=0.1)
    add_policy_loss(model.get_base_model())
    expected, found = both(model, share=True)
    assert all("lora" in name for name in expected[1])
    check(expected, found, 1e-10)


def test_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        model = tiny("llama")
        add_policy_loss(model)
        (value, expected), (packed, found) = both(model, share=True)
    assert packed == pytest.approx(value, rel=0.02, abs=0.02)
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 0.05 * gradient.norm(), name


@pytest.mark.soak
def test_torch_compile():
    model = tiny("llama")
    add_policy_loss(model)
    inputs = batch()
    packing = Packing.of(inputs, prompts=PROMPTS)

    def loss(hidden, lm_head, bias):
        return HeadOutput(value=(hidden * inputs["completion_mask"].unsqueeze(-1)).square().sum())

    plain = gradients(model, [lambda: apply_to_hidden(model, inputs, loss, packing)])
    compiled = torch.compile(model, backend="eager")
    check(plain, gradients(model, [lambda: apply_to_hidden(compiled, inputs, loss, packing)]), 1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_kernels_that_find_sequences_by_their_positions(monkeypatch, name):
    # those of flash attention need a GPU; SDPA of transformers finds them in the same way
    monkeypatch.setattr("dgpo.training.packing.is_flash_attention_requested", lambda config: True)
    check(*both(exact(name), share=False), 3e-6)
    with pytest.raises(ValueError, match="cannot share prompts"):
        both(exact(name), share=True)


# --- what cannot be packed --------------------------------------------------------------------------------------------


def test_what_is_refused():
    assert "positions" in why_not_packed(tiny("gpt2"))
    assert "'eager'" in why_not_packed(_with_attention("eager"))
    assert why_not_packed(tiny("llama")) is None
    assert why_not_shared(tiny("llama")) is None
    assert "common beginning" in why_not_shared(_with_attention("flash_attention_2"))


def _with_attention(implementation):
    model = tiny("llama")
    model.config._attn_implementation_internal = implementation
    return model


def test_attention_of_its_own_is_named():
    model = tiny("llama")
    add_policy_loss(model)
    original = nn.functional.scaled_dot_product_attention
    inputs = batch()
    packing = Packing.of(inputs)
    mask = packing.arguments(model.config)["attention_mask"]
    with pytest.raises(RuntimeError, match="no attention mask to add"):
        torch.zeros(mask.shape) + mask
    assert nn.functional.scaled_dot_product_attention is original
    assert mask[:, :, :, : mask.shape[-1]] is mask


def test_a_trainer_compares(build, caplog):
    heads = build(DGPOTrainer, model=tiny("qwen3"))._step_loss.heads
    assert heads.why_not_packed is None
    assert heads.why_not_shared is None
    caplog.clear()
    heads = build(DGPOTrainer, model=tiny("gpt2"))._step_loss.heads
    assert "positions" in heads.why_not_packed
    said = [one.getMessage() for one in caplog.records if "padded" in one.getMessage()]
    assert said == [f"sequences are padded: {heads.why_not_packed}"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"neftune_noise_alpha": 5.0}, "the noise of neftune_noise_alpha is scaled by the length of a row"),
        (
            {"peft_config": LoraConfig(task_type="CAUSAL_LM", alora_invocation_tokens=[4, 5])},
            "adapters with invocation tokens look for one place in every row",
        ),
    ],
)
def test_what_a_comparison_cannot_show(build, options, reason):
    """It runs in evaluation mode, on tokens that mean nothing."""
    adapters = {"trainer_options": {"peft_config": options.pop("peft_config")}} if "peft_config" in options else {}
    heads = build(DGPOTrainer, **adapters, **options)._step_loss.heads
    assert heads.fused
    assert heads.why_not_packed == heads.why_not_shared == reason


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_that_is_packed(build, name):
    try:
        model = tiny(name)
    except Exception as error:  # noqa: BLE001 - said in the report of the skipped
        pytest.skip(f"{type(error).__name__}: {error}"[:200])
    if model.get_output_embeddings() is None:
        pytest.skip("no output head")
    try:
        model(input_ids=torch.arange(1, 13).view(2, 6), use_cache=False)
    except Exception as error:  # noqa: BLE001
        pytest.skip(f"{type(error).__name__}: {error}"[:200])
    if (reason := why_not_packed(model)) is not None:
        pytest.skip(reason)
    heads = build(DGPOTrainer, model=model, router_aux_loss_coef=0.0)._step_loss.heads
    if heads.why_not_packed is not None:
        pytest.skip(heads.why_not_packed)
    # the sequences of the comparison are shorter than any window; these are not
    for share in (False, True):
        check(*both(model.eval(), share=share), 2e-3)


def test_a_window_that_the_model_does_not_use(build):
    heads = build(DGPOTrainer, model=tiny("moshi"))._step_loss.heads
    assert "differ by" in heads.why_not_packed


@pytest.mark.parametrize(("name", "passes"), [("llama", 13), ("mistral", 19)])
def test_a_comparison_is_short(build, name, passes):
    """The padded rows are computed once for both ways of packing them, and twice only where there is a window."""
    model, seen = tiny(name), []
    model.base_model.register_forward_hook(lambda *_: seen.append(1))
    heads = build(DGPOTrainer, model=model)._step_loss.heads
    assert (heads.why_not_packed, heads.why_not_shared, len(seen)) == (None, None, passes)


class _Forgetful(nn.Module):
    """Attention that sees all tokens before a token, whatever sequence they belong to."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, attention_mask=None, **kwargs):
        return self.inner(*args, attention_mask=None, **kwargs)


@pytest.mark.parametrize("layers", [[0, 1], [1]])
def test_a_model_that_forgets_the_mask_is_not_packed(build, layers):
    model = copy.deepcopy(tiny("llama"))
    for index in layers:
        model.model.layers[index].self_attn = _Forgetful(model.model.layers[index].self_attn)
    heads = build(DGPOTrainer, model=model)._step_loss.heads
    assert heads.fused
    assert "differ by" in heads.why_not_packed or "not all of its layers" in heads.why_not_packed
