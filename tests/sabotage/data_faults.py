"""Faults of the data: how it is made, what stands in it, what it must not hold."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from sabotage.fault import Fault, fault
from sabotage.session import Session, Spec

LEAK: Final = "Name four colors of the rainbow."
"""The second held-out item."""
AS_TRAINED: Final = """
from phases import prompts

def as_trained(found):
    return {{
        **found,
        "prompt": prompts.evaluation_prompt(found["instruction"]),
        "completion": prompts.completion(found["response"]),
    }}
"""
"""A record's texts for training follow from what was changed in it."""
FIFTH: Final = (
    AS_TRAINED
    + """
real, made = {step}.to_record, []

def planted(*args, **options):
    found = real(*args, **options)
    made.append(found)
    return as_trained({change}) if len(made) == 5 else found

{step}.to_record = planted
"""
)
EVERY: Final = (
    AS_TRAINED
    + """
real = {step}.to_record

def planted(*args, **options):
    found = real(*args, **options)
    return as_trained({change})

{step}.to_record = planted
"""
)


def record(step: str, change: str, form: str = FIFTH) -> partial[None]:
    """Changes the fifth record that a step makes; ``found`` is what it would be."""
    return partial(Session.break_step, step=step, code=form.format(step=step, change=change))


def spec(name: str, **change: Any) -> partial[None]:
    """Other parameters in a step's spec."""

    def update(found: Spec) -> None:
        found["params"] |= change

    return partial(Session.edit, name=name, change=update)


def held_out(change: Callable[[list[Spec]], list[Spec]]) -> Callable[[Session], None]:
    """Another held-out file from the start."""

    def plant(session: Session) -> None:
        rows = [json.loads(line) for line in session.held_out.read_text("utf-8").splitlines()]
        text = "".join(f"{json.dumps(row)}\n" for row in change(rows))
        session.held_out.write_text(text, "utf-8")

    return plant


def no_extension(session: Session) -> None:
    session.edit("pilot", lambda found: found["gate"].pop("extend"))


def few_instructions(session: Session) -> None:
    """A round of a hundred, twice: enough rows to keep, too few to forecast from."""
    no_extension(session)
    sampled = {"lists_per_round": 22}
    session.edit("pilot", lambda found: found["params"]["instructions"].update(sampled))


def small_pilot(session: Session) -> None:
    no_extension(session)
    spec("pilot", raw_rows=30, target_kept=30)(session)
    sampled = {"lists_per_round": 8}
    session.edit("pilot", lambda found: found["params"]["instructions"].update(sampled))


def first_of_each_kind(count: int) -> Callable[[list[Spec]], list[Spec]]:
    def taken(rows: list[Spec]) -> list[Spec]:
        return [
            row
            for at, row in enumerate(rows)
            if sum(other["kind"] == row["kind"] for other in rows[:at]) < count
        ]

    return taken


def other_held_out(session: Session, name: str) -> None:
    """All but the last item, under another name."""
    other = session.held_out.with_name("other.jsonl")
    lines = session.held_out.read_text("utf-8").splitlines(keepends=True)
    other.write_text("".join(lines[:-1]), "utf-8")
    session.edit(name, lambda found: found["files"].update(held_out=str(other)))


def small_set(session: Session) -> None:
    """Ten items of each kind, and a baseline that asks for no more."""
    held_out(first_of_each_kind(10))(session)
    spec("baseline", per_kind=10)(session)


def wrong_reference(rows: list[Spec]) -> list[Spec]:
    return [{**rows[0], "reference": "a hammer"}, *rows[1:]]


def cut_short(session: Session) -> None:
    session.hook(NOT_STOPPED.format(when="sampling.max_new_tokens == 4"))
    spec("pilot", max_new_tokens=4)(session)


def any_answer(rows: list[Spec]) -> list[Spec]:
    """Items whose only check is a length that every answer keeps to."""
    return [{**row, "checks": [{"check": "max_words", "words": 60}]} for row in rows]


def shown(session: Session) -> None:
    session.edit("../few_shot", lambda found: found["instructions"].append(LEAK))


ENDLESS: Final = "from phases import fake_engine\nfake_engine.FLAWS.update(endless=40)\n"
NOT_STOPPED: Final = """
from dataclasses import replace
from phases.fake_engine import FakeEngine
said = FakeEngine.generate

def generate(self, prompts, sampling, stop, seed):
    made = said(self, prompts, sampling, stop, seed)
    return [replace(g, hit_limit=False) for g in made] if {when} else made

FakeEngine.generate = generate
"""
COLLAPSED: Final = """
from phases import fake_engine
fake_engine._TEMPLATES = fake_engine._TEMPLATES[:4]
for name in ("_PEOPLE", "_THINGS", "_PLACES", "_ANIMALS"):
    setattr(fake_engine, name, getattr(fake_engine, name)[:8])
"""
OPEN_SCREEN: Final = """
{step}.make_screen = lambda *_: type("Open", (), {{"fate": lambda *_: ""}})()
"""
TWICE: Final = """
read, first = scale.read_jsonl, []

def planted(path):
    rows = read(path)
    first.append(path)
    return rows[:50] * 2 + rows[50:] if len(first) == 1 else rows

scale.read_jsonl = planted
"""
CUT_SHORT: Final = """
made = scale._shard

def planted(*args):
    folder = made(*args)
    path = folder / "dataset.jsonl"
    path.write_text(path.read_text()[:900])
    return folder

scale._shard = planted
"""
METADATA: Final = "{{**found, 'metadata': {{**found['metadata'], {}}}}}"
ALL_OVERLAPS: Final = ("overlap_exact", "overlap_normalised", "overlap_near", "overlap_quoted")

LEAKS: Final[tuple[Fault, ...]] = (
    fault(
        "a held-out item among the instructions",
        "leak",
        record("pilot", f"{{**found, 'instruction': {LEAK!r}}}"),
        "pilot: fail",
        *ALL_OVERLAPS,
    ),
    fault(
        "a held-out item in other order",
        "leak",
        record("pilot", "{**found, 'instruction': 'Of the rainbow name four colors!'}"),
        "pilot: fail",
        "overlap_near",
    ),
    fault(
        "a held-out item in words of its own",
        "leak",
        record(
            "pilot", "{**found, 'instruction': 'Which colours make up a rainbow? Four will do.'}"
        ),
        "pilot: fail",
        "overlap_near",
        gets_through="no reading compares meaning: four of its words are the item's",
    ),
    fault(
        "a held-out item within a response",
        "leak",
        record("pilot", f"{{**found, 'response': 'As I was asked: {LEAK}'}}"),
        "pilot: fail",
        "overlap_quoted",
    ),
    fault(
        "a held-out item in a shard",
        "leak",
        record("scale", f"{{**found, 'response': 'As I was asked: {LEAK}'}}"),
        "scale: fail",
        "overlap_quoted",
    ),
    fault(
        "a held-out item added by the training step",
        "leak",
        partial(
            Session.break_step,
            step="sft",
            code=f"""
            from phases import prompts
            read = training.read_jsonl
            asked = {{"instruction": {LEAK!r}, "prompt": prompts.evaluation_prompt({LEAK!r})}}
            training.read_jsonl = lambda path: [*read(path), {{**read(path)[0], **asked}}]
            """,
        ),
        "sft: invalid",
        *(*ALL_OVERLAPS, "nonfinite_weights", "adapter_norm"),
    ),
    fault(
        "another held-out set, put in place after the pilot",
        "held-out set",
        partial(
            Session.spoil_result,
            step="pilot",
            code="""
            from pathlib import Path
            path = Path(request.params["held_out"])
            path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
            """,
        ),
        "after pilot: refused",
        *("held_out.jsonl", "was changed"),
    ),
    fault(
        "another held-out file, named by the scale-up's spec",
        "held-out set",
        partial(other_held_out, name="scale"),
        "scale: refused",
        "the held-out set is not the one that step 'pilot' read",
        exit_code=2,
    ),
    fault(
        "another held-out file, named by the evaluation's spec",
        "held-out set",
        partial(other_held_out, name="evaluation"),
        "evaluate: refused",
        "the held-out set is not the one the baseline was scored on",
        exit_code=2,
    ),
    fault(
        "a held-out set smaller than its spec",
        "held-out set",
        held_out(first_of_each_kind(10)),
        "plan: refused",
        "32 items of each kind are asked for",
        exit_code=2,
    ),
    fault(
        "a held-out set smaller than its gate asks, and the spec with it",
        "held-out set",
        small_set,
        "baseline: invalid",
        *("base_rate", "held_out_items", "power", "scorer_sensitivity", "scorer_specificity"),
    ),
    fault(
        "held-out items that any answer satisfies",
        "held-out set",
        held_out(any_answer),
        "baseline: invalid",
        *("base_rate", "power", "shuffled_references_passing", "empty_passing"),
        *("scorer_sensitivity", "scorer_specificity"),
    ),
    fault(
        "a held-out item that stands twice",
        "held-out set",
        held_out(lambda rows: [*rows, rows[0]]),
        "plan: refused",
        "list-001",
        exit_code=2,
    ),
    fault(
        "a held-out item in the few-shot file",
        "leak",
        shown,
        "plan: refused",
        *("is shown to the model, and the held-out set examines", LEAK),
        exit_code=2,
    ),
    fault(
        "a reference that is wrong",
        "held-out set",
        held_out(wrong_reference),
        "plan: refused",
        "fails its own checks",
        exit_code=2,
    ),
)

RECORDS: Final[tuple[Fault, ...]] = (
    fault(
        "a row that stands twice",
        "duplicates",
        record("pilot", "made[3]"),
        "pilot: fail",
        "largest_repeat",
    ),
    fault(
        "a row that stands twice in other words",
        "duplicates",
        record("pilot", "{**found, 'instruction': 'Please: ' + made[3]['instruction']}"),
        "pilot: fail",
        "largest_repeat",
    ),
    fault(
        "a screen that lets every repeat of the merge through",
        "duplicates",
        partial(Session.break_step, step="scale", code=OPEN_SCREEN.format(step="scale") + TWICE),
        "scale: fail",
        *("distinct_near", "largest_repeat"),
    ),
    fault(
        "a source that repeats a few instructions",
        "duplicates",
        partial(Session.hook, code=COLLAPSED),
        "pilot: fail",
        *("forecast_distinct_low", "forecast_distinct_high"),
    ),
    fault(
        "half a stop marker left in one response",
        "residue",
        record("pilot", "{**found, 'response': found['response'] + ' ##END'}"),
        "pilot: fail",
        "delimiter_left",
    ),
    fault(
        "cleaning that cuts at the whole marker only, and every answer half marked",
        "residue",
        record("scale", "{**found, 'response': found['response'] + '\\n###EN'}", EVERY),
        "scale: fail",
        "delimiter_left",
    ),
    fault(
        "a sentinel that is false in every record",
        "provenance",
        record("scale", METADATA.format("'template_disabled': False"), EVERY),
        "scale: fail",
        "bad_sentinels",
    ),
    fault(
        "a sentinel that is false in one record",
        "provenance",
        record("scale", METADATA.format("'sentinel': {'template_left': False}")),
        "scale: fail",
        "bad_sentinels",
    ),
    fault(
        "a record without its sentinels",
        "provenance",
        record("scale", METADATA.format("'sentinel': None")),
        "scale: fail",
        *("bad_sentinels", "incomplete_provenance"),
    ),
    fault(
        "a record that does not tell its seed",
        "provenance",
        record("pilot", METADATA.format("'seed': None")),
        "pilot: fail",
        "incomplete_provenance",
    ),
    fault(
        "a record that nobody judged",
        "provenance",
        record("pilot", "{**found, 'pair_critique': None}"),
        "pilot: fail",
        "incomplete_provenance",
    ),
    fault(
        "answers that meet the token limit",
        "truncation",
        partial(Session.hook, code=ENDLESS),
        "pilot: fail",
        "token_limit_rate",
    ),
    fault(
        "an engine that says every text ended by itself",
        "truncation",
        partial(Session.hook, code=NOT_STOPPED.format(when="True")),
        "contamination: sentinel",
        "bare_endings",
        exit_code=5,
    ),
    fault(
        "answers cut short by an engine that says they ended",
        "truncation",
        cut_short,
        "pilot: invalid",
        "token_limit_rate",
    ),
    fault(
        "a pilot on thirty rows",
        "too few",
        small_pilot,
        "pilot: fail",
        *("kept", "runaway_rate", "token_limit_rate", "forecast_distinct_low"),
        *("instruction_acceptance", "pair_acceptance"),
    ),
    fault(
        "a pilot of too few instructions to forecast from",
        "too few",
        few_instructions,
        "pilot: underpowered",
        "forecast_distinct_low",
    ),
    fault(
        "a shard cut short",
        "files",
        partial(Session.break_step, step="scale", code=CUT_SHORT),
        "scale: refused",
        "dataset.jsonl of a complete shard is missing or was changed",
    ),
    fault(
        "a row added to the pilot's dataset by hand",
        "files",
        partial(
            Session.insert_step,
            before="scale",
            code="""
            for path in request.workspace.glob("artifacts/data_gen_pilot_*/dataset.jsonl"):
                lines = path.read_text().splitlines(keepends=True)
                path.write_text("".join([*lines, lines[0]]))
            """,
        ),
        "after own: refused",
        "dataset.jsonl is missing or changed",
    ),
)
