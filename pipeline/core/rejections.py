"""Why a record is refused: the contract's closed list of reasons, in its order."""

from typing import Final

import msgspec

TOO_LARGE: Final = "too-large"
BAD_CLOUDEVENT: Final = "bad-cloudevent"
MALFORMED_JSON: Final = "malformed-json"
NOT_AN_OBJECT: Final = "not-an-object"
MISSING_FIELD: Final = "missing-field"
WRONG_TYPE: Final = "wrong-type"
OUT_OF_RANGE: Final = "out-of-range"
BAD_TIMESTAMP: Final = "bad-timestamp"
INCONSISTENT_TOKENS: Final = "inconsistent-tokens"
TOO_OLD: Final = "too-old"
IN_THE_FUTURE: Final = "in-the-future"

UNKNOWN_EVENT: Final = "unknown-event"
UNKNOWN_RATE: Final = "unknown-rate"
ALREADY_VOID: Final = "already-void"
WRONG_CURRENCY: Final = "wrong-currency"

EVENT_REASONS: Final[tuple[str, ...]] = (
    TOO_LARGE,
    BAD_CLOUDEVENT,
    MALFORMED_JSON,
    NOT_AN_OBJECT,
    MISSING_FIELD,
    WRONG_TYPE,
    OUT_OF_RANGE,
    BAD_TIMESTAMP,
    INCONSISTENT_TOKENS,
    TOO_OLD,
    IN_THE_FUTURE,
)
CORRECTION_REASONS: Final[tuple[str, ...]] = (
    UNKNOWN_EVENT,
    UNKNOWN_RATE,
    ALREADY_VOID,
    WRONG_CURRENCY,
)
REASONS: Final[tuple[str, ...]] = EVENT_REASONS + CORRECTION_REASONS


class Rejection(msgspec.Struct, frozen=True, gc=False):
    """``reason`` is one of ``REASONS``; ``detail`` names the field and the rule it breaks."""

    reason: str
    detail: str
