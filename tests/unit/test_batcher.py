from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.errors import Expired, Overloaded
from flts_ray.serve.batcher import Batcher
from flts_ray.serve.model_calls import ModelCalls


class Doubler:
    """Doubles numbers, keeps what it was given, and waits for `gate` before each batch."""

    def __init__(self, gate: threading.Event | None = None) -> None:
        self.batches: list[list[int]] = []
        self.gate = gate
        self.started = threading.Event()

    def __call__(self, items: Sequence[int]) -> list[int | Exception]:
        self.started.set()
        if self.gate is not None:
            assert self.gate.wait(10)
        self.batches.append(list(items))
        return [ValueError(item) if item < 0 else 2 * item for item in items]


def batched(
    run: Any, pool: ThreadPoolExecutor, max_weight: int = 100, max_waiting: int = 1000, **more: Any
) -> Batcher[int, int]:
    return Batcher(
        run,
        pool,
        weigh=lambda item: max(1, item),
        max_weight=max_weight,
        max_waiting=max_waiting,
        **more,
    )


def with_pool(work: Any) -> Any:
    with ThreadPoolExecutor(1) as pool:
        made: Coroutine[Any, Any, Any] = work(pool)
        return asyncio.run(made)


def test_a_lone_item_is_a_batch_of_its_own() -> None:
    run = Doubler()
    assert with_pool(lambda pool: batched(run, pool).submit(4)) == 8
    assert run.batches == [[4]]


async def _behind_a_gate(pool: ThreadPoolExecutor, run: Doubler, items: list[int]) -> list[Any]:
    """Submit 1, and while its batch is in flight all `items`."""
    assert run.gate is not None
    batcher = batched(run, pool, max_weight=10)
    first = asyncio.create_task(batcher.submit(1))
    assert await asyncio.to_thread(run.started.wait, 10)
    rest = [asyncio.create_task(batcher.submit(item)) for item in items]
    await asyncio.sleep(0)
    run.gate.set()
    return await asyncio.gather(first, *rest, return_exceptions=True)


def test_the_next_batch_gathers_while_one_is_in_flight() -> None:
    run = Doubler(threading.Event())
    results = with_pool(lambda pool: _behind_a_gate(pool, run, [2, 3, 4]))
    assert results == [2, 4, 6, 8]
    assert run.batches == [[1], [2, 3, 4]]


def test_a_batch_is_at_most_max_weight_unless_one_item_is_heavier() -> None:
    run = Doubler(threading.Event())
    with_pool(lambda pool: _behind_a_gate(pool, run, [6, 4, 1, 20, 3]))
    assert run.batches == [[1], [6, 4], [1], [20], [3]]


async def _where(
    pool: ThreadPoolExecutor, busy_s: float, calls: int, **more: Any
) -> list[tuple[bool, int]]:
    """For each call of the work: whether it ran in the event loop, and with how many items."""
    loop, found = threading.get_ident(), []

    def run(items: Sequence[int]) -> list[int]:
        until = time.thread_time() + busy_s * len(items)
        while time.thread_time() < until:
            sum(range(100))
        found.append((threading.get_ident() == loop, len(items)))
        return list(items)

    batcher = batched(run, pool, **more)
    for _ in range(calls):
        assert await asyncio.gather(*(batcher.submit(1) for _ in range(4))) == [1] * 4
    return found


def test_work_of_a_moment_runs_in_the_event_loop_once_it_is_known_to_be() -> None:
    found = with_pool(lambda pool: _where(pool, 1e-4, 3, moment_s=0.1))
    assert found == [(False, 4), (True, 4), (True, 4)]


def test_longer_work_never_runs_in_the_event_loop() -> None:
    found = with_pool(lambda pool: _where(pool, 2e-3, 3, moment_s=0.004))
    assert found == [(False, 4)] * 3


def test_without_a_bound_all_work_runs_in_the_executor() -> None:
    assert with_pool(lambda pool: _where(pool, 1e-4, 2)) == [(False, 4)] * 2


def test_a_failing_item_does_not_fail_its_neighbours() -> None:
    run = Doubler(threading.Event())
    results = with_pool(lambda pool: _behind_a_gate(pool, run, [2, -3, 4]))
    assert [results[0], results[1], results[3]] == [2, 4, 8]
    assert isinstance(results[2], ValueError)


def test_a_failing_batch_fails_each_item_and_the_next_batch_runs() -> None:
    calls: list[int] = []

    def run(items: Sequence[int]) -> list[int]:
        calls.append(len(items))
        if len(calls) == 1:
            raise RuntimeError("broken")
        return list(items)

    async def work(pool: ThreadPoolExecutor) -> int:
        batcher = batched(run, pool)
        with pytest.raises(RuntimeError, match="broken"):
            await batcher.submit(1)
        return await batcher.submit(2)

    assert with_pool(work) == 2


def test_cancelled_callers_are_left_out() -> None:
    run = Doubler(threading.Event())

    async def work(pool: ThreadPoolExecutor) -> int:
        assert run.gate is not None
        batcher = batched(run, pool)
        first = asyncio.create_task(batcher.submit(1))
        gone = asyncio.create_task(batcher.submit(2))
        stays = asyncio.create_task(batcher.submit(3))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        run.gate.set()
        await first
        return await stays

    assert with_pool(work) == 6
    assert [item for batch in run.batches for item in batch] == [1, 3]


def test_too_many_waiting_are_refused() -> None:
    run = Doubler(threading.Event())

    async def work(pool: ThreadPoolExecutor) -> list[Any]:
        assert run.gate is not None
        batcher = batched(run, pool, max_waiting=2)
        tasks = [asyncio.create_task(batcher.submit(i)) for i in (1, 2, 3, 4)]
        await asyncio.sleep(0)
        run.gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = with_pool(work)
    refused = [result for result in results if isinstance(result, Overloaded)]
    assert len(refused) == 2
    assert [result for result in results if isinstance(result, int)]


def test_a_refusal_tells_how_long_the_waiting_work_takes() -> None:
    async def work(pool: ThreadPoolExecutor) -> float:
        batcher = batched(slow, pool, max_waiting=1)
        await batcher.submit(1)
        tasks = [asyncio.create_task(batcher.submit(1)) for _ in range(3)]
        done = await asyncio.gather(*tasks, return_exceptions=True)
        (refused,) = [result for result in done if isinstance(result, Overloaded)][:1]
        return refused.retry_after_s

    def slow(items: Sequence[int]) -> Sequence[int]:
        threading.Event().wait(0.05)
        return items

    # One batch is in flight and one item waits; each takes a twentieth of a second or longer.
    assert with_pool(work) >= 0.1


def test_work_is_dropped_when_its_deadline_passes_while_it_waits() -> None:
    run = Doubler(threading.Event())

    async def work(pool: ThreadPoolExecutor) -> None:
        assert run.gate is not None
        batcher = batched(run, pool)
        first = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.01)
        with pytest.raises(Expired):
            await batcher.submit(2, time.monotonic() + 0.01)
        run.gate.set()
        assert await first == 2
        assert await batcher.submit(3, time.monotonic() + 60) == 6

    with_pool(work)
    assert run.batches == [[1], [3]]


def test_work_that_comes_too_late_is_never_queued() -> None:
    run = Doubler()

    async def work(pool: ThreadPoolExecutor) -> None:
        with pytest.raises(Expired):
            await batched(run, pool).submit(1, time.monotonic() - 1)

    with_pool(work)
    assert run.batches == []


def test_batches_and_what_waits_are_counted() -> None:
    run = Doubler(threading.Event())

    async def work(pool: ThreadPoolExecutor) -> None:
        assert run.gate is not None
        batcher = batched(run, pool)
        tasks = [asyncio.create_task(batcher.submit(item)) for item in (1, 2, 3)]
        await asyncio.sleep(0.01)
        more = asyncio.create_task(batcher.submit(4))
        await asyncio.sleep(0)
        assert batcher.queued == 1
        run.gate.set()
        await asyncio.gather(*tasks, more)
        assert (batcher.queued, batcher.batches, batcher.weight) == (0, 2, 10)

    with_pool(work)


def test_each_call_is_put_down_with_the_wait_of_its_items() -> None:
    run, calls = Doubler(threading.Event()), ModelCalls()
    calls.wanted = True

    async def work(pool: ThreadPoolExecutor) -> list[float]:
        assert run.gate is not None
        batcher = batched(run, pool, calls=calls)
        begin = time.monotonic()
        assert batcher.waiting_since is None
        first = asyncio.create_task(batcher.submit(1))
        assert await asyncio.to_thread(run.started.wait, 10)
        rest = [asyncio.create_task(batcher.submit(item)) for item in (2, 3)]
        await asyncio.sleep(0)
        oldest = batcher.waiting_since
        assert oldest is not None
        assert len(calls.running()) == 1
        run.gate.set()
        await asyncio.gather(first, *rest)
        return [begin, oldest, time.monotonic()]

    begin, oldest, end = with_pool(work)
    one, more = calls.take()
    assert [len(one.since), len(more.since)] == [1, 2]
    assert begin <= one.since[0] <= one.began <= one.ended <= more.began <= more.ended <= end
    assert one.began <= more.since[0] <= more.since[1] <= more.began
    assert oldest == more.since[0]


def test_a_call_that_fails_is_over_too() -> None:
    def run(items: Sequence[int]) -> list[int]:
        raise RuntimeError("broken")

    calls = ModelCalls()
    with pytest.raises(RuntimeError, match="broken"):
        with_pool(lambda pool: batched(run, pool, calls=calls).submit(1))
    assert calls.running() == []


async def _gathered(pool: ThreadPoolExecutor, run: Doubler, max_wait_s: float) -> list[list[int]]:
    """Three items in one batch; when it is done one waits and another comes a little later."""
    assert run.gate is not None
    batcher = batched(run, pool, max_wait_s=max_wait_s)
    first = [asyncio.create_task(batcher.submit(item)) for item in (1, 2, 3)]
    await asyncio.sleep(0.25)  # the batch takes that long; a fifth of it may be waited
    waiting = asyncio.create_task(batcher.submit(4))
    await asyncio.sleep(0)
    run.gate.set()
    await asyncio.gather(*first)
    late = asyncio.create_task(batcher.submit(5))
    await asyncio.gather(waiting, late)
    return run.batches


def test_a_crowd_smaller_than_the_last_is_waited_for() -> None:
    waited = with_pool(lambda pool: _gathered(pool, Doubler(threading.Event()), 0.2))
    assert waited == [[1, 2, 3], [4, 5]]


def test_without_a_bound_nobody_waits() -> None:
    at_once = with_pool(lambda pool: _gathered(pool, Doubler(threading.Event()), 0.0))
    assert at_once == [[1, 2, 3], [4], [5]]


def test_a_closed_executor_fails_the_caller_instead_of_hanging() -> None:
    pool = ThreadPoolExecutor(1)
    pool.shutdown()

    async def work() -> None:
        with pytest.raises(RuntimeError):
            await asyncio.wait_for(batched(Doubler(), pool).submit(1), 10)

    asyncio.run(work())


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 40))
def test_every_caller_gets_its_own_result(items: list[int], max_weight: int) -> None:
    async def work(pool: ThreadPoolExecutor) -> list[int]:
        batcher = batched(Doubler(), pool, max_weight=max_weight)
        return await asyncio.gather(*(batcher.submit(item) for item in items))

    assert with_pool(work) == [2 * item for item in items]
