"""A record of ``usage.rejected``: one that was refused, as it came, with why and where it stood."""

from pipeline.core.intake import InputRecord
from pipeline.core.rejections import Rejection
from pipeline.stream.transaction import Record, passed_on


def rejected_record(
    record: InputRecord, rejection: Rejection, topic: str, partition: int
) -> Record:
    """Key, value and headers of ``record``, which stood on ``topic``, with headers behind them."""
    headers = [
        *record.headers,
        ("reason", rejection.reason.encode()),
        ("detail", rejection.detail.encode(errors="backslashreplace")),
        ("source-topic", topic.encode()),
        ("source-partition", b"%d" % partition),
        ("source-offset", b"%d" % record.offset),
    ]
    return passed_on(record.key, record.value, headers)
