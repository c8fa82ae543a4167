"""``python -m benchmarks.download.run``: images per second, img2dataset's and ours."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import measure, table
from benchmarks.download.host import REPORT_HOST, Report
from benchmarks.download.pictures import make_pictures
from benchmarks.download.web import ADDRESSES, WEB_ADDRESS, write_pairs
from benchmarks.peer import WORK, peer_python

_HERE: Final = Path(__file__).parent
_FOLDER: Final = WORK / "download"
_PICTURES: Final = "pictures-1"  # change the number when pictures are made differently
_SHARD: Final = 1000
_AT_ONCE: Final = 128
_TIMEOUT_S: Final = 10
_CONTESTANTS: Final = {"theirs": "img2dataset 1.47.0", "ours": "ours"}
_LISTS: Final = {"clean": "clean", "mixed": "a fifth dead or slow"}


@dataclass(frozen=True)
class _Run:
    images: int
    seconds: float
    """Wall-clock time, including start-up."""
    working_seconds: float
    """Time from the start of the first shard to the end of the last."""
    cpu_seconds: float
    peak_bytes: int
    report: Report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--urls", type=int, default=4000, help="URLs per list")
    parser.add_argument("--repeat", type=int, default=3, help="rounds; the median counts")
    parser.add_argument("--only", choices=_LISTS, help="run one list, and write nothing")
    args = parser.parse_args()

    peer = peer_python("img2dataset", _HERE / "img2dataset.txt")
    lists = [args.only] if args.only else list(_LISTS)
    runs: dict[tuple[str, str], list[_Run]] = {
        (of, who): [] for of in lists for who in _CONTESTANTS
    }
    expected: dict[str, int] = {}
    with _host() as port:
        for of in lists:
            pairs = _FOLDER / f"{of}.parquet"
            expected[of] = write_pairs(pairs, args.urls, port=port, bad=of == "mixed", seed=0)
        # In rounds, so that a busy moment of the machine does not hit one contestant alone.
        for turn in range(args.repeat):
            for of in lists:
                for who in list(_CONTESTANTS)[:: 1 if turn % 2 == 0 else -1]:
                    run = _run(who, peer, _FOLDER / f"{of}.parquet", port)
                    print(f"{of:6} {who:7} {run}", file=sys.stderr, flush=True)
                    if of == "clean" and run.images != args.urls:
                        raise SystemExit(f"{who} got {run.images} of {args.urls} on the clean list")
                    runs[of, who].append(run)

    text = table.markdown(_COLUMNS, [_row(of, who, runs) for of, who in runs])
    text += "\n\n" + _remarks(args.urls, args.repeat, expected, runs)
    if args.only:
        print(text)
    else:
        table.publish("download", text)


_COLUMNS: Final = (
    "",
    "images",
    "s",
    "images/s",
    "times img2dataset",
    "started: images/s",
    "times img2dataset",
    "CPU s a 1,000",
    "peak MB",
    "most at once per host",
    "most a second per host",
)


def _row(of: str, who: str, runs: dict[tuple[str, str], list[_Run]]) -> list[str]:
    mine = runs[of, who]
    whole, working = _rate(mine), _working_rate(mine)
    cpu = statistics.median(run.cpu_seconds / run.images * 1000 for run in mine)
    return [
        f"{_LISTS[of]}: {_CONTESTANTS[who]}",
        f"{statistics.median_low(run.images for run in mine):,}",
        f"{statistics.median(run.seconds for run in mine):.1f}",
        f"{whole:.0f}",
        f"{whole / _rate(runs[of, 'theirs']):.2f}",
        f"{working:.0f}",
        f"{working / _working_rate(runs[of, 'theirs']):.2f}",
        f"{cpu:.1f}",
        f"{max(run.peak_bytes for run in mine) / 1e6:.0f}",
        f"{max(run.report.most_at_once for run in mine)}",
        f"{max(run.report.most_in_a_second for run in mine)}",
    ]


def _rate(runs: list[_Run]) -> float:
    return statistics.median(run.images / run.seconds for run in runs)


def _working_rate(runs: list[_Run]) -> float:
    return statistics.median(run.images / run.working_seconds for run in runs)


def _remarks(
    urls: int, repeat: int, expected: dict[str, int], runs: dict[tuple[str, str], list[_Run]]
) -> str:
    of_host = statistics.median(
        run.report.cpu_seconds / run.images * 1000 for mine in runs.values() for run in mine
    )
    text = (
        f"{urls:,} URLs each, shards of {_SHARD:,}, {_AT_ONCE} requests at once, {_TIMEOUT_S} s, "
        f"no retries, median of {repeat} (memory and the last two columns: the largest). "
    )
    if "mixed" in expected:
        text += f"Of the mixed list {expected['mixed']:,} URLs are on good hosts. "
    return text + (
        f"The image host itself took {of_host:.1f} CPU s for 1,000 images of the same cores."
    )


@contextmanager
def _host() -> Iterator[int]:
    """Run the image host and yield its port; make its pictures on first use."""
    pictures = _FOLDER / _PICTURES
    if not pictures.exists():
        making = pictures.with_name(f"{_PICTURES}.making")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        print(f"making {pictures}", file=sys.stderr, flush=True)
        make_pictures(making)
        making.rename(pictures)
    command = [sys.executable, "-m", "benchmarks.download.host", str(pictures)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("the image host did not start")
        yield int(json.loads(line)["port"])
        # Leaving the block closes the host's standard input, which ends it.


def _take_report(port: int) -> Report:
    connection = http.client.HTTPConnection(WEB_ADDRESS, port, timeout=10)
    connection.request("GET", "/", headers={"Host": REPORT_HOST})
    report = Report(**json.loads(connection.getresponse().read()))
    connection.close()
    return report


def _run(who: str, peer: Path, pairs: Path, port: int) -> _Run:
    out = _FOLDER / "out" / who
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    _take_report(port)
    if who == "theirs":
        measured = measure.run(_their_command(peer, pairs, out), env=_their_environment())
    else:
        config = _FOLDER / "ours.toml"
        config.write_text(_our_settings(port), encoding="utf-8")
        measured = measure.run(
            [
                Path(sys.executable).with_name("laion-assets"),
                *("download", pairs, "--config", config, "-o", out),
            ]
        )
    stats = [json.loads(path.read_text("utf-8")) for path in sorted(out.glob("*_stats.json"))]
    begun, ended = min(s["start_time"] for s in stats), max(s["end_time"] for s in stats)
    return _Run(
        images=sum(s["successes"] for s in stats),
        seconds=measured.seconds,
        working_seconds=ended - begun,
        cpu_seconds=measured.cpu_seconds,
        peak_bytes=measured.peak_own_bytes,
        report=_take_report(port),
    )


def _their_command(peer: Path, pairs: Path, out: Path) -> list[str | Path]:
    """img2dataset's command as its documentation has it: a process per core, which share requests.

    Image size, mode, quality and hash are its defaults, which are ours, too.
    """
    processes = len(os.sched_getaffinity(0))
    return [
        peer.with_name("img2dataset"),
        f"--url_list={pairs}",
        f"--output_folder={out}",
        "--input_format=parquet",
        "--url_col=url",
        "--caption_col=text",
        "--output_format=webdataset",
        f"--number_sample_per_shard={_SHARD}",
        f"--processes_count={processes}",
        f"--thread_count={_AT_ONCE // processes}",
        f"--timeout={_TIMEOUT_S}",
        "--retries=0",
        "--image_size=256",
        "--resize_mode=border",
        "--encode_format=jpg",
        "--encode_quality=95",
        "--compute_hash=sha256",
        "--enable_wandb=False",
    ]


def _their_environment() -> dict[str, str]:
    return {
        "PYTHONPATH": str(_HERE / "theirs_names"),
        "BENCH_NAMES": json.dumps(ADDRESSES),
        # Neither may use the network while it is measured.
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "WANDB_MODE": "disabled",
    }


def _our_settings(port: int) -> str:
    """Settings with the peer's numbers; everything else has its default, also the guards."""
    lines = [
        "[download]",
        f"concurrency = {_AT_ONCE}",
        f"total_timeout_s = {_TIMEOUT_S}",
        "retries = 0",
        f"samples_per_shard = {_SHARD}",
        "[download.connect_to]",
    ]
    lines += [
        f'"{pattern}" = "{address}:{port}"' for pattern, address in ADDRESSES.items() if address
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
