"""A YAML file of options: its keys, the text of every value as written, and the line of each.

A value reaches an option as the text that a flag would give it, so that `run_name: true-north`, `seed: 010` and
`name: 2024-01-01` mean what `--run_name true-north` and so on do. Nested values follow the core schema of YAML 1.2:
`no` is text, `5e-5` a number, and `12:30` is not 750 minutes.

`base: FILE` names another file, relative to this one, whose keys apply where this file does not set them. A value
replaces the whole value of the base, even if both are mappings or lists: the fields of one objective must not be mixed
with those of another. A base may have a base.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dgpo.cli.errors import UserError

_TAG = "tag:yaml.org,2002:"
_NULL, _BOOL, _INT, _FLOAT, _STR = (_TAG + name for name in ("null", "bool", "int", "float", "str"))


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2 in place of those of 1.1."""


# PyYAML looks a scalar's resolvers up by its first character; an empty scalar is under ""
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    (_NULL, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (_BOOL, r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (_INT, r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        _FLOAT,
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    (_TAG + "merge", "<<", ["<"]),
):
    _Loader.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), _first)


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    # base 10 for 010, which Python refuses in base 0
    return int(node.value, 0 if node.value[:2] in ("0o", "0x") else 10)


_Loader.add_constructor(_INT, _integer)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A value somewhere in the file.

    Attributes:
        node: what PyYAML composed.
        line: counted from 1, of the key; of the value itself in a list.
        path: of the file.
    """

    node: yaml.Node
    line: int
    path: Path

    @property
    def where(self) -> str:
        """File and line, for an error."""
        return f"{str(self.path)!r}, line {self.line}"

    @property
    def kind(self) -> str:
        """`nothing`, `text`, `list` or `mapping`."""
        if isinstance(self.node, yaml.ScalarNode):
            return "nothing" if self.node.tag == _NULL else "text"
        return "list" if isinstance(self.node, yaml.SequenceNode) else "mapping"

    @property
    def text(self) -> str:
        """The text of a scalar as written, without quotes and comments.

        Raises:
            UserError: it has a tag that is not one of YAML's scalars.
        """
        assert isinstance(self.node, yaml.ScalarNode)
        if self.node.tag not in (_NULL, _BOOL, _INT, _FLOAT, _STR, _TAG + "merge"):
            raise UserError(f"{self.where}: unknown tag {self.node.tag!r}; expected plain or quoted text")
        return str(self.node.value)

    @property
    def number(self) -> str:
        """The text of a number, with YAML's `.inf` and `.nan` as `inf` and `nan`."""
        # argparse converts with float(), which knows inf and nan without the point
        text, special = self.text, self.node.tag == _FLOAT and self.text.lower().endswith((".inf", ".nan"))
        return text.replace(".", "") if special else text

    @property
    def plain(self) -> Any:
        """The value as JSON that, read as YAML, gives an option what this entry gives it: texts stay as written.

        Raises:
            UserError: as `value`.
        """
        if self.kind == "text":
            return self.number
        if self.kind == "list":
            return [item.plain if item.kind == "text" else item.value() for item in self.items()]
        return self.value()

    def items(self) -> list[Entry]:
        """The elements of a list."""
        return [Entry(node=node, line=node.start_mark.line + 1, path=self.path) for node in self.node.value]

    def entries(self) -> dict[str, Entry]:
        """The values of a mapping by their keys; merged keys (`<<`) apply where the mapping does not set them.

        Raises:
            UserError: a key that is not text.
        """
        found = {}
        for key, value in _pairs(self.node, self.path):
            if not isinstance(key, yaml.ScalarNode):
                where = f"{str(self.path)!r}, line {key.start_mark.line + 1}"
                raise UserError(f"{where}: the key is a list or a mapping; expected text")
            found[str(key.value)] = Entry(node=value, line=key.start_mark.line + 1, path=self.path)
        return found

    def value(self) -> Any:
        """The value as Python has it, by the core schema of YAML 1.2.

        Raises:
            UserError: an unknown tag, a key that is not text.
        """
        _check(self.node, self.path, set(), ())
        loader = _Loader("")
        try:
            return loader.construct_document(self.node)
        except (yaml.YAMLError, ValueError) as error:
            raise UserError(f"{_place(self, error)}: {_problem(error)}") from error
        finally:
            loader.dispose()


def read(path: Path) -> dict[str, Entry]:
    """The keys of a file and of its `base`. UTF-8, with or without a byte-order mark, or UTF-16 with one.

    Raises:
        UserError: a file that cannot be read, is not YAML, is empty or not a mapping, or has a duplicate key; a base
            that does not exist, or a circle of bases.
    """
    return _read(path, ())


def values(path: Path) -> dict[str, Any]:
    """The same as Python values, by the core schema of YAML 1.2. Raises as `read` and `Entry.value` do."""
    return {key: entry.value() for key, entry in read(path).items()}


def with_base(mapping: Entry) -> dict[str, Entry]:
    """The keys of a mapping inside a file, over those of its own `base`, as `read` does for a whole file.

    Raises:
        UserError: as `read`.
    """
    return _with_base(mapping.entries(), mapping.path, (mapping.path,))


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Entry]:
    return _with_base(_load(path), path, (*above, path))


def _with_base(entries: dict[str, Entry], path: Path, chain: tuple[Path, ...]) -> dict[str, Entry]:
    base = entries.pop("base", None)
    if base is None:
        return entries
    if base.kind != "text" or not base.text:
        what = "has no value" if base.kind in ("nothing", "text") else f"is a {base.kind}"
        raise UserError(f"base in {base.where} {what}; expected a file, such as base: other.yaml")
    file = path.parent / base.text
    if not file.is_file():
        raise UserError(f"base = {base.text!r} in {base.where}: no such file: {str(file)!r}")
    if file.resolve() in [one.resolve() for one in chain]:
        circle = " -> ".join(str(one) for one in (*chain, file))
        raise UserError(f"base in {base.where} is circular: {circle}")
    # the keys of this file over those of the base
    return _read(file, chain) | entries


def _load(path: Path) -> dict[str, Entry]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the config file {str(path)!r}: {error.strerror}") from error
    try:
        node = yaml.compose(raw, _Loader)
    except RecursionError as error:
        raise UserError(f"the config file {str(path)!r} is not valid YAML: it is nested too deeply") from error
    except yaml.reader.ReaderError as error:
        what = error.reason if isinstance(error.character, bytes) else f"the character {chr(error.character)!r}"
        line = raw[: error.position].count(b"\n") + 1
        raise UserError(
            f"the config file {str(path)!r} is not valid YAML: line {line}: not UTF-8 text ({what})"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"the config file {str(path)!r} is not valid YAML: {_problem(error)}") from error
    if node is not None:
        _no_key_twice(node, path)
    whole = None if node is None else Entry(node=node, line=node.start_mark.line + 1, path=path)
    if whole is None or whole.kind != "mapping":
        empty = whole is None or whole.kind == "nothing"
        kind = "is empty" if empty or whole is None else f"is {'a list' if whole.kind == 'list' else 'a single value'}"
        raise UserError(f"the config file {str(path)!r} {kind}; expected a mapping of keys")
    return whole.entries()


def _pairs(node: yaml.Node, path: Path) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    """Keys and values of a mapping, merged ones first."""
    loader = _Loader("")
    try:
        # writes merged keys before the mapping's own, which then take precedence
        loader.flatten_mapping(node)  # type: ignore[arg-type]
    except yaml.YAMLError as error:
        raise UserError(f"the config file {str(path)!r} is not valid YAML: {_problem(error)}") from error
    finally:
        loader.dispose()
    yield from node.value


def _no_key_twice(root: yaml.Node, path: Path) -> None:
    """Raise UserError for a duplicate key in any mapping. Before the first merge, which writes keys into mappings."""
    nodes, visited = [root], {id(root)}
    for node in nodes:
        seen: dict[tuple[str, str], int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            line = key.start_mark.line + 1
            identity = (key.tag, str(key.value))
            if isinstance(key, yaml.ScalarNode) and identity in seen:
                raise UserError(
                    f"the config file {str(path)!r} is not valid YAML: line {line}: duplicate key {key.value!r}, "
                    f"first in line {seen[identity]}"
                )
            seen[identity] = line
        for inner in _inner(node):
            if id(inner) not in visited:
                visited.add(id(inner))
                nodes.append(inner)


def _inner(node: yaml.Node) -> list[yaml.Node]:
    """Elements of a list; keys and values of a mapping."""
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _check(node: yaml.Node, path: Path, seen: set[int], above: tuple[int, ...]) -> None:
    """Raise UserError for a key that is not text, or an alias of what it is in, below a node."""
    if id(node) in above:
        raise UserError(f"{str(path)!r}, line {node.start_mark.line + 1}: the value contains itself through an alias")
    # checked once, however often aliases name it: nested aliases would take exponential time
    if id(node) in seen:
        return
    seen.add(id(node))
    above = (*above, id(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag not in (_STR, _TAG + "merge"):
                found = (
                    f"the key {key.value!r} is of type {key.tag.removeprefix(_TAG)}"
                    if key.tag != _NULL
                    else "empty key"
                )
                found = found if isinstance(key, yaml.ScalarNode) else "the key is a list or a mapping"
                line = key.start_mark.line + 1
                raise UserError(f"{str(path)!r}, line {line}: {found}; expected text (quote it if need be)")
            _check(value, path, seen, above)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check(item, path, seen, above)


def _place(entry: Entry, error: Exception) -> str:
    """The location of a value; the file alone if the error has a line of its own."""
    return repr(str(entry.path)) if getattr(error, "problem_mark", None) else entry.where


def _problem(error: Exception) -> str:
    """PyYAML's message on one line, with the line number first."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    problem = " ".join(str(getattr(error, "problem", None) or error).split())
    context, start = getattr(error, "context", None), getattr(error, "context_mark", None)
    text = f"line {mark.line + 1}: {problem}"
    if "found another document" in problem:
        return f"line {mark.line + 1}: a second document starts; expected one"
    if context:
        text += f" {context}" + (f" that starts in line {start.line + 1}" if start is not None else "")
    if "'\\t'" in problem:
        text += "; indent with spaces; tabs are not allowed"
    elif "mapping values are not allowed" in problem:
        text += "; quote text that contains ': '"
    return text
