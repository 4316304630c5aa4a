"""What the group protocol assigned and took away, told in the thread that polls.

Design choices: a library may call its listener on a thread of its own and in the middle of a fetch,
so the listener only notes; `settle` tells the reader after the fetch and withholds what was read
before the reader knew of the partition.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from flts_ray.streams.records import Records

Told = Callable[[list[int]], None]


class Rebalances:
    """Notes from the group protocol, in order; `count` is the number of changes."""

    def __init__(self, on_assigned: Told, on_revoked: Told) -> None:
        self.count = 0
        self._told = {"assigned": on_assigned, "revoked": on_revoked}
        self._noted: deque[tuple[str, list[int]]] = deque()

    def note(self, change: str, partitions: Iterable[int]) -> None:
        """`change`: "assigned" or "revoked". May be called from any thread."""
        changed = sorted(partitions)
        if changed:
            self._noted.append((change, changed))

    def settle(self, found: Sequence[Records], seek: Callable[[int, int], None]) -> list[Records]:
        """Tell the reader what changed; returns `found` without the partitions that changed.

        Withheld messages of an assigned partition are read again, unless the reader seeks.
        """
        changed: set[int] = set()
        while self._noted:
            change, partitions = self._noted.popleft()
            self.count += 1
            changed.update(partitions)
            if change == "assigned":
                for records in found:
                    if records.partition in partitions:
                        seek(records.partition, records.offsets[0])
            self._told[change](partitions)
        return [records for records in found if records.partition not in changed]
