"""The DRY sentinel: a second loader, template switch, scorer or prompt is found where it stands."""

from pathlib import Path

import pytest

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
    """What cannot be read cannot be trusted."""
    path = tmp_path / "torn.py"
    path.write_text("def run(:\n")
    assert [finding.line for finding in find_violations([path], PHASES)] == [1]
