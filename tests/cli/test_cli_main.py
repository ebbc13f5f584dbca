"""The entry point: help, version, unknown commands, exit codes, and what is said where packages are missing."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trl import GRPOConfig, ModelConfig

import dgpo as package
from dgpo import installation
from dgpo.cli import main
from dgpo.cli.main import COMMANDS, EXTRAS, GROUPS
from dgpo.cli.train_arguments import TrainArguments
from dgpo.installation import hint
from dgpo.objectives import OBJECTIVES
from dgpo.training import DGPOConfig

ROOT = Path(__file__).resolve().parents[2]
IMPORT_NAMES = {"pyyaml": "yaml", "math-verify": "math_verify"}


def process(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, encoding="utf-8", check=False, timeout=120
    )


def test_version_of_the_installed_script(executable: Path) -> None:
    done = process(executable, "--version")
    assert (done.returncode, done.stdout) == (0, f"dgpo {package.__version__}\n")


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_help_lists_every_command(dgpo: Callable[..., Any], word: str) -> None:
    done = dgpo(word)
    assert done.code == 0
    assert done.err == ""
    for name, (_, text) in COMMANDS.items():
        assert f"  {name:<17}{text}\n" in done.out
    assert len(done.out.splitlines()) <= 40
    assert max(map(len, done.out.splitlines())) <= 80
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(COMMANDS)


def test_no_command_is_an_error_that_shows_the_usage(dgpo: Callable[..., Any]) -> None:
    done = dgpo()
    done.one_error("no command")
    assert "train and evaluate:" in done.err


@pytest.mark.parametrize(("word", "meant"), [("trian", "train"), ("evaluate", "eval"), ("objective", "objectives")])
def test_unknown_command(dgpo: Callable[..., Any], word: str, meant: str) -> None:
    dgpo(word).one_error(f"unknown command {word!r}", f"did you mean {meant!r}?")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(dgpo: Callable[..., Any], name: str) -> None:
    if name == "completion":
        pytest.importorskip("shtab")
    done = dgpo(name, "--help")
    assert done.code == 0
    assert f"usage: dgpo {name}" in done.out


def flags_in(text: str) -> list[str]:
    """The flags that a help text lists, each by its first name."""
    return re.findall(r"^  --(\w+)", text, re.MULTILINE)


def test_help_of_train_has_our_flags_and_the_usual_ones(dgpo: Callable[..., Any]) -> None:
    """By group, each once; `--help-all` has every field of TRL's GRPOConfig and ModelConfig besides."""
    short, full = dgpo("train", "--help"), dgpo("train", "--help-all")
    assert (short.code, full.code, full.err) == (0, 0, "")
    shown, every = flags_in(short.out), flags_in(full.out)
    assert len(set(shown)) == len(shown)
    assert len(set(every)) == len(every)
    kinds = (TrainArguments, ModelConfig, DGPOConfig)
    fields = {field.name for kind in kinds for field in dataclasses.fields(kind) if field.init}
    assert set(every) == {*fields, "config", "help"}
    of_trl = {field.name for kind in (GRPOConfig, ModelConfig) for field in dataclasses.fields(kind)}
    assert set(shown) >= fields - of_trl
    assert {"learning_rate", "num_generations", "per_device_train_batch_size", "max_steps", "use_vllm"} <= set(shown)
    assert "lora_r" not in shown
    assert len(short.out.splitlines()) < 280 < len(full.out.splitlines())
    assert f"{len(fields) + 2 - len(shown)} more flags are those of TRL's" in short.out
    # our words about a flag of TRL, and what it is set to if it is not given
    assert "4 x gradient_accumulation_steps, which is 4" in " ".join(short.out.split())
    assert re.search(r"^  --seed INT +Seed of the run \(default: 42\)$", short.out, re.MULTILINE)


def test_a_default_of_0_is_shown_and_one_of_false_is_not(dgpo: Callable[..., Any]) -> None:
    out = dgpo("demo", "--help").out
    assert re.search(r"^  --seed INT +Seed of .*\(default: 0\)$", " ".join(out.split("\n    ")), re.MULTILINE)
    assert "(default: False)" not in dgpo("train", "--help").out


def test_objectives_lists_all_and_describes_one(dgpo: Callable[..., Any]) -> None:
    table, markdown = dgpo("objectives"), dgpo("objectives", "--markdown")
    assert table.code == markdown.code == 0
    assert "|" in markdown.out
    for name in OBJECTIVES:
        assert name in table.out
        assert name in markdown.out
        assert dgpo("objectives", name).out.startswith(f"{name} ({OBJECTIVES[name].__name__})")


def test_objectives_knows_what_was_meant(dgpo: Callable[..., Any]) -> None:
    dgpo("objectives", "dgop").one_error("unknown objective 'dgop'", "did you mean 'dgpo'?")
    dgpo("objectives", "dgpo", "--markdown").one_error("leave NAME out")


# --- missing packages ------------------------------------------------------------------------------------------------

ABSENT = """
import contextlib, io, sys
from dgpo.cli.main import run

class Absent:  # what `import` finds where a package is not installed: nothing
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent)
for package in sys.argv[1].split(","):
    absent = set(package.split("+"))
    for name in [name for name in sys.modules if name.split(".")[0] in absent]:
        del sys.modules[name]
    for command in ("train", "eval", "starter", "demo", "objectives", "--version"):
        err = io.StringIO()
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            try:
                code = run([command])
            except SystemExit as stop:  # argparse: nothing is missing but the arguments
                code = stop.code
        print(package, command, code, " ".join(err.getvalue().split()), sep="|")
"""


def test_a_missing_package_is_one_line_that_names_the_extra() -> None:
    """In a fresh interpreter, for each package that a command cannot do without, and for all of them at once."""
    packages = sorted({*EXTRAS["train"], *EXTRAS["eval"]} - {"torch"})
    done = process(sys.executable, "-c", ABSENT, ",".join([*packages, "+".join(packages)]))
    assert done.returncode == 0, done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines()]
    assert len(rows) == 6 * (len(packages) + 1)
    for package_name, command, code, error in rows:
        extra = COMMANDS[command][0] if command in COMMANDS else ""
        lacking = [module for module in EXTRAS[extra] if module in package_name.split("+")]
        if lacking:
            names = f"{', '.join(lacking)}, which {'is' if len(lacking) == 1 else 'are'} not installed"
            assert error == f"dgpo {command}: error: needs {names}: {hint(extra)}"
            assert code == "2"
        elif command in ("objectives", "--version"):
            assert (code, error) == ("0", "")
        else:
            assert "not installed" not in error


def test_a_report_without_plotly_names_the_extra(monkeypatch: pytest.MonkeyPatch, dgpo: Callable[..., Any]) -> None:
    monkeypatch.setattr(installation, "is_installed", lambda module: module != "plotly")
    dgpo("report", "folder").one_error(f"needs plotly, which is not installed: {hint('report')}")


def test_the_installed_script_names_the_extra_without_trl(executable: Path, tmp_path: Path) -> None:
    """The same through the real script, with a package that sitecustomize hides."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['trl'] = None\n")
    done = process("env", f"PYTHONPATH={tmp_path}", executable, "train", "--task", "addition")
    assert done.returncode == 2
    error = done.stderr.splitlines()[-1]
    assert error.startswith("dgpo train: error: needs trl, which is not installed: pip install '")
    assert error.endswith("[train]'")


def test_the_extras_are_those_of_the_package() -> None:
    """Everything that pyproject.toml lists for an extra is looked for before one of its commands starts."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra in ("train", "eval", "completion"):
        own = project["optional-dependencies"][extra]
        others = re.fullmatch(r"dgpo\[(.*)\]", own[0])
        inner = [] if others is None else others[1].split(",")
        needed = own[len(inner) > 0 :] + [line for name in inner for line in project["optional-dependencies"][name]]
        listed = {re.split(r"[^\w-]", line)[0].lower() for line in needed}
        assert {IMPORT_NAMES.get(name, name) for name in listed} <= set(EXTRAS[extra])


def test_a_package_that_only_some_uses_of_a_command_need(
    monkeypatch: pytest.MonkeyPatch, dgpo: Callable[..., Any]
) -> None:
    """Imported inside a function, as `datasets` is by `dgpo eval --dataset`: the extra that has it."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(EXTRAS, "train", ("datasets",))
    command = SimpleNamespace(run=lambda argv: __import__("datasets"))
    monkeypatch.setitem(sys.modules, "dgpo.cli.eval", command)
    dgpo("eval").one_error("needs datasets, which is not installed", hint("eval"))


# --- our own bugs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("ours"), ValueError("ours"), ImportError("ours")])
def test_an_exception_of_ours_is_not_dressed_up_as_input(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def crash(argv: list[str]) -> int:
        raise error

    monkeypatch.setitem(sys.modules, "dgpo.cli.objectives", SimpleNamespace(run=crash))
    with pytest.raises(type(error), match="ours"):
        main.run(["objectives"])


def test_a_missing_package_that_no_extra_has_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    command = SimpleNamespace(run=lambda argv: __import__("no_such_package_at_all"))
    monkeypatch.setitem(sys.modules, "dgpo.cli.objectives", command)
    with pytest.raises(ModuleNotFoundError):
        main.run(["objectives"])


def test_a_crash_exits_with_1_and_its_traceback(tmp_path: Path, executable: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, types\n"
        "command = types.ModuleType('dgpo.cli.objectives')\n"
        "def run(argv): raise RuntimeError('a bug of ours')\n"
        "command.run = run\n"
        "sys.modules['dgpo.cli.objectives'] = command\n"
    )
    done = process("env", f"PYTHONPATH={tmp_path}", executable, "objectives")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.rstrip().endswith("RuntimeError: a bug of ours")


def test_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch, dgpo: Callable[..., Any]) -> None:
    def interrupted(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "dgpo.cli.objectives", SimpleNamespace(run=interrupted))
    done = dgpo("objectives")
    assert (done.code, done.err) == (130, "dgpo objectives: interrupted\n")


@pytest.mark.parametrize("options", [[], ["default"]], ids=["usual", "-W default"])
def test_warnings_are_lines_and_deprecations_inside_libraries_are_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    """transformers tells TRL in a FutureWarning which of its options will go; a user of TRL cannot change that."""

    def warn(argv: list[str]) -> int:
        warnings.warn("`old` is deprecated. Use `new` instead.", FutureWarning, stacklevel=1)
        warnings.warn("the data has one row", UserWarning, stacklevel=1)
        return 0

    monkeypatch.setitem(sys.modules, "dgpo.cli.objectives", SimpleNamespace(run=warn))
    monkeypatch.setattr(sys, "argv", ["dgpo", "objectives"])
    monkeypatch.setattr(sys, "warnoptions", options)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(reconfigure=lambda **_: None, flush=lambda: None))
    monkeypatch.setattr(sys.stderr, "reconfigure", lambda **_: None, raising=False)
    # pytest itself records warnings in place of printing them
    monkeypatch.setattr(warnings, "showwarning", lambda *given, **_: sys.stderr.write(warnings.formatwarning(*given)))
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        with pytest.raises(SystemExit) as stop:
            main.main()
    assert stop.value.code == 0
    expected = ["warning: the data has one row"]
    if options:
        expected.insert(0, "futurewarning: `old` is deprecated. Use `new` instead.")
    assert capsys.readouterr().err.splitlines() == expected
