"""The command line and composition root: which verbs there are, and how an error ends.

Rule: a verb imports what it needs within itself, so that help and status answer at once. Exit
codes are those of ``runbook.errors``; an error nobody foresaw ends with 1 and its traceback.
"""

import json
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress

import typer

from runbook.cli import (
    bench_verb,
    calibrate_verbs,
    check_verbs,
    compare_verb,
    diagnose_verb,
    gate_verbs,
    label_verb,
    replay_verbs,
    report_verb,
    review_verbs,
    sentinel_verb,
    session_verbs,
    showing,
    spec_verbs,
    workspace_verbs,
)
from runbook.cli.options import Answers, say
from runbook.errors import ConfigError, RunbookError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command("init")(workspace_verbs.init)
app.command("validate")(spec_verbs.validate)
app.command("doctor")(workspace_verbs.doctor)
app.command("plan")(spec_verbs.show_plan)
app.command("run")(session_verbs.run)
app.command("launch")(session_verbs.launch)
app.command("status")(showing.status)
app.command("watch")(showing.watch)
app.command("logs")(showing.logs)
app.command("stop")(session_verbs.stop)
app.command("resume")(session_verbs.resume)
app.command("verify")(check_verbs.verify)
app.command("selftest")(check_verbs.selftest)
app.command("compare")(compare_verb.compare)
app.command("report")(report_verb.report)
app.command("diagnose")(diagnose_verb.diagnose)

review = typer.Typer(no_args_is_help=True, help="Reviews: questions at a gate, and answers.")
review.command("list")(review_verbs.list_reviews)
review.command("show")(review_verbs.show)
review.command("decide")(review_verbs.decide)
review.command("bench")(bench_verb.bench)
app.add_typer(review, name="review")

gate = typer.Typer(no_args_is_help=True, help="Gates: what was judged, and by what.")
gate.command("list")(replay_verbs.list_gates)
gate.command("show")(replay_verbs.show_gate)
gate.command("replay")(replay_verbs.replay)
gate.command("calibrate")(calibrate_verbs.calibrate)
gate.command("label")(label_verb.label)
gate.command("dry")(gate_verbs.dry)
app.add_typer(gate, name="gate")

sentinel = typer.Typer(no_args_is_help=True, help="Sentinels: a person's word about one.")
sentinel.command("clear")(sentinel_verb.clear)
app.add_typer(sentinel, name="sentinel")


@app.callback()
def _about() -> None:
    """Run a language model's post-training session unattended: phases, gates, resume."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; ends the process with the exit code.

    An error that a person can meet is told without a traceback. Ctrl-C is 130 here: while the
    workspace is locked the executor takes it as a wish to pause.
    """
    answers = Answers()
    try:
        _refuse_odd_bytes(sys.argv[1:] if arguments is None else arguments)
        app(arguments, prog_name="runbook", obj=answers)
    except RunbookError as error:
        say(f"error: {error}")
        _answer(answers, error.what, error.where, error.fix, error.code)
        sys.exit(error.code)
    except Exception as error:  # noqa: BLE001 - the last stop before the shell
        what = f"{type(error).__name__}: {error}"
        say(f"internal error, a fault of runbook itself: {what}")
        say(traceback.format_exc().rstrip())
        _answer(answers, what, "runbook", "report it with the traceback on stderr", 1)
        sys.exit(1)


def _refuse_odd_bytes(arguments: Sequence[str]) -> None:
    """Bytes that are no UTF-8 could be written to no journal.

    Raises:
        ConfigError: names the argument.
    """
    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise ConfigError(
                f"the argument {argument!a} is not valid UTF-8",
                where="command line",
                fix="write it in UTF-8; a path of other bytes can be reached by a link",
            )


def _answer(answers: Answers, what: str, where: str, fix: str, code: int) -> None:
    """The error as a program reads it, where a program asked."""
    if answers.as_json and sys.stdout:
        told = {"error": what, "where": where, "fix": fix, "exit_code": code}
        with suppress(OSError):
            sys.stdout.write(f"{json.dumps(told)}\n")
