"""The process of a reward server: which rewards, where it listens, who may ask."""

import os
import socket
import threading
from collections.abc import Sequence

import uvicorn

from unmask.errors import UserError
from unmask.rewards import by_name
from unmask.rewards.base import Reward
from unmask.rewards.protocol import TOKEN, is_loopback
from unmask.serve.app import RewardApp

_MOST_CONNECTIONS = 256
_GRACE_SECONDS = 10


def serve(names: Sequence[str], host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serves rewards until the process is told to stop.

    Args:
        names: of rewards, or FILE.py:FUNCTION, which is served as FUNCTION.
        host: address to listen at; one that others can reach needs a token.
        port: 0 takes a free one.

    Raises:
        UserError: an unknown reward, two of one name, no token, an address that cannot be had, a reward that cannot
            start.
    """
    rewards = _rewards(names)
    token = _token(host)
    listening = _listen(host, port)
    app = RewardApp(rewards, token)
    server = uvicorn.Server(
        uvicorn.Config(
            app.app,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
    )
    address = f"[{host}]" if ":" in host else host
    where = f"http://{address}:{listening.getsockname()[1]}"
    failures: list[BaseException] = []

    def watch() -> None:
        for worker in app.workers.values():
            error = worker.started.exception()
            if error is not None:
                failures.append(error)
                server.should_exit = True
                return
        print("ready", flush=True)

    print("\n".join(f"{where}/{name}" for name in rewards), flush=True)
    threading.Thread(target=watch, daemon=True).start()
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        print("stopped", flush=True)
    if failures:
        raise failures[0]


def _rewards(names: Sequence[str]) -> dict[str, Reward]:
    rewards: dict[str, Reward] = {}
    for name in names:
        reward = by_name(name)
        if reward.label in rewards:
            raise UserError(f"two rewards are called {reward.label!r}: clients could not tell them apart")
        rewards[reward.label] = reward
    return rewards


def _token(host: str) -> str | None:
    token = os.environ.get(TOKEN) or None
    if token is None and not is_loopback(host):
        raise UserError(f"--host {host} can be reached by others: set {TOKEN} to a secret that clients must know")
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise UserError(f"{TOKEN} must be printable ASCII without blanks")
    return token


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 2**16:
        raise UserError(f"--port must be in [0, {2**16 - 1}], not {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot listen at --host {host} --port {port}: {reason}; choose others") from error
    return listening
