"""Requests of every kind by the thousand; `python -m tools.durability.fuzz` sends them by the
million.
"""

from pathlib import Path

import pytest

from tools.durability import sabotage
from tools.durability.fuzz import fuzz
from tools.durability.servers import WORKER_CLASSES, Setup

SEED = 20261122
SENDERS = 2

SETUPS = [(Setup(WORKER_CLASSES[0]), 5_000), (Setup(WORKER_CLASSES[0], 2), 2_500)]


@pytest.mark.parametrize(("setup", "requests"), SETUPS, ids=str)
def test_no_request_is_answered_by_a_traceback_and_none_goes_unlogged(
    tmp_path: Path, setup: Setup, requests: int
) -> None:
    verdict = fuzz(tmp_path / "tracker", setup, requests, SEED, SENDERS)

    assert verdict.flaws == []
    assert verdict.requests >= requests
    assert verdict.rows >= verdict.acknowledged > requests / 2
    assert {200, 204, 400, 404, 405} <= set(verdict.statuses)


def test_the_fuzz_notices_what_it_is_there_for(tmp_path: Path) -> None:
    hasty = Setup("gthread", application=sabotage.EARLY)

    verdict = fuzz(tmp_path / "tracker", hasty, 1_000, SEED, SENDERS)

    assert any("is not in the postback log" in flaw for flaw in verdict.flaws)
    assert any("a wrong key opened" in flaw for flaw in verdict.flaws)
