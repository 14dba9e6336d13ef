"""Reads JSON as the fields of a form, nested ones under PHP's names: `order[items][0]`.

Every value keeps its letters: `12.50` stays `12.50`, because money must not become a float; `true`,
`false` and `null` are these words.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

# Source: the PHP manual, `max_input_nesting_level`, and its default.
NESTING_LEVELS = 64
# Names of nested fields repeat the names around them: 4,000 members of an object with a long name
# would be megabytes. A flat object never has more characters than its body has bytes.
CHARACTERS_AT_MOST = 64 * 1024
# Lists and objects may be empty, and cost as much as a field.
CONTAINERS_AT_MOST = 2000

_BYTE_ORDER_MARK = "\ufeff"
_WORDS = {True: "true", False: "false", None: "null"}

Field = tuple[str, str]


class JsonFields(NamedTuple):
    """Fields in their order, repeated ones too.

    `is_object`: the fields of a list or a bare value have no names of ours. `is_whole`: no field
    was left out.
    """

    fields: list[Field]
    is_object: bool
    is_whole: bool


def read_json_fields(text: str, fields_at_most: int) -> JsonFields | None:
    """Read the fields of a JSON text; None where it is no JSON."""
    try:
        value = _decode(text.removeprefix(_BYTE_ORDER_MARK))
    except (ValueError, RecursionError):
        return None
    fields: list[Field] = []
    containers = characters = 0
    is_whole = True
    # A bare value has no name.
    for field in _list_fields(value, "", 0) if isinstance(value, (tuple, list)) else ():
        if field is None:
            containers += 1
        elif field is _TOO_DEEP:
            is_whole = False
        else:
            characters += len(field[0]) + len(field[1])
            fields.append(field)
        too_many = len(fields) > fields_at_most or containers > CONTAINERS_AT_MOST
        if too_many or characters > CHARACTERS_AT_MOST:
            is_whole = False
            break
    return JsonFields(fields[:fields_at_most], isinstance(value, tuple), is_whole)


def read_json_string(text: str) -> str | None:
    """Read a JSON text that is one string, for what it says; None where it is anything else."""
    if not text.startswith('"'):
        return None
    try:
        value = _decode(text.strip())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, str) else None


def decode_json(body: bytes) -> str:
    """Read JSON in UTF-8, UTF-16 or UTF-32 as text; bytes that are no UTF-8 become surrogates."""
    encoding = json.detect_encoding(body)
    if not encoding.startswith("utf-8"):
        with suppress(UnicodeDecodeError):
            return body.decode(encoding)
    return body.decode("utf-8", "surrogateescape")


def json_bytes(text: str) -> bytes:
    """Return the bytes of a name or value of a JSON text."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        # A single surrogate, such as "\ud83d": two different ones must not become one word.
        return text.encode("utf-8", "surrogatepass")


# An object is a tuple of pairs, so that a repeated name is read by the rule of a query. Not strict:
# a line break within a string is forbidden, but sent.
_decode = json.JSONDecoder(
    object_pairs_hook=tuple, parse_float=str, parse_int=str, parse_constant=str, strict=False
).decode

_TOO_DEEP = ("", "")


def _list_fields(value: Any, name: str, level: int) -> Iterator[Field | None]:
    """List fields, and None for each object or list that is entered."""
    if isinstance(value, str):
        yield name, value
    elif not isinstance(value, (tuple, list)):
        yield name, _WORDS[value]
    elif level > NESTING_LEVELS:
        yield _TOO_DEEP
    else:
        yield None
        members = value if isinstance(value, tuple) else enumerate(value)
        for key, member in members:
            yield from _list_fields(member, f"{name}[{key}]" if level else str(key), level + 1)
