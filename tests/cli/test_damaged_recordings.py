"""Whatever was done to the files of a run or of an evaluation, no command ends in a traceback, hangs, asks for the
memory of the machine or hands a control character to the terminal; what can be read is read."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from damage import ESCAPE, METRICS, Damage, damaged, damages, healthy

from dgpo.cli.main import run as dgpo
from dgpo.diagnostics import load, read
from dgpo.files import LARGEST_TEXT, loads, parse_json, printable
from dgpo.report.data import collect
from dgpo.report.tokens import decoder
from dgpo.training.recording import recorded_info

ALL = list(damages())
SAMPLE = random.Random(12).sample(ALL, 40)
ACTING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("healthy") / "base"
    healthy(folder)
    return folder


def answers(command: list[str], capsys: pytest.CaptureFixture[str]) -> int:
    """The exit code of a command whose output is fit for a terminal, and whose error is one line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        code = dgpo(command)
    printed = capsys.readouterr()
    assert not ACTING.search(printed.out + printed.err + "".join(printable(str(one.message)) for one in caught))
    assert code in (0, 1, 2)
    if code == 2:
        assert printed.err.count("\n") == 1, printed.err
    return code


def commands(folder: Path, base: Path, name: str) -> list[list[str]]:
    run = str(folder / "record")
    if name.startswith("results.json"):
        return [["compare-results", str(base / "results.json"), str(folder / "results.json")]]
    return [["doctor", run], ["replay", run, "--objectives", "grpo", "maspo"]]


def test_a_giant_beside_the_tokenizer_is_not_loaded(base, tmp_path):
    run = load(damaged(base, tmp_path / "copy", Damage("none", lambda folder: None)) / "record")
    with open(run.folder / run.info["tokenizer"] / "tokenizer.json", "wb") as file:
        file.truncate(LARGEST_TEXT + 1)
    decode, why = decoder(run)
    assert decode is None
    assert why.endswith("has a file of 536,870,913 bytes: tokenizer.json")


@pytest.mark.parametrize("damage", SAMPLE, ids=lambda damage: ascii(damage.name))
def test_no_damage_ends_in_a_traceback(base, tmp_path, damage: Damage, capsys):
    folder = damaged(base, tmp_path / "copy", damage)
    for command in commands(folder, base, damage.name):
        answers(command, capsys)


@pytest.mark.soak
@pytest.mark.parametrize("part", range(10))
def test_no_damage_ends_in_a_traceback_all(base, tmp_path, part, capsys):
    for number, damage in enumerate(ALL[part::10]):
        folder = damaged(base, tmp_path / str(number), damage)
        for command in commands(folder, base, damage.name):
            answers(command, capsys)
        if number % 5 == 0:
            report = ["report", str(folder / "record"), "--eval", str(folder / "results.json")]
            answers(report, capsys)


def test_the_healthy_files_are_read_whole(base, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = load(base / "record")
        assert len(list(run.recorded())) == 8
    assert (len(run.metrics), run.damaged) == (6, [])
    assert answers(["doctor", str(base / "record")], capsys) in (0, 1)


def test_what_is_not_damaged_is_read(base, tmp_path):
    """A file of tokens, entries of run.json, a line of the log, a tokenizer and results, all at once."""
    folder = damaged(base, tmp_path / "copy", Damage("", lambda _: None))
    run = folder / "record"
    (run / "tokens" / "update-000002.parquet").write_bytes(b"PAR1")
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**info, "world_size": "two", "objective": {"name": "dgpo", "n": []}}))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[2] = lines[2][:20]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    (run / "tokenizer" / "tokenizer.json").write_text("{")
    (folder / "results.json").write_text(json.dumps({"schema": "dgpo.evaluation/1", "benchmarks": []}))
    with pytest.warns(UserWarning, match="left out") as caught:
        (found,) = collect([run], [folder])["runs"]
    said = [str(one.message) for one in caught]
    assert all("\n" not in one for one in said)
    assert len(said) == 5
    assert found["damaged"] == [
        "run.json: world_size",
        "run.json: objective:",
        "metrics.jsonl:3",
        "update-000002.parquet",
    ]
    assert (found["recorded"], found["read"], found["incomplete"]) == (4, 3, [2])
    assert found["charts"]["reward"][0]["x"] == [1, 3, 4]
    assert found["objective"] is None
    assert "cannot be read" in found["undecoded"]


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("position", [2**30], r"17 tokens in 4 responses, one at position 1,073,741,824"),
        ("position", [-1], r"'position' has -1; expected integers >= 0"),
        ("token_id", [-5], r"'token_id' has -5; expected integers >= 0"),
        ("position", [1], r"two tokens at one position"),
        ("logprob", None, r"0 columns 'logprob'; expected one"),
    ],
)
def test_columns(base, tmp_path, column, values, said):
    path = tmp_path / "update-000002.parquet"
    table = parquet.read_table(base / "record" / "tokens" / path.name)
    place = table.column_names.index(column)
    if values is None:
        table = table.drop_columns([column])
    else:
        whole = [*values, *table.column(column).to_pylist()[1:]]
        table = table.set_column(place, column, pa.array(whole, table.column(column).type))
    parquet.write_table(table, path)
    with pytest.raises(ValueError, match=said):
        read(path)


SMALL_MEMORY = """
import resource, sys
from dgpo.diagnostics import read
import pyarrow.parquet
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        read(path)
    except ValueError as error:
        print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_small_file_cannot_ask_for_gigabytes(base, tmp_path):
    """Millions of equal rows in a few kilobytes; one token at position 2³⁰."""
    source = parquet.read_table(base / "record" / "tokens" / "update-000002.parquet")
    metadata = source.schema.metadata
    rows = 3_000_000
    (tmp_path / "many").mkdir()
    paths = [tmp_path / "many" / "update-000002.parquet"]
    equal = {field.name: pa.repeat(pa.scalar(0, field.type), rows) for field in source.schema}
    parquet.write_table(pa.table(equal).replace_schema_metadata(metadata), paths[0], compression="zstd")
    assert paths[0].stat().st_size < 2**18
    (tmp_path / "far").mkdir()
    paths.append(tmp_path / "far" / "update-000002.parquet")
    far = [*source.column("position").to_pylist()[1:], 2**30]
    parquet.write_table(source.set_column(2, "position", pa.array(far, pa.int32())), paths[1])
    done = subprocess.run(
        [sys.executable, "-c", SMALL_MEMORY, *map(str, paths)], capture_output=True, text=True, check=True, timeout=120
    )
    first, second, used = done.stdout.splitlines()
    assert f"claims {rows:,} tokens" in first
    assert "at position 1,073,741,824" in second
    assert int(used) < 50_000  # KiB


def test_what_a_terminal_would_obey_is_escaped(base, tmp_path, capsys):
    """In names of metrics and values, in evidence, tables, errors and warnings."""
    folder = damaged(base, tmp_path / "copy", Damage("", lambda _: None))
    run = folder / "record"
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**info, "objective": {"name": ESCAPE}, "world_size": ESCAPE}))
    lines = [{"step": step, **METRICS, f"reward{ESCAPE}": 1.0, "grad_norm": "nan"} for step in range(1, 9)]
    (run / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + f'\n{{"step": "{ESCAPE[1:4]}"}}')
    for command in (["doctor", str(run)], ["replay", str(run), "--objectives", "grpo"]):
        assert answers(command, capsys) in (0, 1)
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({**results, "model": ESCAPE}))
    answers(["compare-results", str(base / "results.json"), str(folder / "results.json")], capsys)
    assert printable(f"a\tb\n{ESCAPE}\u202e\ud800") == "a\tb\n\\x1b[31mred\\x1b[0m\\x07\\u202e\\ud800"
    directions = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # Unicode's Bidi_Control
    assert printable(directions) == directions.encode("unicode_escape").decode()
    assert parse_json('{"\\u001b": "\\u0007", "n": 1' + "0" * 400 + "}") == {"\\x1b": "\\x07", "n": float("inf")}
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000)


def test_no_code_that_comes_with_a_run_is_executed(base, tmp_path):
    """A tokenizer that asks for code of its own is not read; nobody is asked at the terminal."""
    folder = damaged(base, tmp_path / "copy", Damage("", lambda _: None))
    place = folder / "record" / "tokenizer"
    (place / "mine.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Mine: pass\n")
    config = json.loads((place / "tokenizer_config.json").read_text())
    mine = {"auto_map": {"AutoTokenizer": ["mine.Mine", None]}, "tokenizer_class": "Mine"}
    (place / "tokenizer_config.json").write_text(json.dumps({**config, **mine}))
    (found,) = collect([folder / "record"])["runs"]
    assert "trust_remote_code" in found["undecoded"]
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "[]", "\udcff"], ids=["cut", "nested", "list", "bytes"])
def test_a_damaged_run_json_is_not_recorded_over(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"run\.json"):
        recorded_info(tmp_path)


def test_nested_json_is_a_value_error():
    with pytest.raises(ValueError, match="nested too deeply"):
        loads("[" * 100_000)
