"""What a run writes while it goes: metrics.jsonl (the record) and TensorBoard event files."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text import metadata as text_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from empathax import json_text
from empathax.atomic import whole_file

METRICS_FILE = "metrics.jsonl"


class Tracker:
    """Writes the metrics of one stage. On resume at step s, what was written after s is dropped from both records; a
    stage that starts anew (s = 0) drops all its earlier lines, one that `evaluates_again` at s its evaluation there."""

    def __init__(
        self,
        workdir: Path,
        stage: str,
        start_step: int,
        evaluates_again: bool = False,
        *,
        tensorboard: bool,
        enabled: bool = True,
    ) -> None:
        self.stage = stage
        self._record: RecordFile | None = None
        self._events: EventFileWriter | None = None
        if not enabled:
            return
        path = workdir / METRICS_FILE
        last_kept = start_step if start_step > 0 else -1
        _drop_lines_after(path, stage, last_kept, evaluates_again)
        self._record = RecordFile(path)
        if tensorboard:
            self._events = EventFileWriter(str(workdir / "tensorboard" / stage))
            # SessionLog.START tells TensorBoard to forget what a stopped run wrote from this step on.
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._add(event_pb2.Event(wall_time=time.time(), step=last_kept + 1, session_log=start))

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._record:
            self._record.close()
        if self._events:
            self._events.close()

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Records `values` of `split` ("train" or "eval") at `step`, under their names in docs/metrics.md."""
        if self._record is None:
            return
        self._record.write({"step": step, "stage": self.stage, "split": split, **values})
        summary = summary_pb2.Summary(
            value=[summary_pb2.Summary.Value(tag=f"{split}/{name}", simple_value=v) for name, v in values.items()]
        )
        self._add(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))

    def problem(self) -> str:
        """Why lines are not in metrics.jsonl yet; "" if all are."""
        return self._record.problem if self._record else ""

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Shows `markdown` in TensorBoard's Text tab under `tag`."""
        tensor = tensor_pb2.TensorProto(
            dtype=types_pb2.DT_STRING, string_val=[markdown.encode()], tensor_shape=tensor_shape_pb2.TensorShapeProto()
        )
        meta = text_metadata.create_summary_metadata(display_name=tag, description="")
        value = summary_pb2.Summary.Value(tag=tag, tensor=tensor, metadata=meta)
        self._add(event_pb2.Event(wall_time=time.time(), step=step, summary=summary_pb2.Summary(value=[value])))

    def image(self, step: int, tag: str, png: bytes) -> None:
        """Shows a PNG in TensorBoard's Images tab under `tag`."""
        width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))  # of its IHDR chunk
        image = summary_pb2.Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
        value = summary_pb2.Summary.Value(tag=tag, image=image)
        self._add(event_pb2.Event(wall_time=time.time(), step=step, summary=summary_pb2.Summary(value=[value])))

    def flush(self) -> None:
        """Makes what was written so far visible to a running TensorBoard."""
        if self._events:
            self._events.flush()

    def _add(self, event: event_pb2.Event) -> None:
        if self._events is None:
            return
        try:
            self._events.add_event(event)
        except OSError as error:  # metrics.jsonl is the record; a full disk here must not end the run
            warnings.warn(f"TensorBoard files cannot be written any more: {error}", stacklevel=2)
            self._events = None


class RecordFile:
    """A file of JSON lines that are on disk in order and whole, or still in memory: a disk that is full is tried again
    with each line."""

    def __init__(self, path: Path) -> None:
        self.problem = ""
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._waiting: list[bytes] = []

    def write(self, values: Mapping[str, Any]) -> None:
        """Appends a line. Says on stderr when the disk begins to refuse, and when it takes what waited."""
        self._waiting.append(json_text.dumps(values).encode() + b"\n")
        before, self.problem = self.problem, self._append()
        if self.problem and not before:
            print(f"{self.problem}; training goes on, its lines are kept in memory", file=sys.stderr)
        if before and not self.problem:
            print(f"{self._path} is written again, with all that waited", file=sys.stderr)

    def close(self) -> None:
        """Tries what waits once more."""
        self.problem = self._append()
        os.close(self._descriptor)

    def _append(self) -> str:
        data, size = b"".join(self._waiting), os.fstat(self._descriptor).st_size
        try:
            if os.write(self._descriptor, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, size)
            return f"{self._path} cannot be written: {error.strerror}"
        self._waiting.clear()
        return ""


def write_hparams(directory: Path, values: Mapping[str, bool | float | str], trial: str) -> None:
    """Puts the settings of the run whose events are in `directory` into TensorBoard's HParams tab, as `trial`."""
    summary = hparams_pb(dict(values), trial_id=trial)
    try:
        writer = EventFileWriter(str(directory))
        writer.add_event(event_pb2.Event(wall_time=time.time(), step=0, summary=summary))
        writer.close()
    except OSError as error:
        warnings.warn(f"TensorBoard files cannot be written: {error}", stacklevel=2)


def _drop_lines_after(path: Path, stage: str, step: int, evaluates_again: bool) -> None:
    if not path.exists():
        return
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    kept = [line for line in lines if _is_kept(line, stage, step, evaluates_again)]
    if len(kept) < len(lines):
        with whole_file(path) as file:
            file.writelines(f"{line}\n" for line in kept)


def _is_kept(line: str, stage: str, step: int, evaluates_again: bool) -> bool:
    try:
        record = json_text.parse(line, non_finite=True)
        last_kept = step - (evaluates_again and record["split"] == "eval")
        return record["stage"] != stage or record["step"] <= last_kept
    except (ValueError, KeyError, TypeError):  # the last line of a run that was killed while it wrote
        return False
