"""Where webhooks may go, as a table; the connector that holds to it is in `test_sender`."""

from __future__ import annotations

import ipaddress
import socket

import pytest

from service.errors import WebhookUrlError
from service.webhook_urls import ForbiddenAddressError, WebhookRules, is_public, parse_networks

PUBLIC = ["8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "2a00:1450:4001:81b::200e"]
NOT_PUBLIC = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254",
    "168.63.129.16", "169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.0.9",
    "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1",
    "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:0:127.0.0.1",
    "64:ff9b::a9fe:a9fe", "64:ff9b::7f00:1", "64:ff9b:1::1", "100::1", "2001::1", "2001:0:4136:e378::1", "2001:db8::1",
    "2002:7f00:1::", "2002:a9fe:a9fe::", "3fff::1", "4000::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1",
    "fe80::1%eth0", "2606:4700:4700::1111%eth0", "fec0::1", "ff02::1", "ff0e::1",
]  # fmt: skip
#: What the system's resolver takes for 127.0.0.1.
SPELLINGS = ["2130706433", "0x7f.1", "127.1", "017700000001", "0177.0.0.1", "localhost"]


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_may_be_reached_on_the_ports_of_the_web(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))
    WebhookRules().check_connection(address, 443)
    WebhookRules(http=True).check_connection(address, 80)
    for rules, port in ((WebhookRules(), 80), (WebhookRules(http=True), 22), (WebhookRules(), 6379)):
        with pytest.raises(ForbiddenAddressError):
            rules.check_connection(address, port)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_any_other_address_may_not_be_reached(address: str) -> None:
    with pytest.raises(ForbiddenAddressError) as refused:
        WebhookRules(http=True).check_connection(address, 443)
    assert address not in str(refused.value)


def test_a_name_is_not_an_address() -> None:
    with pytest.raises(ForbiddenAddressError):
        WebhookRules(networks=parse_networks("0.0.0.0/0, ::/0")).check_connection("example.com", 443)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_whatever_an_address_is_spelled_like_it_is_looked_at_as_it_is_reached(spelling: str) -> None:
    for *_, where in socket.getaddrinfo(spelling, 443, proto=socket.IPPROTO_TCP):
        with pytest.raises(ForbiddenAddressError):
            WebhookRules().check_connection(str(where[0]), 443)


def test_networks_of_the_operator_may_be_reached_on_any_port_and_no_others() -> None:
    rules = WebhookRules(networks=parse_networks("10.1.0.0/16, fd00:1::/32,127.0.0.2"))
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd00:1::5", "127.0.0.2"):
        rules.check_connection(address, 9000)
    for address in ("10.2.0.1", "127.0.0.1", "fd00:2::1", "169.254.169.254", "64:ff9b::10.1.2.3"):
        with pytest.raises(ForbiddenAddressError):
            rules.check_connection(address, 443)


@pytest.mark.parametrize("text", ["10.0.0.1/8", "everything", "10.0.0.0/33", "10.0.0.0/8;"])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_networks(text)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com", "https://example.com/a?b=c&d=%20", "https://example.com:443/", "https://example.com:8443/",
        "https://xn--bcher-kva.example/", "https://8.8.8.8/", "https://[2606:4700:4700::1111]/hook",
    ],
)  # fmt: skip
def test_a_url_of_the_public_web_is_taken(url: str) -> None:
    WebhookRules().check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "", "example.com", "//example.com", "http://example.com", "ftp://example.com", "file:///etc/passwd",
        "https://", "https:///path", "https://user@example.com/", "https://user:pass@example.com/",
        "https://example.com/#fragment", "https://example.com:22/", "https://example.com:99999/",
        "https://example.com:x/", "https://bücher.example/", "https://exa mple.com/", "https://example.com/a b",
        "https://example.com/\n", "https://example.com\\@127.0.0.1/", "https://[::1", "https://127.0.0.1/",
        "https://[::1]/", "https://[::ffff:127.0.0.1]/", "https://169.254.169.254/latest/meta-data",
        "https://[64:ff9b::a9fe:a9fe]/", "https://[fe80::1%25eth0]/", "https://example.com/" + "a" * 2_000,
    ],
)  # fmt: skip
def test_a_url_to_which_nothing_would_be_sent_is_refused(url: str) -> None:
    with pytest.raises(WebhookUrlError) as refused:
        WebhookRules().check_url(url, "/webhook/url")
    assert refused.value.problem.pointer == "/webhook/url"
