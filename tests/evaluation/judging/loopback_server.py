"""A chat server on loopback that behaves as a test tells it to: real HTTP, no network."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from empathax.evaluation.judging.chat_server import ChatServer, ServerOptions


@dataclass
class Response:
    """What goes over the wire; `stated_length` is the length that is announced, bytes come `seconds_a_byte` apart."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    stated_length: int | None = None
    seconds_a_byte: float = 0.0


def says(text: str | None, finish_reason: str = "stop", **message: object) -> Response:
    """A well-formed answer that costs 10 + 5 tokens."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return Response(json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode())


def fails(status: int, message: str = "", code: str | None = None, **headers: str) -> Response:
    """An error in OpenAI's form; `Retry_After="7"` becomes a header."""
    body = json.dumps({"error": {"message": message, "code": code, "type": "error", "param": None}}).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(body, status, {"Content-Type": "application/json", **named})


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 64  # all connect at once: whoever finds the queue full comes back after a second


class LoopbackServer:
    """`answer(body, number)` makes the response to the number-th request, from 1; the lists hold what came."""

    def __init__(self, answer: Callable[[dict, int], Response]) -> None:
        self.answer, self.bodies, self.keys, self.paths = answer, [], [], []
        self.most_at_once = self._at_once = 0
        self.released = threading.Event()  # set at the end: a slow handler should wait on it
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def respond(self, path: str, key: str, body: bytes) -> Response:
        with self._lock:
            self.bodies.append(json.loads(body))
            self.keys.append(key)
            self.paths.append(path)
            number = len(self.bodies)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return self.answer(self.bodies[number - 1], number)
        finally:
            with self._lock:
                self._at_once -= 1

    def send(self, response: Response, write: Callable[[bytes], object]) -> None:
        if not response.seconds_a_byte:
            write(response.body)
            return
        for byte in response.body:
            write(bytes([byte]))
            if self.released.wait(response.seconds_a_byte):
                return

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                response = server.respond(self.path, self.headers.get("Authorization", ""), body)
                try:
                    self.send_response_only(response.status)
                    for name, value in response.headers.items():
                        self.send_header(name, value)
                    length = len(response.body) if response.stated_length is None else response.stated_length
                    self.send_header("Content-Length", str(length))
                    self.end_headers()
                    server.send(response, self.wfile.write)
                except OSError:
                    pass  # the client left

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@contextmanager
def serving(answer: Callable[[dict, int], Response]) -> Iterator[LoopbackServer]:
    server = LoopbackServer(answer)
    try:
        yield server
    finally:
        server.close()


class FakeTime:
    """Waits without waiting, and writes down for how long."""

    def __init__(self) -> None:
        self.now, self.waits = 0.0, []

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    def clock(self) -> float:
        return self.now


def client(server: LoopbackServer | str, cache_dir=None, time: FakeTime | None = None, **options) -> ChatServer:
    """A client that waits in fake time."""
    time = time or FakeTime()
    url = server if isinstance(server, str) else server.url
    return ChatServer(
        ServerOptions(url, "judge-1", **options),
        cache_dir,
        sleep=time.sleep,
        clock=time.clock,
        random_share=lambda: 0.5,
    )
