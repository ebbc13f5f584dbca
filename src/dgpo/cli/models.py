"""Models by folder or hub name, and what went wrong if one cannot be loaded."""

from __future__ import annotations

import os
from typing import Any

from dgpo.files import first_line


def load_model(name: str, dtype: str = "auto") -> tuple[Any, Any]:
    """A causal language model, on the GPU if there is one, and its tokenizer.

    Args:
        name: folder or hub name.
        dtype: of the weights; `auto` is as saved, except that float32 becomes bfloat16 on a GPU.

    Raises:
        ValueError: it cannot be loaded; the error names the reason.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    except (OSError, ValueError) as error:
        raise cannot_load(name, error) from error
    tokenizer = load_tokenizer(name)
    if not torch.cuda.is_available():
        return model, tokenizer
    if dtype == "auto" and model.dtype == torch.float32:
        model = model.to(torch.bfloat16)
    return model.to("cuda"), tokenizer


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """The tokenizer of a model. Raises ValueError as `load_model` does."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise cannot_load(name, error) from error


def check_loads(name: str, revision: str | None = None) -> None:
    """Raise ValueError, with the reason, if there is no model of that name; reads its configuration only."""
    from transformers import AutoConfig

    try:
        # transformers' error would not tell a folder from a name on the hub; ours does
        AutoConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise cannot_load(name, error) from error


def cannot_load(name: str, error: Exception) -> ValueError:
    """The error to raise instead of that of transformers, which does not tell a folder from a hub name."""
    kind = "the folder contains no model" if os.path.isdir(name) else "no such folder, and no such model on the hub"
    return ValueError(f"cannot load model {name!r}: {kind} ({first_line(error)})")
