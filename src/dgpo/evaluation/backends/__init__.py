"""Backends: what generates the completions of an evaluation. Their libraries are imported when one is made."""

from __future__ import annotations

from dgpo.evaluation.backends.backend import Backend, Completion, IncompleteError, Request, Sampling
from dgpo.evaluation.backends.openai import OpenAIBackend
from dgpo.evaluation.backends.transformers import TransformersBackend
from dgpo.evaluation.backends.vllm import VLLMBackend

BACKENDS: dict[str, type[Backend]] = {
    "transformers": TransformersBackend,
    "vllm": VLLMBackend,
    "openai": OpenAIBackend,
}

__all__ = [
    "BACKENDS",
    "Backend",
    "Completion",
    "IncompleteError",
    "OpenAIBackend",
    "Request",
    "Sampling",
    "TransformersBackend",
    "VLLMBackend",
]
