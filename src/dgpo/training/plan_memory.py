"""Memory of one GPU, term by term: what a step holds while it updates, and while it generates.

Weights, gradients and optimiser states follow from counts of parameters. Activations are an ESTIMATE: what autograd
saves, by the accounting of arXiv 2205.05198 (section 4) redone for a gated layer, without the allocator's fragments,
the CUDA context (about 0.5 GiB) and NCCL's buffers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dgpo.fused.backends import CHUNK_BYTES, CHUNK_TOKENS, LEAST_TOKENS
from dgpo.training.machines import Sharding
from dgpo.training.model_shapes import ModelShape

GIB = 2.0**30
Phase = Literal["both", "update", "generation"]

TRL_TILE = (4096, 32768)
"""Tokens and vocabulary of a tile of TRL's own head (`trl.kernels.ChunkedLogProbFunction`)."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """One part of the memory.

    Attributes:
        name: what it is.
        bytes: how large.
        how: the arithmetic, in words and symbols.
        phase: when it is there.
    """

    name: str
    bytes: float
    how: str
    phase: Phase = "both"


@dataclass(frozen=True, kw_only=True)
class MemorySetting:
    """What memory depends on.

    Attributes:
        shape: of the model.
        processes: W, the ranks.
        sharding: how they share the model.
        weight_bytes: of a weight as loaded, 4 or 2.
        autocast: products in 16 bits (`bf16: true`).
        adapters: parameters of LoRA adapters; None trains everything.
        moments: tensors that the optimiser keeps per parameter (Adam: 2).
        reference: a reference model is held (beta > 0, no adapters).
        rows: responses of a micro-batch on one GPU.
        length: tokens of a row, prompt included.
        completion: tokens of a completion.
        checkpointing: gradient checkpointing, one checkpoint per layer.
        attention: "sdpa", "flash" or "eager".
        fused: the loss is `linear_policy_loss`; otherwise TRL's tiled head gives log-probs.
        device: "cuda" or "cpu", for the loss's budget.
        vllm_bytes: what vLLM takes of this GPU; 0 without it or where it has GPUs of its own.
        vllm_sleeps: it gives that back while the trainer updates.
        generated_rows: completions that transformers generates at once on this GPU; 0 with vLLM.
    """

    shape: ModelShape
    processes: int
    sharding: Sharding
    weight_bytes: int
    autocast: bool
    adapters: int | None
    moments: int
    reference: bool
    rows: int
    length: int
    completion: int
    checkpointing: bool
    attention: Literal["sdpa", "flash", "eager"]
    fused: bool
    device: Literal["cuda", "cpu"] = "cuda"
    vllm_bytes: float = 0.0
    vllm_sleeps: bool = False
    generated_rows: int = 0

    @property
    def trainable(self) -> int:
        """Parameters with a gradient."""
        return self.shape.parameters if self.adapters is None else self.adapters

    @property
    def zero(self) -> bool:
        """DeepSpeed in bfloat16: 16-bit weights and gradients beside float32 masters (arXiv 1910.02054, section 3)."""
        return self.sharding.startswith("ZeRO") and self.autocast

    @property
    def compute_bytes(self) -> int:
        """e, of an operand of the matrix products."""
        return 2 if self.autocast or self.weight_bytes == 2 else 4

    @property
    def stream_bytes(self) -> int:
        """c, of the residual stream: autocast leaves it in the weights' dtype, FSDP2 and DeepSpeed cast the weights."""
        cast = self.autocast and self.sharding in ("FSDP2", "ZeRO-1", "ZeRO-2", "ZeRO-3")
        return 2 if cast else self.weight_bytes

    def share(self, *shardings: Sharding) -> int:
        """W if this sharding is one of them, else 1."""
        return self.processes if self.sharding in shardings else 1


def model_terms(s: MemorySetting) -> list[Term]:
    """Weights, gradients, optimiser states and whatever copies of them a step makes.

    Everything trained, per parameter: weights b, gradients b, Adam's two moments 2·b, in the dtype of the weights as
    torch.optim makes them (float32: 16 bytes). accelerate's FSDP2 keeps trained parameters in float32. DeepSpeed in
    bfloat16: 2 + 2 + (4 + 8).
    """
    shape, n, t = s.shape, s.shape.parameters, s.trainable
    full = s.adapters is None
    frozen = 0 if full else n * (2 if s.zero else s.weight_bytes)
    b = 2 if s.zero else 4 if (s.sharding == "FSDP2" and s.autocast) or not full else s.weight_bytes
    whole, W = f"{n:,} parameters", s.processes
    by = {part: s.share(*kinds) for part, kinds in _SHARDED.items()}
    split = {part: f" / {W} ranks" if count > 1 else "" for part, count in by.items()}
    trained = whole if full else f"{t:,} of adapters"
    terms = [
        Term(
            name="weights",
            bytes=(frozen + b * t) / by["weights"],
            how=(f"{b} B x {whole}" if full else f"{frozen // n} B x {whole} + {b} B x {trained}") + split["weights"],
        ),
        Term(
            name="gradients",
            bytes=b * t / by["gradients"],
            how=f"{b} B x {trained}{split['gradients']}",
            phase="update",
        ),
        Term(
            name="optimiser",
            bytes=((4 + 4 * s.moments) if s.zero else b * s.moments) * t / by["optimiser"],
            how=(f"(4 B master + {s.moments} x 4 B)" if s.zero else f"{s.moments} x {b} B")
            + f" x {trained}{split['optimiser']}",
        ),
    ]
    if s.reference:
        kept = 2 if s.zero else s.weight_bytes
        terms.append(Term(name="reference model", bytes=kept * n / by["weights"], how=f"{kept} B x {whole}"))
    if s.sharding == "DDP":
        terms.append(Term(name="DDP buckets", bytes=b * t, how="gradients once more, in flat buffers"))
    e, layer = s.compute_bytes, shape.layer
    if by["weights"] > 1:
        made = layer + shape.head if full else 0
        terms.append(
            Term(
                name="gathered layers",
                bytes=e * (2 * layer + shape.head) + e * made,
                how=f"{e} B x (2 layers + head), and gradients of one layer + head before they are scattered",
                phase="update",
            )
        )
    elif s.autocast and s.weight_bytes == 4 and not s.zero:
        cast = shape.layers * shape.layer_matrices + shape.head
        terms.append(
            Term(
                name="autocast copies",
                bytes=2 * cast,
                how="2 B x every matrix, kept through a forward pass",
                phase="update",
            )
        )
    return terms


_SHARDED: dict[str, tuple[Sharding, ...]] = {
    "weights": ("FSDP2", "ZeRO-3"),
    "gradients": ("FSDP2", "ZeRO-2", "ZeRO-3"),
    "optimiser": ("FSDP2", "ZeRO-1", "ZeRO-2", "ZeRO-3"),
}


def layer_bytes(s: MemorySetting) -> float:
    """Bytes per token that autograd saves for one layer, without checkpointing.

    With e bytes in a product and c in the residual stream::

        two norms           2·(4 + c)·H      the float32 input, the normalised output
        linear inputs       2·e·H            5·e·H where autocast casts for each of q, k, v, gate, up
        attention           4·e·A + 4·heads  q, k and v of all heads, the output; log-sum-exp
        MLP                 4·e·I            gate, up, silu(gate), their product
        attention by sdpa   e·length         the mask as numbers to add; eager: heads·length·(2·e + 4) of scores

    This is the sum that torch saves for a layer of Qwen2 on a CPU, to the byte (tests/training/test_plan.py).
    """
    shape, e, c = s.shape, s.compute_bytes, s.stream_bytes
    casts = 2 if c == e else 5
    attention = {"flash": 0, "sdpa": e * s.length, "eager": shape.heads * s.length * (2 * e + 4)}[s.attention]
    norms = 2 * (4 + c) * shape.hidden + 2 * 4
    products = casts * e * shape.hidden + 4 * e * shape.attention + 4 * shape.heads + 4 * e * shape.intermediate
    return norms + products + attention


def activation_terms(s: MemorySetting) -> list[Term]:
    """What the backward pass of one micro-batch of rows · length tokens needs; an estimate."""
    shape, tokens = s.shape, s.rows * s.length
    live, stream = layer_bytes(s), s.stream_bytes * shape.hidden
    backward = 3 * s.compute_bytes * shape.intermediate  # gradients of gate, up and their product
    terms = []
    if s.checkpointing:
        terms.append(
            Term(
                name="checkpoints",
                bytes=tokens * stream * shape.layers,
                how=f"{s.stream_bytes} B x {shape.hidden} x {shape.layers} layers x {tokens:,} tokens",
                phase="update",
            )
        )
    layers = 1 if s.checkpointing else shape.layers
    terms.append(
        Term(
            name="activations",
            bytes=tokens * (live * layers + backward),
            how=f"{live:,.0f} B per token and layer x {tokens:,} tokens x {layers} layer{'s' * (layers > 1)}",
            phase="update",
        )
    )
    if s.attention != "flash":
        terms.append(Term(name="attention mask", bytes=tokens * s.length, how="1 B x rows x length²", phase="update"))
    return terms


def loss_terms(s: MemorySetting) -> list[Term]:
    """Buffers of the loss: a chunk of logits in float32, and the gradients of head and hidden states."""
    shape, positions = s.shape, s.rows * s.completion
    if s.fused:
        fitting = CHUNK_BYTES[s.device] // (shape.vocabulary * 4)
        chunk = min(max(LEAST_TOKENS[s.device], min(CHUNK_TOKENS[s.device], fitting)), positions)
        logits, what = chunk * shape.vocabulary * 4, f"{chunk:,} tokens of float32 logits"
    else:
        logits, what = TRL_TILE[0] * TRL_TILE[1] * 6, f"TRL's tile of {TRL_TILE[0]:,} x {TRL_TILE[1]:,}"
    head = 4 * shape.head if s.adapters is None else 0
    hidden = positions * shape.hidden * (s.stream_bytes if s.fused else 4)
    how = what + (", float32 gradient of the head" if head else "") + ", gradient of hidden states"
    return [Term(name="loss buffers", bytes=logits + head + hidden, how=how, phase="update")]


def logits_not_held(s: MemorySetting) -> float:
    """Bytes of logits, log-softmax and gradients of a naive loss: rows · completion · V · (e + 12)."""
    return float(s.rows * s.completion * s.shape.vocabulary * (s.compute_bytes + 12))


def generation_terms(s: MemorySetting) -> list[Term]:
    """What sampling adds: vLLM's share, or the cache of transformers for all completions of a generation at once."""
    terms = []
    if s.vllm_bytes:
        phase: Phase = "generation" if s.vllm_sleeps else "both"
        terms.append(Term(name="vLLM", bytes=s.vllm_bytes, how="vllm_gpu_memory_utilization x GPU", phase=phase))
    if s.generated_rows:
        shape = s.shape
        per_token = (s.stream_bytes + s.compute_bytes) * shape.key_values * shape.layers
        terms.append(
            Term(
                name="key-value cache",
                bytes=s.generated_rows * s.length * per_token,
                how=f"{per_token:,} B x {s.generated_rows:,} completions x {s.length:,} tokens",
                phase="generation",
            )
        )
        if s.share(*_SHARDED["weights"]) > 1:
            kept = 2 if s.zero else s.weight_bytes
            terms.append(
                Term(name="gathered model", bytes=kept * shape.parameters, how=f"{kept} B x all", phase="generation")
            )
    return terms


def memory_terms(s: MemorySetting) -> tuple[Term, ...]:
    """All terms of one GPU."""
    return (*model_terms(s), *activation_terms(s), *loss_terms(s), *generation_terms(s))


def total(terms: tuple[Term, ...], phase: Literal["update", "generation"]) -> float:
    """Bytes that are there at once in a phase."""
    return sum(term.bytes for term in terms if term.phase in ("both", phase))
