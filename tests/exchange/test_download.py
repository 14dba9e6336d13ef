"""Where a redirect may lead, and that what was judged is what is connected to."""

import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stand_in import XML, StandIn, document, redirect, stand_in_server

from postbackd.exchange.download import DownloadError, download
from postbackd.exchange.public_address import is_public

Names = dict[str, list[str]]


@pytest.fixture
def service() -> Iterator[StandIn]:
    with stand_in_server() as stand_in:
        yield stand_in


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Names of this test: each lookup takes the next of a name's addresses, the last one stays."""
    known: Names = {}
    ask = socket.getaddrinfo

    def look_up(host: Any, *rest: Any, **more: Any) -> Any:
        addresses = known.get(host, [host])
        found = addresses.pop(0) if len(addresses) > 1 else addresses[0]
        return [entry for one in found.split() for entry in ask(one, *rest, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return known


def fetch(url: str) -> bytes:
    return download(url, (XML,))


def port_of(service: StandIn) -> int:
    return int(service.server.server_address[1])


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("0.0.0.0", False),  # noqa: S104 nothing is bound
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("127.0.0.1", False),
        ("127.255.255.254", False),
        ("169.254.169.254", False),
        ("172.16.0.1", False),
        ("192.0.2.1", False),
        ("192.88.99.1", False),
        ("192.168.1.1", False),
        ("198.18.0.1", False),
        ("224.0.0.251", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::7f00:1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b::5db8:d822", True),
        ("64:ff9b:1::5db8:d822", False),
        ("100::1", False),
        ("2001:db8::1", False),
        ("2001::1", False),
        ("2002:7f00:1::1", False),
        ("2002:c0a8:101::1", False),
        ("2002:5db8:d822::1", True),
        ("3fff::1", False),
        ("5f00::1", False),
        ("fc00::1", False),
        ("fe80::1", False),
        ("fe80::1%lo", False),
        ("fec0::1", False),
        ("ff02::1", False),
    ],
)
def test_an_address_is_public_or_not(address: str, *, public: bool) -> None:
    assert is_public(address) == public


@pytest.mark.parametrize(
    "host", ["127.0.0.2", "127.2", "2130706434", "0x7f000002", "[::ffff:127.0.0.2]", "0"]
)
def test_a_redirect_to_another_address_of_this_machine_is_refused(
    service: StandIn, host: str
) -> None:
    service.serve("/there", document("<there/>"))
    url = service.serve("/", redirect(f"http://{host}:{port_of(service)}/there"))

    with pytest.raises(DownloadError, match="is no address of the public internet"):
        fetch(url)

    assert service.asked == ["/"]


def test_a_redirect_to_a_name_of_an_address_that_is_private_is_refused(
    service: StandIn, names: Names
) -> None:
    # One public address beside it does not make it better.
    names["inside.example"] = ["93.184.216.34 192.168.0.1"]
    url = service.serve("/", redirect("http://inside.example/latest?key=secret"))

    with pytest.raises(DownloadError) as refused:
        fetch(url)

    assert "'http://inside.example/latest', and 192.168.0.1 is no" in str(refused.value)
    assert "set it as the source's address in [rates]" in str(refused.value)


def test_a_mirror_in_a_private_network_may_redirect_to_itself(
    service: StandIn, names: Names
) -> None:
    names["mirror.lan"] = ["127.0.0.1"]
    service.serve("/there", document("<there/>"))
    service.serve("/", redirect(f"http://mirror.lan:{port_of(service)}/there"))

    assert fetch(f"http://mirror.lan:{port_of(service)}/") == b"<there/>"


def test_a_name_that_changes_its_address_is_connected_to_where_it_was_judged(
    service: StandIn, names: Names
) -> None:
    service.serve("/there", document("<judged/>"))
    url = service.serve("/", redirect(f"http://rebound.example:{port_of(service)}/there"))
    # Nothing listens at the second.
    names["rebound.example"] = ["127.0.0.1", "127.0.0.2"]

    assert fetch(url) == b"<judged/>"
    assert names["rebound.example"] == ["127.0.0.2"]


def test_the_next_address_is_tried_where_the_first_takes_no_connection(
    service: StandIn, names: Names
) -> None:
    names["two.lan"] = ["127.0.0.2 127.0.0.1"]
    service.serve("/", document("<there/>"))

    assert fetch(f"http://two.lan:{port_of(service)}/") == b"<there/>"


def test_the_server_is_told_the_name_and_the_query(service: StandIn, names: Names) -> None:
    names["mirror.lan"] = ["127.0.0.1"]
    told = []

    def reply(handler: Any) -> None:
        told.append(handler.headers["Host"])
        document("<there/>")(handler)

    service.serve("/latest", reply)

    fetch(f"http://user:secret@mirror.lan:{port_of(service)}/latest?base=USD&a=%20b")

    assert told == [f"mirror.lan:{port_of(service)}"]
    assert service.asked == ["/latest?base=USD&a=%20b"]


OPENSSL = shutil.which("openssl")


@pytest.fixture
def encrypted(service: StandIn, tmp_path: Path) -> Callable[[str], Path]:
    """Put TLS before the service, for a name; returns the certificate."""

    def encrypt(name: str) -> Path:
        certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
        subprocess.run(
            [
                *(str(OPENSSL), "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"),
                *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", f"/CN={name}"),
                *("-addext", f"subjectAltName=DNS:{name}"),
                *("-keyout", str(key), "-out", str(certificate)),
            ],
            capture_output=True,
            check=True,
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        service.server.socket = context.wrap_socket(service.server.socket, server_side=True)
        return certificate

    return encrypt


@pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")
@pytest.mark.parametrize(
    ("certified", "is_trusted", "outcome"),
    [
        ("mirror.lan", True, "<there/>"),
        ("other.lan", True, "mirror.lan cannot prove who it is (TLS)"),
        ("mirror.lan", False, "mirror.lan cannot prove who it is (TLS)"),
    ],
)
def test_the_certificate_must_be_that_of_the_name(
    service: StandIn,
    names: Names,
    encrypted: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    certified: str,
    outcome: str,
    *,
    is_trusted: bool,
) -> None:
    names["mirror.lan"] = ["127.0.0.1"]
    certificate = encrypted(certified)
    if is_trusted:
        # Where OpenSSL looks for those that it trusts.
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    service.serve("/", document("<there/>"))

    try:
        seen = fetch(f"https://mirror.lan:{port_of(service)}/").decode()
    except DownloadError as error:
        seen = str(error)

    assert seen == outcome
