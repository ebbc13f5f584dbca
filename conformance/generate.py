"""Write `vectors.json`: weights and gradients of every registered method on two small batches.

python conformance/generate.py            write it
python conformance/generate.py --check    exit 1 if it is not what would be written
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch

from dgpo import TokenBatch, policy_loss
from dgpo.files import write_text_atomic
from dgpo.objectives import OBJECTIVES
from dgpo.runs.schema import in_words

FILE = Path(__file__).with_name("vectors.json")
RATIOS = (0.01, 0.3, 0.7, 0.79, 0.81, 0.9, 0.9995, 1.0, 1.0005, 1.1, 1.19, 1.21, 1.5, 2.5, 4.0, 100.0)
"""On either side of the usual bounds: 1 ± 0.2, GSPO's, a dual clip of 3, and far beyond."""


def batches() -> dict[str, dict[str, Any]]:
    """A usual one, ragged; and one of responses of one token, at each of `RATIOS` with either sign of A."""
    generator = torch.Generator().manual_seed(0)
    old = -3 * torch.rand(4, 6, generator=generator, dtype=torch.float64) - 0.01
    new = (old + 0.3 * torch.randn(4, 6, generator=generator, dtype=torch.float64)).clamp(max=-0.001)
    lengths, place = torch.tensor([6, 3, 5, 1]).unsqueeze(1), torch.arange(6)
    log_ratio = torch.tensor([math.log(ratio) for ratio in RATIOS], dtype=torch.float64).repeat(2).unsqueeze(1)
    low = torch.full_like(log_ratio, math.log(0.005))
    return {
        "usual": {
            "logprob": _rounded(new),
            "old_logprob": _rounded(old),
            "advantage": [1.2, -0.8, -1.5, 0.4],
            "mask": (place < lengths).long().tolist(),
        },
        "ratios": {
            "logprob": _rounded(low + log_ratio),
            "old_logprob": _rounded(low),
            "advantage": [1.0] * len(RATIOS) + [-1.0] * len(RATIOS),
            "mask": [[1]] * (2 * len(RATIOS)),
        },
    }


def vectors() -> dict[str, Any]:
    """The content of the file."""
    given, cases = batches(), []
    for name, cls in OBJECTIVES.items():
        method = cls()
        if "entropy" in method.reads:
            continue
        for of, batch in given.items():
            tensors = {key: torch.tensor(values, dtype=torch.float64) for key, values in batch.items()}
            logprob = tensors["logprob"].requires_grad_()
            out = policy_loss(logprob, tensors["old_logprob"], tensors["advantage"], tensors["mask"].bool(), method)
            (gradient,) = torch.autograd.grad(out.value, logprob)
            tokens = TokenBatch(*(values.detach() for values in tensors.values()))
            chosen = method.calibrate(tokens)
            cases.append(
                {
                    "method": name,
                    "papers": [paper.arxiv_id for paper in cls.papers if paper.arxiv_id],
                    "fields": in_words(
                        {field: getattr(method, field) for field in (f.name for f in dataclasses.fields(method))}
                    ),
                    "inputs": of,
                    **({"penalty": _rounded(chosen.penalty(tokens).slope)} if chosen.penalises else {}),
                    "weight": _rounded(out.weight),
                    "gradient": _rounded(gradient),
                }
            )
    about = {
        "schema": "dgpo.vectors/1",
        "about": "gradient: d loss / d logprob [B, T] of the mean over the N valid tokens, -A·w/N, or with a penalty "
        "-(A·w - penalty)/N; weight: w of ∇J = A·w·∇log π; advantage per response; log-probs in nats, float64; "
        "mask is 1 where a token is valid",
    }
    return {**about, "inputs": given, "cases": cases}


def _rounded(values: torch.Tensor) -> Any:
    """Nested lists of numbers with nine significant digits."""
    return [_rounded(row) for row in values] if values.dim() else float(f"{float(values):.9g}")


def text() -> str:
    """One case per line, so that a change of one method is a change of its lines."""
    found = vectors()
    head = {key: value for key, value in found.items() if key != "cases"}
    lines = ",\n".join(json.dumps(case) for case in found["cases"])
    return f'{json.dumps(head, ensure_ascii=False)[:-1]},\n"cases": [\n{lines}\n]}}\n'


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(FILE.read_text(encoding="utf-8") != text())
    write_text_atomic(FILE, text())
