"""Which network addresses a client may make this server connect to."""

from __future__ import annotations

import ipaddress

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# IANA's registries of special-purpose addresses (iana.org/assignments/iana-ipv4-special-registry and -ipv6-, as of
# 2025): ranges that are not globally reachable, or have no hosts. Python's own list is its release's: 3.11 takes some
# of these for public. Public anycast parts of 192.0.0.0/24 and 2001::/23 are refused as well.
_SPECIAL_4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4",
    )
)  # fmt: skip
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # the only range assigned to hosts of the internet
_SPECIAL_6 = tuple(
    ipaddress.IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)

# IPv6 ranges that carry an IPv4 address which a gateway would reach: RFC 6052 (NAT64), RFC 4291 (compatible, mapped).
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")


def is_public(text: str) -> bool:
    """Whether an address, as a resolver gives it, belongs to the public internet in every reading of it."""
    try:
        address = ipaddress.ip_address(text)  # raises for host names; a scope (%eth0) makes an address local
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return False
        embedded = _embedded(address)
        if embedded:
            return all(_is_global(inner) for inner in embedded)
    return _is_global(address)


def _is_global(address: IPAddress) -> bool:
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _SPECIAL_4)
    return address in _GLOBAL_UNICAST and not any(address in network for network in _SPECIAL_6)


def _embedded(address: ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """IPv4 addresses inside an IPv6 one: mapped, 6to4, Teredo (server and client), NAT64, compatible."""
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64 or address in _COMPATIBLE:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [inner for inner in found if inner is not None]
