"""Check a loss against `vectors.json`; needs numpy alone. Copy both files into any repository.

    python check.py my_package.my_module:gradient

`gradient(method, fields, inputs)` returns d loss / d logprob [B, T] of the mean over all valid tokens, -A·w/N; or None
for a method that it does not have. `inputs` has the arrays `logprob`, `old_logprob`, `mask` [B, T] and `advantage` [B].
"""

import importlib
import json
import sys
from pathlib import Path

import numpy as np

VECTORS = Path(__file__).with_name("vectors.json")


def check(gradient, path=VECTORS, rtol=1e-5):
    """A line for each case with a token that differs by more than rtol, and the number of cases that agree."""
    vectors = json.loads(Path(path).read_text(encoding="utf-8"))
    inputs = {name: {key: np.array(values) for key, values in one.items()} for name, one in vectors["inputs"].items()}
    wrong, right = [], 0
    for case in vectors["cases"]:
        batch, expected = inputs[case["inputs"]], np.array(case["gradient"])
        found = gradient(case["method"], dict(case["fields"]), batch)
        if found is None:
            continue
        found = np.where(batch["mask"], np.asarray(found, dtype=float), 0.0)
        off = np.nan_to_num(np.abs(found - expected), nan=np.inf)
        excess = off - rtol * np.abs(expected) - 1e-8 * np.abs(expected).max()
        right += int(excess.max() <= 0)
        if excess.max() > 0:
            row, column = np.unravel_index(np.argmax(excess), excess.shape)
            wrong.append(
                f"{case['method']} on {case['inputs']!r} at [{row}, {column}]: {found[row, column]:.6g}, expected "
                f"{expected[row, column]:.6g} (w = {case['weight'][row][column]:.6g})"
            )
    return wrong, right


if __name__ == "__main__":
    module, _, name = sys.argv[1].partition(":")
    sys.path.insert(0, "")
    differ, agree = check(getattr(importlib.import_module(module), name))
    print("\n".join([*differ, f"{agree} cases agree, {len(differ)} differ"]))
    sys.exit(bool(differ))
