"""The model card of a run: what was trained, from what, how, and whose papers to cite for it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from accelerate.utils import is_peft_model
from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

import dgpo
from dgpo.counts import counted
from dgpo.installation import versions
from dgpo.objectives.presets import preset
from dgpo.objectives.table import shown
from dgpo.report.headline import End, logged
from dgpo.report.series import ends as ends_of
from dgpo.report.series import tenth
from dgpo.runs.log import Log
from dgpo.training.config import DGPOConfig
from dgpo.training.factors import Factors

PACKAGES = ("dgpo", "trl", "transformers", "torch", "datasets", "tokenizers", "accelerate", "peft", "vllm")
QUESTION = "What is 12 + 34?"
"""The example of a card where the data has no prompt to show."""
LONGEST_EXAMPLE = 1000
"""Characters of a prompt that is shown as the example."""

SOFTWARE = """@software{{dgpo,
    title   = {{dgpo}},
    author  = {{{{The dgpo authors}}}},
    version = {{{version}}},
    license = {{Apache-2.0}},
}}"""
"""As in CITATION.cff."""

TRL = """@software{vonwerra2020trl,
    title   = {{TRL: Transformers Reinforcement Learning}},
    author  = {von Werra, Leandro and Belkada, Younes and Tunstall, Lewis and Beeching, Edward and Thrush, Tristan and
               Lambert, Nathan and Huang, Shengyi and Rasul, Kashif and Gallouédec, Quentin},
    license = {Apache-2.0},
    url     = {https://github.com/huggingface/trl},
    year    = {2020},
}"""
"""As in TRL's own cards."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """What training started from.

    Attributes:
        name: the model's name or path; empty for a model that was built from a configuration.
        hub: the name, where it is one on the hub; None for a folder, also one that is gone.
        cls: class of the model, without adapters.
        adapters: whether adapters were trained on it.
    """

    name: str
    hub: str | None
    cls: str
    adapters: bool

    @classmethod
    def of(cls, model: Any) -> Base:
        """From the trained model. Its configuration is the base model's, also where PEFT wraps it."""
        adapters = is_peft_model(model)
        name = model.config._name_or_path or ""
        inner = model.get_base_model() if adapters else model
        hub = name if name and not _is_folder(name) else None
        return cls(name=name, hub=hub, cls=type(inner).__name__, adapters=adapters)

    def __str__(self) -> str:
        if self.hub:
            return f"[{self.hub}](https://huggingface.co/{self.hub})"
        return f"the local folder `{self.name}`" if self.name else f"a `{self.cls}` that was passed without a name"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """The run that a card is about.

    Attributes:
        config: of the run.
        factors: of its loss.
        base: what training started from.
        updates: optimiser steps so far.
        entropy_bonus: whether it has one.
        rewards: name -> weight.
        data: on the hub, if that is where the data came from; as Markdown.
        prompts: of the data; None for a stream.
        hub_model_id: where the result was pushed to, if it was.
        example: a prompt of the data, text or messages; None where it has none.
        chat: whether the tokenizer has a chat template.
        images: whether the model reads images.
        completions: per optimiser update, on all ranks.
        log: of training.
    """

    config: DGPOConfig
    factors: Factors
    base: Base
    updates: int
    entropy_bonus: bool
    rewards: Mapping[str, float]
    data: str
    prompts: int | None
    hub_model_id: str | None
    example: Any
    chat: bool
    images: bool
    completions: int
    log: Log


def named_data(hub: str | None, name: str | None) -> str:
    """What the data is called in a card: its name on the hub with a link, or another name."""
    if hub:
        return f"[{hub}](https://huggingface.co/datasets/{hub})"
    return f"`{name}`" if name else "a data set without a name"


def _is_folder(name: str) -> bool:
    """Whether a model's name is a path, also of a folder that is gone."""
    if os.path.isdir(name):
        return True
    try:
        validate_repo_id(name)
    except HFValidationError:
        return True
    return False


def fill_data(data: ModelCardData, base: Base) -> ModelCardData:
    """TRL's metadata, with the base model and the library that loads the result; without TRL's placeholder licence."""
    data.pop("licence")
    data.base_model = base.hub
    if base.adapters:
        data.library_name = "peft"
    return data


def text(run: Trained, model_name: str | None, badges: Iterable[str] = ()) -> str:
    """The card below its metadata, as Markdown.

    Args:
        run: after, during or before training.
        model_name: of the card's title; None is the name of the output folder.
        badges: links to trackers of the run.
    """
    base, config = run.base, run.config
    title = model_name or os.path.basename(os.path.normpath(config.output_dir))
    how = "Adapters (PEFT) trained on" if base.adapters else "Trained from"
    cited = run.factors.spec.objective.papers
    if config.preset:
        cited = (preset(config.preset).paper, *cited)
    parts = [
        f"# Model Card for {title}",
        f"{how} {base} by reinforcement learning with the objective `{config.objective}`, using dgpo and "
        "[TRL](https://github.com/huggingface/trl).",
        "## Quick start",
        snippet(run),
        "## Training",
        *badges,
        _table(("setting", "value"), settings(run)),
        *results(run.log),
        "### Versions",
        _table(("package", "version"), list(versions(*PACKAGES).items())),
        "## Citation",
        f"Of the objective `{config.objective}`"
        + (f" and the preset `{config.preset}`" if config.preset else "")
        + (":" if cited else ": it declares no paper."),
        *(f"{paper.markdown()}\n\n```bibtex\n{paper.bibtex()}\n```" for paper in cited),
        f"Of the library and of TRL, which it builds on:\n\n```bibtex\n{SOFTWARE.format(version=dgpo.__version__)}\n\n"
        f"{TRL}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def settings(run: Trained) -> list[tuple[str, str]]:
    """Names and values of what the run was trained with."""
    config, factors = run.config, run.factors
    found = [
        ("objective", _named(config.objective, factors.spec.objective)),
        ("preset", f"`{config.preset}`" if config.preset else ""),
        ("aggregation", _named(config.aggregation, factors.spec.aggregation)),
        ("advantage", _named(config.advantage, factors.advantage) if config.advantage else _trl_advantage(config)),
        ("ratio against", "the sampler" if config.anchor == "rollout" else ""),
        ("teacher", f"`{config.teacher}`" if config.teacher else ""),
        ("correction", _correction(config, factors)),
        ("KL to the reference model", f"beta = {shown(config.beta)}" if config.beta else "none"),
        ("entropy bonus", f"{shown(config.entropy_coef)}" if run.entropy_bonus else ""),
        ("NLL on correct responses", f"{shown(config.positive_nll_coef)}" if config.positive_nll_coef else ""),
        ("data", run.data if run.prompts is None else f"{run.data}, {counted(run.prompts, 'prompt')}"),
        ("dynamic sampling", "yes" if config.dynamic_sampling else ""),
        ("rewards", _rewards(run.rewards)),
        ("responses per prompt", str(config.num_generations)),
        ("responses per update", str(run.completions)),
        ("tokens of a response, at most", str(config.max_completion_length)),
        ("sampling temperature", shown(config.temperature)),
        ("optimiser updates", str(run.updates)),
        ("updates per generation", shown(float(config.updates_per_generation))),
        ("learning rate", f"{shown(config.learning_rate)}, {config.lr_scheduler_type.value}"),
        ("precision", "bfloat16, mixed" if config.bf16 else "float16, mixed" if config.fp16 else ""),
        ("seed", str(config.seed)),
    ]
    return [(name, value) for name, value in found if value]


def results(log: Log) -> list[str]:
    """What the log says of the result: evaluations during training with their intervals, and the reward."""
    rows = []
    for change in logged(log):
        ends = ["–" if end is None else _end(end, rate=bool(change.estimate)) for end in (change.before, change.after)]
        rows.append((change.name, *ends))
    parts = [_table(("held out, 95 % interval", "first evaluation", "last evaluation"), rows)] if rows else []
    if (found := ends_of(log["reward"])) is not None:
        points = tenth(log["reward"])
        first, last = counted(points, "log line"), points
        parts.append(
            f"Mean reward in training: {found[0]:.3g} over the first {first} with a reward, "
            f"{found[1]:.3g} over the last {last}."
        )
    return ["### Results", *parts] if parts else []


def _end(end: End, *, rate: bool) -> str:
    if not rate:
        return f"{end.value:.3g} (update {end.update})"
    interval = "" if end.low is None or end.high is None else f", {100 * end.low:.1f} to {100 * end.high:.1f}"
    return f"{100 * end.value:.1f} %{interval} (update {end.update})"


def snippet(run: Trained) -> str:
    """Code that generates with the result, from the hub where it is pushed there, else from the output folder."""
    config, base = run.config, run.base
    where = run.hub_model_id or (config.hub_model_id if config.push_to_hub else None) or str(config.output_dir)
    if base.adapters and not base.name:
        return (
            "The adapters need their base model, which has no name: build it as for training, as `base`.\n\n"
            f"```python\nfrom peft import PeftModel\n\nmodel = PeftModel.from_pretrained(base, {where!r})\n```"
        )
    start, asked = _example(run)
    task, argument = ("image-text-to-text", "text=") if run.images else ("text-generation", "")
    return (
        f"```python\nfrom transformers import pipeline\n\n{start}\n"
        f'generator = pipeline("{task}", model={json.dumps(where, ensure_ascii=False)}, device_map="auto")\n'
        f"output = generator({argument}{asked}, max_new_tokens={config.max_completion_length}, "
        'return_full_text=False)[0]\nprint(output["generated_text"])\n```'
    )


def _example(run: Trained) -> tuple[str, str]:
    """A line of code with a prompt as the model was trained on, and what of it is passed on."""
    given, in_turn = _plain(run.example), '[{"role": "user", "content": question}]'
    # a generic one where there is none, or it would not fit on the page
    if given is None or len(text := json.dumps(given, ensure_ascii=False)) > LONGEST_EXAMPLE:
        chat = run.chat if run.example is None or run.images else not isinstance(run.example, str)
        return f"question = {json.dumps(QUESTION)}", in_turn if chat else "question"
    if isinstance(given, str):
        return f"question = {text}", "question"
    if len(given) == 1 and given[0].keys() == {"role", "content"} and given[0]["role"] == "user":
        return f"question = {json.dumps(given[0]['content'], ensure_ascii=False)}", in_turn
    return f"messages = {text}", "messages"


def _plain(prompt: Any) -> str | list[dict[str, str]] | None:
    """A text, or messages of texts without the fields that are None; None for anything else, such as images."""
    if isinstance(prompt, str) or prompt is None:
        return prompt
    messages = [{name: value for name, value in message.items() if value is not None} for message in prompt]
    return messages if all(isinstance(value, str) for message in messages for value in message.values()) else None


def _named(name: str | None, made: Any) -> str:
    values = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    fields = [f"{field} = {'none' if value is None else shown(value)}" for field, value in values.items()]
    return ": ".join([f"`{name}`", *([", ".join(fields)] if fields else [])])


def _trl_advantage(config: DGPOConfig) -> str:
    return f"TRL's: scale_rewards = {config.scale_rewards!r}, multi_objective_aggregation = " + repr(
        config.multi_objective_aggregation
    )


def _correction(config: DGPOConfig, factors: Factors) -> str:
    if config.correction is not None:
        name = config.correction if isinstance(config.correction, str) else config.correction["name"]
        return _named(name, factors.spec.correction)
    if config.use_vllm and config.vllm_importance_sampling_correction and config.anchor == "old":
        options = {
            name: value
            for name, value in vars(config).items()
            if name.startswith("vllm_importance_sampling_") and name != "vllm_importance_sampling_correction"
        }
        return "TRL's: " + ", ".join(f"{name} = {shown(value)}" for name, value in options.items() if value is not None)
    return "none"


def _rewards(weights: Mapping[str, float]) -> str:
    differ = set(weights.values()) != {1.0}
    return ", ".join(f"`{name}`" + (f" · {shown(weight)}" if differ else "") for name, weight in weights.items())


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    cells = [header, ("---",) * len(header), *rows]
    # a bare bar would end the cell; chr(92), because Python 3.11 allows no backslash inside the braces
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in cells)
