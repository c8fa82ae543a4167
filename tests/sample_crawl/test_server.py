from __future__ import annotations

import http.client
import json
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from laion_assets.sample_crawl.build import Manifest
from laion_assets.sample_crawl.plan import Pictures
from laion_assets.sample_crawl.server import SampleServer
from tests.processes import PATIENCE_S, free_port, served, until

Headers = dict[str, str]


def ask(
    server: SampleServer, host: str, path: str, method: str = "GET", headers: Headers | None = None
) -> tuple[int, Headers, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    connection.request(method, path, headers={"Host": host, **(headers or {})})
    response = connection.getresponse()
    answer = response.status, dict(response.headers), response.read()
    connection.close()
    return answer


def opened(server: SampleServer, host: str, path: str) -> socket.socket:
    """Open a socket and send the request."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    return connection


def test_serves_the_crawls_files(server: SampleServer, built: Path) -> None:
    status, headers, body = ask(server, "127.0.0.1", "/collinfo.json")
    assert status == 200
    assert json.loads(body)[0]["id"] == "CC-MAIN-2000-10"
    assert headers["Content-Type"] == "application/json"
    path = "crawl-data/CC-MAIN-2000-05/wat.paths.gz"
    assert ask(server, "127.0.0.1", f"/{path}")[2] == (built / path).read_bytes()
    assert ask(server, "127.0.0.1", "/crawl-data/CC-MAIN-2000-99/wat.paths.gz")[0] == 404


def test_answers_conditional_requests(server: SampleServer) -> None:
    _, headers, body = ask(server, "127.0.0.1", "/collinfo.json")
    assert headers["Last-Modified"].endswith("GMT")
    again = ask(server, "127.0.0.1", "/collinfo.json", headers={"If-None-Match": headers["ETag"]})
    assert (again[0], again[2]) == (304, b"")
    other = ask(server, "127.0.0.1", "/collinfo.json", headers={"If-None-Match": '"another"'})
    assert (other[0], other[2]) == (200, body)


@pytest.mark.parametrize(
    ("wanted", "status", "start", "end"),
    [
        ("bytes=0-9", 206, 0, 10),
        ("bytes=10-", 206, 10, None),
        ("bytes=-7", 206, -7, None),
        ("bytes=5-999999", 206, 5, None),
        ("bytes=999999-", 416, 0, 0),
        ("lines=1-2", 200, 0, None),
        ("bytes=a-b", 200, 0, None),
    ],
)
def test_answers_ranges(
    server: SampleServer, wanted: str, status: int, start: int, end: int | None
) -> None:
    whole = ask(server, "127.0.0.1", "/collinfo.json")[2]
    got, headers, body = ask(server, "127.0.0.1", "/collinfo.json", headers={"Range": wanted})
    assert got == status
    assert body == whole[start:end]
    assert ("Content-Range" in headers) == (status in (206, 416))


def test_head_has_the_headers_alone(server: SampleServer) -> None:
    status, headers, body = ask(server, "127.0.0.1", "/collinfo.json", method="HEAD")
    whole = ask(server, "127.0.0.1", "/collinfo.json")[2]
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) == len(whole)


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/crawl-data/../../secret.txt",
        "/%2e%2e/secret.txt",
        "/crawl-data/%2e%2e/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "//etc/passwd",
        "/%2fetc/passwd",
        "/out",
        "/%00",
    ],
)
def test_serves_no_other_files_of_the_disk(tmp_path: Path, built: Path, path: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "routes.json").write_bytes((built / "routes.json").read_bytes())
    (root / "out").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "secret.txt").write_text("secret")
    with SampleServer(root) as server:
        assert ask(server, "127.0.0.1", path)[0] == 404
        assert ask(server, "127.0.0.1", "/routes.json")[0] == 200


def test_keeps_connections_and_counts_requests(server: SampleServer) -> None:
    before = server.requests["127.0.0.1/collinfo.json"]
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    for _ in range(3):
        connection.request("GET", "/collinfo.json")
        assert connection.getresponse().read()
    connection.close()
    assert server.requests["127.0.0.1/collinfo.json"] == before + 3


def test_every_kept_pair_has_its_picture(server: SampleServer, manifest: Manifest) -> None:
    pictures = Pictures()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    for case in manifest.cases:
        if case.stage != "subset" or case.name.startswith("redirect"):
            continue
        host, _, path = case.url.removeprefix("http://").partition("/")
        connection.request("GET", f"/{path}", headers={"Host": host})
        response = connection.getresponse()
        assert case.file is not None
        assert response.read() == pictures.read(case.file)
        assert response.status == 200
    connection.close()


def test_addresses_resolved_wrongly_find_nothing(server: SampleServer) -> None:
    right = ask(server, "www.travel.sample.test", "/2000/fig.jpg")
    wrong = ask(server, "www.travel.sample.test", "/fig.jpg")
    assert (right[0], wrong[0]) == (200, 404)


@pytest.mark.parametrize("status", [403, 404, 410])
def test_gone(server: SampleServer, status: int) -> None:
    assert ask(server, "gone.sample.test", f"/{status}.jpg")[0] == status


def test_redirects(server: SampleServer) -> None:
    host = "moved.sample.test"
    hops, path = 0, "/chain/1.jpg"
    while (answer := ask(server, host, path))[0] == 302:
        path = answer[1]["Location"].removeprefix(f"http://{host}")
        hops += 1
    assert (hops, answer[0]) == (20, 200)
    first = ask(server, host, "/loop/a.jpg")[1]["Location"]
    back = ask(server, host, first.removeprefix(f"http://{host}"))[1]["Location"]
    assert back == f"http://{host}/loop/a.jpg"


def test_opt_out_headers(server: SampleServer) -> None:
    headers = ask(server, "optout.sample.test", "/opt_out_noai.jpg")[1]
    assert headers["X-Robots-Tag"] == "noai"


def test_drip_never_pauses_and_never_ends(server: SampleServer) -> None:
    with opened(server, "slow.sample.test", "/drip.jpg") as connection:
        received = b""
        for _ in range(3):
            received += connection.recv(4096)
    headers, _, body = received.partition(b"\r\n\r\n")
    assert b"200" in headers
    assert 0 < len(body) <= 64


def test_silence(server: SampleServer) -> None:
    with opened(server, "slow.sample.test", "/silent.jpg") as connection:
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)


@pytest.mark.parametrize("path", ["/zeros.jpg", "/huge.jpg"])
def test_endless_bodies_pass_the_limit_fast(server: SampleServer, path: str) -> None:
    received = 0
    with opened(server, "endless.sample.test", path) as connection:
        while received < 11_000_000:
            block = connection.recv(1 << 16)
            assert block
            received += len(block)


def test_cut_body(server: SampleServer) -> None:
    with pytest.raises(http.client.IncompleteRead):
        ask(server, "failing.sample.test", "/cut.jpg")


def test_answer_that_is_not_http(server: SampleServer) -> None:
    with pytest.raises(http.client.BadStatusLine):
        ask(server, "failing.sample.test", "/garbage.jpg")


def test_refuses_tls_with_an_alert(server: SampleServer) -> None:
    context = ssl.create_default_context()
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as plain,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(plain, server_hostname="img.sample.test")


def test_connect_to_names_the_port_and_a_refusing_one(server: SampleServer) -> None:
    assert server.connect_to["*.sample.test"] == f"127.0.0.1:{server.port}"
    host, _, port = server.connect_to["dead.sample.test"].rpartition(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=PATIENCE_S)


def test_stops_while_clients_hang(built: Path) -> None:
    with SampleServer(built) as server:
        waiting = opened(server, "slow.sample.test", "/silent.jpg")
        drip = opened(server, "slow.sample.test", "/drip.jpg")
        assert drip.recv(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)
    waiting.close()
    drip.close()


def test_serve_runs_until_a_signal_stops_it(built: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from laion_assets.sample_crawl.server import serve;"
        "serve(Path(sys.argv[1]), int(sys.argv[2]))"
    )
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", code, str(built), str(port)])
    try:
        until(lambda: served(port))
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
