"""Names of nested fields in PHP's spelling, `order[items][0]`, also for JSON within a field."""

import re
from collections.abc import Iterator, Mapping

from postbackd.intake.json_fields import Field, read_json_fields

# The fields that are searched within one value; no network sends more.
FIELDS_AT_MOST = 1000

_PART = re.compile(r"\[([^\]]*)\]")


def spell_nested(name: str, numbers: dict[str, int]) -> str:
    """Spell a decoded name such as `a.b[c][]` as PHP does, `a_b[c][0]`; empty for no name.

    `numbers` counts the `[]` of one query.
    """
    base, bracket, rest = name.partition("\0")[0].lstrip(" ").partition("[")
    if not base or "]" not in rest:
        return ""
    spelled = base.replace(".", "_").replace(" ", "_")
    place = len(base)
    name = f"{base}{bracket}{rest}"
    while part := _PART.match(name, place):
        key = part[1]
        if not key:
            key = str(numbers.get(spelled, 0))
            numbers[spelled] = int(key) + 1
        elif key.isascii() and key.isdigit() and len(key) < 10:
            numbers[spelled] = max(numbers.get(spelled, 0), int(key) + 1)
        spelled += f"[{key}]"
        place = part.end()
    return spelled


def find_in_json(fields: Mapping[str, str], name: str) -> str | None:
    """Find `push[order][id]` in the JSON value of a field `push`, or `push[order]`."""
    for part in _PART.finditer(name):
        base = name[: part.start()]
        if base in fields:
            values = dict(_name_members(base, fields[base]))
            return values.get(name) or None
    return None


def list_in_json(base: str, value: str) -> list[str]:
    """List the names of the fields within a JSON value; none where it is no JSON."""
    return list(dict(_name_members(base, value)))


def _name_members(base: str, value: str) -> Iterator[Field]:
    if not value.lstrip().startswith(("{", "[")):
        return
    found = read_json_fields(value, FIELDS_AT_MOST)
    for name, member in found.fields if found else ():
        head, bracket, rest = name.partition("[")
        yield f"{base}[{head}]{bracket}{rest}", _HALVES.sub("\ufffd", member)


# Single surrogates, such as "\\ud83d" alone: they are no characters.
_HALVES = re.compile("[\ud800-\udfff]")
