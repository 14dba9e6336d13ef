"""`postback replay`: received postbacks judged again, with corrections."""

import argparse
import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import tzinfo
from typing import Any

from postbackd.cli import output
from postbackd.cli.commands.log import describe_amount
from postbackd.cli.context import INTERRUPTED, RefusedError, load_settings, reading, writing
from postbackd.cli.options import (
    FORMATS,
    Subparsers,
    add_command,
    add_json,
    add_since,
    add_until,
    add_zone,
    settle_times,
)
from postbackd.cli.sanitize import Column, Kind
from postbackd.config.settings import Settings
from postbackd.intake import replay
from postbackd.intake.booking import (
    BookingOptions,
    parse_stored,
    read_booking_options,
    settle_all_due_clicks,
)
from postbackd.intake.query import KNOWN_NAMES, list_field_names, quote_value
from postbackd.intake.replay import Corrections, Effect, Original, Replayed
from postbackd.intake.runtime import read_clock
from postbackd.intake.sandbox import LAST_REAL_ID, Rehearsal, rehearse
from postbackd.masking import KeyMask
from postbackd.reports.listing import RowFilter, of_click
from postbackd.reports.queries import Questions
from postbackd.reports.replay_sums import Sums, Touched
from postbackd.zones import write_in_zone
from statuses import Verdict

COLUMNS = (
    Column("id", Kind.WORD),
    Column("time", Kind.TIME),
    Column("subid"),
    Column("status"),
    Column("amount", Kind.MONEY),
    Column("was", Kind.WORD),
    Column("verdict", Kind.WORD),
    Column("what", Kind.WORD),
    Column("conversion", Kind.WORD),
    Column("reason", Kind.SENTENCE),
)
NOTHING = "No such postback has come in."

# Enough to find the intended name: postbacks of one network all have the same names.
NAMES_REMEMBERED = 1000

MORE = """\
For postbacks that were misread, or that came before their status had a meaning. Choose them as with
`log`; correct them with --set and --rename; see the verdicts with --dry-run, which writes nothing
and ends with the sums before and after; then run the command without it. Conversions are booked as
if the postback had been right when it came: at its time, at its day's rate. Each replay is a row of
the postback log of its own (source replay, replay_of its original). The service may run. Ctrl-C is
safe: the same command continues from there, and a run after the last change does nothing.

With --force they also make changes that the rules refuse: a misread sale becomes a lead again, a
rejected conversion a sale, a stored amount is replaced; the history of the conversion says forced.
A conversion that was booked by the same query stays even so.

what: added (a new conversion), changed (a conversion changed), noted (another verdict, and no
conversion changed), left (nothing)."""

EXAMPLE = """\
postback replay --verdict unmapped --network net --set sale_status=approved --dry-run
  postback replay --verdict invalid --since 2d --rename aff_sub=subid
  postback replay --id 17 --rename 'order[click]=subid' --rename 'order[value]=payout'
  postback replay --id 17 --set payout=12.50 --set currency=EUR
  postback replay --id 17 --set status=lead --force --dry-run"""


def add_parser(subparsers: Subparsers) -> None:
    """Add `replay`."""
    parser = add_command(
        subparsers,
        "replay",
        run,
        "judge received postbacks again, with corrections",
        EXAMPLE,
        more=f"{MORE}\n\n{FORMATS}",
    )
    _add_choice(parser)
    parser.add_argument(
        "--set",
        dest="values",
        action="append",
        type=_read_value,
        default=[],
        metavar="NAME=VALUE",
        help="add this parameter, in place of any that came with this name; an empty VALUE removes"
        " it: --set sale_status=approved,paid",
    )
    parser.add_argument(
        "--rename",
        dest="renames",
        action="append",
        type=_read_rename,
        default=[],
        metavar="OLD=NEW",
        help="read the parameter OLD as NEW, in place of any NEW that came; postbacks without OLD"
        " stay as they are: --rename aff_sub=subid; a nested field has PHP's name, also within"
        " JSON in a field: --rename 'order[id]=tid'",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="also make changes that the rules refuse to networks (rejected to sale, sale to lead),"
        " with their amounts; try --dry-run first",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only show the verdicts; write nothing"
    )
    parser.add_argument("--totals", action="store_true", help="show only the counts")
    add_json(parser)


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--id",
        dest="ids",
        action="append",
        type=_read_id,
        metavar="N",
        help="this postback (`postback log --json` shows ids); may be given several times",
    )
    parser.add_argument(
        "--verdict",
        action="append",
        choices=[verdict.value for verdict in Verdict],
        help="postbacks that got this verdict when they came; may be given several times",
    )
    parser.add_argument("--subid", help="postbacks of this click")
    parser.add_argument("--network", help="postbacks with from=NETWORK")
    add_since(parser)
    add_until(parser)
    add_zone(parser)


def run(args: argparse.Namespace) -> int:
    """Judge the postbacks again, or only show their verdicts."""
    if not (args.ids or args.verdict or args.subid or args.network or args.since or args.until):
        args.parser.error("say which: --id, --verdict, --subid, --network, --since or --until")
    settings = load_settings(args)
    settle_times(args, settings)
    corrections = _read_mending(args, settings)
    tally: Counter[Effect] = Counter()
    missing = Missing(corrections)
    sums: list[tuple[Sums, Sums]] = []
    is_stopped = False
    with reading(settings) as questions:
        _refuse_strange_ids(questions, args.ids or [])
        show, close = _choose_output(args, read_booking_options(settings))
        try:
            for batch in _replay(args, settings, questions, corrections, sums):
                tally.update(replayed.effect for replayed in batch)
                missing.look_at(batch)
                show(batch)
        except KeyboardInterrupt:
            is_stopped = True
        close()
    _print_totals(args, tally, sums[0] if sums else None, is_stopped=is_stopped)
    if sums and not (args.totals and args.json) and _CHANGING.intersection(tally):
        line = _describe_sums(*sums[0], settings.currency, is_dry=args.dry_run)
        if args.totals:
            output.print_line(line)
        else:
            output.print_summary(line, is_alone=args.json)
    if is_stopped:
        return INTERRUPTED
    for complaint in missing.describe() if tally else ():
        output.print_error(complaint)
    return 1 if tally and missing.names else 0


class Missing:
    """The names of --rename that no postback had, and names that came instead."""

    def __init__(self, corrections: Corrections) -> None:
        """Begin with all names."""
        self._mending = corrections
        self.names = list(corrections.renames)
        self._came: dict[str, None] = {}

    def look_at(self, batch: Sequence[Replayed]) -> None:
        """Remove the names that these postbacks have."""
        for replayed in batch:
            if not self.names:
                return
            query = replayed.original.query
            absent = self._mending.find_missing(query)
            self.names = [name for name in self.names if name in absent]
            if len(self._came) < NAMES_REMEMBERED:
                self._came |= dict.fromkeys(list_field_names(query))

    def describe(self) -> Iterator[str]:
        """Write for each name that no field had it, and the nearest names."""
        for name in self.names:
            near = difflib.get_close_matches(name, self._came, 3, 0) or ["no field at all"]
            names = ", ".join(map(quote_value, near))
            yield f"no postback has a field {name!r}; the nearest that came: {names}"


def _replay(
    args: argparse.Namespace,
    settings: Settings,
    questions: Questions,
    corrections: Corrections,
    sums: list[tuple[Sums, Sums]],
) -> Iterator[list[Replayed]]:
    """Put them through; once all are, the sums before and after are in `sums`."""
    terms = read_booking_options(settings)
    pages = _list_originals(args, questions)
    with ExitStack() as stack:
        # A rehearsal's own rows have higher ids, too.
        last_id = questions.find_last_postback_id()
        if args.dry_run:
            rehearsal = stack.enter_context(rehearse(settings.db_path, terms))
            storage, pages = rehearsal.storage, _copy_along(rehearsal, pages, corrections, terms)
        else:
            storage = stack.enter_context(writing(settings))
            # Postbacks parked for clicks of other programs come before any replay.
            settle_all_due_clicks(storage, terms, read_clock)
        touched = Touched(last_id)
        for page in pages:
            for batch in replay.replay_all(storage, page, corrections, terms, read_clock):
                touched.note(
                    replayed.conversion_id
                    for replayed in batch
                    if replayed.effect in _CHANGING and replayed.conversion_id is not None
                )
                yield batch
        sums.append(touched.add_up(storage.db))


_CHANGING = frozenset({Effect.ADDED, Effect.CHANGED})


def _copy_along(
    rehearsal: Rehearsal,
    pages: Iterator[list[Original]],
    corrections: Corrections,
    terms: BookingOptions,
) -> Iterator[list[Original]]:
    """Copy the rows that each page of postbacks can touch to the sandbox, then yield the page."""
    for page in pages:
        queries = [corrections.apply(original.query) for original in page]
        rehearsal.take(queries, [original.id for original in page])
        settle_all_due_clicks(rehearsal.storage, terms, read_clock)
        yield page


def _list_originals(args: argparse.Namespace, questions: Questions) -> Iterator[list[Original]]:
    """List the chosen postbacks that are stored now, by id, in pages."""
    # `+` keeps SQLite from the index over times: it would sort for every page.
    wanted = RowFilter() if args.subid is None else of_click(args.subid)
    wanted = wanted.where("id", args.ids).where("verdict", args.verdict)
    wanted = wanted.where("network", [args.network] if args.network else None)
    wanted = wanted.between("+received_at", args.since, args.until).also(
        "source NOT IN ('replay', 'operator')"
    )
    first, last = questions.find_postback_ids(args.since, args.until)
    after = first - 1
    while rows := questions.list_postbacks_between(after, last, wanted):
        yield [Original(*(row[name] for name in Original._fields)) for row in rows]
        after = rows[-1]["id"]


def _refuse_strange_ids(questions: Questions, ids: Sequence[int]) -> None:
    rows = questions.list_postbacks(RowFilter().where("id", ids), 0) if ids else ()
    found = {row["id"]: row for row in rows}
    for wanted in ids:
        if wanted not in found:
            raise RefusedError(f"there is no postback {wanted}: `postback log --json` shows ids")
        if found[wanted]["source"] == "operator":
            raise RefusedError(
                f"postback {wanted} is none: an operator's change, which"
                " `postback conversions set` makes and unmakes"
            )
        if found[wanted]["source"] == "replay":
            raise RefusedError(
                f"postback {wanted} is a replay itself: replay its original,"
                f" {found[wanted]['replay_of']}"
            )


def _read_mending(args: argparse.Namespace, settings: Settings) -> Corrections:
    mask = KeyMask(settings.secrets())
    # Keys are hidden before the value is written into a query, which adds a layer of escapes.
    values = {name: mask.hide(value) for name, value in args.values}
    return Corrections(dict(args.renames), values, mask, forces=args.force)


def _choose_output(
    args: argparse.Namespace, terms: BookingOptions
) -> tuple[Callable[[list[Replayed]], None], Callable[[], None]]:
    if args.totals:
        return lambda batch: None, lambda: None
    if args.json:
        return lambda batch: output.print_json(_describe(one, terms) for one in batch), (
            lambda: None
        )
    table = output.TablePrinter(COLUMNS, NOTHING)

    def show(batch: list[Replayed]) -> None:
        table.print([_build_cells(one, terms, args.tz) for one in batch])

    return show, table.close


def _print_totals(
    args: argparse.Namespace,
    tally: Counter[Effect],
    sums: tuple[Sums, Sums] | None,
    *,
    is_stopped: bool,
) -> None:
    if args.totals and args.json:
        told: dict[str, Any] = {effect.value: tally[effect] for effect in Effect}
        if sums is not None:
            told |= {"before": sums[0].describe(), "after": sums[1].describe()}
        output.print_json([told])
    elif args.totals or (output.is_terminal() and not args.json and tally):
        would_be = "would be " if args.dry_run else ""
        counts = ", ".join(f"{tally[effect]} {would_be}{effect}" for effect in Effect)
        output.print_line(f"{tally.total()} postbacks: {counts}.")
        if not args.totals:
            output.print_footnote(f"Times in {args.tz}.")
    if is_stopped:
        output.print_error("stopped; the postbacks above are done, the same command does the rest")


def _describe_sums(before: Sums, after: Sums, currency: str, *, is_dry: bool) -> str:
    """Say what the conversions that change were and are, in numbers that differ."""
    was, becomes = before.describe(), after.describe()
    parts = [
        f"{name} {was[name]} -> {value}{f' {currency}' if name in {'revenue', 'hold'} else ''}"
        for name, value in becomes.items()
        if value != was[name]
    ]
    would = "would change" if is_dry else "changed"
    return f"What {would}: {', '.join(parts) or 'no sum'}."


def _describe(replayed: Replayed, terms: BookingOptions) -> dict[str, Any]:
    incoming = parse_stored(replayed.query, terms).incoming
    return {
        "id": replayed.original.id,
        "received_at": replayed.original.received_at,
        "query": replayed.query,
        "subid": incoming.subid,
        "tid": incoming.tid,
        "original_status": incoming.word,
        "amount": None if incoming.amount is None else describe_amount(replayed.query, terms),
        "was": replayed.was,
        "verdict": replayed.verdict,
        "what": replayed.effect,
        "conversion_id": _find_real_id(replayed),
        "reason": replayed.reason,
    }


def _build_cells(replayed: Replayed, terms: BookingOptions, zone: tzinfo) -> list[str]:
    incoming = parse_stored(replayed.query, terms).incoming
    conversion_id = _find_real_id(replayed)
    is_new = conversion_id is None and replayed.conversion_id is not None
    return [
        str(replayed.original.id),
        write_in_zone(replayed.original.received_at, zone),
        incoming.subid or "",
        incoming.word or "",
        describe_amount(replayed.query, terms),
        replayed.was or "",
        replayed.verdict or "",
        replayed.effect,
        "new" if is_new else str(conversion_id or ""),
        replayed.reason,
    ]


def _find_real_id(replayed: Replayed) -> int | None:
    """Return the conversion's id; None for one that only the dry run has created."""
    conversion_id = replayed.conversion_id
    return None if conversion_id is None or conversion_id > LAST_REAL_ID else conversion_id


def _read_id(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"{text!r} is no id; write a number such as 17")
    return int(text)


def _read_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=VALUE; write sale_status=approved")
    return _check_name(name), value


def _read_rename(text: str) -> tuple[str, str]:
    old, _, new = text.partition("=")
    if not old or not new:
        raise argparse.ArgumentTypeError(f"{text!r} is no OLD=NEW; write aff_sub=subid")
    return old, _check_name(new)


def _check_name(name: str) -> str:
    if name not in KNOWN_NAMES:
        [nearest] = difflib.get_close_matches(name, KNOWN_NAMES, 1, 0)
        raise argparse.ArgumentTypeError(
            f"{name!r} is no parameter of ours; the nearest is {nearest!r}"
        )
    return name
