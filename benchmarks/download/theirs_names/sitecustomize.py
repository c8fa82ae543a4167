"""Names of the benchmark's web for the peer, which uses the system's resolver in its workers.

It is on ``PYTHONPATH``, so every interpreter started below imports it. ``BENCH_NAMES`` is a JSON
object of patterns and addresses, or null; a name that matches no pattern is left to the system.
"""

import json
import os
import socket
from fnmatch import fnmatchcase

_ADDRESSES = json.loads(os.environ["BENCH_NAMES"])
_system = socket.getaddrinfo


def _getaddrinfo(host, *args, **kwargs):
    named = [pattern for pattern in _ADDRESSES if fnmatchcase(str(host), pattern)]
    if not named:
        return _system(host, *args, **kwargs)
    address = _ADDRESSES[max(named, key=len)]
    if address is None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return _system(address, *args, **kwargs)


socket.getaddrinfo = _getaddrinfo
