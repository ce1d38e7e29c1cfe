"""The cache of answers: whatever is cut off, damaged or killed, no whole answer is lost and none is made up."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from empathax.data.records import Message
from empathax.errors import ConfigError
from empathax.evaluation.judging import response_cache
from empathax.evaluation.judging.chat_requests import ChatOutcome, ChatRequest
from empathax.evaluation.judging.response_cache import ResponseCache
from tests.evaluation.judging.loopback_server import client, says, serving

REQUEST = ChatRequest((Message("user", "Wie geht’s? \N{SLIGHTLY SMILING FACE}"),), max_tokens=5)
ANSWER = ChatOutcome("answered", "gut\nso \N{SLIGHTLY SMILING FACE}", "", "stop", 3, 4, attempts=2)
AS_KEPT = ChatOutcome("answered", ANSWER.text, "", "stop", 3, 4, attempts=0)


def put(cache: ResponseCache, key: str, outcome: ChatOutcome = ANSWER) -> None:
    cache.put(key, "http://127.0.0.1/v1", "m", REQUEST, outcome)


def test_what_is_kept_comes_back(tmp_path):
    put(ResponseCache(tmp_path / "new" / "place", now=lambda: 12.5), "a")
    again = ResponseCache(tmp_path / "new" / "place")
    assert again.get("a") == AS_KEPT
    assert again.get("b") is None
    (entry,) = map(json.loads, again.path.read_text().splitlines())
    assert entry["request"]["messages"] == [{"role": "user", "content": REQUEST.messages[0].content}]
    assert (entry["time"], entry["sample"], entry["url"]) == (12.5, 0, "http://127.0.0.1/v1")
    assert again.path.stat().st_mode & 0o077 == 0


def test_failures_are_not_kept(tmp_path):
    cache = ResponseCache(tmp_path)
    put(cache, "a", ChatOutcome("failed", reason="HTTP 500", attempts=6))
    assert cache.get("a") is None
    assert not cache.path.exists()


def test_a_file_cut_anywhere_loses_its_last_answer_alone_and_goes_on(tmp_path):
    cache = ResponseCache(tmp_path)
    put(cache, "a")
    first = cache.path.read_bytes()
    put(cache, "b")
    whole = cache.path.read_bytes()
    for length in range(len(first), len(whole) - 1, 7):  # without its line break alone an answer is whole
        cache.path.write_bytes(whole[:length])
        cut = ResponseCache(tmp_path)
        assert (cut.get("a"), cut.get("b")) == (AS_KEPT, None), length
        put(cut, "c")
        again = ResponseCache(tmp_path)
        assert [again.get(key) for key in "abc"] == [AS_KEPT, None, AS_KEPT], length
        assert again.num_answers == 2, length


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "null",
        "{}",
        '{"key": 5, "outcome": {"status": "answered", "text": "x"}}',
        '{"key": "a", "outcome": {"status": "answered", "text": null}}',
        '{"key": "a", "outcome": {"status": "failed"}}',
        '{"key": "a", "outcome": {"status": "unheard of", "text": "x"}}',
        '{"key": "a", "outcome": {"status": "answered", "text": "x", "price": 3}}',
        '{"key": "a", "outcome": "answered"}',
        "\x00" * 40,
        "[" * 100_000,
    ],
)
def test_lines_of_another_kind_are_ignored(tmp_path, line):
    (tmp_path / response_cache.FILE_NAME).write_text(line + "\n")
    cache = ResponseCache(tmp_path)
    assert cache.get("a") is None
    assert cache.num_answers == 0
    put(cache, "b")
    assert ResponseCache(tmp_path).num_answers == 1


def test_the_key_changes_with_everything_that_can_change_the_answer():
    settings = {"temperature": 0.1, "top_p": 0.5, "seed": 1, "stop": ("x",), "sample": 1, "max_tokens": 6}
    base = {"messages": REQUEST.messages, "max_tokens": 5}
    requests = [ChatRequest(**base), *(ChatRequest(**{**base, name: value}) for name, value in settings.items())]
    requests += [
        ChatRequest((Message("system", REQUEST.messages[0].content),), 5),
        ChatRequest(REQUEST.messages * 2, 5),
    ]
    keys = {request.key("http://a/v1", "m") for request in requests}
    keys |= {REQUEST.key("http://a/v1", "n"), REQUEST.key("http://b/v1", "m")}
    assert len(keys) == len(requests) + 2
    assert REQUEST.key("http://a/v1", "m") in keys


def test_a_place_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="answers cannot be kept there"):
        ResponseCache(tmp_path / "file")


def test_a_full_disk_ends_the_run_and_what_was_kept_stays(tmp_path, monkeypatch):
    cache = ResponseCache(tmp_path)
    put(cache, "a")
    write = os.write
    monkeypatch.setattr(response_cache.os, "write", lambda descriptor, line: write(descriptor, line[:20]))
    with pytest.raises(ConfigError, match="an answer cannot be kept: the disk is full; make room"):
        put(cache, "b")
    monkeypatch.undo()
    put(ResponseCache(tmp_path), "c")
    again = ResponseCache(tmp_path)
    assert [again.get(key) for key in "abc"] == [AS_KEPT, None, AS_KEPT]


def test_two_processes_may_share_a_file(tmp_path):
    one, two = ResponseCache(tmp_path), ResponseCache(tmp_path)

    def fill(cache, name):
        for number in range(100):
            put(cache, f"{name}{number}")

    threads = [threading.Thread(target=fill, args=pair) for pair in ((one, "a"), (two, "b"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = ResponseCache(tmp_path)
    lines = [line for line in again.path.read_bytes().splitlines() if line]  # blank: the other was just writing
    assert again.num_answers == len(lines) == 200


CHILD = """
import sys
from pathlib import Path
from tests.evaluation.judging.test_response_cache import killed_in_the_middle
killed_in_the_middle(sys.argv[1], Path(sys.argv[2]))
"""


def killed_in_the_middle(url: str, directory: Path) -> None:
    """Run by the child: twelve requests, two at a time."""
    client(url, directory, concurrency=2).complete(requests_of_twelve())


def requests_of_twelve() -> list[ChatRequest]:
    return [ChatRequest((Message("user", f"question {number}"),), max_tokens=5) for number in range(12)]


def test_a_killed_run_goes_on_and_asks_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    stuck = threading.Event()

    def gets_stuck(body, number):
        if number >= 8:
            stuck.set()
            server.released.wait(60)
        return says(body["messages"][-1]["content"].replace("question", "answer"))

    with serving(gets_stuck) as server:
        command = [sys.executable, "-c", CHILD, server.url, str(tmp_path)]
        child = subprocess.Popen(command, cwd=Path(__file__).parents[3])
        try:
            assert stuck.wait(60)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
        kept = ResponseCache(tmp_path)
        assert 6 <= kept.num_answers <= 7  # 7 were answered, the last one perhaps not kept yet
        num_asked = len(server.bodies)
        server.answer = lambda body, number: says(body["messages"][-1]["content"].replace("question", "answer"))
        outcomes = client(server, tmp_path).complete(requests_of_twelve())
        assert len(server.bodies) - num_asked == 12 - kept.num_answers
    assert [outcome.text for outcome in outcomes] == [f"answer {number}" for number in range(12)]
    keys = [json.loads(line)["key"] for line in kept.path.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 12
