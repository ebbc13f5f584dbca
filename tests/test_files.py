import json
import os

import pytest

from dgpo.files import LARGEST_TEXT, first_line, one_line, read_json, write_json_atomic, write_text_atomic


def test_creates_the_folder_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    assert write_text_atomic(path, "one\n") == path
    write_text_atomic(str(path), "zwölf\n")
    assert path.read_bytes() == "zwölf\n".encode()
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


def test_json_ends_with_a_newline(tmp_path):
    path = write_json_atomic(tmp_path / "x.json", {"a": [1, None, "ü"]})
    assert path.read_text().endswith("}\n")
    assert json.loads(path.read_text()) == {"a": [1, None, "ü"]}


@pytest.mark.parametrize(
    ("obj", "error"), [({"a": object()}, TypeError), ([float("nan")], ValueError), ([float("inf")], ValueError)]
)
def test_failing_serialisation_leaves_the_old_file(tmp_path, obj, error):
    path = write_json_atomic(tmp_path / "x.json", {"old": True})
    with pytest.raises(error):
        write_json_atomic(path, obj)
    assert json.loads(path.read_text()) == {"old": True}
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


def test_text_that_has_no_utf8_form_leaves_the_old_file(tmp_path):
    path = write_text_atomic(tmp_path / "x.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomic(path, "new \ud800")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.txt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failing_disk_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = write_text_atomic(tmp_path / "x.txt", "old")

    def fail(*arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="no space left"):
        write_text_atomic(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.txt"]


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_permissions_are_those_of_an_ordinary_new_file(tmp_path):
    ordinary = tmp_path / "ordinary"
    ordinary.write_text("")
    assert write_text_atomic(tmp_path / "atomic", "").stat().st_mode == ordinary.stat().st_mode


def test_what_is_no_file_or_too_large_a_one_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device"):
        with pytest.raises(OSError, match="not a regular file"):
            read_json(tmp_path / name)
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(LARGEST_TEXT + 1)
    with pytest.raises(OSError, match="536,870,913 bytes; at most 536,870,912 are read"):
        read_json(tmp_path / "sparse")
    with pytest.raises(IsADirectoryError):
        read_json(tmp_path)


@pytest.mark.parametrize(
    ("message", "first", "all_of_it"),
    [
        ("no such model\nTry another", "no such model", "no such model Try another"),
        ("\n  late  \n", "late", "late"),
        ("a\x1b[2Jb", "a\\x1b[2Jb", "a\\x1b[2Jb"),
        ("", "OSError", "OSError"),
        (" \n ", "OSError", "OSError"),
    ],
)
def test_the_message_of_an_exception(message: str, first: str, all_of_it: str) -> None:
    assert first_line(OSError(message)) == first
    assert one_line(OSError(message)) == all_of_it
