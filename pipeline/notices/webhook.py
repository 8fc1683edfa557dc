"""Notices as signed POST requests after the Standard Webhooks specification.

A URL may point wherever its owner wants, within the network this process can reach: those in the
settings are the operator's, those in policies an administrator's. What cannot be reached this way
is the machine-local address range that clouds serve credentials on. The name is resolved once, all
its addresses are judged, and the connection goes to one that was judged. Redirects are not
followed, answers are not shown but for their status, and proxies of the environment are not used.
"""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from pipeline.core.webhook_signature import signature, webhook_key
from pipeline.notices.mail import NotSent
from pipeline.notices.notice import Message

POST_TIMEOUT_S = 20.0
MAX_ANSWER_BYTES = 16 * 1024

_PORTS = {"http": 80, "https": 443}
_GONE = 410
_CREDENTIALS = frozenset(
    map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200", "192.0.0.192"))
)
"""Where clouds serve credentials outside of the link-local range."""


class _Target(NamedTuple):
    scheme: str
    host: str
    port: int
    path: str

    @property
    def where(self) -> str:
        """What messages say: no path and no query, which may hold a secret."""
        return f"{self.scheme}://{_in_brackets(self.host)}:{self.port}"


def body_of(message: Message) -> bytes:
    """What is posted: ``{"type":…,"timestamp":…,"data":{…}}``, the same at each attempt."""
    return msgspec.json.encode(message.data)


class Webhooks:
    """Posts notices; ``secret`` None leaves them unsigned."""

    def __init__(self, secret: str | None, context: ssl.SSLContext | None = None) -> None:
        self._key = None if secret is None else webhook_key(secret)
        self._context = context

    async def send(self, message: Message, url: str, delivery_id: str, timestamp_s: int) -> None:
        """Returns when the receiver has answered with 2xx. Raises ``NotSent``."""
        body = body_of(message)
        webhook_id = f"msg_{delivery_id}"
        headers = {"webhook-id": webhook_id, "webhook-timestamp": str(timestamp_s)}
        if self._key is not None:
            headers["webhook-signature"] = signature(self._key, webhook_id, timestamp_s, body)
        target = _target(url)
        try:
            async with asyncio.timeout(POST_TIMEOUT_S):
                status = await self._post(target, headers, body)
        except TimeoutError as error:
            raise NotSent(f"{target.where} did not answer in {POST_TIMEOUT_S:.0f} s") from error
        except (
            OSError,
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
            ValueError,
        ) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise NotSent(f"{target.where}: {why}") from error
        _judge(target, status)

    async def _post(self, target: _Target, headers: dict[str, str], body: bytes) -> int:
        reader, writer = await self._connected(target, await _resolved(target))
        try:
            writer.write(_head(target, headers, len(body)) + body)
            await writer.drain()
            return await _status(reader)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _connected(
        self, target: _Target, addresses: list[str]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the first of the addresses that takes one."""
        context = None
        if target.scheme == "https":
            context = self._context or ssl.create_default_context()
        for address in addresses:
            try:
                return await asyncio.open_connection(
                    address,
                    target.port,
                    ssl=context,
                    server_hostname=target.host if context else None,
                    limit=MAX_ANSWER_BYTES,
                )
            except OSError:
                if address == addresses[-1]:
                    raise
        raise OSError("the host has no address")


def _judge(target: _Target, status: int) -> None:
    if 200 <= status < 300:
        return
    if 300 <= status < 400:
        raise NotSent(f"{target.where} redirects ({status}), which is not followed", for_good=True)
    raise NotSent(f"{target.where} answers {status}", for_good=status == _GONE)


def _target(url: str) -> _Target:
    parts = urlsplit(url)
    path = parts.path or "/"
    if parts.query:
        path = f"{path}?{parts.query}"
    return _Target(parts.scheme, parts.hostname or "", parts.port or _PORTS[parts.scheme], path)


async def _resolved(target: _Target) -> list[str]:
    """The host's addresses. Raises ``NotSent`` where any of them may not be reached."""
    loop = asyncio.get_running_loop()
    found: list[Any] = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses:
        if is_forbidden(address):
            raise NotSent(f"{target.where} is at {address}, which is not posted to", for_good=True)
    return addresses


def is_forbidden(address: str) -> bool:
    """Whether it is link-local or another one of metadata services, multicast, unspecified or
    reserved, or leads to such a one through a tunnel."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return _is_forbidden(ip)
    if ip.ipv4_mapped is not None:
        return _is_forbidden(ip.ipv4_mapped)
    inner = [*(ip.teredo or ()), *([ip.sixtofour] if ip.sixtofour else [])]
    return any(map(_is_forbidden, (ip, *inner)))


def _is_forbidden(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    reserved = ip.is_reserved and not ip.is_loopback
    never = ip.is_link_local or ip.is_multicast or ip.is_unspecified or reserved
    return never or ip in _CREDENTIALS


def _head(target: _Target, headers: dict[str, str], length: int) -> bytes:
    host = _in_brackets(target.host)
    if target.port != _PORTS[target.scheme]:
        host = f"{host}:{target.port}"
    fields = {
        "Host": host,
        "User-Agent": "tallyport",
        "Content-Type": "application/json",
        "Content-Length": str(length),
        "Connection": "close",
        **headers,
    }
    lines = [f"POST {target.path} HTTP/1.1", *(f"{name}: {text}" for name, text in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("ascii")


async def _status(reader: asyncio.StreamReader) -> int:
    """The status of the answer, without what goes before it (1xx)."""
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        version, _, rest = head.partition(b"\r\n")[0].partition(b" ")
        if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
            raise ValueError("the answer is no HTTP")
        status = int(rest[:3])
        if status >= 200:
            return status


def _in_brackets(host: str) -> str:
    return f"[{host}]" if ":" in host else host
