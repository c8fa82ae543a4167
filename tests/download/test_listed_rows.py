"""Lists and shards: what a changed list leaves alone, and what is known of a listed image."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from laion_assets.download.listed_rows import resolved_in
from laion_assets.download.options import DownloadOptions
from laion_assets.download.segment import download_segment
from laion_assets.download.summary import Downloaded
from laion_assets.removals.active import Lists
from laion_assets.removals.entries import Entries, parse
from laion_assets.removals.entry import key_of
from tests.download.conftest import (
    PUBLIC,
    answer,
    encoded,
    listening,
    picture,
    redirect,
    write_pairs,
)

pytestmark = pytest.mark.filterwarnings("ignore:value is deprecated:DeprecationWarning")


def test_only_shards_that_the_lists_concern_are_rebuilt(tmp_path: Path) -> None:
    bodies = [encoded(picture(seed, 300, 200)) for seed in range(4)]
    sha256 = [hashlib.sha256(body).hexdigest() for body in bodies]
    pairs, out = tmp_path / "pairs.parquet", tmp_path / "shards"
    urls = [f"http://h{i}.test/{i}.jpg" for i in range(3)] + ["http://h3.test/hop"]
    write_pairs(pairs, urls)
    with listening(PUBLIC) as web:
        for number, body in enumerate(bodies):
            web.routes[f"/{number}.jpg"] = answer(body)
        web.routes["/hop"] = redirect("http://cdn.test/3.jpg")
        options = DownloadOptions.model_validate(
            {"samples_per_shard": 2, "connect_to": {"*.test": f"{PUBLIC}:{web.port}"}}
        )

        def run(blocklists: Entries) -> Downloaded:
            web.requests.clear()
            return download_segment(pairs, out, options, removals=Entries(), blocklists=blocklists)

        def times() -> list[int]:
            return [path.stat().st_mtime_ns for path in sorted(out.glob("*.tar"))]

        listed = parse([f"sha256:{sha256[1]}", "host:cdn.test"], "list")
        assert run(listed).counts.rejects == {"blocked": 2}
        assert run(listed).counts.examples == {}
        stats = [json.loads(path.read_text()) for path in out.glob("*_stats.json")]
        assert [of_shard["failing_hosts"] for of_shard in stats] == [{}, {}]
        made = times()

        # The redirect was never followed, and yet the row shows what it was refused for.
        resolved, removed = resolved_in(out, Lists(blocklists=listed))
        digests = [hashlib.sha256(urls[i].encode()).digest() for i in (1, 3)]
        entries = [key_of("sha256", sha256[1]), key_of("host", "cdn.test")]
        assert resolved == {
            "removals": set(),
            "blocklists": set(zip(entries, digests, strict=True)),
        }
        assert removed == {("blocklists", entry): 1 for entry in entries}

        more = listed.and_also(parse(["host:elsewhere.test", f"sha256:{'0' * 64}"], "list"))
        assert run(more).counts.rejects == {"blocked": 2}
        assert (times(), web.requests) == (made, [])

        fewer = parse(["host:cdn.test", "url:http://h2.test/2.jpg"], "list")
        assert run(fewer).counts.rejects == {"blocked": 2}
        assert [path for _, path in web.requests] == ["/1.jpg"]
        assert run(Entries()).counts.rejects == {}
        assert sorted(path for _, path in web.requests) == ["/2.jpg", "/3.jpg", "/hop"]
