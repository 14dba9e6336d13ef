"""Stand-ins for the services that publish rates: a real HTTP server on this machine.

The documents are in the shapes the services describe, made up here.
"""

import gzip
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

XML = "text/xml"
JSON = "application/json; charset=utf-8"

Handler = BaseHTTPRequestHandler
Reply = Callable[[Handler], None]


class StandIn:
    """A server whose paths answer as a test wants them to; it counts what is asked."""

    def __init__(self) -> None:
        """Begin with nothing at any path."""
        self.replies: dict[str, Reply] = {}
        self.asked: list[str] = []
        self.is_over = threading.Event()
        stand_in = self

        class Served(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stand_in.asked.append(self.path)
                reply = stand_in.replies.get(urlsplit(self.path).path)
                if reply is None:
                    self.send_error(404)
                else:
                    reply(self)

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Served)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def serve(self, path: str, reply: Reply) -> str:
        """Let a path answer so; gives its address."""
        self.replies[path] = reply
        return self.url + path


@contextmanager
def stand_in_server() -> Iterator[StandIn]:
    """Run one for the time of a test."""
    stand_in = StandIn()
    thread = threading.Thread(target=stand_in.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield stand_in
    finally:
        stand_in.is_over.set()
        stand_in.server.shutdown()
        stand_in.server.server_close()


# Replies


def document(
    body: bytes | str, content_type: str = XML, status: int = 200, **headers: str
) -> Reply:
    """Answer with a document as a whole."""
    content = body.encode() if isinstance(body, str) else body

    def reply(handler: Handler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", content_type)
        handler.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return reply


def packed(body: str, content_type: str = XML) -> Reply:
    """Answer with a document in gzip."""
    return document(gzip.compress(body.encode()), content_type, Content_Encoding="gzip")


def gzip_bomb() -> Reply:
    """Answer with some kilobytes that unpack to 512 MiB."""
    packer = gzip.compress(b" " * (1 << 20), 9)
    return document(packer * 512, XML, Content_Encoding="gzip")


def truncated(body: str, content_type: str = XML) -> Reply:
    """Promise a document and break off halfway."""

    def reply(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", content_type)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2].encode())

    return reply


def endless(content_type: str = XML) -> Reply:
    """Answer without end, as fast as it is read."""

    def reply(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", content_type)
        handler.end_headers()
        while True:
            handler.wfile.write(b"<a>" * 20_000)

    return reply


def hanging(stand_in: StandIn) -> Reply:
    """Take the request and say nothing."""

    def reply(handler: Handler) -> None:
        del handler
        stand_in.is_over.wait()

    return reply


def dripping(stand_in: StandIn, seconds: float = 0.05) -> Reply:
    """Send a byte now and then: never silent, never done."""

    def reply(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", XML)
        handler.end_headers()
        while not stand_in.is_over.wait(seconds):
            handler.wfile.write(b" ")
            handler.wfile.flush()

    return reply


def redirect(location: str) -> Reply:
    """Point elsewhere."""
    return document(b"", status=302, Location=location)


# Documents

HTML = "<!DOCTYPE html><html><head><title>503</title></head><body><p>Sorry<br></body></html>"


def ecb_document(day: date, rates: Mapping[str, str]) -> str:
    """Write the European Central Bank's daily file: what a euro buys."""
    cubes = "".join(f"<Cube currency='{code}' rate='{rate}'/>" for code, rate in rates.items())
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<gesmes:Envelope'
        ' xmlns:gesmes="http://www.gesmes.org/xml/2002-08-01"'
        ' xmlns="http://www.ecb.int/vocabulary/2002-08-01/eurofxref">'
        "<gesmes:subject>Reference rates</gesmes:subject>"
        f"<Cube><Cube time='{day}'>{cubes}</Cube></Cube></gesmes:Envelope>"
    )


def cbr_document(day: date, rates: Mapping[str, tuple[int, str]]) -> bytes:
    """Write the Bank of Russia's daily file: so many units for so many roubles."""
    valutes = "".join(
        f'<Valute ID="R{number}"><NumCode>{number}</NumCode><CharCode>{code}</CharCode>'
        f"<Nominal>{nominal}</Nominal><Name>Валюта</Name><Value>{value}</Value></Valute>"
        for number, (code, (nominal, value)) in enumerate(rates.items(), 100)
    )
    text = (
        '<?xml version="1.0" encoding="windows-1251"?>'
        f'<ValCurs Date="{day:%d.%m.%Y}" name="Foreign Currency Market">{valutes}</ValCurs>'
    )
    return text.encode("windows-1251")


def er_api_document(day: date, base: str, rates: Mapping[str, str]) -> str:
    """Write er-api's file: what one of the base currency buys."""
    return (
        f'{{"result": "success", "time_last_update_unix": {_stamp(day)}, "base_code": "{base}",'
        f' "rates": {_write_rates({base: "1", **rates})}}}'
    )


def openexchangerates_document(day: date, base: str, rates: Mapping[str, str]) -> str:
    """Write openexchangerates' file: the same in other names."""
    return (
        f'{{"disclaimer": "", "timestamp": {_stamp(day)}, "base": "{base}",'
        f' "rates": {_write_rates(rates)}}}'
    )


def _stamp(day: date) -> int:
    return int(datetime.combine(day, time(0, 2), UTC).timestamp())


def _write_rates(rates: Mapping[str, str]) -> str:
    """Write numbers digit by digit, as the test gives them: `json` would make them floats."""
    return "{" + ", ".join(f'"{code}": {rate}' for code, rate in rates.items()) + "}"
