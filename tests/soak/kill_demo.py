"""Kill the demo at random moments, run it again, and compare its result with an undisturbed run's.

It works in a temporary copy of the checkout, on its own ports. For each kill the demo starts from
nothing, gets SIGKILL (``laion-assets demo`` alone, as from the kernel's out-of-memory killer), and
is then run again to its end. Exits with 1, and keeps the copy, if any file of the subset differs.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from laion_assets.files import sha256_file
from laion_assets.settings import CONFIG_VARIABLE, sample_config
from tests.soak.checkout import copy_checkout

COMMAND: Final = Path(sys.executable).with_name("laion-assets")
EARLIEST_S: Final = 5.0
LATEST_S: Final = 150.0

Digests = dict[str, str]


class SoakError(RuntimeError):
    """A demo failed or did not end; the message has its last lines."""


@dataclass(frozen=True)
class Demo:
    """The demo of a copied checkout."""

    root: Path
    config: Path
    ui_port: int
    log: Path
    patience_s: float

    def start(self) -> subprocess.Popen[bytes]:
        # The environment's editable install leads to the original checkout: put the copy first.
        env = os.environ | {CONFIG_VARIABLE: str(self.config), "PYTHONPATH": str(self.root)}
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [str(COMMAND), "demo", "--port", str(self.ui_port)],
                cwd=self.root,
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def run(self) -> float:
        """Run one demo to its end; return its seconds. Raises :class:`SoakError`."""
        started = time.monotonic()
        with self.start() as process:
            try:
                code = process.wait(self.patience_s)
            except subprocess.TimeoutExpired as error:
                raise SoakError(
                    f"the demo did not end within {self.patience_s:.0f} s\n{self.tail(20)}"
                ) from error
            finally:
                process.kill()
        if code:
            raise SoakError(f"the demo ended with {code}\n{self.tail(20)}")
        return time.monotonic() - started

    def run_and_kill(self, after_s: float) -> bool:
        """Send SIGKILL to a demo after ``after_s``; return False if it had ended by itself."""
        with self.start() as process:
            try:
                process.wait(after_s)
            except subprocess.TimeoutExpired:
                return True
            finally:
                process.kill()
        return False

    def tail(self, lines: int) -> str:
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-lines:])

    def forget(self) -> None:
        for name in (".demo", ".dagster_home"):
            if (self.root / name).exists():
                shutil.rmtree(self.root / name)

    def digests(self) -> Digests:
        """SHA-256 of the subset's parts and vectors, by path. Raises :class:`SoakError`."""
        subset = self.root / ".demo" / "lake" / "filtered_subset"
        files = [*subset.rglob("part-*.parquet"), *subset.rglob("*.npy")]
        if not files:
            raise SoakError(f"no subset in {subset}")
        return {str(file.relative_to(subset)): sha256_file(file) for file in sorted(files)}


def difference(expected: Digests, found: Digests) -> list[str]:
    """List the files that differ between both, and how."""
    lines = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    lines += [f"{name} is unexpected" for name in sorted(found.keys() - expected.keys())]
    both = sorted(expected.keys() & found.keys())
    return lines + [f"{name} differs" for name in both if expected[name] != found[name]]


def free_ports(n: int) -> list[int]:
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [int(server.getsockname()[1]) for server in servers]
    for server in servers:
        server.close()
    return ports


def soak(demo: Demo, moments: Sequence[float], seed: int) -> int:
    """Count the kills after which the demo did not end with the undisturbed one's files.

    ``moments`` are the kills' places, from 0 to 1, in the range of times in which kills fall.
    """
    seconds = demo.run()
    expected = demo.digests()
    print(f"undisturbed: {len(expected)} files in {seconds:.0f} s (seed {seed})", flush=True)
    bad = 0
    for number, moment in enumerate(moments, start=1):
        demo.forget()
        after_s = EARLIEST_S + moment * max(min(LATEST_S, seconds) - EARLIEST_S, 0.0)
        killed = demo.run_and_kill(after_s)
        last = demo.tail(1) if killed else "it had ended by itself"
        try:
            again = demo.run()
            lines = difference(expected, demo.digests())
            result = f"the same {len(expected)} files, {again:.0f} s more"
        except SoakError as error:
            lines, result = [str(error)], ""
        bad += bool(lines)
        result = "DIFFERENT: " + "\n  ".join(lines) if lines else result
        print(f"kill {number} at {after_s:.1f} s [{last}]: {result}", flush=True)
    return bad


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="example: .venv/bin/python -m tests.soak.kill_demo --kills 5",
    )
    parser.add_argument("--kills", type=int, default=5, help="number of kills (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments of the kills")
    parser.add_argument(
        "--patience", type=float, default=1800.0, metavar="S", help="time limit of a demo, seconds"
    )
    args = parser.parse_args(argv)
    rng = random.Random(args.seed)
    moments = [rng.random() for _ in range(args.kills)]

    folder = Path(tempfile.mkdtemp(prefix="laion-assets-soak-"))
    crawl_port, ui_port = free_ports(2)
    config = folder / "soak.toml"
    config.write_text(sample_config().read_text("utf-8").replace(":8799", f":{crawl_port}"))
    copy_checkout(folder / "checkout")
    demo = Demo(folder / "checkout", config, ui_port, folder / "demo.log", args.patience)
    try:
        bad = soak(demo, moments, args.seed)
    except SoakError as error:
        print(f"undisturbed: {error}", flush=True)
        bad = 1
    if bad:
        print(f"the last demo is kept in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
