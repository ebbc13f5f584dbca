"""Completions from vLLM's offline engine.

Written against vLLM's documented interface (`LLM`, `SamplingParams`, `TokensPrompt`). vLLM needs a GPU: this file has
not been run with it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from dgpo.evaluation.backends.backend import (
    Backend,
    Completion,
    IncompleteError,
    Request,
    Sampling,
    files_fingerprint,
    template_fingerprint,
    truncated_of,
)
from dgpo.evaluation.prompts import drops_special_tokens, encode
from dgpo.fields import check_value
from dgpo.installation import require


class VLLMBackend(Backend):
    """vLLM in this process. The engine starts with the first completion, not before.

    Prompts are the same token ids as for `transformers`: the tokenizer's own chat template, no second BOS. All sampling
    parameters are set, so that the defaults in a model's `generation_config` do not apply (vLLM takes the end tokens
    from there). Every request has its own seed; completions still depend slightly on the batch, because floating-point
    sums do.

    Args:
        model: folder or hub name.
        dtype: `auto` (vLLM's choice), `bfloat16`, `float16` or `float32`.
        group_size: number of requests submitted together; rows are saved when their group has finished. The engine
            waits for the longest completion of a group, so it should not be small (default 2048).
        tensor_parallel_size: number of GPUs to split the model over.

    Raises:
        ImportError: if vLLM is not installed.
        ValueError: if the group size is below 1.
    """

    def __init__(
        self, model: str, *, dtype: str = "auto", group_size: int = 2048, tensor_parallel_size: int = 1
    ) -> None:
        check_value("group_size", group_size, "[1, inf)", whole=True)
        require("the backend 'vllm' needs", "vllm", "vllm")
        import vllm  # type: ignore[import-not-found]
        from transformers import AutoTokenizer

        self.model = model
        self.dtype = dtype
        self.group_size = group_size
        self.tensor_parallel_size = tensor_parallel_size
        self._vllm = vllm
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._engine: Any = None

    def complete(
        self, requests: Sequence[Request], sampling: Sampling, done: Collection[int] = ()
    ) -> Iterator[list[tuple[int, Completion]]]:
        """As in `Backend`; one group at a time, in the order of the requests.

        Raises:
            ValueError: if a prompt has no tokens, or is a chat and the tokenizer has no chat template.
            IncompleteError: if vLLM aborted a request; the other completions of its group are yielded first.
        """
        encoded = encode(self._tokenizer, [request.prompt for request in requests])
        left = sorted(set(range(len(requests))).difference(done))
        if left and self._engine is None:
            self._engine = self._vllm.LLM(
                model=self.model, dtype=self.dtype, tensor_parallel_size=self.tensor_parallel_size
            )
        for start in range(0, len(left), self.group_size):
            group = left[start : start + self.group_size]
            outputs = self._engine.generate(
                [{"prompt_token_ids": encoded[position]} for position in group],
                [self._parameters(requests[position], sampling) for position in group],
                use_tqdm=False,
            )
            good: list[tuple[int, Completion]] = []
            bad: list[str] = []
            for position, output in zip(group, outputs, strict=True):
                try:
                    good.append((position, _completion(output)))
                except IncompleteError as error:
                    bad.append(f"vLLM gave no completion for request {position + 1}: {error}")
            yield good
            if bad:
                raise IncompleteError(bad[0])

    def settings(self) -> dict[str, Any]:
        return {
            "kind": "vllm",
            "dtype": self.dtype,
            "tensor_parallel_size": self.tensor_parallel_size,
            "weights": files_fingerprint(self.model),
            "chat_template": template_fingerprint(self._tokenizer),
            "versions": {"vllm": self._vllm.__version__},
        }

    def close(self) -> None:
        self._engine = None

    def _parameters(self, request: Request, sampling: Sampling) -> Any:
        drawn = {} if request.greedy else {"top_p": sampling.top_p, "seed": request.seed}
        return self._vllm.SamplingParams(
            n=1,
            temperature=0.0 if request.greedy else sampling.temperature,
            max_tokens=sampling.max_new_tokens,
            skip_special_tokens=drops_special_tokens(self._tokenizer),
            **drawn,
        )


def _completion(output: Any) -> Completion:
    if not output.outputs:
        raise IncompleteError("no output")
    first = output.outputs[0]
    return Completion(first.text, tokens=len(first.token_ids), truncated=truncated_of(first.finish_reason))
