"""The page in a real browser: themes, narrow screens, paper, and the keyboard."""

from __future__ import annotations

import pytest
from browsing import CHROMIUM

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")


def look(page):
    return page.evaluate(
        """() => [getComputedStyle(document.body).backgroundColor,
                  document.querySelector('#plot-reward').layout.font.color,
                  document.querySelector('#plot-reward').data.at(-1).line.color]"""
    )


def test_the_theme_follows_the_system_and_the_button(open_page, page, report):
    light, dark = look(page), look(open_page(report, scheme="dark"))
    assert all(a != b for a, b in zip(light, dark, strict=True))
    page.click("#theme")
    assert look(page) == dark
    page.click("#theme")
    assert look(page) == light


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out(open_page, page, report, width):
    page = page if width == 1280 else open_page(report, width=width)
    page.eval_on_selector("details", "details => details.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.eval_on_selector_all(
        "main *:not(svg *)",
        f"all => all.filter(e => !e.closest('.scroll') && e.getBoundingClientRect().right > {width} + 1)"
        ".map(e => e.outerHTML.slice(0, 80))",
    )
    assert wide == []
    # what scrolls has a caption that does not, and a shade where there is more; what differs need not scroll
    captions = page.eval_on_selector_all("caption", "all => all.map(e => e.getBoundingClientRect().width)")
    assert max(captions) <= width
    assert page.evaluate("getComputedStyle(document.querySelector('.bar nav')).backgroundImage").count("gradient") == 4
    assert page.evaluate("(e => e.scrollWidth - e.clientWidth)(document.querySelector('.differing .scroll'))") == 0
    page.eval_on_selector("details", "details => details.open = false")


def test_the_curves_of_the_run_and_of_known_methods_are_drawn_first(page):
    """Beside dgpo:n=2 and grpo, which the runs were trained with."""
    chosen = page.eval_on_selector_all(
        "#methods input", "all => all.filter(e => e.checked).map(e => e.parentNode.textContent)"
    )
    assert sorted(chosen) == ["dgpo", "dgpo:n=2", "grpo"]


def test_the_keyboard_reaches_every_control(page):
    expected = page.evaluate(
        """() => [...document.querySelectorAll('a[href], button, input, select, summary, [tabindex="0"]')]
             .filter(e => e.checkVisibility() && !e.closest('.js-plotly-plot') && !(e.type === 'radio' && !e.checked))
             .map((e, i) => { e.dataset.stop = i; return String(i); })"""
    )
    reached = []
    page.focus(".skip")
    for _ in range(3 * len(expected)):
        reached.append(page.evaluate("document.activeElement.dataset.stop"))
        if set(expected) <= set(reached):
            break
        page.keyboard.press("Tab")
    assert set(expected) <= set(reached)
    page.evaluate("document.querySelector('#theme').focus()")
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.focus(".skip")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_every_control_has_a_name(page):
    nameless = page.eval_on_selector_all(
        "button, input, select",
        "all => all.filter(e => !e.closest('.js-plotly-plot') && !(e.labels?.length && e.labels[0].textContent.trim())"
        " && !e.getAttribute('aria-label') && !e.textContent.trim()).map(e => e.outerHTML)",
    )
    assert nameless == []


def test_it_prints_in_the_light_theme_and_comes_back(page):
    light = look(page)
    page.click("#theme")
    dark = look(page)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert look(page) == light
    page.emulate_media(media="print")
    assert not page.locator("#sliders").is_visible()
    assert page.eval_on_selector_all("figure", "all => Math.max(...all.map(e => e.scrollWidth - e.clientWidth))") <= 0
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert look(page) == dark
    page.click("#theme")
    assert page.pdf(format="A4")[:4] == b"%PDF"
