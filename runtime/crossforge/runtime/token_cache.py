"""Token ids of the passages that were read lately: what a search engine returns for one query it returns for the next."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import InputError

Ids = NDArray[np.int32]

_OVERHEAD_BYTES = 256
"""What an entry takes beside its text and its ids: two Python objects, an array's header, a place in the dictionary."""


class TokenCache:
    """Ids by text, the least recently used dropped first. Safe to call from several threads.

    Args:
        max_bytes: Most that texts and ids take together, their overhead included.

    Raises:
        InputError: ``max_bytes`` is below 1.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 1:
            raise InputError("the passage cache is too small", got=f"{max_bytes} bytes", allowed="1 or more")
        self.max_bytes = max_bytes
        self.size_bytes = 0
        """Bytes in use."""
        self.hits = 0
        """Texts that were found."""
        self.misses = 0
        """Texts that were not."""
        self._entries: OrderedDict[str, Ids] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, texts: Sequence[str]) -> dict[str, Ids]:
        """The texts that are held, with their ids: int32 [length], not to be written to."""
        with self._lock:
            found = {text: ids for text in texts if (ids := self._entries.get(text)) is not None}
            for text in found:
                self._entries.move_to_end(text)
            self.hits += len(found)
            self.misses += len(texts) - len(found)
        return found

    def add(self, ids_of_text: Mapping[str, Ids]) -> None:
        """Hold texts with their ids; a text that alone is larger than the cache is not held."""
        with self._lock:
            for text, ids in ids_of_text.items():
                size = _size_bytes(text, ids)
                if size > self.max_bytes or text in self._entries:
                    continue
                while self.size_bytes + size > self.max_bytes:
                    self.size_bytes -= _size_bytes(*self._entries.popitem(last=False))
                self._entries[text] = ids
                self.size_bytes += size


def _size_bytes(text: str, ids: Ids) -> int:
    # Not sys.getsizeof: a text in Python takes 1, 2 or 4 bytes a character, and getsizeof grows once its UTF-8 is asked for.
    width = 1 if text.isascii() else 4
    return len(text) * width + ids.nbytes + _OVERHEAD_BYTES
