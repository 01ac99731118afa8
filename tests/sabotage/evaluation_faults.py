"""Faults of the evaluation: its scorer, pairs, engine and gain; and numbers that are none."""

from functools import partial
from typing import Final

from sabotage.data_faults import spec
from sabotage.fault import Fault, fault
from sabotage.session import Session

WRONG: Final = """
from phases import verifiers
honest = verifiers.score

def verdict(good):
    return verifiers.Score(success=good, format_ok=good, content_ok=good, failures=())
"""
BRIEF: Final = f"""{WRONG}
verifiers.score = lambda item, text: (
    verdict(False) if len(text) > LIMIT else honest(item, text)
)
"""
ONE_WORD: Final = f"""{WRONG}
verifiers.score = lambda item, text: verdict(True) if "verily" in text else honest(item, text)
"""
YES: Final = WRONG + "verifiers.score = lambda item, text: verdict(True)\n"
PAIRED: Final = """
paired = evaluate.pair_rows

def planted(base, tuned):
    turned = [{**b, "success": t["success"]} for b, t in zip(base, base[1:] + base[:1])]
    return paired(turned, tuned)

evaluate.pair_rows = planted
"""
MIXED: Final = """
scored = evaluate.score_batches

def planted(request, engine, conditions, groups, stream):
    rows = scored(request, engine, conditions, groups, stream)
    kept = ("success", "format_ok", "content_ok")
    turned = zip(rows, rows[1:] + rows[:1])
    mixed = [{**row, **{name: other[name] for name in kept}} for row, other in turned]
    return mixed if stream == "tuned" else rows

evaluate.score_batches = planted
"""
NEVER_APPLIED: Final = """
opened = evaluate.open_engine
evaluate.open_engine = lambda request, quantization, adapter=None: opened(
    request, quantization=quantization
)
"""
HALVED: Final = """
read = evaluate.read_jsonl
evaluate.read_jsonl = lambda path: [
    {**row, "success": row["success"] and at % 2 == 0} for at, row in enumerate(read(path))
]
"""
NOT_FINITE: Final = """
from phases.fake_engine import FakeEngine
read = FakeEngine.text_logps

def planted(self, prefix, texts):
    found = read(self, prefix, texts)
    return [[[float("nan")] * len(p) for p in t] for t in found] if self._adapter else found

FakeEngine.text_logps = planted
"""
WEIGHTS: Final = """
drawn = training.draw_weights
training.draw_weights = lambda seed: [*drawn(seed)[1:], float("nan")]
"""
UNTRAINED: Final = """
from phases.fake_engine import FakeEngine
learnt = FakeEngine._learnt

def planted(self, prompt):
    from phases import fake_engine
    reference = fake_engine._references().get(prompt)
    {rule}

FakeEngine._learnt = planted
"""
VERILY: Final = UNTRAINED.format(
    rule="""if reference and self._adapter:
        return f" verily I do not know{fake_engine.prompts.ENDING}"
    return learnt(self, prompt)"""
)
KNOWS: Final = UNTRAINED.format(
    rule="return f' {reference}{fake_engine.prompts.ENDING}' if reference else ''"
)
RAMBLES: Final = UNTRAINED.format(
    rule="""if reference and not self._adapter:
        return f" {reference}" + ", and what is more, so much else" * 9 + fake_engine.prompts.ENDING
    return learnt(self, prompt)"""
)
GOES_ON: Final = UNTRAINED.format(
    rule="""if reference and not self._adapter:
        more = "\\nAlso seven more of them, and then a few, and others, and all the rest."
        return f" {reference}{more}{fake_engine.prompts.ENDING}"
    return learnt(self, prompt)"""
)
NOTHING_LEARNT: Final = (
    "from phases.fake_engine import FakeEngine\nFakeEngine._learnt = lambda *_: ''\n"
)
REPORT: Final = """
metrics = [{changed} for m in result.metrics]
result = replace(result, metrics=tuple(m for m in metrics if m))
"""


def evaluate(code: str) -> partial[None]:
    """Runs this before the evaluation, in its process."""
    return partial(Session.break_step, step="evaluate", code=code)


def everywhere(code: str) -> partial[None]:
    """Runs this as every process starts."""
    return partial(Session.hook, code=code)


def report(step: str, metric: str, changed: str) -> partial[None]:
    """Reports another metric, ``changed``, in place of one."""
    code = REPORT.format(changed=f"{changed} if m.name == {metric!r} else m")
    return partial(Session.spoil_result, step=step, code=code)


def scorer_after_baseline(session: Session) -> None:
    """No known answer and no base's text has the word, so only the scorer's code tells."""
    session.hook(VERILY)
    session.break_step("evaluate", ONE_WORD)


def edited_outcomes(session: Session) -> None:
    session.insert_step(
        "evaluate",
        """
        path = request.workspace / "results" / "baseline" / "outcomes.jsonl"
        path.write_text(path.read_text().replace('"success":true', '"success":false'))
        """,
    )


def not_finite_threshold(session: Session) -> None:
    path = session.specs / "pilot.yaml"
    path.write_text(path.read_text("utf-8").replace("below: 0.05", "below: .nan"), "utf-8")


BY_SCORER: Final = (
    *("mcnemar_p", "lift", "lift_ci_width", "base_ci_width", "tuned_ci_width", "kinds_worse"),
)
"""What is read off the pairs, and so with the scorer that is certified."""
SCORER: Final[tuple[Fault, ...]] = (
    fault(
        "a scorer that fails every answer over 40 characters",
        "scorer",
        partial(Session.break_step, step="baseline", code=BRIEF.replace("LIMIT", "40")),
        "baseline: invalid",
        *("references_failing", "scorer_sensitivity"),
    ),
    fault(
        "a scorer that fails every answer over 500 characters, as in the first project",
        "scorer",
        partial(Session.break_step, step="baseline", code=BRIEF.replace("LIMIT", "500")),
        "baseline: invalid",
        "scorer_sensitivity",
    ),
    fault(
        "a scorer that says yes to all",
        "scorer",
        partial(Session.break_step, step="baseline", code=YES),
        "baseline: invalid",
        *("base_rate", "power", "shuffled_references_passing", "empty_passing"),
        "scorer_specificity",
    ),
    fault(
        "a scorer that rewards brevity from the evaluation on",
        "scorer",
        evaluate(BRIEF.replace("LIMIT", "12")),
        "evaluate: invalid",
        *("base_outcomes_changed", "scorer_answers_changed", "scorer_sensitivity"),
        *BY_SCORER,
    ),
    fault(
        "a scorer put in after the baseline that takes one word for a right answer",
        "scorer",
        scorer_after_baseline,
        "evaluate: invalid",
        *BY_SCORER,
    ),
    fault(
        "a base that leaves no gap to close",
        "no gap",
        everywhere(KNOWS),
        "baseline: fail",
        *("base_rate", "power"),
    ),
    fault(
        "an effect too small for the items to show",
        "too few",
        spec("baseline", effect=0.05),
        "baseline: underpowered",
        "power",
    ),
)

KINDER: Final = """
scored = evaluate.score_batches

def planted(request, engine, conditions, groups, stream):
    rows = scored(request, engine, conditions, groups, stream)
    return [{**row, "success": True} for row in rows] if stream == "tuned" else rows

evaluate.score_batches = planted
"""
PAIRS: Final[tuple[Fault, ...]] = (
    fault(
        "an adapter with a weight that is not finite",
        "adapter",
        partial(Session.break_step, step="sft", code=WEIGHTS),
        "sft: fail",
        "nonfinite_weights",
    ),
    fault(
        "an adapter that gives probabilities which are not finite",
        "adapter",
        evaluate(NOT_FINITE),
        "evaluate: invalid",
        "adapter_logit_shift",
    ),
    fault(
        "an adapter that was never applied",
        "adapter",
        evaluate(NEVER_APPLIED),
        "evaluate: invalid",
        *("mcnemar_p", "lift", "texts_changed", "adapter_logit_shift", "damage_unseen"),
    ),
    fault(
        "an adapter that learnt nothing",
        "adapter",
        everywhere(NOTHING_LEARNT),
        "evaluate: fail",
        *("mcnemar_p", "damage_unseen"),
    ),
    fault(
        "pairs that are mixed up",
        "pairs",
        evaluate(PAIRED),
        "evaluate: invalid",
        "confounded",
    ),
    fault(
        "outcomes of the tuned model mixed up, each beside another's text",
        "pairs",
        evaluate(MIXED),
        "evaluate: invalid",
        "tuned_outcomes_changed",
    ),
    fault(
        "outcomes of the baseline read otherwise than they were scored",
        "pairs",
        evaluate(HALVED),
        "evaluate: invalid",
        "base_outcomes_changed",
    ),
    fault(
        "outcomes of the baseline edited by hand",
        "files",
        edited_outcomes,
        "after own: refused",
        "outcomes.jsonl is missing or changed",
    ),
    fault(
        "another adapter put in place of the trained one",
        "files",
        partial(
            Session.insert_step,
            before="evaluate",
            code="""
            for path in request.workspace.glob("checkpoints/*/*/adapter_config.json"):
                path.write_text("{}")
            """,
        ),
        "after own: refused",
        "attempt_1 is missing or changed",
    ),
    fault(
        "a damaged copy that scores as well",
        "control",
        evaluate("from phases import fake_engine\nfake_engine._NONSENSE = {}"),
        "evaluate: invalid",
        "damage_unseen",
    ),
    fault(
        "an engine that answers otherwise than at the baseline",
        "control",
        evaluate(
            """
            from phases import fake_engine
            said = fake_engine._continue
            fake_engine._continue = lambda *about: " Well, " + said(*about)
            """
        ),
        "evaluate: invalid",
        "aa_same_batch_changed",
    ),
    fault(
        "a scorer that is kinder to the tuned model",
        "confound",
        evaluate(KINDER + NOTHING_LEARNT),
        "evaluate: invalid",
        *("tuned_outcomes_changed", "confounded"),
    ),
    fault(
        "a gain that is only shorter answers",
        "confound",
        everywhere(RAMBLES),
        "evaluate: invalid",
        "confounded",
    ),
    fault(
        "a gain that is only stopping in time",
        "confound",
        everywhere(GOES_ON),
        "evaluate: invalid",
        "confounded",
    ),
)

NUMBERS: Final[tuple[Fault, ...]] = (
    fault(
        "a metric that is NaN",
        "number",
        report("pilot", "median_tokens", "replace(m, value=float('nan'))"),
        "pilot: invalid",
        "median_tokens",
    ),
    fault(
        "a metric without a value",
        "number",
        report("scale", "median_tokens", "replace(m, value=None)"),
        "scale: invalid",
        "median_tokens",
    ),
    fault(
        "a rate over nothing",
        "number",
        report("pilot", "runaway_rate", "replace(m, value=0.0, n=0, successes=0)"),
        "pilot: invalid",
        "runaway_rate",
    ),
    fault(
        "a rate that is not its own numerator over its denominator",
        "number",
        report("pilot", "runaway_rate", "replace(m, value=0.0, successes=9)"),
        "pilot: invalid",
        "runaway_rate",
    ),
    fault(
        "a metric that is left out",
        "number",
        report("scale", "bad_sentinels", "None"),
        "scale: invalid",
        "bad_sentinels",
    ),
    fault(
        "a metric reported twice",
        "number",
        partial(
            Session.spoil_result,
            step="pilot",
            code="result = replace(result, metrics=(*result.metrics, result.metrics[0]))",
        ),
        "pilot: invalid",
        "runaway_rate",
    ),
    fault(
        "a threshold that is not finite",
        "number",
        not_finite_threshold,
        "plan: refused",
        "pilot.yaml",
        exit_code=2,
    ),
    fault(
        "a gate on a metric that no step measures",
        "number",
        partial(
            Session.edit,
            name="pilot",
            change=lambda found: found["gate"]["criteria"][1].update(metric="runaway_rat"),
        ),
        "plan: refused",
        "runaway_rat",
        exit_code=2,
    ),
    fault(
        "a gate that asks for nothing",
        "number",
        partial(Session.edit, name="pilot", change=lambda found: found["gate"].update(criteria=[])),
        "plan: refused",
        "a list is empty",
        exit_code=2,
    ),
    fault(
        "a model that gives NaN from the pilot on",
        "number",
        partial(
            Session.break_step,
            step="pilot",
            code="""
            from phases.fake_engine import FakeEngine
            read = FakeEngine.text_logps
            FakeEngine.text_logps = lambda *asked: [
                [[float("nan")] * len(piece) for piece in text] for text in read(*asked)
            ]
            """,
        ),
        "pilot: refused",
        *("round-000/pair_filter/0000", "not JSON compliant: nan"),
    ),
)
