"""What an event's fields may be on the wire, as types that a JSON reader checks while it reads."""

from typing import Annotated, Literal

import msgspec

from pipeline.core import event_fields

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=event_fields.MAX_ID_CHARS)]
Text = Annotated[str, msgspec.Meta(max_length=event_fields.MAX_TEXT_CHARS)]
Feature = Annotated[str, msgspec.Meta(max_length=event_fields.MAX_FEATURE_CHARS)]
Cost = Annotated[str, msgspec.Meta(min_length=1)]
Count = Annotated[int, msgspec.Meta(ge=0, le=event_fields.MAX_COUNT)]
Kind = Literal["llm", "stt", "tts", "embedding", "image", "other"]
BillingScope = Literal["org", "user"]
