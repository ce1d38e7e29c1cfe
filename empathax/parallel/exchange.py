"""Words between the processes of a job, over its coordinator: no device takes part, so they always get through.

All processes must call these functions in the same order. A process that waits here for one that died is ended by jax.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jax._src import distributed as _jax_distributed  # the coordinator's store has no public door

from empathax import errors
from empathax.errors import EmpathaxError

Judge = Callable[[Sequence[str]], str]  # the words of all processes, in their order -> the answer to all of them
PATIENCE_MS = 24 * 3600 * 1000  # a live process may read its data for long; a dead one is noticed by its heartbeat
_rounds = itertools.count()


def process_number() -> int:
    """This process's number, known before jax looks for devices; 0 for one alone."""
    return _state().process_id


def num_processes() -> int:
    """How many processes the job has, known before jax looks for devices."""
    return _state().num_processes if _state().client else 1


def settle(word: str, judge: Judge) -> str:
    """What `judge`, asked on process 0 only, answers to the words of all processes; the same answer everywhere."""
    if num_processes() == 1:
        return judge([word])
    client, key = _state().client, f"empathax/{next(_rounds)}"
    if process_number() == 0:
        others = [client.blocking_key_value_get(f"{key}/{i}", PATIENCE_MS) for i in range(1, num_processes())]
        answer = judge([word, *others])
        client.key_value_set(f"{key}/answer", answer)
        return answer
    client.key_value_set(f"{key}/{process_number()}", word)
    return client.blocking_key_value_get(f"{key}/answer", PATIENCE_MS)


@contextmanager
def together() -> Iterator[None]:
    """All processes get through the block, or none: an EmpathaxError of one is raised by all, with its number."""
    error: EmpathaxError | None = None
    try:
        yield
    except EmpathaxError as found:
        error = found
    if num_processes() > 1:
        answer = settle(json.dumps([_kind(error), str(error)]) if error else "", _first_error)
        if answer:
            kind, message = json.loads(answer)
            raise getattr(errors, kind)(message) from error
    if error:
        raise error


def from_leader(compute: Callable[[], Any]) -> Any:
    """What `compute` returns on process 0, where alone it runs, on all of them. It must be JSON, and not large.

    An EmpathaxError of it is raised by all.
    """
    if num_processes() == 1:
        return compute()
    word = ""
    with together():
        if process_number() == 0:
            word = json.dumps(compute())
    return json.loads(settle(word, lambda words: words[0]))


def _kind(error: EmpathaxError) -> str:
    """The name in errors.py that an error can be raised by again: its own, or that of the class it is a kind of."""
    return next(kind.__name__ for kind in type(error).__mro__ if getattr(errors, kind.__name__, None) is kind)


def _first_error(words: Sequence[str]) -> str:
    failed = [number for number, word in enumerate(words) if word]
    if not failed:
        return ""
    first = words[failed[0]]
    alike = [number for number in failed if words[number] == first]
    if len(alike) == len(words):
        return first
    kind, message = json.loads(first)
    return json.dumps([kind, f"process {', '.join(map(str, alike))} of {len(words)}: {message}"])


def _state() -> Any:
    return _jax_distributed.global_state
