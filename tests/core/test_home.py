"""Home partitions as other clients compute them, and the forwarding header."""

import pytest
from aiokafka import partitioner
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.home import (
    ForwardedFrom,
    forwarded_from_header,
    home_partition,
    murmur2,
    parse_forwarded_from,
    partition_of,
)


@given(st.binary(max_size=40))
def test_murmur2_is_the_clients(data: bytes):
    assert murmur2(data) == partitioner.murmur2(data)


# From the tests of Apache Kafka's Java client (UtilsTest.testMurmur2), which are signed.
@pytest.mark.parametrize(
    ("text", "signed"),
    [
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        ("abc", 479470107),
    ],
)
def test_murmur2_of_the_java_client(text: str, signed: int):
    assert murmur2(text.encode()) == signed % 2**32


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20), st.integers(1, 64))
def test_the_home_is_where_a_keyed_send_goes(port_id: str, partitions: int):
    everyone = list(range(partitions))
    chosen = partitioner.DefaultPartitioner()(port_id.encode(), everyone, everyone)
    assert home_partition(port_id, partitions) == chosen
    assert partition_of(port_id.encode(), partitions) == chosen


def test_the_header_goes_there_and_back():
    header = forwarded_from_header(3, 2**40, 1_795_342_503_120)
    assert header == ("forwarded-from", b"3/1099511627776/1795342503120")
    assert parse_forwarded_from([("a", b"b"), header, ("c", b"d")]) == ForwardedFrom(
        3, 2**40, 1_795_342_503_120
    )


def test_the_last_header_counts():
    headers = [forwarded_from_header(1, 2, 3), forwarded_from_header(4, 5, 6)]
    assert parse_forwarded_from(headers) == ForwardedFrom(4, 5, 6)


@pytest.mark.parametrize(
    "value",
    [None, b"", b"1/2", b"1/2/3/4", b"-1/2/3", b"1/2/3.0", b" 1/2/3", b"1/2/3\n", b"a/b/c",
     b"2147483648/2/3", b"1/9223372036854775808/3", b"1/2/253402300800000", b"1/2/" + b"9" * 99,
     b"\xff/1/2", "١/2/3".encode()],
)  # fmt: skip
def test_an_unreadable_header_is_none(value: bytes | None):
    assert parse_forwarded_from([("forwarded-from", value)]) is None
    assert parse_forwarded_from([]) is None
