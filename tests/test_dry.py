"""The DRY sentinel: a second loader, template switch, scorer or prompt is found where it stands."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from gates import dry
from gates.dry import find_violations
from gates.dry_rules import RULES, rules
from gates.dry_source import folded, parse
from runbook.cli import app, seams
from runbook.schema import load_plan
from runbook.step_function import find_module
from runbook.testing import make_plan, make_step

ROOT = Path(__file__).parents[1]
PHASES = ROOT / "phases"
EXAMPLES = Path(__file__).parent / "dry_examples"
MARK = re.compile(r"# finds: (\S+)")
DISHONEST = sorted((EXAMPLES / "dishonest").glob("*.py"))


def found(path: Path, home: Path = PHASES) -> list[tuple[int, str]]:
    """Line and rule of each finding in a file."""
    return [(finding.line, finding.rule) for finding in find_violations([path], home)]


def found_in(code: str, folder: Path) -> list[str]:
    """The rules of the findings in a user's phase."""
    path = folder / "mine.py"
    path.write_text(code)
    return [rule for _, rule in found(path)]


@pytest.mark.parametrize("path", DISHONEST, ids=lambda path: path.stem)
def test_every_marked_line_of_a_dishonest_phase_is_found_and_no_other(path: Path) -> None:
    """What each example does on the sly is found on its line, and nothing is found elsewhere."""
    lines = path.read_text("utf-8").splitlines()
    marked = [(n, mark[1]) for n, line in enumerate(lines, 1) if (mark := MARK.search(line))]
    assert marked != []
    assert found(path) == marked


def test_every_rule_has_an_example() -> None:
    """No rule stands in ``specs/dry`` that was never seen to find something."""
    marked = {mark for path in DISHONEST for mark in MARK.findall(path.read_text("utf-8"))}
    assert {rule.rule_id for rule in rules()} == marked
    assert all(rule.rule_id.startswith(f"{rule.family}-") for rule in rules())


@pytest.mark.parametrize(
    "path", sorted((EXAMPLES / "honest").glob("*.py")), ids=lambda path: path.stem
)
def test_an_honest_phase_has_no_finding(path: Path) -> None:
    """Code that goes through the canonical pieces, and talks of prompts, is left alone."""
    assert find_violations([path], PHASES) == ()


@pytest.mark.parametrize(
    "code",
    [
        "log.warning('Response: %s', text)\n",
        "parser.add_argument('--shape', help='as in Instruction: x')\n",
        "raise ValueError(f'Label: {text} is no label')\n",
        "kept = [row for row in rows if 'Response:' not in row]\n",
        "found = re.search(r'^Response:', text)\n",
        "x = 1  # Instruction: AutoModel.from_pretrained('x')\n",
        "def f():\n    '''Response: apply_chat_template('<|im_start|>')'''\n",
        "if '<|im_start|>' in text:\n    drop(text)\n",
        "record['chat_template'] = tokenizer.chat_template\n",
        "seen = tokenizer.chat_template is None\n",
        "meter.add_tokens(5)\n",
        "from transformers import TrainerCallback, PreTrainedModel\n",
        "ok = importlib.metadata.version('transformers')\n",
        "kind = config['architectures'] == ['Gemma3ForCausalLM']\n",
        "def f(out):\n    p = out.softmax(-1)\n    return 'good' if p.max() > 0.5 else 'bad'\n",
        "def f(out):\n    m = out.logprobs\n    return {'yes': sum(m), 'no': len(m)}\n",
        "def f(rows):\n    return [r for r in rows if r.grade in ('A', 'B')]\n",
        "def f(r):\n    return 'A' if r['logp_a'] > r['logp_b'] else 'B'\n",
        "def f(e, q):\n    return e.generate([q], None, [], 0)[0].text in ('A', 'B', 'C', 'D')\n",
        "rows = {'Q': 'Q: who?', 'A': 'A: me'}\n",
        "data = json.load(file) or numpy.load(path) or self.load()\n",
    ],
)
def test_a_hard_innocent_line_has_no_finding(code: str, tmp_path: Path) -> None:
    """What only resembles a second loader, template switch, scorer or prompt is none."""
    assert found_in(code, tmp_path) == []


def test_the_project_itself_has_no_finding() -> None:
    """Every folder of the project goes through the canonical pieces."""
    folders = ("phases", "gates", "agent", "runbook")
    sources = [path for name in folders for path in (ROOT / name).rglob("*.py")]
    assert len(sources) > 100
    assert [str(finding) for finding in find_violations(sources, PHASES)] == []


def test_a_phase_read_as_a_strangers_shows_no_more_than_its_exemptions() -> None:
    """The project's own files are searched by their plain text; no spelling hides anything."""
    exempt = {rule.family: rule.exempt for rule in rules()}
    foreign = find_violations(PHASES.glob("*.py"), ROOT)
    assert len(foreign) > 10
    assert [str(f) for f in foreign if f.path.name not in exempt[f.rule.partition("-")[0]]] == []


@pytest.mark.parametrize("name", ["base_model.py", "prompts.py", "critic.py"])
def test_a_canonical_name_elsewhere_is_no_excuse(name: str, tmp_path: Path) -> None:
    """A copy of a canonical file in a user's folder is found: only the project's own is exempt."""
    copy = tmp_path / name
    copy.write_bytes((PHASES / name).read_bytes())
    assert find_violations([copy], PHASES) != ()


def test_a_finding_names_file_line_rule_and_the_piece_to_use(tmp_path: Path) -> None:
    """One line tells a person all that is needed to mend it."""
    path = tmp_path / "mine.py"
    path.write_text("import torch\nstop = '###END###'\n")
    (finding,) = find_violations([path], PHASES)
    assert (
        str(finding) == f"{path}:2: prompt-marker: writes a prompt: ###END###; use phases.prompts"
    )


@pytest.mark.parametrize(
    "code",
    [
        b"def run(: pass\n",
        b"def run(request:\n    return 1\n",
        b"x = (1\n",
        b"return 1\n",
        b"print 'x'\n",
        b"x = '\xff'\n",
        b"x = 1\x00\n",
        b"# coding: no-such\n",
        b"x = " + b"(" * 5000 + b")" * 5000,
    ],
)
def test_what_python_would_not_run_is_a_finding(code: bytes, tmp_path: Path) -> None:
    """What the parser would forgive and Python would not cannot be trusted."""
    path = tmp_path / "torn.py"
    path.write_bytes(code)
    assert [rule for _, rule in found(path)] == [dry.UNREADABLE]


@pytest.mark.parametrize(
    "code",
    [
        "stop = '###EN' 'D###'\n",
        "stop = ('###'  # the end\n        r'END###')\n",
        "stop = '\\x23##END###'\n",
        "stop = '###EN\\\nD###'\n",
        "stop = f'{1}###E' f'ND###'\n",
        "stop = f'{x}###E' + ('ND###') + y\n",
        'stop = """\\\\\n""" \'###EN\' \'D###\'\n',
        "stop = y + '###E' + 'ND###'\n",
        "# coding: utf-7\nstop = '+ACMAIwAj-END+ACMAIwAj-'\n",
    ],
)
def test_a_text_in_any_spelling_is_found(code: str, tmp_path: Path) -> None:
    """A literal in pieces, in escapes or in another encoding is one text to Python, and here."""
    assert found_in(code, tmp_path) == ["prompt-marker"]


@st.composite
def literals(draw: st.DrawFn) -> str:
    """A text that the prompt rule looks for, as one or more literals side by side."""
    text = draw(st.sampled_from(["Instruction:", "###END###", "a Label: b", "## #END###"]))
    code = ""
    for character in text:
        between = ["", "", "", "' '", "' \"", "'  # so\n  '", "' r'", "' f'", "\\\n", "' + '"]
        code += draw(st.sampled_from(between)).replace('"', "'")
        code += draw(st.sampled_from([character] * 3 + [f"\\x{ord(character):02x}"]))
    return f"text = ('{code}')\nafter = 1\n"


@given(literals())
def test_folding_keeps_what_a_program_says_and_every_line(code: str) -> None:
    """The folded text has the values and the lines of the original."""
    # Between r' and the next quote an escape is none; Python itself says what the text is.
    before: dict[str, object] = {}
    after: dict[str, object] = {}
    exec(code, before)
    text, _ = folded(code, parse(code))
    exec(text, after)
    assert after["text"] == before["text"]
    assert text.count("\n") == code.count("\n")
    assert text.split("\n")[-2] == "after = 1"


@pytest.mark.parametrize("linked", [False, True])
def test_a_file_is_read_again_only_where_it_changed(
    linked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a size, a modification time that was put back nor a link hides new bytes."""
    read: list[str] = []

    def count(text: str) -> object:
        read.append(text)
        return parse(text)

    monkeypatch.setattr(dry, "parse", count)
    monkeypatch.setattr(dry, "_SETTLED_NS", 0)
    path = tmp_path / "mine.py"
    path.write_text("stop = 'peft END###'\n")
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    time.sleep(0.05)
    seen = tmp_path / "link.py" if linked else path
    if linked:
        seen.symlink_to(path)
    assert found(seen) == found(seen) == []
    assert len(read) == 1
    path.write_text("stop = 'p ###END###'\n")
    os.utime(path, ns=times)
    assert found(seen) == [(1, "prompt-marker")]
    assert len(read) == 2


def test_a_file_that_is_still_being_written_is_read_each_time(tmp_path: Path) -> None:
    """Two writes within one tick of the volume's clock have the same times."""
    assert found_in("stop = 'peft END###'\n", tmp_path) == []
    assert found_in("stop = 'p ###END###'\n", tmp_path) == ["prompt-marker"]


def test_a_link_counts_as_the_file_that_it_leads_to(tmp_path: Path) -> None:
    """A canonical name in the phases' folder excuses nothing that lies elsewhere, also later."""
    home, far = tmp_path / "phases", tmp_path / "far"
    home.mkdir()
    far.mkdir()
    (home / "prompts.py").write_text("stop = '###END###'\n")
    (far / "prompts.py").write_text("stop = '###END###'\n")
    link = home / "critic.py"
    link.symlink_to(home / "prompts.py")
    assert find_violations([home / "prompts.py", link], home) == ()
    link.unlink()
    link.symlink_to(far / "prompts.py")
    assert [f.path for f in find_violations(home.glob("*.py"), home)] == [link]


def test_a_folder_linked_to_the_phases_is_the_phases(tmp_path: Path) -> None:
    """However a file's folder is written, its canonical files are exempt."""
    home = tmp_path / "phases"
    home.mkdir()
    (home / "prompts.py").write_text("stop = '###END###'\n")
    (tmp_path / "linked").symlink_to(home)
    for name in ("linked/prompts.py", "phases/../phases/prompts.py"):
        assert found(tmp_path / name, home) == []


def test_what_is_no_regular_file_is_a_finding(tmp_path: Path) -> None:
    """A pipe, a folder and a broken link are told of, and none of them is waited for."""
    pipe, folder, link = (tmp_path / f"{name}.py" for name in ("a_pipe", "b_folder", "c_link"))
    os.mkfifo(pipe)
    folder.mkdir()
    link.symlink_to(tmp_path / "nowhere.py")
    findings = find_violations([pipe, folder, link], PHASES)
    assert [finding.path for finding in findings] == [pipe, folder, link]
    assert {finding.rule for finding in findings} == {dry.UNREADABLE}


def test_a_session_reads_the_runbooks_own_code_whole(tmp_path: Path) -> None:
    """A step's package, a folder linked into it and a module beside the runbook are all read."""
    folder = tmp_path / "book"
    for name in ("steps/inner", "elsewhere"):
        (folder / name).mkdir(parents=True)
    (folder / "steps/__init__.py").write_text("def run(request):\n    return request\n")
    (folder / "steps/inner/deep.py").write_text("a = f.from_pretrained\n")
    (tmp_path / "far").mkdir()
    (tmp_path / "far/linked.py").write_text("b = f.from_pretrained\n")
    (folder / "steps/far").symlink_to(tmp_path / "far")
    (folder / "beside.py").write_text("c = f.from_pretrained\n")
    (folder / "elsewhere/unused.py").write_text("d = f.from_pretrained\n")
    plan = load_plan(write_book(folder))
    lines = seams.dry_findings(plan)
    names = {Path(line.partition(":")[0]).name for line in lines}
    assert names == {"deep.py", "linked.py", "beside.py"}


def test_a_package_taken_whole_is_looked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What many steps of the phases cost before each step is one look for their package."""
    asked: list[str] = []

    def count(module: str, folder: Path) -> Path | None:
        asked.append(module)
        return find_module(module, folder)

    monkeypatch.setattr(seams, "find_module", count)
    steps = [make_step(name, function=f"phases.{name}:run") for name in ("pilot", "scale", "sft")]
    plan = make_plan(*steps, runbook=tmp_path / "runbook.yaml")
    home = seams.phases_home()
    assert sorted(seams.phase_sources(home, plan)) == sorted(seams.python_files(str(home)))
    assert asked == ["phases"]


def test_of_a_package_installed_elsewhere_each_steps_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of its modules are steps and read; a third one is somebody else's."""
    package, book = tmp_path / "site/far_steps", tmp_path / "book"
    package.mkdir(parents=True)
    book.mkdir()
    (package / "__init__.py").write_text("")
    for name in ("one", "two", "three"):
        (package / f"{name}.py").write_text("a = f.from_pretrained\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    steps = [make_step(name, function=f"far_steps.{name}:run") for name in ("one", "two")]
    lines = seams.dry_findings(make_plan(*steps, runbook=book / "runbook.yaml"))
    assert {Path(line.partition(":")[0]).name for line in lines} == {"one.py", "two.py"}


def test_a_package_that_comes_before_the_phases_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a step would import is read, also where it begins to hide the phases in a session."""
    (tmp_path / "book").mkdir()
    step = make_step("pilot", function="phases.pilot:run")
    plan = make_plan(step, runbook=tmp_path / "book/runbook.yaml")
    assert seams.dry_findings(plan) == []
    package = tmp_path / "site/phases"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "pilot.py").write_text("a = f.from_pretrained\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    (line,) = seams.dry_findings(plan)
    assert line.startswith(f"{package / 'pilot.py'}:1: loader-attribute")


def write_book(folder: Path) -> Path:
    """A runbook of one step, whose code lies beside it."""
    book = folder / "runbook.yaml"
    book.write_text(
        "runbook: 1\nname: mine\nseed: 1\n"
        "model: {name: m, family: m, source: {path: m}, prefix: none, chat_template: none,"
        " dtype: bfloat16}\n"
        "engine: {name: fake}\nbudget: {wall_clock: 10m}\nreviewer: {provider: human}\n"
        "phases:\n"
        "  - name: A\n    title: Mine\n"
        "    steps:\n      - {name: own, function: 'steps:run', output: artifacts/own}\n"
    )
    return book


def test_the_command_ends_with_5_and_tells_programs(tmp_path: Path) -> None:
    """Findings go to people and to programs, and the exit code is the sentinel's."""
    path = tmp_path / "mine.py"
    path.write_text("stop = '###END###'\n")
    done = CliRunner().invoke(app, ["gate", "dry", str(path), "--json"])
    assert done.exit_code == 5
    (line,) = done.stdout.splitlines()
    assert json.loads(line) == {
        "path": str(path),
        "line": 1,
        "rule": "prompt-marker",
        "found": "writes a prompt: ###END###",
        "use": "phases.prompts",
    }
    assert f"{path}:1: prompt-marker" in done.stderr


def test_the_command_without_paths_reads_the_phases() -> None:
    """The project's phases are clean, and the count of files is told."""
    done = CliRunner().invoke(app, ["gate", "dry"])
    assert done.exit_code == 0, done.stderr
    assert f"no findings in {len(list(PHASES.rglob('*.py')))} files" in done.stderr


def test_the_command_refuses_to_look_at_nothing(tmp_path: Path) -> None:
    """A path without Python in it is a mistake, and no clean bill."""
    command = [sys.executable, "-m", "runbook", "gate", "dry", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no Python file" in done.stderr


def test_the_rules_stand_where_an_installed_package_has_them() -> None:
    """They are package data, like every spec."""
    assert RULES == ROOT / "specs" / "dry"
    assert {path.suffix for path in RULES.iterdir()} == {".yaml"}
