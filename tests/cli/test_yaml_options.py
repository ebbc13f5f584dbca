"""A YAML file of options: every value arrives as the flag of the same text would bring it, or its error has a line."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dgpo.cli.arguments import parse
from dgpo.cli.arguments import settings as settings_of
from dgpo.cli.errors import UserError
from dgpo.cli.parser import Parser
from dgpo.cli.yaml_file import values


@dataclass(kw_only=True)
class Options:
    _VALID_DICT_FIELDS: ClassVar = ["mapping"]
    LISTS_OF_MAPPINGS: ClassVar = ["mixed"]

    word: str = "unset"
    maybe: str | None = None
    whole: int = -7
    real: float = -7.5
    some: float | None = None
    flag: bool = False
    on: bool = True
    choice: Literal["left", "right"] = "left"
    words: list[str] | None = None
    numbers: list[float] | None = None
    mixed: list[str] | None = None
    mapping: dict[str, Any] | str | None = field(default=None)


NAMES = ["word", "maybe", "whole", "real", "some", "flag", "choice", "words", "numbers"]
PLAIN = [
    *("true-north", "trueish", "falsetto", "True North", "TRUE", "false", "yes", "no", "on", "off", "y", "N", "nope"),
    *("nullable", "Nullify", "none", "None", "~/models", "~user", "2024-01-01", "2024-01-01 10:00:00", "12:30"),
    *("1:30:00", "010", "0o17", "0x1F", "0b11", "1_000", "1e5", "1e-5", "5E-5", ".5", "5.", "+3", "-3", "-1e-3"),
    *("1.0", "007", "1.2.3", "<<", "=", "==", "a=b", "a:b", "a#b", "C:\\x", "/data/x y", "π", "名前", "e5", "inf"),
    *("nan", "-inf", "infinity", "1,2", "5 %", "$HOME", "v1.0", "null-model", "dgpo:n=2,m=3", "3 4"),
]


def of_flag(name: str, text: str) -> Any:
    """What `--name text` brings; None where it is refused."""
    try:
        return getattr(parse(Parser([Options], prog="x"), [f"--{name}={text}"])[0], name)
    except (UserError, SystemExit):
        return None


def of_file(folder: Path, content: str | bytes, *flags: str) -> Options:
    file = folder / "run.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return parse(Parser([Options], prog="x"), ["--config", str(file), *flags])[0]


def refused(folder: Path, content: str | bytes) -> str:
    with pytest.raises(UserError) as error:
        of_file(folder, content)
    assert "\n" not in str(error.value)
    return str(error.value)


def same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)  # nan is itself, and 1 is not 1.0


@pytest.mark.parametrize("name", ["word", "maybe", "words"])
def test_a_plain_scalar_is_its_text(tmp_path: Path, name: str) -> None:
    for text in PLAIN:
        assert getattr(of_file(tmp_path, f"{name}: {text}\n"), name) == ([text] if name == "words" else text)


@pytest.mark.parametrize("name", ["whole", "real", "flag"])
@pytest.mark.parametrize("text", PLAIN)
def test_a_plain_scalar_is_what_the_flag_would_be(tmp_path: Path, name: str, text: str) -> None:
    expected = of_flag(name, text)
    content = f"# a comment\n{name}: {text}\n"
    if expected is None:
        assert f"{name} in {str(tmp_path / 'run.yaml')!r}, line 2: " in refused(tmp_path, content)
    else:
        assert same(getattr(of_file(tmp_path, content), name), expected)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(NAMES),
    value=st.one_of(
        st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufeff"), min_size=1),
        st.integers().map(str),
        st.floats().map(repr),
        st.sampled_from(PLAIN),
    ),
    style=st.sampled_from(["'", '"', "|", None]),
)
def test_whatever_is_written_arrives_as_with_the_flag(tmp_path: Path, name: str, value: str, style: str | None) -> None:
    """In any of YAML's spellings of a text; what YAML itself reads as nothing cannot be written plain."""
    text = yaml.dump({name: value}, default_style=style if style != "|" else None, allow_unicode=True, width=10**6)
    expected = of_flag(name, value)
    content = f"\n{text}on: true\n"
    if expected is None:
        assert ", line 2: " in refused(tmp_path, content)
    else:
        assert same(getattr(of_file(tmp_path, content), name), expected)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(st.one_of(st.sampled_from(PLAIN), st.integers().map(str)), min_size=1, max_size=4))
def test_lists_arrive_as_with_the_flag(tmp_path: Path, values: list[str]) -> None:
    content = "words:\n" + "".join(f"  - {value}\n" for value in values)
    assert of_file(tmp_path, content).words == values
    expected = [of_flag("numbers", value) for value in values]
    content = content.replace("words", "numbers", 1)
    if None in expected:
        assert f"numbers in {str(tmp_path / 'run.yaml')!r}, line {expected.index(None) + 2}: " in refused(
            tmp_path, content
        )
    else:
        assert same(of_file(tmp_path, content).numbers, [number for (number,) in expected])


@pytest.mark.parametrize("nothing", ["", " ~", " null", " Null", " NULL", " # nothing"])
def test_nothing_is_none_where_an_option_may_be_none(tmp_path: Path, nothing: str) -> None:
    assert of_file(tmp_path, f"maybe:{nothing}\nsome:{nothing}\nwords:{nothing}\nmapping:{nothing}\n") == Options()
    for name in ("word", "whole", "real", "flag", "choice"):
        assert f"{name} in {str(tmp_path / 'run.yaml')!r}, line 2 has no value" in refused(
            tmp_path, f"\n{name}:{nothing}"
        )


def test_quoted_nothing_is_text(tmp_path: Path) -> None:
    assert of_file(tmp_path, "word: ''\nmaybe: 'null'\nwords: ['~', \"\"]\n") == Options(
        word="", maybe="null", words=["~", ""]
    )


@pytest.mark.parametrize("text", [".inf", ".Inf", "+.inf", ".INF"])
def test_yamls_own_spelling_of_infinity(tmp_path: Path, text: str) -> None:
    assert of_file(tmp_path, f"real: {text}\nmapping: {{m: {text}}}") == Options(real=math.inf, mapping={"m": math.inf})
    assert of_file(tmp_path, "real: -.inf").real == -math.inf
    assert math.isnan(of_file(tmp_path, "real: .nan").real)
    assert of_file(tmp_path, f"word: {text}\nwords: [{text}, .nan]") == Options(word=text, words=[text, ".nan"])


def test_mappings_are_read_by_yaml_1_2(tmp_path: Path) -> None:
    text = (
        "mapping: {a: no, b: 010, c: 12:30, d: 1e-5, e: 2024-01-01, f: true, g: 0o10, h: 0x1f, i: ~, j: 'true', k: 1_0,"
        " l: true-north, m: [1, x]}"
    )
    assert of_file(tmp_path, text).mapping == {
        **{"a": "no", "b": 10, "c": "12:30", "d": 1e-5, "e": "2024-01-01", "f": True, "g": 8, "h": 31, "i": None},
        **{"j": "true", "k": "1_0", "l": "true-north", "m": [1, "x"]},
    }
    assert of_file(tmp_path, "mixed: [one, {name: two, weight: 0.5}, 3]").mixed == [
        "one",
        {"name": "two", "weight": 0.5},
        "3",
    ]


def test_anchors_and_merges(tmp_path: Path) -> None:
    text = "word: &name true-north\nmaybe: *name\nmapping: &m {n: 1}\nmixed: [{<<: *m, n: 2, k: 3}, *name]\n"
    expected = Options(word="true-north", maybe="true-north", mapping={"n": 1}, mixed=[{"n": 2, "k": 3}, "true-north"])
    assert of_file(tmp_path, text) == expected
    assert of_file(tmp_path, "<<: {word: merged, whole: 1}\nwhole: 2\n") == Options(word="merged", whole=2)
    # a mapping that overrides a merged key, and is used again
    text = "mapping: &m {n: 1, k: 0}\nmixed: [&a {<<: *m, n: 2}, *a, {<<: *a, n: 3}]\n"
    assert of_file(tmp_path, text).mixed == [{"n": 2, "k": 0}, {"n": 2, "k": 0}, {"n": 3, "k": 0}]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_byte_order_marks(tmp_path: Path, encoding: str) -> None:
    assert of_file(tmp_path, "word: π\r\nwhole: 3\r\n".encode(encoding)) == Options(word="π", whole=3)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("word: a\nwhole: 1\n\nword: b\n", ["line 4: duplicate key 'word', first in line 1"]),
        ("word: a\nmapping:\n  n: 1\n  m: 2\n  n: 3\n", ["line 5: duplicate key 'n', first in line 3"]),
        ("mixed:\n- {a: 1,\n   a: 2}\n", ["line 3: duplicate key 'a', first in line 2"]),
        ("word: a\n'word': b\n", ["line 2: duplicate key 'word', first in line 1"]),
        ("env:\n  A: 1\n  A: 2\n", ["line 3: duplicate key 'A', first in line 2"]),
        ("word: a\n\twhole: 1\n", ["is not valid YAML: line 2", "indent with spaces"]),
        ("word: a\nmapping:\n\tn: 1\n", ["is not valid YAML: line 3", "indent with spaces"]),
        (
            "word: a: b\n",
            ["is not valid YAML: line 1: mapping values are not allowed", "quote text that contains ': '"],
        ),
        ("word: [a\nwhole: 1\n", ["is not valid YAML: line 2", "that starts in line 1"]),
        ("word: 'a\n\n", ["is not valid YAML: line 3", "that starts in line 1"]),
        ("word: *nowhere\n", ["is not valid YAML: line 1: found undefined alias 'nowhere'"]),
        ("word: a\n---\nword: b\n", ["is not valid YAML: line 2: a second document starts; expected one"]),
        ("word: @a\n", ["is not valid YAML: line 1: found character '@'"]),
        ("word: %a\n", ["is not valid YAML: line 1: found character '%'"]),
        ("word: !!python/object:os.system x\n", ["line 1: unknown tag 'tag:yaml.org,2002:python/object:os.system'"]),
        ("mapping: {n: !mine 1}\n", ["line 1", "could not determine a constructor for the tag '!mine'"]),
        ("mapping: &a {n: *a}\n", ["line 1: the value contains itself through an alias"]),
        ("mapping: {n: !!int two}\n", ["line 1", "'two'"]),
        ("", ["is empty; expected a mapping of keys"]),
        ("# nothing\n\n", ["is empty; expected a mapping of keys"]),
        ("---\n", ["is empty; expected a mapping of keys"]),
        ("~\n", ["is empty; expected a mapping of keys"]),
        ("- word: a\n", ["is a list; expected a mapping of keys"]),
        ("word\n", ["is a single value; expected a mapping of keys"]),
        ("1: a\n", ["unknown key '1' in ", "line 1"]),
        ("word: a\ntrue: a\n", ["unknown key 'true' in ", "line 2"]),
        (": a\n", ["is not valid YAML: line 1"]),
        ("'': a\n", ["unknown key '' in "]),
        ("~: a\n", ["unknown key '~' in "]),
        ("[word]: a\n", ["line 1: the key is a list or a mapping; expected text"]),
        ("? {word: a}\n: b\n", ["line 1: the key is a list or a mapping; expected text"]),
        ("mapping: {1: a}\n", ["line 1: the key '1' is of type int; expected text"]),
        ("mapping:\n  n: 1\n  true: 2\n", ["line 3: the key 'true' is of type bool; expected text"]),
        ("mapping: {[n]: 1}\n", ["line 1: the key is a list or a mapping; expected text"]),
        ("Word: a\n", ["unknown key 'Word' in ", "did you mean 'word'?"]),
        ("wrd: a\n", ["unknown key 'wrd' in ", "did you mean 'word'?"]),
        ("on: true\nword: [a, b]\n", ["word = ['a', 'b'] in ", "line 2 is a list; expected one value"]),
        ("word: {a: 1}\n", ["word = {'a': 1} in ", "line 1 is a mapping; expected one value"]),
        ("words: {a: 1}\n", ["words = {'a': 1} in ", "is a mapping; expected a list of values"]),
        ("words:\n- a\n- [b]\n", ["words in ", "line 3 holds a list; expected a list of values"]),
        ("words:\n- a\n- {b: 1}\n", ["words in ", "line 3 holds a mapping; expected a list of values"]),
        ("words:\n- a\n-\n", ["words in ", "line 3 holds an empty value"]),
        ("mapping: '{\"n\": 1'\n", ["mapping in ", "line 1: ", "is not valid JSON"]),
        ('mapping: \'{"n": 1, "n": 2}\'\n', ["mapping in ", "'n' is given twice"]),
        (b"word: a\nwhole: \xff\n", ["line 2: not UTF-8 text"]),
        (b"word: a\n\x00\n", ["line 2"]),
        (b"[" * 600, ["nested too deeply"]),
    ],
    ids=lambda value: ascii(value)[:40] if isinstance(value, str | bytes) else "",
)
def test_an_error_names_the_line(tmp_path: Path, content: str | bytes, parts: list[str]) -> None:
    said = refused(tmp_path, content)
    assert str(tmp_path / "run.yaml") in said
    for part in parts:
        assert part in said, said


def test_variables_are_exported_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = {"A": "true", "B": "1e3", "C": "010", "D": "2024-01-01", "E": "no", "F": "1_000", "G": "~/x"}
    for name in (*written, "EMPTY"):
        monkeypatch.setenv(f"DGPO_TEST_{name}", "before")
    lines = "".join(f"  DGPO_TEST_{name}: {text}\n" for name, text in written.items())
    of_file(tmp_path, f"env:\n{lines}  DGPO_TEST_EMPTY: ''\nword: a\n")
    assert {name: os.environ[f"DGPO_TEST_{name}"] for name in written} == written
    assert os.environ["DGPO_TEST_EMPTY"] == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("env:\n  DGPO_TEST_A: 1\n  DGPO_TEST_B:\n", "env: 'DGPO_TEST_B' in {file}, line 3 has no value"),
        ("env:\n  DGPO_TEST_A: [1]\n", "env: 'DGPO_TEST_A' in {file}, line 2 is a list; expected text"),
        ("env:\n  A=B: 1\n", "env: 'A=B' in {file}, line 2 is not a valid variable name"),
        ("env: {DGPO_TEST_A: 1}\nwhole: x\n", "whole in {file}, line 2: invalid int value: 'x'"),
        ("env: [1]\n", "'env' in {file}, line 1 is of type list; expected a mapping"),
    ],
)
def test_a_file_with_an_error_exports_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.delenv("DGPO_TEST_A", raising=False)
    assert said.format(file=repr(str(tmp_path / "run.yaml"))) in refused(tmp_path, text)
    assert "DGPO_TEST_A" not in os.environ


def test_flags_win_and_one_file_is_read(tmp_path: Path) -> None:
    assert of_file(tmp_path, "word: a\nwhole: 1\n", "--whole", "2") == Options(word="a", whole=2)
    with pytest.raises(UserError, match=r"--config is given 2 times \(a.yaml, b.yaml\); expected one file"):
        parse(Parser([Options], prog="x"), ["--config", "a.yaml", "--config=b.yaml"])


@pytest.mark.parametrize("text", ["-1", "-.5", "-1e-3", "-1E+5", "-inf"])
def test_negative_numbers_are_values_of_flags(text: str) -> None:
    assert parse(Parser([Options], prog="x"), ["--real", text])[0].real == float(text)


# --- base -------------------------------------------------------------------------------------------------------------


def folder_of(folder: Path, **files: str) -> Path:
    for name, content in files.items():
        file = folder / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    return folder


def test_a_file_says_what_differs_from_its_base(tmp_path: Path) -> None:
    """Values are replaced as a whole, mappings and lists too; a chain of bases; flags win over all of them."""
    folder_of(
        tmp_path / "runs",
        **{
            "first": "word: a\nmapping: {n: 1, m: 2}\nwords: [x, y]\nreal: 1\nsome: 3\n",
            "sub/second": "base: ../first.yaml\nmapping: {n: 3}\nreal: 2\nwhole: 5\n",
            "third": "base: sub/second.yaml\nwords: [z]\nwhole: 6\nsome:\n",
        },
    )
    (made,) = parse(Parser([Options], prog="x"), ["--config", str(tmp_path / "runs" / "third.yaml"), "--whole", "7"])
    assert (made.word, made.mapping, made.words, made.real, made.whole) == ("a", {"n": 3}, ["z"], 2.0, 7)
    assert made.some is None
    assert values(tmp_path / "runs" / "sub" / "second.yaml") == {
        "word": "a",
        "mapping": {"n": 3},
        "words": ["x", "y"],
        "real": 2,
        "some": 3,
        "whole": 5,
    }


def test_where_every_setting_comes_from(tmp_path: Path) -> None:
    folder_of(
        tmp_path, first="word: a\nreal: 1\nflag: true\nmaybe: x\n", second="base: first.yaml\nmaybe: hf_abcdefgh12\n"
    )
    file = tmp_path / "second.yaml"
    found = settings_of(["--numbers", "1", "2", "--config", str(file), "--real=2", "--no-flag"])
    assert found == {
        str(tmp_path / "first.yaml"): {"word": "a"},
        str(file): {"maybe": "***"},
        "flags": {"numbers": "1 2", "real": "2", "no_flag": "true"},
    }


def test_no_secret_of_a_mapping_or_a_list_is_printed(tmp_path: Path) -> None:
    content = "env: {WANDB_API_KEY: abcdefgh, A: b}\nmapping: {token: abcdefgh, n: 1}\nwords: [hf_abcdefgh12, x]\n"
    folder_of(tmp_path, first=content, second="base: first.yaml\n")
    (found,) = settings_of(["--config", str(tmp_path / "second.yaml")]).values()
    assert found == {
        "env": '{"WANDB_API_KEY": "***", "A": "b"}',
        "mapping": '{"token": "***", "n": 1}',
        "words": '["***", "x"]',
    }


def test_a_base_that_is_a_link_to_itself(tmp_path: Path) -> None:
    folder_of(tmp_path, run="base: loop.yaml\n")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    with pytest.raises(UserError, match="base = 'loop.yaml' in .*run.yaml', line 1: no such file"):
        parse(Parser([Options], prog="x"), ["--config", str(tmp_path / "run.yaml")])


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        (
            {"run": "word: a\nbase: none.yaml\n"},
            ["base = 'none.yaml' in ", "run.yaml', line 2: no such file", "none.yaml'"],
        ),
        (
            {"run": "base: [a.yaml]\n"},
            ["base in ", "run.yaml', line 1 is a list; expected a file, such as base: other"],
        ),
        ({"run": "base:\n"}, ["run.yaml', line 1 has no value; expected a file"]),
        ({"run": "base: ''\n"}, ["run.yaml', line 1 has no value; expected a file"]),
        ({"run": "base: run.yaml\n"}, ["run.yaml', line 1 is circular"]),
        (
            {"run": "base: a.yaml\n", "a": "word: b\nbase: run.yaml\n"},
            ["a.yaml', line 2 is circular", "run.yaml -> ", "a.yaml -> "],
        ),
        (
            {"run": "base: a.yaml\n", "a": "wrod: b\n"},
            ["unknown key 'wrod' in ", "a.yaml', line 1, did you mean 'word'"],
        ),
        (
            {"run": "base: a.yaml\nword: x\n", "a": "whole: 1\nwhole: 2\n"},
            ["a.yaml' is not valid YAML: line 2: duplicate"],
        ),
        ({"run": "base: a.yaml\n", "a": "real: 1\nwhole: x\n"}, ["whole in ", "a.yaml', line 2: "]),
    ],
)
def test_what_is_wrong_with_a_base_names_file_and_line(tmp_path: Path, files: dict[str, str], parts: list[str]) -> None:
    folder_of(tmp_path, **files)
    with pytest.raises(UserError) as error:
        parse(Parser([Options], prog="x"), ["--config", str(tmp_path / "run.yaml")])
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)
