"""The pieces of the whole, the most important first."""

from __future__ import annotations

from dataclasses import dataclass

LONGEST = 120.0
"""Seconds that any piece may take at most."""
TOTAL = 590.0
"""Seconds for all of them."""
REHEARSAL_FACTOR = 10.0
"""A rehearsal may take this much longer: one core of a CPU imports and compiles more slowly than what it stands for."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One process: the module `benchmarks/gpu/NAME.py`."""

    name: str
    part: str
    """Right, fast, learns or many seeds."""
    question: str
    seconds: float
    """It is killed after these."""
    grows: bool = False
    """Whether it is given what other pieces left over, up to `LONGEST`: it measures more in more time."""


PIECES = (
    Piece(
        name="operator",
        part="right",
        question="are the gradients of the fused loss those of float64, for every objective",
        seconds=50,
    ),
    Piece(
        name="trainer",
        part="right",
        question="are the trainer's gradients the same with the fused loss and without it, with LoRA too",
        seconds=40,
    ),
    Piece(
        name="grader",
        part="right",
        question="do the grader's worker processes and CUDA leave each other alone",
        seconds=25,
    ),
    Piece(
        name="head",
        part="fast",
        question="how fast is the head beside its peers and three matrix products, and what memory does it take",
        seconds=90,
    ),
    Piece(
        name="attention",
        part="right",
        question="do 20 updates with flash or SDPA attention raise the reward",
        seconds=35,
    ),
    Piece(
        name="resume",
        part="right",
        question="does an interrupted run end where the uninterrupted one does",
        seconds=35,
    ),
    Piece(
        name="steps",
        part="fast",
        question="how fast are whole updates of 0.5B and 1.5B beside stock TRL, with parts on and off, in what memory",
        seconds=100,
    ),
    Piece(
        name="learns_dgpo",
        part="learns",
        question="does SmolLM2-135M-Instruct learn word problems with DGPO",
        seconds=60,
        grows=True,
    ),
    Piece(
        name="learns_grpo",
        part="learns",
        question="does it learn them with GRPO",
        seconds=60,
        grows=True,
    ),
    Piece(
        name="compiled",
        part="right",
        question="are the gradients of a compiled model the same",
        seconds=45,
    ),
    Piece(
        name="seeds",
        part="many seeds",
        question="what does a seed of the atlas cost on the device, and does a cell end where the CPU's did",
        seconds=40,
    ),
)


def allowance(piece: Piece, left: float, later: float) -> float:
    """Seconds for a piece, where `left` are left for all and the pieces after it need `later`."""
    most = min(LONGEST, max(piece.seconds, left - later)) if piece.grows else piece.seconds
    return min(most, left)
