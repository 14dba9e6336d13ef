"""When a network counts as silent, and when a verdict has grown."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pytest

from postbackd.reports import anomalies
from postbackd.reports.anomalies import RecentPostback, find_growths, find_silences

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def see(
    hours_ago: Iterable[float], verdict: str = "recorded", about: str = ""
) -> list[RecentPostback]:
    times = sorted((NOW - hours * HOUR for hours in hours_ago), reverse=False)
    return [RecentPostback("net", at, verdict, about) for at in times]


def every(interval: float, last: float, first: float = 24.0 * 28) -> list[float]:
    return [last + interval * step for step in range(int((first - last) / interval) + 1)]


def by_day_only(last: float) -> list[float]:
    """Every 40 minutes from 13 to 23 o'clock; the rest is night."""
    return [hours for hours in every(2 / 3, last) if (NOW - hours * HOUR).hour in range(13, 23)]


@pytest.mark.parametrize(
    ("hours_ago", "is_silent"),
    [
        (every(2 / 3, 9), True),  # every 40 minutes, silent for 9 hours
        (every(2 / 3, 6), False),
        (every(2 / 3, 0.1), False),
        (every(1 / 60, 0.4), False),  # every minute, nothing for 24: a restart perhaps
        (every(1 / 60, 0.6), True),
        (by_day_only(1), False),  # it was night
        (by_day_only(24), True),
        (every(84, 24 * 13), False),  # twice a week: nobody knows its rhythm
        (every(24, 24 * 9), False),  # once a day
        (every(24, 24 * 11), True),
        # A hundred at once each Monday morning.
        ([24 * 7 * week + 98 + n / 60 for week in range(4) for n in range(100)], False),
        ([24 * 7 * week + 230 + n / 60 for week in range(3) for n in range(100)], True),
        # A gap of two days once: what is shorter than that is no news.
        ([*every(2 / 3, 30, 240), *every(2 / 3, 290)], False),
        (every(1, 20, 28), False),  # nine postbacks ever
        ([], False),
    ],
)
def test_a_silence_is_long_by_the_network_s_own_rhythm(
    hours_ago: list[float], is_silent: bool
) -> None:
    silences = list(find_silences(see(hours_ago), NOW))

    assert [silence.network for silence in silences] == ["net"] * is_silent


def test_a_silence_tells_the_rhythm_and_how_long() -> None:
    [silence] = find_silences(see(every(2 / 3, 9)), NOW)

    assert round(silence.every / timedelta(minutes=1)) == 40
    assert (silence.silent, silence.last) == (9 * HOUR, NOW - 9 * HOUR)


@pytest.mark.parametrize(
    ("before", "bad_before", "recent", "bad", "has_grown"),
    [
        (280, 0, 20, 10, True),
        (280, 28, 20, 5, False),  # from 10 % to 25 %
        (280, 28, 20, 7, True),  # to 35 %
        (280, 0, 60, 5, False),  # less than a tenth
        (280, 0, 4, 4, False),  # four are no tendency
        (280, 280, 20, 20, False),  # always was so
        (0, 0, 10, 10, True),  # a new network
        (280, 0, 0, 0, False),
    ],
)
def test_a_verdict_grows_against_the_two_weeks_before(
    before: int, bad_before: int, recent: int, bad: int, has_grown: bool
) -> None:
    def days(number: int, first: float, length: float) -> list[float]:
        return [first + length * step / number for step in range(number)] if number else []

    seen = (
        see(days(before - bad_before, 25, 300))
        + see(days(bad_before, 25, 300), "unmapped", "odd")
        + see(days(recent - bad, 0.1, 23))
        + see(days(bad, 0.1, 23), "unmapped", "approved")
    )

    growths = list(find_growths(seen, NOW))

    assert [(g.network, g.verdict, g.about) for g in growths] == [
        ("net", "unmapped", "approved")
    ] * has_grown
    if has_grown:
        assert growths[0].share == bad / recent
        assert (growths[0].before is None) == (before == 0)


def test_the_rhythm_is_known_from_four_weeks_of_hours() -> None:
    # What the command reads at most, and why it stays quick.
    assert anomalies.DAYS_LOOKED_AT * 24 * anomalies.ROWS_AN_HOUR <= 110_000
