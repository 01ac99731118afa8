"""Refuses secrets in clear where they would be recorded: journal, manifests and reports hold them.

All of a runbook but ``environment:``, all of a spec and each override is recorded as it stands.
What is refused is never quoted.
"""

from collections.abc import Iterator, Mapping, Sequence

from runbook.contract import Json
from runbook.problems import Problem
from runbook.redact import Redactor, has_url_credentials, secrets_in
from runbook.yaml_source import Source, ValuePath

_UNRECORDED = "environment"
"""The runbook's section that goes to the steps' processes and nowhere else."""


def check_secrets(sources: Sequence[Source], environ: Mapping[str, str]) -> Iterator[Problem]:
    """Texts that hold the value of a secret variable, or a URL with credentials.

    Args:
        sources: the runbook and the specs it names.
        environ: where the secrets stand.
    """
    secrets = secrets_in(environ)
    for source in sources:
        for path, text in _texts(source.value(), ()):
            wrong = _wrong(text, secrets)
            if wrong:
                yield source.problem(path, *wrong)


def check_overrides(args: Sequence[str], environ: Mapping[str, str]) -> Iterator[Problem]:
    """The same of ``--set`` arguments."""
    secrets = secrets_in(environ)
    shown = Redactor(secrets)
    for arg in args:
        wrong = _wrong(arg, secrets)
        if wrong:
            yield Problem(f"--set {shown.text(arg)}", 0, 0, *wrong)


def _wrong(text: str, secrets: Mapping[str, str]) -> tuple[str, str] | None:
    name = next((name for name, value in secrets.items() if value in text), None)
    if name is not None:
        what = f"the value of the environment variable '{name}' stands here, and would be recorded"
        return what, "take it out; steps and reviewers have the variable in their environment"
    if has_url_credentials(text):
        what = "a URL with credentials stands here, and would be recorded"
        return what, f"take them out, or write the URL under {_UNRECORDED}:"
    return None


def _texts(value: Json, path: ValuePath) -> Iterator[tuple[ValuePath, str]]:
    """Each text with the path of the value it is in; a key counts for its value."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _texts(item, (*path, i))
    elif isinstance(value, dict):
        for key, item in value.items():
            if path or key != _UNRECORDED:
                yield (*path, key), key
                yield from _texts(item, (*path, key))
