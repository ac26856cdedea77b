# SPDX-License-Identifier: Apache-2.0
"""A memory of things that are expensive to make, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from threading import Lock
from typing import Generic, TypeVar

from torch import Tensor

__all__ = ["BoundedCache"]

Value = TypeVar("Value", bound=Tensor | tuple[Tensor, ...])


class BoundedCache(Generic[Value]):
    """Tensors or tuples of them by key; the least recently used go first. `functools.lru_cache` bounds no bytes.

    Safe under threads: a value is made outside the lock, and once only when several threads ask for it together.

    Args:
        max_bytes: what all kept values together may occupy; 0 keeps none.

    Example:
        >>> import torch
        >>> cache = BoundedCache(max_bytes=8)
        >>> cache.recall("a", lambda: torch.ones(2)).tolist(), cache.recall("a", lambda: torch.zeros(2)).tolist()
        ([1.0, 1.0], [1.0, 1.0])
        >>> _ = cache.recall("b", lambda: torch.ones(2))  # there is no room for both
        >>> len(cache), cache.nbytes
        (1, 8)
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[Hashable, Value] = OrderedDict()
        self._making: dict[Hashable, Future[Value]] = {}
        self._lock = Lock()

    def recall(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of `key`: from memory, from another thread that is making it, or by `make` and then kept."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
            making = self._making.get(key)
            is_first = making is None
            if making is None:
                making = self._making[key] = Future()
        try:
            if not is_first:
                return making.result()
            try:
                value = make()
            except BaseException as error:
                making.set_exception(error)
                self._finish(key, making, None)
                raise
            making.set_result(value)
            self._finish(key, making, value)
            return value
        finally:
            # An exception holds this frame: if the frame held the exception, what failed would stay in memory.
            del making

    def _finish(self, key: Hashable, making: Future[Value], value: Value | None) -> None:
        with self._lock:
            # What was begun before a `clear` is out of date by now.
            if self._making.get(key) is not making:
                return
            del self._making[key]
            if value is not None:
                self._entries[key] = value
                while self._entries and self._size() > self.max_bytes:
                    self._entries.popitem(last=False)

    def _size(self) -> int:
        values = ((entry,) if isinstance(entry, Tensor) else entry for entry in self._entries.values())
        return sum(tensor.element_size() * tensor.nelement() for value in values for tensor in value)

    @property
    def nbytes(self) -> int:
        """Bytes that the kept values occupy."""
        with self._lock:
            return self._size()

    def clear(self) -> None:
        """Forget everything, what is being made included."""
        with self._lock:
            self._entries.clear()
            self._making.clear()

    def __reduce__(self) -> tuple[type[BoundedCache[Value]], tuple[int]]:
        """Copies and pickles are empty."""
        return type(self), (self.max_bytes,)

    def __len__(self) -> int:
        return len(self._entries)
