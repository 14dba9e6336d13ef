"""`postback offers`, `campaigns`, `rates` and `key`: settings made by hand."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from cli_calls import Ran
from conftest import POSTBACK_KEY, Client, write_config

from postbackd.cli import entry as cli
from postbackd.config.settings import load
from postbackd.exchange import repricing
from storage import open_database


def call(home: Path, capsys: pytest.CaptureFixture[str], *words: str) -> Ran:
    status = cli.main([*words, "--config", str(home / "config.ini.php")])
    return Ran(status, *capsys.readouterr())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with a config and no database yet."""
    write_config(tmp_path, {})
    return tmp_path


# Offers and campaigns


def test_an_offer_takes_rebills_when_told_so(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.click("c1", offer="Slim Tea")
    ran = call(client.directory, capsys, "offers", "set", "Slim Tea", "--allow-rebills")
    client.send("subid=c1&status=sale&tid=1")

    again = client.send("subid=c1&status=sale&tid=2")

    assert ran == Ran(0, "The offer 'Slim Tea' allows rebills now.\n", "")
    assert again.verdict == "recorded"

    call(client.directory, capsys, "offers", "set", "Slim Tea", "--no-allow-rebills")
    assert client.send("subid=c1&status=sale&tid=3").verdict == "refused"


def test_setting_makes_a_missing_database_and_says_what_is_new(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offer = call(home, capsys, "offers", "set", " O1 ", "--allow-rebills")
    campaign = call(home, capsys, "campaigns", "set", "C1", "--cost-model", "cpc")

    assert offer.out == "The new offer 'O1' allows rebills now.\n"
    assert campaign.out == "The new campaign 'C1' has the cost model cpc now.\n"
    assert call(home, capsys, "offers", "list").rows == [["O1", "yes"]]
    assert call(home, capsys, "offers", "list", "--json").objects == [
        {"name": "O1", "allow_rebills": True}
    ]
    assert call(home, capsys, "campaigns", "list").rows == [["C1", "cpc"]]


@pytest.mark.parametrize(
    ("model", "kept"), [("cpc", "0"), ("cpa", "2"), ("revshare", "2"), ("unknown", "2")]
)
def test_a_cost_counts_by_the_campaign_s_model(
    client: Client, capsys: pytest.CaptureFixture[str], model: str, kept: str
) -> None:
    client.click("c1", campaign="C1")
    call(client.directory, capsys, "campaigns", "set", "C1", "--cost-model", "none")
    call(client.directory, capsys, "campaigns", "set", "C1", "--cost-model", model)

    client.send("subid=c1&status=lead&cost=2")

    assert (client.conversions("c1")[0].cost or "0") == kept
    [campaign] = call(client.directory, capsys, "campaigns", "list", "--json").objects
    assert campaign["cost_model"] == (None if model == "unknown" else model)


@pytest.mark.parametrize(
    "words",
    [
        ("offers", "set", "O1"),
        ("offers", "set", "  ", "--allow-rebills"),
        ("offers",),
        ("campaigns", "set", "C1"),
        ("campaigns", "set", "C1", "--cost-model", "cpx"),
        ("rates", "set", "EUR"),
        ("key", "rotate", "--drop-old", "--keep-old"),
        ("key", "rotate", "--keep-old-until", "tomorrow"),
    ],
)
def test_half_a_sentence_is_wrong_usage(
    home: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert call(home, capsys, *words).status == 2
    assert not (home / "postback.db").exists()


# Rates


def test_a_rate_by_hand_converts_what_waited(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.click("c1")
    client.send("subid=c1&payout=10&cost=2&currency=EUR")
    before = call(client.directory, capsys, "rates", "show", "--json").objects

    ran = call(client.directory, capsys, "rates", "set", "eur", "1.0876")

    assert before == [
        {
            "currency": "EUR",
            "rate": None,
            "day": None,
            "source": None,
            "age_days": None,
            "waiting": 1,
            "refused": None,
        }
    ]
    assert ran.lines == [
        "1 EUR is worth 1.0876 USD now.",
        "Amounts and costs converted that waited for a rate: 2.",
    ]
    [kept] = client.conversions("c1")
    assert (kept.payout, kept.cost) == ("10.876", "2.1752")
    today = datetime.now(UTC).date().isoformat()
    assert call(client.directory, capsys, "rates", "show").rows == [
        ["EUR", "1.0876", today, "hand", "0", "0", ""]
    ]


def test_more_than_a_batch_is_converted_to_the_last(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.click("c1", offer="O1")
    client.allow_rebills("O1")
    number = repricing.WAITING_AT_ONCE * 2 + 1
    client.write(
        "INSERT INTO conversions (click_id, tid, status, amount_micros, currency, amount_day,"
        " created_at, updated_at)"
        " WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
        " SELECT 1, i, 'rebill', 1000000, 'EUR', '2026-03-02', '2026-03-02T12:00:00.000Z',"
        " '2026-03-02T12:00:00.000Z' FROM n",
        number,
    )

    ran = call(client.directory, capsys, "rates", "set", "EUR", "2")

    assert ran.lines[1] == f"Amounts and costs converted that waited for a rate: {number}."
    assert {kept.payout for kept in client.conversions("c1")} == {"2"}


def test_unsetting_a_rate_ends_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(home, capsys, "rates", "unset", "EUR").status == 1
    call(home, capsys, "rates", "set", "EUR", "1.1")

    ran = call(home, capsys, "rates", "unset", "EUR")
    again = call(home, capsys, "rates", "unset", "EUR")

    assert ran == Ran(0, "The rate for EUR set by hand has ended.\n", "")
    assert again == Ran(1, "", "postback: no rate for EUR is set by hand\n")


@pytest.mark.parametrize(
    ("currency", "rate", "sentence"),
    [
        ("USD", "1", "USD is the tracker's own currency: it needs no rate"),
        ("usd", "1", "USD is the tracker's own currency: it needs no rate"),
        ("EUR", "1,1", "'1,1' is no rate: give a positive number such as 1.0876"),
        ("EUR", "0", "'0' is no rate"),
        ("EUR", "1e3", "'1e3' is no rate"),
        ("EUR", "NaN", "'NaN' is no rate"),
        ("E", "1", "'E' is no currency code such as EUR"),
        ("\x1b[31m", "1", r"'\x1b[31m' is no currency code such as EUR"),
    ],
)
def test_a_rate_that_is_none_is_refused(
    home: Path, capsys: pytest.CaptureFixture[str], currency: str, rate: str, sentence: str
) -> None:
    ran = call(home, capsys, "rates", "set", currency, rate)

    assert ran.status == 1
    assert sentence in ran.err
    assert not (home / "postback.db").exists()


def test_the_rates_shown_are_those_that_are_used(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    today = datetime.now(UTC).date()
    with open_database(home / "postback.db", "USD") as storage:
        for currency, rates in {
            "AAA": [(1, "0.1", "ecb"), (0, "0.2", "cbr"), (-1, "0.3", "cbr")],
            "BBB": [(-1, "0.4", "cbr"), (-2, "0.5", "cbr")],
            "CCC": [(0, "0.6", "ecb"), (0, "0.7", "cbr")],
            "DDD": [(0, "0.8", "ecb")],
        }.items():
            for age, rate, source in rates:
                storage.db.execute(
                    "INSERT INTO rates (currency, day, source, rate, created_at)"
                    " VALUES (?, ?, ?, ?, '')",
                    (currency, str(today - timedelta(days=age)), source, rate),
                )
        repricing.set_rate(storage, "DDD", Decimal("0.9"), datetime.now(UTC))
        used = [storage.find_rate(name, today) for name in ("AAA", "BBB", "CCC", "DDD")]

    shown = call(home, capsys, "rates", "show").rows

    assert [row[1] for row in shown] == [str(rate.value) for rate in used if rate is not None]
    assert [row[1] for row in shown] == ["0.2", "0.5", "0.6", "0.9"]


def test_setting_a_rate_is_one_transaction(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(*_: object) -> int:
        raise RuntimeError("boom")

    with open_database(home / "postback.db", "USD") as storage:
        monkeypatch.setattr(repricing, "fill_in_waiting", break_off)
        with pytest.raises(RuntimeError):
            repricing.set_rate(storage, "EUR", Decimal(2), datetime.now(UTC))

        assert storage.find_rate("EUR", date(2026, 1, 1)) is None


# The key


def test_the_key_in_force_is_alone_on_the_first_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(tmp_path, {"postback_key_old": "older, oldest until 2020-01-01"})

    ran = call(tmp_path, capsys, "key", "show")

    assert ran.lines == [
        POSTBACK_KEY,
        "older (old, no end)",
        "oldest (old, until 2020-01-01 (over))",
    ]
    assert call(tmp_path, capsys, "key", "show", "--json").objects[2] == {
        "key": "oldest",
        "until": "2020-01-01",
        "is_old": True,
    }


def test_without_a_usable_key_there_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(tmp_path, {"postback_key": ""})

    ran = call(tmp_path, capsys, "key", "show")

    assert (ran.status, ran.out) == (1, "")
    assert "postback_key is empty" in ran.err


@pytest.mark.parametrize(
    ("options", "days"),
    [((), 30), (("--keep-old",), None), (("--keep-old-until", "2999-12-31"), "2999-12-31")],
)
def test_a_rotated_key_leaves_the_old_one_for_a_while(
    home: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    days: int | str | None,
) -> None:
    ran = call(home, capsys, "key", "rotate", *options)

    settings = load(home / "config.ini.php")
    [old] = settings.old_keys
    assert ran.status == 0
    assert f"/{settings.postback_key.decode()}/postback?" in ran.lines[0]
    assert len(settings.postback_key) == 32
    assert old.key.decode() == POSTBACK_KEY
    today = datetime.now(UTC).date()
    until = today + timedelta(days=days) if isinstance(days, int) else days
    assert str(old.until) == str(until)


def test_a_file_that_had_no_key_keeps_no_old_one(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(home, {"postback_key": ""})

    ran = call(home, capsys, "key", "rotate")

    assert ran.lines[1].startswith("# There was no key before;")
    assert load(home / "config.ini.php").old_keys == ()


def test_a_dropped_key_is_gone(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = call(home, capsys, "key", "rotate", "--drop-old")

    assert "refused from now on" in ran.out
    assert POSTBACK_KEY not in (home / "config.ini.php").read_text()


def test_a_last_day_that_is_over_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = call(home, capsys, "key", "rotate", "--keep-old-until", "2020-01-01")

    assert ran.status == 1
    assert load(home / "config.ini.php").postback_key.decode() == POSTBACK_KEY
