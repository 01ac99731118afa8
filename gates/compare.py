"""Two result files on the same items: the paired statistics, and what they let one say.

Rule: items are paired by id alone, and an item that cannot be paired, or whose score is neither
right nor wrong, is refused unless the caller said what to do with it; what was then left out or
cut at a threshold is told. No verdict is given: a gate's thresholds belong to the gate.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from gates.result_files import Item, ResultFile, read_results
from gates.result_rows import Chosen, bad_file, some
from gates.stats import CONFIDENCE, PairedComparison, paired_comparison, smallest_lift, wilson

ALPHA = 0.01
POWER = 0.80
NO_KIND = "(no kind)"
_MOST_KINDS = 500


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Items that are not compared; all zero unless only common items were asked for."""

    only_a: int
    only_b: int
    unscored: int
    """In both files, and without a score in one of them."""


@dataclass(frozen=True, kw_only=True)
class FilesCompared:
    """B against A; every difference is B minus A."""

    a: ResultFile
    b: ResultFile
    left_out: LeftOut
    threshold: float | None
    """The least score that counts as success; None where all scores were 0 or 1."""
    statistics: PairedComparison
    """`base` is A, `tuned` is B."""
    smallest_lift: float | None
    """What so many items, so many of them discordant, show with `POWER` at `ALPHA`."""
    notes: tuple[str, ...]
    conclusion: str


def compare_files(
    a: Path,
    b: Path,
    chosen: Chosen,
    *,
    intersect: bool = False,
    threshold: float | None = None,
) -> FilesCompared:
    """Compare B with A on the items that both files score.

    Raises:
        ConfigError: a file cannot be read exactly, or the two cannot be paired.
    """
    if threshold is not None and not math.isfinite(threshold):
        raise bad_file(f"the threshold is {threshold}", "--threshold", "give a finite score")
    first, second = read_results(a, chosen), read_results(b, chosen)
    _refuse_unused(chosen, first, second)
    pairs, left_out = _pair(first, second, intersect=intersect)
    _refuse_other_items(pairs, first, second)
    successes = [[_success(item, threshold) for item in side] for side in zip(*pairs, strict=True)]
    statistics = paired_comparison(successes[0], successes[1], _kinds(pairs, chosen))
    discordant = (statistics.n01 + statistics.n10) / statistics.n
    least = smallest_lift(statistics.n, discordant, ALPHA, POWER)
    return FilesCompared(
        a=first,
        b=second,
        left_out=left_out,
        threshold=threshold,
        statistics=statistics,
        smallest_lift=least,
        notes=(*_notes(first, second, pairs, left_out, threshold), *_narrow(statistics)),
        conclusion=_conclusion(statistics, least),
    )


def _refuse_unused(chosen: Chosen, a: ResultFile, b: ResultFile) -> None:
    for option, value in chosen.options().items():
        if option not in a.uses | b.uses:
            known = ", ".join(sorted(a.uses | b.uses))
            what = f"{option} {value} means nothing to {a.format}"
            what += "" if a.format == b.format else f" or {b.format}"
            raise bad_file(what, option, f"leave it out; there are {known}")


def _pair(
    a: ResultFile, b: ResultFile, *, intersect: bool
) -> tuple[list[tuple[Item, Item]], LeftOut]:
    """The items that both score, in A's order."""
    common = [key for key in a.items if key in b.items]
    scored = [k for k in common if a.items[k].score is not None and b.items[k].score is not None]
    where = f"{a.path}, {b.path}"
    if not scored:
        what = f"no item has a score in both; the ids are {some(list(a.items), 3)} in A, "
        what += f"{some(list(b.items), 3)} in B"
        raise bad_file(what, where, "give two results of the same items")
    missing = {
        "only in A": [key for key in a.items if key not in b.items],
        "only in B": [key for key in b.items if key not in a.items],
        "without a score in A": [key for key in common if a.items[key].score is None],
        "without a score in B": [key for key in common if b.items[key].score is None],
    }
    told = [f"{len(keys):,} {how} ({some(keys)})" for how, keys in missing.items() if keys]
    if told and not intersect:
        fix = f"score the same items in both, or compare the {len(scored):,} common ones with "
        raise bad_file(
            f"not every item has two scores: {'; '.join(told)}", where, f"{fix}--intersect"
        )
    left_out = LeftOut(
        only_a=len(missing["only in A"]),
        only_b=len(missing["only in B"]),
        unscored=len(common) - len(scored),
    )
    return [(a.items[key], b.items[key]) for key in scored], left_out


def _refuse_other_items(pairs: list[tuple[Item, Item]], a: ResultFile, b: ResultFile) -> None:
    """One id must not name two items: both logs say what they asked."""
    if a.format != b.format:
        return
    other = [f"{one.where} and {two.where}" for one, two in pairs if one.content != two.content]
    if other:
        what = f"{len(other):,} of {len(pairs):,} ids name another item in A than in B"
        fix = "give two runs of one version of the task"
        raise bad_file(f"{what}: {some(other, 2)}", f"{a.path}, {b.path}", fix)


def _success(item: Item, threshold: float | None) -> bool:
    assert item.score is not None
    if threshold is not None:
        return item.score >= threshold
    if item.score not in {0.0, 1.0}:
        fix = "say from which score on an item is a success: --threshold X"
        raise bad_file(f"the score {item.score:g} is neither 0 nor 1", item.where, fix)
    return item.score == 1.0


def _kinds(pairs: list[tuple[Item, Item]], chosen: Chosen) -> list[str] | None:
    """Each item's kind; None where no item has one."""
    kinds = [_kind(one, two) for one, two in pairs]
    found = set(kinds)
    if len(found) > _MOST_KINDS:
        where = pairs[0][0].where
        raise bad_file(f"there are {len(found):,} kinds", where, "name another field with --kind")
    if found != {NO_KIND}:
        return kinds
    if chosen.kind_field is not None:
        fix = "name a field of the rows, of doc in lm-eval's, of metadata in inspect_ai's"
        raise bad_file(f"no item has a field {chosen.kind_field}", pairs[0][0].where, fix)
    return None


def _kind(a: Item, b: Item) -> str:
    if a.kind is not None and b.kind is not None and a.kind != b.kind:
        what = f"the item's kind is {some([a.kind])} in A and {some([b.kind])} in B"
        raise bad_file(what, f"{a.where}, {b.where}", "give an item the same kind in both files")
    kind = b.kind if a.kind is None else a.kind
    return NO_KIND if kind is None else kind


def _notes(
    a: ResultFile,
    b: ResultFile,
    pairs: list[tuple[Item, Item]],
    left_out: LeftOut,
    threshold: float | None,
) -> list[str]:
    notes = list(dict.fromkeys(a.notes + b.notes))
    if a.sha256 == b.sha256:
        notes.append("A and B are the same bytes: no difference can come out.")
    if a.score_name != b.score_name:
        told = f"A is scored by {a.score_name}, B by {b.score_name}"
        notes.append(f"{told}: a difference may be the scores' and not the models'.")
    typed = sum(one.number != two.number for one, two in pairs)
    if typed:
        notes.append(f"{typed:,} ids are a number in one file and a text in the other; paired.")
    prompted = sum(None not in {x.prompt, y.prompt} and x.prompt != y.prompt for x, y in pairs)
    if prompted:
        notes.append(f"{prompted:,} items were asked with another prompt in A than in B.")
    if left_out != LeftOut(only_a=0, only_b=0, unscored=0):
        told = f"{left_out.only_a:,} only in A, {left_out.only_b:,} only in B, "
        told += f"{left_out.unscored:,} without a score in one"
        notes.append(f"Left out: {told}. What is missing may be what one of the two cannot do.")
    if threshold is not None:
        cut = [
            sum(item.score not in {0.0, 1.0} for item in side) for side in zip(*pairs, strict=True)
        ]
        told = f"{cut[0]:,} scores of A and {cut[1]:,} of B were neither 0 nor 1"
        notes.append(f"A score of at least {threshold:g} counts as success; {told}.")
    unkind = sum(one.kind is None and two.kind is None for one, two in pairs)
    if 0 < unkind < len(pairs):
        notes.append(f"{unkind:,} items have no kind; they stand together as {NO_KIND}.")
    return notes


def _narrow(found: PairedComparison) -> list[str]:
    """Of few discordant items a bootstrap knows too little: its interval is too narrow."""
    low, high = found.lift_ci
    if found.exact_p > 1 - CONFIDENCE and (low > 0 or high < 0):
        told = "The bootstrap's interval leaves out 0 where the exact test does not"
        return [f"{told}: it is too narrow with so few discordant items; go by the exact p."]
    return []


def _conclusion(found: PairedComparison, least: float | None) -> str:
    """What can be said, and what cannot."""
    if found.exact_p <= ALPHA:
        better = "B" if found.lift > 0 else "A"
        return (
            f"{better} does better on these items (exact p = {found.exact_p:.2g}). Why is not "
            "shown: a scorer that rewards length or format, another prompt or another stop rule "
            "would look the same."
        )
    if least is None:
        seen = (
            f"{found.n:,} items are so few that no lift at all could have reached p <= {ALPHA:g}."
        )
    else:
        seen = (
            f"with {found.n:,} items a lift of {least:.3f} or more would have been seen in "
            f"{100 * POWER:.0f} % of such comparisons at p <= {ALPHA:g}; a smaller one may well be "
            "there."
        )
    if found.n01 + found.n10 == 0:
        most = wilson(0, found.n)[1]
        agreed = f"A and B agree on all {found.n:,} items (up to a share of {most:.3f} may differ)"
        return f"{agreed}. That does not show that they are equal: {seen}"
    told = f"No difference is shown (exact p = {found.exact_p:.2g}, not at most {ALPHA:g})"
    return f"{told}. Nor is it shown that there is none: {seen}"
