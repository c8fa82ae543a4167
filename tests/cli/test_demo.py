"""The sample crawl's server, as a process of its own."""

from __future__ import annotations

import socket
import sys

import pytest

from laion_assets.cli import main
from tests.cli.conftest import Stages, serving
from tests.processes import PATIENCE_S, free_port


def test_the_served_crawl_outlives_a_client_that_leaves(stages: Stages) -> None:
    port = free_port()
    command = [sys.executable, "-m", "laion_assets.cli", "sample-crawl", "serve"]
    command += ["--root", str(stages.crawl), "--port", str(port)]
    request = f"GET /{stages.cases[0].wat_file} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    with serving(command, port) as process:
        for _ in range(50):
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as client:
                client.sendall(request)
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as client:
            client.sendall(request)
            assert client.recv(12) == b"HTTP/1.1 200"
        assert process.poll() is None


def test_dagster_needs_a_folder_for_its_instance(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    assert main(["dagster"]) == 1
    assert "set DAGSTER_HOME" in capsys.readouterr().err
