"""runbook.step_params: a step's parameters are held against the model that its module names."""

import ast
import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from runbook.errors import ConfigError
from runbook.plan import Plan
from runbook.schema import load_plan
from runbook.step_params import params_model

ROOT = Path(__file__).parents[1]
STEPS = (
    "prepare_model",
    "contamination",
    "pilot",
    "scale",
    "baseline",
    "sft",
    "evaluate",
    "preferences",
    "dpo",
)
STEP = 'PARAMS = "{}"\n\n\ndef run(request):\n    raise SystemExit\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the quickstart's runbook and specs."""
    shutil.copytree(ROOT / "specs", tmp_path / "specs")
    return tmp_path / "specs" / "quickstart"


def load(folder: Path, *overrides: str) -> Plan:
    return load_plan(folder / "runbook.yaml", overrides, environ={})


def refused(folder: Path, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(folder, *overrides)
    assert caught.value.code == 2
    return caught.value


def mark(path: Path, old: str, new: str) -> str:
    """Replace once; ``file:line:column`` of the place that ``@`` marks in the new text."""
    text = path.read_text()
    assert text.count(old) >= 1
    text = text.replace(old, new, 1)
    before = text[: text.index("@")]
    path.write_text(text.replace("@", "", 1))
    return f"{path}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"


def test_the_exact_place(folder: Path) -> None:
    """Two mistakes in one spec stand at their own lines and columns."""
    spec = folder / "sft.yaml"
    spec.write_text(spec.read_text().replace("epochs: 2.0", "epochs: two").replace("r: 16", "R: 1"))

    told = str(refused(folder))

    lines = spec.read_text().splitlines()
    first = lines.index("params:") + 2
    assert f"{spec}:{first}:3: the key 'r' is missing" in told
    assert f"{spec}:{lines.index('  R: 1') + 1}:3: unknown key 'R'" in told
    assert f"{spec}:{lines.index('  epochs: two') + 1}:11: 'two' is not a number" in told
    assert told.count("fix:") == 3


@pytest.mark.parametrize(
    ("file", "old", "new", "what", "fix"),
    [
        ("sft", "epochs:", "epochs: @two #", "'two' is not a number", "without quotes"),
        ("sft", "epochs:", "epochs: @0.0 #", "0.0 is not above 0", "use more than 0"),
        ("sft", "  epochs", "  @epoch: 1.0\n  epochs", "unknown key 'epoch'", "mean 'epochs'?"),
        ("sft", "quantization: nf4", "quantization: @nf5", "is not one of: none, nf4", "'nf4'?"),
        ("baseline", "per_kind:", "per_kind: @'3' #", "'3' is not a whole number", "quotes"),
        ("pilot", "  near_dup", "  @temprature: 1\n  near_dup", "'temprature'", "'temperature'?"),
        ("calibration", "[linear_probe]", "[@linear]", "'linear'", "linear_probe"),
        ("calibration", "good_share:", "good_share: @1.5 #", "1.5", "less than 1"),
        ("pilot", "    temperature: 0.7", "    temperature: @hot", "'hot' is not a", "number"),
        ("pilot", "    top_k: 64", "    @topk: 64\n    top_k: 64", "'topk'", "'top_k'?"),
        ("scale", "    lists_per_round: 64\n    ", "    @", "'lists_per_round' is missing", "add"),
        ("pilot", "{raw_rows: 400}", "{raw_rows: @many}", "'many' is not a whole", "quotes"),
        ("pilot", "{raw_rows: 400}", "{@raw_row: 400}", "unknown key 'raw_row'", "'raw_rows'?"),
        ("pilot", "{raw_rows: 24, ", "{@raw_row: 24, ", "unknown key 'raw_row'", "'raw_rows'?"),
        ("pilot", "lists_per_round: 4}", "lists_per_round: @0}", "0 is below 1", "use 1 or more"),
        ("scale", "{shards: 3}", "{shards: @0}", "0 is below 1", "use 1 or more"),
        ("evaluation", "aa_items: 32", "@per_kind: 3", "'per_kind'", "held_out"),
        ("contamination", "params: {}", "params: {@x: 3}", "unknown key 'x'", "use one of: probe_"),
        ("dpo", "beta:", "beta: @0 #", "0 is not above 0", "use more"),
        ("preferences", "min_gap:", "min_gap: @.1.2 #", "is not a number", "number"),
    ],
)
def test_a_mistake_is_told_where_it_stands(
    folder: Path, file: str, old: str, new: str, what: str, fix: str
) -> None:
    """Wrong types, bounds, unknown and missing keys, in params and extend, at line and column."""
    spec = folder / f"{file}.yaml"
    place = mark(spec, old, new)

    error = refused(folder)

    assert error.where == place
    assert what in error.what
    assert fix in error.fix
    assert str(error).count("fix:") == 1


def test_a_mistake_in_files_is_told_there(folder: Path) -> None:
    """A file that the step does not read stands under files, and is told there."""
    place = mark(folder / "baseline.yaml", "files:\n", "files:\n  @shots: ../few_shot.yaml\n")

    assert (refused(folder).where, refused(folder).what) == (place, "unknown key 'shots'")


def test_a_missing_parameter_without_params(folder: Path) -> None:
    """Where there is no params at all, the top of the spec is meant."""
    spec = folder / "evaluation.yaml"
    text = spec.read_text()
    start, end = text.index("files:"), text.index("gate:")
    spec.write_text(text[:start] + text[end:])

    error = refused(folder)

    assert (error.where, error.what) == (f"{spec}:1:1", "the key 'held_out' is missing")


def test_a_step_without_the_spec_it_needs(folder: Path) -> None:
    """A function that needs parameters needs a spec; its name is where that is told."""
    place = mark(
        folder / "runbook.yaml",
        "{name: sft, function: phases.sft:run, spec: sft.yaml,",
        "{name: sft, function: @phases.sft:run,",
    )

    error = refused(folder)

    assert error.where == place
    assert "the step has no spec" in error.what


@pytest.mark.parametrize(
    ("args", "blamed", "what"),
    [
        (["sft.epochs=0"], 0, "0.0 is not above 0"),
        (["pilot.instructions.temperature=-1"], 0, "-1.0 is below 0"),
        (["sft.epochs=1", "sft.epochs=-1", "sft.r=4"], 1, "-1.0 is not above 0"),
        (["sft.quantization=int3"], 0, "is not one of: none, nf4"),
    ],
)
def test_an_override_is_held_against_the_model(
    folder: Path, args: list[str], blamed: int, what: str
) -> None:
    """What --set makes of the parameters must hold too; the argument that broke it is named."""
    error = refused(folder, *args)

    assert error.where == f"--set {args[blamed]}"
    assert what in error.what


def test_a_sound_override_stands(folder: Path) -> None:
    """An override within the model's bounds is taken."""
    assert load(folder, "sft.epochs=1").step("sft").params["epochs"] == 1.0


@pytest.mark.parametrize(
    ("ranges", "what"),
    [
        ("{@learning_rate: {min: 0, max: 1}}", "min of 'learning_rate' cannot be set: 0.0 is not"),
        ("{@dropout: {min: 0, max: 1}}", "max of 'dropout' cannot be set: 1.0 is not less than 1"),
        ("{@r: {min: 1.5, max: 4}}", "min of 'r' cannot be set: 1.5 is not a whole number"),
    ],
)
def test_both_ends_of_a_range_must_be_settable(folder: Path, ranges: str, what: str) -> None:
    """A retry may set either end, in an earlier step of the rerun too, so each must be sound."""
    path, old = folder / "runbook.yaml", "rerun_from: sft, retries: 1"
    place = mark(path, old, f"{old}, adjustable: {ranges}")

    error = refused(folder)

    assert error.where == place
    assert error.what.startswith(what)


def test_a_sound_range_stands(folder: Path) -> None:
    """A range of a whole number's parameter is read as whole numbers."""
    path, old = folder / "runbook.yaml", "rerun_from: sft, retries: 1"
    path.write_text(path.read_text().replace(old, f"{old}, adjustable: {{r: {{min: 1, max: 4}}}}"))

    assert load(folder).step("evaluate").adjustable["r"].max == 4


def test_a_sentinel_takes_no_sample_size(folder: Path) -> None:
    """A sentinel's min_n would be ignored, so it is refused."""
    old = "{metric: prefix_mismatch, kind: sentinel"
    place = mark(folder / "pilot.yaml", f"- {old}", f"- @{old}, min_n: 3")

    error = refused(folder)

    assert (error.where, error.what) == (place, "min_n is not for a sentinel")
    assert error.fix == "take min_n away"


@pytest.mark.parametrize("name", ["quickstart", "stage1"])
def test_a_shipped_runbook_is_fine(name: str) -> None:
    """Every spec that is shipped, of disabled phases too, is what its step's model takes."""
    assert {s.name for s in load(ROOT / "specs" / name).steps} >= {*STEPS}


@pytest.mark.parametrize("step", STEPS)
def test_a_step_parses_the_model_it_declares(step: str) -> None:
    """The class that PARAMS names is the one that the step's own run() parses."""
    model = params_model(f"phases.{step}:run", ROOT)
    assert model is not None
    tree = ast.parse((ROOT / "phases" / f"{step}.py").read_bytes())
    parsed = [
        ast.unparse(node.args[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "parse_params"
    ]
    assert parsed == [model.__name__]


def test_what_the_steps_name_is_light() -> None:
    """No module that a PARAMS names imports torch or what brings it."""
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from runbook.step_params import params_model\n"
        f"for step in {STEPS!r}: assert params_model(f'phases.{{step}}:run', Path())\n"
        "heavy = {'torch', 'transformers', 'trl', 'peft', 'datasets'}\n"
        "print(sorted(heavy & {*sys.modules}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "[]\n"


LIGHT = """\
from __future__ import annotations

from typing import Optional

from pydantic import BaseModel, ConfigDict, field_validator


class Limits(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    low: Low


class Low(BaseModel):
    value: int


class Mine(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", defer_build=True)
    speed: int
    limits: Optional[Limits] = None
    sizes: list[Limits] | dict[str, int] = []

    @field_validator("speed")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("must be even")
        return value


NOT_A_MODEL = 3
"""


class TestBesideTheRunbook:
    """A user's own step and model, beside the runbook."""

    def lay_out(self, folder: Path, named: str, params: str, light: str = LIGHT) -> None:
        (folder / "my_step.py").write_text("import no_such_heavy_thing\n" + STEP.format(named))
        (folder / "my_params.py").write_text(light)
        (folder / "mine.yaml").write_text(f"spec: 1\nparams: {params}\n")
        head = (folder / "runbook.yaml").read_text().partition("phases:")[0]
        step = "{name: mine, function: my_step:run, spec: mine.yaml, output: data}"
        (folder / "runbook.yaml").write_text(f"{head}phases:\n- {{name: A, steps: [{step}]}}\n")

    @pytest.mark.parametrize(
        ("params", "column", "what"),
        [
            ("{speed: fast}", 17, "'fast' is not a whole number"),
            ("{speed: 3}", 17, "3 is refused: Value error, must be even"),
            ("{speed: 2, limits: {low: {value: x}}}", 42, "'x' is not a whole number"),
            ("{speed: 2, limits: {lo: 1, low: {value: 1}}}", 29, "unknown key 'lo'"),
            ("{speed: 2, sizes: [{lo: 1}]}", 27, "the key 'low' is missing"),
            ("{sped: 2}", 10, "unknown key 'sped'"),
        ],
    )
    def test_mistakes(self, folder: Path, params: str, column: int, what: str) -> None:
        """A mistake is told at its place, with pydantic's own words for a rule of the user's."""
        self.lay_out(folder, "my_params:Mine", params)

        told = str(refused(folder))

        assert f"{folder / 'mine.yaml'}:2:{column}: {what}" in told

    def test_sound(self, folder: Path) -> None:
        """Sound parameters pass, null where the model takes it; no trace is left behind."""
        self.lay_out(folder, "my_params:Mine", "{speed: 2, limits: null}")
        searched, before = list(sys.path), {p.name for p in folder.iterdir()}

        assert load(folder).step("mine").params == {"speed": 2, "limits": None}

        assert sys.path == searched
        assert "my_params" not in sys.modules
        assert {p.name for p in folder.iterdir()} == before

    def test_the_folder_on_the_path_already(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A search path that has the runbook's folder keeps it, at its place."""
        self.lay_out(folder, "my_params:Mine", "{speed: 2}")
        monkeypatch.syspath_prepend(folder)
        searched = list(sys.path)

        load(folder)

        assert sys.path == searched
        sys.modules.pop("my_params")

    @pytest.mark.parametrize(
        ("named", "what"),
        [
            ("no_params:Mine", "PARAMS 'no_params:Mine' cannot be imported: No module named"),
            ("my_params:Min", "PARAMS 'my_params:Min' cannot be imported: module 'my_params' has"),
            ("my_params:NOT_A_MODEL", "'my_params:NOT_A_MODEL', which is no pydantic model"),
            ("my_step:run", "cannot be imported: No module named 'no_such_heavy_thing'"),
            ("Mine", "PARAMS of 'my_step' is not the name of a class"),
        ],
    )
    def test_a_name_that_leads_nowhere(self, folder: Path, named: str, what: str) -> None:
        """A PARAMS that leads to no model is told at the step's function, with a fix."""
        self.lay_out(folder, named, "{speed: 2}")

        error = refused(folder)

        assert error.where.startswith(f"{folder / 'runbook.yaml'}:")
        line, column = error.where.rsplit(":", 2)[1:]
        text = (folder / "runbook.yaml").read_text().splitlines()[int(line) - 1]
        assert text[int(column) - 1 :].startswith("my_step:run")
        assert what in error.what
        assert error.fix

    def test_a_module_that_ends_the_process(self, folder: Path) -> None:
        """Even a sys.exit in the user's module is told as a mistake."""
        self.lay_out(folder, "my_params:Mine", "{}", light="import sys\nsys.exit(0)\n")

        assert "cannot be imported" in refused(folder).what

    def test_no_model_no_check(self, folder: Path) -> None:
        """The parameters of a module without PARAMS are its own affair."""
        self.lay_out(folder, "", "{speed: fast}")
        step = folder / "my_step.py"
        step.write_text(step.read_text().replace("PARAMS", "OTHER"))

        assert load(folder).step("mine").params == {"speed": "fast"}


def test_contamination_takes_labelled_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters that the step would ignore are refused by the step itself, before the model."""
    contamination: Any = importlib.import_module("phases.contamination")
    parsed: list[type[BaseModel]] = []

    def stop(model: type[BaseModel], _request: object) -> None:
        parsed.append(model)
        raise ConfigError("stop")

    monkeypatch.setattr(contamination, "parse_params", stop)
    with pytest.raises(ConfigError):
        contamination.run(None)
    assert [model.__name__ for model in parsed] == ["ContaminationParams"]


def first_line(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8").splitlines()[0])
    return found


def drop_the_answer(specs: Path) -> str:
    """A held-out item without its reference."""
    path = specs / "held_out.jsonl"
    row = first_line(path)
    del row["reference"]
    path.write_text(json.dumps(row) + "\n" + path.read_text("utf-8"), "utf-8")
    return f"{path}:1"


def break_the_few_shot(specs: Path) -> str:
    path = specs / "few_shot.yaml"
    path.write_text(path.read_text("utf-8").replace("good: true", "label: true", 1), "utf-8")
    return str(path)


def show_an_examined_item(specs: Path) -> str:
    """A held-out instruction among what the model is shown."""
    path = specs / "few_shot.yaml"
    asked = first_line(specs / "held_out.jsonl")["instruction"]
    old = "labelled_instructions:\n"
    new = f"{old}  - {{text: {json.dumps(asked)}, good: true}}\n"
    path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")
    return str(path)


def leave_one_label(specs: Path) -> str:
    path = specs / "few_shot.yaml"
    path.write_text(path.read_text("utf-8").replace("good: false", "good: true"), "utf-8")
    return str(path)


def empty_the_probes(specs: Path) -> str:
    path = specs / "probe" / "pairs.jsonl"
    path.write_text("")
    return str(path)


def tune_on_everything(specs: Path) -> str:
    """Probes none of which is held back."""
    path = specs / "probe" / "instructions.jsonl"
    path.write_text(path.read_text("utf-8").replace('"half": "test"', '"half": "tune"'), "utf-8")
    return str(path)


def ask_for_too_many(specs: Path) -> str:
    spec = specs / "quickstart" / "baseline.yaml"
    spec.write_text(spec.read_text().replace("per_kind: 32", "per_kind: 3200"))
    return "per_kind"


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (drop_the_answer, "reference"),
        (break_the_few_shot, "good"),
        (show_an_examined_item, "is shown to the model"),
        (leave_one_label, "no row with good: false"),
        (empty_the_probes, "0 good rows"),
        (tune_on_everything, "of half test"),
        (ask_for_too_many, "3200 items of each kind"),
    ],
)
def test_the_files_that_a_spec_names_are_read_before_anything_is_spent(
    folder: Path, spoil: Callable[[Path], str], what: str
) -> None:
    """What a step could not use is refused when the runbook is, with its place."""
    load(folder)
    place = spoil(folder.parent)
    error = refused(folder)
    assert what in error.what
    assert error.where == place


@pytest.mark.parametrize(
    ("file", "old", "new", "fix"),
    [
        ("pilot", "{metric: kept,", "{metric: @kepts,", "did you mean 'kept'"),
        ("evaluation", "{metric: lift,", "{metric: @gain,", "use one of"),
        ("calibration", "pair_filter_auc", "@pair_auc", "pair_filter_auc"),
    ],
)
def test_a_criterion_on_what_is_never_measured_is_refused(
    folder: Path, file: str, old: str, new: str, fix: str
) -> None:
    """Found before the night, at line and column, not after the training."""
    place = mark(folder / f"{file}.yaml", old, new)
    error = refused(folder)
    assert error.where == place
    assert "measures no" in error.what
    assert fix in error.fix


@pytest.mark.parametrize("said", ["3", "some(names)", "('kept', 3)", "'kept'"])
def test_metrics_that_are_no_list_of_names_are_refused(folder: Path, said: str) -> None:
    """A step of one's own that says it wrongly is told so, not ignored."""
    (folder / "mine.py").write_text(
        f"METRICS = {said}\n\n\ndef run(request):\n    raise SystemExit\n"
    )
    book = folder / "runbook.yaml"
    book.write_text(book.read_text().replace("phases.sft:run", "mine:run"))
    assert "METRICS of 'mine' is no list of names" in str(refused(folder))
