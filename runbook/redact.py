"""Secret values, taken out of what is about to be written.

Rule: a secret is the value of a variable whose name says so (``HF_TOKEN``, ``API_KEY``), and the
credentials within a URL. It is found as it stands, without the white space around it, and as JSON,
a URL, hex or base64 would spell it. Values shorter than eight characters are left alone: taking
them out would garble what has nothing to do with them.
"""

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote, quote_plus

from runbook.contract import Json

MIN_LENGTH = 8
"""Characters of a value that can be told from other text."""
LONGEST_LINE = 1 << 16
"""Bytes of an unfinished line that a ``LineFilter`` holds back."""

_NAME = re.compile(
    r"(?:.*_|)(?:API_?)?"
    r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|NOTIFY_URL|WEBHOOK|WEBHOOK_URL)S?",
    re.IGNORECASE,
)
_URL = re.compile(
    r"(?P<scheme>https?://|[a-z][a-z0-9+.-]{0,31}://(?=[^\s/@]*:))[^\s/@\"<>\\]+@",
    re.IGNORECASE,
)
_URL_BYTES = re.compile(_URL.pattern.encode(), re.IGNORECASE)
_MARK = "[secret]"


def is_secret_name(name: str) -> bool:
    """Whether a variable's name says that its value is a secret."""
    return bool(_NAME.fullmatch(name))


def secrets_in(environ: Mapping[str, str]) -> dict[str, str]:
    """Name of each variable that holds a secret worth taking out, and what to look for."""
    return {
        name: _core(value)
        for name, value in environ.items()
        if is_secret_name(name) and len(value) >= MIN_LENGTH
    }


def session_secrets(environ: Mapping[str, str], declared: Mapping[str, str]) -> dict[str, str]:
    """The secrets that a session's processes can see.

    What a runbook hands on by ``${NAME}`` counts too, whatever its name, unless it is a path.

    Args:
        environ: the process's own environment.
        declared: the runbook's ``environment:``, expanded.
    """
    known = set(environ.values())
    handed = {
        name: value
        for name, value in declared.items()
        if value in known and len(value) >= MIN_LENGTH and not value.startswith("/")
    }
    return {**handed, **secrets_in(declared), **secrets_in(environ)}


def has_url_credentials(text: str) -> bool:
    """Whether a URL in the text holds a user's name or password, as ``https://me:pw@host``."""
    return bool(_URL.search(text))


class Redactor:
    """Takes known secrets out of text, bytes and JSON values; ``[secret NAME]`` stands instead."""

    def __init__(self, secrets: Mapping[str, str], nameless: Iterable[str] = ()) -> None:
        """Know the secrets in every spelling.

        Args:
            secrets: name and value of each, as of ``secrets_in``.
            nameless: values besides, for which ``[secret]`` stands.
        """
        marks = {form: _MARK for value in nameless for form in _forms(value)}
        for name, value in secrets.items():
            marks |= dict.fromkeys(_forms(value), f"[secret {name}]")
        # Of two forms at one place the longer holds the other.
        forms = sorted(marks, key=len, reverse=True)
        self._marks = marks
        self._pattern = re.compile("|".join(map(re.escape, forms))) if forms else None
        whole = b"|".join(re.escape(form.encode("utf-8", "surrogateescape")) for form in forms)
        self._pattern_bytes = re.compile(whole) if forms else None

    def text(self, text: str) -> str:
        """The text without secrets."""
        if self._pattern:
            text = self._pattern.sub(lambda m: self._marks[m[0]], text)
        return _URL.sub(rf"\g<scheme>{_MARK}@", text)

    def data(self, data: bytes) -> bytes:
        """The same of bytes in any encoding that holds ASCII."""
        if self._pattern_bytes:
            data = self._pattern_bytes.sub(self._stand_in, data)
        return _URL_BYTES.sub(rb"\g<scheme>" + _MARK.encode() + b"@", data)

    def _stand_in(self, match: re.Match[bytes]) -> bytes:
        return self._marks[match[0].decode("utf-8", "surrogateescape")].encode()

    def value(self, value: Json) -> Json:
        """The same of a JSON value, its keys included."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(key): self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        return value


class LineFilter:
    """Takes secrets out of a stream that comes in pieces: a line is held back until it ends."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What can be written now: whole lines, or an endless one's beginning."""
        self._held += data
        end = max(self._held.rfind(b"\n"), self._held.rfind(b"\r")) + 1
        if len(self._held) - end > LONGEST_LINE:
            end = len(self._held)
        ready, self._held = self._held[:end], self._held[end:]
        return self._redactor.data(ready)

    def close(self) -> bytes:
        """What was held back."""
        ready, self._held = self._held, b""
        return self._redactor.data(ready)


def _core(value: str) -> str:
    """The value without white space around it, which is taken off before a key is sent.

    Each spelling of the whole holds the same spelling of this.
    """
    core = value.strip()
    return core if len(core) >= MIN_LENGTH else value


def _forms(value: str) -> Iterator[str]:
    """Every spelling under which the value is looked for, once each."""
    value = _core(value)
    raw = value.encode("utf-8", "surrogateescape")
    spelled = [
        value,
        json.dumps(value, ensure_ascii=False)[1:-1],
        json.dumps(value)[1:-1],
        ascii(value)[1:-1],
        raw.hex(),
        raw.hex().upper(),
        *_in_urls(raw),
        *_in_base64(raw),
    ]
    yield from dict.fromkeys(form for form in spelled if len(form) >= MIN_LENGTH)


def _in_urls(raw: bytes) -> Iterable[str]:
    for spelled in (quote(raw), quote(raw, safe=""), quote_plus(raw)):
        yield spelled
        yield re.sub("%..", lambda m: m[0].lower(), spelled)


def _in_base64(raw: bytes) -> Iterable[str]:
    """What base64 makes of the value wherever it begins; what depends on its neighbours is cut."""
    for before in range(3):
        padded = bytes(before) + raw
        whole = base64.b64encode(padded).decode().rstrip("=")
        first = -(-before * 8 // 6)
        inner = whole[first : len(padded) * 8 // 6]
        yield inner
        yield inner.translate(str.maketrans("+/", "-_"))
