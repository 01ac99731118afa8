"""The DRY sentinel: phase code that does a second time what has one canonical place. Static.

It reads syntax trees, imports nothing and runs nothing. It sees what is written plainly: a name
built at run time, or a loader hidden in another package, escapes it.

It is asked before every step, so a file is read again only where it changed, and parsed only where
its text could spell something that a rule looks for. One that can then not be parsed, or not be
read at all, is a finding.
"""

import ast
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runbook.regular_files import open_to_read

_LOADED: Final = re.compile(r"Auto(Model|Tokenizer|Config)\w*|\w+ForCausalLM|\w*Tokenizer(Fast)?")
_PROMPT: Final = re.compile(r"\b(Instruction|Response|Label):|###END###")
_NAMES: Final = (
    "transformers",
    "peft",
    "from_pretrained",
    "chat_template",
    "setattr",
    "label_logps",
    "softmax",
    "logits",
    "logprobs",
)
"""A part of each name that a rule cannot do without. An identifier has one spelling in ASCII."""
_TEXTS: Final = ("Instruction:", "Response:", "Label:", "###END###")
"""What ``_PROMPT`` finds."""
_LOOKED_AT: Final = (ast.ImportFrom, ast.Attribute, ast.Call, ast.Constant)
_LOGPROBS: Final = frozenset({"log_softmax", "softmax", "logits", "logprobs"})
_Found = tuple[int, str, str]
"""Line, rule, what."""
_SEEN: Final[dict[Path, tuple[tuple[int, ...], tuple[_Found, ...]]]] = {}
"""Path -> the version that was read, and what was found in it."""
_SETTLED_NS: Final = 1_000_000_000
"""A file written to twice within one tick of its volume's clock may keep its times."""


def _spelled(text: str) -> str:
    """A pattern for source that may spell a text: whole, or cut by a literal's end or an escape."""
    cut = "|".join(re.escape(text[:end]) for end in range(len(text) - 1, 0, -1))
    return rf"""{re.escape(text)}|(?:{cut})["'\\]"""


_TRACE: Final = re.compile(
    "|".join(
        (
            # Bytes that may be other characters than they seem.
            r"[^\x00-\x7f]|\A[^\n]*\n?[^\n]*coding[:=]|\\[0-7xuUN]",
            *_NAMES,
            *map(_spelled, _TEXTS),
        )
    ).encode()
)
"""Found in the bytes of every file in which a rule finds something."""

CANONICAL: Final[Mapping[str, str]] = {
    "loader": "phases.base_model.load_base_model",
    "template": "phases.base_model",
    "scorer": "phases.critic.judge_instructions or judge_pairs",
    "prompt": "phases.prompts",
}
"""Rule -> the one place for what it looks for."""

_AT_HOME: Final[Mapping[str, frozenset[str]]] = {
    "loader": frozenset({"base_model.py"}),
    "template": frozenset({"base_model.py"}),
    "scorer": frozenset({"critic.py"}),
    "prompt": frozenset({"prompts.py", "clean.py", "fake_engine.py"}),
}
"""Rule -> the files of ``phases/`` that it does not hold for."""


@dataclass(frozen=True)
class Finding:
    path: Path
    line: int
    rule: str
    found: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.found}; use {CANONICAL[self.rule]}"


def find_violations(sources: Iterable[Path], home: Path) -> tuple[Finding, ...]:
    """Every finding in these files, in order of file and line.

    Args:
        sources: Python files; one that cannot be parsed is a finding of its own.
        home: the project's ``phases`` folder, whose canonical files are exempt by rule.
    """
    home = home.resolve()
    found = [finding for path in sorted(set(sources)) for finding in _in_file(path, home)]
    return tuple(sorted(found, key=lambda f: (f.path, f.line)))


def _in_file(path: Path, home: Path) -> Iterator[Finding]:
    try:
        found = _in_content(path)
    except (OSError, SyntaxError, ValueError) as error:
        yield Finding(path, getattr(error, "lineno", None) or 1, "loader", f"unreadable: {error}")
        return
    if not found:
        return
    beside = path.parent == home and not path.is_symlink()
    own = path.name if beside or path.resolve().parent == home else ""
    for line, rule, what in found:
        if own not in _AT_HOME[rule]:
            yield Finding(path, line, rule, what)


def _in_content(path: Path) -> tuple[_Found, ...]:
    """Raises OSError, SyntaxError or ValueError for what is no readable Python."""
    known = _SEEN.get(path)
    if known and known[0] == _version(path.stat()):
        return known[1]
    with open_to_read(path) as file:
        status = os.fstat(file.fileno())
        version = _version(status)
        found = _in_source(file.read(), str(path))
    if time.time_ns() - status.st_ctime_ns > _SETTLED_NS:
        _SEEN[path] = version, found
    return found


def _in_source(data: bytes, name: str) -> tuple[_Found, ...]:
    """Raises SyntaxError or ValueError for what is no Python and looks as if it mattered."""
    return tuple(_in_tree(ast.parse(data, filename=name))) if _TRACE.search(data) else ()


def _version(status: os.stat_result) -> tuple[int, ...]:
    """What differs once a file was written to or replaced."""
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def _in_tree(tree: ast.Module) -> Iterator[_Found]:
    nodes = _nodes(tree)
    prose = _docstrings(nodes)
    reads = any(isinstance(node, ast.Attribute) and node.attr in _LOGPROBS for node in nodes)
    looked_at = (*_LOOKED_AT, ast.FunctionDef) if reads else _LOOKED_AT
    for node in nodes:
        if isinstance(node, looked_at) and id(node) not in prose:
            yield from _loads(node)
            yield from _scores_or_prompts(node)


def _nodes(tree: ast.Module) -> list[ast.AST]:
    """As ``ast.walk`` gives them, in a third of its time."""
    found: list[ast.AST] = [tree]
    for node in found:
        for name in node._fields:
            value = getattr(node, name, None)
            if isinstance(value, list):
                found += [item for item in value if isinstance(item, ast.AST)]
            elif isinstance(value, ast.AST):
                found.append(value)
    return found


def _loads(node: ast.AST) -> Iterator[_Found]:
    match node:
        case ast.ImportFrom(module=str(module), names=names) if _is_hub(module):
            for name in names:
                if name.name == "pipeline" or _LOADED.fullmatch(name.name):
                    yield node.lineno, "loader", f"imports {name.name}"
        case ast.Attribute(attr="from_pretrained"):
            yield node.lineno, "loader", "calls from_pretrained"
        case ast.Attribute(attr="apply_chat_template"):
            yield node.lineno, "template", "applies a chat template"
        case ast.Attribute(attr="chat_template", ctx=ast.Store()):
            yield node.lineno, "template", "sets chat_template"
        case ast.Call(func=ast.Name(id="setattr"), args=[_, ast.Constant("chat_template"), *_]):
            yield node.lineno, "template", "sets chat_template"


def _scores_or_prompts(node: ast.AST) -> Iterator[_Found]:
    match node:
        case ast.Call(func=ast.Attribute(attr="label_logps")):
            yield node.lineno, "scorer", "reads label probabilities"
        case ast.FunctionDef() if _scores(node):
            yield node.lineno, "scorer", f"{node.name} scores A against B"
        case ast.Constant(value=str(text)) if _PROMPT.search(text):
            yield node.lineno, "prompt", f"writes a prompt {text[:30]!r}"


def _is_hub(module: str) -> bool:
    return module.split(".", maxsplit=1)[0] in {"transformers", "peft"}


def _scores(function: ast.FunctionDef) -> bool:
    """Whether a function takes log-probabilities and names both labels."""
    nodes = list(ast.walk(function))
    texts = (n.value for n in nodes if isinstance(n, ast.Constant))
    labels = {text.strip() for text in texts if isinstance(text, str)}
    reads = {n.attr for n in nodes if isinstance(n, ast.Attribute)}
    return {"A", "B"} <= labels and bool(reads & _LOGPROBS)


def _docstrings(nodes: Iterable[ast.AST]) -> set[int]:
    """The ids of the strings that stand alone, as documentation does."""
    alone = (n.value for n in nodes if isinstance(n, ast.Expr))
    return {id(value) for value in alone if isinstance(value, ast.Constant)}
