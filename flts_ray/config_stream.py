"""Configuration of the stream: the topic, how it is written to the store, what is told of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flts_ray.schema import Address, Section


class StreamConfig(Section):
    """Where raw samples arrive: a Kafka topic. Name and password of SASL come from the
    environment: KAFKA_USERNAME and KAFKA_PASSWORD."""

    brokers: Address | None = None
    """`host:port`, several separated by commas; None: the broker that `flts up` runs."""
    topic: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,200}$")] = "load"
    group: str = "flts"
    """Consumer group under which offsets are committed."""
    client: Literal["kafka-python", "confluent"] = "kafka-python"
    security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    ca_file: Address | None = None
    cert_file: Address | None = None
    key_file: Address | None = None
    partitions: int = Field(4, ge=1, le=10_000)
    """Partitions of the topic where it is created here."""
    idempotence: bool = True
    """Producers repeat an unanswered write without doubling it; brokers or rights that do not
    allow it refuse the producer until this is off."""
    generation: int = Field(0, ge=0)
    """Raise it after re-creating the topic on a broker that gives topics no identity."""
    max_message_bytes: int = Field(2**20, ge=100)
    """Messages with more bytes of value, key and headers become dead letters without being parsed;
    they are kept as they came up to 16 MiB, of larger ones the first 16 MiB."""
    claims: dict[str, Address] = {}
    """Bucket name in a claim-check message to the store it means; others are refused. The keys of
    the store must allow to list it: else a missing object and missing rights look the same."""
    max_claim_bytes: int = Field(2**30, ge=1024)

    @model_validator(mode="after")
    def _sasl(self) -> StreamConfig:
        if self.security.startswith("SASL") != (self.sasl_mechanism is not None):
            raise ValueError("security SASL_* and sasl_mechanism go together: set both, or neither")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together: set both, or neither")
        return self


class IngestConfig(Section):
    """How the topic is written to the store, segment by segment."""

    actors: int = Field(1, ge=1, le=1000)
    """Actor i of n takes the partitions p with p % n = i."""
    cpus_per_actor: float = Field(0.5, ge=0)
    ownership: Literal["assign", "subscribe"] = "assign"
    """`subscribe`: the broker's group protocol shares the partitions out (cooperative-sticky)."""
    segment_rows: int = Field(1_000_000, ge=1)
    segment_bytes: int = Field(128 * 2**20, ge=1, le=2**29)
    """Bytes of messages, or of their rows in memory, in one segment; a little more may come."""
    segment_age_s: float = Field(30.0, gt=0)
    """A segment is closed this long after its first message, however few there are."""
    buffer_bytes: int = Field(256 * 2**20, ge=1)
    """Bytes of messages or rows an actor holds; full, it pauses its partitions until half. The rows
    of one claimed object may need no more."""
    poll_records: int = Field(20_000, ge=1)
    store_patience_s: float = Field(600.0, gt=0)
    """An actor gives up, and is started again, when the store is away for longer."""
    status_s: float = Field(5.0, gt=0)


class EventsConfig(Section):
    """What the pipeline tells the broker of its steps; it never waits for it."""

    enabled: bool = False
    queue: int = Field(1000, ge=1)
    """Most events that wait for the broker; more are dropped and counted."""
