"""A process that serves the sample crawl, and kills its process group when its parent ends.

Dagster's processes join this process's group. However the demo ends, even by SIGKILL, the whole
group dies with it: no run continues against a crawl server that has gone, and records its silence
as the web's.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from laion_assets.work import signal_at_parents_end


def main() -> int:
    """Serve until the parent ends; print ``ready`` once the port answers, or why it cannot."""
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path, help="folder of the built crawl")
    parser.add_argument("port", type=int, help="port to serve it on")
    parser.add_argument("parent", type=int, help="process id of the parent")
    args = parser.parse_args()
    if os.getpgrp() != os.getpid():
        raise SystemExit("this process must lead a process group of its own")
    # Blocked and waited for: a handler would run too late for a signal that comes just before a
    # wait, and the group would outlive its parent.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal_at_parents_end(signal.SIGTERM)
    if os.getppid() != args.parent:
        return 0

    from laion_assets.sample_crawl.server import SampleServer

    try:
        server = SampleServer(args.root, port=args.port)
    except OSError as error:
        print(error, flush=True)
        return 1
    with server:
        print("ready", flush=True)
        signal.sigwait({signal.SIGTERM})
        os.killpg(0, signal.SIGKILL)
    return 0


if __name__ == "__main__":
    sys.exit(main())
