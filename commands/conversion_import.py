"""`postback import`: conversions by line, each through the same engine as a live postback."""

import argparse
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime
from typing import Any, NamedTuple

import booking
import display
from booking import Arrival, Terms, read_terms
from cells import Column, Kind, rearm
from commands.conversion_lines import (
    LINE_NAMES,
    Line,
    LineReader,
    Said,
    add_line_options,
    read_lists,
)
from commands.csv_file import (
    DELIMITERS,
    CsvFile,
    Records,
    add_encoding,
    find_size,
    open_file,
    split_line,
)
from commands.exits import INTERRUPTED
from commands.options import Subparsers, add_command, add_json
from commands.tracker import RefusedError, load_keyless, writing
from config import Settings
from database import LOCK_POLL_SECONDS
from display import Bar
from query import quote_value
from rates import decimal_text
from rehearsal import LAST_REAL_ID, Rehearsal, rehearse
from rows import utc_text
from service import read_clock
from statuses import Incoming, Verdict
from storage import Storage

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

# The engine never saw such a line: it is no CSV, or its payout cannot be read.
SKIPPED = "skipped"
VERDICTS = (*(verdict.value for verdict in Verdict), SKIPPED)
# A word is ignored only where somebody asked for it.
NOT_TAKEN = frozenset({Verdict.REFUSED, Verdict.UNMAPPED, Verdict.INVALID, SKIPPED})

# How long lines are kept before the commit, whose sync comes on top: together the write lock is
# held for some 45 ms, and a live postback waits no longer.
WORK_SECONDS = 0.03
# By then the log has some two thousand pages, after which SQLite itself would move them.
PIECES_A_CHECKPOINT = 16

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
        " currency. Each line\ngoes the way of a live postback, and what is known already is"
        " repeated: importing a file twice\nchanges nothing more. With --force lines overrule what"
        " stands, and the history of the conversion\nsays forced. A terminal shows the lines that"
        " were not taken, a pipe all of them.\nExit status 1 where a line was not taken.",
    )
    parser.add_argument("file", metavar="FILE", help="the file; - reads standard input")
    add_line_options(parser)
    parser.add_argument("--network", metavar="NAME", help="the network's name, kept with them")
    parser.add_argument(
        "--delimiter",
        choices=(",", ";", "tab"),
        default=",",
        help="what stands between the fields (default a comma)",
    )
    add_encoding(parser)
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


def run(args: argparse.Namespace) -> int:
    """Take the lines of a file in."""
    settings = load_keyless(args)
    delimiter = "\t" if args.delimiter == "tab" else args.delimiter
    with open_file(args.file) as source, ExitStack() as stack:
        importer = _open_importer(args, settings, stack)
        csv_file = CsvFile(source, args.encoding)
        _skip_titles(csv_file, delimiter)
        reader = _build_reader(args, settings)
        with display.progress("conversions", find_size(source)) as bar:
            teller = _choose_teller(args, bar)
            teller.is_dry = args.dry_run
            is_stopped = _take_in(csv_file, delimiter, reader, importer, teller, bar)
    teller.close()
    _say_totals(teller, is_alone=args.json)
    if teller.counts[Verdict.UNMAPPED]:
        display.complain("say what the unmapped words mean: --status-map approved=sale")
    return INTERRUPTED if is_stopped else int(teller.not_taken > 0)


def _open_importer(
    args: argparse.Namespace, settings: Settings, stack: ExitStack
) -> "LineImporter":
    terms = read_terms(settings)
    if args.dry_run:
        rehearsal = stack.enter_context(rehearse(settings.db_path, terms))
        return RehearsedImporter(rehearsal, terms, read_clock, forces=args.force)
    storage = stack.enter_context(writing(settings))
    stack.enter_context(storage.bulk())
    return LineImporter(storage, terms, read_clock, forces=args.force)


def _build_reader(args: argparse.Namespace, settings: Settings) -> LineReader:
    return LineReader(
        read_terms(settings),
        read_lists(args),
        network=args.network,
        currency=args.currency,
        secrets=settings.secrets(),
        decimal_comma=args.decimal_comma,
    )


def _take_in(
    csv_file: CsvFile,
    delimiter: str,
    reader: LineReader,
    importer: "LineImporter",
    teller: "Teller",
    bar: Bar,
) -> bool:
    """Take all lines in; True where Ctrl-C ended it."""
    try:
        for records in csv_file.read(delimiter):
            for piece in importer.take(list(read_lines(records, reader))):
                teller.tell(piece)
            bar.advance_to(csv_file.find_position())
    except KeyboardInterrupt:
        teller.say_how_far("stopped", bar)
        return True
    except BaseException:
        # Whoever reads along may have left, the disk may be full: said where the lines end.
        teller.say_how_far("not done", bar)
        raise
    return False


def _skip_titles(csv_file: CsvFile, delimiter: str) -> None:
    """Take a line of titles off the file; raises RefusedError where lines cannot be meant so."""
    line = csv_file.peek_first_line()
    other = max(DELIMITERS, key=line.count)
    if delimiter == "," and other != ",":
        name = "tab" if other == "\t" else other
        raise RefusedError(
            f"the first line has more of {other!r} than of commas ({quote_value(line)}): if that"
            f" stands between the fields, say --delimiter {name!r}"
        )
    titles = [cell.strip().lower() for cell in split_line(line, delimiter)]
    if titles[0:1] != ["subid"] and not {"subid", "payout"} <= set(titles):
        return
    if tuple(titles) != LINE_NAMES[: len(titles)]:
        raise RefusedError(
            f"the first line names other columns than {','.join(LINE_NAMES)} ({quote_value(line)}):"
            " put them in that order (`postback reconcile` finds columns by name)"
        )
    csv_file.take_first_line()


def read_lines(records: Records, reader: LineReader) -> Iterator[Line]:
    """Read records as lines; empty ones are left out."""
    for number, cells in zip(records.numbers, records.cells, strict=True):
        if number in records.flaws:
            yield Line(number, Said(), flaw=records.flaws[number])
        elif any(cells[len(LINE_NAMES) :]):
            flaw = (
                f"{len(cells)} fields, and a line has {','.join(LINE_NAMES)}: is a value with"
                " commas unquoted?"
            )
            yield Line(number, Said(*cells[: len(LINE_NAMES)]), flaw=flaw)
        elif any(map(str.strip, cells)):
            fields = map(rearm, cells[: len(LINE_NAMES)])
            yield reader.read(number, Said(*fields))


class Told(NamedTuple):
    """What came of a line."""

    line: Line
    verdict: str
    reason: str
    warnings: tuple[str, ...] = ()
    conversion_id: int | None = None


class LineImporter:
    """Takes lines in pieces that hold the write lock for a moment each."""

    def __init__(
        self,
        storage: Storage,
        terms: Terms,
        read_clock: Callable[[], datetime],
        *,
        forces: bool = False,
    ) -> None:
        """Take the database, the terms of today, where to read the time, whether lines overrule."""
        self._storage = storage
        self._terms = terms
        self._read_clock = read_clock
        self._forces = forces
        self._pieces = 0

    def take(self, lines: Sequence[Line]) -> Iterator[list[Told]]:
        """Take lines in; what was given is on disk."""
        start = 0
        while start < len(lines):
            with self._storage.transaction():
                piece = self._keep(lines, start)
            yield piece
            start += len(piece)
            self._let_others_through()

    def _keep(self, lines: Sequence[Line], start: int) -> list[Told]:
        deadline = time.monotonic() + WORK_SECONDS
        at = utc_text(self._read_clock())
        piece: list[Told] = []
        for line in itertools.islice(lines, start, None):
            piece.append(self._keep_line(line, at))
            # Asked behind the line: on a busy machine the time may be over before the first.
            if time.monotonic() >= deadline:
                break
        return piece

    def _keep_line(self, line: Line, at: str) -> Told:
        if line.flaw or line.postback is None:
            return Told(line, SKIPPED, line.flaw)
        arrival = Arrival(
            at, "import", None, None, line.query, line.postback, is_forced=self._forces
        )
        outcome = booking.keep(self._storage, arrival, self._terms)
        return Told(
            line, outcome.verdict, outcome.reason.detail, outcome.warnings, outcome.conversion_id
        )

    def _let_others_through(self) -> None:
        self._pieces += 1
        if self._pieces % PIECES_A_CHECKPOINT == 0:
            # Beside the lock, so that no postback's commit has to do it.
            self._storage.checkpoint()
        # Those who wait look every LOCK_POLL_SECONDS: without a pause we would win every time.
        time.sleep(2 * LOCK_POLL_SECONDS)


class RehearsedImporter(LineImporter):
    """Takes lines into a copy of what they meet, which is thrown away."""

    def __init__(
        self,
        rehearsal: Rehearsal,
        terms: Terms,
        read_clock: Callable[[], datetime],
        *,
        forces: bool = False,
    ) -> None:
        """Take the copy, and the rest as `LineImporter` does."""
        super().__init__(rehearsal.storage, terms, read_clock, forces=forces)
        self._rehearsal = rehearsal

    def take(self, lines: Sequence[Line]) -> Iterator[list[Told]]:
        """Say what would come of lines."""
        self._rehearsal.take([line.query for line in lines if line.postback is not None])
        booking.settle_all_due_clicks(self._storage, self._terms, self._read_clock)
        for piece in super().take(lines):
            yield [_without_copied_id(told) for told in piece]


def _without_copied_id(told: Told) -> Told:
    is_copied = told.conversion_id is not None and told.conversion_id > LAST_REAL_ID
    return told._replace(conversion_id=None) if is_copied else told


class Teller:
    """Counts what came of the lines, and tells it; this one tells nothing."""

    def __init__(self) -> None:
        """Begin with no line."""
        self.counts: Counter[str] = Counter()
        self.last_line = 0
        self.is_dry = False

    @property
    def not_taken(self) -> int:
        """How many lines changed nothing and should have."""
        return sum(self.counts[verdict] for verdict in NOT_TAKEN)

    def tell(self, piece: Sequence[Told]) -> None:
        """Tell what came of lines that are on disk."""
        self.counts.update(told.verdict for told in piece)
        self.last_line = piece[-1].line.number
        self._show(piece)

    def say_how_far(self, why: str, bar: Bar) -> None:
        """Say where an import ended that did not come to the end."""
        if self.is_dry:
            bar.complain(f"{why}: nothing was written")
            return
        last = f"the lines through {self.last_line}" if self.last_line else "no lines"
        bar.complain(
            f"{why}: {last} are in, and maybe some after; import the file again, what is in is"
            " repeated"
        )

    def close(self) -> None:
        """Say what is left to say."""

    def _show(self, piece: Sequence[Told]) -> None:
        pass


class _TableTeller(Teller):
    def __init__(self) -> None:
        super().__init__()
        self._table = display.TablePrinter(COLUMNS, NOTHING)

    def close(self) -> None:
        self._table.close()

    def _show(self, piece: Sequence[Told]) -> None:
        self._table.print([build_cells(told) for told in piece])


class _JsonTeller(Teller):
    def _show(self, piece: Sequence[Told]) -> None:
        display.print_json(map(build_object, piece))


class _SentenceTeller(Teller):
    def __init__(self, bar: Bar) -> None:
        super().__init__()
        self._bar = bar
        self._said = 0
        self._unsaid = 0

    def close(self) -> None:
        if self._unsaid:
            display.complain(
                f"{self._unsaid} more lines had something of the kind: --verbose shows all"
            )

    def _show(self, piece: Sequence[Told]) -> None:
        for told in piece:
            if told.verdict not in NOT_TAKEN and not told.warnings:
                continue
            if self._said < SENTENCES_SHOWN:
                self._said += 1
                self._bar.complain(f"line {told.line.number}: {told.verdict}, {_explain(told)}")
            else:
                self._unsaid += 1


def _choose_teller(args: argparse.Namespace, bar: Bar) -> Teller:
    if args.json:
        return _JsonTeller()
    if display.is_terminal() and not args.verbose:
        return _SentenceTeller(bar)
    return _TableTeller()


def build_cells(told: Told) -> Sequence[str]:
    """Give the cells of a line."""
    row = build_object(told)
    amount = "" if row["amount"] is None else f"{row['amount']} {row['currency'] or '?'}"
    words = (row["subid"] or "", row["tid"], row["original_status"] or "")
    return (str(told.line.number), *words, amount, told.verdict, _explain(told))


def build_object(told: Told) -> dict[str, Any]:
    """Give a line as scripts see it, with the names of a postback."""
    # Not the line's own text: it may hold a key.
    postback = told.line.postback
    incoming = Incoming(None) if postback is None else postback.incoming
    has_amount = incoming.amount is not None
    return {
        "line": told.line.number,
        "subid": incoming.subid,
        "tid": incoming.tid,
        "original_status": incoming.word,
        "amount": None if incoming.amount is None else decimal_text(incoming.amount),
        "currency": incoming.currency if has_amount else None,
        "verdict": told.verdict,
        "reason": told.reason,
        "warnings": list(told.warnings),
        "conversion_id": told.conversion_id,
    }


def _explain(told: Told) -> str:
    return "; ".join((told.reason, *told.warnings))


def _say_totals(teller: Teller, *, is_alone: bool) -> None:
    counted = [f"{teller.counts[name]} {name}" for name in VERDICTS if teller.counts[name]]
    parts = ", ".join(counted) or "nothing in them"
    written = "; nothing was written" if teller.is_dry else ""
    sentence = f"{teller.counts.total()} lines: {parts}; {teller.not_taken} not taken{written}"
    display.say_beside(sentence, is_alone=is_alone)
