"""What the tests know of SmolLM2-135M-Instruct, and questions for it."""

from pathlib import Path

from dgpo.evaluation import Sampling, TransformersBackend
from dgpo.evaluation.backends import Request

ROOT = Path(__file__).resolve().parents[2]

END = "<|im_end|>"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""What the chat template says where a conversation begins without a system message."""

QUESTIONS = (
    "What is 7 * 8? Reply with the number only.",
    "What is the capital of France? Reply with one word.",
    "Tom has 3 apples and buys 4 more. He gives 2 of them to his sister Ann, who had none. How many apples does Tom "
    "have now? Reply with the number only.",
    "Say hello.",
)


def user(text):
    return [{"role": "user", "content": text}]


def greedy(model, tokenizer, prompts, *, batch_size=8, budget=24):
    """Greedy completions of the prompts, in their order."""
    backend = TransformersBackend(model, tokenizer, batch_size=batch_size)
    requests = [Request(prompt=prompt, seed=0, greedy=True) for prompt in prompts]
    found = [pair for group in backend.complete(requests, Sampling(max_new_tokens=budget)) for pair in group]
    return [completion for _, completion in sorted(found, key=lambda pair: pair[0])]
