"""The dossier: all that a reviewer decides by, on one page of Markdown, bounded in tokens.

Rule: whatever a model, a step, a log or a person wrote stands between fences, as lines of escaped
JSON; see ``agent.escaping``. Where the page is too long the least telling goes first, in the order
of ``ORDER``, and the page says what went. The question, the answers and the criteria always stay.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent import comparing
from agent.comparing import number
from agent.escaping import data_line, fitted, label, words
from runbook.contract import Attempt, Instrument, Json, Metric, ReviewRequest

if TYPE_CHECKING:
    from jinja2 import Template

_FENCE: Final = re.compile(r"[A-Za-z0-9]{8,64}")
_CHEAP: Final = re.compile(r"[A-Za-z ]")
_NO_WORD: Final = re.compile(r"[A-Za-z]{24,}|\\u[0-9a-f]{4}|\\[a-z]")
"""Letters of which a tokenizer may know no more than one at a time: long runs, and escapes."""
_EFFECT: Final = re.compile(r"[\w.-]+ [-+\w.,]+ -> [-+\w.,]+( \([<>=\w. +-]*\))?", re.ASCII)


class TooLongError(ValueError):
    """Not even the least that a reviewer must see fits; a person must decide."""


@dataclass(frozen=True)
class _Cut:
    """What of a request is shown."""

    log: int = 40
    """Lines, the last ones."""
    samples: int = 10
    same: bool = True
    """Parameters that are the same in every attempt."""
    summary: bool = True
    longest: int = 50_000
    """Characters of one text; a longer one would take long to escape and nobody would read it."""
    old: bool = True
    """Metrics and reasons of the attempts before the one in question."""
    flagged: int = 10
    earlier: int = 20
    """Reviews, the newest ones."""


def _with(cut: _Cut, name: str, value: Json) -> _Cut:
    return replace(cut, **{name: value})


ORDER: Final[tuple[tuple[str, int], ...]] = (
    ("log", 20),
    ("log", 5),
    ("log", 0),
    ("samples", 5),
    ("samples", 0),
    ("same", False),
    ("summary", False),
    ("longest", 2000),
    ("longest", 600),
    ("longest", 200),
    ("old", False),
    ("flagged", 6),
    ("flagged", 3),
    ("earlier", 3),
    ("earlier", 1),
)
"""What goes, first to last, where the page is too long; each on top of those before it."""
_CUTS: Final = tuple(accumulate(ORDER, lambda cut, by: _with(cut, *by), initial=_Cut()))

_WHY: Final[Mapping[str, str]] = {
    "sentinel": "A sentinel tripped: what was measured may be contaminated. The session stops "
    "whatever is answered, and only a person goes on from here; say what it means.",
    "gate failed": "The gate failed, and the answer decides what the session does next.",
    "closing": "The gate failed for the last time that is allowed. The session stops; the answer "
    "is kept for its reader and not acted on.",
    "instrument": "A reading cannot be believed: an instrument failed its own check, evidence is "
    "missing, or a control does not hold. The data is not what is broken.",
    "underpowered": "The sample is too small to say, and cannot grow any more.",
    "smoke": "A few rows made with a change did not show it to help. Nothing of such a smoke can "
    "pass: a retry has the change run in full, and so has an override by a person.",
    "question": "The step asks what it cannot settle itself; no criterion failed.",
}
_DOES: Final[Mapping[str, str]] = {
    "retry": "runs the step again as the next attempt, with your changes or with none",
    "extend": "adds rows made with the same parameters, up to the declared number, and judges anew",
    "recalibrate": "makes the instruments' certificates anew, then runs and judges the step anew",
    "proceed": "goes on with the next step",
    "stop": "ends the session here; all that is on disk stays",
    "needs_human": "leaves it to a person; nothing runs until then",
    "override": "passes the gate on record though it did not hold (a person's alone)",
}


def render(
    request: ReviewRequest, *, fence: str, max_tokens: int | None = None, person: bool = False
) -> str:
    """The page as Markdown in ASCII.

    Args:
        request: the question.
        fence: a random word of 8 to 64 letters and digits, a new one for each call.
        max_tokens: what the page may come to by ``estimate_tokens``; None: whatever it takes.
        person: a person reads it, who may also override.

    Raises:
        TooLongError: it does not fit, with all left out that may be.
    """
    if not _FENCE.fullmatch(fence):
        raise ValueError("a fence is 8 to 64 letters and digits")
    needed = 0
    for cut in _CUTS if max_tokens is not None else _CUTS[:1]:
        text = _Page(request, fence, cut, person).render()
        needed = estimate_tokens(text)
        if max_tokens is None or needed <= max_tokens:
            return text
    raise TooLongError(
        f"the least a reviewer must see comes to {needed:,} tokens, and {max_tokens:,} are allowed"
    )


def estimate_tokens(text: str) -> int:
    """What a text comes to at most: a third of a token for a letter of a word or a space, one for
    each other byte.

    On the safe side: tokenizers take four letters and more of prose at once, and hardly ever more
    than one token for a digit, a mark or a byte. Pages of these came to three quarters of it.
    """
    cheap = len(_CHEAP.findall(_NO_WORD.sub("", text)))
    return -(-cheap // 3) + len(text.encode("utf-8", "surrogatepass")) - cheap


@cache
def _template() -> "Template":
    from jinja2 import Environment, StrictUndefined  # noqa: PLC0415 - only where a review is asked

    environment = Environment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701 - Markdown for a reviewer; nothing but escaped JSON is foreign
    )
    return environment.from_string(Path(__file__).with_suffix(".md.j2").read_text("utf-8"))


@dataclass
class _Page:
    """One rendering of a request; it notes how many texts it had to shorten."""

    request: ReviewRequest
    fence: str
    cut: _Cut
    person: bool
    shortened: int = 0
    names: dict[str, str] = field(default_factory=dict)
    """Label -> the name it stands for, where they differ."""

    def render(self) -> str:
        of = self.request
        facts = {
            "fence": self.fence,
            "step": self._label(of.step),
            "attempt": of.attempt,
            "verdict": self._label(of.verdict) if of.verdict else "no gate",
            "reason": words(of.reason),
            "why": self._why(),
            "asked": self._data([of.question]) if of.question.strip() else [],
            **self._answers(),
            "criteria": [self._criterion(c) for c in of.criteria],
            "grounds": self._data(_grounds(of)),
            **self._attempts(),
            "summary": self._data([of.summary]) if of.summary and self.cut.summary else [],
            "certificates": [self._certificate(c) for c in of.certificates],
            "doubts": self._data(
                [_doubt(m) for m in of.metrics if m.instrument is not Instrument.OK]
            ),
            "flagged": self._data(of.flagged[: self.cut.flagged]),
            "samples": self._data(of.samples[: self.cut.samples]),
            "log": self._data(self._log()),
            "budget": [self._limit(name, row) for name, row in of.budget.items()],
            **self._earlier(),
        }
        names = self._data([{"above": k, "is": v} for k, v in self.names.items()])
        page = _template().render(facts, names=names, left_out=self._left_out())
        return re.sub(r"\n{3,}", "\n\n", page).rstrip() + "\n"

    def _data(self, values: Sequence[Json]) -> list[str]:
        found = []
        for value in values:
            short, cut = fitted(value, self.cut.longest)
            self.shortened += cut
            found.append(data_line(short, self.fence))
        return found

    def _label(self, name: Json) -> str:
        text = str(name)
        short = label(text)
        if short != text:
            self.names[short] = text
        return short

    def _why(self) -> str:
        of = self.request
        told = _WHY.get(of.reason, "A person or a model must answer.")
        if of.failures:
            told += f" Failures so far: {of.failures} of {of.retries + 1} allowed."
        return told

    def _answers(self) -> dict[str, Json]:
        of = self.request
        allowed = [a for a in of.allowed if self.person or a != "override"]
        ranges = sorted(of.adjustable.items()) if "retry" in allowed else []
        now = comparing.leaves(of.attempts[-1]) if of.attempts else {}
        return {
            "answers": [
                (f"`{label(a)}`", _DOES.get(a, "-"), _cost(of.costs.get(a, {}))) for a in allowed
            ],
            "may_retry": "retry" in allowed,
            "ranges": [
                (self._label(name), comparing.shown(now.get(name)), number(r.min), number(r.max))
                for name, r in ranges
            ],
        }

    def _criterion(self, c: Mapping[str, Json]) -> tuple[str, ...]:
        metric = next((m for m in self.request.metrics if m.name == c.get("metric")), None)
        return (
            self._label(c.get("metric")),
            label(str(c.get("verdict"))) + (" (thin)" if c.get("thin") is True else ""),
            number(c.get("value")),
            number(c.get("bound")),
            (metric and comparing.wilson(metric)) or "-",
            number(c.get("n")),
            comparing.must(str(c.get("threshold", ""))).strip(" ()") or "-",
        )

    def _attempts(self) -> dict[str, Json]:
        known = self.request.attempts
        different = comparing.differing(known)
        shown = known if self.cut.old else known[-1:]
        rows: list[tuple[str, ...]] = (
            [("verdict", *(label(a.verdict) for a in known))] if known else []
        )
        rows += [
            (self._label(name), *(comparing.shown(comparing.leaves(a).get(name)) for a in known))
            for name in different
        ]
        rows += [
            (
                self._label(name),
                *(_reading(a, name) if a in shown else "(left out)" for a in known),
            )
            for name in _metric_names(shown)
        ]
        same = [
            {name: value}
            for name, value in sorted((known[-1].params if known else {}).items())
            if not any(n == name or n.startswith(f"{name}.") for n in different)
        ]
        return {
            "columns": ("", *(comparing.title(a) for a in known)) if known else (),
            "rows": rows,
            "moves": [self._move(*pair) for pair in pairwise(known)],
            "attempt_data": self._data(_hidden(known, different, self.cut)),
            "same": self._data(same) if self.cut.same else [],
        }

    def _move(self, before: Attempt, after: Attempt) -> dict[str, str]:
        old, new = comparing.leaves(before), comparing.leaves(after)
        changed = [
            f"{label(n)} {comparing.shown(old.get(n))} -> {comparing.shown(new.get(n))}"
            for n in comparing.differing((before, after))
        ]
        better, worse = comparing.moves(before, after)
        return {
            "from": comparing.title(before),
            "to": comparing.title(after),
            "changed": "; ".join(changed),
            "better": "; ".join(better),
            "worse": "; ".join(worse),
        }

    def _certificate(self, of: Mapping[str, Json]) -> tuple[str, ...]:
        return (
            self._label(of.get("name")),
            words(str(of.get("state"))),
            *(_vouched(of, what) for what in ("sensitivity", "specificity", "auc")),
        )

    def _log(self) -> list[str]:
        lines = self.request.log_tail.split("\n") if self.request.log_tail else []
        return lines[max(0, len(lines) - self.cut.log) :]

    def _limit(self, name: str, row: Mapping[str, Json]) -> tuple[str, ...]:
        return (
            self._label(name),
            *_amounts(name, [row.get(k) for k in ("limit", "spent", "left")]),
        )

    def _earlier(self) -> dict[str, Json]:
        known = self.request.earlier[-self.cut.earlier :]
        lines, foreign = [], []
        for one in known:
            set_to = [f"{label(n)} = {comparing.shown(v)}" for n, v in one.changes.items()]
            plain = [line for line in one.effect if _EFFECT.fullmatch(line)]
            answer = " with ".join((label(one.action), *([", ".join(set_to)] if set_to else [])))
            effect = "; ".join((f"**{label(one.outcome)}**", *plain))
            effect = "nothing was run on it" if one.outcome == "none" else effect
            lines.append(
                f"`{label(one.review_id)}` ({words(one.asked)}) answered {answer}. "
                f"What came of it: {effect}"
            )
            more = [line for line in one.effect if line not in plain]
            said = {"review": one.review_id, "by": one.author, "because": one.reason}
            foreign.append({**said, "effect": more} if more else said)
        return {"earlier": lines, "earlier_data": self._data(foreign)}

    def _left_out(self) -> list[str]:
        of, cut = self.request, self.cut
        counted = (
            (
                "lines of the log, the last ones",
                cut.log,
                of.log_tail.count("\n") + bool(of.log_tail),
            ),
            ("rows that were not flagged", cut.samples, len(of.samples)),
            ("rows that were flagged", cut.flagged, len(of.flagged)),
            ("earlier reviews, the newest", cut.earlier, len(of.earlier)),
        )
        told = [f"{what}: {kept} of {n} stand here" for what, kept, n in counted if kept < n]
        if not cut.same and of.attempts:
            told.append("the parameters that are the same in every attempt: all")
        if not cut.summary and of.summary:
            told.append("what the step counted: all")
        if self.shortened:
            told.append(f"texts longer than {cut.longest} characters: {self.shortened} were cut")
        if not cut.old and len(of.attempts) > 1:
            told.append(f"metrics and reasons of earlier attempts: all of {len(of.attempts) - 1}")
        return told


def _grounds(of: ReviewRequest) -> list[Json]:
    """Why each criterion stands as it does, and what else the judge said."""
    told = [
        {"criterion": c.get("metric"), "why": c.get("reason")}
        for c in of.criteria
        if c.get("verdict") != "pass" or c.get("thin") is True
    ]
    known = {f"{c.get('metric')}: {c.get('reason')}" for c in of.criteria}
    return [*told, *({"why": reason} for reason in of.reasons if reason not in known)]


def _doubt(metric: Metric) -> dict[str, Json]:
    return {"metric": metric.name, "instrument": metric.instrument.value, "why": metric.note}


def _cost(of: Mapping[str, Json]) -> str:
    told = [words(str(of["what"]))] if of.get("what") else []
    seconds: Json = of.get("seconds")
    usd: Json = of.get("usd")
    if number(seconds) != "-":
        told.append(f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s")
    if number(usd) != "-":
        told.append(f"{usd:.2f} USD")
    return "; ".join(told) or "not known"


def _amounts(name: str, values: Sequence[Json]) -> list[str]:
    """Amounts of one unit, all with as many digits, so that they can be subtracted by eye."""
    known = [v for v in values if number(v) != "-"]
    places = 0 if name.endswith("_s") else 4 if any(0 < v < 1 for v in known) else 2
    return [f"{v:,.{places}f}" if number(v) != "-" else "-" for v in values]


def _vouched(of: Mapping[str, Json], what: str) -> str:
    value, bound = number(of.get(what)), number(of.get(f"{what}_bound"))
    return f"{value} (bound {bound})" if bound != "-" else value


def _metric_names(attempts: Sequence[Attempt]) -> list[str]:
    """Those with a criterion first."""
    judged = [str(c.get("metric")) for a in reversed(attempts) for c in a.criteria]
    measured = [m.name for a in reversed(attempts) for m in a.metrics]
    known = set(measured)
    return [name for name in dict.fromkeys((*judged, *measured)) if name in known]


def _reading(attempt: Attempt, name: str) -> str:
    return next((comparing.reading(m) for m in attempt.metrics if m.name == name), "-")


def _hidden(attempts: Sequence[Attempt], different: Sequence[str], cut: _Cut) -> list[Json]:
    """What differs between attempts and is no number, and why the earlier ones did not pass."""
    told: list[Json] = [
        {"attempt": a.attempt, "parameter": name, "value": comparing.leaves(a).get(name)}
        for name in different
        for a in attempts
        if not comparing.is_plain(comparing.leaves(a).get(name))
    ]
    if cut.old:
        told += [
            {"attempt": a.attempt, "verdict": a.verdict, "why": list(a.reasons)}
            for a in attempts[:-1]
            if a.reasons
        ]
    return told
