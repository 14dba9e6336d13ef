"""`postback import`: conversions by line, each through the same engine as a live postback."""

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


# More would bury the summary of a terminal; a pipe and --verbose have every line.
SENTENCES_SHOWN = 20


def add_parser(subparsers: Subparsers) -> None:
    """Add `import`."""
    parser = add_command(
        subparsers,
        "import",
        run,
        "take conversions in, one a line: subid,payout,tid,status",
        "postback import conversions.csv\n  postback import --status-map approved=sale - < file",
        more="Lines are what Keitaro's import takes: empty fields keep their commas, those at the"
        " end may be\nmissing, no status means sale, rejected removes. A fifth field may name the"
        " currency. Under a line\nof titles columns are found by their titles (Sub ID, Click ID,"
        " Transaction ID, Payout, Commission …)\nin any order, or given. Amounts are read as people"
        " write them ($1,234.50, 12,50 EUR, (5.40)), but for\nthose with two readings. Each line"
        " goes the way of a live postback, and what is known already is\nrepeated: importing a"
        " file twice changes nothing more. With --force lines overrule what stands,\nand the"
        " history of the conversion says forced. A terminal shows the lines that were not taken,"
        " a\npipe all of them. Exit status 1 where a line was not taken, or repeats a conversion"
        " with another\namount.",
    )
    parser.add_argument("file", metavar="FILE", help="the file; - reads standard input")
    add_line_options(parser)
    parser.add_argument("--network", metavar="NAME", help="the network's name, kept with them")
    add_column_options(parser, LINE_NAMES)
    add_shape_options(parser)
    parser.add_argument(
        "--force",
        action="store_true",
        help="let lines move conversions as no network may (a rejected one to sale, a sale to"
        " lead), and replace amounts that stand; look at --dry-run first",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only show what would come of it; write nothing"
    )
    parser.add_argument("--verbose", action="store_true", help="show every line on a terminal, too")
    add_json(parser)
    add_caught_options(parser)


def run(args: argparse.Namespace) -> int:
    """Take the lines of a file in, or what nginx caught."""
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
            _tell_columns(table, bar)
            teller = _choose_teller(args, bar)
            teller.is_dry = args.dry_run
            is_stopped = _take_in(table, reader, importer, teller, bar)
    teller.close()
    if aside := describe_aside(table.aside):
        output.print_error(aside)
    _say_totals(teller, is_alone=args.json)
    if teller.counts[Verdict.UNMAPPED]:
        output.print_error("say what the unmapped words mean: --status-map approved=sale")
    return INTERRUPTED if is_stopped else int(teller.not_taken > 0)


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


def _tell_columns(table: ConversionTable, bar: Bar) -> None:
    """Say what is read as what, where the file does not have the order of lines."""
    notes = list(table.notes)
    if table.columns.titles and not table.is_in_order:
        notes.append(table.columns.describe())
        notes.append(table.columns.describe_unread())
        if "status" not in table.columns.places:
            notes.append("no column is the status: every row is a sale")
        if PAYOUT not in table.columns.places:
            notes.append("no column is the amount (--amount-column): rows come in without one")
    for note in filter(None, notes):
        bar.print_error(note)


def _take_in(
    table: ConversionTable,
    reader: LineReader,
    importer: LineImporter,
    teller: "ImportPrinter",
    bar: Bar,
) -> bool:
    """Take all lines in; True where Ctrl-C ended it."""
    try:
        for rows in table.read():
            lines = [reader.read(row.number, row.said, row.flaw) for row in rows]
            for piece in importer.take(lines):
                teller.tell(piece)
            bar.advance_to(table.find_position())
    except KeyboardInterrupt:
        teller.say_how_far("stopped", bar)
        return True
    except BaseException:
        # Whoever reads along may have left, the disk may be full: said where the lines end.
        teller.say_how_far("not done", bar)
        raise
    return False


class ImportPrinter:
    """Counts what came of the lines, and tells it; this one tells nothing."""

    def __init__(self) -> None:
        """Begin with no line."""
        self.counts: Counter[str] = Counter()
        self.last_line = 0
        # How many lines changed nothing and should have.
        self.not_taken = 0
        self.is_dry = False

    def tell(self, piece: Sequence[ImportedLine]) -> None:
        """Tell what came of lines that are on disk."""
        self.counts.update(told.verdict for told in piece)
        self.not_taken += sum(not told.is_taken for told in piece)
        self.last_line = piece[-1].line.number
        self._show(piece)

    def say_how_far(self, why: str, bar: Bar) -> None:
        """Say where an import ended that did not come to the end."""
        if self.is_dry:
            bar.print_error(f"{why}: nothing was written")
            return
        last = f"the lines through {self.last_line}" if self.last_line else "no lines"
        bar.print_error(
            f"{why}: {last} are in, and maybe some after; import the file again, what is in is"
            " repeated"
        )

    def close(self) -> None:
        """Say what is left to say."""

    def _show(self, piece: Sequence[ImportedLine]) -> None:
        pass


class _TableTeller(ImportPrinter):
    def __init__(self) -> None:
        super().__init__()
        self._table = output.TablePrinter(COLUMNS, NOTHING)

    def close(self) -> None:
        self._table.close()

    def _show(self, piece: Sequence[ImportedLine]) -> None:
        self._table.print([build_cells(told) for told in piece])


class _JsonTeller(ImportPrinter):
    def _show(self, piece: Sequence[ImportedLine]) -> None:
        output.print_json(map(build_object, piece))


class _SentenceTeller(ImportPrinter):
    def __init__(self, bar: Bar) -> None:
        super().__init__()
        self._bar = bar
        self._said = 0
        self._unsaid = 0

    def close(self) -> None:
        if self._unsaid:
            output.print_error(
                f"{self._unsaid} more lines had something of the kind: --verbose shows all"
            )

    def _show(self, piece: Sequence[ImportedLine]) -> None:
        for told in piece:
            if told.is_taken and not told.warnings:
                continue
            if self._said < SENTENCES_SHOWN:
                self._said += 1
                self._bar.print_error(f"line {told.line.number}: {told.verdict}, {_explain(told)}")
            else:
                self._unsaid += 1


def _choose_teller(args: argparse.Namespace, bar: Bar) -> ImportPrinter:
    if args.json:
        return _JsonTeller()
    if output.is_terminal() and not args.verbose:
        return _SentenceTeller(bar)
    return _TableTeller()


def build_cells(told: ImportedLine) -> Sequence[str]:
    """Give the cells of a line."""
    row = build_object(told)
    amount = "" if row["amount"] is None else f"{row['amount']} {row['currency'] or '?'}"
    words = (row["subid"] or "", row["tid"], row["original_status"] or "")
    return (str(told.line.number), *words, amount, told.verdict, _explain(told))


def build_object(told: ImportedLine) -> dict[str, Any]:
    """Give a line as scripts see it, with the names of a postback."""
    # Not the line's own text: it may hold a key.
    postback = told.line.postback
    incoming = Incoming(None) if postback is None else postback.incoming
    # What is skipped may have been for its amount: none of its readings is shown as one.
    amount = None if told.verdict == SKIPPED else incoming.amount
    return {
        "line": told.line.number,
        "subid": incoming.subid,
        "tid": incoming.tid,
        "original_status": incoming.word,
        "amount": None if amount is None else decimal_text(amount),
        "currency": None if amount is None else incoming.currency,
        "verdict": told.verdict,
        "reason": told.reason,
        "warnings": list(told.warnings),
        "conversion_id": told.conversion_id,
    }


def _explain(told: ImportedLine) -> str:
    return "; ".join((told.reason, *told.warnings))


def _say_totals(teller: ImportPrinter, *, is_alone: bool) -> None:
    counted = [f"{teller.counts[name]} {name}" for name in VERDICTS if teller.counts[name]]
    parts = ", ".join(counted) or "nothing in them"
    written = "; nothing was written" if teller.is_dry else ""
    sentence = f"{teller.counts.total()} lines: {parts}; {teller.not_taken} not taken{written}"
    output.print_summary(sentence, is_alone=is_alone)
