"""Inputs are data: none runs code, hangs, leaves the workspace or speaks to a terminal."""

import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_session import Called, call, write_runbook

from phases import prepare_model
from phases.held_out import load_items
from phases.jsonl import MAX_FILE, MAX_LINE, read_lines
from phases.probes import ProbeInstruction, load_probes
from phases.snapshot import check_adapter, check_snapshot
from runbook import yaml_source
from runbook.artifacts import complete_directory, sha256_file
from runbook.contract import Committed, PhaseRequest
from runbook.errors import ConfigError
from runbook.schema import load_plan
from runbook.testing import LocalChannel

Capture = pytest.CaptureFixture[str]
HOSTILE = (
    (
        "x\x1b[2J\x1b]0;owned\x07\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\"
        "\x1b]52;c;cm0gLXJmIC8=\x07\x9b31m\x85\u202egnp\u2066\u200b\r\n\n# heading\n"
        "<script>alert(1)</script><img src=x onerror=alert(2)>\n"
        "[click](http://evil.example) ![pixel](http://evil.example/p.png)\n"
        "| a | b |\n|---|---|\n```\n~~~\n</td></table> `code` \ud83d\ude00"
    )
    .encode("utf-16", "surrogatepass")
    .decode("utf-16")
)
"""Escapes of a terminal, bidi overrides, HTML, Markdown's links, images, tables and fences."""
MARKUP = re.compile(
    r"<script|<img|<td|</t|(?<!\\)\]\(http|!\[pixel\]\(|^```|^# heading", re.MULTILINE
)
pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the runbook of fake steps."""
    write_runbook(tmp_path, {"batches": 1, "sizes": [1, 2], "metrics": {"score": 0.9}})
    return tmp_path


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Change a document that is written as JSON."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def refused(folder: Path, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_plan(folder / "runbook.yaml", overrides, environ={})
    assert caught.value.code == 2
    assert caught.value.fix
    assert is_printable(str(caught.value))
    return caught.value


def is_printable(text: str) -> bool:
    """Whether a terminal would act on nothing in the text."""
    return all(c.isprintable() or c == "\n" for c in text)


# Runbooks and specs


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"[" * 100_000, "nested deeper than 50 levels"),
        (b'{"a": ' * 100_000, "nested deeper than 50 levels"),
        (b"a: 1\0", "character U+0000 is not allowed"),
        ("runbook: 1\n".encode("utf-16"), "byte 0xff is not UTF-8"),
        ("runbook: 1\n".encode("utf-16-le"), "character U+0000 is not allowed"),
        ("runbook: 1\n".encode("utf-32"), "byte 0xff is not UTF-8"),
        (b"a: " + b"9" * 100_000, "is not a number"),
        (b"a: .inf", "is not a finite number"),
        (b"a: &x {b: 1}\nc: {<<: *x}", "merge keys (<<) are not used"),
        (b"a: !!python/object/apply:os.system [touch owned]", "tag !!python/object/apply:os.sys"),
    ],
)
@pytest.mark.parametrize("name", ["runbook.yaml", "a.yaml"])
def test_hostile_bytes_in_place_of_a_document(
    folder: Path, name: str, data: bytes, what: str
) -> None:
    """A runbook and a spec are refused by file and position, whatever stands in them."""
    (folder / name).write_bytes(data)
    error = refused(folder)
    assert what in error.what
    assert re.fullmatch(rf"{re.escape(str(folder / name))}:\d+:\d+", error.where)


@pytest.mark.parametrize("tag", ["!" * 1_000_000, "!" + "x" * 1_000_000, "!<" + "x" * 1_000_000])
def test_a_long_tag_takes_no_time(tag: str) -> None:
    """What refuses a tag does not read all of it, which would take half a minute."""
    start = time.monotonic()
    with pytest.raises(ConfigError):
        yaml_source.parse_yaml(f"a: {tag}", "f.yaml")
    assert time.monotonic() - start < 20


def test_a_huge_file_is_not_read(folder: Path) -> None:
    """200 MB are refused by their size."""
    with (folder / "runbook.yaml").open("wb") as file:
        file.truncate(200_000_000)
    start = time.monotonic()
    assert "larger than" in refused(folder).what
    assert time.monotonic() - start < 20


@pytest.fixture
def odd(folder: Path) -> Iterator[dict[str, str]]:
    """Paths of what is no regular file, by kind."""
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "zero").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        before = Path.cwd()
        os.chdir(folder)  # a socket's path is short
        listening.bind("socket")
        os.chdir(before)
        yield {
            "pipe": "is not a regular file",
            "folder": "is a directory",
            "loop": "cannot be read: Too many levels of symbolic links",
            "zero": "is not a regular file",
            "socket": "is not a regular file",
        }


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "zero", "socket"])
@pytest.mark.parametrize("place", ["runbook", "spec", "file"])
def test_what_is_no_file_is_not_waited_for(
    folder: Path, odd: dict[str, str], kind: str, place: str
) -> None:
    """A pipe, folder, device, socket or loop of links is refused wherever a file is named."""
    if place == "runbook":
        (folder / "runbook.yaml").unlink()
        (folder / "runbook.yaml").symlink_to(folder / kind)
    elif place == "spec":
        edit(folder / "runbook.yaml", lambda d: d["phases"][0]["steps"][0].update(spec=kind))
    else:
        edit(folder / "a.yaml", lambda d: d.update(files={"rows": kind}))
    assert odd[kind] in refused(folder).what


def test_a_pipe_that_took_a_files_place_is_not_waited_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Swapped in between the look and the reading, it is told for what it is."""
    monkeypatch.setattr(yaml_source, "unreadable", lambda _: None)
    os.mkfifo(folder / "pipe")
    with pytest.raises(ConfigError, match="no regular file"):
        yaml_source.read_yaml(folder / "pipe")


def test_a_model_folder_that_is_a_loop_of_links(folder: Path) -> None:
    """The plan can be made; the step that looks for the model is what finds nothing there."""
    (folder / "loop").symlink_to("loop")
    edit(folder / "runbook.yaml", lambda d: d["model"]["source"].update(path="loop/model"))
    plan = load_plan(folder / "runbook.yaml", environ={})
    with pytest.raises(ConfigError, match="there is no such model folder"):
        check_snapshot(Path(plan.model["source"]["path"]))


@pytest.mark.parametrize(
    ("output", "what"),
    [
        ("../../tmp/x", "may lie outside the workspace"),
        ("artifacts/../../x", "may lie outside the workspace"),
        ("/tmp/x", "may lie outside the workspace"),
        (".runbook", "is not the name of a folder"),
        (".runbook/blobs", "is not the name of a folder"),
        ("artifacts/.hidden", "is not the name of a folder"),
        ("a\u202eb", "is not the name of a folder"),
        ("x" * 300, "is not the name of a folder"),
        ("/".join(["a"] * 300), "is not the name of a folder"),
        ("logs", "is a place of the executor's own"),
        ("reviews/mine", "is a place of the executor's own"),
        ("report.md", "is a place of the executor's own"),
        ("artifacts", "is a place of the executor's own"),
        ("artifacts/work/b/attempt_1", "is a place of the executor's own"),
        ("artifacts/session_manifest_{time}.json", "is a place of the executor's own"),
        ("artifacts/b_{time}", "has the same output"),
        ("artifacts/b_{time}/inner", "lies within that of the step"),
    ],
)
def test_an_output_stays_in_a_place_of_its_own(folder: Path, output: str, what: str) -> None:
    """No step writes outside the workspace, over the executor's files or over another step's."""
    edit(folder / "runbook.yaml", lambda d: d["phases"][0]["steps"][0].update(output=output))
    assert what in refused(folder).what


@pytest.mark.parametrize("inner", [0, 1])
def test_an_output_within_another_is_refused_in_either_order(folder: Path, inner: int) -> None:
    """A step may clear its folder, so none lies within it; a name that only begins alike may."""
    outputs = ["results/a", "results/a"]
    outputs[inner] += "/b"

    def place(document: Any) -> None:
        for phase, output in zip(document["phases"], outputs, strict=False):
            phase["steps"][0]["output"] = output

    edit(folder / "runbook.yaml", place)
    assert "lies within that of the step 'a', or the other way" in refused(folder).what
    outputs[inner] = "results/ab"
    edit(folder / "runbook.yaml", place)
    assert load_plan(folder / "runbook.yaml", environ={}).steps[inner].output == "results/ab"


@pytest.mark.parametrize("link", ["artifacts", "results"])
def test_a_folder_that_links_out_of_the_workspace_is_not_written_to(
    folder: Path, capfd: Capture, link: str
) -> None:
    """A step whose output would land elsewhere does not run, and nothing lands there."""
    outside, workspace = folder / "outside", folder / "ws"
    outside.mkdir()
    workspace.mkdir()
    (workspace / "results").symlink_to(outside)
    edit(folder / "runbook.yaml", lambda d: d["phases"][0]["steps"][0].update(output=f"{link}/a"))
    ended = call(capfd, "run", folder / "runbook.yaml", "--workspace", workspace)
    assert ended.code == (0 if link == "artifacts" else 2), ended.err
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize(
    "override",
    [
        f"engine{'.a' * 3000}=1",
        f"a.sizes.{'9' * 5000}=1",
        f"a.batches={'9' * 5000}",
        "a.batches=.nan",
        "a.batches=-.inf",
        "a.batches=1e999",
        "a.batches=!!python/object/apply:os.system [touch owned]",
        "a.batches={<<: {b: 1}}",
        f"a.sizes={'[' * 100_000}",
        "a.sizes=[&a [1], *b]",
        "a.__class__=1",
        "a.\x1b]0;owned\x07=1",
        "a.batches=\x1b[2J",
        "phases=[]",
        "reviewer.provider=command",
    ],
)
def test_a_hostile_override_is_refused(folder: Path, override: str) -> None:
    """Nothing on the command line ends in a traceback, or gets past what the runbook declares."""
    refused(folder, override)


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ({"pypi": ".relative"}, "is not a package's name"),
        ({"pypi": "os.path; touch owned"}, "is not a package's name"),
        ({"pypi": "../evil"}, "is not a package's name"),
        ({"hub": "../../evil", "revision": "0" * 40}, "is not a repository's name"),
        ({"hub": "a/b/c", "revision": "0" * 40}, "is not a repository's name"),
        ({"hub": "http://evil.example/a", "revision": "0" * 40}, "is not a repository's name"),
    ],
)
def test_a_model_is_named_plainly(folder: Path, source: dict[str, str], what: str) -> None:
    """A package and a repository are names, never a path, an address or a module's inside."""
    edit(folder / "runbook.yaml", lambda d: d["model"].update(source=source))
    assert what in refused(folder).what


# Modules beside a runbook

STEP = "def run(request):\n    return None\n"
MODEL = "from pydantic import BaseModel, model_validator\nclass P(BaseModel):\n    batches: int\n"
AFTER = '    @model_validator(mode="after")\n    def check(self):\n        '
CHECK = "    def check_files(self):\n        "
RULE = f"""{AFTER}from pydantic_core import PydanticCustomError
        raise PydanticCustomError('rule', 'no')
"""
SPEAKS = f"""{CHECK}from runbook.errors import ConfigError
        raise ConfigError('\\x1b[2J', where='\\x9b', fix='\\u202e')
"""


def beside(folder: Path, module: str, model: str = "") -> None:
    """Have the first step come from a module beside the runbook."""
    (folder / "theirs.py").write_text(module + STEP)
    (folder / "their_params.py").write_text(MODEL + model)
    edit(
        folder / "runbook.yaml",
        lambda d: d["phases"][0]["steps"][0].update(function="theirs:run"),
    )


@pytest.mark.parametrize("text", ["PARAMS = {[]: 1}\n", "METRICS = {[]: 1}\n", "PARAMS = (-'a')\n"])
def test_a_literal_that_is_none_is_refused(folder: Path, text: str) -> None:
    """Python's own errors about a literal do not get through."""
    beside(folder, text)
    assert "of 'theirs' is no" in refused(folder).what


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (f"{AFTER}raise KeyError('\\x1b[2J')", "P cannot check the parameters: KeyError"),
        (f"{AFTER}return self.check()", "P cannot check the parameters: RecursionError"),
        (RULE, "is refused: no"),
        (f"{CHECK}raise KeyError('\\x1b[2J')", "the step 'a' cannot be checked: KeyError"),
        (f"{CHECK}raise SystemExit(0)", "the step 'a' cannot be checked: SystemExit"),
        (f"{CHECK}return self.check_files()", "the step 'a' cannot be checked: RecursionError"),
        (SPEAKS, "\\x1b[2J"),
    ],
)
def test_a_model_of_parameters_that_misbehaves(folder: Path, body: str, what: str) -> None:
    """Whatever a step's own check raises is told as an error of the configuration."""
    beside(folder, 'PARAMS = "their_params:P"\n', body)
    edit(folder / "a.yaml", lambda d: d.update(params={"batches": 1}))
    assert what in refused(folder).what


def test_validating_runs_no_step(folder: Path, capfd: Capture) -> None:
    """A step's module is parsed and not imported, so what stands at its top does not run."""
    beside(folder, f"open({str(folder / 'owned')!r}, 'w')\n")
    assert call(capfd, "validate", folder / "runbook.yaml").code == 0
    assert not (folder / "owned").exists()


# Files of rows

ITEM: dict[str, Any] = {
    "id": "a",
    "kind": "number",
    "instruction": "How many legs has a dog?",
    "reference": "4",
    "checks": [{"check": "number", "value": 4}],
}
Load = Callable[[Path], object]
LOADERS: list[Load] = [load_items, lambda path: load_probes(path, ProbeInstruction)]


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\xff\xfe{\0}\0", "not readable as UTF-8 text"),
        (b'{"id": "\xed\xa0\x80"}\n', "not readable as UTF-8 text"),
        (b'{"id": "\\ud800"}\n', "hex escape"),
        (b"[" * 100_000 + b"\n", "recursion limit"),
        (b'{"a": ' * 100_000 + b"1" + b"}" * 100_000 + b"\n", "recursion limit"),
        (b'{"id": NaN}\n', "id: "),
        (b'{"\x1b[2J": 1}\n', "Invalid JSON"),
        (b'{"\\u001b[2J\\u202e": 1}\n', r"\x1b[2J\u202e: "),
        (b"x" * (MAX_LINE + 1) + b"\n", "the line is longer than"),
        (b"null\n", "the row: "),
    ],
)
def test_hostile_rows(tmp_path: Path, load: Load, data: bytes, what: str) -> None:
    """A row that is no plain JSON object is refused with its line, on printable text."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert what in caught.value.what
    assert caught.value.where.startswith(str(path))
    assert is_printable(str(caught.value))


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ('"reference": "4"', '"reference": "5", "reference": "4"', "the key 'reference' stands tw"),
        ('"value": 4', '"value": 5, "value": 4', "the key 'value' stands twice"),
        ('"value": 4', '"value": NaN', "finite number"),
        ('"value": 4', '"value": -Infinity', "finite number"),
        ('"value": 4', '"value": 1e999', "finite number"),
    ],
)
def test_a_row_that_reads_two_ways_is_refused(
    tmp_path: Path, old: str, new: str, what: str
) -> None:
    """Two values for one key, or a number that is none, is nobody's held-out item."""
    line = json.dumps(ITEM)
    path = tmp_path / "held_out.jsonl"
    path.write_text(f"\ufeff{line}\r\n")
    assert len(load_items(path)) == 1
    assert old in line
    path.write_text(line.replace(old, new))
    with pytest.raises(ConfigError, match="not a held-out item") as caught:
        load_items(path)
    assert what in caught.value.what


@pytest.mark.parametrize("load", LOADERS)
def test_a_file_without_end_is_not_read(tmp_path: Path, load: Load) -> None:
    """A gigabyte in one line, a pipe, a folder and a device end at once."""
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "long").open("wb") as file:
        file.truncate(1 << 30)
    start = time.monotonic()
    for path in (tmp_path / "pipe", tmp_path / "long", tmp_path, Path("/dev/zero")):
        with pytest.raises(ConfigError) as caught:
            load(path)
        assert caught.value.where == str(path)
    assert time.monotonic() - start < 20


def test_a_line_is_bounded_within_a_file_that_is_not_too_long(tmp_path: Path) -> None:
    """Lines come one by one, up to the one without end."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"{}\n" + b"x" * MAX_LINE + b"\n")
    assert MAX_LINE < MAX_FILE
    rows = read_lines(path)
    assert next(rows) == (1, "{}")
    with pytest.raises(ConfigError, match="longer than"):
        next(rows)


# Model folders


class Bomb:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that passes for a snapshot, with pickles beside its weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["L"]}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    for name in ("pytorch_model.bin", "extra.pkl", "modeling_evil.py"):
        (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "owned")))
    return folder


def test_the_bomb_is_live(model: Path, tmp_path: Path) -> None:
    """The pickle of these tests does run code when something loads it."""
    pickle.loads((model / "extra.pkl").read_bytes())
    assert (tmp_path / "owned").exists()


def index(*names: str) -> str:
    return json.dumps({"weight_map": {f"w{i}": name for i, name in enumerate(names)}})


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("model.safetensors", None, "the model folder has no weights"),
        ("config.json", "[" * 100_000, "config.json cannot be read as JSON"),
        ("config.json", "\x1b[2J", "config.json cannot be read as JSON"),
        ("config.json", "[]", "holds no JSON object"),
        ("config.json", '{"a": {"attn_implementation": "evil/k"}}', "names code on the hub"),
        ("config.json", '{"experts_implementation": "evil/k@v1"}', "names code on the hub"),
        ("adapter_config.json", "{}", "the model folder holds an adapter"),
        ("model.safetensors.index.json", index("../x.safetensors"), "names '../x.safetensors'"),
        ("model.safetensors.index.json", index("/etc/x.safetensors"), "names '/etc/x.safetensors'"),
        ("model.safetensors.index.json", index("pytorch_model.bin"), "names 'pytorch_model.bin'"),
        ("model.safetensors.index.json", index("gone.safetensors"), "names 'gone.safetensors'"),
        ("model.safetensors.index.json", "{}", "the index names no file"),
    ],
)
def test_a_hostile_snapshot_is_refused(
    model: Path, tmp_path: Path, name: str, text: str | None, what: str
) -> None:
    """Told before anything is loaded, and no pickle is opened to find out."""
    check_snapshot(model)
    if text is None:
        (model / name).unlink()
    else:
        (model / name).write_text(text)
    (tmp_path / "x.safetensors").write_bytes(b"elsewhere")
    with pytest.raises(ConfigError) as caught:
        check_snapshot(model)
    assert what in caught.value.what
    assert is_printable(str(caught.value))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("pickled", ["pytorch_model.bin", "m.pt", "m.pth", "m.pkl", "m.ckpt"])
def test_a_model_of_pickles_alone_is_refused(model: Path, tmp_path: Path, pickled: str) -> None:
    """The pickle is named, with the way out: convert it."""
    bomb = (model / "extra.pkl").read_bytes()
    for path in (*model.glob("*.pkl"), *model.glob("*.bin"), model / "model.safetensors"):
        path.unlink()
    (model / pickled).write_bytes(bomb)
    with pytest.raises(ConfigError, match="no weights") as caught:
        check_snapshot(model)
    assert f"convert {pickled} to safetensors" in caught.value.fix
    assert not (tmp_path / "owned").exists()


def test_an_adapter_is_safetensors(tmp_path: Path) -> None:
    """An adapter whose weights are a pickle is refused, and the pickle stays closed."""
    with pytest.raises(ConfigError, match=r"no adapter_config\.json"):
        check_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "owned")))
    with pytest.raises(ConfigError, match="the adapter has no weights") as caught:
        check_adapter(tmp_path)
    assert "convert adapter_model.bin" in caught.value.fix
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    check_adapter(tmp_path)
    assert not (tmp_path / "owned").exists()


def request(tmp_path: Path, source: dict[str, str]) -> PhaseRequest:
    workspace = tmp_path / "ws"
    return PhaseRequest(
        step="prepare_model",
        attempt=1,
        look=1,
        seed=0,
        params={},
        model={"source": source},
        engine={},
        workspace=workspace,
        work=workspace,
        output=workspace / "models" / "base",
        inputs={},
        provenance={},
        channel=LocalChannel(),
    )


def test_what_can_run_code_is_not_copied(model: Path, tmp_path: Path) -> None:
    """Of a model folder only data comes into the workspace: no pickle, no module."""
    prepare_model.run(request(tmp_path, {"path": str(model)}))
    names = {path.name for path in (tmp_path / "ws" / "models" / "base").iterdir()}
    assert names == {"COMPLETE.json", "config.json", "model.safetensors", "tokenizer.json"}


@pytest.mark.parametrize("kind", ["pipe", "zero", "folder"])
def test_a_model_folder_is_copied_file_by_file(model: Path, tmp_path: Path, kind: str) -> None:
    """A device would fill the disk, and a pipe would be waited for."""
    match kind:
        case "pipe":
            os.mkfifo(model / "x.json")
        case "zero":
            (model / "x.json").symlink_to("/dev/zero")
        case _:
            (model / "x.json").mkdir()
    with pytest.raises(ConfigError, match=r"'x\.json' is no regular file"):
        prepare_model.run(request(tmp_path, {"path": str(model)}))


def test_a_file_by_the_way_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's package is one that was installed; a module of its name is not even imported."""
    (tmp_path / "evil_gguf.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="is not installed"):
        prepare_model.run(request(tmp_path, {"pypi": "evil-gguf"}))
    assert not (tmp_path / "owned").exists()


LOAD = """
import sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from phases.base_model import load_base_model
from runbook.errors import RunbookError
try:
    load_base_model(Path(sys.argv[1]), {"dtype": "float32"}, {}, adapter=Path(sys.argv[2]))
except RunbookError as error:
    print(error.what)
"""


def test_loading_runs_no_code_of_the_checkpoint(tmp_path: Path) -> None:
    """Code that config and tokenizer ask for, and pickles of model and adapter, stay as they are.

    One process, one tiny made-up folder; each of its traps would leave a file behind.
    """
    folder, adapter = tmp_path / "model", tmp_path / "adapter"
    owned = tmp_path / "owned"
    bomb = pickle.dumps(Bomb(owned))
    code = f"open({str(owned)!r}, 'w')\nclass Evil: pass\n"
    config = {
        "model_type": "evil",
        "architectures": ["Evil"],
        "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"},
    }
    for place in (folder, adapter):
        place.mkdir()
        (place / "adapter_model.bin").write_bytes(bomb)
        (place / "pytorch_model.bin").write_bytes(bomb)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}})
    )
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "evil.py").write_text(code)
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    told = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", LOAD, str(folder), str(adapter)],
            input="y\ny\ny\n",
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[1],
        )
        told.append(done.stdout.strip())
        shutil.copyfile(folder / "model.safetensors", adapter / "adapter_model.safetensors")
    assert told[0] == "the adapter has no weights"
    assert told[1].startswith("the model cannot be loaded")
    assert not owned.exists()


def test_a_checkpoint_is_what_was_committed(tmp_path: Path) -> None:
    """One that was changed with its own list of hashes, or got a file more, is not gone on from."""
    from phases.checkpoints import newest_checkpoint  # noqa: PLC0415 - torch is slow to import

    asked = request(tmp_path, {})
    folder = asked.work / "checkpoint-5"

    def save() -> str:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
        complete_directory(folder)
        return sha256_file(folder / "COMPLETE.json")

    relative = f"{folder.relative_to(asked.workspace)}/COMPLETE.json"
    asked.channel.commit(Committed(folder.name, relative, save(), 5))
    assert newest_checkpoint(asked) == folder
    (folder / "adapter_model.safetensors").write_bytes(b"others!")
    complete_directory(folder)
    assert newest_checkpoint(asked) is None
    save()
    (folder / "optimizer.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "owned")))
    assert newest_checkpoint(asked) is None
    assert not folder.exists()


# What a step and a reviewer say

THEIRS = """
import sys
from dataclasses import replace
from runbook.contract import Metric
from runbook.testing import fake_phase

H = {hostile!r}

def run(request):
    request.channel.progress(stage=H, done=1, total=2, kept=H)
    result = fake_phase(request)
    print(H)
    if request.params.get("fail"):
        raise RuntimeError(H)
    row = {{"instruction": H, H: H}}
    return replace(
        result,
        metrics=(*result.metrics, Metric(H, 0.5, n=2, note=H)),
        summary={{H: H, "table": {{H: {{H: 1}}}}, "qc": {{"yield": {{H: 2}}, H: H}}}},
        flagged=(row,),
        samples=(row,),
    )
"""


def hostile_session(folder: Path, capfd: Capture, **params: Any) -> list[Called]:
    """A session whose step and reviewer write HOSTILE wherever they can, and its status."""
    (folder / "theirs.py").write_text(THEIRS.format(hostile=HOSTILE))
    (folder / "reviewer.py").write_text(
        f"import json, sys\nsys.stdin.read()\nsys.stderr.write({HOSTILE!r})\n"
        f"print(json.dumps({{'action': 'stop', 'reason': {HOSTILE!r}, 'changes': {{}}}}))\n"
    )
    edit(folder / "a.yaml", lambda d: d["params"].update(params))

    def change(document: Any) -> None:
        document["phases"][0]["steps"][0].update(function="theirs:run", retries=1, review_after=1)
        command = [sys.executable, str(folder / "reviewer.py")]
        document["reviewer"] = {"provider": "command", "command": command}

    edit(folder / "runbook.yaml", change)
    workspace = folder / "ws"
    ran = call(capfd, "run", folder / "runbook.yaml", "--workspace", workspace)
    return [
        ran,
        call(capfd, "status", "--workspace", workspace),
        call(capfd, "status", "--json", "--workspace", workspace),
        call(capfd, "review", "list", "--workspace", workspace),
        call(capfd, "review", "show", "a-1", "--workspace", workspace),
    ]


@pytest.mark.parametrize(
    "params", [{"metrics": {"score": 0.9}}, {"metrics": {"score": 0.1}}, {"fail": True}]
)
def test_nothing_that_a_step_or_a_reviewer_says_reaches_a_terminal_or_a_page(
    folder: Path, capfd: Capture, params: dict[str, Any]
) -> None:
    """Escapes, bidi and markup are shown as text on screen, in the report and in the question."""
    shown = hostile_session(folder, capfd, **params)
    assert shown[0].code == {0.9: 0, 0.1: 3}.get(params.get("metrics", {}).get("score"), 1)
    for called in shown:
        assert is_printable(called.err), ascii(called.err)
        assert is_printable(called.out)
    pages = [
        path
        for pattern in ("report.md", "reviews/*/request.md", "artifacts/*/gate.txt")
        for path in (folder / "ws").glob(pattern)
    ]
    assert len(pages) == (1 if "fail" in params else 2 if shown[0].code == 0 else 3)
    for page in pages:
        text = page.read_text("utf-8")
        assert is_printable(text), page
        body = "\n".join(line for line in text.split("\n") if not line.startswith("    "))
        if page.suffix == ".md":
            assert not MARKUP.findall(body), page
    report = (folder / "ws" / "report.md").read_text("utf-8")
    assert "x1b" in report
    assert "u202egnp" in report


def test_a_reviewers_reason_is_kept_as_printable_text(folder: Path, capfd: Capture) -> None:
    """What a model answers is escaped before it is recorded, so that no later reader need be."""
    hostile_session(folder, capfd, metrics={"score": 0.1})
    (decision,) = (folder / "ws" / "reviews").glob("*/decision.json")
    reason = json.loads(decision.read_text("utf-8"))["answer"]["reason"]
    assert is_printable(reason)
    assert "\\x1b]52;c;" in reason
