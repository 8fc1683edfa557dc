"""Messages of alerts: one form for all of them, as text, HTML and the data of a webhook; pure."""

from collections.abc import Sequence
from typing import Any

from pipeline.core.windows import format_ms
from pipeline.notices.notice import Message
from pipeline.reports import mail_html

MAX_FACT_LENGTH = 400


def letter(
    kind: str,
    subject: str,
    sentence: str,
    facts: Sequence[tuple[str, str]],
    at_ms: int,
    data: dict[str, Any],
) -> Message:
    """``sentence`` says what happened and what to do, ``facts`` are names with values."""
    shown = [(name, " ".join(value.split())[:MAX_FACT_LENGTH]) for name, value in facts]
    subject = " ".join(subject.split())
    text = "\n".join(
        [subject, "", sentence, "", *(f"{name + ':':<18} {value}" for name, value in shown), ""]
    )
    html = mail_html.page(
        subject,
        [mail_html.heading(subject), mail_html.paragraph(sentence), mail_html.facts(shown)],
    )
    return Message(subject, text, html, {"type": kind, "timestamp": format_ms(at_ms), "data": data})
