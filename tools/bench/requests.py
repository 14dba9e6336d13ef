"""The request of the benches without a server: a new sale."""

import io
from typing import Any

from tools.bench.build import subid_of
from tools.bench.generator import KEY


def make_environ(number: int) -> dict[str, Any]:
    """Build the WSGI environ of a GET with the sale of the click with this number."""
    return {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": f"/{KEY}/postback",
        "QUERY_STRING": f"subid={subid_of(number)}&status=sale&payout=12.50&currency=usd"
        f"&tid=t{number}",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.input": io.BytesIO(),
        "HTTP_HOST": "h",
    }
