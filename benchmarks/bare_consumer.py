"""A kafka-python consumer that polls a topic to its end and does nothing else.

    python -m benchmarks.bare_consumer 127.0.0.1:9092 load

It has the fetch sizes of the ingesting worker, because they are faster than the library's own.
Prints messages, seconds from the first poll to the last message and the CPU seconds in between.
"""

from __future__ import annotations

import json
import sys
import time

from kafka import KafkaConsumer, TopicPartition


def poll_all(brokers: str, topic: str, poll_records: int = 20_000) -> dict[str, float]:
    """Poll every partition from its start to the end it has now."""
    consumer = KafkaConsumer(
        bootstrap_servers=brokers.split(","),
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_bytes=2**25,
        max_partition_fetch_bytes=2**22,
        receive_message_max_bytes=2**30,
        isolation_level="read_committed",
        metrics_enabled=False,
    )
    partitions = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic)]
    consumer.assign(partitions)
    starts = consumer.beginning_offsets(partitions)
    waiting = sum(consumer.end_offsets(partitions).values()) - sum(starts.values())
    seen = 0
    wall, cpu = time.perf_counter(), time.process_time()
    while seen < waiting:
        found = consumer.poll(timeout_ms=200, max_records=poll_records)
        seen += sum(map(len, found.values()))
    spent = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    consumer.close()
    return {"messages": seen, **spent}


if __name__ == "__main__":
    print(json.dumps(poll_all(sys.argv[1], sys.argv[2])))
