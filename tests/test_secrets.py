"""No secret is written: what would record one is refused, what others say is filtered."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cli_session import call, write_runbook
from hypothesis import given
from hypothesis import strategies as st

from agent import model_reviewer
from agent.answer import read_answer
from agent.command import reviewer
from agent.provider import Served
from agent.scripted_server import Says, Sends, scripted_server
from runbook.errors import ConfigError
from runbook.redact import (
    LONGEST_LINE,
    LineFilter,
    Redactor,
    is_secret_name,
    secrets_in,
    session_secrets,
)
from runbook.schema import load_plan
from runbook.testing import make_review_request

Capture = pytest.CaptureFixture[str]
CANARY = 'cAnArY-7f/Q+x"9 \u00e9'
OTHER = "second-canary-0123456789"
SECRETS = {"HF_TOKEN": CANARY, "DB_PASSWORD": OTHER}


def spellings(secret: str) -> Iterator[bytes]:
    """How a secret may stand in a file; of base64 the part that no neighbour changes."""
    raw = secret.encode()
    yield from (raw, raw.hex().encode(), raw.hex().upper().encode())
    yield from (quote(secret, safe="").encode(), quote(secret).encode())
    yield from (json.dumps(secret)[1:-1].encode(), ascii(secret)[1:-1].encode())
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for before in range(3):
            yield encode(b"u" * before + raw + b"!!!")[4 : 4 * (len(raw) // 3)]


def leaks(data: bytes, *secrets: str) -> list[bytes]:
    return [found for secret in secrets for found in spellings(secret) if found in data]


@pytest.fixture
def redactor() -> Redactor:
    return Redactor(SECRETS)


# The filter


@pytest.mark.parametrize("before", ["", "a", "ab", "abc", "user:"])
@pytest.mark.parametrize("after", ["", "z", "\n", "@host"])
def test_every_spelling_is_taken_out(redactor: Redactor, before: str, after: str) -> None:
    """Raw, JSON, URL, hex and base64, whatever stands around it; text and bytes alike."""
    whole = (before + CANARY + after).encode()
    texts = [
        whole.decode(),
        json.dumps(whole.decode()),
        ascii(whole.decode()),
        quote(whole.decode(), safe=""),
        quote(whole.decode()),
        whole.hex(),
        whole.hex().upper(),
        base64.b64encode(whole).decode(),
        base64.urlsafe_b64encode(whole).decode(),
    ]
    for text in texts:
        shown = redactor.text(f"<{text}>")
        assert leaks(f"<{text}>".encode(), CANARY)
        assert leaks(shown.encode(), CANARY) == []
        assert "[secret HF_TOKEN]" in shown
        assert redactor.data(f"<{text}>".encode()) == shown.encode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("get https://me:pw@host/x", "get https://[secret]@host/x"),
        ("get https://ghp_x@host/x", "get https://[secret]@host/x"),
        ("redis://:pw@host, HTTP://a:b@c", "redis://[secret]@host, HTTP://[secret]@c"),
        ("postgresql+psycopg://me:pw@host/x", "postgresql+psycopg://[secret]@host/x"),
        ("git@host:x ssh://git@host/x", "git@host:x ssh://git@host/x"),
        ("https://host/x?mail=a@b see c@d", "https://host/x?mail=a@b see c@d"),
        ("<a href=https://host>me@host</a>", "<a href=https://host>me@host</a>"),
        ('["https://host:1","x://a:1","me@host"]', '["https://host:1","x://a:1","me@host"]'),
        ('["https://me:pw@host","a@b"]', '["https://[secret]@host","a@b"]'),
        (r'"\"https://host\"me@host"', r'"\"https://host\"me@host"'),
    ],
)
def test_credentials_within_a_url(text: str, shown: str) -> None:
    """They need no variable to be known by; a plain address stays."""
    assert Redactor({}).text(text) == shown
    assert Redactor({}).data(text.encode()) == shown.encode()


def test_a_value_with_all_that_is_in_it(redactor: Redactor) -> None:
    """Keys, lists and tuples too; numbers and the caller's own value are left as they are."""
    value = {"a": [CANARY, 1, None, {CANARY: (OTHER,)}]}
    shown = {"a": ["[secret HF_TOKEN]", 1, None, {"[secret HF_TOKEN]": ["[secret DB_PASSWORD]"]}]}
    assert redactor.value(value) == shown
    assert value["a"][0] == CANARY


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("HF_TOKEN", True),
        ("OPENAI_API_KEY", True),
        ("APIKEY", True),
        ("aws_secret_access_key", True),
        ("PASSWORD", True),
        ("GOOGLE_CREDENTIALS", True),
        ("MONKEY", False),
        ("HF_HOME", False),
        ("TOKENIZERS_PARALLELISM", False),
        ("KEYBOARD", False),
        ("SSH_AUTH_SOCK", False),
    ],
)
def test_a_secret_is_known_by_its_name(name: str, secret: bool) -> None:
    """The last word of a variable's name says it."""
    assert is_secret_name(name) is secret
    assert secrets_in({name: "long enough"}) == ({name: "long enough"} if secret else {})


def test_short_values_and_paths_are_left_alone() -> None:
    """A value of a few characters stands in much that is none of it, and paths must be readable."""
    assert secrets_in({"API_KEY": "1234567"}) == {}
    environ = {"API_KEY": "1234567", "SOURCE": OTHER, "HOME": "/home/me/x"}
    declared = {"MINE": OTHER, "CACHE": "/home/me/x", "MODE": "a-fixed-word"}
    assert session_secrets(environ, declared) == {"MINE": OTHER}


@pytest.mark.parametrize("around", ["{}\n", "\r\n{}\r\n", " {} ", "\t{}"])
def test_white_space_around_a_secret_does_not_count(around: str, folder: Path) -> None:
    """A file read whole ends in a line break, which is taken off before a key is sent."""
    environ = {"HF_TOKEN": around.format(CANARY), "SOURCE": around.format(OTHER)}
    known = session_secrets(environ, {"MINE": environ["SOURCE"]})
    redactor = Redactor(known)
    for whole in (f"<{CANARY}|{OTHER}>", f"<{environ['HF_TOKEN']}|{environ['SOURCE']}>"):
        raw = whole.encode()
        texts = [whole, json.dumps(whole), quote(whole), raw.hex(), base64.b64encode(raw).decode()]
        for text in texts:
            assert leaks(text.encode(), CANARY, OTHER)
            assert leaks(redactor.text(text).encode(), CANARY, OTHER) == []
        assert leaks(LineFilter(redactor).feed(raw + b"\n"), CANARY, OTHER) == []
    put(folder, "a.yaml", "params", "note", value=f"Bearer {CANARY}")
    with pytest.raises(ConfigError, match="the environment variable 'HF_TOKEN' stands here"):
        load_plan(folder / "runbook.yaml", environ=environ)


@given(st.lists(st.integers(1, 40), max_size=30), st.text(st.sampled_from("ab\n\r ")))
def test_a_stream_in_pieces_is_filtered_like_the_whole(cuts: list[int], around: str) -> None:
    """Wherever the pieces end, nothing is lost and no secret slips through between two."""
    redactor = Redactor(SECRETS)
    data = f"{around}\n{CANARY} {around}{OTHER}\r{around}{CANARY}".encode()
    stream, written, rest = LineFilter(redactor), b"", data
    for size in cuts:
        written += stream.feed(rest[:size])
        rest = rest[size:]
    written += stream.feed(rest) + stream.close()
    assert written == redactor.data(data)


def test_a_line_without_end_is_not_held_for_ever() -> None:
    """A stream that never ends a line takes a bounded memory."""
    stream = LineFilter(Redactor(SECRETS))
    assert stream.feed(b"x" * LONGEST_LINE) == b""
    assert len(stream.feed(b"x")) == LONGEST_LINE + 1


# What would be recorded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_runbook(tmp_path, {"batches": 1, "note": "", "metrics": {"score": [0.1, 0.9]}})
    return tmp_path


def put(folder: Path, name: str, *path: Any, value: object) -> None:
    """Set one value of a document."""
    document = json.loads((folder / name).read_text())
    place = document
    for key in path[:-1]:
        place = place.setdefault(key, {}) if isinstance(place, dict) else place[key]
    place[path[-1]] = value
    (folder / name).write_text(json.dumps(document))


def refused(folder: Path, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_plan(folder / "runbook.yaml", overrides, environ=SECRETS)
    assert leaks(str(caught.value).encode(), *SECRETS.values()) == []
    return caught.value


def test_a_secret_in_clear_is_refused_without_quoting_it(folder: Path) -> None:
    """In a runbook, a spec or an override it would go into the journal, so nothing starts."""
    command = ["ask", f"--key={OTHER}"]
    put(folder, "runbook.yaml", "reviewer", value={"provider": "command", "command": command})
    put(folder, "a.yaml", "params", "note", value=f"Bearer {CANARY}")
    error = refused(folder)
    assert "the value of the environment variable 'DB_PASSWORD' stands here" in str(error)
    assert "the value of the environment variable 'HF_TOKEN' stands here" in str(error)
    assert f"{folder / 'runbook.yaml'}:1:" in str(error)
    assert f"{folder / 'a.yaml'}:1:" in str(error)
    assert "--set a.note=[secret DB_PASSWORD]" in refused(folder, f"a.note={OTHER}").where


def test_url_credentials_in_clear_are_refused_without_quoting_them(folder: Path) -> None:
    """Though no variable tells what they are; under environment they go to the steps alone."""
    url = "https://me:a-third-canary@host/simple"
    put(folder, "runbook.yaml", "environment", "PIP_INDEX_URL", value=url)
    assert load_plan(folder / "runbook.yaml", environ={}).environment == {"PIP_INDEX_URL": url}
    assert "a-third" not in str(refused(folder, f"a.note={url}"))
    put(folder, "a.yaml", "params", "note", value=url)
    error = refused(folder)
    assert error.what == "a URL with credentials stands here, and would be recorded"
    assert "a-third" not in str(error)


def test_a_path_is_made_of_no_secret(folder: Path) -> None:
    """Paths are shown in errors and reports; the steps get secrets by their environment."""
    asked = refused(folder, "model.source={path: '${HF_TOKEN}'}")
    assert asked.what == "by its name 'HF_TOKEN' is a secret, and a path is recorded"
    put(folder, "runbook.yaml", "model", "source", value={"path": "${HF_TOKEN}/model"})
    put(folder, "a.yaml", "files", value={"rows": "${DB_PASSWORD}/rows"})
    error = refused(folder)
    assert error.what == "by its name 'HF_TOKEN' is a secret, and a path is recorded"
    assert "by its name 'DB_PASSWORD' is a secret" in str(error)


# What a reviewer says


def test_a_reviewers_words_are_filtered_before_they_are_kept(
    tmp_path: Path, redactor: Redactor
) -> None:
    """What it prints on both streams, and the reason that it gives, in the clear and in base64."""
    hidden = base64.b64encode(f"user:{CANARY}".encode()).decode()
    answer = {"action": "stop", "reason": f"{CANARY} {hidden} {OTHER}", "changes": {}}
    code = f"import sys; sys.stdin.read(); print({json.dumps(answer)!r})\n"
    code += f"sys.stderr.write('key {OTHER} https://me:pw@host ' + {CANARY!r})"
    asked = make_review_request(tmp_path)
    decision = reviewer([sys.executable, "-c", code], 30, redactor.data)(asked)
    assert decision is not None
    assert "[secret HF_TOKEN]" in decision.reason
    written = {path.name: path.read_bytes() for path in (tmp_path / asked.path).iterdir()}
    told = b"".join(written.values()) + decision.reason.encode()
    assert leaks(told, CANARY, OTHER, "me:pw@") == []
    assert b"[secret DB_PASSWORD]" in written["stderr.log"]
    assert read_answer(written["response.txt"], asked)


def test_a_key_with_a_line_break_is_kept_out_of_what_a_model_brings(tmp_path: Path) -> None:
    """A server that quotes the key it was sent, and a model that says it, leave none on disk."""
    environ = {"THE_API_KEY": f"{OTHER}\n"}
    redact = Redactor(secrets_in(environ)).data
    declared = {"provider": "openai", "model": "tiny", "api_key_env": "THE_API_KEY"}
    limits = {"timeout_s": 20.0, "max_output_tokens": 500, "context_tokens": 20_000}
    said: dict[str, Any] = {"action": "stop", "reason": f"the key is {OTHER}", "changes": {}}
    said |= {"concerns": [], "action_items": [], "confidence": 0.5}
    refusal = json.dumps({"error": {"message": f"no such key: {OTHER}"}}).encode()
    with scripted_server(Sends(refusal, 401), Says(json.dumps(said))) as server:
        served = Served.of({**declared, **limits, "base_url": server.base_url("openai")})
        asked = make_review_request(tmp_path)
        ask = model_reviewer.reviewer([served], redact=redact, environ=environ)
        assert ask(asked) is None
        assert "HTTP 401" in (tmp_path / asked.path / "error.txt").read_text()
        decision = ask(asked)
        assert server.received[0].headers["authorization"] == f"Bearer {OTHER}"
    assert decision is not None
    assert decision.reason == "the key is [secret THE_API_KEY]"
    written = b"".join(path.read_bytes() for path in (tmp_path / asked.path).iterdir())
    assert leaks(written, OTHER) == []


# A whole session


def test_a_session_writes_no_secret_that_it_was_given(
    folder: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step and reviewer have them in their environment; no byte of the workspace does.

    Both say so by writing a file outside it.
    """
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    seen = folder / "seen"
    (folder / "theirs.py").write_text(
        "import os\nfrom pathlib import Path\nfrom runbook.testing import fake_phase\n"
        f"def run(request):\n    names = ('HF_TOKEN', 'MINE', 'INDEX')\n"
        f"    Path({str(seen)!r}).write_text(' '.join(map(os.environ.__getitem__, names)))\n"
        "    return fake_phase(request)\n"
    )
    url = "https://me:a-third-canary@host/simple"
    put(folder, "runbook.yaml", "environment", value={"MINE": "${DB_PASSWORD}", "INDEX": url})
    answer = '{"action": "retry", "reason": "again", "changes": {}}'
    command = ["sh", "-c", f"test \"${{HF_TOKEN}}\" && cat > /dev/null && echo '{answer}'"]
    put(folder, "runbook.yaml", "reviewer", value={"provider": "command", "command": command})
    step = json.loads((folder / "runbook.yaml").read_text())["phases"][0]["steps"][0]
    step |= {"function": "theirs:run", "retries": 1, "review_after": 1}
    put(folder, "runbook.yaml", "phases", 0, "steps", 0, value=step)
    workspace = folder / "ws"
    ran = call(capfd, "run", folder / "runbook.yaml", "--workspace", workspace)
    told = call(capfd, "status", "--json", "--workspace", workspace)
    assert ran.code == 0, ran.err
    assert seen.read_text() == f"{CANARY} {OTHER} {url}"
    files = [path for path in workspace.rglob("*") if path.is_file()]
    assert {"journal.jsonl", "report.md", "decision.json"} <= {path.name for path in files}
    for path in files:
        assert leaks(path.read_bytes(), CANARY, OTHER, "a-third-canary") == [], path
    screen = f"{ran.out}{ran.err}{told.out}{told.err}".encode()
    assert leaks(screen, CANARY, OTHER, "a-third-canary") == []


def test_the_search_finds_what_it_looks_for() -> None:
    """A leak in any spelling would be seen by the tests above."""
    coded = base64.b64encode(b"user:" + CANARY.encode() + b"@host")
    for data in (CANARY.encode(), CANARY.encode().hex().encode(), coded, quote(CANARY).encode()):
        assert leaks(b"..." + data + b"...", CANARY)
    assert leaks(b"nothing of the kind", CANARY, OTHER) == []


def test_filtering_needs_nothing_heavy() -> None:
    """It runs at start-up, before anything else is imported."""
    code = "import sys, runbook.redact\nassert 'pydantic' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})
