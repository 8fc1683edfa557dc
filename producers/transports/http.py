"""Through the deployment's HTTP API, with nothing but the standard library."""

import contextlib
import http.client
import socket
import ssl
import threading
import zlib
from collections.abc import Generator, Mapping, Sequence
from email.message import Message
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from pipeline.core.book import Book, decode_content
from pipeline.core.errors import TallyportError
from pipeline.core.prices import PriceVersion
from pipeline.core.rates import RateSet, UsedRate, parse_rate
from pipeline.core.rejections import REASONS, TOO_LARGE
from producers.prices import REFRESH_S, Prices
from producers.segment import Entry
from producers.stats import REFUSED
from producers.transports.transport import Follower, Outcome, StateTaker, Unavailable

TIMEOUT_S = 10.0
SILENCE_S = 10.0
"""A stream that says nothing for so long is opened anew; heartbeats come each second."""
MAX_ANSWER_BYTES = 32 * 1024 * 1024
MAX_LINE_BYTES = 1024 * 1024
_CHUNK_BYTES = 64 * 1024
_UNREADABLE, _TOO_MUCH = 400, 413
_OF_THE_BODY = (_UNREADABLE, _TOO_MUCH)
"""Only these say something about the events; any other answer may come from a proxy, another
server or a wrong address, and the events wait."""
_JSON = {"Content-Type": "application/json"}


class Answer(NamedTuple):
    """An HTTP answer, read to its end."""

    status: int
    headers: Message
    body: bytes


class HttpTransport:
    """``url`` is the API's address, a path before ``/v1`` included; ``key`` one of its API keys."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self._address = _Address.parse(url)
        self._headers = {"User-Agent": "tallyport-sdk", "Accept": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._sending = _Client(self._address, self._headers)
        self._asking = _Client(self._address, self._headers)
        self._streaming: http.client.HTTPConnection | None = None

    def open(self) -> None:
        """See ``Transport``; a connection is made with the first request, in one round trip."""

    def deliver(self, entries: Sequence[Entry], stop: threading.Event) -> Sequence[Outcome | None]:
        """See ``Transport``."""
        body = b"[" + b",".join(entry.value for entry in entries) + b"]"
        answer = self._sending.request("POST", "/v1/events", body, _JSON)
        results = _results(answer)
        if results is not None and len(results) == len(entries):
            return [_outcome(result) for result in results]
        if answer.status not in _OF_THE_BODY:
            raise _unavailable(answer)
        if len(entries) == 1:
            reason = TOO_LARGE if answer.status == _TOO_MUCH else REFUSED
            return [Outcome(reason=reason, detail=_trouble(answer))]
        # Something among them is refused as a whole: each half by itself then.
        half = len(entries) // 2
        return [*self.deliver(entries[:half], stop), *self.deliver(entries[half:], stop)]

    def followers(self, gate: StateTaker, prices: Prices | None) -> Sequence[Follower]:
        """See ``Transport``; states come as a stream, prices are asked for each minute."""
        states = partial(self._follow_states, gate)
        return [states] if prices is None else [states, partial(self._follow_prices, prices)]

    def close(self) -> None:
        """See ``Transport``."""
        self._sending.end()
        self._asking.end()
        _shut(self._streaming)

    def abandon(self) -> None:
        """See ``Transport``; sockets shared with the parent are closed here, not shut down."""

    # -- states ----------------------------------------------------------------------------

    def _follow_states(self, gate: StateTaker, stop: threading.Event) -> None:
        last_id = ""
        while not stop.is_set():
            connection = self._address.connect(SILENCE_S)
            self._streaming = connection
            try:
                for event in _events(connection, self._address.path, self._headers, last_id):
                    if stop.is_set():
                        return
                    # Between a reset and its end nothing is whole: an id from before it would
                    # resume past states that were not sent.
                    if event.name == "reset":
                        last_id = ""
                    _take(event, gate)
                    last_id = event.last_id or last_id
            except (OSError, http.client.HTTPException) as error:
                if stop.is_set():
                    return
                raise Unavailable(f"{self._address}: {error or type(error).__name__}") from error
            finally:
                self._streaming = None
                connection.close()

    # -- prices ----------------------------------------------------------------------------

    def _follow_prices(self, prices: Prices, stop: threading.Event) -> None:
        client = self._asking
        book: Book | None = None
        try:
            while not stop.is_set():
                answer = client.request("GET", "/v1/prices")
                body = _body(answer)
                try:
                    if book is None or book.digest != body["book"]["digest"]:
                        book = Book(decode_content(_fetch_book(client)))
                    prices.update(PriceVersion(_rate_set(body), book))
                except (KeyError, TypeError, ValueError, TallyportError) as error:
                    raise Unavailable(f"{self._address} /v1/prices: {error}") from error
                stop.wait(REFRESH_S)
        finally:
            client.close()


class _Address(NamedTuple):
    is_tls: bool
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> "_Address":
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"must be a URL starting with http:// or https://, not {url!r}")
        is_tls = parts.scheme == "https"
        return cls(
            is_tls, parts.hostname, parts.port or (443 if is_tls else 80), parts.path.rstrip("/")
        )

    def connect(self, timeout_s: float) -> http.client.HTTPConnection:
        if self.is_tls:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(
                self.host, self.port, timeout=timeout_s, context=context
            )
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)

    def __str__(self) -> str:
        return f"{'https' if self.is_tls else 'http'}://{self.host}:{self.port}{self.path}"


class _Client:
    """One kept-alive connection, for one thread; only ``end`` may be called by another one."""

    def __init__(self, address: _Address, headers: Mapping[str, str]) -> None:
        self._address = address
        self._headers = headers
        self._connection: http.client.HTTPConnection | None = None
        self._has_ended = False

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] = {}
    ) -> Answer:
        """Raises ``Unavailable``. Everything that is asked here may be asked twice."""
        was_open = self._connection is not None
        try:
            return self._request(method, path, body, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if not was_open or self._has_ended:
                raise Unavailable(f"{self._address}: {error or type(error).__name__}") from error
        except (AttributeError, ValueError) as error:
            if not self._has_ended:
                raise
            # ``end`` took the socket away between two steps.
            raise Unavailable(f"{self._address}: closed") from error
        # The server may have closed a connection that was idle.
        return self.request(method, path, body, headers)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def end(self) -> None:
        """Closes it for ever: a request that is under way fails and opens no other connection."""
        self._has_ended = True
        _shut(self._connection)
        self.close()

    def _opened(self) -> http.client.HTTPConnection:
        connection = self._address.connect(TIMEOUT_S)
        if not self._has_ended:
            self._connection = connection
            connection.connect()
        if self._has_ended:  # again: whichever of the two comes last closes it
            connection.close()
            raise http.client.NotConnected("closed")
        connection.auto_open = 0  # else one that ``end`` has closed opens itself again
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _request(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> Answer:
        connection = self._connection or self._opened()
        connection.request(
            method, self._address.path + path, body=body, headers={**self._headers, **headers}
        )
        response = connection.getresponse()
        content = response.read(MAX_ANSWER_BYTES + 1)
        if len(content) > MAX_ANSWER_BYTES:
            raise http.client.HTTPException(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
        if response.will_close:
            self.close()
        return Answer(response.status, response.headers, content)


def _shut(connection: http.client.HTTPConnection | None) -> None:
    """Wakes the thread that waits for an answer."""
    open_socket: socket.socket | None = None if connection is None else connection.sock
    if open_socket is not None:
        with contextlib.suppress(OSError):
            # Not TLS's own, which lets whoever is still sending go on in the clear.
            socket.socket.shutdown(open_socket, socket.SHUT_RDWR)


class _Event(NamedTuple):
    """One server-sent event."""

    name: str
    data: bytes
    last_id: str


def _events(
    connection: http.client.HTTPConnection, path: str, headers: Mapping[str, str], last_id: str
) -> Generator[_Event]:
    """The events of the state stream until the server ends it."""
    resumed = {"Last-Event-ID": last_id} if last_id else {}
    accept = {"Accept": "text/event-stream"}
    connection.request("GET", f"{path}/v1/state/stream", headers={**headers, **accept, **resumed})
    response = connection.getresponse()
    if response.status != 200:
        answer = Answer(response.status, response.headers, response.read(_CHUNK_BYTES))
        raise _unavailable(answer)
    rest = b""
    while chunk := response.read1(_CHUNK_BYTES):
        *blocks, rest = (rest + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
        if len(rest) > MAX_LINE_BYTES:
            raise http.client.HTTPException(f"an event of more than {MAX_LINE_BYTES} bytes")
        yield from (_event(block) for block in blocks)


def _event(block: bytes) -> _Event:
    name, data, last_id = "", b"", ""
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data = value if not data else data + b"\n" + value
        elif field == b"event":
            name = value.decode(errors="replace")
        elif field == b"id":
            last_id = value.decode(errors="replace")
    return _Event(name, data, last_id)


def _take(event: _Event, gate: StateTaker) -> None:
    if not event.name:  # a comment that keeps the connection alive
        return
    try:
        body: dict[str, Any] = msgspec.json.decode(event.data) if event.data else {}
        if event.name == "reset":
            gate.begin(body.get("partitions", 0))
        elif event.name == "state":
            gate.take(body["partition"], body["key"], event.data)
        elif event.name == "deleted":
            gate.take(body["partition"], body["key"], None)
        elif event.name == "heartbeat":
            gate.take(body["partition"], f"!heartbeat|{body['partition']}", event.data)
        elif event.name == "synced":
            gate.caught_up(body.get("partitions"))
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError) as error:
        raise http.client.HTTPException(f"an unreadable {event.name} event: {error}") from error


def _results(answer: Answer) -> list[Any] | None:
    """The results by event, None where the answer has none."""
    with contextlib.suppress(msgspec.MsgspecError, TypeError, AttributeError):
        found = msgspec.json.decode(answer.body).get("results")
        if isinstance(found, list) and all(isinstance(one, dict) for one in found):
            return found
    return None


def _outcome(result: Mapping[str, Any]) -> Outcome | None:
    if result.get("status") == "accepted":
        partition, offset = result.get("partition"), result.get("offset")
        if type(partition) is int and type(offset) is int:
            return Outcome(partition, offset)
        return Outcome()
    if result.get("status") != "rejected":
        return None
    reason = result.get("reason")
    return Outcome(
        reason=reason if reason in REASONS else REFUSED, detail=str(result.get("detail"))
    )


def _body(answer: Answer) -> dict[str, Any]:
    if answer.status != 200:
        raise _unavailable(answer)
    try:
        body = msgspec.json.decode(answer.body)
    except msgspec.MsgspecError as error:
        raise Unavailable(f"the API's answer is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise Unavailable("the API's answer is no object")
    return body


def _fetch_book(client: _Client) -> bytes:
    answer = client.request("GET", "/v1/prices/book", None, {"Accept-Encoding": "gzip"})
    if answer.status != 200:
        raise Unavailable(_trouble(answer))
    if answer.headers.get("Content-Encoding", "").lower() != "gzip":
        return answer.body
    try:
        return zlib.decompressobj(31).decompress(answer.body, MAX_ANSWER_BYTES)
    except zlib.error as error:
        raise Unavailable(f"the API's answer is no gzip: {error}") from error


def _rate_set(body: Mapping[str, Any]) -> RateSet:
    used = tuple(UsedRate(entry["offset"], parse_rate(entry["rate"])) for entry in body["rates"])
    return RateSet(body["next_offset"], body["currency"], used)


def _unavailable(answer: Answer) -> Unavailable:
    return Unavailable(_trouble(answer), _retry_after_s(answer), answer.status)


def _trouble(answer: Answer) -> str:
    detail: object = ""
    with contextlib.suppress(msgspec.MsgspecError, AttributeError):
        problem = msgspec.json.decode(answer.body)
        detail = problem.get("detail") or problem.get("title") or ""
    return f"the API answers {answer.status} {detail}".rstrip()


def _retry_after_s(answer: Answer) -> float | None:
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() else None
