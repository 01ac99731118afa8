"""Reading per-item results: JSONL, lm-evaluation-harness sample logs, inspect_ai logs.

Rule: the format is told by the content, never by the name; an item has one id and one score, and
what leaves room for two is refused with its place. A score that is missing or NaN stays missing:
it is neither right nor wrong. Not here: which score is a success, and how two files compare.
"""

import hashlib
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from gates import inspect_logs
from gates.result_rows import (
    LONGEST,
    MOST_ROWS,
    Chosen,
    Reading,
    Row,
    bad_file,
    choose,
    parse_json,
    some,
)
from runbook.regular_files import open_to_read

_LARGEST = 16 * 2**30
"""Bytes of a file: half a minute of reading."""
_UTF8_MARK = b"\xef\xbb\xbf"
_LM_EVAL_ROW = {"resps", "filtered_resps", "doc_hash"}
_LM_EVAL_FIELDS = _LM_EVAL_ROW | {
    *("doc_id", "doc", "target", "arguments", "filter", "metrics"),
    *("prompt_hash", "target_hash"),
}
"""Fields of a sample that are no metric."""


@dataclass(frozen=True, slots=True)
class Item:
    """One item's result."""

    where: str
    number: bool
    """Whether the file writes the id as a number; `1` and `"1"` are one id."""
    score: float | None
    """Finite; None where the file gives none."""
    kind: str | None
    content: str | None
    prompt: str | None


@dataclass(frozen=True, kw_only=True)
class ResultFile:
    """A file's items by id, in the file's order; at least one."""

    path: str
    format: str
    score_name: str
    size: int
    """Bytes."""
    sha256: str
    uses: frozenset[str]
    """The options that mean something to its format."""
    items: dict[str, Item]
    notes: tuple[str, ...]


def read_results(path: Path, chosen: Chosen) -> ResultFile:
    """All results of a file.

    Raises:
        ConfigError: it cannot be read as exactly one score for each id; names the place.
    """
    name = str(path)
    try:
        with io.BufferedReader(open_to_read(path)) as file:  # type: ignore[type-var]  # a raw file
            size = file.seek(0, io.SEEK_END)
            if size > _LARGEST:
                what = f"it is {size:,} bytes; the most is {_LARGEST:,}"
                raise bad_file(what, name, "give JSONL of id and success alone")
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            reading = _read(file, size, name, chosen)
    except OSError as error:
        fix = "name a file that exists and can be read"
        raise bad_file(f"it cannot be read: {error.strerror or error}", name, fix) from error
    items = _items(reading.rows)
    if not items:
        raise bad_file("it holds no results", name, "give a file with a row an item")
    return ResultFile(
        path=name,
        format=reading.format,
        score_name=reading.score_name,
        size=size,
        sha256=digest,
        uses=reading.uses,
        items=items,
        notes=reading.notes,
    )


def _read(file: BinaryIO, size: int, name: str, chosen: Chosen) -> Reading:
    """The file by its content."""
    file.seek(0)
    if file.read(2) == b"PK":
        return inspect_logs.read_archive(file, name, chosen)
    first = next(_lines(file, name), None)
    if first is None:
        raise bad_file("it is empty", name, "give a file with a row an item")
    where, line = first
    document = _document(file, size, where, line, name)
    if inspect_logs.is_log(document):
        return inspect_logs.read_log(document, name, chosen)
    if document is not None:
        _refuse_document(document, name)
    rows = ((place, _row(text, place)) for place, text in _lines(file, name))
    row = _row(line, where)
    if "doc_id" in row and row.keys() & _LM_EVAL_ROW:
        return _lm_eval(rows, name, chosen)
    return _plain(rows, row, name, chosen)


def _lines(file: BinaryIO, name: str) -> Iterator[tuple[str, bytes]]:
    """Each line that is not blank, with its place, from the file's beginning."""
    file.seek(0)
    number = found = 0
    while line := file.readline(LONGEST + 1):
        number += 1
        where = f"{name}:{number}"
        if len(line) > LONGEST:
            what = f"the line is longer than {LONGEST:,} bytes"
            raise bad_file(what, where, "give a file with a row an item")
        if number == 1:
            line = line.removeprefix(_UTF8_MARK)
        if line.strip():
            found += 1
            if found > MOST_ROWS:
                raise bad_file(f"it has over {MOST_ROWS:,} rows", where, "give fewer items")
            yield where, line


def _document(file: BinaryIO, size: int, where: str, line: bytes, name: str) -> Any:
    """The one JSON value that the file is; None where it is a row a line.

    A log that stands on one line is told from a row by its fields.
    """
    opening = line.strip() in {b"{", b"["}
    if not opening:
        value = parse_json(line, where)
        whole = inspect_logs.is_log(value) or not isinstance(value, dict)
        if not whole and not {"results", "configs"} <= value.keys():
            return None
    if size > LONGEST:
        what = f"it is one JSON text of {size:,} bytes; the most is {LONGEST:,}"
        fix = "convert it: inspect log convert --to eval, or write JSONL of id and success"
        raise bad_file(what, name, fix)
    file.seek(0)
    return parse_json(file.read().removeprefix(_UTF8_MARK), name)


def _refuse_document(document: Any, name: str) -> NoReturn:
    if isinstance(document, dict) and {"results", "configs"} <= document.keys():
        what = "it is lm-evaluation-harness's summary, which has no single items"
        raise bad_file(what, name, "give samples_<task>_<time>.jsonl, which --log_samples writes")
    if isinstance(document, list):
        raise bad_file("it is a JSON list", name, "write a row a line: jq -c '.[]' FILE")
    what = "it is one JSON value and no inspect_ai log"
    raise bad_file(what, name, "give JSONL, a sample log of lm-eval or a log of inspect_ai")


def _row(line: bytes, where: str) -> dict[str, Any]:
    value = parse_json(line, where)
    if not isinstance(value, dict):
        raise bad_file("the row is no JSON object", where, 'write {"id": ..., "success": ...}')
    return value


def _plain(
    rows: Iterator[tuple[str, dict[str, Any]]], first: dict[str, Any], name: str, chosen: Chosen
) -> Reading:
    id_field, success = chosen.id_field or "id", chosen.success_field or "success"
    kind = chosen.kind_field or "kind"
    for field, option in ((id_field, "--id"), (success, "--success")):
        if field not in first:
            fix = f"name the field with {option}; there are {some(list(first))}"
            raise bad_file(f"the rows have no field {field}", name, fix)
    found = []
    for where, row in rows:
        if id_field not in row or success not in row:
            missing = id_field if id_field not in row else success
            fix = "give every row an id and a result, or leave the item out of both files"
            raise bad_file(f"the row has no field {missing}", where, fix)
        found.append(Row(where, row[id_field], row[success], row.get(kind)))
    return Reading(
        format="JSONL",
        score_name=f"field {success}",
        uses=frozenset({"--id", "--success", "--kind"}),
        rows=found,
    )


def _lm_eval(rows: Iterator[tuple[str, dict[str, Any]]], name: str, chosen: Chosen) -> Reading:
    filters: dict[str, None] = {}
    wanted, metric = chosen.filter_name, ""
    found = []
    for where, row in rows:
        if "doc_id" not in row:
            raise bad_file("the row has no field doc_id", where, "give one task's sample log")
        used = str(row.get("filter", "none"))
        filters[used] = None
        wanted = used if wanted is None else wanted
        if used != wanted:
            continue
        metric = metric or choose(_metrics(row), chosen.metric, "metric", "--metric", where)
        if metric not in row:
            raise bad_file(f"the row has no metric {metric}", where, "give one task's sample log")
        found.append(_lm_eval_row(where, row, metric, chosen))
    wanted = choose(list(filters), chosen.filter_name, "filter", "--filter", name)
    return Reading(
        format="lm-evaluation-harness samples",
        score_name=f"metric {metric}, filter {wanted}",
        uses=frozenset({"--metric", "--filter", "--kind"}),
        rows=found,
    )


def _lm_eval_row(where: str, row: dict[str, Any], metric: str, chosen: Chosen) -> Row:
    doc, hashed = row.get("doc"), row.get("prompt_hash")
    kind = doc.get(chosen.kind_field) if chosen.kind_field and isinstance(doc, dict) else None
    content = [row.get("doc_hash"), row.get("target_hash")]
    return Row(
        where,
        row["doc_id"],
        row[metric],
        kind,
        json.dumps(content) if any(content) else None,
        hashed if isinstance(hashed, str) else None,
    )


def _metrics(row: dict[str, Any]) -> list[str]:
    """Those that a row declares; older logs declare none, and hold numbers beside known fields."""
    declared = row.get("metrics")
    if isinstance(declared, list):
        return [str(name) for name in declared]
    return [k for k, v in row.items() if k not in _LM_EVAL_FIELDS and isinstance(v, int | float)]


def _items(rows: list[Row]) -> dict[str, Item]:
    """The rows by id.

    Raises:
        ConfigError: an id is none or stands twice, or a score is no number.
    """
    items: dict[str, Item] = {}
    for row in rows:
        if isinstance(row.id, bool) or not isinstance(row.id, str | int) or row.id == "":
            fix = "give every item an id: a text or a whole number"
            raise bad_file(f"the id is {_shown(row.id)}", row.where, fix)
        key, number = str(row.id), isinstance(row.id, int)
        if key in items:
            what = f"the id {_shown(row.id)} stands twice, first in {items[key].where}"
            raise bad_file(what, row.where, "give every item one id and one result")
        score, kind = _score(row), _kind(row)
        items[key] = Item(row.where, number, score, kind, row.content, row.prompt)
    return items


def _score(row: Row) -> float | None:
    if row.score is None:
        return None
    try:
        score = float(row.score) if isinstance(row.score, int | float) else math.inf
    except OverflowError:
        score = math.inf
    if math.isinf(score):
        fix = "give true or false, or 1 or 0; another finite number needs --threshold"
        raise bad_file(f"the result is {_shown(row.score)}", row.where, fix)
    return None if math.isnan(score) else score


def _kind(row: Row) -> str | None:
    if row.kind is None or isinstance(row.kind, str):
        return row.kind
    if isinstance(row.kind, int):
        return json.dumps(row.kind)
    raise bad_file(f"the kind is {_shown(row.kind)}", row.where, "name a field of short texts")


def _shown(value: Any) -> str:
    return some([json.dumps(value)])
