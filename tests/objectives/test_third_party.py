"""Objectives from outside: by import path and by entry point, what is refused, and what a file alone may not import."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from dgpo import TokenBatch, objectives, policy_loss
from dgpo.diagnostics.naming import label
from dgpo.objectives import Boundaries, Objective, Read, table
from dgpo.registry import parse

PATH = "my_package.my_module:MyObjective"


@dataclass(frozen=True, kw_only=True)
class OfThisTest(Objective):
    """w = scale · r."""

    scale: float = 1.0

    def weight(self, tokens: TokenBatch) -> Tensor:
        return self.scale * tokens.ratio


@dataclass(frozen=True, kw_only=True)
class Uncertain(OfThisTest):
    """w = r / (1 + H)."""

    @property
    def reads(self) -> frozenset[Read]:
        return frozenset({"ratio", "entropy"})

    def weight(self, tokens: TokenBatch) -> Tensor:
        return tokens.ratio / (1 + cast(Tensor, tokens.entropy))


@pytest.mark.parametrize(
    "spec",
    [
        f"{PATH}:cap=3,n=2",
        f" {PATH} : cap = 3 , n=2",
        "my_package.my_module.MyObjective:cap=3,n=2",
        {"name": PATH, "cap": 3, "n": 2},
        json.dumps({"name": PATH, "cap": 3, "n": 2}),
    ],
    ids=str,
)
def test_every_way_to_write_one(my_package: Path, spec: Any) -> None:
    made = objectives.make(spec)
    assert (type(made).__name__, asdict(made)) == ("MyObjective", {"cap": 3, "n": 2})
    assert label(made) == f"{PATH}:cap=3,n=2"
    assert objectives.make(label(made)) == made
    assert parse("objective", label(made)) == (PATH, {"cap": 3, "n": 2})
    assert objectives.make(PATH, cap=3, n=2) == made
    assert label(objectives.make(PATH)) == PATH


def test_a_loss_takes_its_name(my_package: Path, make_batch: Callable[..., Any]) -> None:
    batch = make_batch()
    given = (batch.logprob, batch.old_logprob, batch.advantage, batch.mask)
    assert policy_loss(*given, objective=PATH).value == policy_loss(*given, objective=objectives.make(PATH)).value
    assert policy_loss(*given, objective=f"{PATH}:cap=inf").value == policy_loss(*given, objective="is").value


def test_names_of_ours_and_of_classes() -> None:
    assert objectives.find("dgpo.objectives.grpo:GRPO") is objectives.GRPO
    assert objectives.name_of(objectives.GRPO) == "grpo"
    assert objectives.name_of(OfThisTest) == f"{__name__}:OfThisTest"
    assert objectives.importable_name(OfThisTest) == f"{__name__}:OfThisTest"

    @dataclass(frozen=True, kw_only=True)
    class Inside(OfThisTest):
        pass

    with pytest.raises(ValueError, match="Inside: the class cannot be imported by this name.*at the top level"):
        objectives.importable_name(Inside)


WRONG = """
from dataclasses import dataclass, field
from dgpo.objectives import Objective

a_number = 3

class Plain:
    pass

class NoDataclass(Objective):
    cap: float = 1.0
    def weight(self, tokens):
        return tokens.ratio

class Below(NoDataclass):
    pass

@dataclass(frozen=True)
class NoWeight(Objective):
    pass

@dataclass(frozen=True)
class Good(Objective):
    def weight(self, tokens):
        return tokens.ratio

@dataclass(frozen=True)
class Needs(Good):
    cap: float

@dataclass(frozen=True)
class Derives(Good):
    cap: float = 2.0
    log_cap: float = field(default=0.7, init=False)

instance = Good()
"""


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("my_package.none:X", "there is no module 'my_package.none'"),
        ("my_package.wrong:X", "wrong.py) has no 'X'"),
        ("my_package.wrong:a_number", "got an object (int); expected a class that inherits from Objective"),
        ("my_package.wrong:instance", "got an object (instance); expected a class that inherits from Objective"),
        ("my_package.wrong:Plain", "the class Plain does not inherit from dgpo.objectives.Objective"),
        (
            "my_package.wrong:NoDataclass",
            "NoDataclass is not a frozen dataclass; decorate it with @dataclass(frozen=True, ",
        ),
        ("my_package.wrong:Below", "Below is not a frozen dataclass"),
        ("my_package.wrong:NoWeight", "NoWeight does not define weight"),
        ("my_package.wrong:Needs", "needs 'cap'"),
        ("my_package.wrong:Derives", "the class Derives has fields with init=False (log_cap); a run is recorded"),
        ("my_package.exits:X", "importing 'my_package.exits' raised SystemExit: usage: tool ("),
        ("my_package/wrong.py:Good", "'my_package/wrong.py' is not a name; expected NAME:FIELD=VALUE,FIELD=VALUE or "),
        ("my-package.wrong:Good", "'my-package.wrong' is not a name; expected NAME:FIELD=VALUE,FIELD=VALUE or package"),
        ("my_package.wrong:Good:cap=2", "has no field 'cap'; its fields: none"),
        (f"{PATH}:capp=2", "has no field 'capp', did you mean 'cap'?; its fields: cap, n"),
        (f"{PATH}:cap", "'cap' in "),
        ("grpo:eps_low", "'eps_low' in 'grpo:eps_low' has no value"),
        ("dr.grpo", "unknown objective 'dr.grpo': here it is the preset"),
        ("Seq.nothing", "there is no module 'Seq'"),
    ],
)
def test_errors_name_what_was_expected(my_package: Path, spec: str, said: str) -> None:
    (my_package / "wrong.py").write_text(WRONG)
    (my_package / "exits.py").write_text("import sys\nsys.exit('usage: tool')\n")
    with pytest.raises(ValueError) as error:
        objectives.make(spec)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["weight", "potential", "boundaries"])
def test_what_would_broadcast_into_a_wrong_loss_is_refused(make_batch: Callable[..., Any], method: str) -> None:
    """One number per response, where B = T; a number in place of a tensor."""
    batch = make_batch(B=4, T=4)
    given = (batch.logprob, batch.old_logprob, batch.advantage, batch.mask)

    def objective(returned: Any) -> Objective:
        def other(self: Objective, tokens: TokenBatch) -> Any:
            return returned

        return type("Other", (OfThisTest,), {method: other})()

    odd: Any = torch.ones(4)
    number: Any = 1.0
    if method == "boundaries":
        odd, number = (Boundaries(batch.logprob, *[value] * 2) for value in (odd, number))
    with pytest.raises(ValueError, match=rf"Other.{method} returned the shape \[4\]; expected \[B, T\] = \[4, 4\]"):
        policy_loss(*given, objective=objective(odd))
    with pytest.raises(TypeError, match=rf"Other.{method} returned 1.0; expected a tensor \[B, T\]"):
        policy_loss(*given, objective=objective(number))


def test_a_weight_that_reads_entropies_refuses_a_batch_without_them(make_batch: Callable[..., Any]) -> None:
    batch = make_batch()
    given = (batch.logprob, batch.old_logprob, batch.advantage, batch.mask)
    assert policy_loss(*given, objective=Uncertain(), entropy=batch.entropy).value.isfinite()
    with pytest.raises(ValueError, match=r"Uncertain\(scale=1.0\) needs entropy \[B, T\], got None"):
        policy_loss(*given, objective=Uncertain())


# --- entry points -----------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(my_package: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Install my_package with these entry points, as pip does: a folder of metadata beside it on the path."""

    def install(lines: str) -> None:
        info = my_package.parent / "my_dist-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-dist\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[dgpo.objectives]\n{lines}\n")
        monkeypatch.syspath_prepend(my_package.parent)

    return install


def test_a_published_name_is_used_like_ours(installed: Callable[[str], None]) -> None:
    installed(f"mine = {PATH}")
    assert "my_package" not in sys.modules
    assert objectives.make("dgpo")  # a name of ours asks no package
    assert "my_package" not in sys.modules
    made = objectives.make("mine:cap=3")
    assert (label(made), objectives.name_of(type(made))) == ("mine:cap=3", "mine")
    assert objectives.find_recorded("mine") is type(made)
    with pytest.raises(ValueError, match=r"unknown objective 'mime', did you mean 'mine'\?.*vespo, mine"):
        objectives.make("mime")
    with pytest.raises(ValueError, match="'cap' in 'mine:cap' has no value"):
        objectives.make("mine:cap")


def test_ours_wins_and_a_broken_one_is_an_error_when_it_is_asked_for(
    installed: Callable[[str], None], my_package: Path
) -> None:
    (my_package / "exits.py").write_text("import sys\nsys.exit()\n")
    installed(
        f"grpo = {PATH}\nbroken = my_package.nothing:X\nplain = pathlib:Path\nexits = my_package.exits:X\nmine = {PATH}"
    )
    assert isinstance(objectives.make("grpo"), objectives.GRPO)
    assert objectives.name_of(objectives.find(PATH)) == "mine"
    with pytest.raises(ValueError, match="'broken' of the package my-dist .* cannot be imported: ModuleNotFoundError"):
        objectives.make("broken")
    with pytest.raises(ValueError, match="'plain' of the package my-dist .*Path does not inherit from"):
        objectives.make("plain")
    rows, refused = table.published()
    assert [row.name for row in rows] == ["mine"]
    assert len(refused) == 4
    assert "dgpo has an objective of this name, which is used; expected another name" in refused[0]
    text = table.as_text(100)
    assert text.count("left out: objective ") == 4
    assert any(line.startswith("mine  ") for line in text.splitlines())
    assert objectives.find_recorded("broken") is None


def test_the_committed_table_has_ours_alone(installed: Callable[[str], None]) -> None:
    installed(f"mine = {PATH}")
    assert "mine" not in table.as_markdown()


# --- names in files ---------------------------------------------------------------------------------------------------


def test_a_file_alone_imports_nothing(my_package: Path) -> None:
    (my_package / "my_module.py").write_text("raise SystemExit('executed')\n")
    assert objectives.find_recorded(PATH) is None
    assert "my_package" not in sys.modules


def test_a_name_in_a_file_is_known_once_the_user_named_it(my_package: Path) -> None:
    assert objectives.find_recorded(PATH) is None
    assert objectives.find_recorded(PATH) is None
    found = objectives.find(PATH)
    assert objectives.find_recorded(PATH) is found
    assert objectives.find_recorded("my_package.my_module:Objective") is None
    assert objectives.find_recorded("math:inf") is None


def test_the_description_of_one(my_package: Path) -> None:
    text = table.describe(PATH)
    assert text.startswith(f"{PATH} (MyObjective), arXiv 2606.00001")
    assert "w = min(r, cap)" in text
    assert "\ncap    2        any\nn      1        any\n" in text
    assert "A paper of a user" in text
