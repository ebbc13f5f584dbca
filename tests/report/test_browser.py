"""The page in a real browser: no error, no request, everything drawn, and every control does what it says."""

from __future__ import annotations

import math
import re

import pytest
import torch
from browsing import CHROMIUM, opened, traces

from dgpo import TokenBatch, objectives
from dgpo.diagnostics import record
from dgpo.report import write_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")


def logs(ratios):
    return [math.log(r) for r in ratios]


def weight(objective, x, old_prob, advantage):
    """w of a list of log ratios, in float64."""
    old = torch.full((len(x), 1), math.log(old_prob), dtype=torch.float64)
    new = old + torch.tensor(x, dtype=torch.float64)[:, None]
    A = torch.full((len(x),), advantage, dtype=torch.float64)
    return objective.weight(TokenBatch(new, old, A, torch.ones_like(new)))[:, 0].tolist()


def test_every_plot_is_drawn(page):
    ids = page.eval_on_selector_all(".plot", "boxes => boxes.map(box => box.id)")
    expected = {f"plot-{name}" for name in ("reward", "zero_std", "entropy", "kl", "grad_norm", "length", "evaluation")}
    expected |= {f"plot-{name}" for name in ("truncated", "learning_rate", "step_time", "speed")}
    # sections about one run each show one at a time
    page.locator("#regions select").select_option("1")
    page.locator("#regions select").select_option("0")
    expected |= {f"plot-overlay-{sign}" for sign in ("negative", "positive")}
    expected |= {f"plot-explorer-{basis}" for basis in ("log", "prob")}
    expected |= {f"plot-regions-{p}-{k}-{i}" for p in ("over", "within") for k in ("fraction", "mass") for i in (0, 1)}
    assert set(ids) == expected
    for name in ids:
        assert "js-plotly-plot" in page.get_attribute(f"#{name}", "class")
        assert any(len(trace["x"]) for trace in traces(page, name)), name
        assert len(page.get_attribute(f"#{name}", "aria-label")) > 20
        shown = page.locator(f"#{name} .main-svg").first.bounding_box()
        assert shown["height"] > 150 if not name.endswith("-1") else shown is None


def test_the_header_tells_what_happened(page):
    card = page.locator(".card").first.inner_text()
    assert re.search(r"reward\s+\d\.\d+ → \d\.\d+", card)
    for words in ("dgpo:n=2", "24 of 24", "entropy", "nats"):
        assert words in card
    assert "addition, greedy: 80.0 % (76.0 to 84.0), after" in page.locator("#overview").inner_text()


def test_the_whiskers_are_the_ends_of_the_intervals(page):
    found = page.eval_on_selector(
        "#plot-evaluation", "box => box.data.map(t => [t.x, t.error_x.array, t.error_x.arrayminus])"
    )
    ((values, above, below),) = found
    assert values == pytest.approx([80.0, 50.0])
    assert above == pytest.approx([4.0, 3.0])
    assert below == pytest.approx([4.0, 3.0])


def test_a_slider_moves_a_curve_to_where_python_has_it(page):
    def curve(family, sign):
        return next(t for t in traces(page, "plot-explorer-log") if t["meta"] == {"family": family, "sign": sign})

    before = curve("dgpo", -1)
    page.focus("#slider-n")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert page.inner_text("#value-n") == "1.5"
    after = curve("dgpo", -1)
    assert after["y"] != before["y"]
    assert after["y"] == pytest.approx(weight(objectives.make("dgpo", n=1.5), logs(after["x"]), 0.1, -1.0), rel=1e-12)
    page.focus("#slider-sigma")
    page.keyboard.press("ArrowLeft")
    moved = curve("maspo", 1)
    assert moved["y"] == pytest.approx(
        weight(objectives.make("maspo", sigma_base=0.95), logs(moved["x"]), 0.1, 1.0), rel=1e-12
    )
    on_prob = next(t for t in traces(page, "plot-explorer-prob") if t["meta"] == {"family": "maspo", "sign": 1})
    expected = [w / (0.1 * r) for r, w in zip(moved["x"], moved["y"], strict=True)]
    assert on_prob["y"] == pytest.approx(expected, rel=1e-12)
    page.click("#reset")
    assert curve("dgpo", -1)["y"] == before["y"]


def test_the_formulas_of_the_page_are_those_of_the_objectives(page):
    x = [i / 8 for i in range(-200, 201)] + [math.log(0.8), math.log(1.2), 1e-9, -1e-9]
    families = [
        ("dgpo", fields)
        for fields in ({}, {"n": 0, "m": 1}, {"n": 2.5, "m": 7}, {"eps_low": 0.5, "eps_high": 1.5}, {"reverse_cap": 3})
    ] + [
        ("maspo", fields)
        for fields in ({}, {"alpha": 0.0}, {"alpha": 1.0, "sigma_base": 0.2}, {"beta_pos": 0.5, "beta_neg": 2.0})
    ]
    compared = 0
    for name, fields in families:
        objective = objectives.make(name, **fields)
        for q in (1e-6, 0.02, 0.9):
            for A in (-2.5, -0.3, 0.3, 2.5):
                call = "dgpo(x, A, f)" if name == "dgpo" else "maspo(x, A, q, f)"
                found = page.evaluate(
                    f"([xs, A, q, f]) => xs.map(x => window.dgpoReport.{call})", [x, A, q, dict(vars(objective))]
                )
                # exp() of the two differ in the last digits, and the gate is an exp of up to 20 squared times more
                assert found == pytest.approx(weight(objective, x, q, A), rel=1e-9, abs=1e-300), (name, fields, q, A)
                compared += len(x)
    assert compared > 40_000


def test_checkboxes_toggle_methods_and_runs(page):
    def visible(meta):
        return [
            t["visible"]
            for plot in ("negative", "positive")
            for t in traces(page, f"plot-overlay-{plot}")
            if t["meta"] == meta
        ]

    assert visible({"method": "cispo"}) == [False, False]
    page.get_by_label("cispo", exact=True).check()
    assert visible({"method": "cispo"}) == [True, True]
    page.get_by_label("cispo", exact=True).uncheck()
    assert visible({"method": "cispo"}) == [False, False]
    assert visible({"method": "dgpo:n=2"}) == [True, True]

    assert visible({"run": 1}) == [True, True]
    page.locator("#runs").get_by_label("second").uncheck()
    assert visible({"run": 1}) == [False, False]
    assert {t["visible"] for t in traces(page, "plot-reward") if t["meta"] == {"run": 1}} == {False}
    assert {t["visible"] for t in traces(page, "plot-reward") if t["meta"] == {"run": 0}} == {True}
    page.locator("#runs").get_by_label("second").check()
    assert visible({"run": 1}) == [True, True]


def test_sections_about_one_run_show_one_at_a_time(page):
    for section in ("regions", "replay", "doctor", "tokens"):
        page.locator(f"#{section} select").select_option("1")
        for other in ("regions", "replay", "doctor", "tokens"):
            assert page.locator(f"#{other} .of-run[data-run='1']").is_visible()
            assert not page.locator(f"#{other} .of-run[data-run='0']").is_visible()
        page.locator(f"#{section} select").select_option("0")


def test_completions_are_ordered_and_found(page):
    shown = page.locator(".written:visible")
    assert shown.count() == 6

    def values(name):
        return [float(value) for value in shown.evaluate_all(f"all => all.map(one => one.dataset.{name})")]

    page.select_option("#written-order", "worst")
    assert values("reward") == sorted(values("reward"))
    lowest = values("reward")[0]
    page.select_option("#written-order", "best")
    assert values("reward")[0] > lowest
    page.select_option("#written-order", "changed")
    assert values("changed") == sorted(values("changed"), reverse=True)
    page.click("#written-more")
    assert shown.count() == 30
    asked = page.locator(".written:visible .asked").first.inner_text()
    page.fill("#written-search", asked)
    texts = page.locator(".written:visible .asked").all_inner_texts()
    assert texts
    assert set(texts) == {asked}
    page.fill("#written-search", "")
    page.select_option("#written-order", "latest")


def test_the_other_basis_divides_by_the_probability(page):
    def curve():
        return next(t for t in traces(page, "plot-overlay-positive") if t["meta"] == {"method": "is"})

    on_log = curve()
    page.get_by_label("∇π (w/π)").check()
    old = float(page.inner_text("#overlay-old option:checked").split(",")[0])
    on_prob = curve()
    pairs = [(a, b) for a, b in zip(on_log["y"], on_prob["y"], strict=True) if a is not None]
    assert len(pairs) > 20
    # w = r: constant on ∇π
    assert [b for _, b in pairs] == pytest.approx([1 / old] * len(pairs), rel=5e-3)
    page.select_option("#overlay-old", label="0.01")
    assert [y for y in curve()["y"] if y is not None] == pytest.approx([100.0] * len(on_log["y"]), rel=1e-3)
    page.select_option("#overlay-old", index=0)
    page.get_by_label("∇log π (w)").check()


def test_tables_sort_and_settings_are_found(page):
    table = page.locator("#replay table").first
    table.get_by_role("button", name="objective").click()
    names = table.locator("tbody th").all_inner_texts()
    assert names == sorted(names, key=str.lower)
    table.get_by_role("button", name="ESS").click()
    values = [float(v) for v in table.locator("tbody td:nth-child(7)").all_inner_texts()]
    assert values == sorted(values)
    table.get_by_role("button", name="ESS").click()
    assert table.locator("thead th").nth(6).get_attribute("aria-sort") == "descending"

    page.locator("summary").click()
    page.fill("#search", "config.learning_rate")
    assert page.locator("#settings tbody tr:visible th").all_inner_texts() == ["config.learning_rate"]
    page.fill("#search", "")
    page.get_by_label("only what differs").check()
    shown = page.locator("#settings tbody tr:visible th").all_inner_texts()
    assert "objective.name" in shown
    assert "config.learning_rate" not in shown
    page.get_by_label("only what differs").uncheck()
    page.locator("summary").click()


def test_a_hostile_run_is_only_text(open_page, hostile, tmp_path):
    page = open_page(write_report([hostile], tmp_path / "report.html"))
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    assert page.evaluate("document.querySelectorAll('body script').length") == 3
    assert page.locator("h1").inner_text() == f"dgpo report: {hostile.name}"
    assert "<img src=x" in page.locator("#plot-logged-0").locator("xpath=..").inner_text()
    assert "</script><script>" in page.locator("#tokens table").inner_text()


def test_the_policy_of_the_page_lets_nothing_else_run(browser, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n')
    problems = []
    page = opened(browser, write_report([tmp_path], tmp_path / "report.html"), problems)
    page.evaluate(
        """() => { const s = document.createElement('script'); s.textContent = 'window.hacked = 1';
                   document.body.append(s); }"""
    )
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("fetch('https://example.org').then(() => 'sent', () => 'refused')") == "refused"
    page.context.close()
    assert len(problems) >= 2
    assert all("Content Security Policy" in one or "example.org" in one for one in problems)


def test_a_run_without_tokens_and_a_log_without_reward(open_page, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "entropy": 0.25}\n')
    page = open_page(write_report([tmp_path], tmp_path / "report.html"))
    assert "entropy is 0.25 throughout" in page.inner_text("#curve-note")
    assert page.locator("nav a").all_inner_texts() == ["Overview", "Curves", "Doctor", "Evaluation"]


def test_what_was_left_out_is_said(open_page, tmp_path, make_batch):
    for update in range(1, 7):
        for rank in range(2):
            if (update, rank) != (2, 1):
                record(tmp_path, make_batch(seed=update).tokens(), update=update, rank=rank, world_size=2)
    for rank in ("", "-rank1"):
        (tmp_path / "tokens" / f"update-000004{rank}.parquet").write_bytes(b"no parquet")
    with pytest.warns(UserWarning, match="left out"):
        path = write_report([tmp_path], tmp_path / "report.html")
    note = open_page(path).inner_text("#regions-0 .aside")
    assert "From the tokens of 4 of 6 recorded updates." in note
    assert "the file of a rank is missing: 1 update (2)." in note
    assert "they cannot be read: 2 files (update-000004.parquet, update-000004-rank1.parquet)." in note
