"""`postback report`: clicks, conversions and money added up."""

import argparse
import difflib
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from postbackd.cli import chart, output
from postbackd.cli.context import RefusedError, load_keyless, reading
from postbackd.cli.options import (
    FORMATS,
    Subparsers,
    add_command,
    add_json,
    add_since,
    add_until,
    add_zone,
    read_limit,
    read_name,
    settle_times,
)
from postbackd.cli.sanitize import Column, Kind
from postbackd.reports.queries import Questions
from postbackd.reports.totals import (
    DIMENSIONS,
    NAMED,
    TIMES,
    Figures,
    Key,
    ReportQuery,
    add_up_in_threads,
)
from rates import decimal_text, micros_text
from statuses import Status

NOTHING = "Nothing came in that time."
TOTAL = "total"
MOST_DIMENSIONS = 2

COUNTS = ("clicks", "leads", "sales", "rebills", "rejected")
MONEY = ("revenue", "hold", "cost", "profit")
NUMBERS = (*COUNTS, "approval_percent", *MONEY, "roi_percent")

# `spare`: a narrow terminal leaves out the highest first.
FIGURE_COLUMNS = (
    Column("clicks", Kind.NUMBER),
    Column("leads", Kind.NUMBER, 2),
    Column("sales", Kind.NUMBER),
    Column("rebills", Kind.NUMBER, 8),
    Column("rejected", Kind.NUMBER, 6),
    Column("appr. %", Kind.NUMBER, 7),
    Column("revenue", Kind.MONEY),
    Column("hold", Kind.MONEY, 3),
    Column("cost", Kind.MONEY, 5),
    Column("profit", Kind.MONEY, 1),
    Column("ROI %", Kind.NUMBER, 9),
    Column("", Kind.BAR, 4),
)
OF_COST = ("cost", "profit", "ROI %")
BAR_WIDTH = 12

MEANINGS = """\
Conversions count with the status they have now. revenue: payouts of sales and rebills; hold:
payouts of leads; cost: what postbacks said a conversion cost, rejected ones too; profit: revenue
less cost; approval: sales and rebills among all conversions; ROI: profit by cost, empty where
nothing was paid. All money is in the tracker's currency, on a terminal to the cent; amounts that
wait for a rate are in no sum, and listed apart. By conversion time a conversion counts when its
first postback came, and clicks when they came; by click time both count when the click came. A
click has no network and no currency: by these, no clicks are counted."""


class Line(NamedTuple):
    """One line of the report: the values of the dimensions (none: the total), and the figures."""

    key: Key | None
    figures: Figures


def add_parser(subparsers: Subparsers) -> None:
    """Add `report`."""
    parser = add_command(
        subparsers,
        "report",
        run,
        "add up clicks, conversions and money by day, campaign, network and so on",
        "postback report --since 30d --tz Europe/Berlin\n"
        "  postback report --by campaign,sub_id_1 --since 7d --limit 20\n"
        "  postback report --by day,offer --plot offers.png",
        more=f"{MEANINGS}\n{FORMATS}",
    )
    parser.add_argument(
        "--by",
        action="extend",
        type=_read_dimensions,
        metavar="WHAT",
        help="day, hour, campaign, offer, network, currency (as sent), sub_id_1 … sub_id_30; two"
        " with a comma or given twice (default day)",
    )
    parser.add_argument(
        "--by-click-time", action="store_true", help="days, hours and times are those of the click"
    )
    add_zone(parser, ", and whose days and hours")
    add_since(parser)
    add_until(parser)
    parser.add_argument("--campaign", type=read_name, help="only this campaign")
    parser.add_argument("--offer", type=read_name, help="only this offer")
    parser.add_argument("--network", help="only postbacks with from=NETWORK")
    parser.add_argument(
        "--limit",
        type=read_limit,
        default=0,
        metavar="N",
        help="the newest N days or hours, else the N with most revenue (default 0: all); the"
        " total is of all",
    )
    parser.add_argument(
        "--plot",
        type=_read_picture,
        metavar="FILE",
        help="draw the report into FILE.png or FILE.svg instead (needs matplotlib)",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="CSV (RFC 4180), without the total")
    add_json(form)


def run(args: argparse.Namespace) -> int:
    """Add up and show."""
    dimensions = _choose_dimensions(args)
    if args.plot is not None:
        chart.require()
    settings = load_keyless(args)
    settle_times(args, settings)
    query = read_query(args, dimensions)
    with reading(settings) as questions:
        _refuse_unknown_names(questions, query)
        sums = add_up_in_threads(questions.db, settings.db_path, query)
        currency = questions.find_currency()
    lines, total = arrange(sums, query.dimensions)
    shown = _cut(lines, args.limit, query.dimensions)
    if args.plot is not None:
        picture = chart.Picture(query.dimensions, currency, args.tz)
        chart.draw(picture, [(line.key, line.figures) for line in shown if line.key], args.plot)
        output.print_line(f"Drawn: {args.plot}")
    elif args.json:
        output.print_json(_build_object(line, query) for line in (*shown, total))
    elif args.csv:
        names = [*query.dimensions, *NUMBERS, "unconverted"]
        output.print_csv(names, (_build_row(line, query) for line in shown), frozenset(NUMBERS))
    elif output.is_terminal():
        _print_for_people(shown, total, query, f"{args.tz}; {currency}")
    else:
        columns = [Column(name) for name in (*query.dimensions, *NUMBERS, "unconverted")]
        rows = ([cell or "" for cell in _build_row(line, query)] for line in (*shown, total))
        output.print_table(columns, rows)
    return 0


def _choose_dimensions(args: argparse.Namespace) -> tuple[str, ...]:
    dimensions = tuple(dict.fromkeys(args.by or ["day"]))
    if len(dimensions) > MOST_DIMENSIONS:
        args.parser.error(f"argument --by: at most {MOST_DIMENSIONS}, not {', '.join(dimensions)}")
    return dimensions


def read_query(args: argparse.Namespace, dimensions: tuple[str, ...]) -> ReportQuery:
    """Give what the options ask for."""
    filters = {name: getattr(args, name) for name in ("campaign", "offer", "network")}
    return ReportQuery(
        dimensions,
        args.tz,
        args.since,
        args.until,
        {name: value for name, value in filters.items() if value is not None},
        args.by_click_time,
    )


def arrange(sums: dict[Key, Figures], dimensions: Sequence[str]) -> tuple[list[Line], Line]:
    """Sort the lines, times by time and names by revenue, and add the total."""
    subtotals = {**sums, (): Figures()}
    lengths = [0, *(at for at, name in enumerate(dimensions[:-1], 1) if name not in TIMES)]
    for key, figures in sums.items():
        for length in lengths:
            if key[:length] not in subtotals:
                subtotals[key[:length]] = Figures()
            subtotals[key[:length]].add(figures)

    def place(key: Key) -> list[tuple[Any, ...]]:
        return [
            _place_time(name, key[at])
            if name in TIMES
            else _place_name(key[at], subtotals[key[: at + 1]])
            for at, name in enumerate(dimensions)
        ]

    lines = [Line(key, sums[key]) for key in sorted(sums, key=place)]
    return lines, Line(None, subtotals[()])


def _place_time(name: str, label: str | None) -> tuple[Any, ...]:
    if label is None:
        return (True, "")
    # 02:00+02:00 is before 02:00+01:00, although it sorts behind it as text.
    return (False, datetime.fromisoformat(label).timestamp() if name == "hour" else label)


def _place_name(name: str | None, subtotal: Figures) -> tuple[Any, ...]:
    return (
        -subtotal.revenue_micros,
        -subtotal.hold_micros,
        -subtotal.clicks,
        name is None,
        name or "",
    )


def _cut(lines: list[Line], limit: int, dimensions: Sequence[str]) -> list[Line]:
    if not limit:
        return lines
    return lines[-limit:] if dimensions[0] in TIMES else lines[:limit]


def _refuse_unknown_names(questions: Questions, query: ReportQuery) -> None:
    """Refuse a mistyped name, instead of adding up nothing."""
    for kind, listed in zip(NAMED, (questions.list_campaigns, questions.list_offers), strict=True):
        wanted = query.filters.get(kind)
        if wanted is None:
            continue
        names = [row["name"] for row in listed()]
        if wanted not in names:
            near = [name for name in names if name.casefold() == wanted.casefold()]
            near = near or difflib.get_close_matches(wanted, names, 1)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise RefusedError(f"no {kind} {wanted!r} is known{hint}: see `postback {kind}s list`")


def _build_object(line: Line, query: ReportQuery) -> dict[str, Any]:
    key = line.key or [None] * len(query.dimensions)
    return {
        **dict(zip(query.dimensions, key, strict=True)),
        **_list_numbers(line.figures, query),
        "unconverted": _write_amounts(line.figures.unconverted_micros),
        "unconverted_cost": _write_amounts(line.figures.unconverted_cost_micros),
        "total": line.key is None,
    }


def _build_row(line: Line, query: ReportQuery) -> list[str | None]:
    numbers = _list_numbers(line.figures, query).values()
    return [
        *_name_key(line, query),
        *[None if number is None else str(number) for number in numbers],
        describe_unconverted(line.figures) or None,
    ]


def _name_key(line: Line, query: ReportQuery) -> Sequence[str | None]:
    return [TOTAL, *[None] * (len(query.dimensions) - 1)] if line.key is None else line.key


def _list_numbers(figures: Figures, query: ReportQuery) -> dict[str, int | str | None]:
    conversions = figures.conversions
    return {
        "clicks": figures.clicks if query.counts_clicks else None,
        "leads": conversions[Status.LEAD],
        "sales": conversions[Status.SALE],
        "rebills": conversions[Status.REBILL],
        "rejected": conversions[Status.REJECTED],
        "approval_percent": _write_percent(figures.approval_basis_points),
        "revenue": micros_text(figures.revenue_micros),
        "hold": micros_text(figures.hold_micros),
        "cost": micros_text(figures.cost_micros),
        "profit": micros_text(figures.profit_micros),
        "roi_percent": _write_percent(figures.roi_basis_points),
    }


def _write_percent(basis_points: int | None) -> str | None:
    return None if basis_points is None else micros_text(basis_points * 10_000)


def _write_amounts(micros: dict[str, int]) -> dict[str, str]:
    return {currency: micros_text(micros[currency]) for currency in sorted(micros)}


def describe_unconverted(figures: Figures) -> str:
    """Write the amounts that are in no sum because they have no rate."""
    if not figures.unconverted_micros and not figures.unconverted_cost_micros:
        return ""
    payouts = _write_amounts(figures.unconverted_micros)
    costs = _write_amounts(figures.unconverted_cost_micros)
    parts = [f"{amount} {code}" for code, amount in payouts.items()]
    return ", ".join([*parts, *(f"cost {amount} {code}" for code, amount in costs.items())])


def _print_for_people(shown: list[Line], total: Line, query: ReportQuery, where: str) -> None:
    # Without any cost the profit is the revenue: columns that say nothing are left out.
    figure_columns = [
        column
        for column in FIGURE_COLUMNS
        if total.figures.cost_micros or column.title not in OF_COST
    ]
    kinds = [Kind.WORD if name in TIMES else Kind.TEXT for name in query.dimensions]
    columns = [*map(Column, query.dimensions, kinds), *figure_columns]
    rows = []
    for line, bar in zip((*shown, total), (*_build_bars(shown), ""), strict=True):
        numbers = _list_numbers(line.figures, query).values()
        cells = ["" if number is None else _round(number) for number in numbers]
        named = dict(zip([column.title for column in FIGURE_COLUMNS], [*cells, bar], strict=True))
        rows.append([*_show_key(line, query), *(named[column.title] for column in figure_columns)])
    output.print_table(columns, rows if shown else [], NOTHING)
    if shown:
        time = "click" if query.by_click_time else "conversion"
        output.print_footnote(f"By {time} time, {where}.")
    if unconverted := describe_unconverted(total.figures):
        output.print_footnote(
            f"In no sum, because no rate is known (`postback rates set`): {unconverted}."
        )


def _show_key(line: Line, query: ReportQuery) -> list[str]:
    if line.key is None:
        return [TOTAL, *[""] * (len(query.dimensions) - 1)]
    return [
        "(none)"
        if value is None
        else value.replace("T", " ").removesuffix("+00:00")
        if name in TIMES
        else value
        for name, value in zip(query.dimensions, line.key, strict=True)
    ]


def _round(number: int | str) -> str:
    """Round money to cents for a terminal: all other output is exact."""
    return str(number) if isinstance(number, int) else decimal_text(round(Decimal(number), 2))


def _build_bars(lines: Sequence[Line]) -> list[str]:
    """Build a bar for each line's revenue, or for its clicks where no line has revenue."""
    sizes = [line.figures.revenue for line in lines]
    if not any(sizes):
        sizes = [Decimal(line.figures.clicks) for line in lines]
    return output.build_bars(sizes, BAR_WIDTH)


def _read_dimensions(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in DIMENSIONS:
            known = ", ".join(name for name in DIMENSIONS if not name.startswith("sub_id_"))
            raise argparse.ArgumentTypeError(f"{name!r} is none of {known}, sub_id_1 … sub_id_30")
    return names


def _read_picture(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in chart.SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text!r} ends neither with .png nor with .svg")
    return path
