"""Reading inspect_ai's logs: `.json`, and `.eval`, which is a zip of JSON members.

Rule: an archive is never unpacked. Of its members two are read, by their exact names, into memory
that was bounded before; a member's name is never a path. Not here: what the scores mean.
"""

import io
import json
import math
import struct
import zipfile
import zlib
from collections import Counter
from typing import Any, BinaryIO

from gates.result_rows import LONGEST, Chosen, Reading, Row, bad_file, choose, parse_json

USES = frozenset({"--scorer", "--epoch", "--kind"})
_GRADES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
"""Correct, partial, incorrect, no answer: inspect_ai's own values."""
_WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
_ZSTANDARD = 93
_PREFIX = 1000
"""A summary keeps a text's first 5,120 characters; so many tell two items apart."""


def is_log(document: Any) -> bool:
    """Whether a parsed JSON document is a log."""
    return isinstance(document, dict) and {"version", "status", "eval"} <= document.keys()


def read_archive(file: BinaryIO, name: str, chosen: Chosen) -> Reading:
    """The rows of an `.eval` file.

    Raises:
        ConfigError: it is damaged, unfinished, too large, or no such log.
    """
    fix = "write the log again, or convert it: inspect log convert --to json"
    try:
        with zipfile.ZipFile(file) as archive:
            names = set(archive.namelist())
            if not names & {"header.json", "_journal/start.json"}:
                raise bad_file("the archive is no inspect_ai log", name, "give an .eval log")
            if not {"header.json", "summaries.json"} <= names:
                raise bad_file("the log was never finished", name, "let the evaluation finish")
            header = parse_json(_member(archive, file, "header.json", name), f"{name}:header.json")
            place = f"{name}:summaries.json"
            samples = parse_json(_member(archive, file, "summaries.json", name), place)
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error) as error:
        raise bad_file(f"the archive is damaged: {error}", name, fix) from error
    except (NotImplementedError, RuntimeError) as error:
        raise bad_file(f"the archive cannot be read: {error}", name, fix) from error
    if not is_log(header):
        raise bad_file("the archive is no inspect_ai log", f"{name}:header.json", fix)
    kept = sum(n.startswith("samples/") and n.endswith(".json") for n in names)
    if isinstance(samples, list) and kept != len(samples):
        what = f"it holds {kept} samples and the summaries of {len(samples)}"
        raise bad_file(what, name, fix)
    return read_log({**header, "samples": samples}, name, chosen)


def read_log(log: dict[str, Any], name: str, chosen: Chosen) -> Reading:
    """The rows of a parsed log, one for each sample, or each sample and epoch.

    Raises:
        ConfigError: no samples, invalidated ones, or several scorers or epochs and none chosen.
    """
    samples = log.get("samples")
    if not isinstance(samples, list) or not samples:
        raise bad_file("the log has no samples", name, "evaluate again without --no-log-samples")
    for place, sample in enumerate(samples):
        if not isinstance(sample, dict) or "id" not in sample:
            raise bad_file("it is no sample", f"{name}:samples[{place}]", "give an inspect_ai log")
    if log.get("invalidated") or any(sample.get("invalidation") for sample in samples):
        fix = "run the invalidated samples again: inspect eval-retry"
        raise bad_file("the log has samples that were invalidated", name, fix)
    scored = [(sample, _scores(sample)) for sample in samples]
    scorer = choose(_scorers(scored), chosen.scorer, "scorer", "--scorer", name)
    epoch, notes = _epoch(samples, name, chosen)
    rows = [
        Row(
            f"{name}:sample {sample['id']}",
            _identity(sample, every_epoch=epoch == "all"),
            _graded(scores.get(scorer)),
            _kind(sample, chosen),
            _content(sample),
        )
        for sample, scores in scored
        if epoch == "all" or str(sample.get("epoch", 1)) == epoch
    ]
    if log["status"] != "success":
        notes.append(f"{name}: the evaluation's status is {str(log['status'])[:40]}, not success.")
    return Reading(
        format="inspect_ai log",
        score_name=f"scorer {scorer}" + (f", epoch {epoch}" if chosen.epoch else ""),
        uses=USES,
        rows=rows,
        notes=tuple(notes),
    )


def _scores(sample: dict[str, Any]) -> dict[str, Any]:
    """Values by scorer; one that gives several names each `scorer/name`."""
    found: dict[str, Any] = {}
    scores = sample.get("scores")
    for scorer, score in (scores if isinstance(scores, dict) else {}).items():
        value = score.get("value") if isinstance(score, dict) else score
        if isinstance(value, dict):
            found |= {f"{scorer}/{part}": one for part, one in value.items()}
        else:
            found[scorer] = value
    return found


def _scorers(scored: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """A scorer of several values leaves one NaN where it gave none: that names no part of it."""
    names = list(dict.fromkeys(key for _, scores in scored for key in scores))
    wholes = {name.rpartition("/")[0] for name in names}
    return [name for name in names if name not in wholes]


def _epoch(samples: list[dict[str, Any]], name: str, chosen: Chosen) -> tuple[str, list[str]]:
    """The one to compare, or `all`, and what has to be said of it."""
    counts = Counter(str(sample.get("epoch", 1)) for sample in samples)
    if chosen.epoch != "all":
        return choose(list(counts), chosen.epoch, "epoch", "--epoch", name), []
    if len(counts) == 1:
        return "all", []
    told = f"{name}: {len(counts)} epochs of an item count as {len(counts)} items. They are not "
    return "all", [told + "independent: every p is too small and every interval too narrow."]


def _identity(sample: dict[str, Any], *, every_epoch: bool) -> Any:
    if not every_epoch or not isinstance(sample["id"], str | int):
        return sample["id"]
    return f"{sample['id']} (epoch {sample.get('epoch', 1)})"


def _graded(value: Any) -> Any:
    """A grade or a word as inspect_ai's own metrics count it; all else as it is."""
    if not isinstance(value, str):
        return value
    if value in _GRADES:
        return _GRADES[value]
    if value.lower() in _WORDS:
        return _WORDS[value.lower()]
    try:
        number = float(value)
    except ValueError:
        return value
    return number if math.isfinite(number) else value


def _kind(sample: dict[str, Any], chosen: Chosen) -> Any:
    metadata = sample.get("metadata")
    if chosen.kind_field is None or not isinstance(metadata, dict):
        return None
    return metadata.get(chosen.kind_field)


def _content(sample: dict[str, Any]) -> str:
    """A list of messages carries ids of its own: only its target can be held against another's."""
    target, text = sample.get("target"), sample.get("input")
    targets = target if isinstance(target, list) else [target]
    parts = [str(part)[:_PREFIX] for part in targets[:100]]
    return json.dumps([text[:_PREFIX] if isinstance(text, str) else None, *parts])


def _member(archive: zipfile.ZipFile, file: BinaryIO, member: str, name: str) -> bytes:
    """A member's bytes, its checksum compared.

    Raises:
        ConfigError: it is too large, as told or in truth.
    """
    info = archive.getinfo(member)
    fix = "give the log as .json, or as JSONL of id and success"
    if info.file_size > LONGEST:
        what = f"{member} is {info.file_size:,} bytes; the most is {LONGEST:,}"
        raise bad_file(what, name, fix)
    if info.compress_type == _ZSTANDARD:
        data = _zstandard(file, info, name)
    else:
        with archive.open(info) as opened:
            data = opened.read(info.file_size + 1)
    if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
        raise bad_file(f"{member} is not what the archive says it is", name, fix)
    return data


def _zstandard(file: BinaryIO, info: zipfile.ZipInfo, name: str) -> bytes:
    """At most one byte more than the archive declares: more is seen without being held."""
    try:
        import zstandard  # noqa: PLC0415 - an optional dependency
    except ImportError as error:
        fix = "pip install 'runbook[inspect]', or: inspect log convert --to json"
        raise bad_file("the log is compressed with zstandard", name, fix) from error
    if info.flag_bits & 1:
        raise RuntimeError(f"{info.filename} is encrypted")
    file.seek(info.header_offset)
    name_length, extra_length = struct.unpack("<26x2H", file.read(30))
    file.seek(name_length + extra_length, io.SEEK_CUR)
    packed = io.BytesIO(file.read(min(info.compress_size, LONGEST)))
    unpack = zstandard.ZstdDecompressor(max_window_size=2**27)
    try:
        with unpack.stream_reader(packed, read_across_frames=True) as reader:
            return reader.read(info.file_size + 1)
    except zstandard.ZstdError as error:
        raise zipfile.BadZipFile(f"{info.filename}: {error}") from error
