"""``gate calibrate`` and ``gate label``: instruments measured without a session, rows by hand."""

import io
import json
from pathlib import Path

import pytest
from cli_session import call
from test_kill_phases import write_runbook

from phases import clean
from phases.certificates import sign
from phases.detectors import ALL, DETECTORS, SHIPPED, load_detector_probes
from phases.labelling import KINDS
from phases.probes import ProbeInstruction, ProbePair, load_probes
from phases.scorer_controls import load_labelled

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> "Typed":
    return Typed(monkeypatch)


class Typed:
    """What a person types, piped in."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch

    def __call__(self, *keys: str) -> None:
        self._patch.setattr("sys.stdin", io.StringIO("".join(f"{key}\n" for key in keys)))


def rows_file(tmp_path: Path, *texts: str) -> Path:
    path = tmp_path / "candidates.jsonl"
    path.write_text("".join(json.dumps({"raw": text, "fate": "kept"}) + "\n" for text in texts))
    return path


# --- calibrate


def test_the_detectors_are_measured_here_and_now(tmp_path: Path, capfd: Capture) -> None:
    """A line an instrument, a signed certificate on stdout, and where critics are measured."""
    found = call(capfd, "gate", "calibrate", "--workspace", tmp_path, "--json")
    assert found.code == 0
    (document,) = found.lines
    assert document == sign(document["instruments"])
    assert [*document["instruments"]] == [*ALL]
    for name in ALL:
        (line,) = [x for x in found.err.splitlines() if x.split()[:1] == [name]]
        assert line.endswith("within its bounds")
    assert "a session's step 'calibration' does it (phases.calibration:run)" in found.err
    assert [*tmp_path.iterdir()] == []


def test_a_detector_below_its_bound_is_told_and_ends_with_3(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others stay as they are."""
    monkeypatch.setattr(clean, "is_runaway", lambda _: False)
    found = call(capfd, "gate", "calibrate", "--workspace", tmp_path)
    assert found.code == 3
    bad = [x.split()[0] for x in found.err.splitlines() if x.endswith("BELOW ITS BOUND")]
    assert bad == ["runaway"]


def test_own_rows_and_the_own_gate_of_a_runbook_count(tmp_path: Path, capfd: Capture) -> None:
    """Twenty labelled rows that the detector gets wrong bring it below its bound."""
    book = write_runbook(tmp_path)
    given = ("gate", "calibrate", "--spec", book, "--workspace", tmp_path / "ws")
    assert call(capfd, *given).code == 0
    spec = json.loads((tmp_path / "calibration.yaml").read_text())
    spec["files"]["probe_runaway"] = "mine.jsonl"
    (tmp_path / "calibration.yaml").write_text(json.dumps(spec))
    rows = [{"id": f"m{n}", "raw": f"Answer: {n}", "label": False} for n in range(30)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = call(capfd, *given)
    assert found.code == 3
    assert "the gate of step 'calibration': runaway_specificity: " in found.err
    (tmp_path / "mine.jsonl").write_text('{"id": "r001", "raw": "x", "label": false}\n')
    found = call(capfd, *given)
    assert found.code == 2
    assert "the id 'r001' stands twice" in found.err


def test_a_sessions_certificate_is_told_to_hold_or_to_be_stale(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held against the code as it is now."""
    book = write_runbook(tmp_path)
    assert call(capfd, "run", book, "--workspace", tmp_path / "ws").code == 0
    given = ("gate", "calibrate", "--workspace", tmp_path / "ws")
    found = call(capfd, *given)
    assert found.err.count("the session's certificate holds") == len(ALL)
    monkeypatch.setattr(clean, "is_cut_off", lambda text: bool(text) and clean._opens_more(text))
    assert call(capfd, *given).err.count("the session's certificate is STALE") == 1


# --- label


def test_what_is_labelled_is_kept_and_not_asked_again(
    tmp_path: Path, capfd: Capture, typed: Typed
) -> None:
    """A skipped row comes again, a labelled one does not; the file can be calibrated with."""
    file = rows_file(tmp_path, " Rome", " no no no no", " Oslo", " Rome")
    given = ("gate", "label", file, "--kind", "runaway")
    typed("n", "s", "q")
    first = call(capfd, *given)
    assert first.code == 0
    assert "1 of 3" in first.err
    mine = tmp_path / "candidates.runaway.jsonl"
    assert [json.loads(x)["raw"] for x in mine.read_text().splitlines()] == [" Rome"]
    typed("what?", "y", "n")
    second = call(capfd, *given)
    assert "1 of 2" in second.err
    labelled = [json.loads(x) for x in mine.read_text().splitlines()]
    assert [(r["raw"], r["label"]) for r in labelled] == [
        (" Rome", False),
        (" no no no no", True),
        (" Oslo", False),
    ]
    typed()
    assert "0 rows labelled now, 3 in" in call(capfd, *given).err
    detector = DETECTORS["runaway"]
    merged = load_detector_probes(detector, mine)
    assert len(merged) == len(load_detector_probes(detector)) + 3


ROW = {
    "id": "list-001",
    "raw": " Rome",
    "prompt": "Name a city.",
    "allowed": "rome",
    "text": "Name a city.",
    "fed": "Name a city.",
    "earlier": "Name a town.",
    "instruction": "Name a city.",
    "response": "Rome",
    "held_out": "Name a river.",
}


@pytest.mark.parametrize("kind", [*KINDS])
def test_every_instrument_takes_rows_by_hand(
    tmp_path: Path, capfd: Capture, typed: Typed, kind: str
) -> None:
    """Shown in plain text, asked in its own words, kept as its own file has them."""
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROW) + "\n")
    typed("y")
    found = call(capfd, "gate", "label", file, "--kind", kind)
    assert found.code == 0
    assert KINDS[kind].question in found.err
    named, step = KINDS[kind].named, KINDS[kind].step
    assert f"Name it in the spec of the step '{step}': files: {{{named}: PATH}}" in found.err
    (line,) = (tmp_path / f"rows.{kind}.jsonl").read_text().splitlines()
    assert KINDS[kind].model.model_validate_json(line)
    typed("n")
    assert "0 rows labelled now, 1 in" in call(capfd, "gate", "label", file, "--kind", kind).err


def test_what_is_labelled_for_judges_and_scorer_stands_beside_the_shipped_rows(
    tmp_path: Path, capfd: Capture, typed: Typed
) -> None:
    """On the half that judges; a wrong answer of the right kind counts as a hard one."""
    file = tmp_path / "rows.jsonl"
    first = {field: ROW[field] for field in ("id", "instruction", "response")}
    other = {**first, "instruction": "Name a town.", "response": " ".join(["word"] * 30)}
    file.write_text(f"{json.dumps(first)}\n{json.dumps(other)}\n")
    for kind in ("instructions", "pairs", "scorer"):
        typed("w" if kind == "pairs" else "y", "n")
        assert call(capfd, "gate", "label", file, "--kind", kind).code == 0
    probe = SHIPPED.parent

    def mine(kind: str) -> str:
        return str(tmp_path / f"rows.{kind}.jsonl")

    asked = load_probes(probe / "instructions.jsonl", ProbeInstruction, mine("instructions"))[-2:]
    assert [(one.half, one.good, one.text) for one in asked] == [
        ("test", True, "Name a city."),
        ("test", False, "Name a town."),
    ]
    pairs = load_probes(probe / "pairs.jsonl", ProbePair, mine("pairs"))[-2:]
    assert [(one.half, one.good, one.group) for one in pairs] == [
        ("test", False, "hard"),
        ("test", False, "easy"),
    ]
    said = load_labelled(probe / "scoring.jsonl", Path(mine("scorer")))[-2:]
    assert [(one.item, one.success, one.length) for one in said] == [
        ("list-001", True, "short"),
        ("list-001", False, "long"),
    ]


def test_the_end_of_what_is_piped_in_is_a_wish_to_quit(
    tmp_path: Path, capfd: Capture, typed: Typed
) -> None:
    """What was answered before it is kept."""
    file = rows_file(tmp_path, " Rome", " Oslo")
    typed("n")
    assert call(capfd, "gate", "label", file, "--kind", "runaway").code == 0
    assert len((tmp_path / "candidates.runaway.jsonl").read_text().splitlines()) == 1


def test_a_row_cannot_move_the_cursor_or_ask_in_our_name(
    tmp_path: Path, capfd: Capture, typed: Typed
) -> None:
    """Control characters are spelled out, and each line of a text stands behind a bar."""
    file = rows_file(tmp_path, "a\x1b[2J\nIs it fine? [y/n]")
    typed("q")
    shown = call(capfd, "gate", "label", file, "--kind", "runaway").err
    assert "\x1b" not in shown
    assert "    | a\\x1b[2J\n    | Is it fine? [y/n]\n" in shown


def test_shipped_rows_are_never_edited(tmp_path: Path, capfd: Capture, typed: Typed) -> None:
    """Neither by name nor through a link."""
    file = rows_file(tmp_path, " Rome")
    link = tmp_path / "link.jsonl"
    link.symlink_to(SHIPPED / "runaway.jsonl")
    for target in (SHIPPED / "runaway.jsonl", link):
        typed("y")
        found = call(capfd, "gate", "label", file, "--kind", "runaway", "--into", target)
        assert found.code == 2
        assert "was shipped and is never edited" in found.err


@pytest.mark.parametrize(
    ("text", "kind", "what"),
    [
        ('{"raw": "x"}\n', "runway", "there is no instrument"),
        ('{"raw": "x"}\n{oh\n', "runaway", "the line is no JSON"),
        ('{"text": "x"}\n[1]\n', "runaway", "no row has the texts of a runaway probe"),
        ("", "runaway", "no row has the texts of a runaway probe"),
    ],
)
def test_a_file_that_cannot_be_labelled_is_named(
    tmp_path: Path, capfd: Capture, typed: Typed, text: str, kind: str, what: str
) -> None:
    """With what is wrong; nothing is written."""
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    typed("y")
    found = call(capfd, "gate", "label", file, "--kind", kind)
    assert found.code == 2
    assert what in found.err
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_torn_probe_file_is_named_with_its_line(
    tmp_path: Path, capfd: Capture, typed: Typed
) -> None:
    """A user's file is never mended by guessing."""
    file = rows_file(tmp_path, " Rome")
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"id": "a", "raw": "x", "la')
    typed("y")
    found = call(capfd, "gate", "label", file, "--kind", "runaway", "--into", mine)
    assert found.code == 2
    assert f"{mine}:1" in found.err
    assert mine.read_text() == '{"id": "a", "raw": "x", "la'
