"""Step and parts: is the checkpoint a base model, whatever its name says? Readings, no verdicts.

Read off the tokenizer, the weights and the behaviour. What judges texts is measured on labelled
rows first, which needs no model, and certified. The gate holds the readings against bounds that the
runbook declares per family; a family that was never measured is uncalibrated, and its gate invalid.
What this cannot see: a tuned model that never learnt an end-of-turn token.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from phases.certificates import ARTIFACT, certified, certify_detectors, sign
from phases.detectors import SENTINELS, DetectorProbe, load_detector_probes, read
from phases.engines import Engine, Sampling, open_engine
from phases.records import Row, parse_params
from runbook.artifacts import describe, write_json, write_jsonl
from runbook.contract import Instrument, Json, Metric, PhaseRequest, PhaseResult
from runbook.errors import ConfigError

PARAMS: Final = "phases.contamination:ContaminationParams"
METRICS: Final = (
    "end_of_turn_logp",
    "completions_right",
    "assistant_like",
    "bare_endings",
    "prefix_mismatch",
    "template_left",
    "fed_markup",
    "undeclared_chat_template",
    "detector_readings",
    "completion_sensitivity",
    "completion_specificity",
    "assistant_sensitivity",
    "assistant_specificity",
    "chat_markup_sensitivity",
    "chat_markup_specificity",
)
"""The first seven are read again before each phase; the last six the gate derives."""
CERTIFIES: Final = (
    "phases.chat_signs",
    "phases.detectors",
    "runbook.text",
    "specs/probe/detectors/assistant.jsonl",
    "specs/probe/detectors/chat_markup.jsonl",
    "specs/probe/detectors/completion.jsonl",
)
"""What the certificate is bound to; a change of any makes the step anew, where a person accepts."""
MEASURED_FAMILIES: Final = ("gemma3",)
"""Families whose base reading was taken. The positive control was SmolLM2-135M-Instruct, which is
of another family: how an instruct model of the same family reads was not measured."""
MODEL_TYPES: Final[Mapping[str, tuple[str, ...]]] = {
    "gemma3": ("gemma3", "gemma3_text"),
    "qwen2.5": ("qwen2",),
    "smollm2": ("llama",),
}
"""Of families, what ``model_type`` their checkpoints carry; one that is not here is not checked."""

_COMPLETIONS: Final = (
    ("The capital of France is", "paris"),
    ("One, two, three, four,", "five 5"),
    ("Monday, Tuesday, Wednesday,", "thursday"),
    ("The opposite of hot is", "cold"),
    ("January, February, March,", "april"),
    ("A, B, C, D,", "e"),
    ("The sun rises in the", "east eastern morning sky"),
    ("Roses are red, violets are", "blue"),
)
_BARE: Final = (
    "Write a short poem about the sea.",
    "What is the best way to learn to cook?",
    "Give me three tips for a good night's sleep.",
    "Tell me a joke about a cat.",
    "Explain why leaves fall in autumn.",
    "Can you help me write a letter to my landlord?",
    "Name three colors.",
    "What is the capital of France?",
    "Say the opposite of hot.",
    "What is two plus two?",
    "Which is bigger, an ant or a horse?",
    "Who wrote Romeo and Juliet?",
)
_GREEDY: Final = Sampling(max_new_tokens=40)


class ContaminationParams(BaseModel):
    """A user's own labelled rows, beside those shipped with the sentinels."""

    model_config = ConfigDict(extra="forbid", strict=True)

    probe_completion: str | None = None
    probe_assistant: str | None = None
    probe_chat_markup: str | None = None

    def check_files(self) -> None:
        """Read the probes; raises ConfigError for a file that is no use."""
        self.detector_probes()

    def added(self) -> dict[str, str]:
        """The user's own files by detector, '' where there is none."""
        return {name: getattr(self, f"probe_{name}") or "" for name in SENTINELS}

    def detector_probes(self) -> dict[str, list[DetectorProbe]]:
        """The labelled rows of each sentinel that judges texts. Raises ConfigError."""
        return {
            name: load_detector_probes(SENTINELS[name], Path(path) if path else None)
            for name, path in self.added().items()
        }


def run(request: PhaseRequest) -> PhaseResult:
    """Measure every sentinel on the prepared base, adapters off.

    Return the artifacts ``readings``, ``texts`` (rows, what was fed and said; these can be
    labelled), ``detector_readings`` (rows) and ``certificate``.
    """
    params = parse_params(ContaminationParams, request)
    said = [
        row
        for name, labelled in params.detector_probes().items()
        for row in read(SENTINELS[name], labelled)
    ]
    entries = certify_detectors(said, params.added())
    family = family_of(request)
    engine = open_engine(request)
    request.channel.progress(stage="sentinels", done=0, total=1)
    metrics, rows = measure(engine, family)
    written = request.output / "readings.json"
    template = engine.stated().get("shipped_template", False)
    declared = request.model.get("chat_template", "none") == "shipped"
    undeclared = Metric("undeclared_chat_template", float(bool(template) and not declared), n=1)
    metrics = _resting_on(written, request, (*certified(request, metrics, entries), undeclared))
    told = {"rows": rows, "metrics": {m.name: m.value for m in metrics}}
    files = {
        "readings": written,
        "texts": request.output / "texts.jsonl",
        "detector_readings": request.output / "detector_readings.jsonl",
        ARTIFACT: request.output / "certificate.json",
    }
    write_json(written, told)
    write_jsonl(files["texts"], [row for row in rows if "fed" in row])
    write_jsonl(files["detector_readings"], said)
    write_json(files[ARTIFACT], sign(entries))
    evidence = files["detector_readings"].relative_to(request.workspace).as_posix()
    counted = Metric("detector_readings", float(len(said)), n=len(said), evidence=evidence)
    return PhaseResult(
        metrics=(*metrics, counted),
        artifacts=tuple(describe(name, path, request.workspace) for name, path in files.items()),
        summary={"readings": told["metrics"]},
        flagged=tuple(rows[:10]),
    )


def read_sentinels(
    request: PhaseRequest, engine: Engine
) -> tuple[tuple[Metric, ...], dict[str, Json]]:
    """Every sentinel on a step's own base, as metrics and as records carry them.

    What was fed and said stands in the step's ``sentinels.jsonl``.
    """
    measured, rows = measure(engine, family_of(request))
    path = request.output / "sentinels.jsonl"
    write_jsonl(path, rows)
    metrics = _resting_on(path, request, certified(request, measured))
    return metrics, {m.name: round(m.value, 4) for m in metrics if m.value is not None}


def family_of(request: PhaseRequest) -> str:
    """The declared family. Its measured bounds say nothing of a checkpoint of another one.

    Raises:
        ConfigError: the checkpoint's own ``model_type`` is none of that family.
    """
    family = str(request.model.get("family", ""))
    base = request.inputs.get("prepare_model", {}).get("base_model")
    known = MODEL_TYPES.get(family)
    if base is None or known is None:
        return family
    path = request.workspace / base.path / "config.json"
    # Without one the loader refuses the checkpoint.
    found = _model_type(path)
    if found is not None and found not in known:
        others = [name for name, types in MODEL_TYPES.items() if found in types]
        told = f", which is that of {' or '.join(others)}" if others else ""
        what = (
            f"the declared family is {family!r}, whose model_type is {' or '.join(known)}, and the "
            f"checkpoint's is {found!a:.80}{told}"
        )
        fix = "set model.family to the checkpoint's own, or model.source to the model you mean"
        raise ConfigError(what, where=str(path), fix=fix)
    return family


def _model_type(path: Path) -> Json:
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return config.get("model_type") if isinstance(config, dict) else None


def _resting_on(path: Path, request: PhaseRequest, metrics: Iterable[Metric]) -> tuple[Metric, ...]:
    evidence = path.relative_to(request.workspace).as_posix()
    return tuple(replace(metric, evidence=evidence) for metric in metrics)


def measure(engine: Engine, family: str) -> tuple[tuple[Metric, ...], list[dict[str, Json]]]:
    """The sentinels that need the model: readings and the raw rows behind them."""
    ends = engine.end_of_turn_logps()
    rows: list[dict[str, Json]] = [
        {"sentinel": "end of turn", "token": token, "logp": round(logp, 4)}
        for token, logp in ends.items()
    ]
    right = obeyed = ended = 0
    prompts = [prompt for prompt, _ in _COMPLETIONS]
    completed = engine.generate(prompts, _GREEDY, ("\n",), seed=0)
    for (prompt, allowed), out in zip(_COMPLETIONS, completed, strict=True):
        told = _row(engine, "completion", prompt, out.text) | {"allowed": allowed}
        told["right"] = SENTINELS["completion"].says(told)
        right += told["right"]
        rows.append(told)
    for prompt, out in zip(_BARE, engine.generate(list(_BARE), _GREEDY, (), seed=0), strict=True):
        told = _row(engine, "bare", prompt, out.text) | {"ends": not out.hit_limit}
        told["assistant"] = SENTINELS["assistant"].says(told)
        obeyed += told["assistant"]
        ended += told["ends"]
        rows.append(told)
    marked = sum(row.get("markup", False) for row in rows)
    known = Instrument.OK if family in MEASURED_FAMILIES else Instrument.UNCALIBRATED
    return (
        Metric(
            "end_of_turn_logp",
            max(ends.values()) if ends else None,
            n=len(ends),
            instrument=known,
            note=_note(family) if ends else "no chat marker is a single token of this tokenizer",
        ),
        Metric(
            "completions_right", right / len(_COMPLETIONS), n=len(_COMPLETIONS), successes=right
        ),
        Metric("assistant_like", obeyed / len(_BARE), n=len(_BARE), successes=obeyed),
        Metric(
            "bare_endings",
            ended / len(_BARE),
            n=len(_BARE),
            successes=ended,
            instrument=known,
            note=_note(family),
        ),
        Metric("prefix_mismatch", float(not engine.stated()["prefix_matches"]), n=1),
        Metric("template_left", float(not engine.stated()["template_disabled"]), n=1),
        Metric("fed_markup", float(marked), n=len(_COMPLETIONS) + len(_BARE)),
    ), rows


def _row(engine: Engine, sentinel: str, prompt: str, text: str) -> Row:
    """What was asked, what the model was fed for it, special tokens spelled out, and its words."""
    told = {"sentinel": sentinel, "prompt": prompt, "fed": engine.fed(prompt), "text": text}
    return told | {"markup": SENTINELS["chat_markup"].says(told)}


def _note(family: str) -> str:
    if family in MEASURED_FAMILIES:
        return ""
    return f"family {family!r} was never measured (measured: {', '.join(MEASURED_FAMILIES)})"
