"""runbook.schema: from a runbook and its specs to a plan, or to all that is wrong with them."""

import contextlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from runbook.artifacts import canonical_json
from runbook.contract import Range
from runbook.errors import ConfigError
from runbook.fingerprint import changed_fields, fingerprint, plan_document
from runbook.plan import Plan
from runbook.schema import load_plan, runbook_json_schema, spec_json_schema
from runbook.schema_models import STOP_CONDITIONS

CONDITIONS = f"[{', '.join(STOP_CONDITIONS)}]"
RUNBOOK = """\
runbook: 1
name: small
seed: 7
model:
  name: tiny
  source: {path: "${MODELS}/tiny"}
  family: gemma3
  prefix: bos
  chat_template: none
  dtype: float32
engine: {name: fake, batch_size: 4, threads: 1}
budget: {wall_clock: 90m}
environment: {HOME_OF: "x-${MODELS}"}
preflight: {gpus: 0, free_disk_gib: 3}
stop_conditions: [contamination, dry, thresholds, provenance, budget, storage]
reviewer: {provider: human}
phases:
  - name: A
    title: Pilot
    steps:
      - name: prepare
        function: tiny_phase:run
        output: models/base
      - name: pilot
        function: tiny_phase:run
        spec: specs/pilot.yaml
        inputs: [prepare]
        output: artifacts/pilot_{time}
        retries: 2
        adjustable:
          max_new_tokens: {min: 4, max: 100}
          sampling.temperature: {min: 0.1, max: 1}
        adjustments:
          - when: runaway_rate
            change: {max_new_tokens: {add: 4}}
            why: one more clause
  - name: B
    enabled: false
    steps:
      - name: train
        function: tiny_phase:run
        inputs: [pilot]
        output: checkpoints/train
        rerun_from: pilot
"""

SPEC = """\
spec: 1
params:
  max_new_tokens: 48
  style: short
  strict: true
  sampling: {temperature: 0.5}
  sizes: [1, 2]
  seen: null
files:
  few_shot: ../few_shot.yaml
gate:
  criteria:
    - {metric: runaway_rate, kind: rate, below: 0.05, min_n: 60, at_max_n: bound}
    - {metric: kept, kind: census, at_least: 100, at_most: 200}
  extend: {raw_rows: 400}
"""

PHASE = """\
import torch_is_never_imported


def run(request):
    return None


def walk(request, speed=1):
    return None


def _private(request):
    return None


def two(a, b):
    return None


async def later(request):
    return None
"""

ENVIRON = {"MODELS": "/volume/models"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return lay_out(tmp_path / "programme")


def lay_out(folder: Path) -> Path:
    (folder / "specs").mkdir(parents=True)
    (folder / "runbook.yaml").write_text(RUNBOOK)
    (folder / "specs" / "pilot.yaml").write_text(SPEC)
    (folder / "few_shot.yaml").write_text("- one\n")
    (folder / "tiny_phase.py").write_text(PHASE)
    return folder


def load(folder: Path, *overrides: str) -> Plan:
    return load_plan(folder / "runbook.yaml", overrides, environ=ENVIRON)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def refused(folder: Path, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(folder, *overrides)
    assert caught.value.code == 2
    assert caught.value.fix
    return caught.value


def position_of(text: str, marked: str) -> str:
    """Line and column of the place that ``@`` marks."""
    before = text[: text.index(marked) + marked.index("@")]
    return f"{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"


class TestPlan:
    def test_steps(self, folder: Path) -> None:
        """A valid runbook becomes its steps in order, disabled ones included."""
        plan = load(folder)

        assert [s.name for s in plan.steps] == ["prepare", "pilot", "train"]
        assert [(p.name, p.title, p.enabled) for p in plan.phases] == [
            ("A", "Pilot", True),
            ("B", "B", False),
        ]
        assert [s.enabled for s in plan.steps] == [True, True, False]
        assert [s.rerun_from for s in plan.steps] == ["prepare", "pilot", "pilot"]

    def test_step_fields(self, folder: Path) -> None:
        """A step carries its parameters, files, gate and adjustments."""
        step = load(folder).step("pilot")
        shot = folder / "few_shot.yaml"

        assert step.params["max_new_tokens"] == 48
        assert step.params["few_shot"] == str(shot)
        assert step.files == {"few_shot": shot}
        assert step.adjustable["max_new_tokens"] == Range(4.0, 100.0)
        assert step.adjustments[0].change == {"max_new_tokens": {"add": 4.0}}
        assert (step.retries, step.review_after) == (2, 2)
        assert step.gate is not None
        assert step.gate.extend == {"raw_rows": 400}
        rate, census = step.gate.criteria
        assert (rate.below, rate.min_n, rate.at_max_n) == (0.05, 60, "bound")
        assert (census.at_least, census.at_most, census.below) == (100.0, 200.0, None)

    def test_head(self, folder: Path) -> None:
        """Durations become seconds, variables their values, stop conditions the fixed order."""
        plan = load(folder)

        assert plan.budget == {"wall_clock_s": 5400.0}
        assert plan.environment == {"HOME_OF": "x-/volume/models"}
        assert plan.model["source"] == {"path": "/volume/models/tiny"}
        assert plan.model["quantization"] == "none"
        assert plan.stop_conditions == STOP_CONDITIONS
        assert plan.engine["threads"] == 1
        assert plan.runbook == folder / "runbook.yaml"

    def test_defaults(self, folder: Path) -> None:
        """Engine, budget, environment, preflight, stop conditions and reviewer may be left out."""
        path = folder / "runbook.yaml"
        kept = path.read_text().splitlines(keepends=True)
        left_out = ("engine", "budget", "environment", "preflight", "stop_cond", "reviewer")
        path.write_text("".join(line for line in kept if not line.startswith(left_out)))

        plan = load(folder)

        assert plan.engine == {"name": "transformers", "device": "cpu", "batch_size": 8}
        assert plan.budget == {}
        assert len(plan.stop_conditions) == 6
        assert plan.reviewer == {"provider": "human"}

    @pytest.mark.parametrize(("written", "timeout_s"), [("", 600.0), (", timeout: 90s", 90.0)])
    def test_a_program_reviews(self, folder: Path, written: str, timeout_s: float) -> None:
        """The plan carries the reviewer's command and its time limit, ten minutes unless said."""
        said = f"{{provider: command, command: [codex, exec]{written}}}"
        edit(folder / "runbook.yaml", "{provider: human}", said)

        expected = {"provider": "command", "command": ["codex", "exec"], "timeout_s": timeout_s}
        assert load(folder).reviewer == expected

    def test_a_model_reviews(self, folder: Path) -> None:
        """The plan carries all that is asked of a model, the provider's own address included."""
        said = "{provider: openai, model: m, usd_per_mtok: {input: 1, output: 8.5}}"
        edit(folder / "runbook.yaml", "{provider: human}", said)
        plan = load(folder)

        assert plan.reviewer == {
            "provider": "openai",
            "model": "m",
            "base_url": "https://api.openai.com/v1",
            "api_key_env": "OPENAI_API_KEY",
            "effort": {"high": "high", "medium": "medium"},
            "timeout_s": 600.0,
            "usd_per_mtok": {"input": 1.0, "output": 8.5},
            "max_output_tokens": 16_000,
            "context_tokens": 64_000,
            "tries": 4,
        }
        assert plan.budget["unknown_requests"] == 1
        assert "request_usd" not in plan.budget

    def test_a_model_of_ones_own_and_its_fallback(self, folder: Path) -> None:
        """Every field as written; effort off, and canaries with their settings."""
        said = (
            "{provider: anthropic, model: m, base_url: 'http://10.0.0.5:8000', effort: off, "
            "max_usd: 0.25, timeout: 90s, tries: 2, unknown_requests: 0, api_key_env: MY_TOKEN, "
            "max_output_tokens: 500, context_tokens: 4000, canaries: {share: 0.5}, "
            "fallback: {provider: openai, model: f, max_usd: 0, effort: {high: max}}}"
        )
        edit(folder / "runbook.yaml", "{provider: human}", said)
        plan = load(folder)

        fallback = plan.reviewer["fallback"]
        assert {k: v for k, v in plan.reviewer.items() if k != "fallback"} == {
            "provider": "anthropic",
            "model": "m",
            "base_url": "http://10.0.0.5:8000",
            "api_key_env": "MY_TOKEN",
            "timeout_s": 90.0,
            "max_output_tokens": 500,
            "context_tokens": 4000,
            "max_usd": 0.25,
            "tries": 2,
            "canaries": {"share": 0.5, "max_false_rate": 0.2, "min_n": 5},
        }
        assert (fallback["effort"], fallback["max_usd"]) == ({"high": "max"}, 0.0)
        assert plan.budget["unknown_requests"] == 0
        assert plan.budget["request_usd"] == 0.25

    def test_credentials_in_an_address_are_not_repeated(self, folder: Path) -> None:
        """They would be recorded with the plan, and are not quoted either."""
        said = "{provider: openai, model: m, max_usd: 1, base_url: 'https://me:pw1@x/v1'}"
        edit(folder / "runbook.yaml", "{provider: human}", said)
        with pytest.raises(ConfigError) as caught:
            load(folder)
        assert "a URL with credentials stands here" in str(caught.value)
        assert "pw1" not in str(caught.value)

    @pytest.mark.parametrize(
        ("written", "expected"),
        [("on", True), ("true", True), ("{}", True), ("off", False), ("false", False)],
    )
    def test_canaries(self, folder: Path, written: str, expected: bool) -> None:
        """On, off, or with settings; off where nothing is said."""
        said = f"{{provider: command, command: [a], canaries: {written}}}"
        edit(folder / "runbook.yaml", "{provider: human}", said)
        assert ("canaries" in load(folder).reviewer) is expected

    @pytest.mark.parametrize(
        "url",
        [
            "https://models.example.org/v1",
            "http://localhost:8000/v1",
            "http://[::1]:8000",
            "http://192.168.1.7",
            "http://vllm:8000/v1",
            "http://vllm.pod.internal/v1",
        ],
    )
    def test_addresses_of_a_server(self, folder: Path, url: str) -> None:
        """Any by https; by plain http this machine and its own network."""
        said = f"{{provider: openai, model: m, max_usd: 1, base_url: '{url}'}}"
        edit(folder / "runbook.yaml", "{provider: human}", said)
        assert load(folder).reviewer["base_url"] == url

    @pytest.mark.parametrize(
        "source", ["{pypi: some-model}", f"{{hub: Qwen/Qwen2.5-32B, revision: '{'0' * 40}'}}"]
    )
    def test_sources(self, folder: Path, source: str) -> None:
        """A model may come from PyPI, or from the hub at a pinned revision."""
        edit(folder / "runbook.yaml", '{path: "${MODELS}/tiny"}', source)

        assert "path" not in load(folder).model["source"]

    def test_cuda(self, folder: Path) -> None:
        """The engine may run on cuda."""
        edit(folder / "runbook.yaml", "name: fake", "name: transformers, device: cuda")

        assert load(folder).engine["device"] == "cuda"

    def test_module_in_a_package(self, folder: Path) -> None:
        """A step's module may stand in a package beside the runbook, which is not imported."""
        (folder / "mine").mkdir()
        (folder / "mine" / "__init__.py").write_text("raise RuntimeError\n")
        (folder / "mine" / "work.py").write_text(PHASE)
        edit(folder / "runbook.yaml", "tiny_phase:run", "mine.work:walk")

        assert load(folder).step("prepare").function == "mine.work:walk"

    def test_installed_module(self, folder: Path) -> None:
        """A step's module is found on sys.path too."""
        edit(folder / "runbook.yaml", "tiny_phase:run", "hypothesis.errors:DidNotReproduce")

        assert "defines no function" in refused(folder).what


_MODEL = "{provider: openai, model: m, max_usd: 1, "
REVIEWER_ERRORS = [
    ("@{provider: openai, max_usd: 1}", "'openai' has no model", "add model:"),
    ("@{provider: openai, model: m}", "nothing says what a request costs", "0 where it is free"),
    (
        "@{provider: openai, command: [a]}",
        "command belongs to the reviewer 'command'",
        "take command away",
    ),
    ("@{provider: command, command: [a], model: m}", "model belongs to", "provider: openai"),
    ("@{provider: command, command: [a], tries: 2}", "tries belongs to", "provider: openai"),
    ("@{provider: human, canaries: on}", "canaries belongs to", "take canaries"),
    ("@{model: m}", "model belongs to the reviewer 'openai' or 'anthropic'", "provider: openai"),
    (_MODEL + "usd_per_mtok: @{input: 1}}", "'output' is missing", "add output"),
    (_MODEL + "usd_per_mtok: {input: @-1, output: 1}}", "-1 is below 0", "use 0.0 or more"),
    (_MODEL + "base_url: @'ftp://x/v1'}", "is not a URL of a server", "https://host/v1"),
    (_MODEL + "base_url: @'https://x:y/v1'}", "is not a URL", "https://host/v1"),
    (_MODEL + "base_url: @'http://api.example.org'}", "by plain http to a public", "write https"),
    *(
        (_MODEL + f"base_url: @'http://{host}/v1'}}", "by plain http to a public", "write https")
        for host in ("api\u3002openai\u3002com", "169.254.169.254", "0.0.0.0", "203.0.113.5")
    ),
    (_MODEL + "base_url: @'https://x/v1?key=1'}", "ends with its path", "take away"),
    (_MODEL + "api_key_env: @MY_LLM}", "does not say that its value is a secret", "_API_KEY"),
    (_MODEL + "api_key_env: @'sk-abc def'}", "no variable's name", "name of the variable"),
    (_MODEL + "effort: {@low: x}}", "unknown key 'low'", "use one of: high, medium"),
    (_MODEL + "tries: @0}", "0 is below 1", "use 1 or more"),
    (_MODEL + "unknown_requests: @4}", "4 is above 3", "use 3 or less"),
    (
        "@" + _MODEL + "context_tokens: 4000}",
        "leaves less than 2000 tokens",
        "raise context_tokens",
    ),
    (_MODEL + "canaries: {share: @2}}", "2 is above 1", "use 1.0 or less"),
    (_MODEL + "fallback: @{provider: human}}", "'human' is not a model", "openai, anthropic"),
    (
        _MODEL + "fallback: @{provider: openai, model: f}}",
        "nothing says what a request",
        "usd_per_mtok",
    ),
    (_MODEL + "fallback: {@tries: 2, provider: openai}}", "unknown key 'tries'", ""),
]
"""What stands for the reviewer, @ where the error points, and words of it and of its fix."""

RUNBOOK_ERRORS = [
    ("seed: 7", "seed: @true", "true is not a whole number", "write a whole number"),
    ("seed: 7", 'seed: @"7"', "'7' is not a whole number", "without quotes"),
    ("seed: 7", "seed: @7.0", "7.0 is not a whole number", "write a whole number"),
    ("seed: 7", "seed: @-1", "-1 is below 0", "use 0 or more"),
    ("seed: 7", "@sede: 7\nseed: 7", "unknown key 'sede'", "did you mean 'seed'?"),
    ("seed: 7", "@seed:", "'seed' has no value", "take the line away"),
    ("runbook: 1", "runbook: @2", "2 is above 1", "use 1 or less"),
    ("runbook: 1", "runbook: @true", "true is not a whole number", "write a whole number"),
    ("name: small", "name: @5", "5 is not text", 'quote it: "5"'),
    ("name: small", "name: @''", "the text is empty", "at least one character"),
    *(
        ("seed: 7", f"seed: 7\npod: {{rental_ends: @'{text}'}}", "with an offset", "T08:00:00Z")
        for text in ("yesterday", "2026-12-01T08:00:00", "2026-13-01T08:00:00Z")
    ),
    ("prefix: bos", "prefix: @boss", "'boss' is not one of: bos, none", "did you mean 'bos'?"),
    ("source: {path", "source: @{pypi: x, path", "the model has 2 sources", "exactly one of"),
    ('{path: "${MODELS}/tiny"}', "@{}", "the model has 0 sources", "exactly one of"),
    ('{path: "${MODELS}/tiny"}', "@{hub: a/b}", "without a revision", "40-hex commit"),
    ("{path: ", "{hub: a, revision: @abc, path: ", "not a revision", "40 hex digits"),
    ('"${MODELS}/tiny"', '@"${NONE}/x"', "variable 'NONE' is not set", "export NONE="),
    ('"x-${MODELS}"', '@"${NOPE"', "variable 'NOPE' is not set", "export NOPE="),
    ('"x-${MODELS}"', "@false", "false is not text", 'quote it: "false"'),
    ("{HOME_OF:", '{@"A B": x, C:', "'A B' is not a variable's name", "letters, digits and _"),
    ("name: fake", "name: @vllm", "'vllm' is not one of: transformers, fake", "use one of"),
    ("batch_size: 4", "batch_size: @0", "0 is below 1", "use 1 or more"),
    ("threads: 1", "threads: @0", "0 is below 1", "use 1 or more"),
    ("threads: 1", "@thread: 1", "unknown key 'thread'", "did you mean 'threads'?"),
    ("wall_clock: 90m", "wall_clock: @90", "90 is not a duration", "90s, 15m, 6h"),
    ("wall_clock: 90m", "wall_clock: @1.5h", "'1.5h' is not a duration", "90s, 15m, 6h"),
    ("gpus: 0", 'gpus: @"0"', "'0' is not a whole number", "without quotes"),
    ("provenance, budget,", "provenance, @budgets,", "is not one of", "did you mean 'budget'?"),
    (CONDITIONS, "@dry", "'dry' is not a list", "write a list"),
    (f"{CONDITIONS}\n", "@[dry, budget]\n", "cannot be switched off", "add contamination,"),
    ("{provider: human}", "@{provider: gpt}", "no reviewer 'gpt'", "human, command, openai"),
    ("{provider: human}", "@{provider: command}", "'command' has no command", "add command:"),
    ("{provider: human}", "{provider: command, command: @[]}", "is empty", "at least one"),
    ("{provider: human}", '{provider: command, command: [a, @""]}', "is empty", "at least one"),
    ("{provider: human}", "{provider: command, command: [a, @1]}", "1 is not text", "quote it"),
    ("{provider: human}", "{provider: command, command: @ask}", "is not a list", "write a list"),
    ("{provider: human}", "{provider: command, command: [a], timeout: @5}", "a duration", "90s"),
    ("{provider: human}", "@{command: [a]}", "command belongs to", "provider: command"),
    ("{provider: human}", "@{provider: human, timeout: 5m}", "timeout belongs to", "take timeout"),
    *(("{provider: human}", *row) for row in REVIEWER_ERRORS),
    ("  - name: B", "  - name: @A", "there is a phase 'A' already", "another name"),
    ("  - name: B", "  - name: @1", "1 is not text", "quote it"),
    ("enabled: false", "enabled: @no", "'no' is not true or false", "without quotes"),
    ("name: train", "name: @pilot", "there is a step 'pilot' already", "another name"),
    ("name: train", "name: @Train", "'Train' is not a step's name", "small letters"),
    ("name: train", "name: @seed", "'seed' is a key of the runbook", "another name"),
    ("inputs: [prepare]", "inputs: [@prepar]", "no step 'prepar'", "did you mean 'prepare'?"),
    ("inputs: [prepare]", "inputs: [@train]", "'train' does not come earlier", "move that one"),
    ("inputs: [prepare]", "inputs: [@pilot]", "'pilot' does not come earlier", "earlier step"),
    ("rerun_from: pilot", "rerun_from: @pilt", "no step 'pilt'", "did you mean 'pilot'?"),
    ("models/base", "@/models", "may lie outside the workspace", "without .."),
    ("models/base", "@a/../../b", "may lie outside the workspace", "without .."),
    ("models/base", '@"{name}"', "has an unknown placeholder", "only placeholder is {time}"),
    ("models/base", "@.runbook/x", "is not the name of a folder", "use letters"),
    ("models/base", "@a//b", "is not the name of a folder", "use letters"),
    ("models/base", "@${X}/b", "has an unknown placeholder", "{time}"),
    ("checkpoints/train", "@models/base", "'prepare' has the same output", "of its own"),
    ("retries: 2", "retries: @6", "6 is above 5", "use 5 or less"),
    ("retries: 2", "review_after: @3", "3 is above 2", "use 2 or less"),
    ("{min: 4, max: 100}", "@{min: 4, max: 3}", "min 4 is above max 3", "swap"),
    ("max_new_tokens: {min", "@max_tokens: {min", "no parameter 'max_tokens'", "did you mean"),
    (
        "sampling.temperature:",
        "@sampling.top:",
        "no parameter 'sampling.top'",
        "sampling.temperature",
    ),
    ("sampling.temperature:", "@style:", "is 'short', not a number", "only numbers"),
    ("sampling.temperature:", "@strict:", "is true, not a number", "only numbers"),
    ("when: runaway_rate", "when: @runaway", "no criterion on 'runaway'", "did you mean"),
    ("{add: 4}", "@{add: 4, set: 5}", "a change has 2 operations", "exactly one of"),
    ("{add: 4}", "@{}", "a change has 0 operations", "exactly one of"),
    ("{add: 4}", '{add: @"4"}', "'4' is not a number", "without quotes"),
    ("change: {max_new_tokens: {add: 4}}", "change: @{}", "is empty", "at least one"),
    (
        "{max_new_tokens: {add",
        "{@sizes.0: {add",
        "'sizes.0' is changed but not adjust",
        "under adj",
    ),
    ("{max_new_tokens: {add", "{@sises: {add", "no parameter 'sises'", "'sizes."),
    ("{max_new_tokens: {add: 4}", "{@max_new_tokens: {set: 1}", "1 is outside 4 to 100", "range"),
    ("spec: specs/pilot.yaml", "@spec: specs/no.yaml", "no.yaml does not exist", "spelling"),
    ("spec: specs/pilot.yaml", "@spec: specs", "is a directory", "name a file"),
    ("function: tiny_phase:run", "function: @tiny_phase", "is not a function", "module:function"),
    ("function: tiny_phase:run", "function: @tiny_fase:run", "no module 'tiny_fase'", "tiny_phase"),
    ("function: tiny_phase:run", "function: @tiny_phase:rum", "no function 'rum'", "mean 'run'?"),
    ("function: tiny_phase:run", "function: @tiny_phase:two", "one parameter", "run, walk"),
    ("function: tiny_phase:run", "function: @tiny_phase:later", "one parameter", "def later"),
    ("function: tiny_phase:run", "function: @no.such:run", "no module 'no.such'", "take it away"),
    ("function: tiny_phase:run", "function: @sys:exit", "no module 'sys' in Python", "tiny_phase"),
    ("function: tiny_phase:run", "@functoin: a", "unknown key 'functoin'", "mean 'function'?"),
]

SPEC_ERRORS = [
    ("spec: 1", "spec: @2", "2 is above 1", "use 1 or less"),
    ("params:", "@parms: {}\nparams:", "unknown key 'parms'", "did you mean 'params'?"),
    ("few_shot: ../few_shot.yaml", "@few_shot: ../no.yaml", "does not exist", "spelling"),
    ("few_shot: ../few_shot.yaml", "@few_shot: ..", "is a directory", "name a file"),
    ("few_shot: ../few_shot.yaml", 'few_shot: @"${NO}"', "'NO' is not set", "export NO="),
    ("style: short", "few_shot: @other.yaml", "two values", "take it away from params"),
    ("kind: rate", "kind: @ratio", "'ratio' is not one of: census, rate", "did you mean 'rate'?"),
    ("below: 0.05", 'below: @"0.05"', "'0.05' is not a number", "without quotes"),
    ("below: 0.05", "below: @true", "true is not a number", "write a number"),
    ("below: 0.05", "below: @.nan", "'.nan' is not a finite number", "finite"),
    ("below: 0.05", "@below: ", "'below' has no value", "take the line away"),
    ("- {metric: runaway_rate", "- @{metric: runaway_rate, above: 5", "lies in [0, 1]", "0.05"),
    (
        "{metric: kept, kind: census, at_least: 100, at_most: 200}",
        "@{metric: kept, kind: census}",
        "compares with nothing",
        "add one of",
    ),
    (
        "{metric: kept, kind: census, at_least: 100",
        "@{metric: kept, kind: census, at_least: 300",
        "no value of kept can pass",
        "widen",
    ),
    (
        "{metric: kept, kind: census, at_least: 100",
        "@{metric: kept, kind: census, above: 200",
        "no value of kept can pass",
        "widen",
    ),
    ("{metric: kept,", "@{at_max_n: rate, metric: kept,", "not for a census", "take at_max_n"),
    ("min_n: 60", "min_n: @0", "0 is below 1", "use 1 or more"),
    ("at_max_n: bound", "at_max_n: @both", "'both' is not one of: rate, bound", "use one of"),
    ("{raw_rows: 400}", "@{}", "is empty", "at least one"),
    ("metric: kept, ", "@metrc: kept, ", "unknown key 'metrc'", "did you mean 'metric'?"),
]


@pytest.mark.parametrize("text", ["2026-12-01T08:00:00Z", "2026-12-01 08:00+02:00", "${UNSET}"])
def test_a_rental_may_end_at_any_time_with_an_offset(folder: Path, text: str) -> None:
    """One that stands in the environment is not looked up where a runbook is read."""
    edit(folder / "runbook.yaml", "seed: 7", f'seed: 7\npod: {{rental_ends: "{text}"}}')

    assert load(folder).pod["rental_ends"] == text


class TestErrors:
    @pytest.mark.parametrize(("old", "new", "what", "fix"), RUNBOOK_ERRORS)
    def test_runbook(self, folder: Path, old: str, new: str, what: str, fix: str) -> None:
        """Each mistake in a runbook is told at its line and column, with its fix."""
        path = folder / "runbook.yaml"
        marked = RUNBOOK.replace(old, new, 1)
        path.write_text(marked.replace(new, new.replace("@", ""), 1))

        assert_told(refused(folder), path, position_of(marked, new), what, fix)

    @pytest.mark.parametrize(("old", "new", "what", "fix"), SPEC_ERRORS)
    def test_spec(self, folder: Path, old: str, new: str, what: str, fix: str) -> None:
        """Each mistake in a spec is told at its line and column, with its fix."""
        path = folder / "specs" / "pilot.yaml"
        marked = SPEC.replace(old, new, 1)
        path.write_text(marked.replace(new, new.replace("@", ""), 1))

        assert_told(refused(folder), path, position_of(marked, new), what, fix)

    def test_missing_key(self, folder: Path) -> None:
        """A missing key is told where its mapping begins."""
        edit(folder / "runbook.yaml", "  family: gemma3\n", "")

        error = refused(folder)

        assert error.where == f"{folder / 'runbook.yaml'}:5:3"
        assert error.what == "the key 'family' is missing"

    def test_all_at_once(self, folder: Path) -> None:
        """Mistakes of shape, of names and of specs are all told in one error, by position."""
        path, spec = folder / "runbook.yaml", folder / "specs" / "pilot.yaml"
        edit(path, "seed: 7", "seed: x")
        edit(path, "inputs: [pilot]", "inputs: [pilat]")
        edit(path, "models/base", "/models")
        edit(spec, "below", "belw")
        edit(spec, "../few_shot", "../few_shots")

        told = [line for line in str(refused(folder)).splitlines() if line.startswith("/")]

        files = [str(path)] * 3 + [str(spec)] * 2
        assert files == [line.split(":")[0] for line in told]

    def test_unknown_key_without_value(self, folder: Path) -> None:
        """An unknown key is told as that alone, whether or not it has a value."""
        edit(folder / "runbook.yaml", "seed: 7", "seed: 7\nsede:")

        error = refused(folder)

        assert error.what == "unknown key 'sede'"
        assert str(error).count("fix:") == 1

    def test_one_mistake_is_told_once(self, folder: Path) -> None:
        """A step of the wrong shape does not make the steps that read it wrong."""
        edit(folder / "runbook.yaml", "retries: 2", "retries: 9")

        assert str(refused(folder)).count("fix:") == 1

    def test_shared_spec_is_told_once(self, folder: Path) -> None:
        """A spec that two steps share is complained of once."""
        edit(
            folder / "runbook.yaml",
            "output: models/base",
            "output: m\n        spec: specs/pilot.yaml",
        )
        edit(folder / "specs" / "pilot.yaml", "min_n: 60", "min_n: 0")

        assert str(refused(folder)).count("fix:") == 1

    def test_missing_shared_spec(self, folder: Path) -> None:
        """A missing spec is told at each key that names it."""
        path = folder / "runbook.yaml"
        path.write_text(
            RUNBOOK.replace("output: models/base", "spec: specs/pilot.yaml\n        output: m")
        )
        (folder / "specs" / "pilot.yaml").unlink()

        assert str(refused(folder)).count("does not exist") == 2

    def test_disabled_input(self, folder: Path) -> None:
        """An enabled step cannot read one of a disabled phase."""
        path = folder / "runbook.yaml"
        edit(path, "title: Pilot", "enabled: false")
        edit(path, "  - name: B\n    enabled: false", "  - name: B")

        error = refused(folder)

        assert "the step 'pilot' is in a phase that is not enabled" in error.what
        assert str(error).count("fix:") == 2

    def test_disabled_phases_are_checked(self, folder: Path) -> None:
        """A disabled phase's functions and specs are checked like the others."""
        path = folder / "runbook.yaml"
        edit(path, "        output: checkpoints/train", "        spec: no.yaml\n        output: c")
        path.write_text(path.read_text().replace("tiny_phase:run", "tiny_phase:rum"))

        text = str(refused(folder))

        assert text.count("defines no function 'rum'") == 3
        assert "no.yaml does not exist" in text

    def test_broken_module(self, folder: Path) -> None:
        """A module that does not parse is told with its own trouble."""
        (folder / "tiny_phase.py").write_text("def run(:\n")

        assert "tiny_phase.py cannot be parsed" in refused(folder).what

    def test_bad_yaml_in_a_spec(self, folder: Path) -> None:
        """A spec that is not YAML is told at its own line."""
        path = folder / "specs" / "pilot.yaml"
        path.write_text("spec: 1\nspec: 1\n")

        assert refused(folder).where == f"{path}:2:1"

    @pytest.mark.parametrize(
        ("text", "nature"),
        [
            ("root:x:0:0:secret\ndaemon:x:1:1:secret\n", "text"),
            ("31337\n", "a number, or true or false"),
            ("- secret\n", "a list"),
        ],
    )
    def test_a_file_of_another_kind(self, folder: Path, text: str, nature: str) -> None:
        """A spec that leads to some other file is told by its kind, without a word of its own."""
        path = folder / "specs" / "pilot.yaml"
        path.unlink()
        (folder / "other").write_text(text)
        path.symlink_to(folder / "other")

        error = refused(folder)

        assert error.what == f"the document is {nature}, not a mapping of keys to values"
        assert error.where == f"{path}:1:1"
        assert "secret" not in str(error)
        assert "31337" not in str(error)

    def test_criteria_as_one(self, folder: Path) -> None:
        """An emptied gate is an error and not the lack of a gate."""
        path = folder / "specs" / "pilot.yaml"
        path.write_text("spec: 1\nparams: {max_new_tokens: 1, sampling: {temperature: 1}}\ngate:\n")

        assert "'gate' has no value" in str(refused(folder))

    @pytest.mark.parametrize("text", ["5", "[]", "x", "phases: 5", "phases: [1, {steps: [2, {}]}]"])
    def test_other_shapes(self, folder: Path, text: str) -> None:
        """A document of quite another shape is refused like any other mistake."""
        (folder / "runbook.yaml").write_text(text)

        assert refused(folder).where.startswith(str(folder / "runbook.yaml"))


def assert_told(error: ConfigError, path: Path, at: str, what: str, fix: str) -> None:
    lines = str(error).splitlines()
    told = [i for i, line in enumerate(lines) if line.startswith(f"{path}:{at}: ") and what in line]
    assert told, f"{at} {what!r} not in:\n{error}"
    assert fix in lines[told[0] + 1]


class TestOverrides:
    @pytest.mark.parametrize(
        ("arg", "name", "value"),
        [
            ("pilot.max_new_tokens=4", "max_new_tokens", 4),
            ("pilot.style=long", "style", "long"),
            ("pilot.style=a=b", "style", "a=b"),
            ("pilot.style=''", "style", ""),
            ("pilot.strict=false", "strict", False),
            ("pilot.sizes=[3]", "sizes", [3]),
            ("pilot.sizes.1=9", "sizes", [1, 9]),
            ("pilot.seen=x", "seen", "x"),
            ("pilot.sampling.temperature=1", "sampling", {"temperature": 1.0}),
        ],
    )
    def test_params(self, folder: Path, arg: str, name: str, value: object) -> None:
        """A parameter is set in its own type; a whole number may stand for any number."""
        plan = load(folder, arg)

        assert plan.step("pilot").params[name] == value
        assert type(plan.step("pilot").params[name]) is type(value)
        assert plan.overrides == (arg,)
        assert plan.fingerprint != load(folder).fingerprint

    def test_top_level(self, folder: Path) -> None:
        """Seed, engine, budget and model can be set; of two for one value the later holds."""
        args = ("seed=1", "seed=2", "engine.batch_size=16", "budget.wall_clock=2h")
        plan = load(folder, *args, "model.source.path=./here", "model.dtype=bfloat16")

        assert (plan.seed, plan.engine["batch_size"]) == (2, 16)
        assert plan.budget == {"wall_clock_s": 7200.0}
        assert plan.model["source"] == {"path": str(folder / "here")}
        assert plan.model["dtype"] == "bfloat16"

    def test_section_left_out(self, folder: Path) -> None:
        """A value of a section that the runbook leaves out can be set all the same."""
        edit(folder / "runbook.yaml", "budget: {wall_clock: 90m}\n", "")

        assert load(folder, "budget.wall_clock=1m").budget == {"wall_clock_s": 60.0}

    def test_set_path_heals_an_unset_variable(self, folder: Path) -> None:
        """A model path set by hand does away with the variable that is not set."""
        edit(folder / "runbook.yaml", "${MODELS}/tiny", "${NONE}/tiny")

        assert load(folder, "model.source.path=/m").model["source"] == {"path": "/m"}
        assert "'NONE' is not set" in refused(folder, "model.dtype=float32").what

    def test_one_of_two_steps(self, folder: Path) -> None:
        """Of two steps that share a spec, only the one named is changed."""
        edit(
            folder / "runbook.yaml",
            "output: models/base",
            "output: m\n        spec: specs/pilot.yaml",
        )

        plan = load(folder, "pilot.max_new_tokens=4")

        assert plan.step("prepare").params["max_new_tokens"] == 48

    @pytest.mark.parametrize(
        ("arg", "what", "fix"),
        [
            ("pilot", "is not followed by =value", "--set step.parameter=value"),
            ("=4", "is not followed by =value", "--set step.parameter=value"),
            ("a..b=4", "is not followed by =value", "--set step.parameter=value"),
            ("seed=", "the value is empty", 'write ""'),
            ("seed=[1", "not valid YAML", "write a YAML scalar"),
            ("pilot.style=!!python/name:os.system", "the tag", "write a YAML scalar"),
            ("pilto.style=x", "no step or key 'pilto'", "did you mean 'pilot'?"),
            ("pilot.max_tokens=4", "no parameter 'max_tokens'", "did you mean 'max_new_tokens'?"),
            ("pilot.sampling.top=4", "no parameter 'sampling.top'", "sampling.temperature"),
            ("pilot.style.x=4", "no parameter 'style.x'", "style"),
            ("pilot.sizes.2=4", "no parameter 'sizes.2'", "sizes"),
            ("pilot=4", "no parameter ''", "use one of: max_new_tokens"),
            ("prepare.x=4", "no parameter 'x'", "nothing is known here"),
            ("pilot.max_new_tokens=four", "is a whole number, 'four' is not", "a whole number"),
            ("pilot.max_new_tokens=4.5", "is a whole number, 4.5 is not", "a whole number"),
            ("pilot.max_new_tokens=true", "is a whole number, true is not", "a whole number"),
            ("pilot.sampling.temperature='1'", "is a number, '1' is not", "write a number"),
            ("pilot.sampling.temperature=.nan", "not a finite number", "write a YAML scalar"),
            ("pilot.style=5", "is text, 5 is not", "quote it"),
            ("pilot.strict=1", "is true or false, 1 is not", "write true or false"),
            ("pilot.sampling={temperature: 1}", "'sampling' is a mapping", "one by one"),
            ("pilot.few_shot=x.yaml", "'few_shot' is an input file", "under files:"),
            ("pilot.gate.criteria.0.below=1", "'gate' is not set from", "on record"),
            ("pilot.retries=5", "'retries' is not set from", "on record"),
            ("pilot.adjustments=[]", "'adjustments' is not set from", "on record"),
            ("pilot.below=1", "'below' is not set from", "on record"),
            ("reviewer.provider=human", "'reviewer' is not set from", "on record"),
            ("stop_conditions=[]", "'stop_conditions' is not set from", "on record"),
            ("engine.batchsize=2", "unknown key 'batchsize'", "did you mean 'batch_size'?"),
            ("engine.batch_size=0", "0 is below 1", "use 1 or more"),
            ("engine=5", "5 is not a mapping", "write a mapping"),
            ("seed.x=5", "'seed' is not a mapping", "set seed itself"),
            ("seed='5'", "'5' is not a whole number", "without quotes"),
            ("model.source.path=${NO}/x", "'NO' is not set", "export NO="),
            ("model.source.pypi=x", "the model has 2 sources", "exactly one of"),
            ("budget.wall_clock=90", "90 is not a duration", "90s, 15m, 6h"),
        ],
    )
    def test_refused(self, folder: Path, arg: str, what: str, fix: str) -> None:
        """An override that is wrong is refused under its own name."""
        error = refused(folder, "seed=3", arg)

        assert error.where == f"--set {arg}"
        assert what in error.what
        assert fix in error.fix

    def test_escaped(self, folder: Path) -> None:
        """An argument with control characters is shown escaped."""
        assert "\x1b" not in str(refused(folder, "pilot.\x1b[2J=\x1b[2J"))


class TestFingerprints:
    def test_place_and_comfort_do_not_matter(self, folder: Path, tmp_path: Path) -> None:
        """Place, threads, budget, environment and titles are no part of the identity."""
        plan = load(folder)
        other = lay_out(tmp_path / "elsewhere" / "deep")
        path = other / "runbook.yaml"
        edit(path, "threads: 1", "threads: 2")
        edit(path, "90m", "1h")
        edit(path, "x-$", "y-$")
        edit(path, "title: Pilot", "title: Other")

        moved = load_plan(path, environ={"MODELS": "/else"})

        assert plan.fingerprint == moved.fingerprint
        assert [s.fingerprint for s in plan.steps] == [s.fingerprint for s in moved.steps]
        assert str(tmp_path) not in canonical_json(plan_document(plan))

    def test_file_byte(self, folder: Path) -> None:
        """One byte of a declared file changes its step and those that read it, no others."""
        before = load(folder)
        (folder / "few_shot.yaml").write_text("- One\n")

        after = load(folder)

        assert changed_steps(before, after) == ["pilot", "train"]
        assert before.fingerprint != after.fingerprint

    @pytest.mark.parametrize(
        ("old", "new", "steps"),
        [
            ("seed: 7", "seed: 8", ["prepare", "pilot", "train"]),
            ("batch_size: 4", "batch_size: 5", ["prepare", "pilot", "train"]),
            ("dtype: float32", "dtype: bfloat16", ["prepare", "pilot", "train"]),
            ("${MODELS}/tiny", "${MODELS}/other", ["prepare", "pilot", "train"]),
            ("checkpoints/train", "checkpoints/t", ["train"]),
            ("retries: 2", "retries: 1", []),
            ("max: 100", "max: 90", []),
            ("{add: 4}", "{add: 5}", []),
            ("rerun_from: pilot", "rerun_from: prepare", []),
            ("enabled: false", "enabled: true", []),
        ],
    )
    def test_what_counts(self, folder: Path, old: str, new: str, steps: list[str]) -> None:
        """What changes bytes changes the steps; what judges them changes the plan alone."""
        before = load(folder)
        edit(folder / "runbook.yaml", old, new)

        after = load(folder)

        assert steps == changed_steps(before, after)
        assert before.fingerprint != after.fingerprint

    def test_gate(self, folder: Path) -> None:
        """A threshold is part of the plan's identity and of no step's."""
        before = load(folder)
        edit(folder / "specs" / "pilot.yaml", "below: 0.05", "below: 0.1")

        after = load(folder)

        assert changed_steps(before, after) == []
        assert changed_fields(plan_document(before), plan_document(after)) == (
            "steps.pilot.gate.criteria.0.below: 0.05 -> 0.1",
        )

    def test_changed_fields(self, folder: Path) -> None:
        """Plan documents are compared field by field, with old and new values."""
        before = plan_document(load(folder))
        edit(folder / "specs" / "pilot.yaml", "  style: short\n", '  tone: "\\e[2J"\n')

        after = plan_document(load(folder, "pilot.max_new_tokens=4"))

        assert changed_fields(before, after) == (
            "steps.pilot.params.max_new_tokens: 48 -> 4",
            'steps.pilot.params.style: "short" -> (absent)',
            'steps.pilot.params.tone: (absent) -> "\\u001b[2J"',
        )
        assert changed_fields(before, before) == ()

    def test_document(self, folder: Path) -> None:
        """The plan's fingerprint is that of its document, which survives JSON."""
        plan = load(folder)
        document = plan_document(plan)

        assert plan.fingerprint == fingerprint(document)
        assert document == json.loads(json.dumps(document))
        assert document == plan_document(replace(plan, fingerprint="other"))

    def test_file_vanished(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file that cannot be read any more is told at the key that names it."""
        failing = OSError(5, "Input/output error")

        def fail(_path: Path) -> str:
            raise failing

        monkeypatch.setattr("runbook.schema_resolve.sha256_file", fail)

        error = refused(folder)

        assert error.where == f"{folder / 'specs' / 'pilot.yaml'}:10:3"
        assert "Input/output error" in error.what


def changed_steps(before: Plan, after: Plan) -> list[str]:
    pairs = zip(before.steps, after.steps, strict=True)
    return [a.name for a, b in pairs if a.fingerprint != b.fingerprint]


def test_json_schemas() -> None:
    """The published JSON Schemas name the keys and refuse others."""
    runbook, spec = runbook_json_schema(), spec_json_schema()

    assert {"phases", "model", "seed"} <= set(runbook["required"])
    assert runbook["additionalProperties"] is False
    assert set(spec["properties"]) == {"spec", "params", "files", "gate"}
    assert json.loads(json.dumps([runbook, spec])) == [runbook, spec]


def test_import_is_light() -> None:
    """Loading the schema loads neither torch nor scipy."""
    code = "import sys, runbook.schema; print({'torch', 'scipy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "set()\n"


JUNK = st.sampled_from(
    ["", " ", ":", "-", "{", "}", "[", "]", "null", "true", "1e400", '"', "'", "\n", "\n  ", "&a ",
     "*a", "!!x ", "\x1b", "\x00", "é", "9" * 30, "../", "${", "${X}", "a:b:c", "<<", "# ", "|"]
)  # fmt: skip


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_mutation(tmp_path: Path, data: st.DataObject) -> None:
    """However a runbook or spec is mangled, it is loaded or refused as a configuration error."""
    folder = tmp_path / "fuzz"
    shutil.rmtree(folder, ignore_errors=True)
    lay_out(folder)
    path = folder / data.draw(st.sampled_from(["runbook.yaml", "specs/pilot.yaml"]))
    text = path.read_text()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = start + data.draw(st.integers(0, 12))
        text = text[:start] + data.draw(JUNK) + text[end:]
    path.write_text(text)

    with contextlib.suppress(ConfigError):
        load(folder)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(["seed", "engine", "engine.name", "model.source", "pilot.sizes", "x"]),
       value=st.text(alphabet=st.characters(codec=None), max_size=12))  # fmt: skip
@example(path="engine.name", value="-")
def test_any_override(folder: Path, path: str, value: str) -> None:
    """Whatever an override says, it is applied or refused as a configuration error."""
    with contextlib.suppress(ConfigError):
        load(folder, f"{path}={value}")
