"""A base line: the least work of a WSGI application under the same server settings."""

from collections.abc import Callable, Iterable
from typing import Any


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Send an answer like the receiver's, and do nothing else."""
    del environ
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", "7")]
    start_response("200 OK", headers)
    return [b"Success"]
