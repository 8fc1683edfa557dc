"""Errors as ClickHouse states them: a code, a name, a text, and the HTTP status of each code."""

import re
from typing import Final

from pipeline.core.errors import TallyportError

BAD_ARGUMENTS: Final = 36
CHECKSUM_DOESNT_MATCH: Final = 40
NOT_IMPLEMENTED: Final = 48
SYNTAX_ERROR: Final = 62
UNKNOWN_FORMAT: Final = 73
UNKNOWN_COMPRESSION_METHOD: Final = 89
READONLY: Final = 164
TOO_DEEP_AST: Final = 167
TOO_MANY_SIMULTANEOUS_QUERIES: Final = 202
QUERY_IS_TOO_LARGE: Final = 229
NOT_ENOUGH_SPACE: Final = 243
CANNOT_DECOMPRESS: Final = 271
INTO_OUTFILE_NOT_ALLOWED: Final = 358
SETTING_CONSTRAINT_VIOLATION: Final = 452
ACCESS_DENIED: Final = 497
AUTHENTICATION_FAILED: Final = 516
UNKNOWN_EXCEPTION: Final = 1002

_NAMES: Final = {
    BAD_ARGUMENTS: "BAD_ARGUMENTS",
    CHECKSUM_DOESNT_MATCH: "CHECKSUM_DOESNT_MATCH",
    NOT_IMPLEMENTED: "NOT_IMPLEMENTED",
    SYNTAX_ERROR: "SYNTAX_ERROR",
    UNKNOWN_FORMAT: "UNKNOWN_FORMAT",
    UNKNOWN_COMPRESSION_METHOD: "UNKNOWN_COMPRESSION_METHOD",
    READONLY: "READONLY",
    TOO_DEEP_AST: "TOO_DEEP_AST",
    TOO_MANY_SIMULTANEOUS_QUERIES: "TOO_MANY_SIMULTANEOUS_QUERIES",
    QUERY_IS_TOO_LARGE: "QUERY_IS_TOO_LARGE",
    NOT_ENOUGH_SPACE: "NOT_ENOUGH_SPACE",
    CANNOT_DECOMPRESS: "CANNOT_DECOMPRESS",
    INTO_OUTFILE_NOT_ALLOWED: "INTO_OUTFILE_NOT_ALLOWED",
    SETTING_CONSTRAINT_VIOLATION: "SETTING_CONSTRAINT_VIOLATION",
    ACCESS_DENIED: "ACCESS_DENIED",
    AUTHENTICATION_FAILED: "AUTHENTICATION_FAILED",
    UNKNOWN_EXCEPTION: "UNKNOWN_EXCEPTION",
}

_PARSE_CODES: Final = (
    *(6, 8, 15, 25, 26, 27, 36, 37, 38, 41, 44, 53, 62, 72, 117, 123, 167, 168, 223, 321),
    *(376, 427, 441, 675, 676),
)
# As ClickHouse maps its codes; a code that is not listed is status 500.
_STATUS_CODES: Final[dict[int, tuple[int, ...]]] = {
    400: _PARSE_CODES,
    401: (194,),
    403: (192, 193, 497, 512, 516),
    404: (46, 47, 50, 56, 60, 63, 73, 78, 81, 115, 152, 336, 511),
    408: (159,),
    411: (381,),
    413: (229,),
    415: (779,),
    501: (48,),
    503: (76, 202, 209, 439),
}
_STATUS: Final = {code: status for status, codes in _STATUS_CODES.items() for code in codes}

_CODE = re.compile(r"Code: (\d+)\. DB::Exception: ")
_VERSION = re.compile(r" \(version [^)]*\)\.?")
_NAME = re.compile(r"(?: \(([A-Z][A-Z0-9_]+)\))+\s*$")


class QueryError(TallyportError):
    """A request failed; ``code`` is ClickHouse's number for why, ``name`` its name."""

    def __init__(self, code: int, text: str, name: str | None = None) -> None:
        self.code = code
        self.name = name or _NAMES.get(code, "UNKNOWN_EXCEPTION")
        super().__init__(f"Code: {code}. DB::Exception: {text} ({self.name})")

    @property
    def status(self) -> int:
        """The HTTP status ClickHouse answers for this code."""
        return _STATUS.get(self.code, 500)


def from_engine(message: str) -> QueryError:
    """The error the engine's message describes; nested repeats of the code are folded into one."""
    codes = list(_CODE.finditer(message))
    if not codes:
        return QueryError(UNKNOWN_EXCEPTION, message.strip() or "the engine gave no reason")
    text = _VERSION.sub("", message[codes[-1].end() :]).strip().rstrip(".")
    name = _NAME.search(text)
    if name is not None:
        text = text[: name.start()].rstrip(".")
    return QueryError(int(codes[-1].group(1)), text + ".", name.group(1) if name else None)
