"""Opening a page in a real browser, and reading what plotly holds."""

from __future__ import annotations

import shutil

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
READY = "html[data-ready=true]"


def opened(browser, path, problems, width=1280, scheme="light"):
    """A page that notes every message, error and request but for its own file."""
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    page.set_default_timeout(120_000)  # a busy machine draws slowly, and a click waits for two frames alike
    page.on("console", lambda message: problems.append(f"console {message.type}: {message.text}"))
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    address = path.resolve().as_uri()
    page.on("request", lambda request: None if request.url == address else problems.append(request.url))
    page.goto(address)
    page.wait_for_selector(READY)
    return page


def traces(page, plot):
    """What plotly holds: name, meta, visibility, x and y of every trace."""
    return page.eval_on_selector(
        f"#{plot}",
        "box => box.data.map(t => ({name: t.name, meta: t.meta, visible: t.visible !== false, x: t.x, y: t.y}))",
    )
