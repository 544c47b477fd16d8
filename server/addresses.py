"""Which network addresses a client may make this server connect to."""

from __future__ import annotations

import ipaddress

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# IPv6 ranges that carry an IPv4 address which a gateway would reach: RFC 6052 (NAT64), RFC 4291 (compatible, mapped).
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = ipaddress.IPv6Network("64:ff9b:1::/48")
_COMPATIBLE = ipaddress.IPv6Network("::/96")
# Translated (RFC 2765) and the old site-local range, which Python counts neither as private nor as reserved everywhere.
_REFUSED = (_NAT64_LOCAL, ipaddress.IPv6Network("::ffff:0:0:0/96"), ipaddress.IPv6Network("fec0::/10"))


def is_public(text: str) -> bool:
    """Whether an address, as a resolver gives it, belongs to the public internet in every reading of it."""
    try:
        address = ipaddress.ip_address(text)  # fails for hosts; a scope (%eth0) makes the address a local one
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None or any(address in network for network in _REFUSED):
            return False
        embedded = _embedded(address)
        if embedded:
            return all(_is_global(inner) for inner in embedded)
    return _is_global(address)


def _is_global(address: IPAddress) -> bool:
    # is_global alone is true for multicast, and for some reserved ranges on older patch releases.
    return address.is_global and not (
        address.is_multicast
        or address.is_reserved
        or address.is_unspecified
        or address.is_loopback
        or address.is_link_local
        or address.is_private
    )


def _embedded(address: ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """IPv4 addresses inside an IPv6 one: mapped, 6to4, Teredo (server and client), NAT64, compatible."""
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64 or address in _COMPATIBLE:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [inner for inner in found if inner is not None]
