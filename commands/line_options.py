"""The options that say how lines of conversions are to be read, and what they come to."""

import argparse
from collections.abc import Mapping
from datetime import UTC

from commands.conversion_lines import LISTS_OF_WORDS
from commands.options import add_encoding, read_code, read_zone
from commands.report_file import COLUMN_NAMES, TIME
from query import LIST_NAMES
from statuses import Status


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """Add what says how a report is to be read."""
    for name in COLUMN_NAMES:
        parser.add_argument(
            f"--{name}-column",
            metavar="TITLE",
            help=f"the title or the number of the column with the {_MEANINGS[name]}",
        )
    parser.add_argument(
        "--no-titles",
        action="store_true",
        help="the first line is a row already; columns are given by number",
    )
    parser.add_argument(
        "--delimiter",
        choices=(",", ";", "tab"),
        help="what stands between the cells (default: what the line of titles shows)",
    )
    parser.add_argument(
        "--tz",
        type=read_zone,
        default=UTC,
        metavar="ZONE",
        help="the zone of the report's times, such as Europe/Moscow or +03:00 (default UTC)",
    )
    add_encoding(parser)


_MEANINGS: Mapping[str, str] = {
    "subid": "click id",
    "payout": "amount",
    "tid": "transaction id",
    "status": "status",
    "currency": "currency",
    TIME: "time of the conversion",
}


def add_line_options(parser: argparse.ArgumentParser) -> None:
    """Add what all lines of a file have in common: currency, decimal comma, the network's words."""
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


def read_lists(args: argparse.Namespace) -> dict[str, str]:
    """Give the lists of the network's words as a Postback URL has them."""
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
