"""The verb compare: two result files, item by item. It needs no workspace and no session."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runbook.cli.options import AsJson, answer, say

if TYPE_CHECKING:
    from gates.compare import FilesCompared
    from gates.result_files import ResultFile
    from gates.stats import PairedComparison
    from runbook.contract import Json


def compare(
    a: Annotated[
        Path, typer.Argument(metavar="A", envvar="RUNBOOK_A", help="Results, say the base's.")
    ],
    b: Annotated[
        Path, typer.Argument(metavar="B", envvar="RUNBOOK_B", help="Results on the same items.")
    ],
    *,
    id_field: Annotated[
        str | None, typer.Option("--id", envvar="RUNBOOK_ID", help="JSONL: the id's field.")
    ] = None,
    success: Annotated[
        str | None,
        typer.Option(envvar="RUNBOOK_SUCCESS", help="JSONL: the result's field."),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            envvar="RUNBOOK_KIND",
            help="Split by this field: of the row, of lm-eval's doc, of inspect_ai's metadata.",
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(envvar="RUNBOOK_METRIC", help="lm-eval: which metric.")
    ] = None,
    filter_name: Annotated[
        str | None, typer.Option("--filter", envvar="RUNBOOK_FILTER", help="lm-eval: which filter.")
    ] = None,
    scorer: Annotated[
        str | None,
        typer.Option(
            envvar="RUNBOOK_SCORER",
            help="inspect_ai: which scorer; SCORER/NAME of one that gives several values.",
        ),
    ] = None,
    epoch: Annotated[
        str | None,
        typer.Option(envvar="RUNBOOK_EPOCH", help="inspect_ai: an epoch's number, or all."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(envvar="RUNBOOK_THRESHOLD", help="The least score that counts as success."),
    ] = None,
    intersect: Annotated[
        bool,
        typer.Option(
            "--intersect",
            envvar="RUNBOOK_INTERSECT",
            help="Compare the items that both score; tell how many are left out.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare two result files on the same items: JSONL, lm-eval samples or inspect_ai logs."""
    from gates.compare import compare_files  # noqa: PLC0415 - start-up stays light
    from gates.result_rows import Chosen  # noqa: PLC0415 - start-up stays light

    chosen = Chosen(
        id_field=id_field,
        success_field=success,
        kind_field=kind,
        metric=metric,
        filter_name=filter_name,
        scorer=scorer,
        epoch=epoch,
    )
    found = compare_files(a, b, chosen, intersect=intersect, threshold=threshold)
    say("\n".join(_text(found)))
    if as_json:
        answer(_document(found))


def _text(found: "FilesCompared") -> Iterator[str]:
    from gates.compare import ALPHA, POWER  # noqa: PLC0415 - start-up stays light
    from runbook.report.figures import fixed, interval, p_value, signed  # noqa: PLC0415 - see above
    from runbook.report.safe_text import columns, one_line  # noqa: PLC0415 - start-up stays light

    whole = found.statistics
    lift = f"{signed(whole.lift)}, bootstrap 95 % {interval(whole.lift_ci, difference=True)}"
    chi2 = f"chi2 {fixed(whole.mcnemar_chi2)}, p {p_value(whole.mcnemar_p)}"
    yield from columns(
        [("", "file", "read as", "items"), _file("A", found.a), _file("B", found.b)], indent=""
    )
    yield ""
    yield from columns(
        [
            ("items compared", f"{whole.n:,}"),
            ("rate of A", f"{fixed(whole.base_rate)}, Wilson 95 % {interval(whole.base_ci)}"),
            ("rate of B", f"{fixed(whole.tuned_rate)}, Wilson 95 % {interval(whole.tuned_ci)}"),
            ("lift, B - A", lift),
            ("discordant", f"{whole.n01:,} only B has right, {whole.n10:,} only A"),
            ("McNemar", f"exact p {p_value(whole.exact_p)}; {chi2}"),
            ("Cohen's h", signed(whole.cohens_h)),
            (f"seen {100 * POWER:.0f} % of times", f"a lift of {_least(found)} at p <= {ALPHA:g}"),
        ],
        indent="",
    )
    if whole.by_kind:
        head = ("kind", "items", "A", "B", "lift", "95 %", "exact p", "adjusted", "at FDR 0.10")
        yield ""
        rows = [head, *(_kind(name, part) for name, part in whole.by_kind.items())]
        yield from columns(rows, indent="")
    yield ""
    yield from (one_line(f"note: {note}", 2000) for note in found.notes)
    yield found.conclusion


def _file(side: str, file: "ResultFile") -> tuple[str, ...]:
    return side, file.path, f"{file.format}, {file.score_name}", f"{len(file.items):,}"


def _least(found: "FilesCompared") -> str:
    from runbook.report.figures import fixed  # noqa: PLC0415 - start-up stays light

    if found.smallest_lift is None:
        return "not even 1"
    return f"{fixed(found.smallest_lift)} or more"


def _kind(name: str, part: "PairedComparison") -> tuple[str, ...]:
    from runbook.report.figures import fixed, interval, p_value, signed  # noqa: PLC0415 - see above

    return (
        name,
        f"{part.n:,}",
        fixed(part.base_rate),
        fixed(part.tuned_rate),
        signed(part.lift),
        interval(part.lift_ci, difference=True),
        p_value(part.exact_p),
        p_value(part.adjusted_p),
        "differs" if part.significant else "not shown",
    )


def _document(found: "FilesCompared") -> "dict[str, Json]":
    from gates.compare import ALPHA, POWER  # noqa: PLC0415 - start-up stays light

    return {
        "a": _side(found.a),
        "b": _side(found.b),
        "left_out": asdict(found.left_out),
        "threshold": found.threshold,
        "comparison": found.statistics.to_dict(),
        "alpha": ALPHA,
        "power": POWER,
        "smallest_lift": found.smallest_lift,
        "notes": list(found.notes),
        "conclusion": found.conclusion,
    }


def _side(file: "ResultFile") -> "dict[str, Json]":
    return {
        "path": file.path,
        "format": file.format,
        "score": file.score_name,
        "bytes": file.size,
        "sha256": file.sha256,
        "items": len(file.items),
    }
