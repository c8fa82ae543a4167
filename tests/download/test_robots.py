"""robots.txt is fetched once for each origin, and obeyed."""

from __future__ import annotations

import asyncio
import time

from laion_assets.download.fetch import Fetcher
from laion_assets.download.options import DownloadOptions
from tests.download.conftest import INSIDE, PUBLIC, Listener, answer, reasons, redirect

ASK = DownloadOptions(respect_robots_txt=True, per_host_rate=0, busy_retries=0)
RULES = b"""
User-agent: *
Disallow: /

User-agent: laion-assets
Disallow: /private/
Allow: /private/shown.jpg
Disallow: /*.webp$
"""


def outcomes(web: Listener, paths: list[str], host: str = "a.test") -> list[str]:
    urls = [f"http://{host}:{web.port}{path}" for path in paths]
    for path in paths:
        web.routes.setdefault(path, answer(b"here"))
    return list(reasons(urls, ASK).values())


def test_rules_for_our_name_are_obeyed_and_fetched_once(web: Listener) -> None:
    web.routes["/robots.txt"] = answer(RULES)
    paths = ["/a.jpg", "/private/b.jpg", "/private/shown.jpg", "/c.webp", "/c.webp?x=1"]
    assert outcomes(web, paths) == ["here", "robots", "here", "robots", "here"]
    asked = [path for _, path in web.requests]
    assert asked.count("/robots.txt") == 1
    assert "/private/b.jpg" not in asked
    assert "/c.webp" not in asked


def test_it_is_not_fetched_unless_configured(web: Listener) -> None:
    web.routes |= {"/robots.txt": answer(RULES), "/private/b.jpg": answer(b"here")}
    url = f"http://a.test:{web.port}/private/b.jpg"
    assert reasons([url]) == {url: "here"}
    assert [path for _, path in web.requests] == ["/private/b.jpg"]


def test_a_missing_file_allows_all_and_an_error_forbids_all(web: Listener) -> None:
    assert outcomes(web, ["/a.jpg"], "none.test") == ["here"]
    for status, reason in (("500 X", "http_5xx"), ("503 X", "busy"), ("429 X", "busy")):
        web.routes["/robots.txt"] = answer(b"", status)
        assert outcomes(web, ["/a.jpg", "/b.jpg"], f"error{status[:3]}.test") == [reason] * 2
    web.routes["/robots.txt"] = redirect("/robots.txt")
    assert outcomes(web, ["/a.jpg"], "loop.test") == ["here"]
    web.routes["/robots.txt"] = answer(b"\xff\xfe\x00" * 1000)
    assert outcomes(web, ["/a.jpg"], "noise.test") == ["here"]


def test_text_beyond_the_limit_is_ignored(web: Listener) -> None:
    filling = b"# nothing\n" * 60_000
    web.routes["/robots.txt"] = answer(b"User-agent: *\nDisallow: /no/\n" + filling)
    assert outcomes(web, ["/yes.jpg", "/no/a.jpg"], "long.test") == ["here", "robots"]
    web.routes["/robots.txt"] = answer(filling + b"User-agent: *\nDisallow: /\n")
    assert outcomes(web, ["/yes.jpg"], "behind.test") == ["here"]


def test_a_redirect_obeys_the_rules_of_its_own_host(web: Listener) -> None:
    web.routes["/robots.txt"] = answer(b"User-agent: *\nDisallow: /no/\n")
    web.routes["/to"] = redirect(f"http://other.test:{web.port}/no/a.jpg")
    assert outcomes(web, ["/to"]) == ["robots"]
    assert "/no/a.jpg" not in [path for _, path in web.requests]


def test_it_is_fetched_by_the_same_guard(web: Listener, inside: Listener) -> None:
    web.routes["/robots.txt"] = redirect(f"http://{INSIDE}:{inside.port}/robots.txt")
    assert outcomes(web, ["/a.jpg", "/b.jpg"]) == ["private_address"] * 2


def test_the_crawl_delay_is_obeyed(web: Listener) -> None:
    web.routes["/robots.txt"] = answer(b"User-agent: *\nCrawl-delay: 0.3\n")
    begin = time.monotonic()
    assert outcomes(web, ["/a", "/b", "/c"]) == ["here"] * 3
    assert time.monotonic() - begin > 0.55


def test_cancelling_one_image_does_not_take_the_rules_from_the_others(web: Listener) -> None:
    web.routes |= {"/robots.txt": answer(RULES), "/a.jpg": answer(b"here")}

    async def run() -> bytes:
        fetcher = Fetcher(ASK, resolve=lambda _: [PUBLIC], allowed=lambda to: to == PUBLIC)
        async with fetcher:
            url = f"http://a.test:{web.port}/a.jpg"
            first = asyncio.create_task(fetcher.fetch(url))
            second = asyncio.create_task(fetcher.fetch(url))
            await asyncio.sleep(0)
            first.cancel()
            return (await second).body

    assert asyncio.run(run()) == b"here"


def test_no_slot_is_lost(web: Listener) -> None:
    """One slot is enough for a robots.txt and its image, again and again."""
    web.routes["/robots.txt"] = answer(RULES)
    options = ASK.model_copy(update={"concurrency": 1, "per_host_concurrency": 1})
    urls = [f"http://h{i}.test:{web.port}/{i}.jpg" for i in range(6)]
    web.routes |= {f"/{i}.jpg": answer(b"here") for i in range(6)}
    assert reasons(urls, options) == dict.fromkeys(urls, "here")
