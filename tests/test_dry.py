"""The DRY sentinel: a second loader, template switch, scorer or prompt is found where it stands."""

import ast
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gates import dry
from gates.dry import find_violations

PHASES = Path(__file__).parent.parent / "phases"

VIOLATIONS = {
    "loader": [
        "from transformers import AutoModelForCausalLM as M\n",
        "from transformers import pipeline\n",
        "import transformers\nm = transformers.AutoModel.from_pretrained('x')\n",
        "load = factory.from_pretrained\n",
    ],
    "template": [
        "tokenizer.chat_template = None\n",
        "setattr(tokenizer, 'chat_template', '')\n",
        "text = tokenizer.apply_chat_template(rows)\n",
    ],
    "scorer": [
        "logps = engine.label_logps(prefix, suffixes, ('A', 'B'))\n",
        "def judge(out):\n    p = out.log_softmax(-1)\n    return p[ids['A']] > p[ids[' B']]\n",
    ],
    "prompt": [
        "prompt = f'Instruction: {text}\\nResponse:'\n",
        "stop = '###END###'\n",
    ],
}


@pytest.mark.parametrize(
    ("rule", "code"), [(rule, code) for rule, codes in VIOLATIONS.items() for code in codes]
)
def test_a_violation_is_found_with_its_line(rule: str, code: str, tmp_path: Path) -> None:
    """A plain violation of each rule is one finding that names file, line and the place to use."""
    path = tmp_path / "mine.py"
    path.write_text(f'"""A phase of one\'s own: Instruction: is prose here."""\n\n{code}')
    findings = find_violations([path], PHASES)
    assert {finding.rule for finding in findings} == {rule}
    assert findings[0].line >= 3
    assert str(findings[0]).startswith(f"{path}:{findings[0].line}: ")
    assert "use phases." in str(findings[0])


def test_an_honest_phase_has_no_finding(tmp_path: Path) -> None:
    """Code that goes through the canonical pieces is left alone."""
    path = tmp_path / "mine.py"
    path.write_text(
        '"""Counts A and B."""\n'
        "from phases.base_model import load_base_model\n"
        "from phases.critic import judge_pairs\n\n\n"
        "def run(request):\n"
        '    """Instruction: nothing is built here."""\n'
        "    base = load_base_model(request.workspace, {}, {})\n"
        "    return judge_pairs(base, None, [], 1.0), {'A': 1, 'B': 2}\n"
    )
    assert find_violations([path], PHASES) == ()


def test_the_projects_own_phases_have_no_finding() -> None:
    """Every phase of this project goes through the canonical pieces."""
    sources = list(PHASES.glob("*.py"))
    assert len(sources) > 10
    assert [str(finding) for finding in find_violations(sources, PHASES)] == []


@pytest.mark.parametrize("name", ["base_model.py", "prompts.py", "critic.py"])
def test_a_canonical_name_elsewhere_is_no_excuse(name: str, tmp_path: Path) -> None:
    """A copy of a canonical file in a user's folder is found: only the project's own is exempt."""
    copy = tmp_path / name
    copy.write_bytes((PHASES / name).read_bytes())
    assert find_violations([copy], PHASES) != ()


def test_a_file_that_cannot_be_parsed_is_a_finding(tmp_path: Path) -> None:
    """What looks as if it mattered and cannot be read cannot be trusted."""
    path = tmp_path / "torn.py"
    path.write_text("def run(: transformers\n")
    assert [finding.line for finding in find_violations([path], PHASES)] == [1]


def found_by_walking(data: bytes) -> list[object]:
    """What the rules find where every tree is walked."""
    return list(dry._in_tree(ast.parse(data)))


@pytest.mark.parametrize(
    "code",
    [
        *(code for codes in VIOLATIONS.values() for code in codes),
        "load = factory.\uff46rom_pretrained\n",
        "from \uff54ransformers import pipeline\n",
        "stop = '###EN' 'D###'\n",
        "stop = ('###'  # the end\n        r'END###')\n",
        "stop = '\\x23##END###'\n",
        "stop = '###EN\\\nD###'\n",
        "stop = f'{1}###E' f'ND###'\n",
        "# coding: utf-7\nstop = '+ACMAIwAj-END+ACMAIwAj-'\n",
        "#!/usr/bin/python\n# coding=utf-7\nload = factory.f+AHI-om_pretrained\n",
    ],
)
def test_a_violation_in_any_spelling_is_walked_to(code: str) -> None:
    """Text that no rule could match is told by its bytes, and no spelling slips through."""
    data = code.encode()
    assert found_by_walking(data) == list(dry._in_source(data, "mine.py"))
    assert found_by_walking(data) != []


@st.composite
def literals(draw: st.DrawFn) -> str:
    """A text that is a rule's, as one or more literals that stand side by side."""
    text = draw(st.sampled_from([*dry._TEXTS, "Instruction", "a Label: b", "## #END###"]))
    code = ""
    for character in text:
        between = ["", "", "", "' '", "' \"", "'  # so\n  '", "' r'", "'f'", "\\\n"]
        code += draw(st.sampled_from(between)).replace('"', "'")
        escaped = f"\\x{ord(character):02x}"
        code += draw(st.sampled_from([character, character, character, escaped]))
    return f"text = ('{code}')\n"


@given(literals())
def test_the_bytes_tell_what_is_worth_a_walk(code: str) -> None:
    """However a text is cut into literals, what the walk finds is found."""
    data = code.encode()
    assert found_by_walking(data) == list(dry._in_source(data, "mine.py"))


def test_no_file_of_the_project_is_judged_otherwise_for_its_bytes() -> None:
    """Walking only the trees that are worth it finds what walking every tree finds."""
    root = PHASES.parent
    sources = [
        f for name in ("phases", "gates", "runbook", "tests") for f in root.glob(f"{name}/*")
    ]
    read = [file.read_bytes() for file in sources if file.suffix == ".py"]
    walked = [found_by_walking(data) for data in read]
    assert [list(dry._in_source(data, "mine.py")) for data in read] == walked
    assert 5 < sum(map(bool, walked)) < len(walked) / 2


def test_a_file_is_read_again_only_where_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a size nor a modification time that was put back hides new bytes."""
    parsed: list[bytes] = []
    parse = ast.parse

    def count(data: bytes, filename: str) -> ast.Module:
        parsed.append(data)
        return parse(data, filename)

    monkeypatch.setattr(ast, "parse", count)
    monkeypatch.setattr(dry, "_SETTLED_NS", 0)
    path = tmp_path / "mine.py"
    path.write_text("stop = 'peft END###'\n")
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    time.sleep(0.05)
    assert find_violations([path], PHASES) == find_violations([path], PHASES) == ()
    assert len(parsed) == 1
    path.write_text("stop = 'p ###END###'\n")
    os.utime(path, ns=times)
    assert [finding.rule for finding in find_violations([path], PHASES)] == ["prompt"]
    assert len(parsed) == 2


def test_a_file_that_is_still_being_written_is_read_each_time(tmp_path: Path) -> None:
    """Two writes within one tick of the volume's clock have the same times."""
    path = tmp_path / "mine.py"
    for text, rules in (("stop = 'peft END###'\n", []), ("stop = 'p ###END###'\n", ["prompt"])):
        path.write_text(text)
        assert [finding.rule for finding in find_violations([path], PHASES)] == rules


def test_what_is_no_regular_file_is_a_finding(tmp_path: Path) -> None:
    """A pipe, a folder and a broken link are told of, and none of them is waited for."""
    pipe, folder, link = (tmp_path / f"{name}.py" for name in ("a_pipe", "b_folder", "c_link"))
    os.mkfifo(pipe)
    folder.mkdir()
    link.symlink_to(tmp_path / "nowhere.py")
    findings = find_violations([pipe, folder, link], PHASES)
    assert [finding.path for finding in findings] == [pipe, folder, link]
    assert all(finding.found.startswith("unreadable: ") for finding in findings)
