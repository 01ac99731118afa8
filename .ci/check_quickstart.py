"""Checks a finished quickstart workspace: the verdicts, and every file that the README names."""

import json
import sys
from pathlib import Path

from runbook.artifacts import sha256_tree

PASSED = ("contamination", "calibration", "pilot", "scale", "baseline", "sft", "evaluate")
SKIPPED = ("preferences", "dpo", "evaluate_dpo")


def main(root: Path) -> None:
    """Raise AssertionError, naming what is missing or wrong."""
    session = json.loads(_one(root, "artifacts/session_manifest_*.json").read_text("utf-8"))
    assert session["done"] == {"exit_code": 0, "overrides": 0}, session["done"]
    verdicts = {name: step["verdict"] for name, step in session["steps"].items()}
    assert {name: verdicts[name] for name in PASSED} == dict.fromkeys(PASSED, "pass"), verdicts
    assert {session["steps"][name]["status"] for name in SKIPPED} == {"skipped"}
    pilot = _one(root, "artifacts/data_gen_pilot_*")
    assert 100 <= _rows(pilot / "dataset.jsonl") <= 200
    assert json.loads((pilot / "qc_summary.json").read_text("utf-8"))["verdict"] == "pass"
    assert (pilot / "session_manifest.json").is_file()
    assert len(list(root.glob("artifacts/data_gen_shards/*/manifest.json"))) >= 2
    assert _rows(root / "data/stage1_sft_data.jsonl") >= 200
    assert json.loads((root / "data/qc_summary.json").read_text("utf-8"))["verdict"] == "pass"
    success = json.loads((root / "checkpoints/stage1_sft/TRAINING_SUCCESS").read_text("utf-8"))
    assert sha256_tree(root / success["adapter"]) == success["sha256"]
    evaluation = json.loads((root / "results/sft_eval/evaluation.json").read_text("utf-8"))
    comparison = evaluation["details"]["comparison"]
    assert comparison["n"] >= 150
    assert comparison["mcnemar_p"] < 0.01
    assert comparison["tuned_rate"] > comparison["base_rate"]
    assert (root / "results/sft_eval/evaluation.txt").read_text("utf-8").strip()
    report = (root / "report.md").read_text("utf-8")
    assert "What the filters cannot see" in report.partition("\n- Safe on disk")[0]
    sys.stdout.write(f"{root}: the quickstart's outputs are all there\n")


def _one(root: Path, pattern: str) -> Path:
    found = sorted(root.glob(pattern))
    assert len(found) == 1, f"{pattern}: {len(found)} found"
    return found[0]


def _rows(path: Path) -> int:
    return len([json.loads(line) for line in path.read_text("utf-8").splitlines()])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
