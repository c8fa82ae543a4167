"""Parts of a batch, each computed by one core."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from laion_assets.clip.cores import Cores
from tests.processes import PATIENCE_S


@pytest.fixture(params=[2, 3])
def cores(request: pytest.FixtureRequest) -> Iterator[Cores]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield Cores()
    torch.set_num_threads(before)


def test_each_part_is_computed_by_one_of_the_cores_alone(cores: Cores) -> None:
    meeting = threading.Barrier(cores.n, timeout=PATIENCE_S)
    found: list[tuple[int, int]] = []

    def compute(part: torch.Tensor) -> torch.Tensor:
        meeting.wait()
        found.append((threading.get_ident(), torch.get_num_threads()))
        return part * 2

    batch = torch.arange(2.0 * cores.n * 8).reshape(-1, 1)
    parts = cores.each(compute, batch, 8)
    assert torch.equal(torch.cat(parts), batch * 2)
    assert [len(part) for part in parts] == [8] * 2 * cores.n
    assert len({thread for thread, _ in found}) == cores.n
    assert {number for _, number in found} == {1}
    assert torch.get_num_threads() == cores.n


@pytest.mark.parametrize(
    ("rows", "most", "sizes"),
    [
        (10, 8, [5, 5]),
        (13, 8, [7, 6]),
        (33, 100, [17, 16]),
        (33, 8, [6, 6, 6, 5, 5, 5]),
        (7, 8, [7]),
    ],
)
@pytest.mark.parametrize("cores", [2], indirect=True)
def test_parts_are_as_equal_as_can_be(cores: Cores, rows: int, most: int, sizes: list[int]) -> None:
    parts = cores.each(torch.Tensor.clone, torch.zeros(rows), most)
    assert [len(part) for part in parts] == sizes


def test_a_few_rows_have_all_cores_for_each_operation(cores: Cores) -> None:
    def threads(part: torch.Tensor) -> torch.Tensor:
        return torch.full((len(part),), torch.get_num_threads())

    assert [one.tolist() for one in cores.each(threads, torch.zeros(3), 8)] == [[cores.n] * 3]


def test_a_failure_is_raised(cores: Cores) -> None:
    def fail(part: torch.Tensor) -> torch.Tensor:
        raise ValueError(f"row {part[0].item():.0f}")

    with pytest.raises(ValueError, match="row 0"):
        cores.each(fail, torch.arange(30.0), 8)
    assert torch.get_num_threads() == cores.n
