"""The kind of a file by its first bytes, whatever its name is."""

import re
import zipfile
from typing import BinaryIO, NamedTuple

# Enough to recognise every kind below.
HEAD_BYTES = 4096

_AS_CSV = "open it in a spreadsheet and save it as CSV (UTF-8)"
_UNPACK = "unpack it first"


class FileKind(NamedTuple):
    """The kind of a file, and what to do; `workbook` may read one with `is_workbook`."""

    name: str
    remedy: str
    is_workbook: bool = False


# Source: file(1)'s descriptions of the formats, and their specifications.
_MAGIC: tuple[tuple[bytes, FileKind], ...] = (
    (b"\xd0\xcf\x11\xe0", FileKind("an old Excel workbook (.xls), or a locked one", _AS_CSV)),
    (b"\x1f\x8b", FileKind("packed with gzip (.gz)", _UNPACK)),
    (b"BZh", FileKind("packed with bzip2 (.bz2)", _UNPACK)),
    (b"\xfd7zXZ", FileKind("packed with xz (.xz)", _UNPACK)),
    (b"\x28\xb5\x2f\xfd", FileKind("packed with zstd (.zst)", _UNPACK)),
    (b"7z\xbc\xaf", FileKind("a 7z archive", _UNPACK)),
    (b"Rar!", FileKind("a RAR archive", _UNPACK)),
    (b"%PDF", FileKind("a PDF", "ask for the report as CSV")),
    (b"{\\rtf", FileKind("a text of a word processor (.rtf)", "save it as plain text")),
    (b"SQLite format 3\0", FileKind("a database of SQLite", "export its rows as CSV")),
    (b"PAR1", FileKind("a Parquet file", "export it as CSV")),
    (b"\x89PNG", FileKind("a picture", "ask for the report as CSV")),
    (b"\xff\xd8\xff", FileKind("a picture", "ask for the report as CSV")),
)
_PAGE = re.compile(rb"\s*<(?:!doctype|html|head|body|table|meta|style|\?xml|!--)", re.IGNORECASE)
_OBJECT = re.compile(rb'\s*(?:\[\s*)?\{\s*(?:"|\})|\s*\[\s*[\["]')

HTML = FileKind("an HTML page (some networks give it the name .xls)", _AS_CSV)
SPREADSHEET_XML = FileKind("an XML workbook of Excel 2003", _AS_CSV)
XML = FileKind("XML", "ask for the report as CSV")
JSON = FileKind("JSON", "ask for the report as CSV")
BINARY = FileKind(
    "no text, or UTF-16 without its mark", "for UTF-16 add --encoding utf-16-le or utf-16-be"
)
_WORKBOOK = "xl/workbook.xml"
_DOCUMENTS = {
    "xl/workbook.bin": "a binary Excel workbook (.xlsb)",
    "content.xml": "a document of LibreOffice (.ods)",
    "word/document.xml": "a Word document (.docx)",
    "Index/Document.iwa": "a document of Apple's (.numbers)",
}


def find_kind(head: bytes) -> FileKind | None:
    """Return the kind of a file with these first bytes; None for text with rows, or a ZIP."""
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    text = head.removeprefix(b"\xef\xbb\xbf")
    if _PAGE.match(text):
        return _find_markup(text)
    if _OBJECT.match(text):
        return JSON
    has_mark = head[:2] in {b"\xff\xfe", b"\xfe\xff"}
    return BINARY if b"\0" in head and not has_mark else None


def is_zip(head: bytes) -> bool:
    """Return whether it is a ZIP, as workbooks are."""
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def find_zip_kind(source: BinaryIO) -> FileKind:
    """Return the kind of a ZIP, by the names in it."""
    try:
        with zipfile.ZipFile(source) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
        return FileKind("a broken ZIP", "download it again")
    if _WORKBOOK in names:
        return FileKind("an Excel workbook (.xlsx)", _AS_CSV, is_workbook=True)
    for member, name in _DOCUMENTS.items():
        if member in names:
            return FileKind(name, _AS_CSV)
    shown = ", ".join(repr(name) for name in names[:3])
    return FileKind(f"a ZIP archive (with {shown or 'nothing'} in it)", _UNPACK)


def _find_markup(head: bytes) -> FileKind:
    lower = head.lower()
    if b"urn:schemas-microsoft-com:office:spreadsheet" in lower:
        return SPREADSHEET_XML
    return HTML if b"<html" in lower or b"<table" in lower or b"<!doctype" in lower else XML
