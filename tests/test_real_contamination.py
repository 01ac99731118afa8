"""An instruction-tuned checkpoint in place of the base is refused, whatever it is declared as."""

import json
import shutil
from pathlib import Path

import pytest
from cli_session import Called, call
from ruamel.yaml import YAML

from runbook import events as ev
from runbook.journal import facts, read_entries
from runbook.workspace import Workspace

pytestmark = pytest.mark.model

SPECS = Path(__file__).parents[1] / "specs"


def bootstrap(folder: Path, capfd: pytest.CaptureFixture[str], **model: object) -> Called:
    """The quickstart's own bootstrap phase on another checkpoint, up to its end or stop."""
    book = YAML(typ="safe").load(SPECS / "quickstart" / "runbook.yaml")
    book["model"].update(model)
    book["phases"] = [phase for phase in book["phases"] if phase["name"] == "bootstrap"]
    (first,) = book["phases"]
    first["steps"] = [step for step in first["steps"] if step["name"] != "calibration"]
    shutil.copy(SPECS / "quickstart" / "contamination.yaml", folder)
    path = folder / "runbook.yaml"
    path.write_text(json.dumps(book))
    return call(capfd, "run", path, "--workspace", folder / "workspace")


def without_template(snapshot: Path, folder: Path) -> Path:
    """A copy of the snapshot from which every trace of the chat template is taken."""
    copy = folder / "stripped"
    ignored = shutil.ignore_patterns("chat_template*", "COMPLETE.json")
    shutil.copytree(snapshot, copy, ignore=ignored)
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    return copy


def criteria(folder: Path) -> dict[str, str]:
    """Each criterion's verdict, as journalled."""
    known = facts(read_entries(Workspace.at(folder / "workspace")))
    judged = [fact for fact in known if isinstance(fact, ev.GateJudged)]
    assert len(judged) == 1
    return {str(c["metric"]): str(c["verdict"]) for c in judged[0].criteria}


@pytest.mark.parametrize(
    ("stripped", "declared", "prefix", "failing"),
    [
        (False, "none", "none", {"end_of_turn_logp", "undeclared_chat_template"}),
        (False, "shipped", "none", {"end_of_turn_logp"}),
        (True, "none", "none", {"end_of_turn_logp"}),
        (True, "none", "bos", {"end_of_turn_logp", "prefix_mismatch"}),
    ],
)
def test_an_instruct_model_in_place_of_the_base_trips_the_sentinel(
    smollm2: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    stripped: bool,
    declared: str,
    prefix: str,
    failing: set[str],
) -> None:
    """SmolLM2-Instruct is refused by its weights, its template on or taken away: exit 5."""
    source = without_template(smollm2, tmp_path) if stripped else smollm2
    ended = bootstrap(
        tmp_path, capfd, source={"path": str(source)}, chat_template=declared, prefix=prefix
    )
    assert ended.code == 5, ended.err
    assert "end_of_turn_logp" in ended.err
    verdicts = criteria(tmp_path)
    assert {name for name, verdict in verdicts.items() if verdict == "fail"} == failing


def test_the_base_model_passes_the_same_gate(
    gemma: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same gate lets Gemma base through, so that it is no gate that refuses everything."""
    ended = bootstrap(tmp_path, capfd, source={"path": str(gemma)})
    assert ended.code == 0, ended.err
    assert set(criteria(tmp_path).values()) == {"pass"}


def test_an_unmeasured_family_is_not_passed(
    gemma: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same weights under a family nobody measured stop for a person: no bound is known."""
    ended = bootstrap(tmp_path, capfd, source={"path": str(gemma)}, family="unheard-of")
    assert ended.code == 3, ended.err
    assert criteria(tmp_path)["end_of_turn_logp"] == "invalid"
