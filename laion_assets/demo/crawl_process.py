"""A process that serves the sample crawl, and ends its process group when its parent is gone.

Dagster's processes join this process's group. However the demo ends, by SIGKILL too, the whole
group is killed at once: no run goes on against a crawl server that is no longer there and takes
its silence for the web's.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from laion_assets.processes import signal_at_parents_end


def _end_group(_number: int, _frame: FrameType | None) -> None:
    os.killpg(0, signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("parent", type=int)
    args = parser.parse_args()
    if os.getpgrp() != os.getpid():
        raise SystemExit("this process must lead a process group of its own")
    signal.signal(signal.SIGTERM, _end_group)
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
        while True:
            signal.pause()


if __name__ == "__main__":
    sys.exit(main())
