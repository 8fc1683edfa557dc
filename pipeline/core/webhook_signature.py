"""Signatures of webhooks after the Standard Webhooks specification."""

import base64
import binascii
import hashlib
import hmac

SECRET_PREFIX = "whsec_"


def webhook_key(secret: str) -> bytes:
    """The key of a secret: after ``whsec_`` in base64, as the specification has it; without that
    the text itself.

    Raises ``ValueError`` with the rule that it breaks.
    """
    if not secret.startswith(SECRET_PREFIX):
        return secret.encode()
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key:
        raise ValueError("must have base64 after whsec_, as `openssl rand -base64 32` prints it")
    return key


def signature(key: bytes, webhook_id: str, timestamp_s: int, body: bytes) -> str:
    """``v1,`` and the base64 of the HMAC-SHA256 over id, timestamp and body."""
    signed = b".".join((webhook_id.encode(), str(timestamp_s).encode(), body))
    return f"v1,{base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()}"
