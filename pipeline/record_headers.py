"""Header names of Kafka records that are not valid UTF-8, sent on unchanged.

Brokers take any bytes as the name of a header; aiokafka writes UTF-8 only. Consumers hand such a
name over with its odd bytes as lone surrogates (see ``fetched_records``), and ``RawNamesBatch``
writes them back as they were.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record import default_records

from pipeline.core.record_format import FORMAT

_RawBuilder: Any = default_records._DefaultRecordBatchBuilderPy  # pyright: ignore[reportPrivateUsage]


def has_raw_names(headers: Iterable[tuple[str, bytes | None]]) -> bool:
    """Whether a name has bytes that are not UTF-8, so that only ``RawNamesBatch`` can send it."""
    return any("\udc80" <= letter <= "\udcff" for name, _ in headers for letter in name)


class RawNamesBatch(BatchBuilder):
    """A batch of records to send whose header names may have bytes that are not UTF-8."""

    def __init__(self, size_bytes: int, compression: int, *, is_transactional: bool) -> None:
        super().__init__(size_bytes, compression, is_transactional=is_transactional)
        self._builder = _RawBuilder(
            FORMAT,
            compression,
            is_transactional=is_transactional,
            producer_id=-1,
            producer_epoch=-1,
            base_sequence=0,
            batch_size=size_bytes,
        )

    def append(
        self, *, timestamp: int | None, key: Any, value: Any, headers: Sequence[Any] = ()
    ) -> Any:
        """As its parent's; None when the batch is full."""
        named = [(_RawName(name), content) for name, content in headers]
        return super().append(timestamp=timestamp, key=key, value=value, headers=named)

    def _set_producer_state(
        self, producer_id: int, producer_epoch: int, base_sequence: int
    ) -> None:
        self._builder.set_producer_state(producer_id, producer_epoch, base_sequence)


class _RawName(str):
    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return super().encode(encoding, "surrogateescape")
