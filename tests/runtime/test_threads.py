"""Stages that overlap: order, errors in their place, nothing left running."""

import threading
import time
from collections.abc import Callable, Generator

import cv2
import pytest

from mtmamba.errors import MtmError
from mtmamba.runtime.threads import Meter, Prefetch, opencv_on_one_thread, shared_stage, stage


def count_to(number: int, closed: list[bool] | None = None, fail_at: int = -1) -> Generator[int, None, None]:
    try:
        for index in range(number):
            if index == fail_at:
                raise MtmError("no more")
            yield index
    finally:
        if closed is not None:
            closed.append(True)


def test_prefetch_keeps_order_and_raises_in_its_place() -> None:
    assert list(Prefetch(count_to(100), 3)) == list(range(100))
    seen = []
    with pytest.raises(MtmError, match="no more"):
        for item in Prefetch(count_to(100, fail_at=7), 3):
            seen.append(item)
    assert seen == list(range(7))


def test_prefetch_stops_early_and_closes_its_source() -> None:
    closed: list[bool] = []
    prefetch = Prefetch(count_to(10**9, closed), 2)
    assert next(iter(prefetch)) == 0
    prefetch.close()
    assert closed == [True]


def test_a_broken_off_iteration_goes_on() -> None:
    prefetch = Prefetch(count_to(5), 2)
    for item in prefetch:
        if item == 2:
            break
    assert not prefetch.done
    assert list(prefetch) == [3, 4]
    assert prefetch.done and list(prefetch) == []


def test_stages_keep_order_and_end_together() -> None:
    meter, closed = Meter(), list[bool]()
    before = threading.active_count()
    first = stage("add", lambda item: item + 1, count_to(200, closed), meter, 3)
    second = stage("double", lambda item: item * 2, first, meter, 3)
    assert list(second) == [2 * (item + 1) for item in range(200)]
    assert closed == [True] and threading.active_count() == before
    assert {name: len(ms) for name, ms in meter.ms.items()} == {"add": 200, "double": 200}


def test_a_stage_that_fails_comes_after_what_was_before_it() -> None:
    def fail_at_9(item: int) -> int:
        if item == 9:
            raise MtmError("nine")
        return item

    closed: list[bool] = []
    seen = []
    with pytest.raises(MtmError, match="nine"):
        first = stage("fail", fail_at_9, count_to(10**9, closed), Meter(), 2)
        for item in stage("pass", lambda item: item, first, Meter(), 2):
            seen.append(item)
    assert seen == list(range(9)) and closed == [True]


def test_stages_overlap() -> None:
    """Three stages of 5 ms take about as long as one, not as three. (They sleep: no cores are needed.)"""

    def pause(item: int) -> int:
        time.sleep(0.005)
        return item

    items: Generator[int, None, None] = count_to(60)
    meter = Meter()
    for name in ("a", "b", "c"):
        items = stage(name, pause, items, meter, 4)
    start = time.perf_counter()
    assert len(list(items)) == 60
    assert time.perf_counter() - start < 2 * 60 * 0.005 * 0.9


def test_opencv_gets_its_threads_back() -> None:
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        with pytest.raises(MtmError), opencv_on_one_thread():
            assert cv2.getNumThreads() == 1
            raise MtmError("no more")
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)


def test_a_meters_memory_is_flat() -> None:
    meter = Meter()
    for _ in range(20_000):
        meter.add("a", 1.0)
    assert len(meter.ms["a"]) == 10_000


class TestAStageOfSeveralThreads:
    def test_the_first_halves_come_in_order_and_so_do_the_results(self) -> None:
        meter, closed, begun = Meter(), list[bool](), list[int]()
        before = threading.active_count()

        def begin(item: int) -> Callable[[], int]:
            begun.append(item)
            return lambda: time.sleep(0.004 * (item % 3)) or 10 * item  # the later ones are often done first

        items = shared_stage("draw", begin, count_to(60, closed), meter, 4, workers=3)
        assert list(items) == [10 * item for item in range(60)]
        assert begun == list(range(60)) and closed == [True]
        assert len(meter.ms["draw"]) == 60 and threading.active_count() == before

    def test_it_is_as_many_times_faster_as_it_has_threads(self) -> None:
        """Waiting needs no cores."""
        meter = Meter()
        start = time.perf_counter()
        list(shared_stage("draw", lambda item: lambda: time.sleep(0.02), count_to(40), meter, 4, workers=4))
        assert time.perf_counter() - start < 40 * 0.02 / 4 * 1.8
        assert 5 <= sorted(meter.ms["draw"])[20] < 9  # the pace, in milliseconds

    def test_a_result_does_not_wait_for_the_frames_after_it(self) -> None:
        more = threading.Event()

        def slow_source() -> Generator[int, None, None]:
            yield 1
            assert more.wait(20)
            yield 2

        items = shared_stage("draw", lambda item: lambda: item, slow_source(), Meter(), 4, workers=4)
        assert next(items) == 1
        more.set()
        assert list(items) == [2]

    @pytest.mark.parametrize("half", ["first", "second"])
    def test_what_fails_comes_after_what_was_before_it(self, half: str) -> None:
        def fail() -> int:
            raise MtmError("nine")

        def begin(item: int) -> Callable[[], int]:
            if item == 9 and half == "first":
                fail()
            return fail if item == 9 else lambda: item

        before, closed, seen = threading.active_count(), list[bool](), list[int]()
        with pytest.raises(MtmError, match="nine"):
            for item in shared_stage("draw", begin, count_to(10**9, closed), Meter(), 2, workers=3):
                seen.append(item)
        assert seen == list(range(9)) and closed == [True] and threading.active_count() == before

    def test_it_stops_early(self) -> None:
        closed: list[bool] = []
        before = threading.active_count()
        items = shared_stage("draw", lambda item: lambda: item, count_to(10**9, closed), Meter(), 2, workers=3)
        assert next(items) == 0
        items.close()
        assert closed == [True] and threading.active_count() == before
