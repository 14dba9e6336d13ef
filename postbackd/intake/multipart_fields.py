"""multipart/form-data read as the fields of a form; files are left out."""

from typing import NamedTuple

from multipart import (
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
    parse_options_header,
)

Field = tuple[bytes, bytes]


class MultipartFields(NamedTuple):
    """Fields in their order, and the number of files between them."""

    fields: list[Field]
    files: int


def read_multipart_fields(
    body: bytes, content_type: str, fields_at_most: int
) -> MultipartFields | None:
    """Read the parts of a body; None where they cannot be separated, or end too early."""
    _, options = parse_options_header(content_type)
    fields: list[Field] = []
    files = 0
    try:
        # latin-1: names as their bytes, like all text that is decoded later.
        parser = PushMultipartParser(
            options.get("boundary", "").encode("latin-1"),
            content_length=len(body),
            max_segment_count=fields_at_most,
            header_charset="latin-1",
        )
        part = None
        content = b""
        with parser:
            for event in parser.parse(body):
                if isinstance(event, MultipartSegment):
                    part, content = event, b""
                elif event:
                    content += event
                elif part is not None and part.filename is not None:
                    files += 1
                elif part is not None and part.name:
                    fields.append((part.name.encode("latin-1"), content))
    except MultipartError:
        return None
    return MultipartFields(fields, files)
