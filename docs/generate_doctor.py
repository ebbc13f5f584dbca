"""Write the two tables of docs/doctor.md: the rules, and what they find in eleven logs of other people's runs.

    python docs/generate_doctor.py            write them
    python docs/generate_doctor.py --check    exit 1 if one of them is not what would be written

The logs lie in the folder shared/training_logs beside the repository; without it their table stays as it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dgpo.diagnostics.doctor import Case, as_markdown, diagnose
from dgpo.runs.run import load_any

PAGE = Path(__file__).with_name("doctor.md")
LOGS = Path(__file__).resolve().parents[2] / "shared" / "training_logs"
MAPPED = {"09": {"reward": "reward_mean", "clipped": "clip_frac"}, "10": {"reward": "mean_reward"}}
"""Names of their own in logs of own loops, given as with `--map`."""

TRUE = {
    "01": "healthy",
    "02": "completions cut at 128 tokens; 70 % of the groups without spread",
    "03": "reference KL of 0.48 at the first step; length doubles, reward hardly moves",
    "04": "one reward function is 0 throughout",
    "05": "reference KL from 0.002 to 3 nats; gradient spikes follow",
    "06": "59 % of the groups without spread; reward flat at a learning rate of 2e-7",
    "07": "one completion per prompt, no baseline; entropy rises from about step 300",
    "08": "nine steps: too short for a trend",
    "09": "own names; with a mapping nothing is wrong",
    "10": "172 of 210 steps were skipped",
    "11": "40 to 46 % of the steps without spread",
}
"""What an experienced engineer sees in each log."""


def logs_table() -> str:
    """Log x finding: what is true of it, and what the doctor finds, in its order."""
    lines = ["| log | steps | what is true of it | found |", "| --- | --- | --- | --- |"]
    for file in sorted(LOGS.glob("[0-9]*")):
        number = file.name[:2]
        case = Case.of(load_any(file, MAPPED.get(number, {})))
        found = []
        for one in diagnose(case):
            because = f", follows from `{one.follows}`" if one.follows else ""
            found.append(f"`{one.rule}` ({one.severity}, from step {one.step}{because})")
        name = file.name.partition(".")[2]
        lines.append(f"| {number} ({name}) | {len(case.log.rows)} | {TRUE[number]} | {'; '.join(found) or 'nothing'} |")
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with both tables as they are now."""
    text = _between(text, "| rule | ", as_markdown())
    return _between(text, "| log | steps |", logs_table()) if LOGS.is_dir() else text


def _between(text: str, beginning: str, table: str) -> str:
    first = text.index(beginning)
    return text[:first] + table + text[text.index("\n\n", first) :]


def main() -> int:
    """Write or check the page."""
    before = PAGE.read_text(encoding="utf-8")
    after = page(before)
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(after, encoding="utf-8")
    elif after != before:
        print("out of date: docs/doctor.md; run: python docs/generate_doctor.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
