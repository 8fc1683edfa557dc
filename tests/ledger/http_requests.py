"""Plain HTTP requests to a ClickHouse, so that tests see statuses, headers and bytes."""

from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from tests.ledger_fixture import LedgerAddress

TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Answer:
    """One response; ``code`` is ClickHouse's, 0 when nothing failed."""

    status: int
    code: int
    text: str
    body: bytes
    headers: Mapping[str, str]


def ask(
    address: LedgerAddress,
    statement: str | bytes = b"",
    *,
    write: bool = False,
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
    **parameters: str,
) -> Answer:
    """Send one statement in the body; ``parameters`` go into the query string."""
    login = (address.user, address.password) if write else None
    body = statement.encode() if isinstance(statement, str) else statement
    with httpx.Client(timeout=TIMEOUT_S, auth=login, trust_env=False, verify=False) as client:
        response = client.request(
            method, address.url, params=parameters, content=body, headers=dict(headers or {})
        )
    code = int(response.headers.get("X-ClickHouse-Exception-Code", 0))
    return Answer(response.status_code, code, response.text, response.content, response.headers)
