"""Finds the client's address of a request, through trusted proxies."""

from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Networks = tuple[IPv4Network | IPv6Network, ...]


def find_client(peer: str, forwarded: str, proxies: Networks) -> str | None:
    """Find the client's address: the rightmost one that is no trusted proxy.

    `forwarded` is X-Forwarded-For; a `peer` without an address is a unix socket.
    """
    client = peer
    for entry in reversed(forwarded.split(",")):
        if not _is_trusted(client, proxies):
            break
        address = _read_address(entry)
        if address is None:
            break
        client = address
    return client or None


def anonymize(address: str) -> str | None:
    """Shorten an address to its network: IPv4 without its last octet, IPv6 without 80 bits."""
    plain = _read_address(address)
    if plain is None:
        return None
    bits = 24 if "." in plain else 48
    return str(ip_network(f"{plain.partition('%')[0]}/{bits}", strict=False).network_address)


def _read_address(text: str) -> str | None:
    """Read one entry of X-Forwarded-For, with or without a port; None for other text."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    # A socket that listens on [::] sees IPv4 peers as ::ffff:127.0.0.1.
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)


def _is_trusted(address: str, proxies: Networks) -> bool:
    # A unix socket has no address, and only this machine's own users reach it.
    if not address:
        return True
    plain = _read_address(address)
    return plain is not None and any(ip_address(plain) in network for network in proxies)
