"""Parts of a batch, each computed by one core."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from laion_assets.clip.cores import Cores


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_each_part_is_computed_by_a_thread_that_shares_none_of_its_operations() -> None:
    meeting = threading.Barrier(2, timeout=30)
    threads: list[tuple[int, int]] = []

    def compute(part: torch.Tensor) -> torch.Tensor:
        found = part @ part.T
        meeting.wait()
        threads.append((threading.get_ident(), torch.get_num_threads()))
        return found

    parts = torch.arange(48.0).reshape(4, 4, 3).unbind()
    found = Cores().each(compute, parts)
    assert [one.tolist() for one in found] == [(part @ part.T).tolist() for part in parts]
    assert len({ident for ident, _ in threads}) == 2
    assert {number for _, number in threads} == {1}
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_a_single_part_has_all_cores() -> None:
    (found,) = Cores().each(lambda _: torch.tensor(torch.get_num_threads()), [torch.zeros(1)])
    assert found == 2


@pytest.mark.usefixtures("two_threads")
def test_a_failure_is_raised_and_leaves_the_number_of_threads() -> None:
    def fail(part: torch.Tensor) -> torch.Tensor:
        raise ValueError(f"row {part.item():.0f}")

    with pytest.raises(ValueError, match="row 0"):
        Cores().each(fail, torch.arange(2.0).split(1))
    assert torch.get_num_threads() == 2
