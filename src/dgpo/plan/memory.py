"""Memory of one GPU, term by term: what a step holds while it updates, and while it generates.

Weights, gradients and optimiser states follow from counts of parameters. Activations are an ESTIMATE: what autograd
saves, by the accounting of arXiv 2205.05198 (section 4) redone for a gated layer, without the allocator's fragments,
the CUDA context (about 0.5 GiB) and NCCL's buffers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dgpo.fused.backends import tokens_in_budget
from dgpo.plan.arithmetic import Quantity, counted, over, quantity
from dgpo.plan.machines import Sharding
from dgpo.plan.model_shapes import ModelShape

GIB = 2.0**30
Phase = Literal["both", "update", "generation"]

TRL_TILE = (4096, 32768)
"""Tokens and vocabulary of a tile of TRL's own head (`trl.kernels.ChunkedLogProbFunction`)."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """One part of the memory.

    Attributes:
        name: what it is.
        formula: what it is computed from, in bytes.
        phase: when it is there.
    """

    name: str
    formula: Quantity
    phase: Phase = "both"

    @property
    def bytes(self) -> float:
        """How large it is."""
        return self.formula.value

    @property
    def how(self) -> str:
        """The formula in words and symbols."""
        return str(self.formula)


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
        reference: a reference model is held (beta > 0, no adapters).
        rows: responses of a micro-batch on one GPU.
        length: tokens of a row, prompt included.
        completion: tokens of a completion.
        checkpointing: gradient checkpointing, one checkpoint per layer.
        attention: "sdpa", "flash" or "eager".
        fused: the loss is `linear_policy_loss`; otherwise TRL's tiled head gives log-probs.
        device: "cuda" or "cpu", for the loss's budget.
        vllm_share: of this GPU's memory that vLLM takes; 0 without it or where it runs on other GPUs.
        vllm_gib: that memory.
        vllm_sleeps: it gives that back while the trainer updates.
        generated_rows: completions that transformers generates at once on this GPU; 0 with vLLM.
    """

    shape: ModelShape
    processes: int
    sharding: Sharding
    weight_bytes: int
    autocast: bool
    adapters: int | None
    reference: bool
    rows: int
    length: int
    completion: int
    checkpointing: bool
    attention: Literal["sdpa", "flash", "eager"]
    fused: bool
    device: Literal["cuda", "cpu"] = "cuda"
    vllm_share: float = 0.0
    vllm_gib: float = 0.0
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
    shape, n = s.shape, s.shape.parameters
    full = s.adapters is None
    kept = 2 if s.zero else s.weight_bytes
    # FSDP2 and adapters: accelerate and PEFT keep what is trained in float32
    b = 2 if s.zero else 4 if (s.sharding == "FSDP2" and s.autocast) or not full else s.weight_bytes
    parameters = quantity(n, "parameters")
    trained = parameters if full else quantity(s.trainable, "of adapters")
    weights = _bytes(b) * trained if full else _bytes(kept) * parameters + _bytes(b) * trained
    states = _bytes(4).of("master") + quantity(2) * _bytes(4) if s.zero else quantity(2) * _bytes(b)

    def shared(part: str, whole: Quantity) -> Quantity:
        return over(whole, s.share(*_SHARDED[part]), "rank")

    terms = [
        Term(name="weights", formula=shared("weights", weights)),
        Term(name="gradients", formula=shared("gradients", _bytes(b) * trained), phase="update"),
        Term(name="optimiser", formula=shared("optimiser", states * trained)),
    ]
    if s.reference:
        terms.append(Term(name="reference model", formula=shared("weights", _bytes(kept) * parameters)))
    if s.sharding == "DDP":
        terms.append(Term(name="DDP buckets", formula=(_bytes(b) * trained).of("of gradients once more")))
    layer, head = quantity(shape.layer, "of a layer"), quantity(shape.head, "of the head")
    if s.share(*_SHARDED["weights"]) > 1:
        gathered = _bytes(s.compute_bytes) * (quantity(2) * layer + head)
        made = _bytes(s.compute_bytes) * (layer + head)
        how = gathered + made.of("of gradients before they are scattered") if full else gathered
        terms.append(Term(name="gathered layers", formula=how, phase="update"))
    elif s.autocast and s.weight_bytes == 4 and not s.zero:
        matrices = counted(shape.layers, "layer") * quantity(shape.layer_matrices) + head
        # autocast keeps casts of trained weights alone; while generating they serve all tokens
        phase: Phase = "both" if s.generated_rows and full else "update"
        terms.append(Term(name="autocast copies", formula=_bytes(2) * matrices, phase=phase))
    return terms


def _bytes(number: float) -> Quantity:
    return quantity(number, "B")


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

    This is the sum that torch saves for a layer of Qwen2 on a CPU, to the byte (tests/plan/test_plan_memory.py).
    """
    shape, e, c = s.shape, s.compute_bytes, s.stream_bytes
    casts = 2 if c == e else 5
    attention = {"flash": 0, "sdpa": e * s.length, "eager": shape.heads * s.length * (2 * e + 4)}[s.attention]
    # one 1/rms per norm and token, float32: 2 · 4
    norms = 2 * (4 + c) * shape.hidden + 2 * 4
    products = casts * e * shape.hidden + 4 * e * shape.attention + 4 * shape.heads + 4 * e * shape.intermediate
    return norms + products + attention


def activation_terms(s: MemorySetting) -> list[Term]:
    """What the backward pass of one micro-batch of rows · length tokens needs; an estimate."""
    shape, tokens = s.shape, quantity(s.rows * s.length, "tokens")
    terms = []
    if s.checkpointing:
        terms.append(
            Term(
                name="checkpoints",
                formula=_bytes(s.stream_bytes) * quantity(shape.hidden) * counted(shape.layers, "layer") * tokens,
                phase="update",
            )
        )
    # of one layer at a time with checkpointing, which recomputes it in the backward pass
    live = _bytes(layer_bytes(s)) * counted(1 if s.checkpointing else shape.layers, "layer")
    # of gate, up and their product
    backward = quantity(3) * _bytes(s.compute_bytes) * quantity(shape.intermediate)
    terms.append(Term(name="activations", formula=(live + backward.of("of gradients")) * tokens, phase="update"))
    if s.attention != "flash":
        rows, length = counted(s.rows, "row"), quantity(s.length)
        terms.append(Term(name="attention mask", formula=_bytes(1) * rows * length * length, phase="update"))
    return terms


def loss_terms(s: MemorySetting) -> list[Term]:
    """Buffers of the loss: a chunk of logits in float32, and the gradients of head and hidden states."""
    shape, positions = s.shape, s.rows * s.completion
    if s.fused:
        chunk = min(tokens_in_budget(s.device, shape.vocabulary, 4), positions)
        how = _bytes(4) * quantity(chunk, "tokens") * quantity(shape.vocabulary, "logits")
    else:
        how = _bytes(6) * quantity(TRL_TILE[0], "tokens") * quantity(TRL_TILE[1], "logits of TRL's tile")
    if s.adapters is None:
        how += (_bytes(4) * quantity(shape.head)).of("of the head's gradient")
    # TRL's head accumulates this gradient in float32
    kept = _bytes(s.stream_bytes if s.fused else 4)
    how += (kept * quantity(positions, "tokens") * quantity(shape.hidden)).of("of the hidden states' gradient")
    return [Term(name="loss buffers", formula=how, phase="update")]


def naive_logits(s: MemorySetting) -> Quantity:
    """Bytes of logits, log-softmax and gradients of a naive loss: (e + 12) · rows · completion · V."""
    tokens = counted(s.rows, "row") * quantity(s.completion, "tokens")
    return (_bytes(s.compute_bytes) + _bytes(12)) * tokens * quantity(s.shape.vocabulary, "logits")


def generation_terms(s: MemorySetting) -> list[Term]:
    """What sampling adds: vLLM's share, or the cache of transformers for all completions of a generation at once."""
    terms = []
    if s.vllm_share:
        phase: Phase = "generation" if s.vllm_sleeps else "both"
        terms.append(Term(name="vLLM", formula=quantity(s.vllm_share) * quantity(s.vllm_gib, "GiB", GIB), phase=phase))
    if s.generated_rows:
        shape = s.shape
        # rotation gives keys the dtype of cos and sin, that of the residual stream; values keep that of the products
        per_token = (s.stream_bytes + s.compute_bytes) * shape.key_values * shape.layers
        completions, length = counted(s.generated_rows, "completion"), quantity(s.length, "tokens")
        terms.append(Term(name="key-value cache", formula=_bytes(per_token) * completions * length, phase="generation"))
        # transformers generates with gathered weights; under ZeRO-3 TRL gathers all at once (ds3_gather_for_generation)
        if s.share(*_SHARDED["weights"]) > 1:
            kept = 2 if s.zero else s.weight_bytes
            whole = _bytes(kept) * quantity(shape.parameters, "parameters")
            terms.append(Term(name="gathered model", formula=whole, phase="generation"))
    return terms


def memory_terms(s: MemorySetting) -> tuple[Term, ...]:
    """All terms of one GPU."""
    return (*model_terms(s), *activation_terms(s), *loss_terms(s), *generation_terms(s))


def total(terms: tuple[Term, ...], phase: Literal["update", "generation"]) -> float:
    """Bytes that are there at once in a phase."""
    return sum(term.bytes for term in terms if term.phase in ("both", phase))
