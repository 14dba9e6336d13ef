"""Explains what a postback would do now, and why, step by step.

The receiver itself runs the request on a private copy of the database (`sandbox`), and the result
there is explained. Nothing reaches the database.
"""

import difflib
import io
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from datetime import UTC, date, datetime
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

from postback import Receiver, split_path
from postbackd.config.settings import OldKey, Settings
from postbackd.db.rows import utc_text
from postbackd.explain import hints, parameters
from postbackd.explain.addresses import Pasted
from postbackd.explain.hints import Missed
from postbackd.explain.parameters import Parameter
from postbackd.intake import booking
from postbackd.intake.answers import Answer
from postbackd.intake.booking import Arrival, BookingOptions, parse_stored, read_booking_options
from postbackd.intake.query import Postback, store_query
from postbackd.intake.sandbox import LAST_REAL_ID, Rehearsal
from postbackd.masking import HIDDEN, KeyMask
from postbackd.reports.listing import Row, RowFilter, of_click
from postbackd.reports.queries import Questions
from statuses import Decision, Rule

# Earlier postbacks of the click that are shown: people mix up a postback with the one before.
EARLIER_POSTBACKS = 5

# The similarity to a key in force from which a wrong key is called a misspelling.
NEARNESS = 0.85

# The limit in `gunicorn_conf`: a longer request line is refused before it is read.
REQUEST_LINE_BYTES = 8190


class Key(NamedTuple):
    """The kind of the key in an address, in words; the key is never shown."""

    state: str
    sentence: str


class Explanation(NamedTuple):
    """The steps. `conversions` are stored now; `writes` are the new and changed values of one.

    `pasted`: how the request was found in the pasted text; `lacks_mark`: its '?' is missing, and
    everything but `answer` is about the request with the '?'.

    `corrections`: what operators have set or deleted of the click's conversions.

    `answer` is for the sender; where it is no 200 for a postback, `verdict` and `writes` are those
    that the right key would give.
    """

    pasted: tuple[str, ...]
    lacks_mark: bool
    key: Key | None
    method: str
    parts: list[Parameter]
    word: str
    click: Row | None
    conversions: list[Row]
    corrections: list[Row]
    rule: str
    verdict: str
    reason: str
    warnings: list[str]
    is_kept: bool
    writes: dict[str, tuple[Any, Any]]
    conversion_id: int | None
    answer: Answer
    earlier: list[Row]
    hints: list[str]


class NoPostbackError(Exception):
    """The pasted text is no postback; the sentence says what it is."""


def explain(
    pasted: Pasted, settings: Settings, questions: Questions, rehearsal: Rehearsal
) -> Explanation:
    """Run a request in the sandbox, and explain the result."""
    now = datetime.now(UTC)
    terms = read_booking_options(settings)
    mask = KeyMask(settings.secrets())
    sent = pasted._replace(query=mask.hide(pasted.query))
    pasted = _put_mark(sent)
    pasted = pasted._replace(query=mask.hide(pasted.query))
    key = None if pasted.path is None else find_key(pasted.path, settings, now.date())
    if key is not None and key.state == "click":
        raise NoPostbackError("this is the address for clicks (click_key): postbacks have another")
    copy = Questions(rehearsal.storage.db)
    stored = _store(pasted, settings, copy, rehearsal)
    read = _read(stored, key, terms)
    rehearsal.take([stored])
    with rehearsal.storage.transaction():
        booking.settle_due_clicks(rehearsal.storage, now, terms)
    read = booking.know_currency(rehearsal.storage, read, terms)
    subid = read.incoming.subid
    click, before = _find_click(copy, rehearsal, subid, terms), _list_conversions(copy, subid)
    decision = _judge(rehearsal, stored, read, now, terms)
    answer, outcome = _send(sent, settings, copy, rehearsal)
    kept = outcome if sent == pasted else None
    if kept is None:
        _, outcome = _send(_with_right_key(pasted, settings), settings, copy, rehearsal)
    assert outcome is not None
    missed = Missed(stored, read, decision.rule)
    return Explanation(
        pasted=pasted.notes,
        lacks_mark=sent != pasted,
        key=key,
        method=pasted.method,
        parts=parameters.read_parts(stored, terms),
        word=parameters.describe_word(read),
        click=click,
        conversions=before,
        corrections=questions.list_corrections(subid) if subid else [],
        rule=decision.rule.value,
        verdict=outcome["verdict"],
        reason=outcome["reason"],
        warnings=outcome["warnings"],
        is_kept=kept is not None,
        writes=_compare(before, _list_conversions(copy, subid), outcome["conversion_id"]),
        conversion_id=_real_id(outcome["conversion_id"]),
        answer=answer,
        earlier=_list_earlier(questions, subid),
        hints=[
            *_advise(sent, key, decision, click, answer),
            *hints.find_hints(questions, missed, terms),
        ],
    )


def find_key(path: bytes, settings: Settings, today: date) -> Key:
    """Describe the key of an address."""
    key, _ = split_path(path)
    if key == HIDDEN.encode():
        return Key("hidden", f"the key is hidden ({HIDDEN}), and counts as the one in force")
    if key == settings.postback_key:
        return Key("in force", "the key in force")
    for old in settings.old_keys:
        if key == old.key:
            return _describe_old(old, today)
    if key and key == settings.pixel_key:
        return Key("pixel", "pixel_key: valid for the pixel and for leads only")
    if key and key == settings.click_key:
        return Key("click", "click_key: valid for clicks only")
    return _describe_wrong(path, settings, today)


def _describe_old(old: OldKey, today: date) -> Key:
    if old.until is None:
        return Key("old", "an old key, valid without an end; change the network to the new one")
    if old.is_good_on(today):
        return Key("old", f"an old key, valid until the end of {old.until} (UTC)")
    return Key("ended", f"an old key that ended with {old.until}: the network must get the new one")


def _describe_wrong(path: bytes, settings: Settings, today: date) -> Key:
    key, name = split_path(path)
    good = settings.postback_keys(today)
    cases = (
        (name in good and not key, "none", "/postback is missing behind the key"),
        (name in good, "none", "the key is last: the address is /KEY/postback"),
        (not key, "none", "there is no key in the address, which is /KEY/postback"),
        (
            key.lower() in {known.lower() for known in good},
            "other case",
            "a key of ours in other upper and lower case: keys are exact",
        ),
        (unquote_to_bytes(key) in good, "encoded", "a key of ours, percent-encoded twice"),
        (
            key.rpartition(b"/")[2] in good,
            "prefixed",
            "a key of ours behind a path that the proxy should have removed",
        ),
        (
            any(_is_near(key, known) for known in good),
            "misspelt",
            "nearly a key of ours: some characters differ, or were cut off",
        ),
    )
    for holds, state, sentence in cases:
        if holds:
            return Key(state, sentence)
    return Key("unknown", "no key of ours, present or old: `postback url` prints the address")


def _is_near(key: bytes, known: bytes) -> bool:
    return difflib.SequenceMatcher(None, key, known).ratio() >= NEARNESS


# `/KEY/postback&subid=…`, `/KEY/postback/subid=…`: the query is in the path.
_UNMARKED = re.compile(
    rb"(.*/postback(?:\.gif)?)(?:/?[&?;]|/?(?=[A-Za-z_][\w.\[\]-]*=))(.*)", re.DOTALL | re.ASCII
)


def _put_mark(pasted: Pasted) -> Pasted:
    """Insert a missing '?'."""
    found = _UNMARKED.fullmatch(pasted.path or b"")
    if found is None:
        return pasted
    behind = quote_from_bytes(found[2], safe=_QUERY_SIGNS)
    query = "&".join(filter(None, (behind, pasted.query)))
    return pasted._replace(path=found[1], query=query)


_QUERY_SIGNS = "".join(map(chr, range(0x21, 0x7F)))


def _store(pasted: Pasted, settings: Settings, copy: Questions, rehearsal: Rehearsal) -> str:
    """Return the query that would be stored; the receiver reads the body."""
    query = store_query(pasted.query)
    if not pasted.body:
        return query
    row = None
    with suppress(_UndoneError), rehearsal.storage.transaction():
        _, row = _run(_with_right_key(pasted, settings), settings, copy, rehearsal)
        raise _UndoneError
    return query if row is None else str(row["query"])


class _UndoneError(Exception):
    """Rolls the transaction back: its result was only to be read."""


def _read(stored: str, key: Key | None, terms: BookingOptions) -> Postback:
    read = parse_stored(stored, terms)
    leads_only = key is not None and key.state == "pixel"
    return read._replace(incoming=read.incoming._replace(leads_only=leads_only))


def _judge(
    rehearsal: Rehearsal, stored: str, read: Postback, now: datetime, terms: BookingOptions
) -> Decision:
    arrival = Arrival(utc_text(now), "http", None, None, stored, read)
    decision, _ = booking.judge_arrival(rehearsal.storage, arrival, terms)
    return decision


def _send(
    pasted: Pasted, settings: Settings, copy: Questions, rehearsal: Rehearsal
) -> tuple[Answer, Row | None]:
    """Run the request in the receiver; returns the answer, and the row in the copy's log."""
    if pasted.path is None or split_path(pasted.path)[0] == HIDDEN.encode():
        pasted = _with_right_key(pasted, settings)
    with rehearsal.storage.transaction():
        return _run(pasted, settings, copy, rehearsal)


def _run(
    pasted: Pasted, settings: Settings, copy: Questions, rehearsal: Rehearsal
) -> tuple[Answer, Row | None]:
    """Run the request within the caller's transaction."""
    with closing(Receiver(settings.path)) as receiver:
        answer = receiver.answer_on(_build_environ(pasted), rehearsal.storage)
    rows = copy.list_postbacks(RowFilter().also("postbacks.id > ?", LAST_REAL_ID), 1)
    return answer, next(rows, None)


def _build_environ(pasted: Pasted) -> dict[str, Any]:
    assert pasted.path is not None
    environ: dict[str, Any] = {
        "REQUEST_METHOD": pasted.method,
        "PATH_INFO": pasted.path.decode("latin-1"),
        "QUERY_STRING": pasted.query,
        "wsgi.input": io.BytesIO(pasted.body),
    }
    if pasted.body:
        environ["CONTENT_LENGTH"] = str(len(pasted.body))
    if pasted.content_type:
        environ["CONTENT_TYPE"] = pasted.content_type
    return environ


def _with_right_key(pasted: Pasted, settings: Settings) -> Pasted:
    is_pixel = pasted.path is not None and pasted.path.rstrip(b"/").endswith(b".gif")
    name = b"postback.gif" if is_pixel else b"postback"
    method = pasted.method if pasted.method == "POST" else "GET"
    return pasted._replace(path=b"/%s/%s" % (settings.postback_key, name), method=method)


def _find_click(
    copy: Questions, rehearsal: Rehearsal, subid: str | None, terms: BookingOptions
) -> Row | None:
    if not subid:
        return None
    known = rehearsal.storage.find_click(subid)
    if known is None:
        return None
    [row] = copy.list_clicks(RowFilter().where("subid", [subid]), 1)
    said = known.click.allows_rebills
    return {
        **row,
        "cost_model": known.click.cost_model,
        "allow_rebills": terms.policy.allows_rebills if said is None else said,
        "rebills_are_set": said is not None,
    }


def _list_conversions(copy: Questions, subid: str | None) -> list[Row]:
    return list(copy.list_conversions(RowFilter().where("subid", [subid]), 0)) if subid else []


def _list_earlier(questions: Questions, subid: str | None) -> list[Row]:
    return list(questions.list_postbacks(of_click(subid), EARLIER_POSTBACKS)) if subid else []


def _compare(
    before: Iterable[Row], after: Iterable[Row], conversion_id: int | None
) -> dict[str, tuple[Any, Any]]:
    """Return the new and changed values of the conversion, by name: before, after."""
    was: Row = next((row for row in before if row["id"] == conversion_id), {})
    now: Row = next((row for row in after if row["id"] == conversion_id), {})
    return {
        name: (was.get(name), value)
        for name, value in now.items()
        if name != "id" and value != was.get(name)
    }


def _real_id(conversion_id: int | None) -> int | None:
    return None if conversion_id is None or conversion_id > LAST_REAL_ID else conversion_id


def _advise(
    pasted: Pasted, key: Key | None, decision: Decision, click: Row | None, answer: Answer
) -> Iterator[str]:
    """Write what to do about the address, and about permissions."""
    # Behind a proxy the path may be right: it is not the one that came here.
    is_known = key is not None and key.state not in {"hidden", "prefixed"}
    if is_known and answer.status is HTTPStatus.NOT_FOUND:
        yield "give the network the address that `postback url` prints; this one is answered 404"
    if len(pasted.query) + len(pasted.path or b"") > REQUEST_LINE_BYTES:
        yield f"longer than {REQUEST_LINE_BYTES} bytes: the server answers 400 before it is read"
    if pasted.method == "HEAD":
        yield "it came as HEAD, which records nothing: the network is to send GET or POST"
    if _put_mark(pasted) != pasted:
        yield (
            "the '?' is missing behind /postback: without it no parameter is read, and the answer"
            " shown is to that; everything else is about the same address with the '?' in its place"
        )
    if pasted.method == "POST" and not pasted.body:
        yield "it came as POST: the body is not in this line"
    if "does not allow rebills" in decision.reason.summary and click is not None:
        offer = shlex.quote(click["offer"])
        yield f"to allow them: `postback offers set {offer} --allow-rebills`"
    if "no offer that allows rebills" in decision.reason.summary:
        yield 'to allow them for clicks without an offer: `rebills = "yes"` below [postback]'
    if decision.rule in {Rule.FORBIDDEN, Rule.UNREJECTED} and decision.change is None:
        yield (
            "to make the change in spite of the rules: `postback replay --id N --force`, with the"
            " id that `postback log --json` shows"
        )


def describe_answer(answer: Answer) -> dict[str, Any]:
    """Return the parts of an answer that a sender sees."""
    headers = dict(answer.headers)
    is_text = headers.get("Content-Type", "").startswith("text/plain")
    return {
        "status": answer.status.value,
        "body": answer.body.decode() if is_text else f"({len(answer.body)} bytes of GIF)",
        "result": headers.get("X-Postback-Result"),
        "reason": headers.get("X-Postback-Reason"),
    }
