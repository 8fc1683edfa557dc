"""Why a record is refused: the contract's closed list of reasons, in its order."""

from typing import Final, Literal, get_args

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

EventReason = Literal[
    "too-large",
    "bad-cloudevent",
    "malformed-json",
    "not-an-object",
    "missing-field",
    "wrong-type",
    "out-of-range",
    "bad-timestamp",
    "inconsistent-tokens",
    "too-old",
    "in-the-future",
]
CorrectionReason = Literal["unknown-event", "unknown-rate", "already-void", "wrong-currency"]
Reason = EventReason | CorrectionReason

EVENT_REASONS: Final[tuple[EventReason, ...]] = get_args(EventReason)
CORRECTION_REASONS: Final[tuple[CorrectionReason, ...]] = get_args(CorrectionReason)
REASONS: Final[tuple[Reason, ...]] = EVENT_REASONS + CORRECTION_REASONS


class Rejection(msgspec.Struct, frozen=True, gc=False):
    """``detail`` names the field and the rule it breaks."""

    reason: Reason
    detail: str
