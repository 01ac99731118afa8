"""The DRY sentinel: phase code that does a second time what has one canonical place. Static.

It reads syntax trees, imports nothing and runs nothing. It sees what is written plainly: a name
built at run time, or a loader hidden in another package, escapes it.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_LOADED: Final = re.compile(r"Auto(Model|Tokenizer|Config)\w*|\w+ForCausalLM|\w*Tokenizer(Fast)?")
_PROMPT: Final = re.compile(r"\b(Instruction|Response|Label):|###END###")

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
    found = [finding for path in sorted(set(sources)) for finding in _in_file(path, home)]
    return tuple(sorted(found, key=lambda f: (f.path, f.line)))


def _in_file(path: Path, home: Path) -> Iterator[Finding]:
    own = path.name if path.resolve().parent == home.resolve() else ""
    if not path.is_file():
        # A pipe would be waited for.
        yield Finding(path, 1, "loader", "unreadable: it is no regular file")
        return
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except (OSError, SyntaxError, ValueError) as error:
        yield Finding(path, getattr(error, "lineno", None) or 1, "loader", f"unreadable: {error}")
        return
    for line, rule, what in _in_tree(tree):
        if own not in _AT_HOME[rule]:
            yield Finding(path, line, rule, what)


def _in_tree(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    prose = _docstrings(tree)
    for node in ast.walk(tree):
        if id(node) not in prose:
            yield from _loads(node)
            yield from _scores_or_prompts(node)


def _loads(node: ast.AST) -> Iterator[tuple[int, str, str]]:
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


def _scores_or_prompts(node: ast.AST) -> Iterator[tuple[int, str, str]]:
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
    return {"A", "B"} <= labels and bool(reads & {"log_softmax", "softmax", "logits", "logprobs"})


def _docstrings(tree: ast.Module) -> set[int]:
    """The ids of the strings that stand alone, as documentation does."""
    alone = (n.value for n in ast.walk(tree) if isinstance(n, ast.Expr))
    return {id(value) for value in alone if isinstance(value, ast.Constant)}
