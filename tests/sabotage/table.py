"""The table of faults as Markdown, between two markers of docs/sabotage.md."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from sabotage.fault import Fault
from sabotage.session import Ended

DOCS: Final = Path(__file__).parents[2] / "docs" / "sabotage.md"
BEGIN: Final = "<!-- table: written by make sabotage -->"
END: Final = "<!-- end of table -->"


def markdown(found: Mapping[Fault, Ended]) -> str:
    """A row a fault."""
    lines = [
        "| fault | kind | stopped at | verdict | because | exit |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_row(fault, ended) for fault, ended in found.items()]
    return "\n".join(lines)


def _row(fault: Fault, ended: Ended) -> str:
    because = ", ".join(f"`{name}`" for name in sorted(fault.because))
    if not fault.is_caught(ended):
        because = (
            f"**gets through**: {fault.gets_through}" if fault.gets_through else "**NOT CAUGHT**"
        )
    cells = (fault.name, fault.kind, ended.stopped_at, ended.verdict, because, ended.exit_code)
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def write_table(path: Path, table: str) -> None:
    """Put the table where the old one stands."""
    before, _, rest = path.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", "utf-8")


def named_faults(path: Path) -> list[str]:
    """The faults that the table lists, in order."""
    text = path.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    return [row.split(" | ")[0].removeprefix("| ") for row in rows[1:]]
