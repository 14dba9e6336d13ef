"""`postback reconcile`: a network's own report compared with the conversions."""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import tzinfo
from decimal import Decimal
from typing import Any

from postbackd.bulk.comparison import (
    AGREE,
    AMOUNT,
    CURRENCY,
    DIFFERENCES,
    IGNORED,
    MISSING,
    STATUS,
    UNMAPPED,
    Comparison,
    DateRange,
    Finding,
    Money,
    Side,
)
from postbackd.bulk.conversion_lines import LINE_NAMES
from postbackd.bulk.conversion_table import ConversionTable
from postbackd.bulk.csv_file import open_file
from postbackd.bulk.odd_rows import describe_aside
from postbackd.bulk.report_file import ReportFile
from postbackd.bulk.table_file import Titles
from postbackd.bulk.titles import COLUMN_NAMES, PAYOUT, TIME
from postbackd.cli import output
from postbackd.cli.context import load_keyless, reading
from postbackd.cli.line_options import (
    add_column_options,
    add_line_options,
    add_shape_options,
    add_time_options,
    build_moments,
    build_reader,
    read_columns,
    read_shape,
    settle_file_times,
)
from postbackd.cli.options import Subparsers, add_command, add_json, add_since, add_until
from postbackd.cli.sanitize import Column, Kind
from rates import read_amount

# The differences that `import` can correct in the database.
MENDABLE = frozenset({MISSING, STATUS, AMOUNT, CURRENCY})
# Digits that we wrote: no spreadsheet can take them for a formula.
EXACT_NAMES = frozenset({"payout"})

COLUMNS = (
    Column("line"),
    Column("differs", Kind.WORD),
    Column("subid"),
    Column("tid"),
    Column("reason", Kind.SENTENCE),
)
NOTHING = "Nothing differs."

# In a pipe, each value in a column of its own.
NAMES = (
    "line",
    "differences",
    "subid",
    "tid",
    "reported_status",
    "reported_amount",
    "reported_currency",
    "status",
    "amount",
    "currency",
    "conversion_id",
    "reason",
)

Show = Callable[[Iterable[Finding]], None]


def add_parser(subparsers: Subparsers) -> None:
    """Add `reconcile`."""
    parser = add_command(
        subparsers,
        "reconcile",
        run,
        "compare a network's own report with the conversions",
        "postback reconcile report.csv --status-map approved=sale\n"
        "  postback reconcile report.csv --csv | postback import -",
        more="Columns are found by their titles (subid, click_id, aff_sub, transaction_id, payout,"
        " commission,\nstatus …) or given; where two may be the amount, --amount-column says which."
        " Amounts are read as\npeople write them. Differences: missing (in the database), extra"
        " (not in the report), status, amount,\ncurrency, twice (in the report), unmapped,"
        " unreadable, uncompared (neither status nor amount)."
        " Extra\nconversions are searched among the networks of the conversions that were found,"
        " in the time span of\nthe report, unless --network, --since and --until say otherwise."
        " Amounts of rejected conversions are\nnot compared. Nothing is written. Exit status 1"
        " where something differs.",
    )
    parser.add_argument("file", metavar="FILE", help="the report; - reads standard input")
    add_column_options(parser, COLUMN_NAMES)
    add_shape_options(parser)
    add_time_options(parser)
    add_line_options(parser)
    parser.add_argument(
        "--tolerance",
        type=_read_tolerance,
        default=Decimal(0),
        metavar="AMOUNT",
        help="amounts that differ by this or less are equal, such as 0.01 (default 0)",
    )
    parser.add_argument("--network", help="search extra conversions with from=NETWORK only")
    add_since(parser)
    add_until(parser)
    parser.add_argument(
        "--only",
        action="append",
        choices=DIFFERENCES,
        help="show these differences only; may be given several times",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--csv",
        action="store_true",
        help="write the report's rows that are missing or differ as CSV for `postback import`",
    )
    add_json(form)


def run(args: argparse.Namespace) -> int:
    """Compare a report."""
    settings = load_keyless(args)
    zone_notes = settle_file_times(args, settings)
    with open_file(args.file) as source, reading(settings) as questions:
        wanted = Titles.NONE if args.no_titles else Titles.NEEDED
        given = read_columns(args)
        has_comma = args.decimal_comma
        table = ConversionTable(source, read_shape(args), given, wanted, decimal_comma=has_comma)
        reader = build_reader(args, settings, table.columns)
        report = ReportFile(table, reader, build_moments(args))
        _print_columns(table)
        if TIME in table.columns.places:
            for note in zone_notes:
                output.print_error(note)
        if doubt := table.find_doubt(questions.find_subids):
            output.print_error(doubt)
        has_more = not {"status", PAYOUT}.isdisjoint(table.columns.places)
        comparison = Comparison(questions, args.tolerance, has_more_than_ids=has_more, zone=args.tz)
        show, close = _choose_output(args)
        for rows in report.read():
            show(comparison.compare(rows))
        span = comparison.find_span(args.since, args.until, args.network)
        if span is not None:
            show(comparison.find_extra(span))
        close()
    _print_file_notes(table, report)
    _print_bounds(comparison, span, args.tz, takes_over=settings.repeats == "update")
    _print_totals(comparison, is_alone=args.csv or args.json)
    return int(any(comparison.counts[name] for name in DIFFERENCES))


def _print_columns(table: ConversionTable) -> None:
    """Print which column is which, and what is not compared."""
    for note in (*table.notes, table.columns.describe()):
        output.print_error(note)
    places = table.columns.places
    if "status" not in places and PAYOUT not in places:
        output.print_error(
            "no column is known to be a status or an amount, so only the existence of conversions"
            " is compared: name them with --status-column and --amount-column"
        )
    elif "status" not in places:
        output.print_error("no column is the status: every row counts as a sale")
    elif PAYOUT not in places:
        output.print_error("no column is the amount: amounts are not compared")


def _print_file_notes(table: ConversionTable, report: ReportFile) -> None:
    if aside := describe_aside(table.aside):
        output.print_error(aside)
    if report.untimed:
        output.print_error(
            f"times of {report.untimed} rows were not read, the first in {report.first_untimed}"
        )


def _choose_output(args: argparse.Namespace) -> tuple[Show, Callable[[], None]]:
    wanted = frozenset(args.only or (MENDABLE if args.csv else DIFFERENCES))

    def choose(findings: Iterable[Finding]) -> Iterator[Finding]:
        return (finding for finding in findings if not wanted.isdisjoint(finding.differences))

    if args.csv:
        write = output.CsvPrinter(LINE_NAMES, EXACT_NAMES).print
        return lambda findings: write(map(_build_line, _with_sides(choose(findings)))), _nothing
    if args.json:
        return lambda findings: output.print_json(map(build_object, choose(findings))), _nothing
    is_terminal = output.is_terminal()
    build = _build_cells if is_terminal else _build_values
    table = output.TablePrinter(COLUMNS if is_terminal else [*map(Column, NAMES)], NOTHING)
    return lambda findings: table.print_all(map(build, choose(findings))), table.close


def _nothing() -> None:
    pass


def _with_sides(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Leave out findings without a conversion on either side."""
    return (finding for finding in findings if finding.reported or finding.held)


def build_object(finding: Finding) -> dict[str, Any]:
    """Build the JSON object of a finding."""
    reported, held = finding.reported or _NOBODY, finding.held or _NOBODY
    values = (
        finding.line,
        list(finding.differences),
        finding.subid,
        finding.tid,
        reported.status or None,
        *reported.money,
        held.status or None,
        *held.money,
        finding.conversion_id,
        finding.reason or _describe_both(finding.reported, finding.held),
    )
    return dict(zip(NAMES, values, strict=True))


_NOBODY = Side("", Money())


def _build_values(finding: Finding) -> Sequence[str]:
    values = {**build_object(finding), "differences": ",".join(finding.differences)}
    return ["" if value is None else str(value) for value in values.values()]


def _build_cells(finding: Finding) -> Sequence[str]:
    reason = _describe_both(finding.reported, finding.held)
    return (
        str(finding.line or ""),
        ", ".join(finding.differences),
        finding.subid,
        finding.tid,
        "; ".join(part for part in (reason, finding.reason) if part),
    )


def _build_line(finding: Finding) -> Sequence[str | None]:
    side = finding.reported or finding.held
    assert side is not None
    amount, currency = side.money
    if amount is not None and currency is None and finding.held is not None:
        # An amount of the report without a currency is in the conversion's.
        currency = finding.held.money.currency
    return (finding.subid, amount, finding.tid, side.status, currency)


def _describe_both(reported: Side | None, held: Side | None) -> str:
    sides = (("the report", reported), ("here", held))
    return ", ".join(
        f"{name}: {side.status} {side.money.describe()}" for name, side in sides if side
    )


def _print_bounds(
    comparison: Comparison, span: DateRange | None, zone: tzinfo, *, takes_over: bool
) -> None:
    counts = comparison.counts
    no_span = "extra conversions were not searched: no row was found here (--network says whose)"
    output.print_error(span.describe(zone) if span else no_span)
    if counts[UNMAPPED]:
        output.print_error("say what the unmapped words mean: --status-map approved=sale")
    if (counts[AMOUNT] or counts[CURRENCY]) and not takes_over:
        output.print_error(
            'a stored amount is replaced with repeats = "update" or `import --force` only'
        )


def _print_totals(comparison: Comparison, *, is_alone: bool) -> None:
    counts = comparison.counts
    found = [f"{counts[name]} {name}" for name in (*DIFFERENCES, IGNORED) if counts[name]]
    parts = ", ".join([f"{counts[AGREE]} agree", *found])
    output.print_summary(f"{comparison.rows} rows: {parts}", is_alone=is_alone)


def _read_tolerance(text: str) -> Decimal:
    amount = read_amount(text)
    if amount is None or amount < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no amount; write 0.01")
    return amount
