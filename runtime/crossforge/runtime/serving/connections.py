"""How many connections may be open, and which of them gives way to a new one."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Protocol

STANDING = 64
"""Connections beyond the bound that are still answered: with a refusal, or how the service is."""
MIN_IDLE_S = 1.0
"""A connection that waits for less has perhaps sent its request, and it is not read yet."""


class Connection(Protocol):
    """An open connection, such as an asyncio transport. Equal to itself alone."""

    def close(self) -> None:
        """End it."""
        ...


class Connections:
    """The open connections of a service. On the event loop alone.

    So many have a seat. Where all are taken, the connection that has waited longest for its next request is closed for the
    new one: clients keep connections that they do not use, and open another when one is closed. If every seat has a request,
    the new connection stands: its requests are refused until a seat is free. Beyond :data:`STANDING` it is not taken at all.

    Args:
        most: Seats.
        clock: Seconds that never go back.
    """

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._seated: set[Connection] = set()
        self._standing: set[Connection] = set()
        self._idle: OrderedDict[Connection, float] = OrderedDict()
        self.closed: Counter[str] = Counter(idle=0, crowded=0)
        """Connections that were closed for others, and those that were not taken."""

    def __len__(self) -> int:
        return len(self._seated) + len(self._standing)

    def enter(self, connection: Connection) -> bool:
        """Take a new connection; false if there is no room, and it is to be closed."""
        if self._take_a_seat(connection):
            self._idle[connection] = self._clock()
        elif len(self._standing) < STANDING:
            self._standing.add(connection)
        else:
            self.closed["crowded"] += 1
            return False
        return True

    def may_ask(self, connection: Connection) -> bool:
        """Whether its requests are answered: it has a seat, or gets one now, or it is closed and nobody waits."""
        return connection not in self._standing or self._take_a_seat(connection)

    def note(self, connection: Connection, *, idle: bool) -> None:
        """Tell whether a connection waits for its next request. What comes of that request meanwhile starts no new wait."""
        if not idle:
            self._idle.pop(connection, None)
        elif connection in self._seated:
            self._idle.setdefault(connection, self._clock())

    def leave(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        self._seated.discard(connection)
        self._standing.discard(connection)
        self._idle.pop(connection, None)

    def _take_a_seat(self, connection: Connection) -> bool:
        if len(self._seated) >= self._most and not self._free_a_seat():
            return False
        self._standing.discard(connection)
        self._seated.add(connection)
        return True

    def _free_a_seat(self) -> bool:
        longest, since = next(iter(self._idle.items()), (None, 0.0))
        if longest is None or self._clock() - since < MIN_IDLE_S:
            return False
        self.leave(longest)
        self.closed["idle"] += 1
        longest.close()
        return True
