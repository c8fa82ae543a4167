"""Each check against the thing itself: servers, limits, disks, weights."""

from __future__ import annotations

import gzip
import http.server
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from laion_assets.preflight.checks import Checks, Finding
from laion_assets.settings import Settings
from tests.conftest import FolderServer, Loopback
from tests.lake.stores import between, store

CRAWL = "CC-MAIN-2000-10"
TINY = {"model": "laion-assets-tiny", "pretrained": "laion-assets-tiny"}
OTHER = f"laion-assets-tiny/laion-assets-tiny@{'0' * 16}"
ELSEWHERE = {"collinfo_url": "http://crawl.test/collinfo.json", "data_url": "s3://commoncrawl/"}


@pytest.fixture
def crawl(tmp_path: Path) -> Path:
    """A crawl of two segments with a WAT file each, as a folder."""
    root = tmp_path / "served"
    folder = root / "crawl-data" / CRAWL
    folder.mkdir(parents=True)
    paths = [f"crawl-data/{CRAWL}/segments/{n}.1/wat/0.warc.wat.gz" for n in (1, 2)]
    (folder / "wat.paths.gz").write_bytes(gzip.compress("\n".join(paths).encode()))
    (root / "collinfo.json").write_text(json.dumps([{"id": CRAWL, "name": CRAWL}]))
    return root


@pytest.fixture
def sections(tmp_path: Path, crawl: Path) -> dict[str, dict[str, Any]]:
    """The settings of a deployment that nothing is wrong with."""
    return {
        "lake": {"root": str(tmp_path / "lake")},
        "crawl_source": {"collinfo_url": f"{crawl}/collinfo.json", "data_url": str(crawl)},
        "clip": TINY,
        "safety": {"prompts": "sample"},
    }


def nowhere(_: str) -> Sequence[str]:
    raise OSError("no such name")


def settings(sections: dict[str, dict[str, Any]], **changed: Any) -> Settings:
    return Settings.model_validate(
        sections
        | {
            name: sections.get(name, {}) | new if isinstance(new, dict) else new
            for name, new in changed.items()
        }
    )


def found(of: Settings, name: str, resolve: Callable[[str], Sequence[str]] = nowhere) -> Finding:
    """What one check finds; those after it do not run."""
    return next(each for each in Checks(of, resolve).run() if each.check == name)


def test_nothing_is_wrong_with_a_deployment_that_works(
    sections: dict[str, dict[str, Any]],
    crawl: Path,
    serve_folder: Callable[[Path], FolderServer],
) -> None:
    url = serve_folder(crawl).url
    source = {"collinfo_url": f"{url}/collinfo.json", "data_url": url}
    findings = {each.check: each for each in Checks(settings(sections, crawl_source=source)).run()}
    assert {each.check for each in findings.values() if each.verdict != "ok"} <= {"IPv6"}
    assert "with 2 segments" in findings["crawl source"].found
    assert findings["model"].found.startswith("laion-assets-tiny/laion-assets-tiny is loaded on ")


def test_strangers_must_be_able_to_reach_you(sections: dict[str, dict[str, Any]]) -> None:
    assert found(settings(sections), "contact").verdict == "ok"
    real = found(settings(sections, crawl_source=ELSEWHERE), "contact")
    assert real.verdict == "fails"
    assert "[download] contact" in real.fix
    named = settings(sections, crawl_source=ELSEWHERE, download={"contact": "me@example.org"})
    assert found(named, "contact").verdict == "ok"


def test_a_name_server_must_know_names_and_admit_what_it_does_not_know(
    sections: dict[str, dict[str, Any]],
) -> None:
    of = settings(sections, crawl_source=ELSEWHERE)
    lost = found(of, "resolver")
    assert (lost.verdict, lost.found) == ("fails", "no address is found for crawl.test")
    lying = found(of, "resolver", lambda _: ["192.0.2.1"])
    assert lying.verdict == "fails"
    assert "at 192.0.2.1: dead hosts would look alive" in lying.found

    def honest(host: str) -> Sequence[str]:
        return ["192.0.2.1"] if host == "crawl.test" else nowhere(host)

    assert found(of, "resolver", honest).verdict == "ok"


@pytest.mark.parametrize(
    ("changed", "name", "message"),
    [
        ({"clip": {"model": "RN50", "pretrained": "openai"}}, "settings", "no .*threshold"),
        ({"safety": {"prompts": "absent"}}, "settings", "absent"),
        ({"crawl_source": {"collinfo_url": "/absent.json"}}, "crawl source", "/absent.json"),
        ({"crawl_source": {"segments_per_crawl": 1}}, "crawl source", "has 2 segments"),
        (
            {"lists": [{"name": "mine", "files": ["/absent.csv"]}]},
            *("lists", "LIST-mine: /absent.csv does not exist"),
        ),
        ({"lists": [{"name": "mine", "files": ["/absent.csv"]}]}, "contact", "cannot reach you"),
        ({"download": {"ca_file": "/absent.pem"}}, "open files", "cannot start: .*No such file"),
        ({"lake": {"root": "/proc/lake"}}, "lake", "/proc/lake"),
        ({"download": {"image_size": 1_000_000}}, "disk", "GB free"),
        ({"clip": {"device": "cuda:99"}}, "GPU", "cuda:99"),
        ({"clip": {"weights": "/absent.safetensors"}}, "model", "/absent.safetensors"),
        (
            {"subset": {"name": "own", "thresholds": {OTHER: 0.3}}},
            "model",
            "only for version 0{16}",
        ),
    ],
)
def test_what_would_fail_is_said(
    sections: dict[str, dict[str, Any]], changed: dict[str, Any], name: str, message: str
) -> None:
    finding = found(settings(sections, **changed), name)
    assert finding.verdict == "fails"
    assert re.search(message, finding.found), finding.found


class _OldClock(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response_only(200)
        self.send_header("Date", "Sat, 01 Jan 2000 00:00:00 GMT")
        self.end_headers()


@pytest.fixture
def old_clock() -> Iterator[str]:
    server = Loopback(_OldClock)
    yield server.url
    server.close()


def test_a_wrong_clock_is_noticed(sections: dict[str, dict[str, Any]], old_clock: str) -> None:
    finding = found(settings(sections, crawl_source={"collinfo_url": old_clock}), "clock")
    assert finding.verdict == "fails"
    assert "s fast: certificates" in finding.found


def test_too_few_open_files_are_noticed(sections: dict[str, dict[str, Any]]) -> None:
    code = f"""
import resource
from laion_assets.preflight.checks import Checks
from laion_assets.settings import Settings

resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))
settings = Settings.model_validate({sections!r})
finding = next(each for each in Checks(settings).run() if each.check == "open files")
print(finding.verdict, finding.found)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("fails ")
    assert "ulimit -n" in done.stdout


def test_a_store_that_ignores_conditions_is_noticed(
    sections: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anybody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
    with store(failing=0) as endpoint, between(endpoint) as proxy:
        proxy.kept_back.add("if-none-match")
        lake = {
            "root": "s3://lake/careless",
            "cache": str(tmp_path / "cache"),
            "storage_options": {"endpoint": proxy.url, "region": "us-east-1"},
        }
        finding = found(settings(sections, lake=lake), "lake")
        assert finding.verdict == "fails"
        assert "ignores If-None-Match" in finding.found
        proxy.kept_back.clear()
        assert found(settings(sections, lake=lake), "lake").verdict == "ok"
