"""The text and tables of the page, from the data of `collect`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dgpo.counts import counted
from dgpo.imports import is_path
from dgpo.report.grouping import NULL, flattened
from dgpo.report.markup import Markup, escaped, joined, percent, shown, table, tag

SIGNS = {"error": "✖ error", "warning": "▲ warning", "note": "● note"}
REPLAY_HEAD = ("objective", "bias", "equal step", "cosine", "step", "factor", "ESS", "w = 0", "max w", "top 1 %")
REPLAY_NOTE = (
    "bias: Σ|A||w − r| / Σ|A|r, the distance to unclipped importance sampling (w = r). equal step: the same with every "
    "method scaled to the same step, 0 to 2. cosine: between w·A·N and r·A·N, token by token. step: E|A|wN. factor: "
    "what the learning rate would be multiplied with for the step of {reference}. ESS: effective share of the tokens. "
    "w = 0: tokens without a gradient. top 1 %: what the largest 1 % of the tokens hold of Σ|A|wN. N is {norm} of "
    "∇log π in the logits. First order only: policies and responses are those of the run."
)
ADAPTIVE_NOTE = " Adaptive, so calibrated here on each update as a whole, in training on every micro-batch: {names}."


def mark(run: Mapping[str, Any], number: int) -> Markup:
    """The colour and name of a run."""
    swatch = tag("span", class_=f"swatch run-{run['colour'] % 8}", aria_hidden="true")
    return tag("span", swatch, run["label"], class_="run")


def each(runs: Sequence[Mapping[str, Any]], part: Any) -> Markup:
    """One section per run, with its name as heading if there are several; the script shows one run at a time."""
    found = []
    for number, run in enumerate(runs):
        heading = tag("h3", mark(run, number)) if len(runs) > 1 else Markup("")
        found.append(tag("div", heading, part(run, number), class_="of-run", data_run=number))
    return joined(found)


def empty(why: object) -> Markup:
    """The text of an empty section."""
    return tag("p", why, class_="empty")


def unregistered(run: Mapping[str, Any]) -> str | None:
    """Description of the run's own objective if it is not registered; otherwise None."""
    name = run["unregistered"]
    if name is None:
        return None
    # a page imports no path because a recording names it
    told = f"; dgpo report --objective {name} imports it" if is_path(name) else ""
    return f"{name} (not registered where this page was written{told})"


def thinned(run: Mapping[str, Any]) -> str:
    """Why the page reads fewer tokens than were recorded, and what reads all; empty if it reads all."""
    if not run["thinned"]:
        return ""
    rows = "" if run["every"] == 1 else f"one in {run['every']} responses of "
    return (
        f"From {rows}{run['chosen']:,} of {counted(run['recorded'], 'recorded update')}, evenly spaced, so that a page "
        "about a long run is written quickly; dgpo replay reads all of them, so its figures differ a little."
    )


def findings_of_all(runs: Sequence[Mapping[str, Any]]) -> Markup:
    """The findings of the doctor: by run for one or two, else by rule, with the runs that each is about."""
    if len(runs) < 3:
        return each(runs, findings)
    by_rule: dict[tuple[str, str], list[tuple[Markup, Mapping[str, Any]]]] = {}
    for number, run in enumerate(runs):
        for one in run["findings"]:
            by_rule.setdefault((one["severity"], one["rule"]), []).append((mark(run, number), one))
    order = _causes_first(runs)
    without = [mark(run, number) for number, run in enumerate(runs) if not run["findings"] and run["can_tell"]]
    silent = [mark(run, number) for number, run in enumerate(runs) if not run["findings"] and not run["can_tell"]]
    parts: list[object] = [_shared(by_rule[key]) for key in order]
    if without:
        parts.append(tag("p", "No rule of the doctor fires on ", _listed(without), "."))
    if silent:
        parts.append(tag("p", "The doctor cannot tell of ", _listed(silent), ": the rules found no data to check."))
    return tag("div", *parts)


def _causes_first(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(severity, rule) of all findings, in the order of the doctor: a cause ranks with the most severe of what follows
    from it, and comes before that."""
    rank: dict[tuple[str, str], tuple[int, int]] = {}
    for run in runs:
        grave: dict[str, int] = {}
        # consequences stand behind their causes
        for place, one in reversed(list(enumerate(run["findings"]))):
            own = min(list(SIGNS).index(one["severity"]), grave.get(one["rule"], len(SIGNS)))
            if one["follows"] is not None:
                grave[one["follows"]] = min(own, grave.get(one["follows"], own))
            key = one["severity"], one["rule"]
            rank[key] = min((own, place), rank.get(key, (own, place)))
    return sorted(rank, key=lambda key: rank[key])


def _listed(marks: Sequence[Markup]) -> Markup:
    return joined(part for at, one in enumerate(marks) for part in ((", ", one) if at else (one,)))


def _shared(found: Sequence[tuple[Markup, Mapping[str, Any]]]) -> Markup:
    """One finding of several runs."""
    first = found[0][1]
    evidence = [
        tag("li", name, ": ", one["title"], " ", "; ".join(one["evidence"]), _sure(one), class_="shared")
        for name, one in found
    ]
    runs = counted(len(found), "run")
    sign = tag("span", SIGNS[first["severity"]], class_=f"severity {first['severity']}")
    return tag(
        "article",
        tag("h4", sign, " ", tag("code", first["rule"]), f" in {runs}"),
        tag(
            "dl",
            tag("div", tag("dt", "evidence"), tag("dd", tag("ul", *evidence))),
            tag("div", tag("dt", "cause"), tag("dd", first["cause"])),
            tag("div", tag("dt", "remedy"), tag("dd", first["remedy"])),
        ),
        class_=f"finding {first['severity']}",
    )


def _sure(one: Mapping[str, Any]) -> Markup:
    """How sure a finding is, and what it follows from."""
    follows = "" if one["follows"] is None else joined(["; follows from ", tag("code", one["follows"])])
    return joined([f" ({one['confidence']}", follows, ")"])


def findings(run: Mapping[str, Any], number: int) -> Markup:
    """The findings of the doctor for a run."""
    found = run["findings"]
    said = [run["covered"], *run["remarks"]]
    what = joined(tag("p", f"{words[:1].upper()}{words[1:]}.", class_="aside") for words in said)
    questions = [tag("li", f"{question}: {why}") for question, why in run["unknown"].items()]
    untold = tag("div", tag("p", "What cannot be told:"), tag("ul", *questions), class_="aside") if questions else ""
    if found:
        return tag("div", *(_finding(one) for one in found), untold, what, id=f"findings-{number}")
    checked = f"No rule of the doctor fires on {'what was read' if questions else 'this run'}."
    words = checked if run["can_tell"] else "The rules found no data to check."
    return tag("div", tag("p", words), untold, what, id=f"findings-{number}")


def _finding(one: Mapping[str, Any]) -> Markup:
    where = "" if one["step"] is None else f", from update {one['step']:,}"
    parts = [
        ("evidence", tag("ul", *(tag("li", words) for words in one["evidence"]))),
        ("cause", escaped(one["cause"])),
        ("remedy", escaped(one["remedy"])),
    ]
    return tag(
        "article",
        tag("h4", tag("span", SIGNS[one["severity"]], class_=f"severity {one['severity']}"), " ", one["title"]),
        tag("p", tag("code", one["rule"]), where, _sure(one), class_="rule"),
        tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in parts)),
        class_=f"finding {one['severity']}",
    )


def replay(run: Mapping[str, Any], number: int) -> Markup:
    """Every objective on the tokens of a run."""
    found = run["replay"]
    if found is None:
        return empty(run["no_tokens"])
    rows = [
        [
            tag("span", row["label"], " ", tag("strong", "(this run)") if row["own"] else ""),
            *(
                (text, value)
                for text, value in (
                    (f"{100 * row['bias']:.2f} %", row["bias"]),
                    (f"{100 * row['bias_equal_step']:.1f} %", row["bias_equal_step"]),
                    (f"{row['cosine']:.3f}", row["cosine"]),
                    (shown(row["step_size"]), row["step_size"]),
                    (shown(row["factor"]), row["factor"]),
                    (f"{row['ess']:.2f}", row["ess"]),
                    (percent(row["zero_fraction"]), row["zero_fraction"]),
                    (shown(row["weight_max"]), row["weight_max"]),
                    (percent(row["top_percent_share"]), row["top_percent_share"]),
                )
            ),
        ]
        for row in found["rows"]
    ]
    note = REPLAY_NOTE.format(
        reference=found["reference"] or "unclipped importance sampling",
        norm="the norm" if found["exact"] else "the lower bound 1 − π of the norm",
    )
    adaptive = [row["label"] for row in found["rows"] if row["adaptive"]]
    if adaptive:
        note += ADAPTIVE_NOTE.format(names=", ".join(adaptive))
    if found["unregistered"]:
        note += f" No row is the run's own: {found['unregistered']}, which it was trained with, is not registered here."
    caption = f"{counted(len(found['updates']), 'update')}, {counted(found['tokens'], 'token')}; least biased first"
    if told := thinned(run):
        caption = f"{told} {caption}"
    return joined(
        [
            tag("p", tag("strong", run["verdict"])),
            table(
                caption,
                REPLAY_HEAD,
                rows,
                numeric=range(1, 10),
                sortable=True,
                marked=next((i for i, row in enumerate(found["rows"]) if row["own"]), None),
                name=f"replay of {run['label']}",
            ),
            tag("p", note, class_="aside"),
        ]
    )


def evaluations(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """The results of `dgpo eval`."""
    if not rows:
        return empty("No results were given; dgpo report RUN --eval FOLDER shows those of dgpo eval.")
    cells = [
        [
            row["label"],
            row["benchmark"],
            row["estimate"],
            (percent(row["value"]), row["value"]),
            f"{100 * row['low']:.1f} to {100 * row['high']:.1f} %",
            (f"{row['problems']:,}", row["problems"]),
        ]
        for row in rows
    ]
    head = ("evaluation", "benchmark", "estimate", "value", "95 % interval", "problems")
    return table("", head, cells, numeric=(3, 4, 5), sortable=True, name="results of the evaluations")


def top_tokens(run: Mapping[str, Any], number: int) -> Markup:
    """The tokens with the largest share of an update's gradient."""
    found = run["top_tokens"]
    if not found:
        name = unregistered(run)
        return empty(
            run["no_tokens"] or f"The run's objective{f', {name},' if name else ''} is not known, so no weights are."
        )
    rows = [
        [
            (f"{one['update']:,}", one["update"]),
            tag(
                "span",
                tag("span", visible(one["before"]), class_="around"),
                tag("mark", visible(one["text"]) or "(empty)"),
                tag("span", visible(one["after"]), class_="around"),
                class_="text",
            ),
            (percent(one["share"]), one["share"]),
            (f"{one['advantage']:+.2f}".replace("-", "−"), one["advantage"]),
            (shown(one["old_prob"]), one["old_prob"]),
            (shown(one["ratio"]), one["ratio"]),
            (shown(one["weight"]), one["weight"]),
        ]
        for one in found
    ]
    caption = "The tokens with the largest share of their own update's Σ|A·w|·N"
    if run["undecoded"]:
        caption += f"; shown by number, because {run['undecoded']}"
    head = ("update", "token in its response", "share", "A", "π_old", "ratio r", "weight w")
    return table(caption, head, rows, numeric=(0, 2, 3, 4, 5, 6), sortable=True, name=f"top tokens of {run['label']}")


def visible(text: str) -> str:
    """Text on one line, with symbols for invisible characters."""
    return "".join({"\n": "⏎", "\t": "⇥", "\r": "␍"}.get(c, c if c.isprintable() else "�") for c in text)


def config(runs: Sequence[Mapping[str, Any]]) -> Markup:
    """The settings of all runs, including hardware and versions."""
    flat = [flattened({**run["info"], **({"config": run["config"]} if run["config"] else {})}) for run in runs]
    if not any(flat):
        return empty("The runs have no run.json.")
    return settings(flat, [mark(run, number) for number, run in enumerate(runs)])


def differences(groups: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> Markup:
    """The settings in which the runs differ."""
    if len(runs) < 2:
        return Markup("")
    if not groups["differences"]:
        return tag("p", "The runs do not differ in any recorded setting.", class_="aside")
    rows = [[tag("code", name), *values] for name, values in groups["differences"].items()]
    heads = ["setting", *(mark(run, number) for number, run in enumerate(runs))]
    listed = table("", heads, rows, name="settings in which the runs differ")
    return joined([tag("h2", "What differs"), tag("div", listed, class_="differing")])


def settings(flat: Sequence[Mapping[str, str]], heads: Sequence[Markup]) -> Markup:
    """A row per setting, a column per element of `flat`."""
    names = list(dict.fromkeys(name for one in flat for name in one))
    rows = [
        tag(
            "tr",
            tag("th", tag("code", name), scope="row"),
            *(tag("td", one.get(name, "–")) for one in flat),
            class_="differs" if len({one.get(name, NULL) for one in flat}) > 1 else None,
        )
        for name in names
    ]
    columns = [tag("th", head, scope="col") for head in heads]
    whole = tag("table", tag("thead", tag("tr", tag("th", "setting", scope="col"), *columns)), tag("tbody", *rows))
    return tag("div", whole, class_="scroll", role="region", tabindex=0, aria_label="settings", id="settings")
