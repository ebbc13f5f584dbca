"""The update of verl's actor on one batch, for `ragged_step.py`: its own engine, loss and optimizer, padding removed.

verl 0.9.1 has no platform for a CPU and registers its engines for CUDA and NPU only. Its interface for other platforms
takes one, and the engine then runs as it is: with FSDP2 over one process, and with SDPA, which keeps packed responses
apart by their position ids. The model and the batch are files; this process has verl's environment and not ours.
"""

from __future__ import annotations

import hashlib
import json
import socket
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from tensordict import TensorDict
from verl.plugin.platform.platform_cuda import PlatformCUDA
from verl.plugin.platform.platform_manager import set_platform
from workers import reset_peak, serve, status


class CPU(PlatformCUDA):  # type: ignore[misc]
    """Where there is no accelerator; what is not overridden is not called."""

    device_name = "cpu"
    vendor_name = "none"
    device_module = torch.cpu

    def is_available(self) -> bool:
        return True

    def current_device(self) -> torch.device:
        return torch.device("cpu")

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        pass

    def synchronize(self, device_index: int | None = None) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def communication_backend_name(self) -> str:
        return "gloo"


# the engine asks for it when it is imported
set_platform(CPU())

from verl.trainer.config import CheckpointConfig  # noqa: E402
from verl.utils import tensordict_utils  # noqa: E402
from verl.workers.config import ActorConfig, FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig  # noqa: E402
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead  # noqa: E402
from verl.workers.utils.losses import ppo_loss  # noqa: E402
from verl.workers.utils.padding import left_right_2_no_padding, no_padding_2_padding  # noqa: E402


def engine(folder: str, fused: bool) -> FSDPEngineWithLMHead:
    """verl's actor in float32, without gradient checkpointing, as the other trainers.

    Args:
        folder: of the model.
        fused: with verl's fused head, in torch.
    """
    made = FSDPEngineWithLMHead(
        HFModelConfig(
            path=folder,
            load_tokenizer=False,
            enable_gradient_checkpointing=False,
            override_config={"attn_implementation": "sdpa"},
            use_fused_kernels=fused,
            fused_kernel_options={"impl_backend": "torch"} if fused else {},
        ),
        FSDPEngineConfig(strategy="fsdp2", mixed_precision={"param_dtype": "fp32"}, use_torch_compile=False),
        FSDPOptimizerConfig(lr=1e-6, total_training_steps=10),
        CheckpointConfig(),
    )
    made.initialize()
    return made


def padded(batch: dict[str, Any], old_logprob: torch.Tensor | None, rows: int, fused: bool) -> TensorDict:
    """A batch as verl's actor is given it, padding removed.

    Args:
        batch: `prompt_ids`, `completion_ids` and `advantages`, a number per response.
        old_logprob: [responses, longest]; zeros if None.
        rows: responses of a micro-batch.
        fused: with verl's fused head.
    """
    prompts, completions = torch.tensor(batch["prompt_ids"]), batch["completion_ids"]
    count, longest = len(completions), max(map(len, completions))
    answers, mask = torch.zeros(count, longest, dtype=torch.long), torch.zeros(count, longest, dtype=torch.long)
    for row, ids in enumerate(completions):
        answers[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
    attention = torch.cat([torch.ones_like(prompts), mask], dim=1)
    data = left_right_2_no_padding(
        TensorDict(
            {
                "input_ids": torch.cat([prompts, answers], dim=1),
                "attention_mask": attention,
                "position_ids": attention.cumsum(1).sub(1).clamp(min=0),
                "prompts": prompts,
                "responses": answers,
                "response_mask": mask,
                "advantages": torch.tensor(batch["advantages"])[:, None] * mask,
                "old_log_probs": torch.zeros(count, longest) if old_logprob is None else old_logprob,
            },
            batch_size=count,
        )
    )
    tensordict_utils.assign_non_tensor(
        data,
        temperature=1.0,
        use_dynamic_bsz=False,
        micro_batch_size_per_gpu=rows,
        use_remove_padding=True,
        use_fused_kernels=fused,
        calculate_entropy=False,
        global_batch_size=count,
    )
    return data


def update(request: dict[str, Any]) -> dict[str, Any]:
    """What `ragged_step.train` returns, of verl's actor.

    Args:
        request: `model` and `batch`, a folder and a file; `rows` of a micro-batch; `fused`.
    """
    given = json.loads(Path(request["batch"]).read_text())
    rows, fused = request["rows"], request["fused"]
    actor = engine(request["model"], fused)
    # the policy that has sampled is the one at hand, as in the other trainers: every ratio is 1
    data = padded(given, None, rows, fused)
    with actor.eval_mode():
        found = actor.infer_batch(data)
    data = padded(given, no_padding_2_padding(found["model_output"]["log_probs"], data).detach(), rows, fused)
    del found
    positions = 0

    def count(_module: Any, ids: tuple[Any, ...], _output: Any) -> None:
        nonlocal positions
        positions += ids[0].numel()

    actor.module.get_input_embeddings().register_forward_hook(count)
    loss = partial(ppo_loss, ActorConfig(strategy="fsdp2", ppo_micro_batch_size_per_gpu=rows, rollout_n=1))
    with actor.train_mode():
        reset_peak()
        held = status("VmRSS")
        began, began_wall = time.process_time(), time.perf_counter()
        metrics = actor.train_batch(data, loss_function=loss)["metrics"]
        seconds, wall = time.process_time() - began, time.perf_counter() - began_wall
    ids = [given["prompt_ids"], given["completion_ids"]]
    return {
        "seconds": seconds,
        "wall": wall,
        "positions": positions,
        "peak_mib": (status("VmHWM") - held) / 1024,
        "norms": [metrics["grad_norm"]],
        "padding": [],
        "tokens": sum(len(row) for half in ids for row in half),
        "batches": hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16],
        "share": 1.0,
        "parameters": sum(parameter.numel() for parameter in actor.module.parameters()),
        "source": f"verl {version('verl')}, transformers {version('transformers')}",
    }


def main() -> None:
    """Answer requests, in one process group."""
    torch.set_num_threads(1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    serve(update)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
