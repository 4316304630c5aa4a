"""Dead letters for operators: list, count, show, purge and forward them.

Design choices: what is shown is read from the segments, so it needs no broker and is never late;
bytes of strangers reach a terminal only as printable text or as a hex dump; purging hides letters
and, where the broker can, frees their messages in the dead-letter topic; the segments stay whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from functools import partial as bound
from itertools import islice

from flts_ray.config import Config
from flts_ray.errors import DataError, Unavailable
from flts_ray.ingest.dead_letters import Forwarder
from flts_ray.ingest.letter_topic import KafkaLetterTopic, dead_letter_topic
from flts_ray.ingest.letters import Letter, Which, hidden, letters, parse_id
from flts_ray.ingest.letters import purge as hide
from flts_ray.jobs.ingest_check import epochs_in
from flts_ray.jobs.ingest_worker import epoch_at
from flts_ray.jobs.stream_status import stream_status
from flts_ray.store import NotFound, Store
from flts_ray.streams import connect

SHOWN_BYTES = 4096
_HEX_WIDTH = 16


@dataclass(frozen=True)
class Purged:
    """`letters` that are hidden now; `messages` freed in the topic, None: the broker cannot.

    `away`: why the broker could not be asked; purging again frees what is hidden by then.
    """

    letters: int
    messages: int | None
    away: str | None = None


def list_letters(
    config: Config,
    code: str | None = None,
    partition: int | None = None,
    since: datetime | None = None,
    limit: int | None = 100,
) -> Iterator[Letter]:
    """Letters of the topic's present life by partition and offset, without purged ones.

    `since`: by the broker's time. Raises DataError where nothing was ever ingested.
    """
    which = Which(code, partition, None if since is None else milliseconds(since))
    return islice(chosen(config, which), limit)


def chosen(config: Config, which: Which) -> Iterator[Letter]:
    """The same for any choice. Raises DataError for ids that name no letter."""
    store, topic = Store.open(config.root), config.stream.topic
    for name in which.ids:
        parse_id(name)
    return letters(store, topic, epoch_of_store(config, store), which)


def summary(config: Config) -> dict[str, int]:
    """Reason code to its number of letters, the most frequent first; without purged ones."""
    return dict(Counter(letter.code for letter in chosen(config, Which())).most_common())


def show(config: Config, name: str) -> str:
    """One letter with its bytes, for a terminal. Raises NotFound, DataError for a wrong id."""
    partition, offset = parse_id(name)
    store, topic = Store.open(config.root), config.stream.topic
    epoch = epoch_of_store(config, store)
    which = Which(ids=(f"{partition}/{offset}",))
    letter = next(letters(store, topic, epoch, which, purged=True), None)
    if letter is None:
        raise NotFound(
            f"{topic} {name}: no dead letter; the message was good, or was not ingested yet; "
            "`flts dlq list` shows what there is"
        )
    purged = hidden(store, topic, epoch)(letter)
    return render(letter) + ("\n(purged: not in lists, not replayed)" if purged else "")


def purge(config: Config, which: Which, brokers: str | None = None) -> Purged:
    """Hide what is chosen of the letters that there are now, for ever.

    With `brokers`, messages at the start of the dead-letter topic that are all hidden are freed;
    a broker that is away keeps no letter from being hidden.
    """
    store, topic = Store.open(config.root), config.stream.topic
    epoch = epoch_of_store(config, store)
    count = sum(1 for _ in chosen(config, which))
    if count:
        hide(store, topic, epoch, which, datetime.now(UTC).isoformat())
    try:
        return Purged(count, _free(config, store, brokers) if brokers else None)
    except Unavailable as error:
        return Purged(count, None, str(error))


def forward(config: Config, brokers: str) -> int:
    """Send on what is not in the dead-letter topic yet; returns how many letters.

    For processes that ingest without actors. Two at once may send a letter twice.
    """
    stream, store = config.stream, Store.open(config.root)
    target = bound(KafkaLetterTopic, stream, brokers)
    with closing(connect.consumer(stream, brokers, group=f"{stream.group}-dlq")) as reader:
        ends = {p: end for p, (_, end) in reader.bounds(reader.partitions()).items()}
    epoch = epoch_at(config, brokers)
    with closing(Forwarder(store, stream.topic, epoch, target)) as forwarder:
        for partition, end in ends.items():
            while not forwarder.forward(partition, end):
                continue
        return forwarder.forwarded


def render(letter: Letter, limit: int = SHOWN_BYTES) -> str:
    """All of a letter as printable text; of its bytes the first `limit`."""
    moment = letter.arrived
    stamp = f"{letter.timestamp_ms} ms" if moment is None else moment.isoformat("T", "milliseconds")
    lines = [
        f"{_printable(letter.topic)} {letter.id}",
        f"code       {_printable(letter.code)}",
        f"detail     {_printable(letter.detail)}",
        f"arrived    {stamp}",
        f"key        {'none' if letter.key is None else _short(letter.key)}",
        *(f"header     {_printable(name)}: {_short(value)}" for name, value in letter.headers),
    ]
    if letter.raw is None:
        return "\n".join([*lines, "value      none"])
    size = len(letter.raw)
    lines += [f"value      {size:,} bytes", "", _body(letter.raw[:limit])]
    if size > limit:
        lines.append(f"... cut: the first {limit:,} of {size:,} bytes are shown")
    return "\n".join(lines)


def milliseconds(moment: datetime) -> int:
    """Milliseconds since 1970; a moment without a zone is in UTC."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(aware.timestamp() * 1000)


def epoch_of_store(config: Config, store: Store) -> str:
    """The life of the topic that somebody worked on last. Raises DataError if there is none."""
    found = epochs_in(store, config.stream.topic)
    if len(found) == 1:
        return found[0]
    status = stream_status(config, store, datetime.now(UTC)) if found else None
    if status is None or not status.epoch:
        raise DataError(
            f"{store.uri('raw')}/{config.stream.topic}: nothing was ingested, so there are no dead "
            "letters; `flts ingest run` ingests"
        )
    return status.epoch


def _free(config: Config, store: Store, brokers: str) -> int | None:
    stream = config.stream
    name = dead_letter_topic(stream.topic)
    with closing(connect.admin(stream, brokers)) as admin:
        if name not in admin.topics():
            return 0
        with closing(KafkaLetterTopic(stream, brokers)) as topic:
            before = {p: _hidden_start(topic, store, p) for p in range(topic.partitions)}
        ends = {p: end for p, (end, count) in before.items() if count}
        if ends and not admin.delete_records(name, ends):
            return None
    return sum(count for _, count in before.values())


def _hidden_start(topic: KafkaLetterTopic, store: Store, partition: int) -> tuple[int, int]:
    """Offset before which every message is a hidden letter, and how many those are."""
    known = cache(bound(hidden, store))
    end = count = 0
    for offset, letter in topic.messages(partition):
        # A stranger's message may name any topic; only this one's letters are purged here.
        mine = letter is not None and dead_letter_topic(letter.topic) == topic.name
        if letter is None or not mine or not known(letter.topic, letter.epoch)(letter):
            break
        end, count = offset + 1, count + 1
    return end, count


def _body(data: bytes) -> str:
    text = _text(data)
    return _dump(data) if text is None else text


def _text(data: bytes) -> str | None:
    """Printable form of UTF-8 text; a character that was cut at the end does not count."""
    for end in range(len(data), max(len(data) - 4, -1), -1):
        try:
            text = data[:end].decode()
        except UnicodeDecodeError:
            continue
        return "\n".join(_printable(line, keep="\t") for line in text.split("\n"))
    return None


def _dump(data: bytes) -> str:
    return "\n".join(
        f"{start:08x}  {part.hex(' '):<{3 * _HEX_WIDTH - 1}}  {_ascii(part)}"
        for start in range(0, len(data), _HEX_WIDTH)
        if (part := data[start : start + _HEX_WIDTH])
    )


def _ascii(data: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)


def _short(data: bytes, limit: int = 200) -> str:
    text = _text(data[:limit])
    shown = data[:limit].hex() if text is None else text.replace("\n", "\\n")
    return shown + (f"... ({len(data):,} bytes)" if len(data) > limit else "")


def _printable(text: str, keep: str = "") -> str:
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text
    )
