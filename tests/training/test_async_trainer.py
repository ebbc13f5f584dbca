"""AsyncDGPOTrainer on a CPU: TRL's own loop with a worker that samples here, and TRL's attention kernel in torch."""

from __future__ import annotations

import queue
import warnings
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as attention
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_callback import PrinterCallback
from trl.experimental.async_grpo import AsyncGRPOConfig, AsyncGRPOTrainer, async_grpo_trainer, packing
from trl.experimental.async_grpo.async_grpo_trainer import DataCollatorForRollout
from trl.experimental.async_grpo.async_rollout_worker import RolloutSample

from dgpo import policy_loss
from dgpo.training.async_trainer import AsyncDGPOConfig, AsyncDGPOTrainer

PER_STEP, LONGEST, PROMPT = 4, 5, "1+2="
QUICK = {
    "per_device_train_batch_size": PER_STEP,
    "gradient_accumulation_steps": 1,
    "num_generations": PER_STEP,
    "token_budget": 0,
    "learning_rate": 0.05,
    "optim": "sgd",
    "max_grad_norm": 1e9,
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "max_staleness": 99,
}


def varlen(q, k, v, cu_q, cu_k, _longest_q, _longest_k, *, softmax_scale, causal, window_size):
    """`flash_attn_varlen_func`, one segment after the other: the last queries of a segment are its last keys."""
    assert causal
    assert window_size == (-1, -1)
    parts = []
    for (a, b), (c, d) in zip(pairwise(cu_q), pairwise(cu_k), strict=True):
        query, key, value = (x.transpose(0, 1) for x in (q[a:b], k[c:d], v[c:d]))
        seen = torch.ones(b - a, d - c, dtype=torch.bool).tril(diagonal=int((d - c) - (b - a)))
        out = attention(query, key, value, attn_mask=seen, scale=softmax_scale, enable_gqa=True)
        parts.append(out.transpose(0, 1))
    return torch.cat(parts)


@pytest.fixture(autouse=True)
def kernel(monkeypatch):
    monkeypatch.setattr(packing, "_flash_attn", lambda: SimpleNamespace(flash_attn_varlen_func=varlen))
    # TRL asks CUDA for it
    monkeypatch.setattr(async_grpo_trainer, "get_peak_flops_per_device", lambda *given: None)


def log_probs(model, ids, mask):
    """[t] log-probs of the trained tokens of a sample, by the model's plain forward pass."""
    logits = model(input_ids=torch.tensor(ids)[None]).logits[0, :-1].float()
    found = logits.log_softmax(-1).gather(-1, torch.tensor(ids)[1:, None]).squeeze(-1)
    return found[torch.tensor(mask)[1:].bool()]


class Engine:
    """TRL's rollout worker and weight transfer in one: keeps the weights it is sent, and samples from old ones.

    At the start it fills the queue for `lag` updates; after every update it adds the samples of one more. So a sample
    is trained on `lag` updates after its weights were. TRL reads ahead by one update, hence the smallest lag is 1.
    """

    def __init__(self, folder, lag=1, samples=None):
        self.rollout_buffer, self.metrics_queue = queue.Queue(), queue.Queue()
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.lag, self.samples, self.version = lag, samples or [], 0
        self.drawn = []

    def start(self):
        for _ in range(self.lag + 1):
            self._draw()

    def update_model_version(self, version):
        self.version = version
        if self.drawn:
            self._draw()

    def send_weights(self, iterator):
        self.model.load_state_dict(dict(iterator), strict=False)

    def stop(self): ...

    def check_health(self, stale_after_s):
        raise AssertionError("the queue is empty")

    init_weight_transfer = pause = resume = destroy = stop

    def _draw(self):
        self.drawn.append(self.sample(len(self.drawn), PER_STEP))
        for sample in self.drawn[-1]:
            self.rollout_buffer.put(sample)

    @torch.no_grad()
    def sample(self, group, count):
        """Samples of 2 to `LONGEST` tokens, of one prompt."""
        generator = torch.Generator().manual_seed(group)
        prompt = self.tokenizer(PROMPT)["input_ids"]
        ids, logprobs = torch.tensor([prompt] * count), []
        for _ in range(LONGEST):
            p = self.model(input_ids=ids).logits[:, -1].softmax(-1)
            token = torch.multinomial(p, 1, generator=generator)
            ids, logprobs = torch.cat([ids, token], 1), [*logprobs, p.gather(1, token).log()]
        lengths = [2 + i % (LONGEST - 1) for i in range(count)]
        return [
            RolloutSample(
                prompt=[],
                completion=[],
                input_ids=row[: len(prompt) + n].numpy(),
                completion_mask=np.array([0] * len(prompt) + [1] * n),
                old_log_probs=np.array([0.0] * len(prompt) + of_row[:n].tolist()),
                advantage=(1.0, -1.0, 0.5, -2.0)[i % 4],
                model_version=self.version,
                group_id=group,
                metrics={"reward": 0.0},
            )
            for i, (row, of_row, n) in enumerate(zip(ids, torch.cat(logprobs, 1), lengths, strict=True))
        ]


@pytest.fixture
def make(tiny_folder, prompts, tmp_path):
    def make(kind=AsyncDGPOTrainer, engine=None, **options):
        config = AsyncDGPOConfig if kind is AsyncDGPOTrainer else AsyncGRPOConfig
        engine = engine or Engine(tiny_folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = kind(
                str(tiny_folder),
                lambda completions, **kwargs: [0.0] * len(completions),
                config(output_dir=str(tmp_path / "run"), **{**QUICK, "max_steps": 4, **options}),
                train_dataset=prompts,
                rollout_worker=engine,
                weight_transfer=engine,
            )
        trainer.remove_callback(PrinterCallback)
        return trainer, engine

    return make


def batch_of(samples, pad=0):
    """TRL's packing and collation of some samples: prompts are shared in a tree."""
    row = packing.TreeRow()
    keys = ("input_ids", "completion_mask", "old_log_probs", "advantage", "group_id", "metrics")
    for sample in samples:
        row.add({key: getattr(sample, key) for key in keys})
    return DataCollatorForRollout(pad)([[row]])


def gradient_of(trainer, batch):
    trainer.current_gradient_accumulation_steps = 2
    loss = trainer.compute_loss(trainer.model, batch)
    return loss.detach(), torch.autograd.grad(loss, [p for p in trainer.model.parameters() if p.requires_grad])


@pytest.fixture
def stale(tiny_folder):
    """Samples whose sampler was another policy: some ratios are beyond any usual bound."""
    samples, generator = Engine(tiny_folder).sample(0, 6), np.random.default_rng(0)
    for sample in samples:
        sample.old_log_probs += sample.completion_mask * generator.normal(0, 0.4, len(sample.completion_mask))
    return samples


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"epsilon": 0.1, "epsilon_high": 0.3}])
def test_it_is_trls_loss_for_grpo(make, stale, options):
    ours, _ = make(objective="grpo", **options)
    theirs, _ = make(AsyncGRPOTrainer, **options)
    found, expected = (gradient_of(trainer, batch_of(stale)) for trainer in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert expected[1][0].abs().max() > 1e-4
    for name, values in theirs._metrics["train"].items():
        if not name.startswith("perf/"):
            assert ours._metrics["train"][name] == pytest.approx(values), name
    assert theirs._metrics["train"]["clip_ratio/region_mean"][0] > 0


@pytest.mark.parametrize(
    ("objective", "aggregation"),
    [
        ("dgpo", "token-mean"),
        ("gspo", "seq-mean-token-mean"),
        ("maspo", "seq-mean-token-sum-norm"),
        ("bapo", "token-mean"),
    ],
)
def test_it_is_policy_loss_of_the_samples(make, tiny_folder, stale, objective, aggregation):
    """Rows of responses out of TRL's packed terms: methods that read the whole response, averages over responses."""
    trainer, _ = make(objective=objective, aggregation=aggregation)
    value, found = gradient_of(trainer, batch_of(stale))
    # the trainer's own model has TRL's attention, which takes packed samples alone
    plain = AutoModelForCausalLM.from_pretrained(tiny_folder)
    expected = reference_loss(plain, stale, trainer._spec.objective, trainer._spec.aggregation) / 2
    torch.testing.assert_close(value, expected.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(found, torch.autograd.grad(expected, list(plain.parameters())), rtol=0, atol=1e-6)
    assert ("clip_ratio/low_mean" in trainer._metrics["train"]) == (objective in ("gspo", "bapo"))


def reference_loss(model, samples, objective, aggregation="token-mean", **how):
    """`policy_loss` on rows of responses, with log-probs of the model's plain forward pass."""
    how = how or {"anchor": "rollout"}
    parts = [log_probs(model, s.input_ids.tolist(), s.completion_mask.tolist()) for s in samples]
    pad = torch.nn.utils.rnn.pad_sequence
    sampler = [torch.tensor(s.old_log_probs[s.completion_mask == 1], dtype=torch.float32) for s in samples]
    return policy_loss(
        pad(parts, batch_first=True),
        None,
        torch.tensor([s.advantage for s in samples]),
        pad([torch.ones(len(part), dtype=torch.bool) for part in parts], batch_first=True),
        objective,
        aggregation,
        rollout_logprob=pad(sampler, batch_first=True),
        **how,
    ).value


# --- whole runs -------------------------------------------------------------------------------------------------------


MODES = {
    "ratio against the sampler": ({"objective": "grpo"}, {"anchor": "rollout"}),
    "correction": ({"objective": "grpo", "anchor": "old", "correction": "truncate"}, {"correction": "truncate"}),
}


@pytest.mark.parametrize("lag", [1, *(pytest.param(lag, marks=pytest.mark.soak) for lag in (4, 16))])
@pytest.mark.parametrize("mode", MODES)
def test_samples_that_lag_behind(make, tiny_folder, lag, mode):
    """A run of the trainer, and the same updates by hand on the samples that it was given."""
    options, how = MODES[mode]
    trainer, engine = make(engine=Engine(tiny_folder, lag), max_steps=lag + 2, **options)
    trainer.train()
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    optimizer = torch.optim.SGD(model.parameters(), lr=QUICK["learning_rate"])
    for samples in engine.drawn[: lag + 2]:
        optimizer.zero_grad()
        reference_loss(model, samples, "grpo", **how).backward()
        optimizer.step()
    for (name, found), expected in zip(trainer.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5, msg=name)
    log = [row for row in trainer.state.log_history if "objective/kl/sampler" in row]
    assert len(log) == lag + 2
    # the first update is on samples of the policy itself
    distance = [row["objective/kl/sampler"] for row in log]
    assert distance[0] < 1e-6 < distance[-1]
    # against π_old nothing ever leaves ratio 1; its distance is left to ρ
    outside = max(1 - row["objective/fraction/inside"] for row in log)
    assert outside == 0 if mode == "correction" else lag < 16 or outside > 0


def test_a_run_that_is_resumed(make, tiny_folder, tmp_path):
    """Four updates at once, and two with two more from a checkpoint: the same weights, and the log goes on."""
    known = Engine(tiny_folder)
    samples = [known.sample(step, PER_STEP) for step in range(9)]

    class Given(Engine):
        """The samples of a fixed stream, from the update on at which it starts."""

        first = 0

        def _draw(self):
            self.drawn.append(samples[self.first + len(self.drawn)])
            for sample in self.drawn[-1]:
                self.rollout_buffer.put(sample)

    whole, _ = make(engine=Given(tiny_folder), objective="dgpo", optim="adamw_torch", learning_rate=1e-3)
    whole.train()
    options = {"objective": "dgpo", "optim": "adamw_torch", "learning_rate": 1e-3, "save_strategy": "steps"}
    first, _ = make(engine=Given(tiny_folder), save_steps=2, **{**options, "max_steps": 2})
    first.train()
    engine = Given(tiny_folder)
    engine.first = 2
    again, _ = make(engine=engine, save_steps=2, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert again.state.global_step == 4
    for found, expected in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    kept = [row["objective/weight/mean"] for row in again.state.log_history if "objective/weight/mean" in row]
    assert kept == pytest.approx(
        [row["objective/weight/mean"] for row in whole.state.log_history if "objective/weight/mean" in row], abs=1e-5
    )


# --- the configuration ------------------------------------------------------------------------------------------------


def test_the_fields_are_those_of_the_other_trainer(tmp_path):
    made = AsyncDGPOConfig(str(tmp_path), objective="grpo:eps_high=0.28", epsilon=None, bf16=False, use_cpu=True)
    assert (made.objective, made.objective_kwargs, made.anchor) == ("grpo", {"eps_high": 0.28}, "rollout")
    assert made.make_spec().objective.eps_high == 0.28
    assert "Policy that the ratio of the objective" in AsyncDGPOConfig.__doc__


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": "dpgo"}, "unknown objective 'dpgo'"),
        ({"correction": "truncate"}, "count the same difference twice; set one of them"),
        ({"objective": "cispo", "epsilon": 0.1}, "epsilon"),
        ({"aggregation": "token_mean"}, "token-mean"),
    ],
)
def test_refusals(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        AsyncDGPOConfig(str(tmp_path), bf16=False, use_cpu=True, **options)


def test_it_needs_its_own_configuration(tiny_folder, tmp_path):
    args = AsyncGRPOConfig(str(tmp_path), bf16=False, use_cpu=True)
    with pytest.raises(TypeError, match=r"expected a dgpo\.training\.async_trainer\.AsyncDGPOConfig"):
        AsyncDGPOTrainer(str(tiny_folder), args=args)


def test_a_value_that_is_not_finite_is_an_error(make, stale):
    trainer, _ = make()
    stale[2].old_log_probs[-1] = float("nan")
    with pytest.raises(ValueError, match=r"rollout_logprob\[2, .* is not|nan at a valid position"):
        gradient_of(trainer, batch_of(stale))
