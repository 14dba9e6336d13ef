"""Files of networks, trackers and people: read, or refused by their kind.

Each row of these tables is one of a kind, from the public documentation of networks and trackers
and from threads of people who had such a file.
"""

import gzip
import os
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest
from cli_calls import PATIENCE_SECONDS, build_command, build_environment, call_process
from conftest import Client
from file_calls import Cell, Date, build_xlsx, call, kept, pack, set_up

from postbackd.bulk.titles import (
    CLICK_TITLES,
    CURRENCY_TITLES,
    PAYOUT_TITLES,
    STATUS_TITLES,
    SUBID_TITLES,
    TID_TITLES,
    TIME_TITLES,
    UNSURE_PAYOUT_TITLES,
    find_click_names,
    find_conversion_places,
    squeeze_title,
)

ONE = ("C1", "T1", "sale", "12.5", "USD")


@pytest.fixture
def tracker(client: Client) -> Client:
    """The clicks and rates of the real inputs."""
    return set_up(client)


@pytest.mark.parametrize(
    "content",
    [
        "Sub ID,Payout,Transaction ID,Status\nC1,12.50,T1,sale\n",  # D30
        "sub_id,revenue,tid,status\nC1,12.50,T1,sale\n",
        "click_id,transaction_id,payout,status\nC1,T1,12.50,sale\n",
        "Subid,Payout,Tid,Status\nC1,12.50,T1,sale\n",  # Q13
        "status,tid,payout,subid\nsale,T1,12.50,C1\n",
        "Date,Click ID,Country,Payout,TxID,Status\n2026-11-24,C1,DE,12.50,T1,sale\n",
        "SID,Order ID,Commission,Sale Amount,Action Status\nC1,T1,12.50,100,sale\n",
        "Member ID (U1),Order ID,Sales,Total Commission,Currency\nC1,T1,100,12.50,USD\n",
        "cid;order_id;amount_affiliate;currency\nC1;T1;12,50;USD\n",
        "SubId1\tAction Id\tAction Earnings\tState\nC1\tT1\t12.50\tsale\n",
        "Click Ref|Transaction ID|Commission Amount|Commission Status\nC1|T1|12.50|sale\n",
        "EPI,Transaction Number,Publisher Commission\nC1,T1,12.50\n",
        "Publisher Reference,Conversion ID,Publisher Commission\nC1,T1,12.50\n",
        "Trans ID,Affiliate Tracking/afftrack,Amount,Commission\nT1,C1,100,12.50\n",
        "Affiliate Sub ID 1,Transaction ID,Payout,Sale Amount\nC1,T1,12.50,100\n",
        "Conversion ID,Sub1,Payout,Status\nT1,C1,12.50,sale\n",
        # Awin's API as a table, Ingenious, easy.affiliate, Tradedoubler, Partnerize, Affise.
        "id,commissionStatus,commissionAmount.amount,commissionAmount.currency,saleAmount.amount,"
        "clickRefs.clickRef,orderId\n25,sale,12.50,USD,55.96,C1,T1\n",
        "conversion_tracking_time;conversion_id;conversion_status;revenue;total_commission;"
        "click_subid\n2026-11-24 18:02:00;T1;sale;142.45;12.50;C1\n",
        "criterion;trackingtime;event;status;provision;turnover;subid\n"
        "T1;2026-11-24 18:02:00;Sale;sale;12.50;142.45;C1\n",
        "programName;timeOfEvent;orderNR;epi1;pendingStatus;affiliateCommission;orderValue\n"
        "Shop;2026-11-24 18:02;T1;C1;sale;12.50;100\n",
        "conversion_id,clickref,publisher_reference,conversion_status,currency,value,"
        "publisher_commission\nT1,1011lXyz,C1,sale,USD,100,12.50\n",
        "Conversion ID,Date,Status,Offer,Sub 1,Payouts\nT1,2026-11-24,sale,Shop,C1,12.5\n",
        "ID клика;ID транзакции;Статус;Выплата;Валюта;Дата\nC1;T1;sale;12,50;USD;24.11.2026\n",
        "SubID;Bestellnummer;Status;Provision;Währung;Datum\nC1;T1;sale;12,50;USD;24.11.2026\n",
        "id,subid,tid,status,original_status,previous_status,amount,currency,payout,network,"
        "created_at\n7,C1,T1,sale,,,12.5,USD,99,net,2026-11-24T00:00:00.000Z\n",
    ],
    ids=lambda content: content.splitlines()[0],
)
def test_columns_are_found_by_their_titles_in_any_order(
    tracker: Client, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    ran = call(tracker, capsys, "import", content)

    assert (ran.status, kept(tracker)) == (0, [ONE])


@pytest.mark.parametrize(
    ("name", "title"),
    [
        (name, title)
        for name, titles in {
            "subid": SUBID_TITLES,
            "tid": TID_TITLES,
            "status": STATUS_TITLES,
            "currency": CURRENCY_TITLES,
            "payout": (*PAYOUT_TITLES, *UNSURE_PAYOUT_TITLES),
            "time": TIME_TITLES,
        }.items()
        for title, _ in titles
    ],
)
def test_every_title_is_found_by_itself_and_means_one_thing(name: str, title: str) -> None:
    assert find_conversion_places(["x", title.upper()], {}).places == {name: 1}


def test_every_title_of_a_click_is_found() -> None:
    for name, titles in CLICK_TITLES.items():
        for title, _ in titles:
            assert find_click_names([title]) == [name], title
    every = [squeeze_title(title) for titles in CLICK_TITLES.values() for title, _ in titles]
    assert len(every) == len(set(every))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("visitor,payout,status\nC1,12.50,sale\n", ()),
        ("Клик,Сумма,Номер\nC1,12.50,T1\n", ()),
        ("Click ID,Betrag €\nC1,12.50\n", ()),
        ("date,payout\n2026-11-24,5\n", ()),
        ("payout\n5\n", ()),
        ("C1,5\n", ("--subid-column", "1")),
    ],
    ids=lambda part: part.splitlines()[0] if isinstance(part, str) else "",
)
def test_no_place_counts_where_titles_stand(
    tracker: Client, capsys: pytest.CaptureFixture[str], content: str, words: tuple[str, ...]
) -> None:
    ran = call(tracker, capsys, "import", content, *words)

    assert (ran.status, tracker.postbacks()) == (1, [])
    assert ("--no-titles" if words else "--subid-column") in ran.err


def test_unknown_titles_can_be_named(tracker: Client, capsys: pytest.CaptureFixture[str]) -> None:
    content = "Заказ,Клик,Сумма\nT1,C1,12.50\n"
    words = ("--subid-column=Клик", "--amount-column", "сумма", "--tid-column=1")

    ran = call(tracker, capsys, "import", content, *words)

    assert (ran.status, kept(tracker)) == (0, [ONE])
    assert "columns: subid 'Клик', payout 'Сумма', tid 'Заказ'" in ran.err


def test_a_column_that_somebody_named_is_read_as_nothing_else(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    content = "Receipt,Date,TID,Txn Type,Vendor,Amount\nT1,2026-11-24,C1,SALE,acme,12.50\n"

    ran = call(tracker, capsys, "import", content, "--subid-column", "TID")

    assert (ran.status, kept(tracker)) == (0, [ONE]), ran.err
    assert "columns: subid 'TID', payout 'Amount', tid 'Receipt', status 'Txn Type'" in ran.err


REPORT = "Click ID,Transaction ID,Payout,Status\nC1,T1,12.50,sale\n"
SEMICOLONS = REPORT.replace(",", ";")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (f"sep=;\n{SEMICOLONS}", ()),  # D32
        (f'"sep=;"\r\n{SEMICOLONS}', ()),
        (f"sep=,\n{REPORT}", ()),
        ("SEP=|\n" + REPORT.replace(",", "|"), ()),
        (f"\ufeffsep=;\n{SEMICOLONS}", ()),
        ("sep=\t\n" + REPORT.replace(",", "\t"), ()),
        (REPORT.replace(",", "|"), ()),  # D33
        (REPORT.replace(",", "\t"), ()),
        (f"Performance report\n2026-11-01 to 2026-11-25\n\n{REPORT}", ()),  # D34
        (f'"Performance report",,,\n"Account: 5",,,\n,,,\n{REPORT}', ()),
        (f"Report;Earnings\nFrom;24.11.2026\n\n{SEMICOLONS}", ()),
        (f"Click ID,C5\nTotal,1260.40\n{REPORT}", ("--skip-lines", "2")),
        (f"# made by a tool\n# by hand\n{REPORT}", ()),
        (f"\n{REPORT}", ()),  # D69
        (f"\n\n{REPORT}", ()),
        ('Report\n"Click\nID",Transaction ID,"Payout\r\n(USD)",Status\nC1,T1,12.50,sale\n', ()),
        (f'An "odd quote\n{REPORT}', ()),
        (REPORT.replace("\n", "\n\n"), ()),
        (REPORT.replace("\n", "\r\n"), ()),
        (REPORT.encode("utf-16"), ()),  # D35
        (REPORT.encode("utf-16-le"), ("--encoding", "utf-16-le")),
        (b"\xfe\xff" + REPORT.encode("utf-16-be"), ()),
        (REPORT.encode("utf-32"), ()),
        (REPORT.replace(",", "\t").encode("utf-16"), ()),
        (REPORT.encode("utf-8-sig"), ("--encoding", "windows-1251")),
        ('"Click ID", "Transaction ID", "Payout", "Status"\n"C1", "T1", "12.50", "sale"\n', ()),
        ('Click ID,Transaction ID,Payout\n"=""C1""","=""T1""","=""12.50"""\n', ()),  # D70
        ('Click ID,Transaction ID,Payout\n="C1",="T1",12.50\n', ()),
        ("Click ID,Transaction ID,Payout\n“C1”,„T1“,«12.50»\n", ()),
        (f"{REPORT}\x1a", ()),
        ("Click ID,Transaction ID,Payout\n\xa0C1\xa0,\u200bT1,12.50\xa0\n", ()),
        ("Click ID,Transaction ID,Payout\nC1,T1,'-12.50\n".replace("'-", ""), ()),
    ],
)
def test_tables_of_every_shape_are_read(
    tracker: Client, capsys: pytest.CaptureFixture[str], content: str | bytes, words: tuple[str]
) -> None:
    ran = call(tracker, capsys, "import", content, *words)

    assert (ran.status, kept(tracker)) == (0, [ONE]), ran.err

    again = call(tracker, capsys, "reconcile", content, *words, "--network", "nobody")

    assert (again.status, again.rows) == (0, [])
    assert again.err.splitlines()[-1] == "postback: 1 rows: 1 agree"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("C1,12.50,T1,sale\n", ()),
        ("C1|12.50|T1|sale\n", ()),  # D33
        ("C1;12.50;T1;sale\n", ()),
        ("C1\t12.50\tT1\tsale\n", ()),
        ("sep=;\nC1;12,50;T1;sale\n", ()),
        ("C1;12,50;T1;sale\n", ("--delimiter", ";")),
        ("C1|12,50|T1|sale\n", ("--delimiter", "bar")),
        ('"C1", "12.50", "T1", "sale"\n', ()),  # D55
        ("\n\nC1,12.50,T1\n\n", ()),
        ('"C1", "12.50", "T1", "sale\n"\n', ()),
        ('="C1",12.50,T1\n', ()),
        ("C1,12.50,T1\n".encode("utf-16"), ()),  # D35
        ("C1\t12.50\tT1\n".encode("utf-16"), ("--encoding=utf-16", "--delimiter=tab")),  # Q12
        ("subid\nC1,12.50,T1,sale\n", ()),
        ("junk\nmore\nC1,12.50,T1\n", ("--skip-lines", "2")),
        ("subid,12.50,T1\n".replace("subid", "C1"), ("--no-titles",)),
    ],
)
def test_lines_without_titles_stand_in_the_order_of_the_original(
    tracker: Client, capsys: pytest.CaptureFixture[str], content: str | bytes, words: tuple[str]
) -> None:
    ran = call(tracker, capsys, "import", content, *words)

    assert (ran.status, kept(tracker)) == (0, [ONE]), ran.err


@pytest.mark.parametrize("subid", ["s1", "cid", "U1", "order", "Reference"])
def test_a_click_id_that_happens_to_be_a_title_is_a_row(
    tracker: Client, capsys: pytest.CaptureFixture[str], subid: str
) -> None:
    tracker.click(subid)

    ran = call(tracker, capsys, "import", f"{subid}\n{subid},,order\n")

    assert (ran.status, kept(tracker)) == (1, [(subid, "", "sale", None, None)])
    assert len(tracker.postbacks()) == 2


def test_what_is_passed_over_is_said(tracker: Client, capsys: pytest.CaptureFixture[str]) -> None:
    ran = call(tracker, capsys, "reconcile", f"Report\nof November\n\n{REPORT}")

    assert "lines 1 to 2 are before the titles and are skipped" in ran.err
    assert ran.rows[0][0] == "5"


def test_a_row_before_the_titles_is_asked_about(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = call(tracker, capsys, "import", f"C2,5\n{REPORT}")

    assert (ran.status, tracker.postbacks()) == (1, [])
    assert "line 1 looks like a row ('C2,5')" in ran.err
    assert "--skip-lines 1" in ran.err


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (gzip.compress(REPORT.encode(), mtime=0), "packed with gzip (.gz): unpack it first"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"<html><table><tr><td>Click ID</td></tr></table>", "an HTML page"),
        (b"\xef\xbb\xbf\r\n <!DOCTYPE html>\n<p>", "an HTML page"),
        (b"<table border=1><tr><td>", "an HTML page"),
        (
            b'<?xml version="1.0"?><Workbook xmlns="urn:schemas-microsoft-com:office:spreadsheet">',
            "an XML workbook of Excel 2003",
        ),
        (b'<?xml version="1.0"?><transactions/>', "is XML"),
        (b'{"data": [{"subid": "C1"}]}', "is JSON"),
        (b'[{"subid": "C1"}]', "is JSON"),
        (b'{"subid": "C1"}\n{"subid": "C2"}\n', "is JSON"),
        (REPORT.encode("utf-16-le"), "UTF-16 without its mark"),
        (b"Rar!\x1a\x07", "a RAR archive"),
        (b"PK\x03\x04rubbish", "a broken ZIP"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel workbook (.xls)"),
        (pack({"content.xml": ""}), "a document of LibreOffice (.ods)"),
        (pack({"xl/workbook.bin": ""}), "a binary Excel workbook (.xlsb)"),
        (pack({"word/document.xml": ""}), "a Word document"),
        (build_xlsx({"R": []})[:-30], "a broken ZIP"),
        (pack({"xl/workbook.xml": "<workbook/>"}), "an Excel workbook (.xlsx) that cannot be read"),
        (b"\x89PNG\r\n\x1a\n", "a picture"),
        (b"SQLite format 3\0", "a database of SQLite"),
    ],
)
@pytest.mark.parametrize("command", ["import", "reconcile", "clicks import"])
def test_a_file_that_is_no_table_is_called_what_it_is(
    tracker: Client,
    capsys: pytest.CaptureFixture[str],
    command: str,
    content: bytes,
    sentence: str,
) -> None:
    ran = call(tracker, capsys, command, content)

    assert (ran.status, ran.out) == (1, "")
    assert sentence in ran.err
    assert ran.err.count("\n") == 1


def test_a_workbook_that_would_fill_the_memory_is_refused(
    tracker: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("postbackd.bulk.workbook.LARGEST_BYTES", 100_000)
    lonely = build_xlsx({"R": [TITLES, ("C1", "T1", 5)]}, far_cell="XFD1048576")
    bomb = pack({"xl/workbook.xml": "", "xl/worksheets/sheet1.xml": " " * 100_001})

    far = call(tracker, capsys, "import", lonely)
    large = call(tracker, capsys, "import", bomb)

    assert (far.status, large.status, tracker.postbacks()) == (1, 1, [])
    assert "extends to row 1,048,576 and column 16,384" in far.err
    assert "the workbook unpacks to 100,001 bytes, of which 100,000 are read" in large.err


def test_an_archive_is_reported_with_what_is_in_it(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = call(tracker, capsys, "import", pack({"report-2026-11.csv": REPORT}))

    assert ran.status == 1
    assert "a ZIP archive (with 'report-2026-11.csv' in it): unpack it first" in ran.err


TITLES: tuple[Cell, ...] = ("Click ID", "Transaction ID", "Payout", "Date", "Status")
DAY = Date(46350.75)  # 2026-11-24 18:00


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (build_xlsx({"Report": [TITLES, ("C1", "T1", 12.5, DAY, "sale")]}), ()),
        (build_xlsx({"R": [("Report",), (), (), TITLES, ("C1", "T1", "$12.50", DAY, "sale")]}), ()),
        (build_xlsx({"Notes": [("none",)], "R": [TITLES, ("C1", "T1", 12.5, DAY, "sale")]}), ()),
        (
            build_xlsx({"A": [TITLES, ("C1", "T1", 12.5)], "B": [TITLES, ("C2", "T2", 9)]}),
            ("--sheet", "A"),
        ),
        (build_xlsx({"A": [TITLES, ("C1", "T1", 12.5)], "B": [TITLES]}, hidden=["B"]), ()),
        (build_xlsx({"A": [("C1", 12.5, "T1")]}), ()),
    ],
    ids=["plain", "preamble", "sheets", "sheet", "hidden", "no titles"],
)
def test_workbooks_are_read(
    tracker: Client, capsys: pytest.CaptureFixture[str], content: bytes, words: tuple[str, ...]
) -> None:
    ran = call(tracker, capsys, "import", content, *words)

    assert (ran.status, kept(tracker)) == (0, [ONE]), ran.err


def test_numbers_and_times_of_a_workbook_are_what_was_typed(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.click("20260101")
    rows: list[tuple[Cell, ...]] = [
        ("Click ID", "Transaction ID", "Payout"),
        (20260101, 7.0, 0.1 + 0.2),
        ("C1", "T\n1", 1234.5),
        ("C3", 123456789012345678, 5),
    ]

    ran = call(tracker, capsys, "import", build_xlsx({"R": rows}), "--json")

    assert [found[:4] for found in kept(tracker)] == [
        ("20260101", "7", "sale", "0.3"),
        ("C1", "T 1", "sale", "1234.5"),
    ]
    assert ran.status == 1
    assert "'1.23457E+17' is a number that a spreadsheet has rounded" in ran.objects[2]["reason"]
    assert [told["line"] for told in ran.objects] == [2, 3, 4]


def test_a_workbook_with_several_tables_is_asked_about(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    content = build_xlsx({"Nov": [TITLES, ("C1", "T1", 5)], "Dec": [TITLES, ("C2", "T2", 5)]})

    several = call(tracker, capsys, "import", content)
    wrong = call(tracker, capsys, "import", content, "--sheet", "Oct")

    assert (several.status, wrong.status, tracker.postbacks()) == (1, 1, [])
    assert "say which, --sheet with one of 'Nov', 'Dec'" in several.err
    assert "no sheet is 'Oct': there are 'Nov', 'Dec'" in wrong.err


def test_without_the_extra_a_workbook_is_called_what_it_is(tracker: Client, tmp_path: Path) -> None:
    (tmp_path / "python_calamine").mkdir()
    (tmp_path / "python_calamine" / "__init__.py").write_text("raise ImportError\n")
    workbook = build_xlsx({"R": [TITLES, ("C1", "T1", 5)]})
    path = os.pathsep.join([str(tmp_path), build_environment({})["PYTHONPATH"]])

    ran = call_process(tracker.directory, "import", "-", stdin=workbook, PYTHONPATH=path)

    assert (ran.status, tracker.postbacks()) == (1, [])
    assert "the file is an Excel workbook (.xlsx)" in ran.err
    assert "pip install 'postback[xlsx]'" in ran.err


def test_a_workbook_comes_through_a_pipe(tracker: Client) -> None:
    workbook = build_xlsx({"R": [TITLES, ("C1", "T1", 12.5)]})

    ran = call_process(tracker.directory, "import", "-", stdin=workbook)

    assert (ran.status, kept(tracker)) == (0, [ONE])


@pytest.mark.parametrize(
    ("line", "whose"),
    [
        ("C2:5", "Binom's"),
        ("C2:5:Hold", "Binom's"),  # D31
        ("C2:auto:Hold", "Binom's"),
        ("C2::Hold", "Binom's"),
        ("C2:::event_1=15", "Binom's"),
        ("C3:payout=7:cnv_status=Hold", "Binom's"),  # D31
        ("C3:cnv_status=Hold", "Binom's"),
        ("C1:main, 47.00", "FunnelFlux's"),  # D63
        ("C1:main", "FunnelFlux's"),
        ("subid=C1&payout=5", "is a query"),
        ("https://t.example/key/postback?subid=C1&payout=5", "is a query"),
        ('"C1,12.50,T1,sale"', "are whole lines in quotes?"),
        ("C1;5;T1", "try --delimiter ';'"),
    ],
)
def test_lines_of_other_trackers_are_refused_with_whose_they_are(
    tracker: Client, capsys: pytest.CaptureFixture[str], line: str, whose: str
) -> None:
    among = call(tracker, capsys, "import", f"C4,5,T4\n{line}\n", "--json")
    first = call(tracker, capsys, "import", f"{line}\nC4,6,T5\n", "--json")

    told = among.objects[1]
    assert (among.status, told["line"], told["verdict"]) == (1, 2, "skipped")
    assert whose in told["reason"]
    if "delimiter" in whose:
        # A whole file in this form is read.
        return
    assert first.status == 1
    assert whose in (first.err if not first.out else first.objects[0]["reason"])
    assert {subid for subid, *_ in kept(tracker)} <= {"C4"}


def test_click_ids_with_colons_come_in_under_titles(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.click("a:5")

    ran = call(tracker, capsys, "import", "subid,payout\na:5,7\n")

    assert (ran.status, [found[0] for found in kept(tracker)]) == (0, ["a:5"])


@pytest.mark.parametrize(
    "row",
    [
        "Total,,1260.40,",  # D42
        "TOTAL:,,1260.40",
        "Grand Total,,1260.40,",
        "Totals,,1260.40,,",
        ",,1260.40,Total".replace(",Total", ""),
        "Итого,,1260.40,",
        "Summe,,1260.40,",
        "Total (USD),,1260.40,",
        "---,---,---,---",
        "Click ID,Transaction ID,Payout,Status",
        "click id , Transaction ID,Payout,Status".replace("click id ", "Click ID"),
    ],
)
def test_rows_that_are_none_are_set_apart(
    tracker: Client, capsys: pytest.CaptureFixture[str], row: str
) -> None:
    ran = call(tracker, capsys, "reconcile", f"{REPORT}{row}\n", "--json")

    reported = [found["subid"] for found in ran.objects]
    if row.startswith(","):
        # Its kind is unknown: it does not count as a row that agrees, and is reported.
        assert (reported, ran.objects[1]["differences"]) == (["C1", ""], ["unreadable"])
        return
    assert reported == ["C1"]
    assert re.search("left out, because they are no data: 1 (totals|titles again|ruled)", ran.err)


@pytest.mark.parametrize("command", ["import", "clicks import"])
def test_a_table_from_a_chat_is_read(
    tracker: Client, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    content = "| Click ID | TID | Payout |\n|:---|----|---:|\n| C1 | T1 | 12.50 |\n(1 row)\n"

    ran = call(tracker, capsys, command, content)

    assert "1 ruled lines" in ran.err
    # The last line has no click id, and is reported.
    assert ran.status == 1
    assert kept(tracker) == ([ONE] if command == "import" else [])


@pytest.mark.parametrize("command", ["import", "clicks import"])
def test_totals_and_titles_make_no_clicks(
    tracker: Client, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    content = "subid,payout,tid\nC1,5,T1\nsubid,payout,tid\nC3,5,T3\nTotal,10,\n"

    ran = call(tracker, capsys, command, content)

    assert ran.status == 0
    assert "left out, because they are no data: 1 titles again, 1 totals" in ran.err
    assert {row["subid"] for row in tracker.rows("SELECT subid FROM clicks")} == {
        *("C1", "C2", "C3", "C4", "CN")
    }


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("1.23457E+18,5,T1", "is a number that a spreadsheet has rounded"),
        ("C1,5,2.1E+15", "is a number that a spreadsheet has rounded"),
        ("* amounts in USD", "is a note, and no click id"),
        ("C1,1,234.50", "has no quotes"),
        ("C1 5.00", "is a note, and no click id"),
        ('C1,"5', "this is no CSV"),
        ("C1,5,T1,sale,USD,more", "is a value with commas unquoted?"),
    ],
)
def test_a_line_that_is_none_is_counted(
    tracker: Client, capsys: pytest.CaptureFixture[str], row: str, reason: str
) -> None:
    ran = call(tracker, capsys, "import", f"C4,5,T4\n{row}\n", "--json")

    assert (ran.status, ran.objects[1]["verdict"]) == (1, "skipped")
    assert reason in ran.objects[1]["reason"]
    assert ran.err.endswith("1 skipped; 1 not taken\n")


def test_a_repeat_with_another_amount_is_not_taken(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    # D52: other trackers add such lines up.
    ran = call(tracker, capsys, "import", "C1,5\nC1,7\nC1,5\n")

    assert ran.status == 1
    assert ran.err.endswith("3 lines: 1 recorded, 2 repeated; 1 not taken\n")
    assert "amount 7 USD was 5 USD" in ran.rows[1][-1]


# D53
@pytest.mark.parametrize("payout", ["-", "—", "–", "n/a", "N/A"])
def test_a_dash_is_no_amount(
    tracker: Client, capsys: pytest.CaptureFixture[str], payout: str
) -> None:
    ran = call(tracker, capsys, "import", f"C1,{payout},,sale\n", "--json")

    assert (ran.status, kept(tracker)) == (0, [("C1", "", "sale", None, None)])
    [warning] = ran.objects[0]["warnings"]
    assert warning == f"payout {payout!r} means that there is no amount"


def test_a_first_sale_below_nothing_is_warned_of(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    # D63: elsewhere -1 deletes.
    ran = call(tracker, capsys, "import", "C3,-1\nC1,5\n", "--json")

    [warning] = ran.objects[0]["warnings"]
    assert "the click's first conversion is worth -1" in warning
    assert "import it as rejected" in warning
    assert ran.objects[1]["warnings"] == []


CLICK = "SELECT subid, clicked_at, campaigns.name AS campaign, offers.name AS offer FROM clicks" + (
    " LEFT JOIN campaigns ON campaigns.id = campaign_id LEFT JOIN offers ON offers.id = offer_id"
)
AT = "2026-11-24T18:02:11.000Z"


@pytest.mark.parametrize(
    ("content", "clicked_at"),
    [
        # D60
        ("Click ID,Visit Timestamp,Campaign Name,Offer Name\nX1,{},Y,Z\n", "2026-11-24 18:02:11"),
        ("Click ID,Time,Campaign,Offer\nX1,{},Y,Z\n", "2026-11-24T18:02:11"),
        ("Click ID,Click time,Campaign,Offer\nX1,{},Y,Z\n", "2026-11-24 18:02:11"),
        ("Click ID;Click date;Campaign Name;Offer\nX1;{};Y;Z\n", "24.11.2026 18:02:11"),
        # D44
        ('"Sub ID";"Date/Time";"Campaign";"Offer"\n"X1";"{}";Y;Z\n', "24.11.2026 18:02:11"),
        ("subid|clicked_at|campaign|offer\nX1|{}|Y|Z\n", "1795543331"),
        ("subid,clicked_at,campaign,offer\nX1,{},Y,Z\n", "1795543331000"),  # D45
        # D69
        ("\nsubid,clicked_at,campaign,offer\nX1,{},Y,Z\n", "1795543331000000"),
        ("Clicks of November\n\nSub ID,Date,Campaign,Offer\nX1,{},Y,Z\n", "20261124180211"),
        # D32, D70
        ('sep=,\nsubid,Date,Campaign,Offer\n"=""X1""","{}",Y,Z\n', "11/24/2026 6:02:11 PM"),
        ("Sub ID|Date|Campaign|Offer\nX1|{}|Y|Z\n", "2026-11-24 18:02:11"),  # D33
        ('Campaign,Campaign Name,Date,subid,Offer\n7,Y,"{}",X1,Z\n', "Nov 24, 2026 6:02:11 pm"),
        ('subid,Date,campaign,offer\nX1,"{}",Y,Z\n', "Tue, 24 Nov 2026 18:02:11 +0000"),
        ("subid,Date,campaign,offer\nX1,{},Y,Z\n", "2026-11-24 21:02:11 +0300"),
        ("subid,Date,campaign,offer\nX1,{},Y,Z\n", "2026/11/24 18:02:11 UTC"),
    ],
)
def test_clicks_come_in_by_the_titles_and_times_of_other_trackers(
    client: Client, capsys: pytest.CaptureFixture[str], content: str, clicked_at: str
) -> None:
    ran = call(client, capsys, "clicks import", content.format(clicked_at))

    assert ran.status == 0, ran.err
    assert client.rows(CLICK) == [{"subid": "X1", "clicked_at": AT, "campaign": "Y", "offer": "Z"}]


def test_the_milliseconds_of_a_time_are_kept(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    # Q18
    content = "Sub ID,Date/Time\nX1,2026-11-24 18:02:11.123\n"

    assert call(client, capsys, "clicks import", content).status == 0
    assert client.rows(CLICK)[0]["clicked_at"] == "2026-11-24T18:02:11.123Z"


def test_lines_of_a_click_alone_are_sales(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    # Q03: the third field is a transaction id, whatever it says.
    content = "C1\nC2,5\nC3,5,payment\nC4,,,approved\n"

    ran = call(tracker, capsys, "import", content, "--sale-status", "approved")

    assert (ran.status, kept(tracker)) == (
        0,
        [
            ("C1", "", "sale", None, None),
            ("C2", "", "sale", "5", "USD"),
            ("C3", "payment", "sale", "5", "USD"),
            ("C4", "", "sale", None, None),
        ],
    )


def test_a_transaction_id_of_digits_is_no_amount(
    tracker: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    # D30
    content = "click_id,transaction_id,payout,status\nC1,20260101,12.50,approved\n"

    unmapped = call(tracker, capsys, "import", content)
    mapped = call(tracker, capsys, "import", content, "--status-map", "approved=sale")

    assert (unmapped.status, mapped.status) == (1, 0)
    assert kept(tracker) == [("C1", "20260101", "sale", "12.5", "USD")]


@pytest.mark.parametrize(
    ("times", "words", "kept_times"),
    [
        (["11/10/2026"], (), [None]),
        (["11/10/2026"], ("--dates", "day-first"), ["2026-10-11"]),
        (["11/10/2026"], ("--dates", "month-first"), ["2026-11-10"]),
        (["11/10/2026", "11/24/2026"], (), ["2026-11-10", "2026-11-24"]),
        (["11/10/2026", "24/11/2026"], (), ["2026-10-11", "2026-11-24"]),
        (["11/24/2026", "24/11/2026", "11/10/2026"], (), ["2026-11-24", "2026-11-24", None]),
        (["11-10-2026", "24-11-2026"], (), ["2026-10-11", "2026-11-24"]),
        (["11.10.2026", "11/11/2026"], (), ["2026-10-11", "2026-11-11"]),
        (["11.10.26", "13:00", "last week", "46350"], (), [None, None, None, None]),
        # Rakuten's and Tradedoubler's: of three numbers below 32 any may be the year.
        (["11/24/26", "11/10/26"], (), ["2026-11-24", "2026-11-10"]),
        (["24/11/26", "13.11.26", "26-11-24"], (), [None, None, None]),
        (["24.11.26 18:02", "11/10/26"], ("--dates", "day-first"), ["2026-11-24", "2026-10-11"]),
        (["24/11/2026", "11/10/26"], (), ["2026-11-24", "2026-10-11"]),
        (["1/2/345", "2026/24/11", "11/24/6"], (), [None, None, None]),
        (["11/10/2026 13:00 PM", "31.02.2026"], (), [None, None]),
    ],
)
def test_a_date_with_two_readings_is_read_where_the_file_or_an_option_says_how(
    client: Client,
    capsys: pytest.CaptureFixture[str],
    times: list[str],
    words: tuple[str, ...],
    kept_times: list[str | None],
) -> None:
    rows = "".join(f"X{n},{time}\n" for n, time in enumerate(times))

    ran = call(client, capsys, "clicks import", f"subid,date\n{rows}", *words)

    found = [
        row["clicked_at"] for row in client.rows("SELECT clicked_at FROM clicks ORDER BY subid")
    ]
    assert [at and at[:10] for at in found] == kept_times
    assert ran.status == int(None in kept_times)
    assert ran.err.count("is no time") == kept_times.count(None)


@pytest.mark.parametrize(
    ("time", "at"),
    [
        ("24.11.2026 18:02:11", "2026-11-24T15:02:11.000Z"),
        ("Nov 24, 2026 6:02:11 PM", "2026-11-24T15:02:11.000Z"),
        ("24.11.2026 18:02:11 UTC", AT),
        ("1795543331000", AT),
    ],
)
def test_times_without_a_zone_are_in_the_one_that_is_said(
    client: Client, capsys: pytest.CaptureFixture[str], time: str, at: str
) -> None:
    content = f'subid,date\nX1,"{time}"\n'

    assert call(client, capsys, "clicks import", content, "--tz=+03:00").status == 0
    assert client.rows("SELECT clicked_at FROM clicks")[0]["clicked_at"] == at


def test_titles_are_found_in_typed_lines(tracker: Client) -> None:
    running = subprocess.Popen(
        build_command("import", "-"),
        cwd=tracker.directory,
        env=build_environment({}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert running.stdin is not None
    assert running.stderr is not None
    # The pipe stays open: the titles must be read before more lines come.
    running.stdin.write(b"tid,subid,payout\n")
    running.stdin.flush()
    ready, _, _ = select.select([running.stderr], [], [], PATIENCE_SECONDS)
    told = running.stderr.readline().decode() if ready else ""
    running.stdin.write(b"T1,C1,12.50\n")
    running.communicate(timeout=PATIENCE_SECONDS)

    assert "columns: subid 'subid', payout 'payout', tid 'tid'" in told
    assert kept(tracker) == [ONE]


def test_the_readers_of_files_know_nothing_of_the_command_line() -> None:
    script = (
        "import importlib, pkgutil, sys, postbackd.bulk\n"
        "for module in pkgutil.iter_modules(postbackd.bulk.__path__, 'postbackd.bulk.'):\n"
        "    importlib.import_module(module.name)\n"
        "known = [name for name in sys.modules if name.startswith('postbackd.cli')]\n"
        "assert not known + [name for name in sys.modules if name == 'argparse'], known"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=build_environment({}),
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
