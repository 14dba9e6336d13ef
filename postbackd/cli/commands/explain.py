"""`postback explain`: what a postback would do now, and why, step by step."""

import argparse
import codecs
import os
import select
import sys
from collections.abc import Iterator
from datetime import tzinfo
from typing import Any

from postbackd.cli import output
from postbackd.cli.context import RefusedError, load_settings, reading
from postbackd.cli.options import (
    FORMATS,
    Subparsers,
    add_command,
    add_json,
    add_zone,
    settle_times,
)
from postbackd.cli.sanitize import Column, Kind
from postbackd.explain import dry_run
from postbackd.explain.dry_run import Explanation, NoPostbackError
from postbackd.explain.pasted import Pasted, UnclearError, read_pasted
from postbackd.intake.booking import read_booking_options
from postbackd.intake.sandbox import rehearse
from postbackd.reports.listing import Row
from postbackd.zones import put_in_zone

COLUMNS = (
    Column("step", Kind.WORD),
    Column("part"),
    Column("meaning", Kind.SENTENCE),
)

# Far longer than any request line, and short enough to parse at once.
INPUT_LIMIT_BYTES = 1024 * 1024

# A terminal returns lines one by one. Pasted lines are there at once; a person types more slowly.
PASTED_SECONDS = 0.05

MORE = """\
Paste what you have: the whole URL, a path, the query alone, a command (curl, wget, HTTPie,
PowerShell, fetch), an <img> tag, a link of a chat, a line of a web server's log (JSON, too), or a
body. Put it in single quotes, because & means something to shells; or write `-` and paste it then:
so no key gets into the shell's history. Nothing is written or run, and no key is shown. A query
alone is explained as if it came with the key in force."""

EXAMPLE = """\
postback explain 'subid=c1&status=approved&payout=12,50'
  postback explain -"""


def add_parser(subparsers: Subparsers) -> None:
    """Add `explain`."""
    parser = add_command(
        subparsers,
        "explain",
        run,
        "say what a postback would do now, and why, step by step",
        EXAMPLE,
        more=f"{MORE}\n\n{FORMATS}",
    )
    parser.add_argument("pasted", metavar="URL-OR-QUERY", help="what was sent, or - to paste it")
    add_zone(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Explain a postback."""
    settings = load_settings(args)
    zone = settle_times(args, settings)
    with reading(settings) as questions:
        pasted = _read_input(args.pasted)
        with rehearse(settings.db_path, read_booking_options(settings)) as rehearsal:
            try:
                explanation = dry_run.explain(pasted, settings, questions, rehearsal)
            except NoPostbackError as error:
                raise RefusedError(str(error)) from error
    if args.json:
        output.print_json([build_object(explanation)])
    else:
        output.print_table(COLUMNS, _build_rows(explanation, zone))
    return 0


def _read_input(text: str) -> Pasted:
    raw = _read_stdin() if text == "-" else os.fsencode(text)
    try:
        return read_pasted(_decode(raw))
    except UnclearError as error:
        raise RefusedError(str(error)) from error


def _decode(raw: bytes) -> str:
    for mark, encoding in _MARKS.items():
        if raw.startswith(mark):
            return raw.removeprefix(mark).decode(encoding, "replace")
    if b"\0" in raw:
        raise RefusedError("the input contains NUL bytes: save it as UTF-8, or paste it")
    return raw.decode("utf-8", "surrogateescape")


# What Windows puts before the text of a file; the longer first.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


def _read_stdin() -> bytes:
    if not sys.stdin.isatty():
        return sys.stdin.buffer.read(INPUT_LIMIT_BYTES)
    output.print_error("paste the URL or the query, a command or a line of a log, then press Enter")
    return read_terminal(sys.stdin.fileno())


def read_terminal(terminal: int) -> bytes:
    """Read a line, and the lines that were pasted with it or that continue it."""
    raw = b""
    while len(raw) < INPUT_LIMIT_BYTES:
        line = os.read(terminal, INPUT_LIMIT_BYTES)
        raw += line
        goes_on = raw.rstrip()[-1:] in _GOES_ON
        if not line or not (goes_on or select.select([terminal], [], [], PASTED_SECONDS)[0]):
            break
    return raw


# A line that ends so is continued: a command, or an address broken across lines.
_GOES_ON = frozenset({b"?", b"&", b"\\", b"`", b"^"})


def build_object(explanation: Explanation) -> dict[str, Any]:
    """Build what `--json` shows."""
    key = explanation.key
    return {
        "pasted": list(explanation.pasted),
        "lacks_mark": explanation.lacks_mark,
        "key": None if key is None else key._asdict(),
        "method": explanation.method,
        "parts": [part._asdict() for part in explanation.parts],
        "word": explanation.word,
        "click": explanation.click,
        "conversions": explanation.conversions,
        "corrections": explanation.corrections,
        "rule": explanation.rule,
        "verdict": explanation.verdict,
        "reason": explanation.reason,
        "warnings": explanation.warnings,
        "is_kept": explanation.is_kept,
        "conversion_id": explanation.conversion_id,
        "writes": {
            name: {"was": was, "becomes": becomes}
            for name, (was, becomes) in explanation.writes.items()
        },
        "answer": dry_run.describe_answer(explanation.answer),
        "earlier": explanation.earlier,
        "did_you_mean": explanation.hints,
    }


def _build_rows(explanation: Explanation, zone: tzinfo) -> Iterator[tuple[str, str, str]]:
    for note in explanation.pasted:
        yield "pasted", "", note
    if explanation.key is not None:
        yield "key", explanation.key.state, explanation.key.sentence
    for part in explanation.parts:
        shown = part.name if part.value is None else f"{part.name}={part.value}"
        yield "read", shown, part.meaning
    yield "read", "", explanation.word
    yield _describe_click(explanation.click and put_in_zone(explanation.click, zone))
    for conversion in (put_in_zone(row, zone) for row in explanation.conversions):
        yield "conversion", conversion["status"], _describe_conversion(conversion)
    if explanation.click is not None and not explanation.conversions:
        yield "conversion", "", "none yet"
    for row in (put_in_zone(row, zone) for row in explanation.corrections):
        done = "deleted" if row["change"] == "deleted" else f"set to {row['status']}"
        tid = f"tid {row['tid']!r}" if row["tid"] else "no tid"
        yield "operator", done, f"{tid}; {row['at']}: {row['reason']}"
    yield "rule", "", explanation.rule
    yield "verdict", explanation.verdict, explanation.reason
    for warning in explanation.warnings:
        yield "warning", "", warning
    yield from _describe_writes(explanation, zone)
    yield from _describe_answer(explanation)
    for row in (put_in_zone(row, zone) for row in explanation.earlier):
        what = row["settled_verdict"] or row["verdict"]
        yield "log", what, f"{row['received_at']}: {row['settled_reason'] or row['reason']}"
    for hint in explanation.hints:
        yield "hint", "", hint


def _describe_click(click: Row | None) -> tuple[str, str, str]:
    if click is None:
        return "click", "", "no such click is known"
    offer = click["offer"]
    rebills = "allows rebills" if click["allow_rebills"] else "does not allow rebills"
    if not click["rebills_are_set"]:
        rebills += " (it was never set)"
    without = "rebills as the config allows" if click["allow_rebills"] else "no rebills"
    sentences = [
        f"offer {offer} {rebills}" if offer else f"no offer, so {without}",
        f"campaign {click['campaign']}" if click["campaign"] else "no campaign",
        f"cost model {click['cost_model'] or 'unknown'}",
        f"came {click['clicked_at'] or click['created_at']}",
    ]
    return "click", click["subid"], "; ".join(sentences)


def _describe_conversion(row: Row) -> str:
    sentences = [f"tid {row['tid']!r}" if row["tid"] else "no tid"]
    if row["amount"] is not None:
        sentences.append(f"{row['amount']} {row['currency'] or '(currency unknown)'}")
    sentences.append(f"recorded {row['created_at']}, changed {row['updated_at']}")
    return "; ".join(sentences)


def _describe_writes(explanation: Explanation, zone: tzinfo) -> Iterator[tuple[str, str, str]]:
    if explanation.lacks_mark:
        yield "write", "", "no conversion; with the '?' in its place this would be written:"
    elif not explanation.is_kept:
        yield "write", "", "nothing; with GET and the right key this would be written:"
    elif not explanation.writes:
        yield "write", "", "a row of the postback log; no conversion is new or changed"
    for name, values in explanation.writes.items():
        was, becomes = (put_in_zone({name: value}, zone)[name] for value in values)
        if becomes is not None and becomes != {}:
            yield (
                "write",
                name,
                _show(becomes) if was is None else f"{_show(was)} → {_show(becomes)}",
            )


def _show(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={text}" for name, text in value.items()) or "none"
    return str(value)


def _describe_answer(explanation: Explanation) -> Iterator[tuple[str, str, str]]:
    answer = dry_run.describe_answer(explanation.answer)
    yield "answer", str(answer["status"]), answer["body"]
    if answer["result"] is not None:
        yield "answer", "X-Postback-Result", answer["result"]
    if answer["reason"] is not None:
        yield "answer", "X-Postback-Reason", answer["reason"]
