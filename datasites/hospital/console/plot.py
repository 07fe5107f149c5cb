"""A dataset's budget over time as an SVG drawing; colours are the style sheet's, so that it follows light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from datasites.hospital.budget.history import Point

WIDTH, HEIGHT = 640, 240
#: Of a second drawing for narrow screens, so that labels stay as large as they are.
NARROW_WIDTH = 300
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 14, 28


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, and what is written there."""

    at: float
    label: str


@dataclass(frozen=True)
class BudgetPlot:
    """Steps of spent and committed epsilon as SVG paths, the cap as a line, in a drawing of `width` x `height`."""

    spent: str
    committed: str
    cap: float
    ticks: tuple[Tick, ...]
    times: tuple[Tick, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT

    @property
    def right(self) -> int:
        """Where the drawing's axes end."""
        return self.width - RIGHT


def budget_plot(points: Sequence[Point], cap: float, width: int = WIDTH) -> BudgetPlot | None:
    """Draw a history against its cap (epsilon > 0); None when there is nothing to draw yet."""
    if not points:
        return None
    top = max(cap, *(p.committed for p in points)) * 1.08
    first, last = points[0].at, points[-1].at
    span = max((last - first).total_seconds(), 1.0)

    def x(p: Point) -> float:
        # A tenth at the left shows the rise from nothing.
        return LEFT + (width - LEFT - RIGHT) * (0.1 + 0.9 * (p.at - first).total_seconds() / span)

    def y(epsilon: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - epsilon / top)

    def steps(values: Sequence[float]) -> str:
        path = f"M{LEFT} {y(0):.1f}"
        for p, value in zip(points, values, strict=True):
            path += f" H{x(p):.1f} V{y(value):.1f}"
        return path + f" H{width - RIGHT}"

    marks = [top / 1.08 * i / 4 for i in range(5)]
    ends = (Tick(x(points[0]), f"{first:%Y-%m-%d %H:%M}"), Tick(width - RIGHT, f"{last:%Y-%m-%d %H:%M}"))
    return BudgetPlot(
        spent=steps([p.spent for p in points]),
        committed=steps([p.committed for p in points]),
        cap=y(cap),
        ticks=tuple(Tick(y(m), f"{m:.3g}") for m in marks),
        times=ends if len(points) > 1 else ends[:1],
        width=width,
    )
