import asyncio

import pytest

from laion_assets.download.priority_semaphore import PrioritySemaphore


async def _wait(slots: PrioritySemaphore, urgency: int, name: str, order: list[str]) -> None:
    await slots.acquire(urgency)
    order.append(name)


async def _most_urgent_first() -> None:
    slots = PrioritySemaphore(1)
    order: list[str] = []
    await slots.acquire(0)
    for name, urgency in (("first", 1), ("large", 9), ("second", 1)):
        order_task = asyncio.create_task(_wait(slots, urgency, name, order))
        await asyncio.sleep(0)
        assert not order_task.done()
    for _ in range(3):
        slots.release()
        await asyncio.sleep(0)
    assert order == ["large", "first", "second"]
    slots.release()
    assert slots.free == 1


async def _cancelled(released: bool) -> None:
    slots = PrioritySemaphore(1)
    await slots.acquire(0)
    waiting = asyncio.create_task(slots.acquire(1))
    await asyncio.sleep(0)
    if released:
        slots.release()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    if not released:
        slots.release()
    assert slots.free == 1


def test_the_most_urgent_is_next_and_among_equals_the_first() -> None:
    asyncio.run(_most_urgent_first())


@pytest.mark.parametrize("released", [False, True], ids=["before its turn", "in its turn"])
def test_a_cancelled_wait_takes_no_slot(released: bool) -> None:
    asyncio.run(_cancelled(released))
