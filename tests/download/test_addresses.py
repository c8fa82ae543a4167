from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from laion_assets.download.addresses import (
    MAX_ADDRESSES,
    Names,
    is_public,
    parse_endpoint,
    system_resolve,
)
from laion_assets.download.errors import FetchRefused
from tests.processes import PATIENCE_S

PUBLIC = [
    "93.184.216.34",
    "8.8.8.8",
    "1.1.1.1",
    "192.0.1.1",
    "2606:4700::1111",
    "2a00:1450:4001::1",
    "2001:200::1",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
]
NOT_PUBLIC = [
    "0.0.0.0",
    "0.1.2.3",
    "10.1.2.3",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.5.4",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:10.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:808:808::",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "2606:4700::1111%eth0",
    "fec0::1",
    "ff02::1",
    "example.org",
    "2130706433",
    "",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_not_public(address: str) -> None:
    assert not is_public(address)


def test_an_endpoint_is_an_address_and_a_port() -> None:
    assert parse_endpoint("127.0.0.1:80") == ("127.0.0.1", 80)
    assert parse_endpoint("[::1]:8799") == ("::1", 8799)
    for wrong in ("localhost:80", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", ""):
        with pytest.raises(ValueError, match="IP:PORT"):
            parse_endpoint(wrong)


class Asked:
    """A resolver that records names, and answers from a table or with a public address."""

    def __init__(self, *answers: list[str]) -> None:
        self.names: list[str] = []
        self.answers = list(answers)
        self.go = threading.Event()
        self.go.set()

    def __call__(self, host: str) -> list[str]:
        self.names.append(host)
        self.go.wait(PATIENCE_S)
        answer = self.answers.pop(0) if self.answers else ["8.8.8.8"]
        if not answer:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return answer


def endpoints(asked: Asked, host: str, **connect_to: str) -> list[tuple[str, int]]:
    names = Names(asked, {k.replace("_", "."): v for k, v in connect_to.items()}, is_public)
    try:
        return asyncio.run(names.endpoints(host, 80))
    finally:
        names.close()


def test_addresses_keep_their_order_and_port() -> None:
    asked = Asked(["8.8.8.8", "2606:4700::1111"])
    assert endpoints(asked, "a.test") == [("8.8.8.8", 80), ("2606:4700::1111", 80)]


@pytest.mark.parametrize(
    "mixed", [["8.8.8.8", "10.0.0.1"], ["10.0.0.1", "8.8.8.8"], ["8.8.8.8", "::1"]]
)
def test_a_name_with_one_internal_address_is_refused(mixed: list[str]) -> None:
    with pytest.raises(FetchRefused) as refused:
        endpoints(Asked(mixed), "a.test")
    assert refused.value.reason == "private_address"


def test_no_address_is_dns() -> None:
    with pytest.raises(FetchRefused) as refused:
        endpoints(Asked([]), "a.test")
    assert refused.value.reason == "dns"


@pytest.mark.parametrize("host", ["nowhere.invalid", "NOWHERE.Invalid.", "invalid"])
def test_invalid_names_are_not_looked_up(host: str) -> None:
    asked = Asked()
    with pytest.raises(FetchRefused) as refused:
        endpoints(asked, host)
    assert refused.value.reason == "dns"
    assert asked.names == []


def test_the_more_specific_entry_wins_and_nothing_is_looked_up() -> None:
    asked = Asked()
    names = Names(
        asked,
        {
            "*.test": "127.0.0.1:1",
            "*.sample.test": "127.0.0.1:2",
            "dead.sample.test": "[::1]:3",
        },
        is_public,
    )

    async def run() -> list[tuple[str, int]]:
        hosts = ("x.test", "IMG.sample.test.", "dead.sample.test")
        return [(await names.endpoints(host, 80))[0] for host in hosts]

    assert asyncio.run(run()) == [("127.0.0.1", 1), ("127.0.0.1", 2), ("::1", 3)]
    assert asked.names == []
    assert names.may_connect("127.0.0.1", 2)
    assert not names.may_connect("127.0.0.1", 4)
    assert not names.may_connect("127.0.0.2", 2)
    names.close()


def test_simultaneous_look_ups_share_one_answer_which_is_kept() -> None:
    asked = Asked(["8.8.8.8"], ["10.0.0.1"])
    asked.go.clear()
    names = Names(asked, {}, is_public)

    async def run() -> list[list[tuple[str, int]]]:
        waiting = [asyncio.create_task(names.endpoints("a.test", 80)) for _ in range(20)]
        impatient = asyncio.create_task(names.endpoints("a.test", 80))
        await asyncio.sleep(0)
        impatient.cancel()
        asked.go.set()
        first = await asyncio.gather(*waiting)
        return [*first, await names.endpoints("a.test", 443)]

    answers = asyncio.run(run())
    names.close()
    assert answers == [[("8.8.8.8", 80)]] * 20 + [[("8.8.8.8", 443)]]
    assert asked.names == ["a.test"]


def test_the_system_knows_loopback() -> None:
    assert set(system_resolve("localhost")) <= {"127.0.0.1", "::1"}


def test_a_slow_name_times_out_and_leaves_the_others_alone() -> None:
    """Waiting behind others counts against no name, and a late answer is kept."""
    go = threading.Event()

    def resolve(host: str) -> list[str]:
        if host.startswith("slow"):
            go.wait(PATIENCE_S)
        return ["8.8.8.8"]

    async def ask(names: Names, host: str) -> str:
        try:
            return str(await names.endpoints(host, 80))
        except FetchRefused as refused:
            return str(refused)

    async def run() -> tuple[list[str], str]:
        names = Names(resolve, {}, is_public, limit_s=0.3)
        slow = await asyncio.gather(*(ask(names, f"slow{i}.test") for i in range(100)))
        good = asyncio.create_task(ask(names, "good.test"))
        await asyncio.sleep(0.5)
        answers = [*slow, await good]
        go.set()
        await asyncio.sleep(0.2)
        later = await ask(names, "slow3.test")
        names.close()
        return answers, later

    (*slow, good), later = asyncio.run(asyncio.wait_for(run(), PATIENCE_S))
    assert slow == [f"dns: slow{i}.test: no answer in 0.3 s" for i in range(100)]
    assert good == later == "[('8.8.8.8', 80)]"


def test_few_addresses_of_a_name_are_tried_and_of_both_families() -> None:
    """Each may hold a socket until its connection times out."""
    fours, sixes = [f"93.184.216.{n}" for n in range(20)], [f"2606:2800::{n}" for n in range(1, 20)]
    names = Names(lambda _: [*sixes, *fours], {}, is_public)
    tried = [address for address, _ in asyncio.run(names.endpoints("many.test", 80))]
    assert tried == [sixes[0], fours[0], sixes[1]]
    names = Names(lambda _: fours, {}, is_public)
    assert len(asyncio.run(names.endpoints("many.test", 80))) == MAX_ADDRESSES
    names.close()
