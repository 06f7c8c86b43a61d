"""Where webhooks may go: which URLs are taken, and to which addresses a connection may be made."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from service.errors import WebhookUrlError

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_URL_CHARS: Final = 2_000
_PORTS: Final = {"https": frozenset({443, 8443}), "http": frozenset({80, 8080})}

#: Reachable from everywhere according to `ipaddress.is_global`, and yet not the public Internet.
_NOT_PUBLIC: Final = tuple(
    map(
        ipaddress.ip_network,
        (
            "192.0.0.0/24",  # protocol assignments
            "192.88.99.0/24",  # relays of 6to4
            "168.63.129.16/32",  # the platform's address inside a cloud
        ),
    )
)
#: IPv6 beside it is unassigned, local, or carries an IPv4 address in a form of its own.
_PUBLIC_IPV6: Final = ipaddress.ip_network("2000::/3")
_NOT_PUBLIC_IPV6: Final = tuple(
    map(
        ipaddress.ip_network,
        (
            "2001::/23",  # protocol assignments, Teredo among them
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4: the IPv4 address in it is what is reached
            "3fff::/20",  # documentation
        ),
    )
)


class ForbiddenAddressError(OSError):
    """The address is not one that webhooks may go to."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WebhookRules:
    """What the operator allows. `networks` may be reached although they are not public, on any port."""

    http: bool = False
    networks: Sequence[IPNetwork] = ()

    def check_url(self, url: str, pointer: str = "/url") -> None:
        """Raise `WebhookUrlError`, which names `pointer`, for a URL to which nothing would ever be sent.

        Names are not resolved here: what they mean is looked at whenever a connection is made.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise WebhookUrlError(pointer, "is not a URL") from None
        if len(url) > MAX_URL_CHARS or not url.isascii() or any(char <= " " or char == "\x7f" for char in url):
            raise WebhookUrlError(pointer, f"must be at most {MAX_URL_CHARS} printable ASCII characters")
        if parts.scheme not in self.schemes:
            raise WebhookUrlError(pointer, f"must begin with {' or '.join(f'{scheme}://' for scheme in self.schemes)}")
        if not host or "\\" in url:
            raise WebhookUrlError(pointer, "must name a host")
        if parts.username is not None or parts.password is not None:
            raise WebhookUrlError(pointer, "must not hold a user or password")
        if parts.fragment or url.endswith("#"):
            raise WebhookUrlError(pointer, "must not have a fragment")
        if not self.networks and port is not None and port not in self.ports:
            raise WebhookUrlError(pointer, f"must have one of the ports {', '.join(map(str, sorted(self.ports)))}")
        address = _literal(host)
        if address is not None and not self._allows(address, port or (443 if parts.scheme == "https" else 80)):
            raise WebhookUrlError(pointer, "must not name an address that webhooks may not go to")

    @property
    def schemes(self) -> Sequence[str]:
        """The schemes that a URL may have."""
        return ("https", "http") if self.http else ("https",)

    @property
    def ports(self) -> frozenset[int]:
        """The ports of public addresses."""
        return frozenset[int]().union(*(_PORTS[scheme] for scheme in self.schemes))

    def check_connection(self, host: str, port: int) -> None:
        """Raise `ForbiddenAddressError` unless a connection may be made to the address `host`, as text, and `port`."""
        address = _literal(host)
        if address is None or not self._allows(address, port):
            # Not which address: it would tell what a name means inside.
            raise ForbiddenAddressError("the host's address is not one that webhooks may go to")

    def _allows(self, address: IPAddress, port: int) -> bool:
        if any(address in network for network in self.networks):
            return True
        return port in self.ports and is_public(address)


def parse_networks(text: str) -> Sequence[IPNetwork]:
    """The networks in a text of CIDR blocks and addresses between commas; raises `ValueError`."""
    return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())


def is_public(address: IPAddress) -> bool:
    """Whether `address` is a unicast address of the public Internet.

    An address that carries another one (mapped, NAT64, 6to4, Teredo) is not: nobody publishes such a one.
    """
    if isinstance(address, ipaddress.IPv6Address):
        return (
            address.scope_id is None
            and address in _PUBLIC_IPV6
            and not any(address in network for network in _NOT_PUBLIC_IPV6)
        )
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not any(address in network for network in _NOT_PUBLIC)
    )


def _literal(host: str) -> IPAddress | None:
    """The address that `host` spells; None for a name. An IPv4 address in its IPv6 form is that IPv4 address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
