"""Tensors that stay in a memory-mapped file until a part of one is read; the pages are handed back after each read."""

from __future__ import annotations

import mmap
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np

from empathax.errors import WeightsError

FLOAT_TYPES = ("F64", "F32", "F16", "BF16")


class TensorInfo(NamedTuple):
    """What a file's header says about one tensor."""

    shape: tuple[int, ...]
    dtype: str  # a safetensors or GGUF type name: F32, BF16, Q4_K, I64, ...
    file: str  # name of the file that holds it
    is_float: bool  # it can be read as numbers


class TensorReader(Protocol):
    """Named tensors of one model on disk: one file, or several shards read as one."""

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor by its name in the file."""
        ...

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A new array with the values of `tensors[name]` at `index`, in a float dtype."""
        ...


class MappedFile:
    """A read-only memory map that can forget the pages it has shown.

    Pages of a map count as resident memory once touched; without `forget`, reading a model would look like (and under
    a container limit be) a second copy of it.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:  # mmap refuses a file of 0 bytes
            raise WeightsError(f"{path} is empty: expected model weights; copy or download it again") from error
        except OSError as error:
            raise WeightsError(f"{path} cannot be read: {error.strerror}") from error

    @property
    def buffer(self) -> Any:
        """The bytes of the file."""
        return self._map

    def __len__(self) -> int:
        return len(self._map)

    def view(self, start: int, num_bytes: int, dtype: np.dtype | type) -> np.ndarray:
        """A flat view of a byte range; copy what is needed of it, then call `forget`."""
        dtype = np.dtype(dtype)
        return np.frombuffer(self._map, dtype=dtype, count=num_bytes // dtype.itemsize, offset=start)

    def forget(self, start: int, num_bytes: int) -> None:
        """Lets the system drop the pages inside a byte range; they are read again when touched."""
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        page = mmap.PAGESIZE
        first = start // page * page
        self._map.madvise(mmap.MADV_DONTNEED, first, start + num_bytes - first)

    def __enter__(self) -> MappedFile:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._map.close()
