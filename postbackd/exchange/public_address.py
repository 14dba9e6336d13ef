"""Tells public internet addresses from private, local, special and unassigned ones."""

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

# The only part of IPv6 assigned to the public internet so far.
# Source: IANA IPv6 Global Unicast Address Assignments.
_GLOBAL_UNICAST = IPv6Network("2000::/3")

# Addresses that contain the IPv4 address they lead to, and the bit at which it ends, counted from
# the right. Sources: RFC 4291 2.5.5.2 (mapped), RFC 6052 2.1 (NAT64), RFC 3056 (6to4).
_LEADING_TO_IPV4 = (
    (IPv6Network("::ffff:0:0/96"), 0),
    (IPv6Network("64:ff9b::/96"), 0),
    (IPv6Network("2002::/16"), 80),
)

# Special addresses that Python 3.11 calls global. Sources: RFC 7526 (relays of 6to4), RFC 9637
# (documentation).
_RELAYS = IPv4Address("192.88.99.0"), IPv4Address("192.88.99.255")
_DOCUMENTATION = IPv6Network("3fff::/20")


def is_public(address: str) -> bool:
    """Return whether an address, as written by `getaddrinfo`, belongs to the public internet."""
    parsed = ip_address(address)
    return _is_public_4(parsed) if isinstance(parsed, IPv4Address) else _is_public_6(parsed)


def _is_public_4(address: IPv4Address) -> bool:
    # Not loopback, private, link-local, shared (CGNAT), reserved, unspecified: is_global knows the
    # register of special addresses, which does not include multicast.
    is_relay = _RELAYS[0] <= address <= _RELAYS[1]
    return address.is_global and not address.is_multicast and not is_relay


def _is_public_6(address: IPv6Address) -> bool:
    for network, shift in _LEADING_TO_IPV4:
        if address in network:
            return _is_public_4(IPv4Address(int(address) >> shift & 0xFFFFFFFF))
    return address in _GLOBAL_UNICAST and address.is_global and address not in _DOCUMENTATION
