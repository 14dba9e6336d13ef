"""How PHP reads INI text: parse_ini_file(file, true, INI_SCANNER_NORMAL).

Measured from the outside with PHP 8.2, quirk by quirk; the tests hold the tables.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NoReturn, TypeAlias, cast

Value: TypeAlias = "str | list[str] | dict[str, str]"
Values: TypeAlias = "dict[str, Value | dict[str, Value]]"

# "word": a bare yes, no, none, null or the like was in the file. "mangled": the value that PHP
# returns is not the text in the file. "structure": PHP drops or skips lines.
NoteKind: TypeAlias = Literal["word", "mangled", "structure"]

# PHP compares these without regard to case.
WORDS: Mapping[str, str] = {
    **dict.fromkeys(("true", "on", "yes"), "1"),
    **dict.fromkeys(("false", "off", "no", "none", "null"), ""),
}

# The constants of PHP itself that a value can hit by accident and that are the same in every
# PHP on Linux. Others that look like one only draw a warning (LOOKS_LIKE_A_CONSTANT).
CONSTANTS: Mapping[str, str] = {
    "E_ERROR": "1",
    "E_WARNING": "2",
    "E_PARSE": "4",
    "E_NOTICE": "8",
    "E_CORE_ERROR": "16",
    "E_CORE_WARNING": "32",
    "E_COMPILE_ERROR": "64",
    "E_COMPILE_WARNING": "128",
    "E_USER_ERROR": "256",
    "E_USER_WARNING": "512",
    "E_USER_NOTICE": "1024",
    "E_STRICT": "2048",
    "E_RECOVERABLE_ERROR": "4096",
    "E_DEPRECATED": "8192",
    "E_USER_DEPRECATED": "16384",
    "E_ALL": "32767",
    "DIRECTORY_SEPARATOR": "/",
    "PATH_SEPARATOR": ":",
    "PHP_EOL": "\n",
    "PHP_INT_SIZE": "8",
    "PHP_INT_MAX": "9223372036854775807",
    "PHP_INT_MIN": "-9223372036854775808",
    "PHP_OS": "Linux",
    "PHP_OS_FAMILY": "Linux",
    "INI_USER": "1",
    "INI_PERDIR": "2",
    "INI_SYSTEM": "4",
    "INI_ALL": "7",
    "M_PI": "3.1415926535898",
    "M_E": "2.718281828459",
}
LOOKS_LIKE_A_CONSTANT = re.compile(r"(?:PHP|E|M|INI|SORT|LOG|LC|SEEK|LOCK|UPLOAD_ERR)_[A-Z0-9_]+")

# A settings file has no deeper brackets; without a limit, a line of "(" exhausts the stack.
MAX_BRACKETS = 100

_LABEL = r"[^=\n\r\t;&|^$~(){}!\"\[]+"
_Constants: TypeAlias = Callable[[str], str]

_NAME = re.compile(_LABEL)
_OPENED_NAME = re.compile(rf"({_LABEL})\[[ \t]*")
_EQUALS = re.compile(r"[ \t]*=[ \t]*")
_NEWLINE = re.compile(r"\r\n|\r|\n")
_BLANK = re.compile(r"[ \t]*(?:;[^\r\n]*(?:\r\n|\r|\n|\Z)|\r\n|\r|\n)|[ \t]+")
_SECTION_TAIL = re.compile(r"\][ \t]*(?:\r\n|\r|\n)?")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,18}")
_LEADING_NUMBER = re.compile(r"[ \t\n\v\f\r]*([+-]?)0*([0-9]*)")
_QUOTED_TEXT = re.compile(r"(?:\$(?!\{)|\\(?=\"(?:[\r\n]|\Z))|\\.|[^\"\\$])*", re.DOTALL)
_ESCAPE = re.compile(r"\\([\"\\$])")
_BLANKS = re.compile(r"[ \t]*")
_VALUE_TOKEN = re.compile(
    r"""
      (?P<newline> [ \t]*(?:\r\n|\r|\n) | '(?=') | \$?\Z )
    | (?P<comment> [ \t]*;[^\r\n]*(?P<after>\r\n|\r|\n)? )
    | (?P<quote>   [ \t]*\" )
    | (?P<raw>     '[^']+' )
    | (?P<cut>     ' )
    | (?P<open>    \$\{ )
    | (?P<word>    (?: [^=\n\r\t\ ;&|^~()!"'$] | \$(?:\\.|[^{\\]) )+ )
    | (?P<sign>    [&|^~()!] )[ \t]*
    | (?P<space>   [ \t]+ )
    | (?P<other>   . )
    """,
    re.VERBOSE | re.DOTALL,
)
_TEXT_KINDS = ("quote", "raw", "open", "word", "space")
_HEADING_TOKEN = re.compile(
    r"""
      (?P<close>   \] )
    | (?P<quote>   [ \t]*\" )
    | (?P<raw>     '[^']+' )
    | (?P<open>    \$\{ )
    | (?P<word>    (?: [^\n\r;"'$\]\\] | \\. | \$(?:\\.|[^{\\]) )+ )
    """,
    re.VERBOSE | re.DOTALL,
)


class IniError(Exception):
    """PHP refuses the text: the line, and a sentence without any value of the file."""

    def __init__(self, line: int, sentence: str) -> None:
        """Set the line and the sentence."""
        super().__init__(f"line {line}: {sentence}")
        self.line = line
        self.sentence = sentence


@dataclass(frozen=True, slots=True)
class Note:
    """Something PHP does with the text that its author may not expect."""

    line: int
    sentence: str
    kind: NoteKind
    section: str | None = None
    key: str | None = None  # None: about the file, not about one key


@dataclass(frozen=True, slots=True)
class Entry:
    """One `key = value` that PHP reads, and the place of its value in the text."""

    section: str | None  # None: above the first section
    key: str
    value: str = field(repr=False)
    line: int
    start: int
    end: int
    word: str | None  # "no", "none", "true": the bare word that PHP replaced by "" or "1"
    in_list: bool  # written as key[] or key[name]


@dataclass(frozen=True, slots=True)
class Ini:
    """The values that PHP reads, their places, and notes about what is odd."""

    values: Values = field(repr=False)
    entries: tuple[Entry, ...]
    warnings: tuple[Note, ...]

    def entry(self, section: str | None, key: str) -> Entry | None:
        """Return the entry that sets the key, or None."""
        found = [e for e in self.entries if e.section == section and e.key == key]
        return found[-1] if found else None

    def line(self, section: str | None, key: str) -> int | None:
        """Return the line of a key."""
        entry = self.entry(section, key)
        return entry.line if entry else None


def parse_ini(text: str, environ: Mapping[str, str]) -> Ini:
    """Read INI text as PHP does; raise IniError with the line where PHP refuses it.

    `${NAME}` is looked up in environ only; PHP would look in its own settings first.
    """
    return _Reader(text, environ).read()


def is_plain(text: str) -> bool:
    """Return whether PHP reads this text, unquoted, unchanged."""
    return (
        re.fullmatch(r"[A-Za-z0-9._/:@+-]+", text) is not None
        and text.lower() not in WORDS
        and text not in CONSTANTS
        and not LOOKS_LIKE_A_CONSTANT.fullmatch(text)
    )


@dataclass(slots=True)
class _Piece:
    """A value being read: its text so far, and the next token."""

    start: int
    end: int
    kinds: list[str] = field(default_factory=list)
    word: str | None = None


class _Reader:
    def __init__(self, text: str, environ: Mapping[str, str]) -> None:
        self.text = text.partition("\0")[0]
        self.environ = environ
        self.at = 0
        self.breaks = [m.end() for m in _NEWLINE.finditer(self.text)]
        self.section: str | None = None
        self.values: Values = {}
        self.entries: list[Entry] = []
        self.notes: list[Note] = []
        self.sections: set[str] = set()
        self.key: str | None = None
        self.piece = _Piece(0, 0)
        if len(self.text) < len(text):
            self._note(len(self.text), "structure", "PHP ends the file at the NUL byte here.")

    def read(self) -> Ini:
        if self.text.startswith("\ufeff"):
            self._note(0, "structure", "the file begins with a byte order mark; save it without.")
            self.at = 1
        while self.at < len(self.text):
            self._read_statement()
        return Ini(
            {name: self._as_php_shows(name, value) for name, value in self.values.items()},
            tuple(self.entries),
            tuple(sorted(self.notes, key=lambda note: note.line)),
        )

    def _as_php_shows(self, name: str, value: Value | dict[str, Value]) -> Value | dict[str, Value]:
        if name in self.sections and isinstance(value, dict):
            return {key: _with_lists(inner) for key, inner in value.items()}
        return _with_lists(value)

    # Statements.

    def _read_statement(self) -> None:
        if (blank := _BLANK.match(self.text, self.at)) and not self._name_is_longer(blank.end()):
            self.at = blank.end()
        elif self.text[self.at] == "[":
            self._read_section()
        elif opened := _OPENED_NAME.match(self.text, self.at):
            self._read_list_entry(opened)
        else:
            self._read_entry()

    def _name_is_longer(self, blank_end: int) -> bool:
        """Return whether PHP's longest match takes the spaces before a name into the name."""
        name = _OPENED_NAME.match(self.text, self.at) or _NAME.match(self.text, self.at)
        equals = _EQUALS.match(self.text, self.at)
        return max(m.end() if m else 0 for m in (name, equals)) > blank_end

    def _read_section(self) -> None:
        start = self.at
        self.at += 1
        name = self._read_heading(start, constants=_no_constant)
        tail = _SECTION_TAIL.match(self.text, self.at)
        self.at = tail.end() if tail else self.at
        if name in self.values:
            self._forget(name, start)
        self.section = name
        self.sections.add(name)
        self.values[name] = {}

    def _forget(self, name: str, start: int) -> None:
        lost = "section" if any(e.section == name for e in self.entries) else "key"
        self._note(
            start,
            "structure",
            f"[{name}] stands for the second time; PHP forgets the earlier {lost} of that name.",
        )
        self.entries = [
            e for e in self.entries if e.section != name and (e.section, e.key) != (None, name)
        ]

    def _read_list_entry(self, opened: re.Match[str]) -> None:
        start, self.at = self.at, opened.end()
        name = opened[1].strip(" ")
        offset = self._read_heading(start, constants=_constant_or_word)
        self.at += 1
        if not (equals := _EQUALS.match(self.text, self.at)):
            self._refuse(start, "a name with brackets needs '=' and a value behind it")
        self.at = equals.end()
        self._store(name, start, offset)

    def _read_entry(self) -> None:
        start = self.at
        name = _NAME.match(self.text, self.at)
        if not name or _EQUALS.match(self.text, self.at):
            found = self.text[self.at :].lstrip(" \t")[:1]
            self._refuse(start, f"PHP does not take {found!r} at the start of a line or in a name")
        self._refuse_a_reserved_name(name)
        self.at = name.end()
        if equals := _EQUALS.match(self.text, self.at):
            self.at = equals.end()
            self._store(name[0].strip(" "), start, None)
        elif not name[0].lstrip(" ").startswith(("#", "<?")) and name[0].strip(" '"):
            self._note(start, "structure", "there is no '=' here; PHP reads past these words.")

    def _refuse_a_reserved_name(self, name: re.Match[str]) -> None:
        # At the very end of the file PHP lets such a word pass.
        if name[0].rstrip(" ").lower() in WORDS and name.end() < len(self.text):
            self._refuse(name.start(), f"PHP takes no key named {name[0].strip()!r}")

    def _store(self, name: str, start: int, offset: str | None) -> None:
        self.key = name
        value = self._read_value()
        home = self._home()
        self._note_repetition(home, name, start, offset)
        if offset is None:
            home[name] = value
        else:
            _put(home, name, offset, value)
        self.entries.append(
            Entry(
                self.section,
                name,
                value,
                self._line(start),
                self.piece.start,
                self.piece.end,
                self.piece.word,
                offset is not None,
            )
        )
        self.key = None

    def _home(self) -> dict[str, Value]:
        home = self.values if self.section is None else self.values[self.section]
        return cast("dict[str, Value]", home)

    def _note_repetition(
        self, home: dict[str, Value], name: str, start: int, offset: str | None
    ) -> None:
        if name in home and not (offset is not None and isinstance(home[name], dict)):
            self._note(start, "mangled", f"{name!r} stands for the second time; this one counts.")

    # Values.

    def _read_value(self) -> str:
        self.piece = _Piece(self.at, self.at)
        token = self._token()
        if token.lastgroup == "newline" or token["after"]:
            value = ""
        elif token.lastgroup == "word" and token[0].lower() in WORDS:
            value = self._read_word(token)
        else:
            value = self._read_expression(0)
        self._end_value(self._token())
        self._note_odd_value(value)
        return value

    def _token(self) -> re.Match[str]:
        token = _VALUE_TOKEN.match(self.text, self.at)
        assert token is not None  # the last alternatives take any character, and the end
        return token

    def _read_word(self, token: re.Match[str]) -> str:
        value = WORDS[token[0].lower()]
        self.piece.word = token[0]
        self.at = self.piece.end = token.end()
        self._skip_blanks()
        meaning = '"1"' if value else "empty"
        self._note(token.start(), "word", f"PHP reads this bare word as {meaning}; quote it.")
        return value

    def _end_value(self, token: re.Match[str]) -> None:
        if token.lastgroup not in ("newline", "comment", "cut"):
            self._refuse(token.start(), f"{_describe(token)} needs quotes around the whole value")
        self.at = token.end()
        if token.lastgroup == "cut":
            self._drop_the_rest(token)
        elif token[0] == "'":
            # The first of two: PHP ends the value here and reads on at the second.
            self.piece.end = token.end() + 1
        elif token[0] == "$":
            self._note(token.start(), "mangled", "PHP drops the '$' that ends the file; quote it.")

    def _drop_the_rest(self, token: re.Match[str]) -> None:
        self._note(
            token.start(),
            "structure",
            "an apostrophe without its partner; PHP drops all that follows it in the file."
            " Put the value in double quotes.",
        )
        self.at = len(self.text)

    def _read_expression(self, depth: int) -> str:
        """Read operands and their operators; PHP calculates strictly from left to right."""
        value = self._read_operand(depth)
        while (token := self._token()).lastgroup == "sign" and token["sign"] in "|&^":
            self._take_sign(token)
            value = _calculate(token["sign"], value, self._read_operand(depth))
        return value

    def _take_sign(self, token: re.Match[str]) -> None:
        self.piece.kinds.append("sign")
        self.at = self.piece.end = token.end()

    def _read_operand(self, depth: int) -> str:
        prefixes = []
        while (token := self._token()).lastgroup == "sign" and token["sign"] in "!~":
            self._take_sign(token)
            prefixes.append(token["sign"])
        value = self._read_brackets(token, depth) if token[0][0:1] == "(" else self._read_text()
        for prefix in reversed(prefixes):
            value = _turn(prefix, value)
        return value

    def _read_brackets(self, token: re.Match[str], depth: int) -> str:
        if depth == MAX_BRACKETS:
            self._refuse(token.start(), f"more than {MAX_BRACKETS} brackets stand in one another")
        self._take_sign(token)
        value = self._read_expression(depth + 1)
        closing = self._token()
        if closing["sign"] != ")":
            self._refuse(token.start(), "the bracket is never closed; quote the value")
        self._take_sign(closing)
        return value

    def _read_text(self) -> str:
        """Join quoted, single quoted and bare pieces up to an operator or the line's end."""
        text, count = "", len(self.piece.kinds)
        while (kind := (token := self._token()).lastgroup) in _TEXT_KINDS:
            self.piece.kinds.append(kind)
            self.at = token.end()
            text += self._fragment(kind, token)
            if kind != "space":
                self.piece.end = self.at
            if kind == "quote":
                self._skip_blanks()
        if len(self.piece.kinds) == count:
            self._refuse(token.start(), f"{_describe(token)} stands where a value should")
        return text

    def _skip_blanks(self) -> None:
        blanks = _BLANKS.match(self.text, self.at)
        self.at = blanks.end() if blanks else self.at

    def _fragment(self, kind: str, token: re.Match[str]) -> str:
        if kind == "quote":
            return self._read_quoted(token.end() - 1)
        if kind == "open":
            return self._read_variable(token.start())
        if kind == "raw":
            return token[0][1:-1]
        if kind == "word":
            return self._resolve(token)
        return token[0]

    def _resolve(self, token: re.Match[str]) -> str:
        word = token[0]
        if word.lower() in WORDS:
            self._refuse(token.start(), "a word like yes, no or null stands among others; quote it")
        if _NEWLINE.search(word):
            self._note(token.start(), "mangled", "a line ends in '$', which swallows its end.")
        if word in CONSTANTS or LOOKS_LIKE_A_CONSTANT.fullmatch(word):
            self._note(token.start(), "mangled", "PHP takes this word for a constant; quote it.")
        return CONSTANTS.get(word, word)

    # Quotes and variables.

    def _read_quoted(self, start: int) -> str:
        self.at = start + 1
        value = ""
        while True:
            inner = _QUOTED_TEXT.match(self.text, self.at)
            assert inner is not None  # it may match nothing
            value += _ESCAPE.sub(r"\1", inner[0])
            self.at = inner.end()
            if self.text.startswith("${", self.at):
                self.at += 2
                value += self._read_variable(inner.end())
            elif self.text.startswith('"', self.at):
                break
            else:
                self._refuse(start, "the double quote that opens here is never closed")
        self.at += 1
        return value

    def _read_variable(self, start: int) -> str:
        name = _NAME.match(self.text, self.at)
        if not name or not self.text.startswith("}", name.end()):
            self._refuse(start, "'${' needs a name and '}' behind it; use single quotes instead")
        self.at = name.end() + 1
        self._note(
            start, "mangled", "PHP puts an environment variable here; single quotes prevent that."
        )
        return self.environ.get(name[0].strip(" "), "")

    def _read_heading(self, start: int, constants: _Constants) -> str:
        """Read up to the closing bracket of a section's or a list key's name."""
        name = ""
        while not (token := _HEADING_TOKEN.match(self.text, self.at)) or not token["close"]:
            if not token:
                self._refuse(start, "'[' is never closed on its line")
            self.at = token.end()
            name += self._heading_fragment(token, constants)
        self.at = token.start()
        return name

    def _heading_fragment(self, token: re.Match[str], constants: _Constants) -> str:
        if token.lastgroup == "quote":
            text = self._read_quoted(token.end() - 1)
            self._skip_blanks()
            return text
        if token.lastgroup == "open":
            return self._read_variable(token.start())
        return token[0][1:-1] if token.lastgroup == "raw" else constants(token[0])

    # What to say.

    def _note_odd_value(self, value: str) -> None:
        kinds, end = self.piece.kinds, self.piece.end
        if "sign" in kinds:
            self._note(
                end, "mangled", "PHP calculates with an unquoted ! ( | & ~ ^; quote the value."
            )
        elif {"quote", "raw"} & set(kinds) and {"word", "space"} & set(kinds):
            self._note(end, "mangled", "the quotes end before the value does; PHP joins the rest.")
        elif "word" in kinds and re.search(r"[ \t]#", value):
            self._note(end, "mangled", "'#' begins no comment here; a comment begins with ';'.")
        if kinds and kinds[-1] == "space":
            self._note(end, "mangled", "PHP keeps the blanks at the end of this unquoted value.")

    def _note(self, at: int, kind: NoteKind, sentence: str) -> None:
        self.notes.append(Note(self._line(at), sentence, kind, self.section, self.key))

    def _refuse(self, at: int, sentence: str) -> NoReturn:
        raise IniError(self._line(at), sentence + ".")

    def _line(self, at: int) -> int:
        return bisect_right(self.breaks, at) + 1


def _with_lists(value: Value | dict[str, Value]) -> Value:
    """Return an array as a list if its keys are 0, 1, 2 and so on."""
    if isinstance(value, dict) and list(value) == [str(index) for index in range(len(value))]:
        return cast("list[str]", list(value.values()))
    return cast("Value", value)


def _put(home: dict[str, Value], name: str, offset: str, value: str) -> None:
    """Add to the array at the name; an empty offset is the next whole number."""
    array = home.get(name)
    if not isinstance(array, dict):
        array = home[name] = {}
    if not offset:
        indexes = [int(key) for key in array if _is_index(key)]
        offset = str(max(indexes) + 1 if indexes else 0)
        if not _is_index(offset):  # PHP stores no index above its largest number
            return
    array[offset] = value


def _is_index(key: str) -> bool:
    return _WHOLE_NUMBER.fullmatch(key) is not None and -(2**63) <= int(key) < 2**63


def _no_constant(fragment: str) -> str:
    return fragment


def _constant_or_word(fragment: str) -> str:
    if not fragment.strip(" \t"):
        return ""
    # In the name of a list key only true, false and null are constants; yes and no are text.
    if fragment.lower() in ("true", "false", "null"):
        return WORDS[fragment.lower()]
    return CONSTANTS.get(fragment, fragment)


def _describe(token: re.Match[str]) -> str:
    """Describe a token without quoting the value: it could be a key."""
    if token.lastgroup in ("sign", "other"):
        return repr(token[0].strip())
    return {
        "newline": "the end of the line",
        "comment": "a comment",
        "cut": "an apostrophe without its partner",
        "open": "'${'",
    }.get(token.lastgroup or "", "text")


def _as_int32(number: int) -> int:
    return (number + 2**31) % 2**32 - 2**31


def _number(text: str) -> int:
    """Read the leading whole number as C's atoi does: clamped to 64 bits, then cut to 32."""
    found = _LEADING_NUMBER.match(text)
    assert found is not None  # it may match nothing
    number = int(found[2][:20] or "0") * (-1 if found[1] == "-" else 1)
    return _as_int32(max(-(2**63), min(number, 2**63 - 1)))


def _calculate(sign: str, left: str, right: str) -> str:
    a, b = _number(left), _number(right)
    return str({"|": a | b, "&": a & b, "^": a ^ b}[sign])


def _turn(prefix: str, operand: str) -> str:
    number = _number(operand)
    return str(~number) if prefix == "~" else str(int(not number))
