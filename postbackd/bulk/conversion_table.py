"""Conversions in a table of a network or tracker: its columns found, its rows read as lines."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import BinaryIO, NamedTuple

from postbackd.bulk.conversion_lines import LINE_NAMES, RawLine
from postbackd.bulk.csv_file import Records, UnusableFileError
from postbackd.bulk.odd_rows import Aside, find_oddity, is_plain
from postbackd.bulk.table_file import Shape, TableFile, Titles
from postbackd.bulk.titles import COLUMN_NAMES, PAYOUT, TIME, Places, find_conversion_places
from postbackd.intake.query import quote_value

_NO_CLICK_ID = (
    "no column is known to have the click id: name it with --subid-column, or, where the first line"
    " is a row already, give the columns by number with --no-titles"
)

# The order without titles and options: Keitaro's.
_PLACES_OF_LINES: Mapping[str, int] = {name: place for place, name in enumerate(LINE_NAMES)}

# `81e60:5:Hold` and `81e60:payout=5:cnv_status=Hold`. Source: Binom's documentation, "Manual
# conversions update" and "Payout tracking".
_BINOM = re.compile(r"[^:\s]+:(?:[0-9.]*|auto)(?::.*)?|[^:\s]+(?::[a-z_]+[0-9]*=[^:]*)+")
# `01dke:main, 47.00`. Source: FunnelFlux's documentation, "Updating conversion data".
_FUNNELFLUX = re.compile(r"[^:\s]+:[^:]+")
_QUERY = re.compile(r"(?:.*[?&])?(?:subid|sub_id|clickid|click_id)=.*", re.IGNORECASE)

# So many rows are looked at for another column of click ids.
SAMPLE_ROWS = 1000

# A cell as it written in a line, with its quotes.
_RAW_CELL = re.compile(r'\s*("(?:[^"]|"")*"|[^,]*)\s*(?:,|$)')
# The first part of `12,50` and of `$1,234.50` where the comma cuts them.
_WHOLE = re.compile(r"[^\w\s]{0,2}[0-9]+")
_REST = re.compile(r"[0-9]{3}\.[0-9]{1,2}")
_REST_OF_DECIMAL_COMMA = re.compile(r"[0-9]{1,2}|[0-9]{3}\.[0-9]{1,2}")


class Row(NamedTuple):
    """A numbered row: its texts, its time as written, and its flaw."""

    number: int
    said: RawLine
    time: str = ""
    flaw: str = ""


class Columns(NamedTuple):
    """The place of each of our names in a row, and the titles (empty: the file has none)."""

    places: Mapping[str, int]
    titles: Sequence[str]
    currency: str | None = None

    def describe(self) -> str:
        """Write which column is read as which name."""
        return "columns: " + ", ".join(
            f"{name} {self.titles[place] if self.titles else place + 1!r}"
            for name, place in self.places.items()
        )

    def describe_unread(self) -> str:
        """Write which columns are ignored; empty where all are read."""
        unread = [t for place, t in enumerate(self.titles) if t and place not in self._read()]
        return f"ignored columns: {', '.join(map(repr, unread))}" if unread else ""

    def _read(self) -> frozenset[int]:
        return frozenset(self.places.values())


class ConversionTitles:
    """The titles of columns of conversions, and the titles given as options."""

    def __init__(self, given: Mapping[str, str]) -> None:
        """Remember the titles or numbers given for our names."""
        self._given = given

    def count(self, titles: Sequence[str]) -> int:
        """Count our names that have a title among the cells."""
        # Names, not titles: a row may have two words that are titles of one name.
        return len(find_conversion_places(titles, self._given).places)

    def has_click_id(self, titles: Sequence[str]) -> bool:
        """Return whether one of them is a known title of click ids."""
        return "subid" in find_conversion_places(titles, self._given).places

    def describe_missing(self, titles: Sequence[str]) -> str:
        """Write what to do where no title is one of click ids."""
        if "subid" in self._given:
            return (
                f"no column is {self._given['subid']!r}: say --no-titles where the first line is a"
                " row already"
            )
        return _NO_CLICK_ID


class ConversionTable:
    """The rows of a file of conversions; a file with ambiguous columns is refused."""

    def __init__(
        self,
        source: BinaryIO,
        shape: Shape,
        given: Mapping[str, str],
        wanted: Titles,
        *,
        names: Sequence[str] = COLUMN_NAMES,
        decimal_comma: bool = False,
    ) -> None:
        """Read the titles of an open file, with the options about its form and columns."""
        self._names = names
        self._given = given
        self._file = TableFile(source, shape, ConversionTitles(given), wanted)
        self.notes = self._file.notes
        self.columns = self._find_columns(given, wanted)
        # Lines as for Keitaro's import.
        self._is_ours = wanted is Titles.POSSIBLE and not self._file.titles
        self._is_loose = decimal_comma or self._is_ours
        # The second part of an amount that a comma has cut.
        self._rest = _REST_OF_DECIMAL_COMMA if decimal_comma else _REST
        self._said = [self.columns.places.get(name) for name in LINE_NAMES]
        self._time = self.columns.places.get(TIME)
        self._width = len(LINE_NAMES) if self.is_in_order else len(self.columns.titles)
        if self._is_ours and (form := find_foreign_form(self._file.first, self._file.delimiter)):
            raise UnusableFileError(form)
        self.find_position = self._file.find_position
        # Rows that are no conversions, by kind.
        self.aside: Counter[Aside] = Counter()

    @property
    def is_in_order(self) -> bool:
        """Whether the columns are in the order of `LINE_NAMES`."""
        return self.columns.places is _PLACES_OF_LINES

    def look_through(self, name: str) -> Iterator[str]:
        """Yield all cells of a column before the rows are read; none where that is impossible."""
        place = self.columns.places.get(name)
        return iter(()) if place is None else self._file.look_through(place)

    def find_doubt(self, find_known: Callable[[Sequence[str]], Sequence[str]]) -> str:
        """Say which other column holds clicks that are known, where that of the click ids has none.

        Affise, Partnerize and others have a click id of their own beside the one that they were
        given. Empty where nothing is in doubt: where somebody named the column, too.
        """
        own = self.columns.places["subid"]
        if "subid" in self._given or not self.columns.titles or self._count_known(own, find_known):
            return ""
        places = [place for place, title in enumerate(self.columns.titles) if title]
        counts = {place: self._count_known(place, find_known) for place in places}
        best = max(counts, key=lambda place: counts[place])
        if not counts[best]:
            return ""
        titles = self.columns.titles
        return (
            f"no click id under {titles[own]!r} is known, but {counts[best]} under {titles[best]!r}"
            f" are: say which column it is, --subid-column {titles[best]!r} or {titles[own]!r}"
        )

    def _count_known(self, place: int, find_known: Callable[[Sequence[str]], Sequence[str]]) -> int:
        cells = {cell.strip() for cell in self._file.look_through(place, SAMPLE_ROWS)}
        return len(find_known(sorted(cells - {""})))

    def read(self) -> Iterator[list[Row]]:
        """Yield the rows, some at a time; empty ones are left out."""
        for records in self._file.read():
            yield list(self._read_records(records))

    def _find_columns(self, given: Mapping[str, str], wanted: Titles) -> Columns:
        titles = self._file.titles
        if wanted is Titles.NONE:
            places = _find_numbers(given)
        elif wanted is Titles.POSSIBLE and _is_order_of_lines(titles):
            # The first row may have fewer cells than a line has fields.
            places = _PLACES_OF_LINES
        else:
            found = find_conversion_places(titles, given)
            _refuse_doubt(found, titles, given)
            places = {n: place for n, place in found.places.items() if n in self._names}
            return Columns(places, titles, found.currency)
        return Columns(places, titles)

    def _read_records(self, records: Records) -> Iterator[Row]:
        places, titles = self.columns.places, self.columns.titles
        subid, tid = places["subid"], places.get("tid")
        title = titles[subid] if titles else ""
        rows = zip(records.numbers, records.cells, records.texts, strict=True)
        for number, cells, text in rows:
            if is_plain(_get(cells, subid), title, _get(cells, tid)):
                yield self._read_row(number, cells, self._find_flaw(cells, text))
            elif number in records.flaws:
                yield Row(number, RawLine(), flaw=records.flaws[number])
            elif any(map(str.strip, cells)):
                yield from self._read_odd(number, cells, text)

    def _read_odd(self, number: int, cells: Sequence[str], text: str) -> Iterator[Row]:
        oddity = find_oddity(cells, self.columns.places, self.columns.titles)
        if oddity is not None and oddity.aside is not None:
            self.aside[oddity.aside] += 1
            return
        flaw = self._find_flaw(cells, text)
        if oddity is not None:
            flaw = oddity.flaw
        elif self._is_ours and not flaw:
            flaw = find_foreign_form(cells, self._file.delimiter)
        yield self._read_row(number, cells, flaw)

    def _read_row(self, number: int, cells: Sequence[str], flaw: str) -> Row:
        said = RawLine(*[_get(cells, place) for place in self._said])
        return Row(number, said, _get(cells, self._time).strip(), flaw)

    def _find_flaw(self, cells: Sequence[str], text: str) -> str:
        width = self._width
        if width and any(cells[width:]):
            what = f"{len(cells)} cells under {width} titles"
            if self.is_in_order:
                what = f"{len(cells)} fields, and a line has {','.join(LINE_NAMES)}"
            return f"{what}: is a value with commas unquoted?"
        # With titles one cell too many shows the cut, except where cells are missing at the end.
        is_loose = self._is_loose or len(cells) < width
        if is_loose and self._is_cut(cells, text):
            return "an amount with a comma in it has no quotes: put it in quotes"
        return ""

    def _is_cut(self, cells: Sequence[str], text: str) -> bool:
        """Return whether an amount without quotes was cut at its own comma."""
        place = self.columns.places.get(PAYOUT)
        if place is None or place + 1 >= len(cells) or not _WHOLE.fullmatch(cells[place].strip()):
            return False
        if self._file.delimiter != "," or not self._rest.fullmatch(cells[place + 1].strip()):
            return False
        raw = [found[1] for found in _RAW_CELL.finditer(text.rstrip("\r\n"))]
        return not raw[place].startswith('"') and not raw[place + 1].startswith('"')


def _get(cells: Sequence[str], place: int | None) -> str:
    return "" if place is None or place >= len(cells) else cells[place]


def find_foreign_form(cells: Sequence[str], delimiter: str) -> str:
    """Return which other tracker's form a line of conversions has; empty for ours."""
    first = cells[0].strip() if cells else ""
    is_alone = not any(cell.strip() for cell in cells[1:])
    takes = f"`import` takes {','.join(LINE_NAMES)}"
    if _QUERY.fullmatch(first):
        return f"{quote_value(first)} is a query: `postback explain` reads one"
    if is_alone and _BINOM.fullmatch(first):
        return f"{quote_value(first)} is a line of Binom's (click:payout:status): {takes}"
    if _FUNNELFLUX.fullmatch(first):
        whose = f"{quote_value(first)} is a line of FunnelFlux's (click:transaction, payout)"
        return f"{whose}: {takes}"
    if is_alone and "," in first:
        return f"{quote_value(first)} is one field: are whole lines in quotes?"
    other = next((sign for sign in ";\t|" if sign != delimiter and sign in first), None)
    if is_alone and other:
        return f"{quote_value(first)} is one field: try --delimiter {other!r}"
    return ""


def _find_numbers(given: Mapping[str, str]) -> Mapping[str, int]:
    """Return the places of columns given by number, for a file without titles."""
    places = {}
    for name, text in given.items():
        if not text.isascii() or not text.isdigit() or int(text[:9]) < 1:
            raise UnusableFileError(f"no column is {text!r}: without titles, give its number")
        places[name] = int(text) - 1
    if "subid" not in places:
        raise UnusableFileError(_NO_CLICK_ID)
    return {name: places[name] for name in COLUMN_NAMES if name in places}


def _is_order_of_lines(titles: Sequence[str]) -> bool:
    names = tuple(title.casefold() for title in titles)
    return names == LINE_NAMES[: len(names)]


def _refuse_doubt(found: Places, titles: Sequence[str], given: Mapping[str, str]) -> None:
    seen = ", ".join(map(repr, titles))
    for name, text in given.items():
        if name not in found.places:
            raise UnusableFileError(f"no column is {text!r} (the titles are {seen})")
    if found.rivals and PAYOUT not in given:
        rivals = " or ".join(map(repr, found.rivals))
        raise UnusableFileError(
            f"the amount may be {rivals}: say which with --amount-column, by title or number, such"
            f" as --amount-column {found.rivals[0]!r}"
        )
