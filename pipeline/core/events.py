"""One AI call as a service reports it: the contract's event, section 5."""

import msgspec


class Event(msgspec.Struct, gc=False):
    """A valid event in normal form. Strings that were absent are empty.

    The field order is the column order of a priced block's rows (``core.blocks``).
    Units: ``occurred_at_us`` microseconds since 1970 UTC, ``audio_nano`` 10⁻⁹ seconds,
    ``reported_cost`` a plain decimal string or ``""``, every counter a count.
    """

    event_id: str
    occurred_at_us: int
    port_id: str
    provider: str
    model: str
    user_id: str = ""
    organization_id: str = ""
    group_id: str = ""
    session_id: str = ""
    service: str = ""
    endpoint: str = ""
    request_id: str = ""
    service_tier: str = ""
    feature: str = "unspecified"
    kind: str = "llm"
    billing_scope: str = "org"
    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    input_audio_tokens: int = 0
    input_image_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    output_audio_tokens: int = 0
    characters: int = 0
    images: int = 0
    web_searches: int = 0
    audio_nano: int = 0
    self_hosted: bool = False
    cache_hit: bool = False
    estimated: bool = False
    reported_cost: str = ""
    tags: dict[str, str] = {}


class PricedEvent(Event, array_like=True, gc=False):
    """An event with its place in the log and its price, both filled in once they are known.

    Encoded it is an array: one row of a priced block, and never copied on its way there. What is
    read from a record has the values below until it is priced.
    """

    source_offset: int = 0
    recorded_at_ms: int = 0
    cost_nano: int | None = None
    rate_id: str = ""
    price_status: str = "unpriced"
    price_estimated: bool = False
