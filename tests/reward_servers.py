"""Servers for tests: the real one, in this process or as a program of its own, and one that says what it is told to."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import uvicorn

from unmask.rewards.base import Reward
from unmask.serve.app import RewardApp

Answering = Callable[[int, bytes], tuple[int, dict[str, str], bytes]]


@contextlib.contextmanager
def serving(*rewards: Reward, token: str | None = None) -> Iterator[str]:
    """The url of a server of these rewards."""
    app = RewardApp({reward.label: reward for reward in rewards}, token)
    server = uvicorn.Server(uvicorn.Config(app.app, log_level="critical", timeout_graceful_shutdown=2))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


class Program:
    """`unmask serve` as a program of its own, which can be killed and started again at the same port."""

    def __init__(self, *rewards: str):
        self._rewards, self._port = rewards, 0
        self.start()

    def start(self) -> None:
        words = ["--rewards", *self._rewards, "--port", str(self._port)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "unmask", "serve", *words],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert self._process.stdout is not None
        self.addresses = [self._process.stdout.readline().strip() for _ in self._rewards]
        assert self._process.stdout.readline() == "ready\n"
        self._port = int(self.addresses[0].split(":")[2].partition("/")[0])

    def start_again(self) -> None:
        """Waits for its end, then starts it."""
        self._process.wait(60)
        self.start()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def interrupt(self) -> int:
        """As Ctrl-C does; the exit code."""
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(20)


class Scripted:
    """A server whose answers are scripted: `(number of the request, its body) -> (status, headers, body)`.

    Args:
        models: status and body of the answer to a GET.

    Attributes:
        bodies: of the requests so far.
    """

    def __init__(
        self,
        answer: Callable[[int, bytes], tuple[int, dict[str, str], bytes]],
        models: tuple[int, bytes] = (200, b"{}"),
    ):
        self.bodies: list[bytes] = []
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self._send(models[0], {}, models[1])

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                script.bodies.append(body)
                self._send(*answer(len(script.bodies) - 1, body))

            def _send(self, status: int, headers: dict[str, str], body: bytes):
                if status == 0:  # hang up
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # a client may have had enough
                    self.wfile.write(body)

            def log_message(self, *words):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    """Waits."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)
