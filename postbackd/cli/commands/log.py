"""`postback log`: the received postbacks, with verdicts and reasons."""

import argparse
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, tzinfo

from postbackd.cli import output
from postbackd.cli.context import load_keyless, reading
from postbackd.cli.listed import Listed
from postbackd.cli.options import (
    DEFAULT_LIMIT,
    FORMATS,
    Subparsers,
    add_command,
    add_json,
    add_limit,
    add_since,
    add_until,
    add_zone,
    settle_times,
)
from postbackd.cli.sanitize import Column, Kind
from postbackd.intake.booking import BookingOptions, parse_stored, read_booking_options
from postbackd.intake.query import PAYOUT_NAMES
from postbackd.reports.listing import Row, RowFilter, of_click
from postbackd.reports.queries import Questions
from postbackd.zones import write_in_zone
from rates import decimal_text
from statuses import Verdict

# A narrow terminal leaves out the last ones first: `--json` and a pipe have all.
COLUMNS = (
    Column("time", Kind.TIME),
    Column("network"),
    Column("subid"),
    Column("status"),
    Column("amount", Kind.MONEY),
    Column("verdict", Kind.WORD),
    Column("reason", Kind.SENTENCE),
    Column("id", Kind.NUMBER, 1, yields=True),
    Column("address", Kind.WORD, 2, yields=True),
    Column("query", Kind.QUERY, 3, yields=True),
)
NOTHING = "No such postback has come in."

# Soon enough for a person who watches, rarely enough to cost nothing.
FOLLOW_SECONDS = 0.5


# instr, not LIKE: the case counts, and % is an ordinary character.
_HOLDS_TEXT = (
    "(instr(query, ?) OR instr(reason, ?) OR instr(warnings, ?)"
    " OR instr(coalesce(settled_reason, ''), ?))"
)


# A stored query may have 64 KiB; fields that cannot be part of the amount are not read. Letters of
# a name may be escapes: escapes of ASCII letters begin with 4 to 7.
_ESCAPED_LETTERS = ("%4", "%5", "%6", "%7")
_AMOUNT_NAMES = (*PAYOUT_NAMES, "payout_unit", "currency")
_NO_FIELDS = re.compile(r"&{2,}")
# No amount is that long.
_LONG_VALUE = re.compile(r"(^|&)([^&=]{0,64}=)[^&]{1024,}")
# A row of a table is for reading, and hiding keys in 64 KiB takes as long as a hundred rows do.
LONGEST_QUERY = 500
# Where fields are shorter on average, no single long value is worth leaving out.
LONG_FIELD = 64


MORE = f"""\
The amount is as sent. A terminal shows id, address and query if it is wide enough, a pipe and
--json always. Of a query beyond {LONGEST_QUERY} characters a table has the first fields,
--json has all, and UTC whatever the zone. --follow begins with the newest {DEFAULT_LIMIT}."""


def add_parser(subparsers: Subparsers) -> None:
    """Add `log`."""
    parser = add_command(
        subparsers,
        "log",
        run,
        "show received postbacks, the newest last",
        "postback log --subid c1\n  postback log --verdict unmapped --verdict parked --since 2d",
        more=f"{MORE}\n{FORMATS}",
    )
    parser.add_argument(
        "--verdict",
        action="append",
        choices=[verdict.value for verdict in Verdict],
        help="only postbacks with this verdict; may be given several times",
    )
    parser.add_argument("--subid", help="only postbacks of this click")
    parser.add_argument("--network", help="only postbacks with from=NETWORK")
    parser.add_argument(
        "--source",
        action="append",
        choices=("http", "pixel", "import", "replay", "caught"),
        help="only postbacks from this source; may be given several times",
    )
    parser.add_argument(
        "--grep", metavar="TEXT", help="only postbacks with this text in query, reason or warnings"
    )
    add_since(parser)
    add_until(parser)
    add_zone(parser)
    add_limit(parser)
    parser.add_argument(
        "--follow", action="store_true", help="go on showing new postbacks, until Ctrl-C"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Show the postbacks."""
    settings = load_keyless(args)
    settle_times(args, settings)
    wanted = read_wanted(args)
    with reading(settings) as questions:
        listed = Listed(args, lambda: questions.count_postbacks(wanted))
        show, close = _choose_output(args, read_booking_options(settings))
        newest = questions.find_last_postback_id()
        show(listed.pass_on("postbacks", questions.list_postbacks(wanted, listed.limit)))
        if args.follow:
            _follow(questions, _read_conditions(args), newest, show)
        close()
        if not args.json:
            listed.print_footnote()
    return 0


def read_wanted(args: argparse.Namespace) -> RowFilter:
    """Build the filter that the options ask for."""
    return _read_conditions(args).between("received_at", args.since, args.until)


def _read_conditions(args: argparse.Namespace) -> RowFilter:
    wanted = RowFilter() if args.subid is None else of_click(args.subid)
    wanted = wanted.where("verdict", args.verdict).where("source", args.source)
    if args.grep is not None:
        wanted = wanted.also(_HOLDS_TEXT, *[args.grep] * 4)
    return wanted if args.network is None else wanted.where("network", [args.network])


def _choose_output(
    args: argparse.Namespace, terms: BookingOptions
) -> tuple[Callable[[Iterable[Row]], None], Callable[[], None]]:
    if args.json:
        return output.print_json, lambda: None
    table = output.TablePrinter(COLUMNS, "" if args.follow else NOTHING)

    def build_all(rows: Iterable[Row]) -> Iterator[Sequence[str]]:
        return (build_cells(row, terms, args.tz) for row in rows)

    return lambda rows: table.print_all(build_all(rows)), table.close


def _follow(
    questions: Questions, wanted: RowFilter, newest: int, show: Callable[[Iterable[Row]], None]
) -> None:
    try:
        while True:
            last = questions.find_last_postback_id()
            while rows := questions.list_postbacks_between(newest, last, wanted):
                show(rows)
                newest = rows[-1]["id"]
            newest = last
            time.sleep(FOLLOW_SECONDS)
    except KeyboardInterrupt:
        return


def build_cells(row: Row, terms: BookingOptions, zone: tzinfo = UTC) -> Sequence[str]:
    """Build the cells of a postback."""
    return (
        write_in_zone(row["received_at"], zone),
        row["network"] or "",
        row["subid"] or "",
        row["original_status"] or "",
        describe_amount(row["query"], terms),
        row["verdict"],
        describe_reason(row, zone),
        str(row["id"]),
        row["remote_addr"] or "",
        shorten_query(row["query"]),
    )


def shorten_query(query: str) -> str:
    """Leave out the last fields of a long query; no part of a field, which may be part of a key."""
    if len(query) <= LONGEST_QUERY:
        return query
    end = query.rfind("&", 0, LONGEST_QUERY)
    return f"{query[: end + 1]}..."


def describe_amount(query: str, terms: BookingOptions) -> str:
    """Return the amount of a stored query, in the currency in which it was sent."""
    if not _may_name(query, PAYOUT_NAMES):
        return ""
    incoming = parse_stored(_leave_out(query), terms).incoming
    if incoming.amount is None:
        return ""
    return f"{decimal_text(incoming.amount)} {incoming.currency or '?'}"


def _may_name(text: str, names: Iterable[str]) -> bool:
    """Return whether one of these names may be in a query, in any case and with any escapes."""
    lower = text.lower()
    return any(sign in lower for sign in (*names, *_ESCAPED_LETTERS))


def _leave_out(query: str) -> str:
    """Remove fields that change no amount: those behind the last name, and long values."""
    short = _NO_FIELDS.sub("&", query)
    if len(short) > LONG_FIELD * (1 + short.count("&")):
        return _LONG_VALUE.sub(_leave_out_value, short)
    lower = short.lower()
    end = short.find("&", max(map(lower.rfind, (*_AMOUNT_NAMES, *_ESCAPED_LETTERS))))
    return short if end < 0 else short[:end]


def _leave_out_value(found: re.Match[str]) -> str:
    return found[0] if _may_name(found[2], _AMOUNT_NAMES) else f"{found[1]}{found[2]}"


def describe_reason(row: Row, zone: tzinfo = UTC) -> str:
    """Write the reason, the warnings, and the later verdict of a parked or replayed postback."""
    parts = [] if row["replay_of"] is None else [f"replay of {row['replay_of']}"]
    parts += [row["reason"], *row["warnings"]]
    if row["settled_verdict"] is not None:
        settled_at = write_in_zone(row["settled_at"], zone)
        parts.append(f"{settled_at}: {row['settled_verdict']}, {row['settled_reason']}")
    return "; ".join(parts)
