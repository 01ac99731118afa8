"""Step and parts: is the checkpoint a base model, whatever its name says? Readings, no verdicts.

Read off the tokenizer, the weights and the behaviour. The gate holds the readings against bounds
that the runbook declares per family; a family that was never measured is uncalibrated, and its
gate invalid. What this cannot see: a tuned model that never learnt an end-of-turn token.
"""

from typing import Final

from phases.engines import Engine, Sampling, open_engine
from phases.records import NoParams, parse_params
from runbook.artifacts import describe, write_json
from runbook.contract import Instrument, Json, Metric, PhaseRequest, PhaseResult

PARAMS: Final = "phases.records:NoParams"
METRICS: Final = (
    "end_of_turn_logp",
    "completions_right",
    "assistant_like",
    "prefix_mismatch",
    "template_left",
    "undeclared_chat_template",
)
MEASURED_FAMILIES: Final = ("gemma3",)
"""Families whose base reading was taken. The positive control was SmolLM2-135M-Instruct, which is
of another family: how an instruct model of the same family reads was not measured."""

_COMPLETIONS: Final = (
    ("The capital of France is", ("paris",)),
    ("One, two, three, four,", ("five", "5")),
    ("Monday, Tuesday, Wednesday,", ("thursday",)),
    ("The opposite of hot is", ("cold",)),
    ("January, February, March,", ("april",)),
    ("A, B, C, D,", ("e",)),
    ("The sun rises in the", ("east", "morning", "sky")),
    ("Roses are red, violets are", ("blue",)),
)
_BARE: Final = (
    "Write a short poem about the sea.",
    "What is the best way to learn to cook?",
    "Give me three tips for a good night's sleep.",
    "Tell me a joke about a cat.",
    "Explain why leaves fall in autumn.",
    "Can you help me write a letter to my landlord?",
)
_ASSISTANT: Final = (
    "sure",
    "certainly",
    "of course",
    "as an ai",
    "i'm sorry",
    "here is",
    "here's",
    "here are",
    "i'd be happy",
    "absolutely",
    "i can help",
)
_GREEDY: Final = Sampling(max_new_tokens=40)


def run(request: PhaseRequest) -> PhaseResult:
    """Measure every sentinel on the prepared base, adapters off, and keep the raw texts."""
    parse_params(NoParams, request)
    engine = open_engine(request)
    request.channel.progress(stage="sentinels", done=0, total=1)
    metrics, rows = measure(engine, str(request.model.get("family", "")))
    template = engine.stated().get("shipped_template", False)
    declared = request.model.get("chat_template", "none") == "shipped"
    metrics = (
        *metrics,
        Metric("undeclared_chat_template", float(bool(template) and not declared), n=1),
    )
    path = request.output / "readings.json"
    write_json(path, {"rows": rows, "metrics": {m.name: m.value for m in metrics}})
    return PhaseResult(
        metrics=metrics,
        artifacts=(describe("readings", path, request.workspace),),
        summary={"readings": {m.name: m.value for m in metrics}},
        flagged=tuple(rows[:10]),
    )


def measure(engine: Engine, family: str) -> tuple[tuple[Metric, ...], list[dict[str, Json]]]:
    """The sentinels that need the model: readings and the raw rows behind them."""
    ends = engine.end_of_turn_logps()
    rows: list[dict[str, Json]] = [
        {"sentinel": "end of turn", "token": token, "logp": round(logp, 4)}
        for token, logp in ends.items()
    ]
    completed = engine.generate([p for p, _ in _COMPLETIONS], _GREEDY, ("\n",), seed=0)
    right = 0
    for (prompt, allowed), out in zip(_COMPLETIONS, completed, strict=True):
        good = any(word in out.text.lower()[:40] for word in allowed)
        right += good
        rows.append({"sentinel": "completion", "prompt": prompt, "text": out.text, "right": good})
    obeyed = 0
    for prompt, out in zip(_BARE, engine.generate(list(_BARE), _GREEDY, (), seed=0), strict=True):
        like = out.text.strip().lower().startswith(_ASSISTANT)
        obeyed += like
        rows.append({"sentinel": "bare", "prompt": prompt, "text": out.text, "assistant": like})
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
        Metric("prefix_mismatch", float(not engine.stated()["prefix_matches"]), n=1),
        Metric("template_left", float(not engine.stated()["template_disabled"]), n=1),
    ), rows


def _note(family: str) -> str:
    if family in MEASURED_FAMILIES:
        return ""
    return f"family {family!r} was never measured (measured: {', '.join(MEASURED_FAMILIES)})"
