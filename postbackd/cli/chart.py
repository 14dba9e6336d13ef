"""A report as a picture, drawn by matplotlib where that is installed."""

import importlib.util
import io
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from postbackd.cli import output
from postbackd.cli.context import RefusedError
from postbackd.escapes import escape_controls
from postbackd.reports.totals import TIMES, Figures, Key
from statuses import Status

SUFFIXES = (".png", ".svg")

# The eye cannot tell more bars or colours apart; the other names are one bar, `REST`.
MOST_BARS = 20
MOST_COLOURS = 7
REST = "others"
# Up to this number every day or hour has a label; beyond it, some have.
LABELS_ON_AN_AXIS = 10
# Missing days or hours are added as empty bars, so that the axis is even; not over years of hours.
MOST_TIMES = 3000
LONGEST_LABEL = 40

# Colours that people who confuse red and green can tell apart (after Okabe and Ito).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")
GREY = "#b0b0b0"
HOLD_COLOUR = "#9ecae1"
STATUS_COLOURS = {
    Status.SALE: "#009e73",
    Status.REBILL: "#0072b2",
    Status.LEAD: "#56b4e9",
    Status.REJECTED: "#d55e00",
}
NAMES = {status: f"{status}s" for status in Status} | {Status.REJECTED: "rejected"}


class Picture(NamedTuple):
    """The dimensions, currency and time zone that the picture's labels name."""

    dimensions: Sequence[str]
    currency: str
    zone: tzinfo


Lines = Sequence[tuple[Key, Figures]]


def require() -> None:
    """Raise RefusedError where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise RefusedError(
            "--plot draws with matplotlib, which is not installed: run `pip install"
            " 'postback[plot]'`, or in a clone of the repository `pip install -e '.[plot]'`"
        )


def draw(picture: Picture, lines: Lines, path: Path) -> None:
    """Draw the lines of a report into a file, whole or not at all."""
    # Imported here: it takes half a second, and no other command needs it.
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    drawn = io.BytesIO()
    # Names come from outside: a dollar sign in them begins no formula.
    look = {"text.parse_math": False, "font.size": 9, "svg.fonttype": "none"}
    with mpl.rc_context(look), warnings.catch_warnings():
        # matplotlib draws a letter that the font lacks as a box: its warning is not needed.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure = Figure(figsize=(11, 6.5), layout="constrained")
        if picture.dimensions[0] in TIMES:
            _draw_times(figure, picture, lines)
        else:
            _draw_names(figure, picture, lines)
        figure.savefig(drawn, format=path.suffix[1:].lower(), dpi=120)
    path.write_bytes(drawn.getvalue())


def _draw_times(figure: Any, picture: Picture, lines: Lines) -> None:
    """Draw money above and conversions below, a bar for each day or hour."""
    labels = _fill_gaps(list(dict.fromkeys(key[0] for key, _ in lines)), picture)
    by_time = {label: Figures() for label in labels}
    for key, figures in lines:
        by_time[key[0]].add(figures)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    if len(picture.dimensions) == 1:
        _draw_money(above, list(by_time.values()))
    else:
        _draw_shares(above, labels, lines, picture.dimensions[1])
    _draw_statuses(below, list(by_time.values()))
    above.set_ylabel(picture.currency)
    below.set_ylabel("conversions")
    step = -(-len(labels) // LABELS_ON_AN_AXIS) or 1
    below.set_xticks(
        range(0, len(labels), step), [_shorten_time(label) for label in labels[::step]]
    )
    below.set_xlabel(f"{picture.dimensions[0]} ({picture.zone})")
    what = "Revenue and hold" if len(picture.dimensions) == 1 else "Revenue"
    above.set_title(f"{what} by {' and '.join(picture.dimensions)}", loc="left", weight="bold")
    for axes in (above, below):
        _tidy(axes, "y")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def _fill_gaps(labels: list[str | None], picture: Picture) -> list[str | None]:
    known = [label for label in labels if label is not None]
    if not known:
        return labels
    at, last = (datetime.fromisoformat(label) for label in (known[0], known[-1]))
    filled: list[str | None] = []
    while at <= last and len(filled) < MOST_TIMES:
        if picture.dimensions[0] == "day":
            filled.append(str(at.date()))
            at += timedelta(days=1)
        else:
            filled.append(at.astimezone(picture.zone).isoformat(timespec="minutes"))
            at = at.astimezone(UTC) + timedelta(hours=1)
    return filled if set(labels).issubset(filled) else labels


def _draw_money(axes: Any, figures: Sequence[Figures]) -> None:
    revenue = [float(each.revenue) for each in figures]
    places = range(len(figures))
    axes.bar(places, revenue, width=0.85, color=COLOURS[0], label="revenue")
    hold = [float(each.hold) for each in figures]
    if any(hold):
        axes.bar(places, hold, 0.85, revenue, color=HOLD_COLOUR, label="hold")
    cost = [float(each.cost) for each in figures]
    if any(cost):
        axes.plot(places, cost, color=COLOURS[5], marker=".", label="cost")


def _draw_shares(axes: Any, labels: Sequence[str | None], lines: Lines, name: str) -> None:
    """Stack the revenue of the second dimension's largest values, the rest on top."""
    totals: dict[str | None, Decimal] = {}
    for key, figures in lines:
        totals[key[1]] = totals.get(key[1], Decimal(0)) + figures.revenue
    order = sorted(totals, key=lambda value: (-totals[value], value or ""))
    largest = [*order[:MOST_COLOURS]]
    places = {label: place for place, label in enumerate(labels)}
    stacks = {value: [0.0] * len(labels) for value in (*largest, REST)}
    for key, figures in lines:
        value = key[1] if key[1] in largest else REST
        stacks[value][places[key[0]]] += float(figures.revenue)
    ground = [0.0] * len(labels)
    for value, colour in zip(stacks, (*COLOURS[: len(largest)], GREY), strict=True):
        heights = stacks[value]
        if value == REST and len(order) <= MOST_COLOURS:
            continue
        label = REST if value == REST else _shorten(value, name)
        axes.bar(places.values(), heights, 0.85, ground, color=colour, label=label)
        ground = [low + height for low, height in zip(ground, heights, strict=True)]


def _draw_statuses(axes: Any, figures: Sequence[Figures]) -> None:
    ground = [0] * len(figures)
    for status, colour in STATUS_COLOURS.items():
        heights = [each.conversions[status] for each in figures]
        if any(heights):
            axes.bar(range(len(figures)), heights, 0.85, ground, color=colour, label=NAMES[status])
            ground = [low + height for low, height in zip(ground, heights, strict=True)]


def _draw_names(figure: Any, picture: Picture, lines: Lines) -> None:
    """Draw a bar for each name, the largest on top."""
    shown = lines[:MOST_BARS]
    axes = figure.subplots()
    places = range(len(shown))
    revenue = [float(figures.revenue) for _, figures in shown]
    hold = [float(figures.hold) for _, figures in shown]
    axes.barh(places, revenue, color=COLOURS[0], label="revenue")
    if any(hold):
        axes.barh(places, hold, left=revenue, color=HOLD_COLOUR, label="hold")
    axes.set_yticks(
        places, [" / ".join(map(_shorten, key, picture.dimensions)) for key, _ in shown]
    )
    axes.invert_yaxis()
    axes.set_xlabel(picture.currency)
    title = f"Revenue and hold by {' and '.join(picture.dimensions)}"
    if len(lines) > len(shown):
        title += f": the first {len(shown)} of {len(lines):,}"
    axes.set_title(title, loc="left", weight="bold")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    _tidy(axes, "x")


def _tidy(axes: Any, along: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=along, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    getattr(axes, f"{along}axis").set_major_formatter(lambda value, _: f"{value:,.10g}")


def _shorten_time(label: str | None) -> str:
    if label is None:
        return "?"
    return datetime.fromisoformat(label).strftime("%m-%d %H:%M") if "T" in label else label


def _shorten(value: str | None, dimension: str) -> str:
    if value is None:
        return f"(no {dimension})"
    text = escape_controls(output.hide(value))
    return text if len(text) <= LONGEST_LABEL else f"{text[:LONGEST_LABEL]}…"
