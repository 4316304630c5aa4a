"""What is started for the length of a block.

Design choices: one way in and out for every service of this folder; a start that fails takes down
what it began, so that a `with` statement leaves nothing behind either way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Startable(ABC):
    """Context manager around `start` and `stop`."""

    @abstractmethod
    def start(self) -> object:
        """Start and wait until it can be used."""

    @abstractmethod
    def stop(self) -> None:
        """Stop it; nothing if it does not run."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
