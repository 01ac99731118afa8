"""One plot as SVG: readings over attempts, a panel for each criterion, against its threshold.

Rule: numbers and escaped text alone, no script, no reference to anything outside. It brings its own
ground and ink for light and for dark, and no meaning rests on colour alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from xml.sax.saxutils import escape, quoteattr

from runbook.contract import Json
from runbook.report import figures as f
from runbook.report.safe_text import one_line

_WIDTH, _PANEL, _TOP, _BOTTOM = 640.0, 150.0, 34.0, 30.0
_LEFT, _RIGHT = 92.0, 96.0
_MOST = 4
"""Panels; more are not read."""
_HUGE = 1e12
_LONGEST = 60
_INKS = {
    ".ground": ("fill", "#ffffff", "#0d1117"),
    "text": ("fill", "#1f2328", "#e6edf3"),
    ".faint": ("fill", "#656d76", "#9198a1"),
    ".good,.allowed": ("fill", "#1a7f37", "#57c76b"),
    ".bad": ("fill", "#c2410c", "#ff9a5c"),
    ".bound": ("stroke", "#c2410c", "#ff9a5c"),
    ".rule": ("stroke", "#d0d7de", "#3d444d"),
    ".line,.asked,.open": ("stroke", "#656d76", "#9198a1"),
    ".open": ("fill", "#ffffff", "#0d1117"),
}
"""What -> how it is coloured on a light page, and on a dark one."""
_SHAPES = (
    "text{font-family:sans-serif;font-size:12px}.name{font-weight:bold}.line{fill:none}.open{stroke-width:2}"
    ".bound{stroke-dasharray:6 4}.asked{stroke-dasharray:2 4}.allowed{opacity:.12}"
)


def _style() -> str:
    """Plain rules: of what draws SVG, much knows no variables and no media queries."""
    light = "".join(f"{what}{{{how}:{ink}}}" for what, (how, ink, _) in _INKS.items())
    dark = "".join(f"{what}{{{how}:{ink}}}" for what, (how, _, ink) in _INKS.items())
    return f"{_SHAPES}{light}@media(prefers-color-scheme:dark){{{dark}}}"


@dataclass(frozen=True)
class Point:
    """What one attempt read."""

    value: float | None
    """None: nothing was, or nothing that can be drawn."""
    verdict: str


@dataclass(frozen=True)
class Panel:
    """One criterion over all attempts."""

    name: str
    threshold: str
    bounds: tuple[tuple[str, float], ...]
    """Sign and number of each comparison."""
    points: tuple[Point, ...]
    """One an attempt."""


@dataclass(frozen=True)
class Scale:
    """From a reading to a height within a panel."""

    low: float
    high: float
    top: float

    def y(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        share = (inside - self.low) / (self.high - self.low)
        return self.top + _TOP + (1 - share) * (_PANEL - _TOP - _BOTTOM)


def render_plot(title: str, labels: Sequence[str], panels: Sequence[Panel], asked: int) -> str:
    """The plot; empty where there is nothing that can be drawn.

    Args:
        title: what it shows, for those who do not see it.
        labels: of the attempts, from left to right.
        panels: of the criteria.
        asked: behind how many attempts the review came.
    """
    drawn = [p for p in panels if any(point.value is not None for point in p.points)][:_MOST]
    if not drawn or not labels:
        return ""
    height = _PANEL * len(drawn) + 10
    size = f'viewBox="0 0 {_WIDTH:g} {height:g}" width="{_WIDTH:g}" height="{height:g}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label={_quoted(title)}>',
        f"<title>{_text(title, 200)}</title>",
        f"<style>{_style()}</style>",
        f'<rect class="ground" width="{_WIDTH:g}" height="{height:g}"/>',
    ]
    for place, panel in enumerate(drawn):
        lines += _panel(panel, labels, asked, _PANEL * place)
    return "\n".join([*lines, "</svg>", ""])


def drawable(value: Json) -> float | None:
    """The value where a plot can show it."""
    found = f.real(value)
    return found if found is not None and abs(found) < _HUGE else None


def _panel(panel: Panel, labels: Sequence[str], asked: int, top: float) -> Iterator[str]:
    shown = tuple((sign, bound) for sign, bound in panel.bounds if drawable(bound) is not None)
    panel = replace(panel, bounds=shown)
    scale = _scale(panel, top)
    bottom = top + _PANEL - _BOTTOM
    right = _WIDTH - _RIGHT
    yield "<g>"
    yield _label(_LEFT, top + 20, panel.name, "name")
    yield from _allowed(panel, scale)
    yield f'<path class="rule" d="M{_LEFT:g} {bottom:g}H{right:g}"/>'
    yield _label(_LEFT - 8, scale.y(scale.high) + 4, f.number(scale.high), "faint", "end")
    yield _label(_LEFT - 8, bottom + 4, f.number(scale.low), "faint", "end")
    for sign, bound in panel.bounds:
        y = scale.y(bound)
        yield f'<path class="bound" d="M{_LEFT:g} {y:.1f}H{right:g}"/>'
        yield _label(right + 6, y + 4, f"{sign} {bound:g}", "faint")
    xs = [_x(place, len(labels)) for place in range(len(labels))]
    if 0 < asked < len(labels):
        x = (xs[asked - 1] + xs[asked]) / 2
        yield f'<path class="asked" d="M{x:.1f} {top + _TOP - 6:.1f}V{bottom:g}"/>'
        yield _label(x, top + _TOP - 10, "review", "faint", "middle")
    yield from _line(panel, xs, scale)
    for x, label, point in zip(xs, labels, panel.points, strict=True):
        yield _label(x, bottom + 18, label, "faint", "middle")
        yield from _point(x, point, scale)
    yield "</g>"


def _x(place: int, count: int) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (place + 0.5) / count


def _scale(panel: Panel, top: float) -> Scale:
    """Every reading and threshold with some air; from 0 where that is near."""
    found = [p.value for p in panel.points if p.value is not None]
    found += [bound for _, bound in panel.bounds]
    low, high = min(found), max(found)
    if 0 <= low <= (high - low):
        low = 0.0
    air = (high - low) * 0.15 or abs(high) * 0.5 or 1.0
    return Scale(low if low == 0 and high > 0 else low - air, high + air, top)


def _allowed(panel: Panel, scale: Scale) -> Iterator[str]:
    """The band in which a reading holds."""
    over = [bound for sign, bound in panel.bounds if sign in (">", ">=")]
    under = [bound for sign, bound in panel.bounds if sign in ("<", "<=")]
    if not over and not under:
        return
    head, foot = scale.y(min(under, default=scale.high)), scale.y(max(over, default=scale.low))
    if foot > head:
        where = f'x="{_LEFT:g}" y="{head:.1f}" width="{_WIDTH - _LEFT - _RIGHT:g}"'
        yield f'<rect class="allowed" {where} height="{foot - head:.1f}"/>'


def _line(panel: Panel, xs: Sequence[float], scale: Scale) -> Iterator[str]:
    """Between readings that follow one another: over a gap nothing is known."""
    for (x, a), (x2, b) in pairwise(zip(xs, panel.points, strict=True)):
        if a.value is not None and b.value is not None:
            ends = f"M{x:.1f} {scale.y(a.value):.1f}L{x2:.1f} {scale.y(b.value):.1f}"
            yield f'<path class="line" d="{ends}"/>'


def _point(x: float, point: Point, scale: Scale) -> Iterator[str]:
    """A disc passed, a cross failed, a ring is neither; what was not measured is said."""
    if point.value is None:
        yield _label(x, scale.y(scale.low) - 6, "not measured", "faint", "middle")
        return
    y = scale.y(point.value)
    match point.verdict:
        case "pass":
            yield f'<circle class="good" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
        case "fail":
            cross = "M-5 -3L-3 -5L0 -2L3 -5L5 -3L2 0L5 3L3 5L0 2L-3 5L-5 3L-2 0Z"
            yield f'<path class="bad" transform="translate({x:.1f} {y:.1f})" d="{cross}"/>'
        case _:
            yield f'<circle class="open" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    yield _label(x, y - 11, f.number(point.value), "", "middle")


def _label(x: float, y: float, text: str, kind: str = "", anchor: str = "") -> str:
    kinds = f' class="{kind}"' if kind else ""
    anchors = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{kinds}{anchors}>{_text(text)}</text>'


def _text(text: str, longest: int = _LONGEST) -> str:
    return escape(one_line(text, longest))


def _quoted(text: str) -> str:
    return quoteattr(one_line(text, 200))
