"""`postback explain`: what a postback would do now, and why, step by step."""

import argparse
import os
import sys
from collections.abc import Iterator
from typing import Any

import display
import explaining
from booking import read_terms
from cells import Column, Kind
from commands.options import FORMATS, Subparsers, add_command, add_json
from commands.tracker import RefusedError, load_settings, reading
from explaining import Explanation, NoPostbackError
from listings import Row
from pasted import Pasted, read_pasted
from rehearsal import rehearse

COLUMNS = (
    Column("step", Kind.WORD),
    Column("part"),
    Column("meaning", Kind.SENTENCE),
)

# Far above any request line, far below what hurts.
INPUT_LIMIT_BYTES = 1024 * 1024

MORE = """\
Paste what the network shows: the whole URL, a path, the query alone, or a line of the web server's
log. In single quotes, since shells take & for themselves; or `-`, and paste it then: so no key
stays in the shell's history. Nothing is written and no key is shown. A query alone is
explained as if it stood behind the key in force."""

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
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Explain a postback."""
    settings = load_settings(args)
    with reading(settings) as questions:
        pasted = _read_input(args.pasted)
        with rehearse(settings.db_path, read_terms(settings)) as rehearsal:
            try:
                explanation = explaining.explain(pasted, settings, questions, rehearsal)
            except NoPostbackError as error:
                raise RefusedError(str(error)) from error
    if args.json:
        display.print_json([build_object(explanation)])
    else:
        display.print_table(COLUMNS, _build_rows(explanation))
    return 0


def _read_input(text: str) -> Pasted:
    raw = _read_stdin() if text == "-" else os.fsencode(text)
    if b"\0" in raw:
        raise RefusedError("the input holds NUL bytes: save it as UTF-8, or paste it")
    lines = [line for line in raw.removeprefix(b"\xef\xbb\xbf").splitlines() if line.strip()]
    if len(lines) != 1:
        raise RefusedError(f"{len(lines)} lines came: paste one postback, on one line")
    return read_pasted(lines[0].decode("latin-1"))


def _read_stdin() -> bytes:
    if sys.stdin.isatty():
        display.complain("paste the URL or the query, then press Enter")
        return sys.stdin.buffer.readline(INPUT_LIMIT_BYTES)
    return sys.stdin.buffer.read(INPUT_LIMIT_BYTES)


def build_object(explanation: Explanation) -> dict[str, Any]:
    """Build what `--json` shows."""
    key = explanation.key
    return {
        "key": None if key is None else key._asdict(),
        "method": explanation.method,
        "parts": [part._asdict() for part in explanation.parts],
        "word": explanation.word,
        "click": explanation.click,
        "conversions": explanation.conversions,
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
        "answer": explaining.describe_answer(explanation.answer),
        "earlier": explanation.earlier,
        "did_you_mean": explanation.hints,
    }


def _build_rows(explanation: Explanation) -> Iterator[tuple[str, str, str]]:
    if explanation.key is not None:
        yield "key", explanation.key.state, explanation.key.sentence
    for part in explanation.parts:
        shown = part.name if part.value is None else f"{part.name}={part.value}"
        yield "read", shown, part.meaning
    yield "read", "", explanation.word
    yield _describe_click(explanation.click)
    for conversion in explanation.conversions:
        yield "stands", conversion["status"], _describe_conversion(conversion)
    if explanation.click is not None and not explanation.conversions:
        yield "stands", "", "no conversion yet"
    yield "rule", "", explanation.rule
    yield "verdict", explanation.verdict, explanation.reason
    for warning in explanation.warnings:
        yield "warning", "", warning
    yield from _describe_writes(explanation)
    yield from _describe_answer(explanation)
    for row in explanation.earlier:
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


def _describe_writes(explanation: Explanation) -> Iterator[tuple[str, str, str]]:
    if not explanation.is_kept:
        yield "write", "", "nothing at all; with GET and the right key it would be:"
    elif not explanation.writes:
        yield "write", "", "a row of the log; no conversion is new or changed"
    for name, (was, becomes) in explanation.writes.items():
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
    answer = explaining.describe_answer(explanation.answer)
    yield "answer", str(answer["status"]), answer["body"]
    if answer["result"] is not None:
        yield "answer", "X-Postback-Result", answer["result"]
    if answer["reason"] is not None:
        yield "answer", "X-Postback-Reason", answer["reason"]
