# SPDX-License-Identifier: Apache-2.0
"""Lists of dictionaries in NumPy files, which NumPy stores as pickles, read without running what a pickle may say."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from monai_kdsam.errors import UserError

__all__ = ["load_plain"]

_NUMBERS = {f"{kind}{size}" for kind in "iuf" for size in (1, 2, 4, 8)} | {"b1"}


class _Array(list[Any]):
    """An array, as a list."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, _, values = state
        self.extend(
            values if isinstance(values, list) else np.frombuffer(values, dtype.found()).reshape(shape).tolist()
        )


class _Type:
    """The type of an array or a number."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name, self.order = name, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def found(self) -> np.dtype[Any]:
        if self.name not in _NUMBERS or self.order not in ("<", ">", "=", "|"):
            raise UserError(f"it holds the type {self.name!r}, where numbers are expected")
        return np.dtype(f"{self.order}{self.name}")


def _number(dtype: _Type, content: bytes) -> Any:
    return np.frombuffer(content, dtype.found(), count=1)[0].item()


# What a pickle of an array names; nothing of NumPy's own is called with what the file says.
_KNOWN: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _Type,
    "numpy.core.multiarray._reconstruct": lambda *_: _Array(),
    "numpy.core.multiarray.scalar": _number,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get(f"{module}.{name}".replace("numpy._core.", "numpy.core."))
        if known is None:
            raise UserError(f"it would run {module}.{name}")
        return known


def load_plain(file: IO[bytes]) -> list[Any]:
    """The content of an array of objects that are lists, dictionaries, text and numbers.

    Args:
        file: behind the header of NumPy's format.

    Raises:
        ValueError: when there is anything else in it, or it is damaged; it says in which way.
    """
    try:
        content = _Unpickler(file).load()
    except UserError:
        raise
    except Exception as error:  # what a damaged pickle raises depends on the damage
        raise UserError(f"it is damaged ({error})") from error
    if not isinstance(content, _Array):
        raise UserError(f"it holds no array but {type(content).__name__}")
    return list(content)
