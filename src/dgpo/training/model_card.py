"""The model card of a run: what was trained, from what, how, and whose papers to cite for it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from accelerate.utils import is_peft_model
from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

import dgpo
from dgpo.objectives import Paper
from dgpo.objectives.presets import preset
from dgpo.objectives.table import shown

if TYPE_CHECKING:
    from dgpo.training.trainer import DGPOTrainer

PACKAGES = ("dgpo", "trl", "transformers", "torch", "datasets", "tokenizers", "accelerate", "peft", "vllm")
QUESTION = "What is 12 + 34?"

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
        local: whether that is a folder here, or one that was there, and no name on the hub.
        cls: class of the model, without adapters.
        adapters: whether adapters were trained on it.
    """

    name: str
    local: bool
    cls: str
    adapters: bool

    @classmethod
    def of(cls, model: Any) -> Base:
        """From the trained model. Its configuration is the base model's, also where PEFT wraps it."""
        adapters = is_peft_model(model)
        name = model.config._name_or_path or ""
        inner = model.get_base_model() if adapters else model
        return cls(name=name, local=bool(name) and _is_folder(name), cls=type(inner).__name__, adapters=adapters)

    @property
    def hub(self) -> str | None:
        """The name on the hub, if it is one."""
        return self.name if self.name and not self.local else None

    def __str__(self) -> str:
        if self.hub:
            return f"[{self.hub}](https://huggingface.co/{self.hub})"
        return f"the local folder `{self.name}`" if self.name else f"a `{self.cls}` that was passed without a name"


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


def text(trainer: DGPOTrainer, model_name: str | None, dataset_name: str | None, badges: Iterable[str] = ()) -> str:
    """The card below its metadata, as Markdown.

    Args:
        trainer: after, during or before training.
        model_name: of the card's title; None is the name of the output folder.
        dataset_name: on the hub, if that is where the data came from.
        badges: links to trackers of the run.
    """
    base = Base.of(trainer.model)
    title = model_name or os.path.basename(os.path.normpath(trainer.args.output_dir))
    how = "Adapters (PEFT) trained on" if base.adapters else "Trained from"
    cited = papers(trainer)
    parts = [
        f"# Model Card for {title}",
        f"{how} {base} by reinforcement learning with the objective `{trainer.args.objective}`, using dgpo and "
        "[TRL](https://github.com/huggingface/trl).",
        "## Quick start",
        snippet(trainer, base),
        "## Training",
        *badges,
        _table(("setting", "value"), settings(trainer, dataset_name)),
        "### Versions",
        _table(("package", "version"), versions()),
        "## Citation",
        f"Of the objective `{trainer.args.objective}`"
        + (f" and the preset `{trainer.args.preset}`" if trainer.args.preset else "")
        + (":" if cited else ": it declares no paper."),
        *(f"{paper.markdown()}\n\n```bibtex\n{paper.bibtex()}\n```" for paper in cited),
        f"Of the library and of TRL, which it builds on:\n\n```bibtex\n{SOFTWARE.format(version=dgpo.__version__)}\n\n"
        f"{TRL}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def papers(trainer: DGPOTrainer) -> tuple[Paper, ...]:
    """The preset's, if there is one, and those that the objective declares."""
    of_preset = (preset(trainer.args.preset).paper,) if trainer.args.preset else ()
    return of_preset + trainer._objective.papers


def settings(trainer: DGPOTrainer, dataset_name: str | None) -> list[tuple[str, str]]:
    """Names and values of what the run was trained with."""
    args = trainer.args
    found = [
        ("objective", _named(args.objective, trainer._objective)),
        ("preset", f"`{args.preset}`" if args.preset else ""),
        ("aggregation", _named(args.aggregation, trainer._aggregation)),
        ("advantage", _named(args.advantage, trainer._advantage) if args.advantage else _trl_advantage(args)),
        ("correction", _correction(trainer)),
        ("KL to the reference model", f"beta = {shown(args.beta)}" if args.beta else "none"),
        ("entropy bonus", f"{shown(args.entropy_coef)}" if trainer._entropy_bonus_enabled else ""),
        ("NLL on correct responses", f"{shown(args.positive_nll_coef)}" if args.positive_nll_coef else ""),
        ("data", _data(trainer, dataset_name)),
        ("dynamic sampling", "yes" if args.dynamic_sampling else ""),
        ("rewards", _rewards(trainer)),
        ("responses per prompt", str(args.num_generations)),
        ("tokens of a response, at most", str(args.max_completion_length)),
        ("sampling temperature", shown(args.temperature)),
        ("optimiser updates", str(trainer.state.global_step)),
        ("updates per generation", shown(float(args.updates_per_generation))),
        ("learning rate", f"{shown(args.learning_rate)}, {args.lr_scheduler_type.value}"),
        ("seed", str(args.seed)),
    ]
    return [(name, value) for name, value in found if value]


def versions() -> list[tuple[str, str]]:
    """Packages that are installed, of those that matter to a run."""
    found = []
    for name in PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return found


def snippet(trainer: DGPOTrainer, base: Base) -> str:
    """Code that generates with the result, from the hub where it is pushed there, else from the output folder."""
    args = trainer.args
    where = trainer.hub_model_id or (args.hub_model_id if args.push_to_hub else None) or str(args.output_dir)
    if base.adapters and not base.name:
        return (
            "The adapters need their base model, which has no name: build it as for training, as `base`.\n\n"
            f"```python\nfrom peft import PeftModel\n\nmodel = PeftModel.from_pretrained(base, {where!r})\n```"
        )
    chat = getattr(trainer.processing_class, "chat_template", None) is not None
    question = "[{'role': 'user', 'content': question}]".replace("'", '"') if chat else "question"
    task, argument = ("image-text-to-text", "text=") if trainer._is_vlm else ("text-generation", "")
    return (
        "```python\nfrom transformers import pipeline\n\n"
        f'question = "{QUESTION}"\n'
        f'generator = pipeline("{task}", model={_quoted(where)}, device_map="auto")\n'
        f"output = generator({argument}{question}, max_new_tokens={args.max_completion_length}, "
        'return_full_text=False)[0]\nprint(output["generated_text"])\n```'
    )


def _named(name: str | None, made: Any) -> str:
    values = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    fields = [f"{field} = {'none' if value is None else shown(value)}" for field, value in values.items()]
    return ": ".join([f"`{name}`", *([", ".join(fields)] if fields else [])])


def _trl_advantage(args: Any) -> str:
    return f"TRL's: scale_rewards = {args.scale_rewards!r}, multi_objective_aggregation = " + repr(
        args.multi_objective_aggregation
    )


def _correction(trainer: DGPOTrainer) -> str:
    args = trainer.args
    if args.correction is not None:
        name = args.correction if isinstance(args.correction, str) else args.correction["name"]
        return _named(name, trainer._correction)
    if args.use_vllm and args.vllm_importance_sampling_correction:
        options = {
            name: value
            for name, value in vars(args).items()
            if name.startswith("vllm_importance_sampling_") and name != "vllm_importance_sampling_correction"
        }
        return "TRL's: " + ", ".join(f"{name} = {shown(value)}" for name, value in options.items() if value is not None)
    return "none"


def _data(trainer: DGPOTrainer, dataset_name: str | None) -> str:
    if dataset_name:
        what = f"[{dataset_name}](https://huggingface.co/datasets/{dataset_name})"
    else:
        what = f"`{trainer.data_name}`" if trainer.data_name else "a data set without a name"
    rows = len(trainer.train_dataset) if hasattr(trainer.train_dataset, "__len__") else None
    return what if rows is None else f"{what}, {rows:,} prompts"


def _rewards(trainer: DGPOTrainer) -> str:
    weights = trainer.reward_weights.tolist()
    return ", ".join(
        f"`{name}`" + (f" · {shown(float(weight))}" if set(weights) != {1.0} else "")
        for name, weight in zip(trainer.reward_func_names, weights, strict=True)
    )


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _table(header: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    cells = [header, ("---", "---"), *rows]
    return "\n".join(f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in cells)
