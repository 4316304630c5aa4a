"""A client of the stream, made from the configuration.

Design choices: the configuration picks the library, nothing else differs; a library is imported
where it is picked.
"""

from __future__ import annotations

import hashlib
import json

from flts_ray.config_stream import StreamConfig
from flts_ray.streams.access import login
from flts_ray.streams.records import Admin, Consumer, Producer


def consumer(stream: StreamConfig, brokers: str, *, group: str, member: str = "") -> Consumer:
    """Reader of `stream.topic`. `member` names a lasting member of the group for `subscribe`.

    Raises Unavailable if nobody answers at `brokers` within ten seconds.
    """
    if stream.client == "confluent":
        from flts_ray.streams.confluent import ConfluentConsumer

        return ConfluentConsumer(stream, brokers, login(stream), group, member)
    from flts_ray.streams.kafka_python import KafkaPythonConsumer

    return KafkaPythonConsumer(stream, brokers, login(stream), group, member)


def producer(stream: StreamConfig, brokers: str) -> Producer:
    """Writer to any topic. Raises Unavailable like `consumer`."""
    if stream.client == "confluent":
        from flts_ray.streams.confluent_topics import ConfluentProducer

        return ConfluentProducer(stream, brokers, login(stream))
    from flts_ray.streams.kafka_python_topics import KafkaPythonProducer

    return KafkaPythonProducer(stream, brokers, login(stream))


def admin(stream: StreamConfig, brokers: str) -> Admin:
    """Administration of topics. Raises Unavailable like `consumer`."""
    if stream.client == "confluent":
        from flts_ray.streams.confluent_topics import ConfluentAdmin

        return ConfluentAdmin(stream, brokers, login(stream))
    from flts_ray.streams.kafka_python_topics import KafkaPythonAdmin

    return KafkaPythonAdmin(stream, brokers, login(stream))


def epoch_of(identity: tuple[str, str], topic: str, generation: int) -> str:
    """Name of this life of a topic: 16 hex digits that differ after it is re-created.

    `identity`: cluster and topic id, "" where the broker has none; then only `generation` tells
    a re-created topic from the old one.
    """
    text = json.dumps([*identity, topic, generation], ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
