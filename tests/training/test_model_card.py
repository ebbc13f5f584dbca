"""The model card names what was trained, from what and how, and cites the papers of the method that was used."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

import dgpo
from dgpo import objectives
from dgpo.objectives import OBJECTIVES, Objective
from dgpo.objectives.presets import PRESETS
from dgpo.objectives.table import shown
from dgpo.training import DGPOTrainer

EVERY_PAPER = {
    paper.arxiv_id: paper
    for group in [*(cls.papers for cls in OBJECTIVES.values()), *((preset.paper,) for preset in PRESETS.values())]
    for paper in group
}


@pytest.fixture
def trainer(build):
    return build(DGPOTrainer)


def card_of(trainer, **options):
    trainer.create_model_card(**options)
    card = ModelCard.load(f"{trainer.args.output_dir}/README.md")
    assert "None" not in card.content
    assert "licen" not in card.data.to_yaml(), "nobody has said under which licence the model is"
    return card


def set_objective(trainer, name, **kwargs):
    trainer.args.objective, trainer.args.objective_kwargs = name, kwargs or None
    spec = replace(trainer._factors.spec, objective=objectives.make(name, **kwargs))
    trainer._factors = replace(trainer._factors, spec=spec)


def cited(text):
    return set(re.findall(r"arxiv\.org/abs/([\d.]+\d)", text))


def run_snippet(card, capsys):
    """Run the code of the card's quick start; returns what it prints."""
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    capsys.readouterr()
    exec(compile(code, "README.md", "exec"), {})
    return capsys.readouterr().out


def test_every_objective_is_named_with_its_fields_and_cites_its_own_papers(trainer):
    for name, cls in OBJECTIVES.items():
        set_objective(trainer, name)
        card = card_of(trainer, model_name="mine")
        assert f"the objective `{name}`" in card.text
        for field in fields(cls):
            default = "none" if field.default is None else shown(field.default)
            assert f"{field.name} = {default}" in card.text
        assert cited(card.text) == {paper.arxiv_id for paper in cls.papers}, name
        for paper in EVERY_PAPER.values():
            assert (paper.title in card.text) == (paper in cls.papers), f"{name}: {paper.title}"
        for paper in cls.papers:
            assert paper.bibtex() in card.text
        assert "method introduced in" not in card.text


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_cites_its_own_paper_beside_that_of_the_objective(build, preset):
    card = card_of(build(DGPOTrainer, preset=preset))
    assert f"the preset `{preset}`" in card.text
    assert f"| preset | `{preset}` |" in card.text
    of_objective = objectives.OBJECTIVES[PRESETS[preset].objective].papers[0]
    assert cited(card.text) == {PRESETS[preset].paper.arxiv_id, of_objective.arxiv_id}
    assert PRESETS[preset].paper.bibtex() in card.text


def test_an_objective_without_a_paper_cites_none(trainer, monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class Mine(objectives.DGPO):
        """Derived from DGPO in code, which does not make DGPO's paper its own."""

    @dataclass(frozen=True, kw_only=True)
    class Plain(Objective):
        """No paper."""

        def weight(self, tokens):
            return torch.ones_like(tokens.ratio)

    for cls in (Mine, Plain):
        monkeypatch.setitem(OBJECTIVES, "mine", cls)
        set_objective(trainer, "mine")
        card = card_of(trainer)
        assert "Of the objective `mine`: it declares no paper." in card.text
        assert cited(card.text) == set()


def test_the_settings_of_the_run(build, prompts):
    def first(completions, **kwargs):
        return [1.0] * len(completions)

    def second(completions, **kwargs):
        return [0.0] * len(completions)

    card = card_of(
        build(
            DGPOTrainer,
            reward=[first, second],
            reward_weights=[1.0, 0.25],
            objective="maspo",
            objective_kwargs={"alpha": 0.5},
            aggregation="seq-mean-token-sum-norm",
            advantage="leave_one_out",
            beta=0.02,
            positive_nll_coef=0.1,
        ),
        model_name="tiny",
        dataset_name="someone/sums",
        tags="mathematics",
    )
    rows = dict(re.findall(r"^\| (.+?) \| (.+) \|$", card.text, re.MULTILINE))
    assert rows["objective"].startswith("`maspo`: sigma_base = 1, alpha = 0.5, beta_pos = 0.03, ")
    assert rows["aggregation"] == "`seq-mean-token-sum-norm`: length = 6"
    assert rows["advantage"] == "`leave_one_out`"
    assert rows["correction"] == "none"
    assert rows["KL to the reference model"] == "beta = 0.02"
    assert rows["NLL on correct responses"] == "0.1"
    assert rows["data"] == f"[someone/sums](https://huggingface.co/datasets/someone/sums), {len(prompts)} prompts"
    assert rows["rewards"] == "`first` · 1, `second` · 0.25"
    assert rows["updates per generation"] == "4"
    assert rows["responses per update"] == "4"
    assert rows["learning rate"] == "0.005, constant"
    assert rows["dgpo"] == dgpo.__version__
    assert {"trl", "transformers", "torch"} <= set(rows)
    assert card.text.startswith("\n# Model Card for tiny\n")
    assert card.data.datasets == "someone/sums"
    assert {"trl", "dgpo", "mathematics", "generated_from_trainer"} <= set(card.data.tags)
    assert "@software{dgpo," in card.text
    assert "@software{vonwerra2020trl," in card.text


def test_what_is_said_where_trl_s_own_options_stand(build):
    trainer = build(DGPOTrainer, scale_rewards="batch")
    trainer.data_name = "addition"
    text = card_of(trainer).text
    assert "| advantage | TRL's: scale_rewards = 'batch', multi_objective_aggregation = 'sum_then_normalize' |" in text
    assert "| data | `addition`, 64 prompts |" in text
    assert "| rewards | `digits` |" in text
    # what vLLM would bring along, without a vLLM
    trainer.args.use_vllm = True
    assert "| correction | TRL's: vllm_importance_sampling_mode = sequence_mask" in card_of(trainer).text


def test_a_local_model_is_named_by_its_folder_and_the_snippet_runs(build, tiny_folder, capsys):
    trainer = build(DGPOTrainer)
    trainer.save_model(trainer.args.output_dir)
    card = card_of(trainer)
    assert f"Trained from the local folder `{tiny_folder}`" in card.text
    assert card.data.base_model is None, "a folder of this machine is no model of the hub"
    assert card.data.library_name == "transformers"
    assert run_snippet(card, capsys)


def test_a_model_of_the_hub_is_linked(trainer):
    trainer.model.config._name_or_path = "Qwen/Qwen2.5-0.5B"
    trainer.args.push_to_hub, trainer.args.hub_model_id = True, "someone/mine"
    card = card_of(trainer)
    assert "Trained from [Qwen/Qwen2.5-0.5B](https://huggingface.co/Qwen/Qwen2.5-0.5B) by" in card.text
    assert card.data.base_model == "Qwen/Qwen2.5-0.5B"
    assert 'model="someone/mine"' in card.text


@pytest.mark.parametrize("gone", ["/models/warm", "./warm", "../warm", "runs/warm/final", "~/warm", "C:\\warm"])
def test_a_folder_that_is_gone_is_no_model_of_the_hub(trainer, gone):
    trainer.model.config._name_or_path = gone
    card = card_of(trainer)
    assert f"Trained from the local folder `{gone}` by" in card.text
    assert card.data.base_model is None


def test_a_model_object_without_a_name(build, tiny_folder):
    model = AutoModelForCausalLM.from_config(AutoModelForCausalLM.from_pretrained(tiny_folder).config)
    model.config._name_or_path = ""
    card = card_of(build(DGPOTrainer, model=model))
    assert f"Trained from a `{type(model).__name__}` that was passed without a name" in card.text
    assert card.data.base_model is None


@pytest.mark.parametrize(
    ("prompt", "start", "asked"),
    [
        ("1+2=", 'question = "1+2="', "question"),
        ([{"role": "user", "content": "1+2="}], 'question = "1+2="', '[{"role": "user", "content": question}]'),
        (
            [{"role": "system", "content": "3+4"}, {"role": "user", "content": "1+2="}],
            'messages = [{"role": "system", "content": "3+4"}, {"role": "user", "content": "1+2="}]',
            "messages",
        ),
        ([{"role": "user", "content": "1" * 2000}], "question = ", '[{"role": "user", "content": question}]'),
        ("1" * 2000, "question = ", "question"),
    ],
    ids=["text", "a question", "a conversation", "a long question", "a long text"],
)
def test_the_snippet_asks_as_in_training(build, prompt, start, asked, capsys):
    """The first prompt of the data, as text or as messages; also text where the tokenizer has a template."""
    trainer = build(DGPOTrainer)
    trainer.processing_class.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}="
    trainer.train_dataset = Dataset.from_list([{"prompt": prompt, "answer": "3"}])
    trainer.save_model(trainer.args.output_dir)
    card = card_of(trainer)
    assert f"\n{start}" in card.text
    assert f"generator({asked}, " in card.text
    assert "1" * 1000 not in card.text
    if len(str(prompt)) < 1000:  # its characters are all that the tiny tokenizer has
        assert run_snippet(card, capsys)


def test_what_came_of_it_is_said_as_the_log_has_it(build):
    trainer = build(DGPOTrainer)
    assert "### Results" not in card_of(trainer).text
    trainer.state.log_history = [{"step": 0, "eval/sums/avg@4": 0.25, "eval/sums/avg@4_se": 0.02}]
    trainer.state.log_history += [{"step": step, "reward": 0.1 * step} for step in range(1, 9)]
    trainer.state.log_history += [{"step": 8, "eval/sums/avg@4": 0.985, "eval/sums/avg@4_se": 0.01}]
    trainer.state.log_history += [{"step": 8, "eval/sums/greedy": 1.0}]
    text = card_of(trainer).text
    assert "| sums avg@4 | 25.0 %, 21.1 to 28.9 (update 0) | 98.5 %, 96.5 to 100.0 (update 8) |" in text
    assert "| sums greedy | – | 100.0 % (update 8) |" in text
    assert "Mean reward in training: 0.2 over the first 3 log lines with a reward, 0.7 over the last 3." in text
    trainer.state.log_history = [{"step": step, "eval_reward": step / 10} for step in (2, 4)]
    assert "| held-out reward | 0.2 (update 2) | 0.4 (update 4) |" in card_of(trainer).text


def test_adapters_name_their_base_model_and_the_snippet_runs(build, tiny_folder, capsys):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = build(DGPOTrainer, trainer_options={"peft_config": config})
    trainer.save_model(trainer.args.output_dir)
    card = card_of(trainer)
    assert f"Adapters (PEFT) trained on the local folder `{tiny_folder}`" in card.text
    assert (card.data.library_name, card.data.base_model) == ("peft", None)
    assert run_snippet(card, capsys)
    trainer.model.config._name_or_path = "Qwen/Qwen2.5-0.5B"
    assert card_of(trainer).data.base_model == "Qwen/Qwen2.5-0.5B"
    trainer.model.config._name_or_path = ""
    assert "PeftModel.from_pretrained(base, " in card_of(trainer).text


def test_the_card_of_a_checkpoint_is_this_one(build, tmp_path):
    trainer = build(DGPOTrainer, objective="maspo", max_steps=2, save_strategy="steps", save_steps=2)
    trainer.train()
    text = (tmp_path / "run" / "README.md").read_text()
    assert cited(text) == {"2602.17550"}
    assert "| optimiser updates | 2 |" in text


def test_links_to_trackers_stay(trainer, monkeypatch):
    monkeypatch.setattr("trl.trainer.base_trainer.get_comet_experiment_url", lambda: "https://example.com/run")
    card = card_of(trainer)
    assert "](https://example.com/run)" in card.text
