"""Kill downloads at random moments, resume them, and compare the result with an undisturbed run's.

A loopback web serves some pictures late, some broken, some not at all. Each kill is SIGKILL to the
fetching process alone. After it, every shard that counts as done must be whole and no process may
be left; at most the shards in flight may be fetched again. A download that finishes before enough
kills were made is repeated with another image size, in the same folder. Exits with 1, and keeps
the folder, if anything differs.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import pyarrow.parquet as pq

from laion_assets.defs.checks import shards_whole
from laion_assets.files import sha256_file
from tests.download.conftest import (
    PUBLIC,
    Listener,
    answer,
    encoded,
    listening,
    picture,
    write_pairs,
)

COMMAND: Final = Path(sys.executable).with_name("laion-assets")
IMAGES: Final = 600
SHARD: Final = 20
SIDES: Final = (256, 128)
OPEN_SHARDS: Final = 3
"""Number of shards that the downloader works on at a time, and thus that a kill may cost."""
MARK: Final = "LAION_ASSETS_SOAK"
EARLIEST_S: Final = 0.2
LATEST_S: Final = 8.0


def serve(web: Listener) -> None:
    bodies = [encoded(picture(seed)) for seed in range(20)]
    for i in range(IMAGES):
        if i % 11 == 5:
            web.routes[f"/{i}.jpg"] = answer(b"gone", "404 Not Found")
        elif i % 13 == 5:
            web.routes[f"/{i}.jpg"] = answer(bodies[i % 20][:9000])
        else:
            web.routes[f"/{i}.jpg"] = _late(web, bodies[i % 20], i * 7 % 10 / 20)


def _late(web: Listener, body: bytes, seconds: float):  # type: ignore[no-untyped-def]
    def send(connection: object) -> None:
        web.closing.wait(seconds)
        answer(body)(connection)  # type: ignore[arg-type]

    return send


def config(folder: Path, side: int) -> Path:
    return folder / f"{side}.toml"


def digests(out: Path) -> dict[str, str]:
    """Digests of tars and parquets; statistics and the ledger hold times, and differ."""
    files = [*out.glob("[0-9]*.tar"), *out.glob("[0-9]*.parquet")]
    return {file.name: sha256_file(file) for file in sorted(files)}


def start(pairs: Path, settings: Path, out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [COMMAND, "download", pairs, "--config", settings, "-o", out],
        env=os.environ | {MARK: str(out)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def left_processes(out: Path) -> list[str]:
    """List processes left by the download into ``out``, which their environment names."""
    mark = f"{MARK}={out}".encode()
    left = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            if mark in (process / "environ").read_bytes().split(b"\0"):
                left.append(f"{process.name} {(process / 'cmdline').read_text()}")
    return left


def problems(out: Path) -> list[str]:
    """List what is wrong with the shards that count as done."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for stats in out.glob("[0-9]*_stats.json"):
            name = stats.name.removesuffix("_stats.json")
            for path in out.glob(f"{name}*"):
                (Path(folder) / path.name).symlink_to(path)
            ledger = out / "_ledger" / f"{name}.parquet"
            if (
                pq.read_metadata(ledger).num_rows
                != pq.read_metadata(out / f"{name}.parquet").num_rows
            ):
                found.append(f"{ledger} has a different number of rows than its shard")
        checked = shards_whole(Path(folder))
    return found + ([checked.problem] if checked.problem else [])


def soak(folder: Path, kills: int, rng: random.Random) -> list[str]:
    pairs = folder / "pairs.parquet"
    write_pairs(pairs, [f"http://h{i % 40}.test/{i}.jpg" for i in range(IMAGES)])
    with listening(PUBLIC) as web:
        serve(web)
        expected = {}
        for side in SIDES:
            config(folder, side).write_text(
                f"[download]\nsamples_per_shard = {SHARD}\nconcurrency = 16\nimage_size = {side}\n"
                f'[download.connect_to]\n"*.test" = "{PUBLIC}:{web.port}"\n'
            )
            began = time.monotonic()
            with start(pairs, config(folder, side), folder / f"whole-{side}") as process:
                process.communicate()
            expected[side] = digests(folder / f"whole-{side}")
            seconds = time.monotonic() - began
            print(f"undisturbed: {len(expected[side])} files in {seconds:.1f} s", flush=True)
        wrong, killed, out = [], 0, folder / "out"
        # Each turn rebuilds the same folder with the other size: the previous shards are put
        # aside, and what is known of their images is looked up.
        for side in itertools.cycle(SIDES):
            web.requests.clear()
            kills_now = 0
            while True:
                process = start(pairs, config(folder, side), out)
                try:
                    _, errors = process.communicate(timeout=rng.uniform(EARLIEST_S, LATEST_S))
                    if process.returncode:
                        wrong.append(f"ended with {process.returncode}: {errors.decode()[-500:]}")
                    break
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.communicate()
                killed, kills_now = killed + 1, kills_now + 1
                time.sleep(0.2)
                found = problems(out) if out.exists() else []
                found += [f"still alive: {line}" for line in left_processes(out)]
                done = len(list(out.glob("*_stats.json")))
                print(f"kill {killed}: {done} shards done, {found or 'whole'}", flush=True)
                wrong += found
            again = len(web.requests) - IMAGES
            if digests(out) != expected[side]:
                wrong.append(f"{out} differs from the undisturbed download of {side} pixels")
            if again > kills_now * OPEN_SHARDS * SHARD:
                wrong.append(f"{again} images were fetched again after {kills_now} kills")
            print(f"finished after {kills_now} kills; {again} images fetched again", flush=True)
            if wrong or killed >= kills:
                return wrong
    raise AssertionError("turns have no end")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="number of kills (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments of the kills")
    args = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="laion-assets-soak-"))
    wrong = soak(folder, args.kills, random.Random(args.seed))
    if wrong:
        print("\n".join(wrong) + f"\nthe download is kept in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
