"""runbook.yaml_source: what is read, where it stands, and what is refused."""

import contextlib
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook.errors import ConfigError
from runbook.problems import Problem, printable, quoted, suggestion, to_error
from runbook.yaml_source import MAX_BYTES, parse_yaml, read_yaml
from runbook.yaml_tree import MAX_DEPTH, MAX_NODES


def refused(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "f.yaml")
    assert caught.value.code == 2
    assert caught.value.fix
    return caught.value


def test_plain_values() -> None:
    """Scalars, lists and mappings become the JSON values that YAML 1.2 says."""
    text = "a: [1, 0x10, 1_000, 1.5, 2e-4, true, null, ~, yes, 'x', 2024-01-01, 1:30]\nb: {c: ''}\n"
    expected = {
        "a": [1, 16, 1000, 1.5, 2e-4, True, None, None, "yes", "x", "2024-01-01", "1:30"],
        "b": {"c": ""},
    }

    assert expected == parse_yaml(text, "f").value()


def test_positions() -> None:
    """Keys and values know their line and column, counted from 1."""
    source = parse_yaml("a: 1\nb:\n  - x\n  - {c:  true}\n", "f")

    assert source.problem(("b", 1, "c"), "w", "x").where == "f:4:10"
    assert source.problem(("b", 1, "c"), "w", "x", key=True).where == "f:4:6"
    assert source.problem(("b", 0), "w", "x").where == "f:3:5"
    assert source.problem((), "w", "x").where == "f:1:1"


def test_position_of_what_is_not_there() -> None:
    """A path that leads nowhere stands at the nearest value above it."""
    source = parse_yaml("a: 1\nb: {c: 2}\n", "f")

    assert source.problem(("b", "d", "e"), "w", "x").where == "f:2:4"
    assert source.problem(("b", "d"), "w", "x", key=True).where == "f:2:4"


def test_alias_is_a_copy() -> None:
    """An alias stands for its anchor's value, and the two share nothing afterwards."""
    value = parse_yaml("a: &x [1]\nb: *x\n", "f").value()
    value["a"].append(2)

    assert value == {"a": [1, 2], "b": [1]}


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("a: 1\nb: 2\na: 3\n", "3:1", "the key 'a' stands twice, first on line 1"),
        ("a: {b: 1, b: 2}\n", "1:11", "the key 'b' stands twice, first on line 1"),
        ("a: !!python/object/apply:os.system [x]\n", "1:4", "tag !!python/object/apply:os.system"),
        ("a: !mine x\n", "1:4", "the tag !mine is not allowed"),
        ("a: ! x\n", "1:4", "the tag ! is not allowed"),
        ("a: !!str 5\n", "1:4", "the tag !!str is not allowed"),
        ("a: [*x]\n", "1:5", "the alias '*x' has no finished anchor"),
        ("a: &x [*x]\n", "1:8", "the alias '*x' has no finished anchor"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "3:3", "merge keys (<<) are not used here"),
        ("", "1:1", "the document is empty"),
        ("# nothing\n", "1:1", "the document is empty"),
        ("---\n", "1:1", "the document is empty"),
        ("a: 1\n---\nb: 2\n", "2:1", "a second document starts here"),
        ("%YAML 1.1\n---\na: yes\n", "2:1", "directives other than %YAML 1.2"),
        ("%TAG ! tag:x,2000:\n---\na: 1\n", "2:1", "directives other than %YAML 1.2"),
        ("a: .nan\n", "1:4", "'.nan' is not a finite number"),
        ("a: [1, -.inf]\n", "1:8", "'-.inf' is not a finite number"),
        ("a: 1e999\n", "1:4", "'1e999' is not a finite number"),
        ("a: 99999999999999999999\n", "1:4", "the integer '99999999999999999999' is too large"),
        (f"a: {'9' * 5000}\n", "1:4", "is not a number"),
        ("a: 0x_\n", "1:4", "'0x_' is not a number"),
        ("1: a\n", "1:1", "the key 1 is not text"),
        ("null: a\n", "1:1", "the key null is not text"),
        ("true: a\n", "1:1", "the key true is not text"),
        ("? [a]\n: b\n", "1:3", "a key must be text"),
        ("x: &a y\n? *a\n: b\n", "2:3", "a key must be text"),
        ("a: [1\nb: 2\n", "2:2", "not valid YAML"),
        ("\ta: b\n", "1:1", "not valid YAML"),
        ('a: "\\UFFFFFFFF"\n', "1:1", "not valid YAML"),
        ("a: 1\nb: x\x1by\n", "2:5", "character U+001B is not allowed"),
        ('a: "x\\0"\n', "1:4", "holds a character no file may hold"),
        ('a: "\\ud800"\n', "1:4", "'\\ud800' holds a character no file may hold"),
    ],
)
def test_refused(text: str, where: str, what: str) -> None:
    """What could surprise is refused at its line and column, with a fix."""
    error = refused(text)

    assert error.where == f"f.yaml:{where}"
    assert what in error.what


def test_control_characters_are_escaped() -> None:
    """A quoted key cannot move the terminal's cursor or turn its text around."""
    error = refused('"\\e[2J\u202e": 1\n"\\e[2J\u202e": 2\n')

    assert "\\x1b[2J\\u202e" in str(error)
    assert "\x1b" not in str(error)


def test_alias_bomb() -> None:
    """Aliases that multiply are given up at once, where the bound is crossed."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    start = time.monotonic()

    error = refused("\n".join(lines))

    assert error.where == "f.yaml:5:10"
    assert f"more than {MAX_NODES} values, aliases expanded" in error.what
    assert time.monotonic() - start < 5


def test_nesting_through_aliases() -> None:
    """Depth counts through aliases, so that no walk over the values runs out of stack."""
    half = MAX_DEPTH // 2
    layer = "[" * half + "{}" + "]" * half
    text = f"- &a {layer.format('1')}\n- {layer.format('*a')}\n"

    assert "nested deeper" in refused(text).what
    assert "nested deeper" in refused("[" * 1000).what


def test_nodes_up_to_the_bound() -> None:
    """As many values as the bound are read; one more is refused."""
    text = "- 1\n" * (MAX_NODES - 1)

    assert len(parse_yaml(text, "f").value()) == MAX_NODES - 1
    assert refused(text + "- 1\n").where == f"f.yaml:{MAX_NODES}:3"


def test_files_that_are_none(tmp_path: Path) -> None:
    """Missing files, folders and pipes are refused without being waited for."""
    os.mkfifo(tmp_path / "pipe")
    cases = {"none": "does not exist", ".": "is a directory", "pipe": "is not a regular file"}

    for name, what in cases.items():
        with pytest.raises(ConfigError) as caught:
            read_yaml(tmp_path / name)
        assert caught.value.where == f"{tmp_path / name}:1:1"
        assert what in caught.value.what
        assert caught.value.fix


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_impossible_names(name: str) -> None:
    """A name that no file can have is a configuration error like any other."""
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(Path(name))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    """A file that may not be read is refused with the remedy."""
    path = tmp_path / "f.yaml"
    path.write_text("a: 1\n")
    path.chmod(0)

    with pytest.raises(ConfigError, match="may not be read"):
        read_yaml(path)


def test_file_size(tmp_path: Path) -> None:
    """A file of the largest size is read; one byte more is refused."""
    path = tmp_path / "f.yaml"
    head = b"a: 1 #"
    path.write_bytes(head + b"x" * (MAX_BYTES - len(head)))
    assert read_yaml(path).value() == {"a": 1}

    path.write_bytes(head + b"x" * (MAX_BYTES - len(head) + 1))
    with pytest.raises(ConfigError, match="larger than 1048576 bytes") as caught:
        read_yaml(path)
    assert caught.value.where == f"{path}:1:1"


def test_not_utf8(tmp_path: Path) -> None:
    """The first byte that is not UTF-8 is shown where it stands, in characters."""
    path = tmp_path / "f.yaml"
    path.write_bytes("a: 1\nb: ä".encode() + b"\xff\n")

    with pytest.raises(ConfigError, match="byte 0xff is not UTF-8") as caught:
        read_yaml(path)
    assert caught.value.where == f"{path}:2:5"


def test_byte_order_mark(tmp_path: Path) -> None:
    """A byte order mark, as some editors leave it, is passed over."""
    path = tmp_path / "f.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")

    assert read_yaml(path).value() == {"a": 1}


@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!|>'\"%@#,? \n\t\\x0~.1e"), max_size=60))
def test_any_text(text: str) -> None:
    """Any text at all is either read or refused as a configuration error."""
    with contextlib.suppress(ConfigError):
        parse_yaml(text, "f")


def test_problems_in_one_error() -> None:
    """Problems are told once each, by file and position, and the first is the error's own."""
    late, early = Problem("a", 9, 1, "late", "y"), Problem("a", 2, 7, "early", "x")
    other = Problem("b", 1, 1, "other", "z")

    error = to_error([late, early, other, late])

    assert (error.where, error.what) == ("a:2:7", "early")
    expected = "a:2:7: early\n  fix: x\na:9:1: late\n  fix: y\nb:1:1: other\n  fix: z"
    assert expected == str(error)


def test_quoting() -> None:
    """Values are quoted as YAML writes them, escaped and cut short."""
    shown = [quoted(v) for v in (None, True, 1.5, "a\nb", [1], {"a": 1})]

    assert shown == ["null", "true", "1.5", "'a\\nb'", "a list", "a mapping"]
    assert printable("x" * 100) == "x" * 77 + "..."


def test_suggestions() -> None:
    """A near name is suggested; else the names there are; else that there is none."""
    assert suggestion("sede", ["seed", "name"]) == "did you mean 'seed'?"
    assert suggestion("zzz", ["seed", "name"]) == "use one of: seed, name"
    assert suggestion("zzz", []) == "take it away; nothing is known here"
    assert suggestion("!", [f"n{i}" for i in range(30)]).endswith("n19, ...")
