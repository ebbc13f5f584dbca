"""`dgpo replay`: what other objectives would have made of the tokens that a run recorded."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from dgpo import objectives
from dgpo.cli.errors import UserError, user_input
from dgpo.cli.own_objective import import_hint
from dgpo.counts import counted
from dgpo.diagnostics.replay import Replay, Row, replay, verdict
from dgpo.objectives import Objective
from dgpo.regions import REGIONS
from dgpo.runs.log import sample
from dgpo.runs.run import Run, load

ALL = "all"
HEADER = ("bias\n%", "equal\nstep %", "cosine", "step", "factor", "ESS", "w = 0\n%", "max w", "top\n1 %")
NOTES = (
    "* the run's own objective; least biased first",
    "bias: Σ|A||w-r| / Σ|A|r, against unclipped importance sampling, w = r",
    "equal step: the same with every step scaled to one size, 0 to 200 %",
    "cosine: between w·A·N and r·A·N; N: {norm} of ∇log π",
    "step: E|A|wN; factor: scales the step to that of {reference}",
    "ESS: effective share of the tokens; w = 0: without a gradient",
    "top 1 %: what the largest 1 % of the tokens hold of Σ|A|wN",
)
ADAPTIVE = "Adaptive, so calibrated here on each update as a whole, in training on every micro-batch"


def parser() -> argparse.ArgumentParser:
    """The flags of `dgpo replay`."""
    made = argparse.ArgumentParser(
        prog="dgpo replay",
        description=(
            "Weigh the recorded tokens of a run by other objectives: weights, bias, step size and regions, without "
            "running it again."
        ),
    )
    made.add_argument("run", metavar="RUN", help="folder that a run was recorded to (record: FOLDER)")
    made.add_argument(
        "--objectives",
        nargs="+",
        default=[ALL],
        metavar="NAME",
        help="objectives, optionally with fields: dgpo:n=2,m=2 maspo my_package.my_module:MyObjective; default: all",
    )
    made.add_argument(
        "--updates", metavar="FROM:TO", help="replay only these updates, both ends included; 10: and :50 work too"
    )
    made.add_argument("--out", metavar="FILE.json", help="where to write the statistics (default: RUN/replay.json)")
    return made


def run(argv: list[str]) -> int:
    """Run `dgpo replay argv`."""
    arguments = parser().parse_args(argv)
    with user_input():
        # first: these modules may define the run's own objective
        chosen = [objective for word in arguments.objectives for objective in parse(word)]
        recorded = load(arguments.run)
        found = replay(recorded, chosen, updates=_updates(arguments.updates, recorded), track=_progress)
        path = found.write(arguments.out or Path(arguments.run) / "replay.json")
    console = Console()
    console.print(Text(verdict(found)), "")
    for table in tables(found):
        if console.measure(table).minimum > console.width:
            table.columns[0].min_width = None  # rather wrap a name than truncate a number
        console.print(table, "")
    for line in remarks(found, recorded.damaged):
        print(line)
    print(f"all statistics: {path}")
    return 0


def parse(word: str) -> list[Objective]:
    """The objectives that `all`, or one as `dgpo.registry.parse` takes it, stands for.

    Raises:
        ValueError: unknown name or field, with the nearest known one; a field without a value, or out of its range.
    """
    return [objectives.make(name) for name in (objectives.OBJECTIVES if word == ALL else [word])]


def _progress(updates: Sequence[int]) -> Iterable[int]:
    """The updates, with a bar on a terminal while they are replayed; it disappears at the end."""
    screen = Console(stderr=True)
    return track(updates, "replaying", console=screen, transient=True, disable=not screen.is_terminal)


def _updates(text: str | None, recorded: Run) -> list[int]:
    """The recorded updates in a range; `text` as `--updates` takes it."""
    there = recorded.updates
    if not there:
        raise UserError(f"{str(recorded.folder)!r} has no recorded tokens: record: FOLDER writes them while training")
    if text is None:
        return there
    first, colon, last = text.partition(":")
    try:
        low = int(first) if first or not colon else there[0]
        high = (int(last) if last else there[-1]) if colon else low
    except ValueError as error:
        raise UserError(f"--updates {text!r} is not a range; expected FROM:TO, such as 10:50") from error
    found = [update for update in there if low <= update <= high]
    if not found:
        raise UserError(f"no update of --updates {text} was recorded; recorded: {there[0]} to {there[-1]}")
    return found


def tables(found: Replay) -> list[Table]:
    """For a terminal: one table of weights and bias, one of the regions where the gradient is."""
    updates = counted(len(found.updates), "update")
    title = f"{updates} ({found.updates[0]} to {found.updates[-1]}), {counted(found.tokens, 'token')}"
    if found.skipped:
        title += f"; {len(found.skipped)} without an advantage left out"
    if found.incomplete:
        title += f"; {len(found.incomplete)} incomplete left out"
    reference = found.reference or "unclipped importance sampling"
    norm = "the norm" if found.exact else "the bound 1 - π on the norm"
    caption = "\n".join(NOTES).format(reference=reference, norm=norm)
    if adaptive := [row.label for row in found.rows if row.adaptive]:
        caption += f"\n{ADAPTIVE}: {', '.join(adaptive)}."
    longest = max(len(word) for row in found.rows for word in _name(row).plain.split())
    overview = _table(title, caption, HEADER, longest)
    caption = f"In % of Σ|A|wN, by the boundaries of {found.reference or 'an unknown objective'} for every row"
    if found.eps_low is not None and found.eps_high is not None:
        caption += f": 1 - {found.eps_low:g} to 1 + {found.eps_high:g}"
    caption += "\nFirst row: in % of the tokens\nreverse: moved against the advantage (left: A > 0, right: A < 0)"
    places = _table("Where the gradient is", caption, tuple(name.replace("_", "\n") for name in REGIONS), longest)
    places.add_row("tokens", *(f"{100 * found.fraction[name]:.1f}" for name in REGIONS), end_section=True)
    for row in found.rows:
        overview.add_row(_name(row), *_cells(row))
        places.add_row(_name(row), *(f"{100 * row.gradient[name]:.1f}" for name in REGIONS))
    return [overview, places]


def remarks(found: Replay, damaged: Sequence[str]) -> list[str]:
    """Lines on what is missing from the tables."""
    lines = []
    if found.unregistered is not None:
        lines.append(
            f"the run's own objective, {found.unregistered}, is not registered here: no row is marked as its own. "
            + import_hint(found.unregistered, f"--objectives {ALL}")
        )
    if found.incomplete:
        lines.append(f"left out, because the file of a rank is missing or damaged: updates {sample(found.incomplete)}")
    if damaged:
        lines.append(f"damaged files: {', '.join(damaged)}")
    return lines


def _table(title: str, caption: str, head: tuple[str, ...], longest: int) -> Table:
    # Text: a name with [brackets] in it is not markup
    table = Table(title=Text(title), caption=Text(caption), caption_justify="left", min_width=72)
    # so that the columns fit into 80 characters
    table.box, table.show_edge, table.pad_edge, table.padding = box.SIMPLE_HEAD, False, False, (0, 1, 0, 0)
    table.add_column("objective", overflow="fold", vertical="bottom", min_width=longest)
    for header in head:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def _name(row: Row) -> Text:
    return Text(row.label.replace(",", ", ") + " *" * row.own)  # a space to break the line at


def _cells(row: Row) -> list[str]:
    return [
        f"{100 * row.bias:.2f}",
        f"{100 * row.bias_equal_step:.1f}",
        f"{row.cosine:.3f}",
        f"{row.step_size:.3g}",
        "-" if row.factor is None else f"{row.factor:.3g}",
        f"{row.ess:.2f}",
        f"{100 * row.zero_fraction:.1f}",
        f"{row.weight_max:.3g}",
        f"{100 * row.top_percent_share:.1f}",
    ]
