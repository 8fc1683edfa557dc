"""TCP ports on this machine: checking that one is free, and finding a free one for port 0."""

import errno
import random
import socket

from pipeline.core.errors import ConfigurationError, TallyportError

# Below the range from which systems take the local port of outgoing connections, so that a port
# found here is not taken by one of those before it is bound.
_FIRST, _LAST = 20_000, 32_000
_ATTEMPTS = 200
_generator = random.SystemRandom()
_given: set[int] = set()


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen on ``host:port`` now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
        return True


def free_port(host: str = "127.0.0.1") -> int:
    """A port nobody listens on, and that was not given before: whoever asked may bind it late."""
    for _ in range(_ATTEMPTS):
        port = _generator.randint(_FIRST, _LAST)
        if port not in _given and port_is_free(host, port):
            _given.add(port)
            return port
    raise TallyportError(f"found no free port on {host} between {_FIRST} and {_LAST}")


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
