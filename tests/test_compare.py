"""Result files of any of three formats are paired by id, exactly or not at all."""

import io
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from cli_session import call

from gates import result_files, result_rows
from gates.compare import FilesCompared, LeftOut, compare_files
from gates.inspect_logs import read_log
from gates.result_files import read_results
from gates.result_rows import Chosen
from gates.stats import paired_comparison, smallest_lift
from runbook.errors import ConfigError

REAL = Path(__file__).parent / "result_files"
"""Written by lm_eval 0.4.13 and inspect_ai 0.3.285, of twelve made-up items."""
A, B = {0, 1, 2, 3, 4}, {0, 1, 2, 3, 5, 6, 7, 8, 9, 10}
"""Which of the twelve the two models got right there."""
Capture = pytest.CaptureFixture[str]
NONE = Chosen()


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )
    return path


def results(path: Path, successes: list[Any], **fields: Any) -> Path:
    return jsonl(path, [{"id": i, "success": s, **fields} for i, s in enumerate(successes)])


def refused(a: Path, b: Path, chosen: Chosen = NONE, **options: Any) -> str:
    with pytest.raises(ConfigError) as error:
        compare_files(a, b, chosen, **options)
    assert error.value.code == 2
    assert error.value.fix
    return str(error.value)


def sample(number: int, value: Any, **fields: Any) -> dict[str, Any]:
    score = {"scores": {"match": {"value": value}}}
    return {"id": number, "epoch": 1, "input": f"q{number}", "target": "t", **score, **fields}


def log(samples: list[Any], **fields: Any) -> dict[str, Any]:
    return {"version": 2, "status": "success", "eval": {}, "samples": samples, **fields}


def archive(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as made:
        for name, data in members.items():
            made.writestr(name, data)
    return path


def eval_members(samples: list[Any]) -> dict[str, bytes]:
    header = {"version": 2, "status": "success", "eval": {}}
    return {
        "_journal/start.json": b"{}",
        **{f"samples/{one['id']}_epoch_{one['epoch']}.json": b"{}" for one in samples},
        "summaries.json": json.dumps(samples).encode(),
        "header.json": json.dumps(header).encode(),
    }


EXPECTED = paired_comparison([i in A for i in range(12)], [i in B for i in range(12)])


@pytest.mark.parametrize(
    ("a", "b", "form", "score"),
    [
        ("inspect_a.eval", "inspect_b.json", "inspect_ai log", "scorer match"),
        (
            "lm_eval_choice_a.jsonl",
            "lm_eval_choice_b.jsonl",
            "lm-evaluation-harness samples",
            "metric acc, filter none",
        ),
    ],
)
def test_real_logs_are_read(a: str, b: str, form: str, score: str) -> None:
    """Logs that the libraries wrote give the outcomes that were put into them."""
    found = compare_files(REAL / a, REAL / b, NONE)
    assert found.statistics == EXPECTED
    assert {found.a.format, found.b.format} == {form}
    assert {found.a.score_name, found.b.score_name} == {score}
    assert not [note for note in found.notes if "bootstrap" not in note]


def test_jsonl_is_paired_by_id_in_any_order(tmp_path: Path) -> None:
    """The second file's order, its number form and its blank lines do not matter."""
    a = results(tmp_path / "a", [i in A for i in range(12)])
    rows: list[Any] = [{"success": float(i in B), "id": i} for i in range(12)]
    b = jsonl(tmp_path / "b", ["", *rows[::-1], "", ""])
    b.write_bytes(b"\xef\xbb\xbf" + b.read_bytes().replace(b"\n", b"\r\n"))
    found = compare_files(a, b, NONE)
    assert found.statistics == EXPECTED
    assert (found.a.format, found.a.score_name) == ("JSONL", "field success")
    assert found.smallest_lift == smallest_lift(12, 7 / 12)


def test_the_format_is_told_by_the_content(tmp_path: Path) -> None:
    """A log under any name is read as what it is, and a log on one line too."""
    shutil.copy(REAL / "inspect_a.eval", tmp_path / "a.jsonl")
    minified = json.dumps(json.loads((REAL / "inspect_b.json").read_text()))
    (tmp_path / "b.txt").write_text(minified)
    assert compare_files(tmp_path / "a.jsonl", tmp_path / "b.txt", NONE).statistics == EXPECTED


def test_formats_can_be_mixed_and_that_is_told(tmp_path: Path) -> None:
    """An inspect log against JSONL: paired by id, and the two scores' names are told."""
    b = jsonl(tmp_path / "b", [{"id": str(i + 1), "success": i in B} for i in range(12)])
    found = compare_files(REAL / "inspect_a.eval", b, NONE)
    assert found.statistics == EXPECTED
    assert any("scorer match, B by field success" in note for note in found.notes)
    assert any("12 ids are a number in one file and a text" in note for note in found.notes)


def test_a_score_is_chosen_by_name_or_refused() -> None:
    """Several filters, scorers or epochs: listed, and never the first one taken."""
    text = REAL / "lm_eval_text_a.jsonl", REAL / "lm_eval_text_b.jsonl"
    assert "several filters: strict-match, flexible-extract" in refused(*text)
    assert "no filter strict" in refused(*text, Chosen(filter_name="strict"))
    assert "no metric acc" in refused(*text, Chosen(metric="acc"))
    strict = compare_files(*text, Chosen(filter_name="strict-match")).statistics
    flexible = compare_files(*text, Chosen(filter_name="flexible-extract")).statistics
    assert flexible == EXPECTED
    assert strict.tuned_rate < flexible.tuned_rate
    scorers = REAL / "inspect_a.eval", REAL / "inspect_scorers.eval"
    assert "several scorers: match, shares, parts/short, parts/right" in refused(*scorers)
    assert compare_files(*scorers, Chosen(scorer="match")).statistics == EXPECTED
    assert "no scorer parts" in refused(*scorers[1:] * 2, Chosen(scorer="parts"))
    right = compare_files(*scorers[1:] * 2, Chosen(scorer="parts/right"))
    assert right.statistics.base_rate == 10 / 12


def test_epochs_are_chosen_or_called_dependent() -> None:
    """Two epochs are refused; one can be chosen, and all of them carry a warning."""
    path = REAL / "inspect_epochs.eval"
    assert "several epochs: 1, 2" in refused(path, path)
    assert compare_files(path, path, Chosen(epoch="2")).statistics.n == 12
    found = compare_files(path, path, Chosen(epoch="all"))
    assert found.statistics.n == 24
    assert any("not independent: every p is too small" in note for note in found.notes)
    single = compare_files(REAL / "inspect_a.eval", REAL / "inspect_b.json", Chosen(epoch="all"))
    assert single.statistics == EXPECTED


def test_an_option_that_neither_file_knows_is_refused(tmp_path: Path) -> None:
    """Else a choice would seem to have been heeded."""
    a = results(tmp_path / "a", [True, False])
    assert "--metric acc means nothing to JSONL" in refused(a, a, Chosen(metric="acc"))
    inspect = REAL / "inspect_a.eval"
    assert "--id doc means nothing" in refused(inspect, inspect, Chosen(id_field="doc"))


def test_fields_of_jsonl_can_be_declared(tmp_path: Path) -> None:
    """Other names of id and success; without them the error lists the fields there are."""
    a = jsonl(tmp_path / "a", [{"item": "x", "right": 1}, {"item": "y", "right": 0}])
    assert "no field id\n  fix: name the field with --id; there are item, right" in refused(a, a)
    found = compare_files(a, a, Chosen(id_field="item", success_field="right"))
    assert found.statistics.base_rate == 0.5


@pytest.mark.parametrize(
    ("success", "message"),
    [
        ('"yes"', 'the result is "yes"'),
        ("[1]", "the result is [1]"),
        ("1e999", "the result is Infinity"),
        ("-Infinity", "the result is -Infinity"),
        ("1" + "0" * 400, "the result is 1000"),
        ("0.5", "the score 0.5 is neither 0 nor 1"),
        ("2", "the score 2 is neither 0 nor 1"),
        ("NaN", "1 without a score in A (1)"),
        ("null", "1 without a score in A (1)"),
        ('true, "success": false', "the field 'success' stands twice"),
    ],
)
def test_a_result_that_is_neither_right_nor_wrong_is_refused(
    tmp_path: Path, success: str, message: str
) -> None:
    """Nothing is rounded, and a missing score is no failure."""
    good = '{"id": 0, "success": true}'
    a = jsonl(tmp_path / "a", [good, f'{{"id": 1, "success": {success}}}'])
    b = jsonl(tmp_path / "b", [good, '{"id": 1, "success": true}'])
    assert message in refused(a, b)


def test_partial_credit_needs_a_threshold_and_is_told(tmp_path: Path) -> None:
    """Inspect's P and numbers between 0 and 1 count from the threshold on, and are counted."""
    both = (REAL / "inspect_scorers.eval",) * 2
    chosen = Chosen(scorer="shares")
    assert "the score 0.5 is neither 0 nor 1" in refused(*both, chosen, intersect=True)
    found = compare_files(*both, chosen, intersect=True, threshold=0.5)
    assert found.statistics.base_rate == 1.0
    assert any("at least 0.5 counts as success; 1 scores of A and 1 of B" in n for n in found.notes)
    assert compare_files(*both, chosen, intersect=True, threshold=0.51).statistics.base_rate < 1
    a = tmp_path / "a.json"
    a.write_text(json.dumps(log([sample(i, v) for i, v in enumerate("CIPN")])))
    assert "0.5 is neither" in refused(a, a)
    assert compare_files(a, a, NONE, threshold=1).statistics.base_rate == 0.25
    for odd in (math.nan, math.inf):
        assert "the threshold is" in refused(a, a, threshold=odd)


@pytest.mark.parametrize(
    ("value", "score"),
    [("C", 1.0), ("I", 0.0), ("N", 0.0), ("Yes", 1.0), ("false", 0.0), ("1", 1.0), (True, 1.0)],
)
def test_inspects_grades_count_as_in_inspect(tmp_path: Path, value: Any, score: float) -> None:
    """Letters, words and numbers of a score are those of inspect's own metrics."""
    a = tmp_path / "a.json"
    a.write_text(json.dumps(log([sample(1, value)])))
    assert read_results(a, NONE).items["1"].score == score


@pytest.mark.parametrize("value", ["c", "maybe", "nan", "inf", "", [1, 0]])
def test_an_unknown_grade_is_refused(tmp_path: Path, value: Any) -> None:
    """What inspect would count as 0 with a warning is no failure here."""
    a = tmp_path / "a.json"
    a.write_text(json.dumps(log([sample(1, value)])))
    assert "the result is" in refused(a, a)


def test_items_without_a_partner_are_refused_or_left_out_and_told(tmp_path: Path) -> None:
    """Some of the ids are named; with intersect the common ones are compared, the rest counted."""
    a = jsonl(tmp_path / "a", [{"id": i, "success": i % 2 == 0} for i in range(20)])
    rows = [{"id": i, "success": None if i == 3 else True} for i in range(2, 21)]
    b = jsonl(tmp_path / "b", rows)
    told = refused(a, b)
    assert "2 only in A (0, 1); 1 only in B (20); 1 without a score in B (3)" in told
    assert "compare the 17 common ones with --intersect" in told
    found = compare_files(a, b, NONE, intersect=True)
    assert (found.statistics.n, found.left_out) == (17, LeftOut(only_a=2, only_b=1, unscored=1))
    assert any("2 only in A, 1 only in B, 1 without a score" in note for note in found.notes)
    c = results(tmp_path / "c", [True], id="other")
    assert "no item has a score in both; the ids are 0, 1, 2 and 17 more" in refused(
        a, c, intersect=True
    )


@pytest.mark.parametrize("other", ["1", '"1"'])
def test_an_id_that_stands_twice_is_refused(tmp_path: Path, other: str) -> None:
    """Also as a number and as a text; both places are named."""
    a = jsonl(tmp_path / "a", ['{"id": 1, "success": true}', f'{{"id": {other}, "success": true}}'])
    assert refused(a, a).startswith(f"{a}:2: the id {other} stands twice, first in {a}:1")


@pytest.mark.parametrize("odd", ["true", "null", "1.0", '""', "[]", '{"a": 1}'])
def test_an_id_that_is_none_is_refused(tmp_path: Path, odd: str) -> None:
    """An id is a text or a whole number."""
    a = jsonl(tmp_path / "a", [f'{{"id": {odd}, "success": true}}'])
    assert f"{a}:1: the id is {odd}" in refused(a, a)


def test_the_same_file_twice_is_told(tmp_path: Path) -> None:
    """Under two names too; a bare 0 could be taken for a finding."""
    a = results(tmp_path / "a", [True, False])
    shutil.copy(a, tmp_path / "b")
    found = compare_files(a, tmp_path / "b", NONE)
    assert any("same bytes" in note for note in found.notes)
    assert "agree on all 2 items" in found.conclusion
    assert "no lift at all could have reached" in found.conclusion
    other = results(tmp_path / "c", [1, 0])
    assert not compare_files(a, other, NONE).notes


def test_one_id_must_not_name_two_items(tmp_path: Path) -> None:
    """Two logs whose documents differ under one id are refused; another prompt is told."""
    a = REAL / "lm_eval_choice_a.jsonl"
    rows = [json.loads(line) for line in a.read_text().splitlines()]
    prompted = [{**row, "prompt_hash": "other"} for row in rows]
    found = compare_files(a, jsonl(tmp_path / "p", prompted), NONE)
    assert any("12 items were asked with another prompt" in note for note in found.notes)
    rows[3]["doc_id"], rows[4]["doc_id"] = 4, 3
    swapped = jsonl(tmp_path / "b", rows)
    assert "2 of 12 ids name another item in A than in B" in refused(a, swapped)
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    one.write_text(json.dumps(log([sample(1, "C"), sample(2, "I")])))
    two.write_text(json.dumps(log([sample(1, "C"), sample(2, "I", target="u")])))
    assert "1 of 2 ids name another item" in refused(one, two)


def test_a_long_text_is_the_same_item_in_a_summary(tmp_path: Path) -> None:
    """An archive's summary cuts texts at 5,120 characters, which is no other item."""
    long = sample(1, "C", input="x" * 9000)
    (tmp_path / "a.json").write_text(json.dumps(log([long])))
    cut = {**long, "input": "x" * 5120 + "...\n(content truncated)"}
    b = archive(tmp_path / "b.eval", eval_members([cut]))
    assert compare_files(tmp_path / "a.json", b, NONE).statistics.n == 1


def test_kinds_are_split_and_must_agree(tmp_path: Path) -> None:
    """Kinds of one file suffice; an item of two kinds is refused, one of none is told."""
    successes = [True, False, True, True]
    a = results(tmp_path / "a", successes)
    rows = [{"id": i, "success": True, "kind": "list" if i < 2 else "number"} for i in range(4)]
    b = jsonl(tmp_path / "b", rows)
    assert {k: p.n for k, p in compare_files(a, b, NONE).statistics.by_kind.items()} == {
        "list": 2,
        "number": 2,
    }
    c = jsonl(tmp_path / "c", [{**row, "kind": "list"} for row in rows])
    assert "the item's kind is list in A and number in B" in refused(c, b)
    d = jsonl(tmp_path / "d", [{**row, "kind": None} if row["id"] == 0 else row for row in rows])
    found = compare_files(a, d, NONE)
    assert list(found.statistics.by_kind) == ["(no kind)", "list", "number"]
    assert any("1 items have no kind" in note for note in found.notes)
    assert "no item has a field subject" in refused(a, b, Chosen(kind_field="subject"))
    many = jsonl(tmp_path / "m", [{"id": i, "success": 1, "kind": f"k{i}"} for i in range(501)])
    assert "there are 501 kinds" in refused(many, many)


def test_kinds_of_logs_are_named() -> None:
    """The field of lm-eval's documents and of inspect's metadata splits the items."""
    lm = REAL / "lm_eval_choice_a.jsonl", REAL / "lm_eval_choice_b.jsonl"
    inspect = REAL / "inspect_a.eval", REAL / "inspect_b.json"
    assert set(compare_files(*lm, Chosen(kind_field="side")).statistics.by_kind) == {"0", "1"}
    found = compare_files(*inspect, Chosen(kind_field="kind")).statistics.by_kind
    assert {kind: part.n for kind, part in found.items()} == {"north": 6, "south": 6}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"\n \n", "it is empty"),
        (b"id,success\n1,1\n", ":1: it cannot be read as JSON"),
        (b'{"id": 1, "success": true}\n{"id": 2, "succ', ":2: it cannot be read as JSON"),
        (b'{"id": 1, "success": true}\n[1]\n', ":2: the row is no JSON object"),
        (b'{"id": 1, "success": true}\n{"id": 2}\n', ":2: the row has no field success"),
        (b'{"id": 1, "success": true}\n\xff\n', ":2: it is not UTF-8"),
        ('{"id": 1, "success": true}'.encode("utf-16"), ":1: it is not UTF-8"),
        (b'[{"id": 1, "success": true}]', "it is a JSON list"),
        (b'[\n{"id": 1, "success": true}\n]', "it is a JSON list"),
        (b'{\n"id": 1, "success": true\n}', "it is one JSON value"),
        (b'{"results": {}, "configs": {}}', "lm-evaluation-harness's summary"),
        (b"17", "it is one JSON value"),
        (b'{"id": 1, "success": ' + b"[" * 100_000, "it cannot be read as JSON"),
        (json.dumps(log([])).encode(), "the log has no samples"),
        (json.dumps(log([1])).encode(), "it is no sample"),
        (json.dumps(log([sample(1, "C")], invalidated=True)).encode(), "invalidated"),
        (json.dumps(log([{"id": 1, "error": {"message": "x"}}])).encode(), "no scorer is found"),
        (b"PK\x03\x04", "the archive is damaged"),
        (b'{"doc_id": 0, "doc_hash": "x", "metrics": []}', "no metric is found"),
        (b'{"doc_id": 0, "doc_hash": "x", "acc": 1, "f1": 1.0}', "several metrics: acc, f1"),
        (
            b'{"doc_id": 0, "doc_hash": "x", "acc": 1}\n{"acc": 1}',
            ":2: the row has no field doc_id",
        ),
    ],
)
def test_a_file_that_is_none_is_refused_with_its_place(
    tmp_path: Path, content: bytes, message: str
) -> None:
    """Empty, torn, of another format or coding: exit 2, with the line and what to give instead."""
    path = tmp_path / "a"
    path.write_bytes(content)
    assert message in refused(path, path)


def test_an_old_sample_log_is_read(tmp_path: Path) -> None:
    """Rows that list no metrics and name no filter have one number beside the known fields."""
    rows = [{"doc_id": i, "target": 1, "resps": [], "exact_match": i % 2} for i in range(4)]
    a = jsonl(tmp_path / "a", rows)
    assert read_results(a, NONE).score_name == "metric exact_match, filter none"


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    """A folder, a pipe that nobody writes to, a missing file."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "none"):
        assert f"{path}: it cannot be read" in refused(path, path)


def test_an_errored_sample_has_no_score(tmp_path: Path) -> None:
    """It is neither counted as wrong nor silently left out; an unfinished status is told."""
    samples = [sample(1, "C"), sample(2, "I"), {"id": 3, "epoch": 1, "error": {"message": "x"}}]
    a = tmp_path / "a.json"
    a.write_text(json.dumps(log(samples, status="error")))
    assert "1 without a score in A (3)" in refused(a, a)
    found = compare_files(a, a, NONE, intersect=True)
    assert found.statistics.n == 2
    assert any("status is error, not success" in note for note in found.notes)


def test_an_archive_of_any_method_is_read(tmp_path: Path) -> None:
    """Deflated and stored members too; a member's name is never a path."""
    members = {"../../outside.json": b"{}", **eval_members([sample(1, "C"), sample(2, "I")])}
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        path = archive(tmp_path / "a.eval", members, method)
        assert compare_files(path, path, NONE).statistics.base_rate == 0.5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.eval"]


def test_an_archive_that_is_no_finished_log_is_refused(tmp_path: Path) -> None:
    """Another zip, an unfinished log, summaries that are not of the samples."""
    good = eval_members([sample(1, "C")])
    cases = [
        ({"a.txt": b"x"}, "no inspect_ai log"),
        ({k: v for k, v in good.items() if k != "summaries.json"}, "never finished"),
        ({**good, "header.json": b"{}"}, "no inspect_ai log"),
        ({**good, "samples/2_epoch_1.json": b"{}"}, "2 samples and the summaries of 1"),
    ]
    for members, message in cases:
        path = archive(tmp_path / "a.eval", members)
        assert message in refused(path, path)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the size an archive tells, and where that lies by reading no further than told."""
    monkeypatch.setattr("gates.inspect_logs.LONGEST", 100_000)
    bomb = {**eval_members([sample(1, "C")]), "summaries.json": b" " * 200_000}
    path = archive(tmp_path / "told.eval", bomb)
    assert "summaries.json is 200,000 bytes; the most is 100,000" in refused(path, path)
    data = path.read_bytes().replace(struct.pack("<I", 200_000), struct.pack("<I", 50))
    path.write_bytes(data)
    assert "the archive is damaged" in refused(path, path)


def test_a_zstandard_bomb_and_a_damaged_member_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real logs' compression: a lie about the size, a flipped bit, the library missing."""
    data = (REAL / "inspect_a.eval").read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        info = opened.getinfo("summaries.json")
    path = tmp_path / "a.eval"
    path.write_bytes(data.replace(struct.pack("<I", info.file_size), struct.pack("<I", 50)))
    assert "summaries.json is not what the archive says" in refused(path, path)
    flipped = bytearray(data)
    flipped[info.header_offset + 30 + len("summaries.json") + info.compress_size // 2] ^= 1
    path.write_bytes(flipped)
    assert "summaries.json" in refused(path, path)
    path.write_bytes(data[: len(data) // 2])
    assert "the archive is damaged" in refused(path, path)
    path.write_bytes(data)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert "pip install 'runbook[inspect]'" in refused(path, path)


def test_lines_and_files_beyond_the_limits_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long line or document is not held, nor rows without end; a huge file is not hashed."""
    a = results(tmp_path / "a", [True] * 50)
    monkeypatch.setattr(result_files, "MOST_ROWS", 49)
    assert f"{a}:50: it has over 49 rows" in refused(a, a)
    monkeypatch.setattr(result_files, "LONGEST", 20)
    assert f"{a}:1: the line is longer than 20 bytes" in refused(a, a)
    a.write_text("{\n" + " " * 30 + "\n}")
    assert "one JSON text of 34 bytes" in refused(a, a)
    os.truncate(a, 2**40)
    assert "it is 1,099,511,627,776 bytes" in refused(a, a)
    assert result_rows.LONGEST >= 2**28


@pytest.mark.parametrize(
    ("gained", "lost", "said"),
    [
        (60, 10, "B does better on these items"),
        (10, 60, "A does better on these items"),
        (12, 9, "No difference is shown"),
        (0, 0, "agree on all 300 items"),
    ],
)
def test_the_conclusion_says_what_can_be_said(
    tmp_path: Path, gained: int, lost: int, said: str
) -> None:
    """A difference without its cause, or the lift that would have been seen."""
    rest = 300 - gained - lost
    a = results(tmp_path / "a", [False] * gained + [True] * lost + [True] * rest)
    b = results(tmp_path / "b", [1] * gained + [0] * lost + [1] * rest)
    found = compare_files(a, b, NONE)
    assert found.conclusion.startswith(said) or f"A and B {said}" in found.conclusion
    told = f"a lift of {smallest_lift(300, (gained + lost) / 300) or 0:.3f} or more"
    assert (told in found.conclusion) == (found.statistics.exact_p > 0.01)
    assert ("Why is not shown" in found.conclusion) == (found.statistics.exact_p <= 0.01)


def test_too_narrow_a_bootstrap_is_told() -> None:
    """Of seven discordant items the interval leaves out 0 at an exact p of 0.12."""
    found = compare_files(REAL / "inspect_a.eval", REAL / "inspect_b.json", NONE)
    assert found.statistics.lift_ci[0] > 0
    assert found.statistics.exact_p > 0.05
    assert any("bootstrap's interval leaves out 0" in note for note in found.notes)


def test_the_verb_answers_people_and_programs(capfd: Capture, tmp_path: Path) -> None:
    """A table on stderr, one object on stdout with --json, exit 0 whatever came out."""
    a = results(tmp_path / "a", [False] * 30 + [True] * 10, kind="list")
    b = results(tmp_path / "b", [True] * 40, kind="list")
    told = call(capfd, "compare", a, b, "--json")
    found: FilesCompared = compare_files(a, b, NONE)
    assert told.code == 0
    (answer,) = told.lines
    assert answer["comparison"] == found.statistics.to_dict()
    assert answer["a"] == {
        "path": str(a),
        "format": "JSONL",
        "score": "field success",
        "bytes": a.stat().st_size,
        "sha256": found.a.sha256,
        "items": 40,
    }
    assert (answer["alpha"], answer["power"]) == (0.01, 0.8)
    assert answer["conclusion"] == found.conclusion
    for part in ("0.250, Wilson 95 %", "30 only B has right, 0 only A", "exact p 1.9e-09", "list"):
        assert part in told.err
    assert found.conclusion in told.err
    assert call(capfd, "compare", a, b).out == ""
    bad = call(capfd, "compare", a, tmp_path / "none", "--json")
    assert (bad.code, bad.lines[0]["exit_code"]) == (2, 2)


def test_the_verb_heeds_its_options(capfd: Capture, tmp_path: Path) -> None:
    """Each option reaches the comparison."""
    a = jsonl(tmp_path / "a", [{"n": i, "s": i / 4, "k": "x"} for i in range(5)])
    b = jsonl(tmp_path / "b", [{"n": i, "s": 1 - i / 4, "k": "x"} for i in range(1, 5)])
    fields = ("--id", "n", "--success", "s", "--kind", "k", "--threshold", "0.75")
    told = call(capfd, "compare", a, b, *fields, "--intersect", "--json")
    assert (told.code, told.lines[0]["threshold"]) == (0, 0.75)
    assert told.lines[0]["left_out"] == {"only_a": 1, "only_b": 0, "unscored": 0}
    assert list(told.lines[0]["comparison"]["by_kind"]) == ["x"]
    text = REAL / "lm_eval_text_a.jsonl", REAL / "lm_eval_text_b.jsonl"
    assert call(capfd, "compare", *text, "--filter", "strict-match").code == 0
    assert call(capfd, "compare", *text, "--filter", "strict-match", "--metric", "f1").code == 2
    scorers = [REAL / "inspect_scorers.eval"] * 2
    assert call(capfd, "compare", *scorers, "--scorer", "match").code == 0
    assert call(capfd, "compare", *[REAL / "inspect_epochs.eval"] * 2, "--epoch", "1").code == 0


def test_foreign_text_moves_no_cursor(capfd: Capture, tmp_path: Path) -> None:
    """Ids and kinds are shown escaped, in the table and in an error."""
    evil = "\x1b[2J\ud800\n# x"
    a = jsonl(tmp_path / "a", [{"id": evil, "success": True, "kind": evil}])
    b = jsonl(tmp_path / "b", [{"id": "other", "success": True}])
    for other, code in ((a, 0), (b, 2)):
        told = call(capfd, "compare", a, other, "--json")
        assert told.code == code
        assert "\x1b" not in told.err
        assert len(told.out.splitlines()) == 1


def test_comparing_needs_no_workspace_and_no_torch(tmp_path: Path) -> None:
    """It runs in an empty folder, leaves nothing there, and imports no model library."""
    code = (
        "import sys\nfrom runbook.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(sorted({'torch', 'transformers', 'phases'} & sys.modules.keys()))\n"
    )
    files = [str(REAL / "inspect_a.eval"), str(REAL / "inspect_b.json")]
    done = subprocess.run(
        [sys.executable, "-c", code, "compare", *files],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert done.stdout == "[]\n"
    assert list(tmp_path.iterdir()) == []


def test_a_log_in_which_only_some_samples_gave_parts_names_parts_alone() -> None:
    """An unscored sample of a scorer with several values names no further scorer."""
    parts = {"parts": {"value": {"a": 1, "b": 0}}}
    samples = [sample(1, "C", scores=parts), sample(2, "C", scores={"parts": {"value": math.nan}})]
    rows = read_log(log(samples), "x", Chosen(scorer="parts/a")).rows
    assert [row.score for row in rows] == [1, None]
    with pytest.raises(ConfigError, match="several scorers: parts/a, parts/b"):
        read_log(log(samples), "x", NONE)
