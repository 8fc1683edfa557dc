"""TCP ports on this machine: checking that one is free, and finding a free one for port 0."""

import atexit
import errno
import random
import socket
from collections import deque

from pipeline.core.errors import ConfigurationError, TallyportError

# Below the range from which systems take the local port of outgoing connections, so that a port
# found here is not taken by one of those before it is bound.
_FIRST, _LAST = 20_000, 32_000
_ATTEMPTS = 200
_TAKEN = (errno.EADDRINUSE, errno.EACCES)
_generator = random.SystemRandom()
_given: set[int] = set()
# Bound and not listening, so that no other process finds them free before their servers listen.
_KEPT = 64
_kept: deque[socket.socket] = deque()


@atexit.register
def _let_go() -> None:
    while _kept:
        _kept.pop().close()


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen on ``host:port`` now."""
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            if error.errno in _TAKEN:
                return False
            raise
        return True


def free_port(host: str = "127.0.0.1") -> int:
    """A port nobody listens on, and that was not given before: whoever asked may bind it late.

    The last ``_KEPT`` of them are not given to other processes either while this one lives.
    """
    for _ in range(_ATTEMPTS):
        port = _generator.randint(_FIRST, _LAST)
        if port not in _given and _keep(host, port):
            _given.add(port)
            return port
    raise TallyportError(f"found no free port on {host} between {_FIRST} and {_LAST}")


def _keep(host: str, port: int) -> bool:
    """Takes the port for this process, open to a server of its own; False when it is taken."""
    keeper = socket.socket(_family(host), socket.SOCK_STREAM)
    try:
        keeper.bind((host, port))
    except OSError as error:
        keeper.close()
        if error.errno in _TAKEN:
            return False
        raise
    # From now on servers may bind it that allow that as well, as they do to start again at once.
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if port_is_free(host, port):
        _kept.append(keeper)
        if len(_kept) > _KEPT:
            _kept.popleft().close()
        return True
    keeper.close()  # not every system lets a server in beside it
    return port_is_free(host, port)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def usable_port(port: int, variable: str, host: str = "127.0.0.1") -> int:
    """``port``, or a free one when it is 0.

    Raises ``ConfigurationError`` that names the port and the setting ``variable`` when something
    else listens there.
    """
    if port == 0:
        return free_port(host)
    if not port_is_free(host, port):
        raise ConfigurationError(
            f"port {port} on {host} is in use; set {variable} to another port, or to 0 for any "
            "free one"
        )
    return port
