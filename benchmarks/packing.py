"""What packed sequences cost beside their tokens: forward and backward of a transformer's body, padded and packed.

    python benchmarks/packing.py [--hidden 64 576] [--layers 4]

Prints times for rows of equal length, padded and packed; for as many tokens in rows of different lengths, packed, and
what each call of attention that they need adds, as positions of a row that take as long (`PER_SEQUENCE` of
`dgpo.training.layout` is the estimate in use); and for rows that share their prompt. Times are the process's own, the
least of several.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dgpo.training.forwards import HeadOutput, add_policy_loss, apply_to_hidden
from dgpo.training.packing import Packing


def body(hidden: int, layers: int) -> LlamaForCausalLM:
    """Of SmolLM2's proportions, with a vocabulary that costs nothing."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=max(hidden // 64, 1),
        num_key_value_heads=max(hidden // 192, 1),
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    add_policy_loss(model)
    return model


def least(of: list[Callable[[], None]], repeats: int) -> list[float]:
    """Seconds of each, interleaved."""
    best = [float("inf")] * len(of)
    for _ in range(repeats):
        for index, call in enumerate(of):
            start = time.process_time()
            call()
            best[index] = min(best[index], time.process_time() - start)
    return best


def step(model: LlamaForCausalLM, lengths: list[tuple[int, int]], *, packed: bool, share: bool) -> Callable[[], None]:
    """Forward and backward of rows with these tokens of prompt and response."""
    prompt, response = (max(counts) for counts in zip(*lengths, strict=True))
    inputs = {"prompt_ids": torch.full((len(lengths), prompt), 3)}
    inputs["completion_ids"] = torch.randint(1, 64, (len(lengths), response))
    counts = torch.tensor(lengths)
    inputs["prompt_mask"] = (torch.arange(prompt, 0, -1) <= counts[:, :1]).long()
    inputs["completion_mask"] = (torch.arange(response) < counts[:, 1:]).long()
    packing = Packing.of(inputs, prompts=[0] * len(lengths) if share else None) if packed else None

    def loss(hidden: torch.Tensor, lm_head: torch.Tensor, bias: torch.Tensor | None) -> HeadOutput:
        return HeadOutput(value=hidden.sum())

    return lambda: apply_to_hidden(model, inputs, loss, packing).value.backward()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 576])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    torch.manual_seed(0)
    print("hidden  rows x (prompt + response)   padded ms   packed ms   ragged ms   shared ms  positions per call")
    for hidden in args.hidden:
        model = body(hidden, args.layers)
        for rows, prompt, response in ((4, 16, 32), (16, 16, 32), (16, 32, 64)):
            equal = [(prompt, response)] * rows
            # as many tokens, of as many different lengths as there are rows
            ragged = [(prompt, response + 2 * i - rows + 1 - rows % 2) for i in range(rows)]
            times = least(
                [
                    step(model, equal, packed=False, share=False),
                    step(model, equal, packed=True, share=False),
                    step(model, ragged, packed=True, share=False),
                    step(model, equal, packed=True, share=True),
                ],
                args.repeats,
            )
            each = (times[2] - times[1]) / (rows - 1) / (times[1] / rows / (prompt + response))
            name = f"{rows} x ({prompt} + {response})"
            milliseconds = "  ".join(f"{1000 * one:10.2f}" for one in times)
            print(f"{hidden:6}  {name:28} {milliseconds}  {each:18.1f}")


if __name__ == "__main__":
    main()
