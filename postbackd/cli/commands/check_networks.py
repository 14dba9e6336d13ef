"""The lines of `postback check` about networks: silences, and postbacks that were not booked."""

import shlex
from collections.abc import Iterator
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from postbackd.reports import anomalies
from postbackd.reports.queries import Questions


class Level(StrEnum):
    """How serious a finding is; a problem must be corrected."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


class Finding(NamedTuple):
    """The result of one check, and what to do."""

    level: Level
    check: str
    message: str


def span_text(span: timedelta) -> str:
    """Write a duration in the largest unit that leaves a readable number."""
    for name, length in _SPANS.items():
        number = span / length
        if number >= 1.5:
            return f"{number:,.0f} {name}s"
    return "second" if span.total_seconds() < 1.5 else f"{span.total_seconds():.0f} seconds"


_SPANS = {"day": timedelta(days=1), "hour": timedelta(hours=1), "minute": timedelta(minutes=1)}


def check_networks(questions: Questions, now: datetime) -> Iterator[Finding]:
    """Report networks that have fallen silent, and verdicts that are more frequent than before."""
    seen = anomalies.look(questions.db, now)
    silences = list(anomalies.find_silences(seen, now))
    for silence in silences:
        yield Finding(
            Level.WARNING,
            "silence",
            f"{_name_network(silence.network)} posted every {span_text(silence.every)}, and has"
            f" been silent for {span_text(silence.silent)}: ask the network, and check that its"
            " Postback URL has a key that is still valid (`postback key show`)",
        )
    if seen and not silences:
        yield Finding(Level.OK, "silence", "every network posts as it used to")
    growths = list(anomalies.find_growths(seen, now))
    for growth in growths:
        yield Finding(Level.WARNING, "trend", _describe_growth(growth))
    if seen and not growths:
        message = "no more unmapped, refused, invalid or parked postbacks than before"
        yield Finding(Level.OK, "trend", message)


def _describe_growth(growth: anomalies.Growth) -> str:
    before = (
        "it is new" if growth.before is None else f"{growth.before:.0%} in the two weeks before"
    )
    option = "" if growth.network is None else f" --network {shlex.quote(growth.network)}"
    advice = _ADVICE[growth.verdict].format(about=repr(growth.about))
    return (
        f"{_name_network(growth.network)}: {growth.share:.0%} of its postbacks in 24 hours are"
        f" {growth.verdict} ({before}); {advice}; see `postback log --verdict {growth.verdict}"
        f"{option} --since 1d`"
    )


# By verdict: what most of its postbacks have in common, and how to correct it.
_ADVICE = {
    "unmapped": "most have the status {about}: name it in the network's Postback URL, see"
    " `postback url --help`",
    "refused": "most because {about}",
    "invalid": "most because {about}: check the network's Postback URL",
    "parked": "their clicks are not known: import them with `postback clicks import`, or check"
    " which click id the network sends",
}


def _name_network(network: str | None) -> str:
    return "postbacks without from=" if network is None else f"network {network!r}"
