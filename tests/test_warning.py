"""A warning points at the nearest line of the user's, whatever lies between."""

from __future__ import annotations

import sysconfig
import warnings
from pathlib import Path
from typing import Any

import pytest

import dgpo
from dgpo.warning import ignore_renamings, warn


def made_in(file: str, source: str, **names: Any) -> dict[str, Any]:
    """The names that `source` defines, as if it stood in `file`."""
    exec(compile(source, file, "exec"), names)
    return names


LIBRARIES = [
    str(Path(dgpo.__file__).parent / "training" / "config.py"),
    str(Path(sysconfig.get_path("purelib"), "transformers", "hf_argparser.py")),
    str(Path(sysconfig.get_path("stdlib"), "dataclasses.py")),
    "<string>",
    "<frozen importlib._bootstrap_external>",
]


@pytest.mark.parametrize("file", LIBRARIES)
def test_lines_of_libraries_are_passed_over(file: str) -> None:
    library = made_in(file, "def call(): return inner()", inner=lambda: None)
    outer = made_in(file, "def call(): return inner()", inner=library["call"])
    library["inner"] = made_in(LIBRARIES[0], "def call(): warn('read this')", warn=warn)["call"]
    user = made_in("/home/somebody/train.py", "\n\ndef main(): return inner()", inner=outer["call"])
    with pytest.warns(UserWarning, match="^read this$") as caught:
        user["main"]()
    assert (caught[0].filename, caught[0].lineno) == ("/home/somebody/train.py", 3)


def test_a_folder_whose_name_begins_alike_is_the_users() -> None:
    near = f"{Path(dgpo.__file__).parent}-experiments/train.py"
    with pytest.warns(RuntimeWarning) as caught:
        made_in(near, "def main(): warn('slow', RuntimeWarning)", warn=warn)["main"]()
    assert caught[0].filename == near


def test_without_a_line_of_the_users_it_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that runs nothing but the command line."""
    monkeypatch.setattr("dgpo.warning._libraries", lambda: ("/", "<"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn("read this")
    assert [warning.filename for warning in caught] == [__file__]


def test_renamings_that_trl_causes_are_silent_and_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    renamed = "`is_gradient_checkpointing` is deprecated and will be removed in v6. Use `is_activation_checkpointing`"
    for options, expected in (([], ["`bf16` is deprecated"]), (["default"], [renamed, "`bf16` is deprecated"])):
        monkeypatch.setattr("sys.warnoptions", options)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ignore_renamings()
            for text in (renamed, "`bf16` is deprecated"):
                warnings.warn(text, FutureWarning, stacklevel=1)
        assert [str(one.message) for one in caught] == expected
