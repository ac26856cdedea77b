# SPDX-License-Identifier: Apache-2.0
"""What is remembered of an image, so that a second click on it costs only the decoder."""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from threading import Lock
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["AnswerMemory", "BoundedCache", "EmbeddingCache", "Fingerprint", "weights_checksum"]

Value = TypeVar("Value", bound=Tensor)


class BoundedCache(Generic[Value]):
    """Tensors by key; the least recently used go first. `functools.lru_cache` bounds no bytes.

    Safe under threads: a value is made outside the lock, and once only when several threads ask for it together.
    Pickles are empty.

    Args:
        max_bytes: what all kept values together may occupy; 0 keeps none.

    Example:
        >>> cache = BoundedCache(max_bytes=8)
        >>> cache.recall("a", lambda: torch.ones(2)).tolist(), cache.recall("a", lambda: torch.zeros(2)).tolist()
        ([1.0, 1.0], [1.0, 1.0])
        >>> _ = cache.recall("b", lambda: torch.ones(2))  # there is no room for both
        >>> len(cache), cache.nbytes
        (1, 8)
    """

    def __init__(self, max_bytes: int = 256 * 2**20) -> None:
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
            promised = self._making.get(key)
            if promised is None:
                self._making[key] = Future()
        if promised is not None:
            try:
                return promised.result()
            finally:
                # An exception holds this frame: if the frame held the exception, what failed would stay in memory.
                del promised
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                self._making.pop(key).set_exception(error)
            raise
        with self._lock:
            self._entries[key] = value
            while self.nbytes > self.max_bytes:
                self._entries.popitem(last=False)
            self._making.pop(key).set_result(value)
        return value

    @property
    def nbytes(self) -> int:
        """Bytes that the kept values occupy."""
        return sum(value.element_size() * value.nelement() for value in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def __reduce__(self) -> tuple[type[BoundedCache[Value]], tuple[int]]:
        return type(self), (self.max_bytes,)


class EmbeddingCache(BoundedCache[Tensor]):
    """Least recently used embeddings, keyed by the content of the image.

    A key is made of the image's whole content, of the encoder's weights and of what it computes in, so two users never
    get each other's, users of one image share the work, and an encoder that has learned sees its images anew. Deep
    copies of a network share one cache, and its bound: MONAI Label replaces its network by a copy when the weights'
    file changes, and where only the decoder has changed nothing needs to be encoded again.
    """

    def get(self, image: Tensor, encode: Callable[[Tensor], Tensor], weights: str) -> Tensor:
        """The embedding of `image` by an encoder of these weights, from memory, or by `encode` and then kept."""
        return self.recall(f"{weights}-{self._key(image)}", lambda: encode(image))

    @staticmethod
    def _key(image: Tensor) -> str:
        # SHA-256 has instructions of its own in today's CPUs: 7 ms at 1024 pixels, where BLAKE2 takes 19.
        content = image.detach().cpu().contiguous().reshape(-1).view(dtype=torch.uint8).numpy()
        digest = hashlib.sha256(content.data).hexdigest()
        kind = image.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else image.dtype
        return f"{digest}-{tuple(image.shape)}-{image.dtype}-{image.device}-{precision}"

    def __deepcopy__(self, memo: dict[int, Any]) -> EmbeddingCache:
        return self


class _Answer(NamedTuple):
    who: Hashable
    embedding: weakref.ref[Tensor]
    prompt: _Prompt
    before: Tensor | None
    logits: Tensor


class AnswerMemory:
    """The last answers, so that whoever adds clicks to a prompt goes on from the answer to it.

    An answer is found by who asked, by the embedding itself, which `EmbeddingCache` keeps by content and weights, and
    by a prompt that is extended: the same box, and all of its clicks again, in their order, with more behind them. So
    a click that is taken back gives the answer again that was there before it. Nothing is found in a copy, which
    a network becomes when its weights change, nor of an answer without a prompt.

    Args:
        most: answers that are kept, of everybody together; one of a student of 256 pixels has 16 KiB.

    Example:
        >>> memory, embedding, logits = AnswerMemory(), torch.zeros(1), torch.ones(1)
        >>> click, more = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[3.0, 4.0], [9.0, 9.0]]])
        >>> memory.keep("me", embedding, click, torch.tensor([[1]]), None, logits)
        >>> memory.before("me", embedding, more, torch.tensor([[1, 0]])) is logits
        True
        >>> memory.before("you", embedding, more, torch.tensor([[1, 0]])) is None
        True
    """

    def __init__(self, most: int = 256) -> None:
        self._kept: deque[_Answer] = deque(maxlen=most)
        self._lock = Lock()

    def before(self, who: Hashable, embedding: Tensor, points: Tensor, labels: Tensor) -> Tensor | None:
        """The logits that the answer to a prompt, points (1, N, 2) and labels (1, N), goes on from; None for none.

        Asked again, a prompt goes on from what it went on from the first time.
        """
        with self._lock:
            kept = list(self._kept)
        prompt = _as_prompt(points, labels)
        own = [answer for answer in kept if answer.who == who and answer.embedding() is embedding]
        for answer in reversed(own):
            if answer.prompt == prompt:
                return answer.before
        extended = [answer for answer in own if _extends(prompt, answer.prompt)]
        return max(extended, key=lambda answer: sum(map(len, answer.prompt))).logits if extended else None

    def keep(
        self,
        who: Hashable,
        embedding: Tensor,
        points: Tensor,
        labels: Tensor,
        before: Tensor | None,
        logits: Tensor,
    ) -> None:
        """Keep an answer, the logits, and what it went on from."""
        answer = _Answer(who, weakref.ref(embedding), _as_prompt(points, labels), before, logits)
        with self._lock:
            self._kept.append(answer)

    def __reduce__(self) -> tuple[type[AnswerMemory], tuple[int | None]]:
        return type(self), (self._kept.maxlen,)


_Prompt = tuple[tuple[tuple[float, float], ...], ...]


def _as_prompt(points: Tensor, labels: Tensor) -> _Prompt:
    """Foreground clicks, background clicks, and the corners of the box."""
    xy, kinds = points[0].tolist(), labels[0].tolist()
    placed = [(kind, (x, y)) for (x, y), kind in zip(xy, kinds, strict=True)]
    return tuple(tuple(place for label, place in placed if label in kind) for kind in ((1,), (0,), (2, 3)))


def _extends(prompt: _Prompt, before: _Prompt) -> bool:
    *clicks, box = prompt
    *earlier, earlier_box = before
    again = all(more[: len(some)] == some for more, some in zip(clicks, earlier, strict=True))
    return any(before) and box == earlier_box and again and prompt != before


class Fingerprint:
    """`weights_checksum` of a module, computed anew only after one of them was written to.

    torch counts writes to a tensor in its `_version`; moving or casting a module gives it other memory. (What writes
    through `.data` or another process's view is not counted.)

    Example:
        >>> module, fingerprint = nn.Linear(2, 2), Fingerprint()
        >>> before = fingerprint(module)
        >>> _ = module.load_state_dict({"weight": torch.zeros(2, 2), "bias": torch.zeros(2)})
        >>> fingerprint(module) == before
        False
    """

    def __init__(self) -> None:
        # One value, so that a thread never sees the checksum of one state beside the writes of another.
        self._known: tuple[list[tuple[int, int]], str] = ([], "")

    def __call__(self, module: nn.Module) -> str:
        """The checksum in hexadecimal."""
        seen = [(tensor.data_ptr(), tensor._version) for tensor in _tensors(module)]
        known = self._known
        if seen != known[0]:
            self._known = known = (seen, weights_checksum(module))
        return known[1]


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers; torch's own iterators name them all, which would take a millisecond at each click."""
    modules = [module]
    while modules:
        part = modules.pop()
        yield from (tensor for tensor in (*part._parameters.values(), *part._buffers.values()) if tensor is not None)
        modules += filter(None, part._modules.values())


def weights_checksum(module: nn.Module) -> str:
    """Checksum of a module's weights, whichever file they came from."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in module.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
