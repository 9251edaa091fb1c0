"""Which sender an internet address stands for, when senders are counted. Pure."""

import ipaddress

FLY_CLIENT = "Fly-Client-IP"
"""The header with the client's address as Fly's proxy saw it (fly.md 7). Elsewhere a stranger may set it."""


def sender(address: str | None) -> str | None:
    """The sender behind an address: the address itself, or for IPv6 its /64 network, which one customer has.

    None for an address that says nothing about who sends: a loopback or private one is a proxy of the operator's,
    which carries everybody's requests.
    """
    try:
        found = ipaddress.ip_address(address or "")
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    if not found.is_global:
        return None
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    return str(ipaddress.IPv6Network((found, 64), strict=False))
