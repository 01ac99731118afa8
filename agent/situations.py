"""Recorded situations of a review, each with its right answers and its named mistakes, as YAML.

Rule: a file that leaves anything open is refused, by file and key. What a situation says is the
``ReviewRequest`` that a session would make of it, and nothing of its answers is in that. The
figures of a situation describe it; only those whose ``source`` says so were ever measured.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from agent.answer import open_actions
from runbook.contract import (
    Account,
    Attempt,
    Criterion,
    CriterionResult,
    Decision,
    EarlierReview,
    Instrument,
    Json,
    Metric,
    Range,
    ReviewRequest,
    Verdict,
)
from runbook.errors import ConfigError
from runbook.regular_files import read

APPROVING = frozenset({"retry", "extend", "recalibrate", "proceed"})
"""Actions that have the session spend more on what was measured; the others end or hold it."""
RUN_ID = "20260101_000000"
_FIX = "mend the file; docs/reviewer.md tells what a situation holds"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Bounds(_Strict):
    """What a parameter must satisfy once the decision was acted on."""

    below: float | None = None
    above: float | None = None
    at_most: float | None = None
    at_least: float | None = None

    def hold(self, value: Json) -> bool:
        """Whether the value satisfies every side that is given."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return (
            (self.below is None or value < self.below)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.at_least is None or value >= self.at_least)
        )


class Rule(_Strict):
    """Answers of one kind."""

    action: str
    must_change: list[str] = []
    """Parameters that a retry has to set."""
    after: dict[str, Bounds] = {}
    """Parameter -> what holds of it then, whether the decision set it or left it as it was."""


class Mistake(Rule):
    name: str


class Example(_Strict):
    action: str
    changes: dict[str, float] = {}


class Reading(_Strict):
    """One criterion and what was read, with the verdict that the gate gives it."""

    metric: str
    kind: str
    below: float | None = None
    above: float | None = None
    at_most: float | None = None
    at_least: float | None = None
    min_n: int = 1
    value: float | None
    n: int | None = Field(None, ge=0)
    successes: int | None = Field(None, ge=0)
    denominator: str = ""
    instrument: Literal["ok", "uncalibrated", "broken"] = "ok"
    note: str = ""
    lower_bound: float | None = None
    """Of a reading that brings its own."""
    verdict: Literal["pass", "fail", "underpowered", "invalid"]
    bound: float | None = None
    thin: bool = False
    reason: str

    @property
    def criterion(self) -> Criterion:
        return Criterion(
            self.metric,
            self.kind,
            below=self.below,
            above=self.above,
            at_most=self.at_most,
            at_least=self.at_least,
            min_n=self.min_n,
        )

    @property
    def result(self) -> dict[str, Json]:
        """A ``CriterionResult`` as JSON."""
        judged = CriterionResult(
            self.metric,
            self.kind,
            self.criterion.threshold,
            Verdict(self.verdict),
            self.value,
            self.n,
            self.bound,
            self.thin,
            self.reason,
        )
        return {**vars(judged), "verdict": self.verdict}

    @property
    def measured(self) -> Metric:
        return Metric(
            self.metric,
            self.value,
            self.n,
            self.successes,
            self.denominator,
            Instrument(self.instrument),
            note=self.note,
            bound=self.lower_bound,
        )


class Run(_Strict):
    attempt: int
    look: int = 1
    verdict: Literal["pass", "fail", "underpowered", "invalid"]
    params: dict[str, Json]
    """By their dotted names."""
    changes: dict[str, Json] = {}
    readings: list[Reading] = Field(min_length=1)

    @property
    def reasons(self) -> tuple[str, ...]:
        """As the gate words them."""
        told = (r for r in self.readings if r.verdict != "pass" or r.thin)
        return tuple(f"{r.metric}: {r.reason}" for r in told)

    @property
    def as_attempt(self) -> Attempt:
        return Attempt(
            self.attempt,
            self.look,
            self.verdict,
            self.reasons,
            self.params,
            changes=self.changes,
            criteria=tuple(r.result for r in self.readings),
            metrics=tuple(r.measured for r in self.readings),
        )


class Limits(_Strict):
    min: float
    max: float


class Earlier(_Strict):
    review_id: str
    step: str
    attempt: int
    asked: str
    action: str
    changes: dict[str, Json] = {}
    reason: str
    author: str
    outcome: Literal["better", "worse", "passed", "unchanged", "pending"]
    effect: list[str] = []


class Asked(_Strict):
    """A ``ReviewRequest``; attempt, verdict and readings are those of the last run."""

    step: str
    reason: Literal[
        "sentinel", "gate failed", "closing", "instrument", "underpowered", "smoke", "question"
    ]
    allowed: list[str]
    failures: int
    retries: int
    adjustable: dict[str, Limits] = {}
    attempts: list[Run] = Field(min_length=1)
    flagged: list[dict[str, Json]] = []
    samples: list[dict[str, Json]] = []
    certificates: list[dict[str, Json]] = []
    earlier: list[Earlier] = []
    question: str = ""
    summary: dict[str, Json] = {}
    log_tail: str = ""
    budget: dict[str, dict[str, Json]] = {}
    costs: dict[str, dict[str, Json]] = {}


class _File(_Strict):
    topic: str
    source: str
    """Where it comes from, and which of its figures were measured there."""
    request: Asked
    right: list[Rule] = Field(min_length=1)
    wrong: list[Mistake] = []
    example: Example
    """One right answer."""
    why: str


class Situation(_File):
    """One situation, checked."""

    name: str
    """Its file's, without the ending."""

    @property
    def known(self) -> str:
        """``good`` where some approving answer is right, ``bad`` where approval does harm."""
        return "good" if any(rule.action in APPROVING for rule in self.right) else "bad"

    def make_request(self, folder: Path, path: str, account: Account) -> ReviewRequest:
        """The question, to be answered in this workspace and from this account."""
        asked, last = self.request, self.request.attempts[-1].as_attempt
        earlier = (e.model_dump() for e in asked.earlier)
        return ReviewRequest(
            review_id=f"{asked.step}-{last.attempt}",
            step=asked.step,
            attempt=last.attempt,
            reason=asked.reason,
            allowed=tuple(asked.allowed),
            run_id=RUN_ID,
            workspace=folder,
            path=path,
            verdict=last.verdict,
            criteria=last.criteria,
            reasons=last.reasons,
            metrics=last.metrics,
            attempts=tuple(run.as_attempt for run in asked.attempts),
            adjustable={name: Range(r.min, r.max) for name, r in asked.adjustable.items()},
            failures=asked.failures,
            retries=asked.retries,
            summary=asked.summary,
            flagged=tuple(asked.flagged),
            samples=tuple(asked.samples),
            account=account,
            question=asked.question,
            earlier=tuple(EarlierReview(**{**e, "effect": tuple(e["effect"])}) for e in earlier),
            certificates=tuple(asked.certificates),
            log_tail=asked.log_tail.rstrip("\n"),
            budget=asked.budget,
            costs=asked.costs,
        )

    def is_right(self, action: str, changes: Mapping[str, Json]) -> bool:
        """Whether a rule takes the answer, and no named mistake does."""
        taken = any(self._takes(rule, action, changes) for rule in self.right)
        return taken and not self.mistake(action, changes)

    def mistake(self, action: str, changes: Mapping[str, Json]) -> str:
        """The name of the mistake that the answer makes; empty where it has none."""
        made = (m.name for m in self.wrong if self._takes(m, action, changes))
        return next(made, "")

    def _takes(self, rule: Rule, action: str, changes: Mapping[str, Json]) -> bool:
        now = {**self.request.attempts[-1].params, **changes}
        return (
            rule.action == action
            and all(name in changes for name in rule.must_change)
            and all(bounds.hold(now.get(name)) for name, bounds in rule.after.items())
        )


def outside(request: ReviewRequest, decision: Decision) -> str:
    """Why a decision is outside the request's bounds, so that it counts as none; '' within."""
    if decision.action not in open_actions(request):
        return f"{decision.action} is not allowed"
    if decision.changes and decision.action != "retry":
        return f"{decision.action} takes no changes"
    for name, value in decision.changes.items():
        limits = request.adjustable.get(name)
        if limits is None:
            return f"{name} is not adjustable"
        if not Bounds(at_least=limits.min, at_most=limits.max).hold(value):
            return f"{name} is out of its range"
    return ""


def load_all(folder: Path) -> tuple[Situation, ...]:
    """Every situation of a folder, by name.

    Raises:
        ConfigError: names the file and the key; or the folder holds none.
    """
    found = tuple(load(path) for path in sorted(folder.glob("*.yaml")))
    if not found:
        raise ConfigError(
            "no situation lies there", where=str(folder), fix="name a folder of situations"
        )
    return found


def load(path: Path) -> Situation:
    """One situation. Raises ConfigError, naming the file and the key."""
    try:
        document = YAML(typ="safe", pure=True).load(read(path).decode())
    except (OSError, ValueError, YAMLError) as error:
        raise _wrong(path, "", f"cannot be read: {error}") from error
    except RecursionError as error:
        raise _wrong(path, "", "is nested too deeply") from error
    if not isinstance(document, dict):
        raise _wrong(path, "", "is no mapping")
    try:
        checked = _File.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _wrong(path, ".".join(map(str, first["loc"])), first["msg"]) from error
    situation = Situation(name=path.stem, **{name: getattr(checked, name) for name in document})
    _check(path, situation)
    return situation


def _wrong(path: Path, key: str, what: str) -> ConfigError:
    return ConfigError(what, where=f"{path}: {key}" if key else str(path), fix=_FIX)


def _check(path: Path, situation: Situation) -> None:
    """What the keys say of each other. Raises ConfigError."""
    asked = situation.request
    open_now = [action for action in asked.allowed if action != "override"]
    rules = [("right", i, rule) for i, rule in enumerate(situation.right)]
    for key, place, rule in [*rules, *(("wrong", i, m) for i, m in enumerate(situation.wrong))]:
        where = f"{key}.{place}"
        if rule.action not in open_now:
            raise _wrong(path, f"{where}.action", f"{rule.action!r} is not among request.allowed")
        named = {*rule.must_change, *rule.after}
        if unknown := sorted(named - asked.adjustable.keys()):
            raise _wrong(path, where, f"{unknown[0]!r} is not in request.adjustable")
        if named and rule.action != "retry":
            raise _wrong(path, where, "only a retry changes parameters")
    for name in sorted(asked.adjustable.keys() - asked.attempts[-1].params.keys()):
        raise _wrong(path, "request.adjustable", f"{name!r} is not in the last attempt's params")
    if set(open_now) <= {r.action for r in situation.right if not (r.must_change or r.after)}:
        raise _wrong(path, "right", "every allowed answer is right, so nothing is asked")
    if ("question" in asked.reason) != bool(asked.question):
        raise _wrong(path, "request.question", "is there where the reason is 'question', only")
    _check_counts(path, asked)
    _check_example(path, situation)


def _check_counts(path: Path, asked: Asked) -> None:
    for i, run in enumerate(asked.attempts):
        for j, found in enumerate(run.readings):
            if found.n is not None and (found.successes or 0) > found.n:
                where = f"request.attempts.{i}.readings.{j}.successes"
                raise _wrong(path, where, f"{found.successes} of n = {found.n} cannot be")


def _check_example(path: Path, situation: Situation) -> None:
    example = situation.example
    request = situation.make_request(Path(), "", _NO_MONEY)
    decision = Decision(example.action, "", "", person=False, changes=example.changes)
    if refused := outside(request, decision):
        raise _wrong(path, "example", refused)
    if not situation.is_right(example.action, example.changes):
        raise _wrong(path, "example", "is no right answer by 'right' and 'wrong'")


class _NoMoney:
    """An account of a request that is never sent."""

    def affords(self, requests: int, usd: float | None = None) -> bool:  # noqa: ARG002 - the seam's
        return False

    def reserve(self, key: str, usd: float | None = None) -> str:  # noqa: ARG002 - the seam's
        return "this question is not for sending"

    def settle(
        self,
        key: str,
        usd: float | None = None,
        *,
        input_tokens: int = 0,
        output_tokens: int = 0,
    ) -> None:
        """Nothing was reserved."""


_NO_MONEY = _NoMoney()
