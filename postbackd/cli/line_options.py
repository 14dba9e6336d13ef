"""The options that say how lines of a file are read, and the readers built from them."""

import argparse
from collections.abc import Mapping, Sequence
from datetime import UTC

from postbackd.bulk.conversion_lines import LISTS_OF_WORDS, LineReader, find_common_currency
from postbackd.bulk.conversion_table import Columns
from postbackd.bulk.csv_file import UnusableFileError
from postbackd.bulk.moments import DateOrder, MomentReader
from postbackd.bulk.table_file import Shape
from postbackd.bulk.titles import PAYOUT, TIME
from postbackd.cli.options import add_encoding, add_zone, read_code, settle_times
from postbackd.config.settings import Settings
from postbackd.intake.booking import read_booking_options
from postbackd.intake.query import LIST_NAMES
from statuses import Status

_DELIMITERS = {",": ",", ";": ";", "tab": "\t", "|": "|", "bar": "|"}


def add_shape_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for a file's form: encoding, delimiter, lines to skip, sheet."""
    parser.add_argument(
        "--delimiter",
        choices=_DELIMITERS,
        help="the character between the cells (default: the one in the titles, else a comma)",
    )
    parser.add_argument(
        "--skip-lines",
        type=_read_count,
        default=0,
        metavar="N",
        help="skip the first N lines",
    )
    parser.add_argument(
        "--sheet", metavar="NAME", help="the sheet of a workbook (default: the one with titles)"
    )
    add_encoding(parser)


def read_shape(args: argparse.Namespace) -> Shape:
    """Return the values of the options of `add_shape_options`."""
    delimiter = None if args.delimiter is None else _DELIMITERS[args.delimiter]
    return Shape(args.encoding, delimiter, args.skip_lines, args.sheet)


def add_column_options(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Add an option for the column of each of these names."""
    for name in names:
        also = ["--amount-column"] if name == PAYOUT else []
        parser.add_argument(
            f"--{name}-column",
            *also,
            metavar="TITLE",
            help=f"the title or the number of the column with the {_MEANINGS[name]}",
        )
    parser.add_argument(
        "--no-titles",
        action="store_true",
        help="the first line is a row already; columns are given by number",
    )


def read_columns(args: argparse.Namespace) -> dict[str, str]:
    """Return the columns named by the options of `add_column_options`."""
    return {n: text for n in _MEANINGS if (text := getattr(args, f"{n}_column", None))}


def add_time_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for times: their zone, and whether day or month comes first in a date."""
    add_zone(parser, ", also of times in the file without one")
    parser.add_argument(
        "--dates",
        choices=[order.value for order in DateOrder],
        help="the part that comes first in 11/10/2026 (default: as the file's other dates show)",
    )


def settle_file_times(args: argparse.Namespace, settings: Settings) -> list[str]:
    """Do as `settle_times` does; give a note where a file's times are in the zone of the config."""
    is_said = args.tz is not None
    zone = settle_times(args, settings)
    if is_said or zone is UTC:
        return []
    return [f"times without a zone are read as times in {zone} (the config; --tz says otherwise)"]


def build_moments(args: argparse.Namespace) -> MomentReader:
    """Build the reader of times from the options of `add_time_options`."""
    return MomentReader(args.tz, None if args.dates is None else DateOrder(args.dates))


def _read_count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of lines; write 3")
    return int(text)


_MEANINGS: Mapping[str, str] = {
    "subid": "click id",
    "payout": "amount",
    "tid": "transaction id",
    "status": "status",
    "currency": "currency",
    TIME: "time of the conversion",
}


def add_line_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for all lines of a file: currency, decimal comma, the network's words."""
    parser.add_argument(
        "--currency",
        type=read_code,
        metavar="CODE",
        help="the currency of lines that name none (default: the tracker's)",
    )
    parser.add_argument("--decimal-comma", action="store_true", help="12,50 is twelve and a half")
    parser.add_argument(
        "--status-map",
        type=_read_status_map,
        action="append",
        default=[],
        metavar="WORD=STATUS,…",
        help="what the network's words mean, such as approved=sale,hold=lead,trash=ignore",
    )
    for status in Status:
        parser.add_argument(
            f"--{status}-status",
            metavar="WORDS",
            help=f"the network's words for {status}, with commas",
        )


def build_reader(
    args: argparse.Namespace, settings: Settings, columns: Columns, network: str | None = None
) -> LineReader:
    """Build the reader of a file's lines; UnusableFileError where its currency is ambiguous."""
    terms = read_booking_options(settings)
    currency = args.currency
    if columns.currency is not None:
        # The currency named in the amount's title.
        marks = (columns.currency,)
        currency = find_common_currency(marks, args.currency or "", terms.currency)
        if currency is None:
            raise UnusableFileError(
                f"the title of the amount has {columns.currency!r}, which may be several"
                " currencies: say which with --currency"
            )
    return LineReader(
        terms,
        read_lists(args),
        network=network,
        currency=currency,
        secrets=settings.secrets(),
        decimal_comma=args.decimal_comma,
    )


def read_lists(args: argparse.Namespace) -> dict[str, str]:
    """Return the lists of the network's words, as parameters of a Postback URL."""
    lists: dict[str, list[str]] = {}
    for status in Status:
        if words := getattr(args, f"{status}_status"):
            lists.setdefault(LISTS_OF_WORDS[status], []).append(words)
    for mapped in args.status_map:
        for word, status in mapped:
            lists.setdefault(LISTS_OF_WORDS[status], []).append(word)
    return {name: ",".join(lists[name]) for name in LIST_NAMES if name in lists}


def _read_status_map(text: str) -> list[tuple[str, str]]:
    pairs = []
    for part in text.split(","):
        word, equals, status = (piece.strip() for piece in part.rpartition("="))
        if not equals or not word or status.lower() not in LISTS_OF_WORDS:
            known = ", ".join(LISTS_OF_WORDS)
            raise argparse.ArgumentTypeError(
                f"{part!r} is no WORD=STATUS; write approved=sale, with one of {known}"
            )
        pairs.append((word, status.lower()))
    return pairs
