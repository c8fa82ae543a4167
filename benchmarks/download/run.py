"""``python -m benchmarks.download.run``: images per second, img2dataset's, Daft's and ours."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import measure, table
from benchmarks.download.host import REPORT_HOST, Report
from benchmarks.download.names import can_have_names, with_names
from benchmarks.download.pictures import make_large_pictures, make_pictures
from benchmarks.download.web import ADDRESSES, WEB_ADDRESS, write_pairs
from benchmarks.peer import WORK, peer_python
from laion_assets.download.options import DownloadOptions

_HERE: Final = Path(__file__).parent
_FOLDER: Final = WORK / "download"
# Change the number when pictures are made differently.
_PICTURES: Final[dict[str, Callable[[Path], None]]] = {
    "pictures-1": make_pictures,
    "large-1": make_large_pictures,
}
SHARD: Final = 1000
_AT_ONCE: Final = 128
TIMEOUT_S: Final = 10
_WARM_UP_URLS: Final = 100
_CONTESTANTS: Final = {
    "theirs": "img2dataset 1.47.0",
    "daft": "Daft 0.7.26",
    "ours": "ours",
    "scaled": "ours, `scaled_decoding`",
}


@dataclass(frozen=True)
class _List:
    """A list of URLs. ``share``: its URLs for each one of the clean list; ``once``: contestants
    that have one round alone, as it takes them minutes."""

    title: str
    pictures: str = "pictures-1"
    bad: bool = False
    share: float = 1.0
    only: tuple[str, ...] = ("theirs", "daft", "ours")
    once: tuple[str, ...] = ()


_LISTS: Final = {
    "clean": _List("clean"),
    "mixed": _List("a fifth dead or slow", bad=True, once=("daft",)),
    "large": _List("large photos", "large-1", share=0.05, only=tuple(_CONTESTANTS)),
}


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

    @property
    def rate(self) -> float:
        return self.images / self.seconds

    @property
    def working_rate(self) -> float:
        return self.images / self.working_seconds

    @property
    def cpu_per_1000(self) -> float:
        return self.cpu_seconds / self.images * 1000


_Runs = dict[tuple[str, str], list[_Run]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--urls", type=int, default=4000, help="URLs of the clean list")
    parser.add_argument("--repeat", type=int, default=3, help="rounds")
    parser.add_argument("--only", choices=_LISTS, help="run one list, and write nothing")
    parser.add_argument(
        "--processes",
        type=_numbers,
        metavar="N,N",
        help="run ours alone, with each of these fetch_processes, on the clean list or the one of "
        "--only; write nothing",
    )
    args = parser.parse_args()
    if args.processes:
        print(_of_processes(args.processes, args.only or "clean", args.urls, args.repeat))
        return

    contestants = [who for who in _CONTESTANTS if who != "daft" or can_have_names()]
    lists = [args.only] if args.only else list(_LISTS)
    runs: _Runs = {(of, who): [] for of in lists for who in contestants if who in _LISTS[of].only}
    expected = {of: _measure_list(of, args.urls, args.repeat, runs) for of in lists}
    text = table.markdown(_COLUMNS, [_row(of, who, runs) for of, who in runs])
    text += "\n\n" + _remarks(args.urls, args.repeat, expected, runs)
    if args.only:
        print(text)
    else:
        table.publish("download", text)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _of_processes(numbers: list[int], of: str, urls: int, repeat: int) -> str:
    """A table of ours with these numbers of fetching processes, on the list ``of``."""
    runs: _Runs = {(of, f"ours-{number}"): [] for number in numbers}
    _measure_list(of, urls, repeat, runs)
    rows = [
        [
            str(number),
            f"{statistics.median_low(run.images for run in mine):,}",
            f"{statistics.median(run.rate for run in mine):.0f}",
            f"{statistics.median(run.working_rate for run in mine):.0f}",
            f"{max(run.working_rate for run in mine):.0f}",
            f"{statistics.median(run.cpu_per_1000 for run in mine):.1f}",
            f"{min(run.cpu_per_1000 for run in mine):.1f}",
            f"{max(run.peak_bytes for run in mine) / 1e6:.0f}",
            f"{max(run.report.most_at_once for run in mine)}",
        ]
        for number, mine in zip(numbers, runs.values(), strict=True)
    ]
    return table.markdown(_COLUMNS_OF_PROCESSES, rows)


def _measure_list(of: str, urls: int, repeat: int, runs: _Runs) -> int:
    """Run every contestant of a list ``repeat`` times; return its URLs on good hosts.

    In rounds, so that a busy moment of the machine does not hit one contestant alone. Before them
    each has run once on few URLs, so that its files are in the system's cache.
    """
    about, whole = _LISTS[of], of != "mixed"
    contestants = [who for list_, who in runs if list_ == of]
    with _host(about.pictures) as port:
        few, pairs = _FOLDER / "few.parquet", _FOLDER / f"{of}.parquet"
        write_pairs(few, round(_WARM_UP_URLS * about.share), port=port, bad=False, seed=1)
        n = round(urls * about.share)
        expected = write_pairs(pairs, n, port=port, bad=about.bad, seed=0)
        for who in contestants:
            _run(who, few, port)
        for turn in range(repeat):
            for who in contestants[:: 1 if turn % 2 == 0 else -1]:
                if turn and who in about.once:
                    continue
                run = _run(who, pairs, port)
                print(f"{of:6} {who:7} {run}", file=sys.stderr, flush=True)
                if whole and run.images != n:
                    raise SystemExit(f"{who} got {run.images} of {n} on the list {of}")
                runs[of, who].append(run)
    return expected


_COLUMNS_OF_PROCESSES: Final = (
    "fetch_processes",
    "images",
    "images/s",
    "started: images/s",
    "best",
    "CPU s a 1,000",
    "lowest",
    "peak MB",
    "most at once per host",
)

_COLUMNS: Final = (
    "",
    "images",
    "images/s",
    "best",
    "times img2dataset",
    "started: images/s",
    "best",
    "times img2dataset",
    "CPU s a 1,000",
    "lowest",
    "times img2dataset",
    "peak MB",
    "most at once per host",
    "most a second per host",
)


def _row(of: str, who: str, runs: _Runs) -> list[str]:
    mine, theirs = runs[of, who], runs[of, "theirs"]
    best, working = max(run.rate for run in mine), max(run.working_rate for run in mine)
    cpu = min(run.cpu_per_1000 for run in mine)
    return [
        f"{_LISTS[of].title}: {_CONTESTANTS[who]}",
        f"{statistics.median_low(run.images for run in mine):,}",
        f"{statistics.median(run.rate for run in mine):.0f}",
        f"{best:.0f}",
        f"{best / max(run.rate for run in theirs):.2f}",
        f"{statistics.median(run.working_rate for run in mine):.0f}",
        f"{working:.0f}",
        f"{working / max(run.working_rate for run in theirs):.2f}",
        f"{statistics.median(run.cpu_per_1000 for run in mine):.1f}",
        f"{cpu:.1f}",
        f"{cpu / min(run.cpu_per_1000 for run in theirs):.2f}",
        f"{max(run.peak_bytes for run in mine) / 1e6:.0f}",
        f"{max(run.report.most_at_once for run in mine)}",
        f"{max(run.report.most_in_a_second for run in mine)}",
    ]


def _remarks(urls: int, repeat: int, expected: dict[str, int], runs: _Runs) -> str:
    of_host = statistics.median(
        run.report.cpu_seconds / run.images * 1000 for mine in runs.values() for run in mine
    )
    text = (
        f"{urls:,} URLs, of large photos {round(urls * _LISTS['large'].share):,}; shards of "
        f"{SHARD:,}, {_AT_ONCE} requests at once, {TIMEOUT_S} s, no retries. {repeat} rounds: "
        "the median, and the best, of which the ratios are (memory and the last two columns: the "
        "largest)"
    )
    text += "; Daft has one on the mixed list. " if ("mixed", "daft") in runs else ". "
    if "mixed" in expected:
        text += f"Of the mixed list {expected['mixed']:,} URLs are on good hosts. "
    if not any(who == "daft" for _, who in runs):
        text += "Daft was left out: this system allows no file of names of its own (`unshare`). "
    return text + (
        f"The image host itself took {of_host:.1f} CPU s for 1,000 images of the same cores."
    )


@contextmanager
def _host(name: str) -> Iterator[int]:
    """Run the image host with these pictures, made on first use, and yield its port."""
    pictures = _FOLDER / name
    if not pictures.exists():
        making = pictures.with_name(f"{name}.making")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        print(f"making {pictures}", file=sys.stderr, flush=True)
        _PICTURES[name](making)
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


def _run(who: str, pairs: Path, port: int) -> _Run:
    out = _FOLDER / "out" / who
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    _take_report(port)
    if who == "theirs":
        peer = peer_python("img2dataset", _HERE / "img2dataset.txt")
        measured = measure.run(their_command(peer, pairs, out, _AT_ONCE), env=_their_environment())
    elif who == "daft":
        python = peer_python("daft", _HERE / "daft.txt")
        command = [python, _HERE / "daft_download.py", pairs, out, _AT_ONCE, TIMEOUT_S]
        measured = measure.run(with_names(command, pairs, _FOLDER))
    else:
        config = _FOLDER / "ours.toml"
        processes = int(who.removeprefix("ours-")) if who.startswith("ours-") else 1
        settings = _our_settings(port, scaled=who == "scaled", processes=processes)
        config.write_text(settings, encoding="utf-8")
        measured = measure.run(
            [
                Path(sys.executable).with_name("laion-assets"),
                *("download", pairs, "--config", config, "-o", out),
            ]
        )
    if who == "daft":
        said = json.loads(measured.stdout.splitlines()[-1])
        images, begun, ended = said["images"], said["start_time"], said["end_time"]
    else:
        stats = [json.loads(path.read_text("utf-8")) for path in sorted(out.glob("*_stats.json"))]
        begun, ended = min(s["start_time"] for s in stats), max(s["end_time"] for s in stats)
        images = sum(s["successes"] for s in stats)
    return _Run(
        images=images,
        seconds=measured.seconds,
        working_seconds=ended - begun,
        cpu_seconds=measured.cpu_seconds,
        peak_bytes=measured.peak_own_bytes,
        report=_take_report(port),
    )


def their_command(peer: Path, pairs: Path, out: Path, at_once: int) -> list[str | Path]:
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
        f"--number_sample_per_shard={SHARD}",
        f"--processes_count={processes}",
        f"--thread_count={at_once // processes}",
        f"--timeout={TIMEOUT_S}",
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


def _our_settings(port: int, *, scaled: bool, processes: int) -> str:
    """Settings with the peer's numbers; everything else has its default, also the guards.

    Several fetching processes need a decoder each.
    """
    lines = [
        "[download]",
        f"concurrency = {_AT_ONCE}",
        f"total_timeout_s = {TIMEOUT_S}",
        "retries = 0",
        f"samples_per_shard = {SHARD}",
        f"scaled_decoding = {str(scaled).lower()}",
        f"fetch_processes = {processes}",
        f"resize_processes = {max(processes, DownloadOptions().resize_processes)}",
        "[download.connect_to]",
    ]
    lines += [
        f'"{pattern}" = "{address}:{port}"' for pattern, address in ADDRESSES.items() if address
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
