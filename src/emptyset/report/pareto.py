"""Mixed precision on the page: the Pareto curve as a picture, and the tables beside it."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from emptyset.report.facts import size

WIDTH, HEIGHT = 960, 420
LEFT, RIGHT, TOP, BOTTOM = 72, 24, 22, 52
# Below this a divergence is rounding, and a logarithm needs an end.
SMALLEST = 1e-9
MOST_TICKS = 8


@dataclass(frozen=True)
class Axis:
    """From values to positions.

    Attributes:
        low: Value at ``start``.
        high: Value at ``stop``.
        start: Position of ``low`` [pixels].
        stop: Position of ``high`` [pixels].
    """

    low: float
    high: float
    start: float
    stop: float

    def at(self, value: float) -> float:
        """Position of a value [pixels], one decimal."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.stop - self.start), 1)


@dataclass(frozen=True)
class PlanRow:
    """One plan of the table.

    Attributes:
        name: ``chosen``, or the bits of a uniform plan.
        chosen: Whether it is the chosen one.
        cost: In the budget's unit, as a text.
        size: Of the weights in the file.
        average_bits: Of the weights whose bits are free.
        operations: Bit operations for one image.
        predicted: Divergence [nat].
        measured: Divergence [nat].
    """

    name: str
    chosen: bool
    cost: str
    size: str
    average_bits: str
    operations: str
    predicted: float
    measured: float


def plan_rows(found: dict[str, Any]) -> list[PlanRow]:
    """The chosen plan and the uniform ones, cheapest first."""
    plans = [(bits, False, plan) for bits, plan in found["uniform"].items()]
    plans.append((f"chosen for {found['budget']}", True, found["chosen"]))
    return [
        PlanRow(
            name,
            chosen,
            cost_text(found, plan["cost"]),
            size(plan["size_bytes"]),
            f"{plan['average_bits']:.2f}",
            operations(plan["bit_operations"]),
            plan["predicted"],
            plan["measured"],
        )
        for name, chosen, plan in sorted(plans, key=lambda one: (one[2]["cost"], one[1]))
    ]


def layer_rows(found: dict[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """Widths that were tried, and per layer the damage at each; the chosen one is marked."""
    widths = sorted({_width(o) for layer in found["layers"] for o in layer["options"]})
    rows = []
    for layer in found["layers"]:
        damages = {_width(option): option["damage"] for option in layer["options"]}
        chosen = _width(layer["options"][layer["chosen"]])
        rows.append(
            {
                "name": layer["name"],
                "weights": layer["weights"],
                "fixed": len(layer["options"]) == 1,
                "cells": [(damages.get(width), width == chosen) for width in widths],
            }
        )
    return [_width_text(width) for width in widths], rows


def _width(option: dict[str, Any]) -> tuple[int, int]:
    """Bits of the input first; 0 stands for an input in float."""
    return (option["inputs"] or 0, option["weights"])


def _width_text(width: tuple[int, int]) -> str:
    inputs, weights = width
    return f"w{weights}a{inputs}" if inputs else f"w{weights} float"


def cost_text(found: dict[str, Any], cost: float) -> str:
    """A cost in the budget's unit."""
    if found["relative"]:
        return f"{cost:.3f} of 8 bits"
    if found["kind"] == "size":
        return size(cost)
    return f"{cost:.2f} bits" if found["kind"] == "average_bits" else operations(cost)


def operations(count: float) -> str:
    """``1.31 GBOPs``: bit operations of one image."""
    value = float(count)
    for unit in ("BOPs", "kBOPs", "MBOPs", "GBOPs"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TBOPs"


def pareto_chart(found: dict[str, Any]) -> str:
    """The curve as SVG that takes its colours from the page and loads nothing.

    Args:
        found: What ``MixedPrecision.to_json`` gives.
    """
    uniform = list(found["uniform"].items())
    everything = [*found["frontier"], found["chosen"], *(plan for _, plan in uniform)]
    x, y = _axes(found, everything)
    parts = [*_grid(found, x, y), *_budget(found, x)]
    line = " ".join(f"{x.at(p['cost'])},{y.at(_log(p['predicted']))}" for p in found["frontier"])
    parts.append(f'<polyline points="{line}" style="fill:none;stroke:var(--mark);stroke-width:2"/>')
    parts += [_dot(found, plan, x, y) for plan in found["frontier"]]
    for bits, plan in uniform:
        parts += _pair(plan, x, y, html.escape(bits), "var(--dim)")
    parts += _pair(found["chosen"], x, y, "chosen", "var(--good)")
    parts += _legend()
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Pareto curve: divergence '
        f'against cost" style="width:100%;min-width:520px;max-width:{WIDTH}px;height:auto;'
        f'display:block;font:12px system-ui,sans-serif">{"".join(parts)}</svg>'
    )


def _log(value: float) -> float:
    return math.log10(max(value, SMALLEST))


def _axes(found: dict[str, Any], plans: Sequence[dict[str, Any]]) -> tuple[Axis, Axis]:
    costs = [plan["cost"] for plan in plans]
    # A budget far above what any plan costs stays outside.
    if found["limit"] <= 1.1 * max(costs):
        costs.append(found["limit"])
    logs = [
        _log(p[kind]) for p in plans for kind in ("predicted", "measured") if p[kind] is not None
    ]
    low, high = min(costs), max(costs)
    edge = 0.04 * (high - low) or 0.1 * (abs(high) or 1.0)
    least, most = math.floor(min(logs) - 0.1), math.ceil(max(logs) + 0.1)
    return (
        Axis(low - edge, high + edge, LEFT, WIDTH - RIGHT),
        Axis(least, most, HEIGHT - BOTTOM, TOP),
    )


def _grid(found: dict[str, Any], x: Axis, y: Axis) -> list[str]:
    parts = []
    step = max(1, math.ceil((y.high - y.low) / MOST_TICKS))
    for exponent in range(int(y.low), int(y.high) + 1, step):
        height = y.at(exponent)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height}" y2="{height}" '
            'style="stroke:var(--line)"/>'
        )
        parts.append(_text(LEFT - 8, height + 4, f"{10.0**exponent:g}", "end"))
    for value in ticks(x.low, x.high):
        place = x.at(value)
        parts.append(
            f'<line x1="{place}" x2="{place}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM + 5}" '
            'style="stroke:var(--dim)"/>'
        )
        parts.append(_text(place, HEIGHT - BOTTOM + 19, _tick_text(found, value), "middle"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(_text(middle, HEIGHT - 12, _axis_title(found), "middle"))
    upright = f'transform="rotate(-90 16 {(HEIGHT - BOTTOM + TOP) / 2})"'
    title = "KL divergence from the teacher [nat]"
    parts.append(_text(16, (HEIGHT - BOTTOM + TOP) / 2, title, "middle", upright))
    return parts


def ticks(low: float, high: float) -> list[float]:
    """Round values between two ends, 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / MOST_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step)
    return [round(n * step, 12) for n in range(first, math.floor(high / step) + 1)]


def _tick_text(found: dict[str, Any], value: float) -> str:
    if found["relative"] or found["kind"] == "average_bits":
        return f"{value:g}"
    return size(value) if found["kind"] == "size" else operations(value)


def _axis_title(found: dict[str, Any]) -> str:
    titles = {
        "size": "weights in the file",
        "average_bits": "bits of a weight, average over the layers whose bits are free",
        "bit_operations": "bit operations of one image",
    }
    return titles[found["kind"]] + (", share of w8a8" if found["relative"] else "")


def _budget(found: dict[str, Any], x: Axis) -> list[str]:
    if not x.low <= found["limit"] <= x.high:
        return []
    place = x.at(found["limit"])
    # The legend stands at the top right; a curve of this kind leaves the rest of the top free.
    crowded = place > 0.6 * WIDTH
    label, height = (place - 5, TOP + 74) if crowded else (place + 5, TOP + 10)
    return [
        f'<line x1="{place}" x2="{place}" y1="{height - 10}" y2="{HEIGHT - BOTTOM}" '
        'style="stroke:var(--good);stroke-dasharray:5 4"/>',
        _text(
            label, height, f"budget {html.escape(found['budget'])}", "end" if crowded else "start"
        ),
    ]


def _dot(found: dict[str, Any], plan: dict[str, Any], x: Axis, y: Axis) -> str:
    told = f"{cost_text(found, plan['cost'])}: predicted {plan['predicted']:.3g} nat"
    return (
        f'<circle cx="{x.at(plan["cost"])}" cy="{y.at(_log(plan["predicted"]))}" r="3.5" '
        f'style="fill:var(--mark)"><title>{html.escape(told)}</title></circle>'
    )


def _pair(plan: dict[str, Any], x: Axis, y: Axis, name: str, colour: str) -> list[str]:
    """Predicted as a ring, measured as a square, a line between them, and the plan's name."""
    place = x.at(plan["cost"])
    predicted, measured = y.at(_log(plan["predicted"])), y.at(_log(plan["measured"]))
    told = f"{name}: predicted {plan['predicted']:.3g}, measured {plan['measured']:.3g} nat"
    label = max(TOP + 10, min(predicted, measured) - 9)
    return [
        f'<g><title>{told}</title><line x1="{place}" x2="{place}" y1="{predicted}" '
        f'y2="{measured}" style="stroke:{colour}"/>'
        f'<circle cx="{place}" cy="{predicted}" r="5.5" '
        f'style="fill:var(--card);stroke:{colour};stroke-width:2"/>'
        f'<rect x="{place - 5}" y="{round(measured - 5, 1)}" width="10" height="10" '
        f'style="fill:{colour}"/></g>',
        _text(place, label, name, "middle", f'font-weight="600" style="fill:{colour}"'),
    ]


def _legend() -> list[str]:
    left, top = WIDTH - RIGHT - 214, TOP + 8
    return [
        f'<circle cx="{left}" cy="{top}" r="3.5" style="fill:var(--mark)"/>',
        _text(left + 14, top + 4, "best plans for other budgets", "start"),
        f'<circle cx="{left}" cy="{top + 20}" r="5" '
        'style="fill:var(--card);stroke:var(--dim);stroke-width:2"/>',
        _text(left + 14, top + 24, "predicted: sum of single layers", "start"),
        f'<rect x="{left - 5}" y="{top + 35}" width="10" height="10" style="fill:var(--dim)"/>',
        _text(left + 14, top + 44, "measured: all layers together", "start"),
    ]


def _text(x: float, y: float, text: str, anchor: str, more: str = 'style="fill:var(--dim)"') -> str:
    style = more if "style=" in more else f'{more} style="fill:var(--dim)"'
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" {style}>{text}</text>'
