"""One store for all tests of the lake, and machines whose lake is named after the test."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lake.stores import Between, Machine, between, machines, store


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    with store(failing=0) as url:
        yield url


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    return "s3://lake/" + re.sub(r"\W+", "-", request.node.name)


@pytest.fixture
def machine(endpoint: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return machines(endpoint, tmp_path, url, monkeypatch)


@pytest.fixture
def proxy(endpoint: str) -> Iterator[Between]:
    with between(endpoint) as running:
        yield running


@pytest.fixture
def proxied(proxy: Between, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Machines behind the proxy, in the lake of ``machine``."""
    return machines(proxy.url, tmp_path / "proxied", url, monkeypatch)
