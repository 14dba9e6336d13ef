"""Files of other people for the commands that read them: a tracker to read them into, workbooks."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

import pytest
from cli_calls import Ran
from conftest import Client

from postbackd.cli import entry as cli

# The real inputs' setting: offer O1 without rebills, O2 with them, a click without an offer.
CLICKS = {"C1": "O1", "C2": "O2", "C3": "O1", "C4": "O1", "CN": None}


def set_up(client: Client) -> Client:
    """Give the receiver the clicks and the rates of the real inputs."""
    for subid, offer in CLICKS.items():
        client.click(subid, campaign="Winter", **({} if offer is None else {"offer": offer}))
    client.allow_rebills("O2")
    for currency, rate in (("EUR", "1.25"), ("RUB", "0.01")):
        config = str(client.directory / "config.ini.php")
        assert cli.main(["rates", "set", currency, rate, "--config", config]) == 0
    return client


def call(
    client: Client,
    capsys: pytest.CaptureFixture[str],
    command: str,
    content: str | bytes,
    *words: str,
) -> Ran:
    """Call `import`, `reconcile` or `clicks import` with a file."""
    path = client.directory / "theirs"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    config = str(client.directory / "config.ini.php")
    capsys.readouterr()
    status = cli.main([*command.split(), str(path), *words, "--config", config])
    return Ran(status, *capsys.readouterr())


def kept(client: Client) -> list[tuple[str, str, str, str | None, str | None]]:
    """Every conversion: click, transaction, status, amount, currency."""
    return [(c.subid, c.tid, c.status, c.amount, c.currency) for c in client.conversions()]


Cell = str | int | float | None
Rows = Sequence[Sequence[Cell]]

# The second format is a date's: numbers under it are days since 1899-12-30.
_STYLES = (
    '<styleSheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main">'
    '<cellXfs count="2"><xf numFmtId="0"/><xf numFmtId="22" applyNumberFormat="1"/></cellXfs>'
    "</styleSheet>"
)
_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_LINKS = "http://schemas.openxmlformats.org/package/2006/relationships"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


class Date(float):
    """Days since 1899-12-30, shown as a date."""


def build_xlsx(sheets: Mapping[str, Rows], hidden: Sequence[str] = (), far_cell: str = "") -> bytes:
    """Build a small workbook of Excel's, each sheet with a cell far from all others if wanted."""
    named = "".join(
        f'<sheet name="{escape(name)}" sheetId="{n}" r:id="r{n}"'
        f"{' state=' + chr(34) + 'hidden' + chr(34) if name in hidden else ''}/>"
        for n, name in enumerate(sheets, 1)
    )
    links = "".join(
        f'<Relationship Id="r{n}" Type="{_OFFICE}/worksheet" Target="worksheets/sheet{n}.xml"/>'
        for n in range(1, len(sheets) + 1)
    )
    links += f'<Relationship Id="s" Type="{_OFFICE}/styles" Target="styles.xml"/>'
    parts = {
        "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/'
        'content-types"><Default Extension="xml" ContentType="application/xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{_LINKS}"><Relationship Id="w" '
        f'Type="{_OFFICE}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{_MAIN}" xmlns:r="{_OFFICE}"><sheets>{named}</sheets>'
        "</workbook>",
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{_LINKS}">{links}</Relationships>',
        "xl/styles.xml": _STYLES,
        **{
            f"xl/worksheets/sheet{n}.xml": _build_sheet(rows, far_cell)
            for n, rows in enumerate(sheets.values(), 1)
        },
    }
    return pack(parts)


def _build_sheet(rows: Rows, far_cell: str) -> str:
    lines = "".join(
        f'<row r="{n}">{"".join(_cell(value, n, place) for place, value in enumerate(row))}</row>'
        for n, row in enumerate(rows, 1)
        if row
    )
    if far_cell:
        lines += f'<row><c r="{far_cell}"><v>0</v></c></row>'
    return f'<worksheet xmlns="{_MAIN}"><sheetData>{lines}</sheetData></worksheet>'


def _cell(value: Cell, row: int, place: int) -> str:
    name = f"{chr(ord('A') + place)}{row}"
    if value is None:
        return ""
    if isinstance(value, str):
        return f'<c r="{name}" t="inlineStr"><is><t>{escape(value)}</t></is></c>'
    style = ' s="1"' if isinstance(value, Date) else ""
    return f'<c r="{name}"{style}><v>{float(value)!r}</v></c>'


def pack(parts: Mapping[str, str]) -> bytes:
    """Build a ZIP."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            archive.writestr(name, text)
    return packed.getvalue()
