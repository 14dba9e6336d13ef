"""The setting of the cases that were taken from public documentation and threads.

Tracker currency USD, no rate source, rates EUR 1.25 and RUB 0.01; the clicks C1, C3 and C4
(campaign Winter, offer O1, no rebills), C2 (offer O2, rebills allowed), CN (no offer).
"""

from typing import Any

import pytest
from cli_calls import Ran
from conftest import Client, ReceiverWith

from postbackd.cli import entry as cli


def set_up(receiver_with: ReceiverWith, **settings: str | None) -> Client:
    """Start a receiver with the clicks and rates of the cases."""
    client = receiver_with(**settings)
    for subid in ("C1", "C3", "C4"):
        client.click(subid, campaign="Winter", offer="O1")
    client.click("C2", campaign="Winter", offer="O2")
    client.click("CN")
    client.allow_rebills("O2")
    for currency, rate in (("EUR", "1.25"), ("RUB", "0.01")):
        client.write(
            "INSERT INTO rates (currency, day, source, rate, created_at)"
            " VALUES (?, '2026-03-01', 'hand', ?, '2026-03-01T00:00:00.000Z')",
            currency,
            rate,
        )
    return client


def call(client: Client, capsys: pytest.CaptureFixture[str], *words: str) -> Ran:
    """Run a command on the receiver's database, in this process."""
    config = str(client.directory / "config.ini.php")
    status = cli.main([*words, "--config", config])
    return Ran(status, *capsys.readouterr())


def add_up(client: Client, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Give the totals that the report shows."""
    ran = call(client, capsys, "report", "--by", "network", "--since", "2026-03-01", "--json")
    [total] = [row for row in ran.objects if row["total"]]
    return total


def held(client: Client, subid: str) -> list[tuple[str, str, str | None]]:
    """Give the tid, the status and the amount of each conversion of a click."""
    return [(c.tid, c.status, c.amount) for c in client.conversions(subid)]
