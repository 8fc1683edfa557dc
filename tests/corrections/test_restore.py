"""Corrections outlive the Kafka they were sent to, and go on with the next one."""

from pathlib import Path

from pipeline.ledger.client import LedgerAddress
from pipeline.ops.rebuild import rebuild
from tests.corrections.desk import Desk
from tests.stream.worker_deployment import event


async def test_a_restore_takes_corrections_with_it(
    kafka: str, module_ledger: LedgerAddress, tmp_path: Path
) -> None:
    desk = Desk(kafka, module_ledger, tmp_path)
    others: list[Desk] = [desk]
    common = {"port_id": "port-1", "reason": "r"}
    try:
        await desk.open()
        await desk.count(
            *(event(n, event_id=f"e{n}", port_id=f"port-{n % 3}") for n in range(12)),
            event(1, event_id="void", port_id="port-1"),
            event(1, event_id="kept", port_id="port-1", input_tokens=70, output_tokens=0),
        )
        amend = {**common, "event_id": "kept", "kind": "amend", "counts": {"input_tokens": 60}}
        await desk.correct(
            {**common, "event_id": "void", "kind": "void", "correction_id": "c1"},
            {**amend, "correction_id": "c2"},
        )
        await desk.entries("port-1", "kept", 2)
        await desk.assert_sums_agree()
        await desk.stop()

        other = Desk(kafka, module_ledger, tmp_path, 3, sent=desk.sent)
        others.append(other)
        await rebuild(other.settings)
        await other.start()
        await other.assert_sums_agree()
        # What was taken before is known; what comes now adds to entries of the older log.
        await other.correct(
            {**amend, "correction_id": "c2", "counts": {"input_tokens": 1}},
            {**amend, "correction_id": "c3", "counts": {"input_tokens": 30}},
        )
        rows = await other.entries("port-1", "kept", 3)
        assert [row["input_tokens"] for row in rows] == [70, -10, -30]
        await other.assert_sums_agree()
        await other.assert_audited()
        await other.stop()

        await rebuild(other.settings, discard=True)
        await other.start()
        await other.correct({**amend, "correction_id": "c4", "counts": {"input_tokens": 70}})
        rows = await other.entries("port-1", "kept", 4)
        assert [row["input_tokens"] for row in rows] == [70, -10, -30, 40]
        await other.assert_sums_agree()
        await other.assert_audited()
        await other.stop()
    finally:
        for one in others:
            one.end_all()
