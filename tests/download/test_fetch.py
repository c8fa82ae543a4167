"""Malicious hosts on real sockets; ``inside`` fails a test that connects to it."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import socket
import ssl
import subprocess
import sys
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
import trustme

from laion_assets.download.addresses import MAX_ADDRESSES
from laion_assets.download.errors import FetchRefused
from laion_assets.download.fetch import Fetcher
from laion_assets.download.options import DownloadOptions
from laion_assets.download.requester import Fetched
from tests.download.conftest import (
    INSIDE,
    PUBLIC,
    Listener,
    answer,
    get,
    listening,
    reasons,
    redirect,
)

QUICK = DownloadOptions(total_timeout_s=0.4)
PATIENCE_S = 10  # far longer than any deadline here


def refused(url: str, options: DownloadOptions | None = None, **settings: object) -> str:
    with pytest.raises(FetchRefused) as caught:
        get(url, options, **settings)  # type: ignore[arg-type]
    return caught.value.reason


def test_an_image_is_fetched_under_our_own_name(web: Listener) -> None:
    web.routes["/a.jpg?x=1"] = answer(b"body", Content_Type="image/jpeg", Set_Cookie="a=b")
    options = DownloadOptions(contact="https://contact.example/bot")
    url = f"http://user:secret@img.test:{web.port}/a.jpg?x=1#part"
    fetched = get(url, options, times=2)
    plain = f"http://img.test:{web.port}/a.jpg?x=1"
    assert fetched == Fetched(b"body", 200, plain, "image/jpeg", ())
    for head in web.heads:
        assert head.startswith("GET /a.jpg?x=1 HTTP/1.1\r\n")
        assert f"Host: img.test:{web.port}\r\n" in head
        assert "User-Agent: laion-assets/" in head
        assert "(+https://contact.example/bot)" in head
        assert "Accept-Encoding: identity" in head
        assert not {"cookie:", "authorization:", "referer:"} & set(head.lower().split())


def test_proxies_and_passwords_of_the_environment_are_ignored(
    web: Listener, inside: Listener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{INSIDE}:{inside.port}")
    (tmp_path / "netrc").write_text("machine img.test login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    web.routes["/"] = answer(b"direct")
    assert get(f"http://img.test:{web.port}/").body == b"direct"
    assert "authorization" not in web.heads[0].lower()


HOSTS_INSIDE = [
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0177.0.0.1",
    "017700000001",
    "%31%32%37.0.0.1",
    "１２７.0.0.1",
    "127。0。0。1",
    "0.0.0.0",
    "0",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[0:0:0:0:0:ffff:7f00:1]",
    "[::127.0.0.1]",
    "[fe80::1]",
    "[fd00::1]",
    "[64:ff9b::7f00:1]",
    "169.254.169.254",
    "10.1.2.3",
    "100.64.0.1",
    "user@127.0.0.1",
]


def test_internal_addresses_are_refused(web: Listener, inside: Listener) -> None:
    urls = [f"http://{host}:{inside.port}/secret.jpg" for host in HOSTS_INSIDE]
    assert reasons(urls) == dict.fromkeys(urls, "private_address")
    assert web.connections == 0


def test_redirects_to_internal_addresses_are_refused(web: Listener, inside: Listener) -> None:
    urls = []
    for i, host in enumerate(HOSTS_INSIDE):
        # Percent-encoded, as what is not ASCII must be in a header.
        ascii_host = "".join(c if c.isascii() else quote(c) for c in host)
        web.routes[f"/{i}"] = redirect(f"http://{ascii_host}:{inside.port}/secret.jpg")
        urls.append(f"http://web.test:{web.port}/{i}")
    assert reasons(urls) == dict.fromkeys(urls, "private_address")
    assert len(web.requests) == len(HOSTS_INSIDE)


@pytest.mark.parametrize("answers", [["127.0.0.1"], ["::1"], [PUBLIC, INSIDE], [INSIDE, PUBLIC]])
def test_names_of_internal_addresses_are_refused(
    web: Listener, inside: Listener, answers: list[str]
) -> None:
    web.routes["/"] = answer(b"x")
    assert refused(f"http://a.test:{web.port}/", resolve=lambda _: answers) == "private_address"
    assert web.connections == 0


def test_localhost_is_internal(inside: Listener) -> None:
    async def run() -> None:
        async with Fetcher(DownloadOptions()) as fetcher:  # the real resolver, the real rule
            await fetcher.fetch(f"http://localhost:{inside.port}/")

    with pytest.raises(FetchRefused) as caught:
        asyncio.run(run())
    assert caught.value.reason == "private_address"


def test_a_name_that_changes_after_it_was_checked_leads_nowhere_else(
    web: Listener, inside: Listener
) -> None:
    """DNS rebinding: the first answer is public, every later one is internal."""
    asked: list[str] = []

    def rebinding(host: str) -> list[str]:
        asked.append(host)
        return [PUBLIC] if len(asked) == 1 else [INSIDE]

    web.routes["/"] = answer(b"public")
    url = f"http://rebind.test:{web.port}/"
    assert get(url, resolve=rebinding, times=3).body == b"public"
    assert asked == ["rebind.test"]


def test_a_name_that_becomes_internal_between_redirects_is_refused(
    web: Listener, inside: Listener
) -> None:
    turns = itertools.chain([[PUBLIC]], itertools.repeat([INSIDE]))
    web.routes["/"] = redirect(f"http://second.test:{web.port}/secret")
    url = f"http://first.test:{web.port}/"
    assert refused(url, resolve=lambda _: next(turns)) == "private_address"


def test_an_entry_of_connect_to_is_for_its_hosts_and_no_others(
    web: Listener, inside: Listener
) -> None:
    with listening(INSIDE) as allowed:
        allowed.routes["/a.jpg"] = answer(b"sample")
        options = DownloadOptions(connect_to={"*.sample.test": f"{INSIDE}:{allowed.port}"})
        assert get("http://img.sample.test/a.jpg", options).body == b"sample"
        assert allowed.requests == [("img.sample.test", "/a.jpg")]
        for url in (f"http://{INSIDE}:{allowed.port}/a.jpg", f"http://x.test:{allowed.port}/a.jpg"):
            assert refused(url, options, resolve=lambda _: [INSIDE]) == "private_address"
        assert allowed.connections == 1


def test_only_http_and_https(web: Listener) -> None:
    others = [
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "ftp://ftp.test/a.jpg",
        "data:image/png;base64,AAAA",
        "gopher://a.test/",
        "javascript:alert(1)",
    ]
    web.routes |= {f"/{i}": redirect(to) for i, to in enumerate(others)}
    urls = others + [f"http://a.test:{web.port}/{i}" for i in range(len(others))]
    assert reasons(urls) == dict.fromkeys(urls, "url_scheme")


def test_text_that_is_not_a_url_is_refused() -> None:
    urls = ["", "no url", "//a.test/", "http://", "http://a b/", "http://[::"]
    assert reasons(urls) == dict.fromkeys(urls, "url_scheme")


def test_ports_of_other_services_are_refused() -> None:
    urls = [f"http://a.test:{port}/" for port in (22, 25, 110, 143, 445, 587, 993)]
    assert reasons(urls) == dict.fromkeys(urls, "connect")


@pytest.mark.parametrize("status", ["301 X", "302 X", "303 X", "307 X", "308 X"])
def test_redirects_are_followed(web: Listener, status: str) -> None:
    web.routes["/a/b/c.jpg"] = redirect("../new.jpg", status)
    web.routes["/a/new.jpg"] = answer(b"moved")
    fetched = get(f"http://a.test:{web.port}/a/b/c.jpg")
    assert (fetched.body, fetched.redirects) == (b"moved", (f"http://a.test:{web.port}/a/new.jpg",))
    assert fetched.url == f"http://a.test:{web.port}/a/new.jpg"


def test_redirects_are_limited(web: Listener) -> None:
    web.routes["/loop"] = redirect("/loop")
    assert refused(f"http://a.test:{web.port}/loop") == "redirects"
    assert len(web.requests) == 6
    web.routes |= {f"/{i}": redirect(f"/{i + 1}") for i in range(5)} | {"/5": answer(b"end")}
    assert get(f"http://a.test:{web.port}/0").redirects[-1].endswith("/5")
    assert refused(f"http://a.test:{web.port}/0", DownloadOptions(max_redirects=4)) == "redirects"


@pytest.mark.parametrize("location", ["", "http://[::", "http://a b/"])
def test_a_redirect_to_nowhere(web: Listener, location: str) -> None:
    web.routes["/"] = redirect(location)
    assert refused(f"http://a.test:{web.port}/") == "http_other"


def test_statuses(web: Listener) -> None:
    expected = dict.fromkeys(["403 X", "404 X", "410 X"], "http_4xx")
    expected |= dict.fromkeys(["500 X", "502 X", "504 X"], "http_5xx")
    expected |= dict.fromkeys(["201 X", "204 X", "206 X", "304 X", "666 X"], "http_other")
    urls = {f"http://a.test:{web.port}/{status[:3]}": why for status, why in expected.items()}
    for status in expected:
        web.routes[f"/{status[:3]}"] = answer(b"", status, X_Robots_Tag="noindex")
    assert reasons(list(urls)) == urls
    web.routes["/203"] = answer(b"body", "203 Non-Authoritative Information")
    assert get(f"http://a.test:{web.port}/203").body == b"body"


@pytest.mark.parametrize(
    "raw",
    [
        b"this is not HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 9\r\n\r\nbody",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nbody",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nXYZ\r\nbody\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 300_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 50_000 + b"\r\n",
        b"HTTP/1.1 99999 OK\r\n\r\n",
        b"\x00\xff" * 5000,
    ],
)
def test_answers_that_are_not_http(web: Listener, raw: bytes) -> None:
    web.routes["/"] = lambda connection: connection.sendall(raw)
    assert refused(f"http://a.test:{web.port}/") in ("http_other", "connect")


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
SMALL = DownloadOptions(max_bytes=100_000, total_timeout_s=PATIENCE_S)


def _drip(web: Listener, head: bytes, drop: bytes) -> None:
    def drip(connection: socket.socket) -> None:
        connection.sendall(head)
        web.until_closed(connection, drop, 0.05)

    web.routes["/"] = drip


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"a"),
        (b"HTTP/1.1 200 OK\r\n", b"X: a\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"a"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
)
def test_a_drip_ends_at_the_total_deadline(web: Listener, head: bytes, drop: bytes) -> None:
    """No single read is late, so a time-out on reads would never fire."""
    _drip(web, head, drop)
    assert refused(f"http://a.test:{web.port}/", QUICK) in ("timeout", "http_other")


def test_silence_ends_at_the_total_deadline(web: Listener) -> None:
    web.routes["/"] = lambda _: web.closing.wait(PATIENCE_S) and None
    assert refused(f"http://a.test:{web.port}/", QUICK) == "timeout"


def test_the_deadline_is_over_all_hops(web: Listener) -> None:
    def slow(connection: socket.socket) -> None:
        web.closing.wait(0.3)
        redirect("/")(connection)

    web.routes["/"] = slow
    assert refused(f"http://a.test:{web.port}/", QUICK) == "timeout"
    assert len(web.requests) < 5


def test_a_slow_resolver_ends_at_the_total_deadline(web: Listener) -> None:
    def slow(_: str) -> list[str]:
        web.closing.wait(2)
        return [PUBLIC]

    assert refused(f"http://a.test:{web.port}/", QUICK, resolve=slow) == "dns"


@pytest.mark.parametrize(
    ("head", "block"),
    [
        (CHUNKED, b"1;" + b"e" * 60_000 + b"\r\na\r\n"),
        (CHUNKED + b"1\r\na\r\n0\r\nX: ", b"a" * 60_000),
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: " + b"a" * 60_000 + b"\r\n\r\n"),
    ],
    ids=["chunk extensions", "a trailer", "interim heads"],
)
def test_a_flood_of_framing_counts_as_bytes(web: Listener, head: bytes, block: bytes) -> None:
    def flood(connection: socket.socket) -> None:
        connection.sendall(head)
        web.until_closed(connection, block)

    web.routes["/"] = flood
    # The parser refuses a long trailer itself.
    reason = "connect" if b"\r\nX: " in head else "too_large"
    assert refused(f"http://a.test:{web.port}/", SMALL) == reason


def test_an_endless_body_is_cut(web: Listener) -> None:
    def endless(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        web.until_closed(connection, bytes(65536))

    web.routes["/"] = endless
    options = DownloadOptions(max_bytes=1_000_000)
    assert refused(f"http://a.test:{web.port}/", options) == "too_large"


def test_a_declared_size_is_refused_before_the_body(web: Listener) -> None:
    web.routes["/"] = answer(b"start", length=30_000_000)
    assert refused(f"http://a.test:{web.port}/") == "too_large"


def test_the_limit_itself_is_allowed(web: Listener) -> None:
    web.routes["/"] = answer(b"a" * 1000)
    assert len(get(f"http://a.test:{web.port}/", DownloadOptions(max_bytes=1000)).body) == 1000
    assert refused(f"http://a.test:{web.port}/", DownloadOptions(max_bytes=999)) == "too_large"


def test_a_cut_body_is_a_broken_connection(web: Listener) -> None:
    web.routes["/"] = answer(b"half", length=8)
    assert refused(f"http://a.test:{web.port}/") == "connect"
    web.routes["/"] = lambda _: None
    assert refused(f"http://a.test:{web.port}/") == "connect"


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_unrequested_content_encodings(web: Listener, pack: object) -> None:
    assert callable(pack)
    name = "gzip" if pack is gzip.compress else "deflate"
    web.routes["/"] = answer(pack(b"picture" * 100), Content_Encoding=name)
    assert get(f"http://a.test:{web.port}/").body == b"picture" * 100
    web.routes["/"] = answer(pack(bytes(50_000_000)), Content_Encoding=name)
    assert refused(f"http://a.test:{web.port}/") == "too_large"
    web.routes["/"] = answer(pack(b"picture" * 100)[:-12], Content_Encoding=name)
    assert refused(f"http://a.test:{web.port}/") == "connect"
    # Declared, and not done: the image's own rules judge the bytes.
    web.routes["/"] = answer(b"\xff\xd8\xff not packed", Content_Encoding=name)
    assert get(f"http://a.test:{web.port}/").body == b"\xff\xd8\xff not packed"


def test_other_content_encodings_are_refused(web: Listener) -> None:
    web.routes["/"] = answer(b"x" * 100, Content_Encoding="br")
    assert refused(f"http://a.test:{web.port}/") == "http_other"


def test_an_opt_out_is_honoured_before_the_body(web: Listener) -> None:
    sent = []

    def opting_out(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-Robots-Tag: noai\r\nContent-Length: 9000\r\n\r\n")
        web.closing.wait(0.2)
        sent.append(connection.recv(1))  # empty after the client has hung up

    web.routes["/"] = opting_out
    assert refused(f"http://a.test:{web.port}/") == "opt_out"
    web.routes["/"] = answer(b"open", X_Robots_Tag="otherbot: noai")
    assert get(f"http://a.test:{web.port}/").body == b"open"
    web.routes["/"] = answer(b"taken", X_Robots_Tag="noai")
    indifferent = DownloadOptions(respect_opt_out=False)
    assert get(f"http://a.test:{web.port}/", indifferent).body == b"taken"


def test_nobody_listens() -> None:
    with socket.create_server((PUBLIC, 0)) as taken:
        port = taken.getsockname()[1]
    assert refused(f"http://a.test:{port}/") == "connect"


def test_a_retry_follows_a_transient_failure(web: Listener) -> None:
    def at_the_third(connection: socket.socket) -> None:
        status = "200 OK" if len(web.requests) == 3 else "500 X"
        answer(b"back", status)(connection)

    web.routes["/"] = at_the_third
    url = f"http://a.test:{web.port}/"
    assert refused(url, DownloadOptions(retries=1, retry_wait_s=0.01)) == "http_5xx"
    web.requests.clear()
    assert get(url, DownloadOptions(retries=2, retry_wait_s=0.01)).body == b"back"
    web.requests.clear()
    assert refused(f"{url}absent", DownloadOptions(retries=5)) == "http_4xx"
    assert len(web.requests) == 1


def test_a_host_gets_no_more_requests_at_once_and_others_do_not_wait(web: Listener) -> None:
    """Ten images of a slow host fill its two slots only; the other two serve other hosts."""
    now = 0
    most = 0

    def slow(connection: socket.socket) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        web.closing.wait(0.25)
        now -= 1
        answer(b"slow")(connection)

    web.routes |= {"/slow": slow, "/quick": answer(b"quick"), "/to": redirect("/slow")}
    options = DownloadOptions(concurrency=4, per_host_concurrency=2, total_timeout_s=1.0)
    done: list[bytes] = []

    async def one(fetcher: Fetcher, url: str) -> None:
        done.append((await fetcher.fetch(url)).body)

    async def run() -> None:
        fetcher = Fetcher(
            options, resolve=lambda _: [PUBLIC], allowed=lambda address: address == PUBLIC
        )
        async with fetcher, asyncio.TaskGroup() as group:
            for path in ["/slow"] * 8 + ["/to"] * 2:
                group.create_task(one(fetcher, f"http://slow.test:{web.port}{path}"))
            for i in range(10):
                group.create_task(one(fetcher, f"http://h{i}.test:{web.port}/quick"))

    asyncio.run(run())
    # Ten at two a time take longer than the deadline: waiting for a slot does not count.
    assert sorted(done) == [b"quick"] * 10 + [b"slow"] * 10
    assert most <= 2
    assert done[0] == b"quick"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


def _secure(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def test_tls_is_verified(authority: trustme.CA, ca_file: str, inside: Listener) -> None:
    trusting = DownloadOptions(ca_file=ca_file)
    with listening(PUBLIC, tls=_secure(authority.issue_cert("good.test"))) as web:
        web.routes["/"] = answer(b"secure")
        assert get(f"https://good.test:{web.port}/", trusting).body == b"secure"
        assert get(f"https://GOOD.test.:{web.port}/", trusting).body == b"secure"
        assert refused(f"https://other.test:{web.port}/", trusting) == "tls"
        assert refused(f"https://good.test:{web.port}/") == "tls"  # an unknown authority
        assert len(web.requests) == 2


def test_an_expired_certificate_is_refused(authority: trustme.CA, ca_file: str) -> None:
    past = datetime.now(UTC) - timedelta(days=1)
    expired = authority.issue_cert("good.test", not_after=past)
    with listening(PUBLIC, tls=_secure(expired)) as web:
        web.routes["/"] = answer(b"secure")
        url = f"https://good.test:{web.port}/"
        assert refused(url, DownloadOptions(ca_file=ca_file)) == "tls"


def test_tls_to_a_host_without_tls(web: Listener) -> None:
    def plain(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server((PUBLIC, 0)) as server:
        port = server.getsockname()[1]

        async def run() -> str:
            loop = asyncio.get_running_loop()

            def serve() -> None:
                connection, _ = server.accept()
                with connection:
                    connection.recv(4096)
                    plain(connection)

            served = loop.run_in_executor(None, serve)
            fetcher = Fetcher(
                DownloadOptions(), resolve=lambda _: [PUBLIC], allowed=lambda a: a == PUBLIC
            )
            async with fetcher:
                try:
                    await fetcher.fetch(f"https://a.test:{port}/")
                except FetchRefused as refusal:
                    return refusal.reason
                finally:
                    await served
            return "fetched"

        assert asyncio.run(run()) == "tls"


def test_a_handshake_that_never_ends(web: Listener) -> None:
    options = DownloadOptions(total_timeout_s=5, connect_timeout_s=0.3)
    assert refused(f"https://a.test:{web.port}/", options) in ("connect", "tls")
    assert refused(f"https://a.test:{web.port}/", QUICK) in ("timeout", "tls")


_WITHOUT_IPV6 = """
import asyncio
from laion_assets.download.errors import FetchRefused
from laion_assets.download.fetch import Fetcher
from laion_assets.download.requester import Fetched
from laion_assets.download.options import DownloadOptions

async def main():
    async with Fetcher(DownloadOptions()) as fetcher:
        for address in ("[2606:4700::1111]", "[2606:4700::1111]:8080"):
            try:
                await fetcher.fetch(f"http://{address}/a.jpg")
            except FetchRefused as refused:
                print(refused)

asyncio.run(main())
"""


def test_an_ipv6_address_is_its_own_failure_where_ipv6_is_off() -> None:
    """Switched off by sysctl, connecting fails with EADDRNOTAVAIL: not this machine's fault."""
    off = 'echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6 || exit 77; exec "$0" -c "$1"'
    alone = ["unshare", "--map-root-user", "--net", "sh", "-c", off]
    ran = subprocess.run(
        [*alone, sys.executable, _WITHOUT_IPV6], capture_output=True, text=True, check=False
    )
    if ran.returncode in (1, 77) and not ran.stdout and "Traceback" not in ran.stderr:
        pytest.skip(f"no network namespace of one's own here: {ran.stderr.strip()}")
    assert ran.returncode == 0, ran.stderr
    assert [line.split(":")[0] for line in ran.stdout.splitlines()] == ["connect", "connect"]
    assert "Cannot assign requested address" in ran.stdout


def _open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_dead_names_with_many_addresses_leave_open_files_for_others(web: Listener) -> None:
    """Each attempt at an address that swallows packets holds a socket until it times out."""
    full = socket.create_server(("0.0.0.0", 0), backlog=1)  # all addresses of loopback
    port = full.getsockname()[1]
    held = [socket.socket() for _ in range(8)]
    for one in held:
        one.setblocking(False)
        one.connect_ex((PUBLIC, port))  # from here on, its queue is full
    most = 0

    async def watch(fetching: asyncio.Future[object]) -> None:
        nonlocal most
        while not fetching.done():
            most = max(most, _open_files())
            await asyncio.sleep(0.02)

    async def fetch_all() -> None:
        options = DownloadOptions(concurrency=30, connect_timeout_s=2, total_timeout_s=3, retries=0)
        many = [f"127.0.0.{n}" for n in range(2, 22)]
        allowed = dict.fromkeys(many, True)
        async with Fetcher(
            options, resolve=lambda _: many, allowed=allowed.__contains__
        ) as fetcher:
            urls = [f"http://h{n}.test:{port}/" for n in range(30)]
            fetching = asyncio.gather(*map(fetcher.fetch, urls), return_exceptions=True)
            await watch(fetching)
            assert all(isinstance(error, FetchRefused) for error in fetching.result())

    before = _open_files()
    try:
        asyncio.run(fetch_all())
    finally:
        for one in (*held, full):
            one.close()
    assert 30 <= most - before <= 30 * MAX_ADDRESSES + 40
