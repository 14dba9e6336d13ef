"""The receiver's answers before they are sent, and the answers that several modules use."""

from http import HTTPStatus
from typing import NamedTuple

from postbackd.raw_text import show_text

# How soon a sender may try again: long enough for a locked database to be unlocked.
RETRY_AFTER_SECONDS = 5

Headers = list[tuple[str, str]]

# Scripts of landing pages call us from any origin. Source: the contract, section 1.
CORS = ("Access-Control-Allow-Origin", "*")
# Without it a script of another origin can read the body of an answer, but not our headers.
EXPOSED = ("Access-Control-Expose-Headers", "X-Postback-Result, X-Postback-Reason")
NO_STORE = ("Cache-Control", "no-store")
RETRY_AFTER = ("Retry-After", str(RETRY_AFTER_SECONDS))


class Answer(NamedTuple):
    """A response before it is sent."""

    status: HTTPStatus
    headers: Headers
    body: bytes = b""


def text_answer(status: HTTPStatus, body: str, *headers: tuple[str, str]) -> Answer:
    """Answer with plain text."""
    plain = ("Content-Type", "text/plain; charset=utf-8")
    # nosniff: `return=<script>` stays text.
    no_sniff = ("X-Content-Type-Options", "nosniff")
    return Answer(status, [plain, no_sniff, NO_STORE, *headers], write_text(body))


def write_text(body: str) -> bytes:
    """Write plain text as a body."""
    return show_text(body).encode()


def unavailable_answer() -> Answer:
    """Ask the sender to send the request again: it was not stored."""
    text = "Not accepted at present: send it again."
    return text_answer(HTTPStatus.SERVICE_UNAVAILABLE, text, CORS, RETRY_AFTER)
