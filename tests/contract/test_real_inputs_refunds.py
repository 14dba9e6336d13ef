"""Negative amounts that take money back: chargebacks, refunds, corrections.

Shapes of public documentation: a refund under an id of its own, the sale's id with a prefix, the
same id with the amount below zero, lines of corrections. D26 … are ids of the list of public cases.
"""

from pathlib import Path

import pytest
from conftest import Client, ReceiverWith
from public_cases import add_up, call, held, set_up

# The click, its postbacks, the revenue that is left, the verdict of the last.
REFUNDS = [
    pytest.param(
        "C2",
        ["status=sale&payout=33.20&tid=T100", "status=rejected&payout=-33.20&tid=T101"],
        "0",
        "updated",
        id="D26",
    ),
    pytest.param(
        "C2",
        [
            "status=sale&payout=0.36&tid=381f",
            "status=sale&payout=0.50&tid=77aa",
            "status=rejected&payout=-0.36&tid=r-381f",
        ],
        "0.5",
        "updated",
        id="D27",
    ),
    pytest.param(
        "C1",
        ["status=sale&payout=5.40&tid=M19", "status=sale&payout=-5.40&tid=M19"],
        "0",
        "updated",
        id="D28",
    ),
    pytest.param(
        "C1",
        ["status=sale&payout=33.20&tid=T100", "status=rejected&payout=-33.20&tid=T101"],
        "0",
        "updated",
        id="D26 where rebills are not allowed",
    ),
    pytest.param(
        "C1",
        ["payout=5.40&tid=M19", "status=chargeback&rejected_status=chargeback&payout=-5.4"],
        "0",
        "updated",
        id="a word of the network's, no id",
    ),
    pytest.param(
        "C1",
        ["payout=5.40&tid=M19", "revenue=-5.400000&tid=M19-reversal"],
        "0",
        "updated",
        id="no status, another name, more digits",
    ),
    pytest.param(
        "C1",
        ["payout=10&currency=eur&tid=M19", "payout=-10&currency=EUR&tid=r"],
        "0",
        "updated",
        id="in another currency",
    ),
    pytest.param(
        "C1",
        ["payout=10&currency=eur&tid=M19", "payout=-12.5&tid=r"],
        "0",
        "recorded",
        id="the same worth in the tracker's currency corrects it",
    ),
    pytest.param(
        "C1",
        ["payout=12&tid=T1", "payout=-5.40&tid=corr1"],
        "6.6",
        "recorded",
        id="a part of it, where rebills are not allowed",
    ),
    pytest.param(
        "C1",
        ["payout=12&tid=T1", "payout=-5.40&tid=corr1", "payout=-6.60&tid=corr2"],
        "0",
        "recorded",
        id="two parts of it",
    ),
    pytest.param(
        "C2",
        ["payout=10&tid=T1", "payout=10&tid=T2", "payout=-10&tid=r"],
        "10",
        "recorded",
        id="one of two that are worth the same",
    ),
    pytest.param(
        "C2",
        ["payout=10&tid=T1", "payout=10&tid=T2", "payout=-10&tid=T1"],
        "10",
        "updated",
        id="one of two that are worth the same, by its id",
    ),
    pytest.param(
        "C2",
        ["payout=10&tid=T1", "payout=7&tid=T2", "payout=-7&tid=r", "payout=-10&tid=q"],
        "0",
        "updated",
        id="both, one after the other",
    ),
    pytest.param(
        "C1",
        ["payout=10&tid=T1", "payout=-10&tid=r", "payout=12&tid=T2"],
        "12",
        "recorded",
        id="the buyer came back",
    ),
    pytest.param(
        "C1",
        ["payout=10&tid=T1", "payout=-10&tid=r", "payout=10&tid=T1"],
        "0",
        "refused",
        id="the sale is sent again",
    ),
    pytest.param(
        "C1",
        ["status=lead&payout=10&tid=T1", "payout=10&tid=T1", "status=rejected&payout=-10&tid=r"],
        "0",
        "updated",
        id="of a lead that became a sale",
    ),
]


@pytest.mark.parametrize("unreject", ["no", "yes"])
@pytest.mark.parametrize("repeats", ["ignore", "update"])
@pytest.mark.parametrize(("subid", "sent", "revenue", "verdict"), REFUNDS)
def test_a_refund_lowers_the_revenue_once(
    receiver_with: ReceiverWith,
    capsys: pytest.CaptureFixture[str],
    subid: str,
    sent: list[str],
    revenue: str,
    verdict: str,
    repeats: str,
    unreject: str,
) -> None:
    client = set_up(receiver_with, repeats=repeats, unreject=unreject)
    answers = [client.send(f"subid={subid}&{query}") for query in sent]
    stands = client.snapshot()

    # The network sends its last postback again, twice.
    again = [client.send(f"subid={subid}&{sent[-1]}").verdict for _ in range(2)]

    assert answers[-1].verdict == verdict, answers[-1].reason
    assert add_up(client, capsys)["revenue"] == revenue
    assert set(again) <= {"repeated", "refused"}
    assert client.snapshot() == stands


@pytest.fixture
def tracker(receiver_with: ReceiverWith) -> Client:
    return set_up(receiver_with)


def test_a_rejection_whose_amount_takes_nothing_back_is_reported(tracker: Client) -> None:
    tracker.send("subid=C1&payout=33.20&tid=T100")

    tracker.send("subid=C1&status=rejected&payout=-30&tid=T101")

    assert held(tracker, "C1") == [("T100", "sale", "33.2"), ("T101", "rejected", "-30")]
    [warning] = tracker.postbacks()[-1].warnings
    assert "-30 USD takes nothing back" in warning


@pytest.mark.parametrize("tid", ["A", "r-A"])
def test_a_refund_that_comes_again_is_told_to_be_known(tracker: Client, tid: str) -> None:
    tracker.send("subid=C1&status=sale&payout=10&tid=A")
    refund = f"subid=C1&status=rejected&payout=-10&tid={tid}"

    first, again = tracker.send(refund), tracker.send(refund)
    other = tracker.send("subid=C1&status=rejected&payout=-4&tid=A")

    assert (first.verdict, again.verdict) == ("updated", "repeated")
    assert again.reason == "sent again: this refund is known already, nothing changed"
    assert other.reason == "known already with another amount, nothing changed"


@pytest.mark.parametrize("query", ["tid=r-A&payout=10", "tid=r-A", "tid=r-A&payout=0"])
def test_a_rejection_of_an_unknown_id_beside_money_is_told(tracker: Client, query: str) -> None:
    tracker.send("subid=C1&status=sale&payout=10&tid=A")

    tracker.send(f"subid=C1&status=rejected&{query}")
    tracker.send("subid=C3&status=rejected&tid=r-A")

    first, second = tracker.postbacks()[1:]
    [warning] = first.warnings
    assert "no conversion has this transaction id" in warning
    assert "sale 'A' of 10 USD" in warning
    assert second.warnings == []
    assert held(tracker, "C1")[0] == ("A", "sale", "10")


def test_the_same_id_below_zero_for_a_part_is_told_to_need_an_id_of_its_own(
    tracker: Client,
) -> None:
    tracker.send("subid=C1&payout=12&tid=T1")

    answer = tracker.send("subid=C1&payout=-5.40&tid=T1")

    assert answer.verdict == "repeated"
    reason = tracker.postbacks()[-1].reason or ""
    assert "amount -5.4 USD was 12 USD: a correction needs a transaction id (tid) of its" in reason


def take_in(
    tracker: Client, capsys: pytest.CaptureFixture[str], directory: Path, lines: str, *words: str
) -> tuple[int, list[str]]:
    """Import lines; returns the exit status and the verdict of each."""
    path = directory / "lines.csv"
    path.write_text(lines)
    ran = call(tracker, capsys, "import", str(path), "--json", *words)
    return ran.status, [row["verdict"] for row in ran.objects]


# The lines of a file, their verdicts, the revenue.
CORRECTIONS = [
    pytest.param("C1,12,T1,sale\nC1,-5.40,corr1,sale\n", ["recorded", "recorded"], "6.6", id="D54"),
    pytest.param("C1,12,T1\nC1,-12,T1,rejected\n", ["recorded", "updated"], "0", id="the whole"),
    pytest.param("C1,12,T1\nC1,-12,corr1\n", ["recorded", "updated"], "0", id="by its amount"),
    pytest.param(
        "C1,12,T1\nC1,-2,corr1\nC1,-2,corr2\n",
        ["recorded", "recorded", "recorded"],
        "8",
        id="two of the same amount, each with an id",
    ),
]


@pytest.mark.parametrize(("lines", "verdicts", "revenue"), CORRECTIONS)
def test_lines_of_corrections_are_taken_whatever_the_offer_allows(
    tracker: Client,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    lines: str,
    verdicts: list[str],
    revenue: str,
) -> None:
    first = take_in(tracker, capsys, tmp_path, lines)
    again = take_in(tracker, capsys, tmp_path, lines)

    assert first == (0, verdicts)
    assert set(again[1]) <= {"repeated", "refused"}
    assert add_up(tracker, capsys)["revenue"] == revenue


def test_explain_says_that_a_sale_was_refused_before(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    for query in ("payout=10&tid=T1", "payout=5&tid=T2", "payout=-10&tid=r"):
        tracker.send(f"subid=C1&{query}")

    known, new = (
        call(tracker, capsys, "explain", f"subid=C1&{query}", "--json").objects[0]
        for query in ("payout=5&tid=T2", "payout=5&tid=T2&at=2")
    )

    assert (known["verdict"], new["verdict"]) == ("refused", "recorded")
    assert known["reason"].startswith("this very postback came before and was refused")


def test_explain_says_that_a_refund_came_before(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    refund = "subid=C1&payout=-10&tid=r"
    tracker.send("subid=C1&payout=10&tid=T1")
    before = call(tracker, capsys, "explain", refund, "--json").objects[0]
    tracker.send(refund)

    after = call(tracker, capsys, "explain", refund, "--json").objects[0]

    assert (before["verdict"], after["verdict"]) == ("updated", "repeated")
    assert before["writes"]["status"] == {"was": "sale", "becomes": "rejected"}
    assert "opposite amount" in before["rule"]
    assert "this refund came before" in after["reason"]
