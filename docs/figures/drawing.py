"""What the figures of the documentation share: their look, and bytes that depend on the data alone."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from dgpo.files import write_bytes_atomic

FOLDER = Path(__file__).parent
STYLE = {
    "svg.hashsalt": "dgpo",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}
GRID = {"axes.grid": True, "grid.color": "0.93", "grid.linewidth": 0.6}


def blank(width: float, height: float) -> Figure:
    """An empty figure of a study, in inches."""
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.05, wspace=0.04))


def svg(draw: Callable[[], Figure], *, grid: bool = True, dark: Mapping[str, str] | None = None) -> bytes:
    """What `draw` returns as the bytes of an SVG file; the same bytes for the same matplotlib.

    Args:
        draw: makes the figure.
        grid: with grid lines.
        dark: colour as drawn, "#rrggbb" -> colour where the reader prefers a dark scheme. The background is then
            transparent. Programs without this media query show the colours as drawn.
    """
    with matplotlib.style.context(["default", STYLE | (GRID if grid else {})]):
        stream = io.BytesIO()
        draw().savefig(stream, format="svg", metadata={"Date": None}, transparent=dark is not None)
    return stream.getvalue() if dark is None else _with_dark_scheme(stream.getvalue(), dark)


def _with_dark_scheme(drawn: bytes, dark: Mapping[str, str]) -> bytes:
    """`drawn` with a style sheet that exchanges the colours of its style attributes."""
    rules = [
        f'*[style*="{property}: {light}"] {{ {property}: {other} !important; }}'
        for light, other in dark.items()
        for property in ("fill", "stroke")
    ]
    sheet = "\n".join(["<style>", "@media (prefers-color-scheme: dark) {", *rules, "}", "</style>"])
    head, end, rest = drawn.decode().partition("</metadata>\n")
    return f"{head}{end}{sheet}\n{rest}".encode()


def write(files: Mapping[Path, bytes], *, check: bool, command: str) -> int:
    """Write the files that have other contents; with `check`, only name them. Returns the exit code.

    Args:
        files: path -> contents.
        check: write nothing, and return 1 if a file is out of date.
        command: what to run then.
    """
    stale = [path for path, content in files.items() if not path.is_file() or path.read_bytes() != content]
    if check and stale:
        print(f"out of date: {', '.join(path.name for path in stale)}; run: {command}", file=sys.stderr)
        return 1
    for path in stale:
        write_bytes_atomic(path, files[path])
    return 0
