"""Weight files read a part at a time: by byte ranges, or from a memory map whose pages are handed back.

`RangeFile` is for safetensors, on a disk or in any store that fsspec knows (gs://, s3://, memory://). `MappedFile` is
for GGUF, whose blocks are unpacked straight from the map.
"""

from __future__ import annotations

import functools
import mmap
import os
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from empathax.errors import WeightsError

# Fields of fsspec's stores that change with a file's content, the best first: of GCS, S3, Azure and HTTP, memory.
_VERSIONS = (
    "md5Hash",
    "md5",
    "crc32c",
    "ETag",
    "etag",
    "generation",
    "LastModified",
    "last_modified",
    "mtime",
    "created",
)


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


class RangeFile:
    """One file; each `read` fetches its bytes and nothing else, so that no page of a map counts as our memory.

    `bytes_read` counts them.
    """

    def __init__(self, path: Path | str):
        self.path = str(path)
        self.bytes_read = 0
        self._descriptor: int | None = None
        self._store: Any = None
        try:
            if is_url(self.path):
                self._store, self._name = open_store(self.path)
                self._size = int(self._store.size(self._name))
            else:
                self._descriptor = os.open(self.path, os.O_RDONLY)
                self._size = os.fstat(self._descriptor).st_size
        except FileNotFoundError:
            raise
        except OSError as error:
            raise WeightsError(f"{self.path} cannot be read: {error.strerror or error}") from error

    @property
    def version(self) -> str:
        """What the store says of the content: a checksum, else a version or a time; "" on a disk."""
        info = self._store.info(self._name) if self._store is not None else {}
        return next((f"{name}={info[name]}" for name in _VERSIONS if info.get(name)), "")

    def __len__(self) -> int:
        return self._size

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            os.close(self._descriptor)  # type: ignore[arg-type]

    def read(self, start: int, num_bytes: int) -> np.ndarray:
        """The bytes from `start` on, as a new array of uint8. Raises a WeightsError if the file ends before."""
        if self._store is not None:
            found = np.frombuffer(self._store.cat_file(self._name, start=start, end=start + num_bytes), np.uint8)
        else:
            found = self._pread(start, num_bytes)
        self.bytes_read += len(found)
        if len(found) < num_bytes:
            raise WeightsError(
                f"{self.path} ends at byte {start + len(found):,}: expected {num_bytes:,} from {start:,}"
            )
        return found

    def _pread(self, start: int, num_bytes: int) -> np.ndarray:
        assert self._descriptor is not None
        values, done = np.empty(num_bytes, np.uint8), 0
        view = memoryview(values)
        while done < num_bytes:
            count = os.preadv(self._descriptor, [view[done:]], start + done)  # at most 2 GB at a time
            if count == 0:
                break
            done += count
        return values[:done]


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


def is_url(path: str) -> bool:
    """Whether `path` names something in a store, not on a disk: "gs://bucket/model"."""
    return "://" in path


def exists(path: Path | str) -> bool:
    """Whether there is such a file, on a disk or in a store."""
    if not is_url(str(path)):
        return Path(path).exists()
    store, name = open_store(str(path))
    return bool(store.exists(name))


def open_store(url: str) -> tuple[Any, str]:
    """The fsspec file system of `url`, and its name there. Raises a WeightsError that says which package is missing."""
    store = _store_of(url.partition("://")[0])
    return store, store._strip_protocol(url)


@functools.lru_cache(maxsize=8)
def _store_of(scheme: str) -> Any:
    import fsspec

    try:
        return fsspec.filesystem(scheme)
    except (ImportError, ValueError) as error:  # gcsfs for gs://, s3fs for s3://
        raise WeightsError(f"{scheme}:// cannot be read: {' '.join(str(error).split())}") from error
