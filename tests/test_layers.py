"""Who may import whom, by room and by file; what is private; and that no room but `objectives` knows a method."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import dgpo
from dgpo.objectives import OBJECTIVES

PACKAGE = Path(dgpo.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
ANYTHING = None
"""No restriction on third-party packages."""

FOUNDATION = {"tokens", "registry", "fields", "numerics", "checks"}
FACTORS = {"objectives", "advantages", "correction", "aggregation", "kl", "regions"}
CORE = FOUNDATION | FACTORS | {"spec", "loss"}
SHARED = {"counts", "registry", "fields", "files", "imports", "installation", "redaction", "warning"}
"""Standard library only, so that any room may use it."""


@dataclass(frozen=True)
class Rule:
    """What a room may import: other rooms of the package, and packages beyond the standard library."""

    rooms: set[str]
    packages: set[str] | None
    lazy: frozenset[str] = frozenset()
    """Packages that are allowed inside functions (or for type checkers) only."""


LEAVES = {"cli", "plan", "training", "engines"}
ROOMS = {"fused", "runs", "diagnostics", "report", "grading", "rewards", "tasks", "evaluation", "comparison"}
EVALUATION = {"torch", "transformers", "scipy", "numpy", "rich", "datasets"}
RULES: dict[str, Rule] = {
    "counts": Rule(set(), set()),
    "registry": Rule(set(), set()),
    "fields": Rule(set(), set()),
    "files": Rule(set(), set()),
    "imports": Rule(set(), set()),
    "installation": Rule(set(), set(), frozenset({"packaging"})),
    "numerics": Rule(set(), {"torch"}),
    "redaction": Rule(set(), set()),
    "warning": Rule(set(), set()),
    "checks": Rule(set(), {"torch"}),
    "tokens": Rule({"checks"}, {"torch"}),
    **{room: Rule(FOUNDATION, {"torch"}) for room in FACTORS},
    "regions": Rule(FOUNDATION | {"objectives"}, {"torch"}),
    "spec": Rule(FOUNDATION | FACTORS, {"torch"}),
    "loss": Rule(FOUNDATION | FACTORS | {"spec"}, {"torch"}),
    "__init__": Rule(CORE | {"fused"}, {"torch"}),
    "testing": Rule(CORE | {"__init__"}, {"torch"}),
    "fused": Rule(CORE, {"torch"}, frozenset({"triton"})),
    "runs": Rule(CORE | {"__init__"}, {"torch"}, frozenset({"pyarrow", "tensorboard"})),
    "diagnostics": Rule(CORE | {"__init__", "fused", "runs"}, {"torch"}),
    "report": Rule(CORE | {"__init__", "fused", "runs", "diagnostics", "evaluation", "comparison"}, ANYTHING),
    "grading": Rule(SHARED, set(), frozenset({"math_verify", "latex2sympy2_extended", "sympy"})),
    "rewards": Rule(SHARED | {"grading"}, set()),
    "tasks": Rule({"grading"}, set(), frozenset({"datasets", "reasoning_gym"})),
    "evaluation": Rule({"runs", "grading", "tasks"}, EVALUATION, frozenset({"tqdm", "openai", "vllm"})),
    "comparison": Rule({"runs", "evaluation", "diagnostics"}, {"numpy"}, frozenset({"scipy", "rich"})),
    "training": Rule(CORE | ROOMS | {"__init__"}, ANYTHING),
    "plan": Rule(CORE | ROOMS | {"__init__", "training"}, ANYTHING),
    "engines": Rule(CORE | ROOMS | {"__init__"}, ANYTHING),
    "cli": Rule(CORE | ROOMS | {"__init__", "plan", "training", "engines"}, ANYTHING),
    "__main__": Rule({"cli"}, set()),
}
MAY_READ_THE_VERSION = LEAVES | ROOMS
"""Everything above the core may read `dgpo.__version__`, to write it into a result."""


def room_of(file: Path) -> str:
    first = file.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


@dataclass(frozen=True)
class Import:
    file: Path
    line: int
    target: str
    """Dotted name; `from a import b` is a.b."""
    lazy: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(PACKAGE)}:{self.line} imports {self.target}"

    @property
    def package(self) -> str:
        return self.target.split(".")[0]

    @property
    def room(self) -> str:
        """The room that `dgpo.<room>...` names; a name of the package itself is of `__init__`."""
        second = self.target.split(".")[1]
        return second if second in RULES else "__init__"


def imports_of(file: Path, source: str | None = None) -> Iterator[Import]:
    """All imports of a file. A bare `import dgpo` is the names that the file then takes from it."""
    tree = ast.parse(file.read_text(encoding="utf-8") if source is None else source)
    for found in _imports(tree, file, lazy=False):
        if found.target != "dgpo":
            yield found
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "dgpo":
                yield replace(found, line=node.lineno, target=f"dgpo.{node.attr}")


def _imports(node: ast.AST, file: Path, *, lazy: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(file, node.lineno, alias.name, lazy)
    elif isinstance(node, ast.ImportFrom):
        source = node.module or ""
        if node.level:
            here = ("dgpo", *file.relative_to(PACKAGE).with_suffix("").parts)
            source = ".".join([*here[: len(here) - node.level], *([source] if source else [])])
        for alias in node.names:
            yield Import(file, node.lineno, f"{source}.{alias.name}", lazy)
    else:
        deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        )
        for child in ast.iter_child_nodes(node):
            yield from _imports(child, file, lazy=lazy or deferred)


def violation(found: Import) -> bool:
    room = room_of(found.file)
    rule = RULES[room]
    if found.package == "dgpo":
        if found.target == "dgpo.__version__":
            return room not in MAY_READ_THE_VERSION
        return found.room not in rule.rooms | {room} | SHARED
    if found.package in sys.stdlib_module_names or rule.packages is ANYTHING or found.package in rule.packages:
        return False
    return not (found.lazy and found.package in rule.lazy)


def test_every_room_has_a_rule() -> None:
    """A new room is a decision about who may import it: write it into RULES."""
    assert {room_of(file) for file in FILES} <= set(RULES)
    assert {"tokens", "registry", "loss", "objectives", "__init__"} <= {room_of(file) for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(PACKAGE)) for file in FILES])
def test_imports_follow_the_design(file: Path) -> None:
    assert [str(found) for found in imports_of(file) if violation(found)] == []


def test_nothing_imports_a_leaf_except_the_command_line() -> None:
    """training, engines and cli are imported by cli and by themselves only."""
    seen = [found for file in FILES for found in imports_of(file)]
    wrong = [
        str(found)
        for found in seen
        if found.package == "dgpo"
        and found.room in LEAVES
        and room_of(found.file) not in {found.room, "cli", "__main__"}
        and (room_of(found.file), found.room) != ("plan", "training")
    ]
    assert wrong == []
    assert len(seen) > 50


def test_the_rules_have_no_cycle() -> None:
    """Whatever the files do today: a room never may import a room that may import it."""
    above: dict[str, set[str]] = {room: rule.rooms | SHARED for room, rule in RULES.items() if room not in SHARED}
    above |= {room: set() for room in SHARED}
    for _ in RULES:
        for room, below in above.items():
            above[room] = below | {far for near in below for far in above.get(near, set())}
    assert [room for room, below in above.items() if room in below] == []


# --- no two files import each other -----------------------------------------------------------------------------------

Graph = dict[str, set[str]]
"""File -> the files that it names in an import, wherever that stands: in a function, or for type checkers only."""


def file_of(target: str) -> str:
    """The file that a dotted name is in. A name of a package is in its `__init__.py`; a module of it is not.

    Python runs the `__init__.py` of a package before any module of it, but a file that names the module alone takes
    nothing from there: counted as an edge, every module that its package re-exports would be a circle.
    """
    place, parts = PACKAGE, target.split(".")[1:]
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    file = place / f"{parts[0]}.py" if parts else place
    return (file if file.is_file() else place / "__init__.py").relative_to(PACKAGE).as_posix()


def graph_of_the_files() -> Graph:
    return {
        file.relative_to(PACKAGE).as_posix(): {
            file_of(found.target) for found in imports_of(file) if found.package == "dgpo"
        }
        for file in FILES
    }


def circles(graph: Graph) -> list[set[str]]:
    """The strongly connected components of more than one file, in order of their first file."""
    reached = {}
    for file in graph:
        reached[file], new = set[str](), {file}
        while new:
            new = {far for near in new for far in graph.get(near, set())} - reached[file]
            reached[file] |= new
    found = {frozenset({file, *(far for far in reached[file] if file in reached[far])}) for file in graph}
    return [set(circle) for circle in sorted(found, key=min) if len(circle) > 1]


def test_no_two_files_import_each_other() -> None:
    graph = graph_of_the_files()
    assert all(near in graph for imported in graph.values() for near in imported)
    assert sum(map(len, graph.values())) > 500
    assert circles(graph) == []


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"a"}, "c": {"a"}}, [{"a", "b"}]),
        ({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}}, [{"a", "b", "c"}, {"d", "e"}]),
    ],
)
def test_the_search_for_circles_sees_what_it_should(graph: Graph, expected: list[set[str]]) -> None:
    assert circles(graph) == expected


@pytest.mark.parametrize(
    ("target", "file"),
    [
        ("dgpo.tokens.TokenBatch", "tokens.py"),
        ("dgpo.tokens", "tokens.py"),
        ("dgpo.policy_loss", "__init__.py"),
        ("dgpo.objectives.make", "objectives/__init__.py"),
        ("dgpo.objectives.presets", "objectives/presets.py"),
        ("dgpo.objectives.presets.preset", "objectives/presets.py"),
        ("dgpo.diagnostics.doctor", "diagnostics/doctor/__init__.py"),
    ],
)
def test_the_file_of_a_name(target: str, file: str) -> None:
    assert file_of(target) == file


# --- what is private to a file ----------------------------------------------------------------------------------------

FOREIGN = {
    "_exit": "os._exit, public in spite of its name",
    "_name_or_path": "where transformers keeps the name of a model; there is no public one",
    "_attn_implementation": "how transformers' models attend; there is no public name",
    "_set_sync_gradients": "transformers' own way to tell accelerate whether ranks reduce; the public setter fails",
    "_forward_hooks": "torch has no other list of a module's hooks",
    "_forward_pre_hooks": "likewise",
    "_get_default_store": "torch.distributed has no public way to the store of the process group",
    "_VALID_DICT_FIELDS": "TRL's list of the options that may be dictionaries, which ours adds to",
    "_actions": "argparse has no public list of the flags that it knows",
    "_get_value": "a value from a file is converted as the same value on the command line",
    "_check_value": "likewise",
}
"""Names that other people call private and we use all the same, with the reason."""

HAVE_NO_SECRETS = [file for file in FILES if room_of(file) in {"training", "plan", "cli"}]


def foreign_privates(tree: ast.AST) -> set[str]:
    """Private names that a file takes from objects and modules, and does not define itself."""
    taken, own = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dgpo"):
            taken |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute):
            mine = ast.unparse(node.value) in {"self", "cls", "super()"}
            (own if mine else taken).add(node.attr)
    return {name for name in taken - own if name.startswith("_") and not name.startswith("__")}


@pytest.mark.parametrize("file", HAVE_NO_SECRETS, ids=[str(file.relative_to(PACKAGE)) for file in HAVE_NO_SECRETS])
def test_nothing_private_is_taken_from_another_file(file: Path) -> None:
    assert foreign_privates(ast.parse(file.read_text(encoding="utf-8"))) - set(FOREIGN) == set()


def test_what_is_private_elsewhere_is_used() -> None:
    used = {name for file in HAVE_NO_SECRETS for name in foreign_privates(ast.parse(file.read_text(encoding="utf-8")))}
    assert used == set(FOREIGN)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("trainer._objective", {"_objective"}),
        ("self._trainer._tokenizer", {"_tokenizer"}),
        ("from dgpo.files import _loads", {"_loads"}),
        ("self._mine = 1\nother._mine", set()),
        ("def _f(): ...\nmodule._f", set()),
        ("super()._save(); type(x).__name__", set()),
    ],
)
def test_the_search_for_privates_sees_what_it_should(source: str, expected: set[str]) -> None:
    assert foreign_privates(ast.parse(source)) == expected


# --- the reader of imports --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "source", "wrong"),
    [
        ("tokens.py", "from dgpo.registry import build", False),
        ("tokens.py", "from dgpo.kl import k3", True),
        ("tokens.py", "import numpy", True),
        ("registry.py", "import torch", True),
        ("kl.py", "from dgpo import tokens", False),
        ("kl.py", "from dgpo import loss", True),
        ("kl.py", "from dgpo import TokenBatch", True),
        ("kl.py", "from .loss import policy_loss", True),
        ("objectives/dgpo.py", "from ..tokens import TokenBatch", False),
        ("objectives/dgpo.py", "from . import grpo", False),
        ("objectives/dgpo.py", "from .. import loss", True),
        ("tasks/reverse.py", "import datasets", True),
        ("tasks/reverse.py", "def f():\n    import datasets", False),
        ("tasks/reverse.py", "def f():\n    import torch", True),
        ("evaluation/run.py", "from dgpo.training import DGPOTrainer", True),
        ("training/trainer.py", "from dgpo.cli.main import main", True),
        ("cli/main.py", "from dgpo.training import DGPOTrainer", False),
        ("fused/kernel.py", "import triton", True),
        ("fused/kernel.py", "def f():\n    import triton", False),
        ("evaluation/run.py", "import dgpo\nprint(dgpo.__version__)", False),
        ("evaluation/run.py", "from dgpo import __version__", False),
        ("evaluation/run.py", "import dgpo\ndgpo.policy_loss()", True),
        ("loss.py", "from dgpo import __version__", True),
    ],
)
def test_the_reader_of_imports_sees_what_it_should(where: str, source: str, wrong: bool) -> None:
    found = list(imports_of(PACKAGE / where, source))
    assert len(found) == 1
    assert violation(found[0]) == wrong


# --- nobody but `objectives` knows a method ---------------------------------------------------------------------------

CLASS_NAMES = {cls.__name__ for cls in OBJECTIVES.values()}


def knowledge_of_a_method(tree: ast.AST) -> list[str]:
    """References to a method's class, and comparisons with a method's name. Defaults and texts may name one."""
    found = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Name):
            names = [node.id] if node.id in CLASS_NAMES else []
        elif isinstance(node, ast.Attribute):
            names = [node.attr] if node.attr in CLASS_NAMES else []
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names if alias.name.split(".")[-1] in CLASS_NAMES]
        elif isinstance(node, ast.Compare | ast.match_case) and "loss_type" not in ast.unparse(node):
            # TRL's own loss_type has values of the same names
            operands = node.pattern if isinstance(node, ast.match_case) else node
            names = [
                child.value
                for child in ast.walk(operands)
                if isinstance(child, ast.Constant) and isinstance(child.value, str) and child.value in OBJECTIVES
            ]
        found += [f"line {getattr(node, 'lineno', '?')}: {name}" for name in names]
    return found


OUTSIDE = [file for file in FILES if room_of(file) != "objectives"]


@pytest.mark.parametrize("file", OUTSIDE, ids=[str(file.relative_to(PACKAGE)) for file in OUTSIDE])
def test_no_other_room_knows_a_method_by_name(file: Path) -> None:
    assert knowledge_of_a_method(ast.parse(file.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("source", "number"),
    [
        ("from dgpo.objectives import DGPO", 1),
        ("import dgpo.objectives as o\nx = o.GRPO(eps_low=0.1)", 1),
        ("if name == 'dgpo': pass", 1),
        ("if name in ('maspo', 'other'): pass", 1),
        ("match name:\n    case 'grpo':\n        pass", 1),
        ("isinstance(objective, MASPO)", 1),
        ("from trl import GRPOConfig, GRPOTrainer\nclass DGPOTrainer(GRPOTrainer): 'like DGPO'", 0),
        ("def loss(objective: str = 'dgpo'): ...", 0),
        ("if args.loss_type == 'grpo': pass", 0),
    ],
)
def test_the_search_for_names_sees_what_it_should(source: str, number: int) -> None:
    assert len(knowledge_of_a_method(ast.parse(source))) == number
