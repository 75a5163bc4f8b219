"""Where the threads of the native core run: each on a core of its own, where there are enough of them."""

from __future__ import annotations

import os

import pytest

from tests.model.network.builders import random_config, random_network
from tests.native.runners import native

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no places for threads")


def cores_of_started_threads(num_threads: int) -> list[set[int]]:
    network = random_network(random_config(2, layers=1))
    before = set(os.listdir("/proc/self/task"))
    runner = native(network, num_threads=num_threads)
    started = set(os.listdir("/proc/self/task")) - before
    try:
        return [os.sched_getaffinity(int(thread)) for thread in started]
    finally:
        runner.close()


def test_threads_share_no_core_if_there_is_one_for_each() -> None:
    cores = os.sched_getaffinity(0)
    if len(cores) == 1:
        pytest.skip("one core has no place for a second thread")
    places = cores_of_started_threads(len(cores))
    assert len(places) == len(cores) - 1
    assert all(len(place) == 1 for place in places)
    assert len(set.union(*places)) == len(places)
    assert set.union(*places) <= cores


def test_more_threads_than_cores_are_left_to_the_system() -> None:
    cores = os.sched_getaffinity(0)
    places = cores_of_started_threads(len(cores) + 1)
    assert len(places) == len(cores)
    assert all(place == cores for place in places)


def test_the_caller_keeps_all_of_its_cores() -> None:
    cores = os.sched_getaffinity(0)
    cores_of_started_threads(len(cores))
    assert os.sched_getaffinity(0) == cores
