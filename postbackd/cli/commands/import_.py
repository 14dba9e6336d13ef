"""`postback import`: conversions by line, each judged like a live postback."""

import argparse
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, BinaryIO

from postbackd.bulk.conversion_importer import (
    SKIPPED,
    ImportedLine,
    LineImporter,
    RehearsedImporter,
)
from postbackd.bulk.conversion_lines import LINE_NAMES, LineReader
from postbackd.bulk.conversion_table import ConversionTable
from postbackd.bulk.csv_file import UnusableFileError, find_size, open_file
from postbackd.bulk.odd_rows import describe_aside
from postbackd.bulk.table_file import Titles
from postbackd.bulk.titles import PAYOUT
from postbackd.cli import output
from postbackd.cli.commands.import_caught import (
    add_caught_options,
    refuse_caught_options,
    run_caught,
)
from postbackd.cli.context import INTERRUPTED, load_keyless, writing
from postbackd.cli.line_options import (
    add_column_options,
    add_line_options,
    add_shape_options,
    build_reader,
    read_columns,
    read_shape,
)
from postbackd.cli.options import Subparsers, add_command, add_json
from postbackd.cli.output import Bar
from postbackd.cli.sanitize import Column, Kind
from postbackd.config.settings import Settings
from postbackd.intake.booking import read_booking_options
from postbackd.intake.runtime import read_clock
from postbackd.intake.sandbox import rehearse
from rates import decimal_text
from statuses import Incoming, Verdict

COLUMNS = (
    Column("line"),
    Column("subid"),
    Column("tid"),
    Column("status"),
    Column("amount", Kind.MONEY),
    Column("verdict", Kind.WORD),
    Column("reason", Kind.SENTENCE),
)
NOTHING = "The file has no lines."

VERDICTS = (*(verdict.value for verdict in Verdict), SKIPPED)


# More would hide the summary on a terminal; a pipe and --verbose show every line.
SENTENCES_SHOWN = 20


def add_parser(subparsers: Subparsers) -> None:
    """Add `import`."""
    parser = add_command(
        subparsers,
        "import",
        run,
        "import conversions, one a line: subid,payout,tid,status",
        "postback import conversions.csv\n  postback import --status-map approved=sale - < file",
        more="Lines are as for Keitaro's import: empty fields keep their commas, fields at the end"
        " may be missing,\nno status means sale, rejected removes. A fifth field may name the"
        " currency. Under a line\nof titles columns are found by their titles (Sub ID, Click ID,"
        " Transaction ID, Payout, Commission …)\nin any order, or given by options. Amounts are"
        " read as people write them ($1,234.50, 12,50 EUR,\n(5.40)), except those with two"
        " readings. Each line is judged like a live postback: a known\nconversion is repeated, and"
        " importing a file twice changes nothing more. With --force lines make\nchanges that the"
        " rules refuse, and the history of the conversion says forced. A terminal shows the\n"
        "lines that were not imported, a pipe all lines. Exit status 1 where a line was not"
        " imported, or\nrepeats a conversion with another amount.",
    )
    parser.add_argument("file", metavar="FILE", help="the file; - reads standard input")
    add_line_options(parser)
    parser.add_argument("--network", metavar="NAME", help="the network's name, stored with them")
    add_column_options(parser, LINE_NAMES)
    add_shape_options(parser)
    parser.add_argument(
        "--force",
        action="store_true",
        help="also make changes that the rules refuse to networks (rejected to sale, sale to"
        " lead), and replace stored amounts; try --dry-run first",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only show the verdicts; write nothing"
    )
    parser.add_argument("--verbose", action="store_true", help="show every line on a terminal, too")
    add_json(parser)
    add_caught_options(parser)


def run(args: argparse.Namespace) -> int:
    """Import the lines of a file, or the requests that nginx caught."""
    if args.caught:
        return run_caught(args)
    refuse_caught_options(args)
    settings = load_keyless(args)
    with open_file(args.file) as source, ExitStack() as stack:
        importer = _open_importer(args, settings, stack)
        table = _open_table(source, args)
        reader = build_reader(args, settings, table.columns, args.network)
        reader.amounts.learn(table.look_through(PAYOUT))
        if doubt := table.find_doubt(importer.find_known):
            raise UnusableFileError(doubt)
        with output.progress("conversions", find_size(source)) as bar:
            _print_columns(table, bar)
            printer = _choose_printer(args, bar)
            printer.is_dry = args.dry_run
            is_stopped = _import_lines(table, reader, importer, printer, bar)
    printer.close()
    if aside := describe_aside(table.aside):
        output.print_error(aside)
    _print_totals(printer, is_alone=args.json)
    if printer.counts[Verdict.UNMAPPED]:
        output.print_error("say what the unmapped words mean: --status-map approved=sale")
    return INTERRUPTED if is_stopped else int(printer.not_taken > 0)


def _open_importer(args: argparse.Namespace, settings: Settings, stack: ExitStack) -> LineImporter:
    terms = read_booking_options(settings)
    if args.dry_run:
        rehearsal = stack.enter_context(rehearse(settings.db_path, terms))
        return RehearsedImporter(rehearsal, terms, read_clock, forces=args.force)
    storage = stack.enter_context(writing(settings))
    stack.enter_context(storage.bulk())
    return LineImporter(storage, terms, read_clock, forces=args.force)


def _open_table(source: BinaryIO, args: argparse.Namespace) -> ConversionTable:
    given = read_columns(args)
    wanted = Titles.NEEDED if given else Titles.POSSIBLE
    if args.no_titles:
        wanted = Titles.NONE
        given = given or {name: str(number) for number, name in enumerate(LINE_NAMES, 1)}
    shape, has_comma = read_shape(args), args.decimal_comma
    return ConversionTable(source, shape, given, wanted, names=LINE_NAMES, decimal_comma=has_comma)


def _print_columns(table: ConversionTable, bar: Bar) -> None:
    """Print which column is which, where the file has titles."""
    notes = list(table.notes)
    if table.columns.titles and not table.is_in_order:
        notes.append(table.columns.describe())
        notes.append(table.columns.describe_unread())
        if "status" not in table.columns.places:
            notes.append("no column is the status: every row is a sale")
        if PAYOUT not in table.columns.places:
            notes.append("no column is the amount (--amount-column): rows are imported without one")
    for note in filter(None, notes):
        bar.print_error(note)


def _import_lines(
    table: ConversionTable,
    reader: LineReader,
    importer: LineImporter,
    printer: "ImportPrinter",
    bar: Bar,
) -> bool:
    """Import all lines; True where Ctrl-C ended it."""
    try:
        for rows in table.read():
            lines = [reader.read(row.number, row.said, row.flaw) for row in rows]
            for piece in importer.take(lines):
                printer.print(piece)
            bar.advance_to(table.find_position())
    except KeyboardInterrupt:
        printer.print_end("stopped", bar)
        return True
    except BaseException:
        # The pipe's reader may have gone, the disk may be full: print where the import ended.
        printer.print_end("not done", bar)
        raise
    return False


class ImportPrinter:
    """Counts verdicts and prints lines; this class prints nothing."""

    def __init__(self) -> None:
        """Begin with no lines."""
        self.counts: Counter[str] = Counter()
        self.last_line = 0
        # The number of lines that changed nothing and should have.
        self.not_taken = 0
        self.is_dry = False

    def print(self, piece: Sequence[ImportedLine]) -> None:
        """Count and print lines that are on disk."""
        self.counts.update(imported.verdict for imported in piece)
        self.not_taken += sum(not imported.is_taken for imported in piece)
        self.last_line = piece[-1].line.number
        self._show(piece)

    def print_end(self, why: str, bar: Bar) -> None:
        """Print where an import ended before its end."""
        if self.is_dry:
            bar.print_error(f"{why}: nothing was written")
            return
        last = f"the lines up to {self.last_line}" if self.last_line else "no lines"
        bar.print_error(
            f"{why}: {last} are imported, and maybe some after it; import the file again: what is"
            " imported already is only repeated"
        )

    def close(self) -> None:
        """Print what is left to print."""

    def _show(self, piece: Sequence[ImportedLine]) -> None:
        pass


class _TablePrinter(ImportPrinter):
    def __init__(self) -> None:
        super().__init__()
        self._table = output.TablePrinter(COLUMNS, NOTHING)

    def close(self) -> None:
        self._table.close()

    def _show(self, piece: Sequence[ImportedLine]) -> None:
        self._table.print([build_cells(imported) for imported in piece])


class _JsonPrinter(ImportPrinter):
    def _show(self, piece: Sequence[ImportedLine]) -> None:
        output.print_json(map(build_object, piece))


class _SentencePrinter(ImportPrinter):
    def __init__(self, bar: Bar) -> None:
        super().__init__()
        self._bar = bar
        self._printed = 0
        self._unprinted = 0

    def close(self) -> None:
        if self._unprinted:
            output.print_error(
                f"{self._unprinted} more lines had such a message: --verbose shows all"
            )

    def _show(self, piece: Sequence[ImportedLine]) -> None:
        for imported in piece:
            if imported.is_taken and not imported.warnings:
                continue
            if self._printed < SENTENCES_SHOWN:
                self._printed += 1
                self._bar.print_error(
                    f"line {imported.line.number}: {imported.verdict}, {_explain(imported)}"
                )
            else:
                self._unprinted += 1


def _choose_printer(args: argparse.Namespace, bar: Bar) -> ImportPrinter:
    if args.json:
        return _JsonPrinter()
    if output.is_terminal() and not args.verbose:
        return _SentencePrinter(bar)
    return _TablePrinter()


def build_cells(imported: ImportedLine) -> Sequence[str]:
    """Build the cells of a line."""
    row = build_object(imported)
    amount = "" if row["amount"] is None else f"{row['amount']} {row['currency'] or '?'}"
    words = (row["subid"] or "", row["tid"], row["original_status"] or "")
    return (str(imported.line.number), *words, amount, imported.verdict, _explain(imported))


def build_object(imported: ImportedLine) -> dict[str, Any]:
    """Build the JSON object of a line, with the names of a postback."""
    # Not the line's own text: it may hold a key.
    postback = imported.line.postback
    incoming = Incoming(None) if postback is None else postback.incoming
    # What is skipped may have been for its amount: none of its readings is shown as one.
    amount = None if imported.verdict == SKIPPED else incoming.amount
    return {
        "line": imported.line.number,
        "subid": incoming.subid,
        "tid": incoming.tid,
        "original_status": incoming.word,
        "amount": None if amount is None else decimal_text(amount),
        "currency": None if amount is None else incoming.currency,
        "verdict": imported.verdict,
        "reason": imported.reason,
        "warnings": list(imported.warnings),
        "conversion_id": imported.conversion_id,
    }


def _explain(imported: ImportedLine) -> str:
    return "; ".join((imported.reason, *imported.warnings))


def _print_totals(printer: ImportPrinter, *, is_alone: bool) -> None:
    counted = [f"{printer.counts[name]} {name}" for name in VERDICTS if printer.counts[name]]
    parts = ", ".join(counted) or "nothing in them"
    written = "; nothing was written" if printer.is_dry else ""
    sentence = f"{printer.counts.total()} lines: {parts}; {printer.not_taken} not taken{written}"
    output.print_summary(sentence, is_alone=is_alone)
