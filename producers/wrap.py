"""Clients of ``openai`` and ``anthropic`` whose calls ask first and report afterwards.

The result is a client of the same class that shares the given one's connections. Every method
that is paid for by use is guarded and recorded, streams at their end; everything else is as it was.
"""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from producers.call import BudgetExceeded, Call
from producers.streams import AsyncMetered, Metered

if TYPE_CHECKING:
    from producers.meter import Meter

_OPENAI = (
    "chat.completions.create",
    "chat.completions.parse",
    "completions.create",
    "responses.create",
    "responses.parse",
    "embeddings.create",
    "audio.transcriptions.create",
    "audio.translations.create",
    "audio.speech.create",
    "images.generate",
    "images.edit",
    "images.create_variation",
)
_ANTHROPIC = (
    "messages.create",
    "messages.parse",
    "beta.messages.create",
    "beta.messages.parse",
    "completions.create",
)
_ANTHROPIC_STREAMS = ("messages.stream", "beta.messages.stream")
_COPYING = ("copy", "with_options")
_KINDS = {
    "embeddings": "embedding",
    "images": "image",
    "audio.transcriptions": "stt",
    "audio.translations": "stt",
    "audio.speech": "tts",
}
_RAW_RESPONSE = "X-Stainless-Raw-Response"
_OUTPUT_LIMITS = ("max_output_tokens", "max_completion_tokens", "max_tokens")


def wrapped(meter: "Meter", client: Any, defaults: Mapping[str, Any]) -> Any:
    """See ``Meter.wrap``."""
    family = type(client).__module__.partition(".")[0]
    if family not in ("openai", "anthropic") or not hasattr(client, "copy"):
        raise TypeError(f"a client of openai or anthropic is needed, not {type(client).__name__}")
    metering = _Metering(meter, {"provider": family, **defaults})
    metered = client.copy()
    for path in _OPENAI if family == "openai" else _ANTHROPIC:
        metering.replace(metered, path)
    if family == "anthropic":
        for path in _ANTHROPIC_STREAMS:
            metering.replace_stream(metered, path)
    for name in _COPYING:
        again = partial(_copied, meter, defaults, getattr(client, name))
        setattr(metered, name, again)
    return metered


def _copied(
    meter: "Meter",
    defaults: Mapping[str, Any],
    copy: Callable[..., Any],
    /,
    *args: Any,
    **options: Any,
) -> Any:
    return wrapped(meter, copy(*args, **options), defaults)


class _Metering:
    """Replaces methods of one client by metered ones."""

    def __init__(self, meter: "Meter", defaults: Mapping[str, Any]) -> None:
        self._meter = meter
        self._defaults = defaults

    def replace(self, client: Any, path: str) -> None:
        owner, name, original = _found(client, path)
        if original is None:
            return
        begin = partial(self._begin, path)
        if inspect.iscoroutinefunction(inspect.unwrap(original)):
            setattr(owner, name, _metered_async(original, begin, path))
        else:
            setattr(owner, name, _metered(original, begin, path))

    def replace_stream(self, client: Any, path: str) -> None:
        """Of a method that returns a manager, whose block is the stream."""
        owner, name, original = _found(client, path)
        if original is not None:

            @wraps(original)
            def stream(*args: Any, **params: Any) -> _ManagedStream:
                begin = partial(self._begin, path, params)
                return _ManagedStream(original(*args, **params), begin)

            setattr(owner, name, stream)

    def _begin(self, path: str, params: Mapping[str, Any]) -> Call:
        """Raises ``BudgetExceeded``."""
        asked: dict[str, Any] = dict(self._defaults)
        model = params.get("model")
        if isinstance(model, str):
            asked.setdefault("model", model)
        kind = _KINDS.get(path.rpartition(".")[0])
        if kind is not None:
            asked.setdefault("kind", kind)
        if "estimated_tokens" not in asked:
            # What the request itself limits is no guess; what it sends is unknown before.
            limits = [params.get(name) for name in _OUTPUT_LIMITS]
            asked["estimated_tokens"] = max((n for n in limits if type(n) is int), default=0)
        call = self._meter.begin(**asked)
        if not call.verdict.allowed:
            raise BudgetExceeded(call.verdict)
        return call


Begin = Callable[[Mapping[str, Any]], Call]


def _metered(original: Callable[..., Any], begin: Begin, path: str) -> Callable[..., Any]:
    @wraps(original)
    def method(*args: Any, **params: Any) -> Any:
        call = begin(params)
        try:
            result = original(*args, **_with_usage(path, params))
        except BaseException:
            call.release()
            raise
        return _recorded(call, path, params, result)

    return method


def _metered_async(
    original: Callable[..., Awaitable[Any]], begin: Begin, path: str
) -> Callable[..., Awaitable[Any]]:
    @wraps(original)
    async def method(*args: Any, **params: Any) -> Any:
        call = begin(params)
        try:
            result = await original(*args, **_with_usage(path, params))
        except BaseException:
            call.release()
            raise
        return _recorded(call, path, params, result)

    return method


def _with_usage(path: str, params: dict[str, Any]) -> dict[str, Any]:
    """Asks a chat's stream for its usage, which it leaves out otherwise."""
    if not _hides_usage(path, params):
        return params
    options = params.get("stream_options") or {}
    return {**params, "stream_options": {**options, "include_usage": True}}


def _hides_usage(path: str, params: Mapping[str, Any]) -> bool:
    if path not in ("chat.completions.create", "completions.create") or not params.get("stream"):
        return False
    options = params.get("stream_options") or {}
    return isinstance(options, Mapping) and not options.get("include_usage")


def _recorded(call: Call, path: str, params: Mapping[str, Any], result: Any) -> Any:
    raw = (params.get("extra_headers") or {}).get(_RAW_RESPONSE)
    text = params.get("input")
    if path == "audio.speech.create" and isinstance(text, str):
        call.record(result, characters=len(text))
    elif params.get("stream") and not raw:
        stream = call.stream(result)
        return _without_usage(stream) if _hides_usage(path, params) else stream
    elif raw not in (None, "stream") and not params.get("stream"):
        call.record(result.parse())
    else:  # of a body that nobody has read yet nothing is known: that is recorded as estimated
        call.record(result)
    return result


def _without_usage(stream: Metered | AsyncMetered) -> Metered | AsyncMetered:
    """The stream as the caller asked for it: the chunk that only says what was used stays here."""
    stream.is_hidden = lambda chunk: not chunk.choices and chunk.usage is not None
    return stream


def _found(client: Any, path: str) -> tuple[Any, str, Any]:
    """The object that has a method, the method's name, and the method, None where there is none."""
    owner = client
    *names, method = path.split(".")
    for name in names:
        owner = getattr(owner, name, None)
    return owner, method, getattr(owner, method, None)


class _ManagedStream:
    """Anthropic's stream manager: asks when its block begins, records when it ends."""

    def __init__(self, manager: Any, begin: Callable[[], Call]) -> None:
        self._manager = manager
        self._begin = begin
        self._call: Call | None = None
        self._stream: Any = None

    def __enter__(self) -> Any:
        self._call = self._begin()
        try:
            self._stream = self._manager.__enter__()
        except BaseException:
            self._call.release()
            raise
        return self._stream

    def __exit__(self, *error: Any) -> Any:
        self._record()
        return self._manager.__exit__(*error)

    async def __aenter__(self) -> Any:
        self._call = self._begin()
        try:
            self._stream = await self._manager.__aenter__()
        except BaseException:
            self._call.release()
            raise
        return self._stream

    async def __aexit__(self, *error: Any) -> Any:
        self._record()
        return await self._manager.__aexit__(*error)

    def _record(self) -> None:
        call = self._call
        if call is None:
            return
        try:
            message = self._stream.current_message_snapshot
        except Exception:  # nothing has come
            call.release()
            return
        if message.stop_reason is None:
            call.record(message, estimated=True)
        else:
            call.record(message)
