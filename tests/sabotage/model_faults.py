"""Faults of the model, of the instruments that judge, and of code that does what it must not."""

from functools import partial
from typing import Final

from phases.detectors import SHIPPED
from sabotage.fault import Fault, fault
from sabotage.session import Session, Spec

ENGINE: Final = "from phases import fake_engine\nEngine = fake_engine.FakeEngine\n"
STATED: Final = "told = Engine.stated\nEngine.stated = lambda self: {{**told(self), {changed}}}\n"
SAID: Final = """
from dataclasses import replace
said = Engine.generate
def generate(self, prompts, *rest, **options):
    made = said(self, prompts, *rest, **options)
    return [{changed} for prompt, g in zip(prompts, made)]
Engine.generate = generate
"""


def engine(code: str) -> partial[None]:
    """Changes the engine in every process."""
    return partial(Session.hook, code=ENGINE + code)


def say(changed: str) -> partial[None]:
    """Changes what the engine generates; ``g`` is what it would have said to ``prompt``."""
    return engine(SAID.format(changed=changed))


def declare(**model: str) -> partial[None]:
    """Another declaration of the model."""

    def change(book: Spec) -> None:
        book["model"] |= model

    return partial(Session.edit, name="runbook", change=change)


MODEL: Final[tuple[Fault, ...]] = (
    fault(
        "a chat template put back",
        "contamination",
        engine(STATED.format(changed='"template_disabled": False')),
        "contamination: sentinel",
        "template_left",
        exit_code=5,
    ),
    fault(
        "a chat template put back before the scale-up",
        "contamination",
        partial(
            Session.break_step,
            step="scale",
            code=ENGINE + STATED.format(changed='"template_disabled": False'),
        ),
        "scale: sentinel",
        *("template_left", "bad_sentinels"),
        exit_code=5,
    ),
    fault(
        "a base that ships a chat template which nobody declared",
        "contamination",
        engine(STATED.format(changed='"shipped_template": True')),
        "contamination: sentinel",
        "undeclared_chat_template",
        exit_code=5,
    ),
    fault(
        "another prefix than the declared one",
        "contamination",
        engine(STATED.format(changed='"prefix_matches": False')),
        "contamination: sentinel",
        "prefix_mismatch",
        exit_code=5,
    ),
    fault(
        "an instruct model passed off as base, by its end-of-turn token",
        "contamination",
        engine('Engine.end_of_turn_logps = lambda self: {"<end_of_turn>": -1.6}'),
        "contamination: sentinel",
        "end_of_turn_logp",
        exit_code=5,
    ),
    fault(
        "a tuned model passed off as base, by its answers to bare questions",
        "contamination",
        say('replace(g, text=" Sure, here it is.", hit_limit=False) if prompt[-1] in ".?" else g'),
        "contamination: sentinel",
        *("assistant_like", "bare_endings"),
        exit_code=5,
    ),
    fault(
        "a model that completes nothing",
        "contamination",
        say('replace(g, text=" and so on")'),
        "contamination: sentinel",
        "completions_right",
        exit_code=5,
    ),
    fault(
        "a family whose base was never measured",
        "contamination",
        declare(family="other"),
        "contamination: invalid",
        *("end_of_turn_logp", "bare_endings"),
    ),
    fault(
        "another model put in place of the prepared one",
        "contamination",
        partial(
            Session.insert_step,
            before="pilot",
            code="""
            folder = request.workspace / request.inputs["prepare_model"]["base_model"].path
            (folder / "model.safetensors").write_bytes(b"other weights")
            """,
        ),
        "after own: refused",
        "models/base is missing or changed",
    ),
)


def _turn_labels(session: Session, name: str) -> None:
    """Good is bad in the probes of a filter, but not to the model."""
    path = session.folder / "specs" / "probe" / f"{name}.jsonl"
    kept = path.with_name("as_it_was.jsonl")
    text = path.read_text("utf-8")
    kept.write_text(text, "utf-8")
    turned = text.replace('"good": true', '"good": ?').replace('"good": false', '"good": true')
    path.write_text(turned.replace('"good": ?', '"good": false'), "utf-8")

    def change(book: Spec) -> None:
        labels = book["environment"]["RUNBOOK_FAKE_LABELS"]
        book["environment"]["RUNBOOK_FAKE_LABELS"] = labels.replace(str(path), str(kept))

    session.edit("runbook", change)


def always_a(session: Session) -> None:
    """A critic that prefers the letter A under either order of the labels."""
    session.hook(
        ENGINE + "Engine.label_logps = lambda self, prefix, suffixes, labels: "
        "[(-0.01, -4.6) if labels[0] == 'A' else (-4.6, -0.01) for _ in suffixes]"
    )
    session.edit("calibration", lambda spec: spec["params"].update(instructions=["critic"]))


BY_HEART: Final = f"""
import json
from pathlib import Path
from phases import clean, fake_engine

fake_engine.FLAWS.update(repeating=40)
rows = Path({str(SHIPPED / "runaway.jsonl")!r}).read_text("utf-8").splitlines()
known = {{clean.cut(json.loads(row)["raw"]).text for row in rows}}
real = clean.is_runaway
clean.is_runaway = lambda cleaned: cleaned.text in known and real(cleaned)
"""
CALIBRATED: Final = "calibration: invalid"
INSTRUMENTS: Final[tuple[Fault, ...]] = (
    fault(
        "a runaway detector that flags by length",
        "instrument",
        partial(
            Session.hook,
            code="from phases import clean\nclean.is_runaway = lambda c: len(c.text) > 60",
        ),
        CALIBRATED,
        *("runaway_sensitivity", "runaway_specificity"),
    ),
    fault(
        "a runaway detector that never flags",
        "instrument",
        partial(
            Session.hook,
            code="from phases import clean\nclean.is_runaway = lambda c: False",
        ),
        CALIBRATED,
        "runaway_sensitivity",
    ),
    fault(
        "a runaway detector that is right on its labelled rows alone",
        "instrument",
        partial(Session.hook, code=BY_HEART),
        CALIBRATED,
        "runaway_sensitivity",
        gets_through="an instrument is believed for how it reads the labelled rows; rows of your "
        "own, by `runbook gate label`, are what it cannot know by heart",
    ),
    fault(
        "a residue detector that looks for the whole marker only",
        "instrument",
        partial(
            Session.hook,
            code="from phases import qc\nqc.left_over = lambda text: '###END###' in text",
        ),
        CALIBRATED,
        "residue_sensitivity",
    ),
    fault(
        "a leakage detector that looks for exact copies only",
        "instrument",
        partial(
            Session.hook,
            code="""
            from phases.leakage import HeldOut
            found = HeldOut.find
            HeldOut.find = lambda self, text, *, instruction: (
                pair for pair in found(self, text, instruction=instruction) if pair[0] == "exact"
            )
            """,
        ),
        CALIBRATED,
        "leakage_sensitivity",
    ),
    fault(
        "a near-duplicate detector that sees none",
        "instrument",
        partial(
            Session.hook,
            code="from phases import dedup\ndedup.similarity = lambda one, other: 0.0",
        ),
        CALIBRATED,
        "near_duplicate_sensitivity",
    ),
    fault(
        "a truncation detector that takes every text for cut off",
        "instrument",
        partial(
            Session.hook,
            code="from phases import clean\nclean.is_cut_off = lambda text: True",
        ),
        CALIBRATED,
        "truncation_specificity",
    ),
    fault(
        "an instruction critic that says A to all",
        "instrument",
        always_a,
        CALIBRATED,
        "instruction_filter_auc",
    ),
    fault(
        "a pair filter that says good to everything",
        "instrument",
        partial(
            Session.hook,
            code="""
            from phases import filters
            sure = {"fits": 0.0, "gain": 9.0, "ends": 0.0}
            filters.READERS["pairs"]["likelihood"] = lambda *about: [sure] * len(about[-1])
            """,
        ),
        CALIBRATED,
        "pair_filter_auc",
    ),
    fault(
        "a pair filter that says good to everything, put in after the calibration",
        "instrument",
        partial(
            Session.break_step,
            step="pilot",
            code="""
            from phases import filters
            sure = {"fits": 9.0, "gain": 9.0, "ends": 9.0}
            filters.READERS["pairs"]["likelihood"] = lambda *about: [sure] * len(about[-1])
            """,
        ),
        "pilot: invalid",
        "pair_acceptance",
    ),
    fault(
        "a detector changed after the calibration",
        "instrument",
        partial(
            Session.break_step,
            step="pilot",
            code="from phases import clean\nclean.is_runaway = lambda c: len(c.text) > 60",
        ),
        "pilot: invalid",
        "runaway_rate",
    ),
    fault(
        "labels of the pairs turned round",
        "instrument",
        partial(_turn_labels, name="pairs"),
        CALIBRATED,
        "pair_filter_auc",
    ),
    fault(
        "labels of the instructions turned round",
        "instrument",
        partial(_turn_labels, name="instructions"),
        CALIBRATED,
        "instruction_filter_auc",
        gets_through="the linear probe is fitted on these very labels and agrees with them; what "
        "follows is seen, as `instruction_acceptance` at the pilot, only where the source writes "
        "far more good ones than bad",
    ),
    fault(
        "a certificate mended by hand",
        "instrument",
        partial(
            Session.insert_step,
            before="pilot",
            code="""
            path = request.workspace / "artifacts" / "calibration" / "certificate.json"
            path.write_text(path.read_text().replace('"n": 18', '"n": 180'))
            """,
        ),
        "after own: refused",
        "certificate.json is missing or changed",
    ),
    fault(
        "a certificate mended by hand within the step",
        "instrument",
        partial(
            Session.break_step,
            step="pilot",
            code="""
            path = request.workspace / request.inputs["calibration"]["certificate"].path
            path.write_text(path.read_text().replace('"n": 18', '"n": 180'))
            """,
        ),
        "pilot: invalid",
        *("runaway_rate", "token_limit_rate", "delimiter_left", "largest_repeat"),
        *("instruction_acceptance", "pair_acceptance"),
        *("overlap_exact", "overlap_normalised", "overlap_13gram", "overlap_near"),
        "overlap_quoted",
    ),
    fault(
        "a pilot that is given no calibration",
        "instrument",
        partial(Session.change_step, step="pilot", inputs=["prepare_model", "contamination"]),
        "pilot: refused",
        "was given no calibration",
        exit_code=2,
    ),
)


def own_code(given: str, *rule: str) -> Fault:
    """A step of the user's own with this code above it."""
    return fault(
        f"{rule[-1]} in phase code",
        "second implementation",
        partial(Session.insert_step, before="pilot", code="pass", given=given),
        "start: dry",
        *rule[:-1],
        exit_code=5,
    )


CODE: Final[tuple[Fault, ...]] = (
    own_code(
        """
        def judge(engine, text):
            a, b = engine.label_logps("", [text], ("A", "B"))[0]
            return a > b
        """,
        *("scorer-label-logps", "own_step.py"),
        "a second A/B scorer",
    ),
    own_code(
        """
        import transformers as t

        def load(path):
            return t.AutoModelForCausalLM.from_pretrained(path)
        """,
        *("loader-attribute", "own_step.py"),
        "a model loaded by from_pretrained",
    ),
    own_code(
        """
        def ready(tokenizer):
            setattr(tokenizer, "chat_template", None)
        """,
        *("template-set", "own_step.py"),
        "a chat template switched off",
    ),
    own_code(
        """
        def ask(text):
            return f"Instruction: {text}\\nResponse:"
        """,
        *("prompt-marker", "own_step.py"),
        "a prompt",
    ),
    fault(
        "a second scorer, written beside the runbook by a running step",
        "second implementation",
        partial(
            Session.insert_step,
            before="pilot",
            code="""
            code = "def judge(e, t): return e.label_logps('', [t], ('A', 'B'))"
            open(__file__.replace("own_step", "later"), "w").write(code)
            """,
        ),
        "after own: dry",
        *("scorer-label-logps", "later.py"),
        exit_code=5,
    ),
)
