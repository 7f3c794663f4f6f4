"""List scheduling, by hand and by properties."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnpo.planning.schedule import Job, ranks, schedule

CHAIN = [Job(1, 1), Job(2, 1, after=(0,)), Job(4, 1, after=(1,)), Job(3, 1, after=(0,))]


def test_one_gpu_takes_the_sum() -> None:
    assert max(end for _, end in schedule(CHAIN, gpus=1)) == 1 + 2 + 4 + 3


def test_many_gpus_take_the_critical_path() -> None:
    assert max(end for _, end in schedule(CHAIN, gpus=100)) == 1 + 2 + 4
    assert ranks(CHAIN) == [7, 6, 4, 3]


def test_who_has_the_longest_chain_behind_goes_first() -> None:
    """Two GPUs: 0, then 1 and 3, then 2."""
    assert schedule(CHAIN, gpus=2) == [(0, 1), (1, 3), (3, 7), (1, 4)]


def test_a_training_on_all_gpus_is_not_overtaken() -> None:
    """The large job (rank 11) waits for one small job that runs; the other small one (rank 5) waits for the large."""
    jobs = [Job(6, 1), Job(1, 1), Job(10, 2, after=(1,)), Job(1, 0, after=(2,)), Job(5, 1, after=(1,))]
    assert schedule(jobs, gpus=2) == [(0, 6), (0, 1), (6, 16), (16, 17), (16, 21)]


def test_cores_bound_jobs_without_gpus() -> None:
    assert max(end for _, end in schedule([Job(5)] * 4, cpus=2)) == 10
    assert max(end for _, end in schedule([Job(5)] * 4)) == 5


def test_a_job_larger_than_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="8 GPUs"):
        schedule([Job(1, 8)], gpus=4)


@given(st.data())
def test_no_order_is_broken_nothing_is_overbooked_and_no_bound_is_beaten(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    jobs = [
        Job(
            data.draw(st.integers(0, 9)),
            data.draw(st.integers(0, 3)),
            data.draw(st.integers(1, 2)),
            tuple(data.draw(st.sets(st.integers(0, i - 1)))) if i else (),
        )
        for i in range(count)
    ]
    gpus, cpus = 3, 4
    slots = schedule(jobs, gpus, cpus)
    for job, (start, end) in zip(jobs, slots, strict=True):
        assert end == start + job.seconds
        assert all(slots[earlier][1] <= start for earlier in job.after)
    for moment in {start for start, _ in slots}:
        held = [job for job, (start, end) in zip(jobs, slots, strict=True) if start <= moment < end]
        assert sum(job.gpus for job in held) <= gpus and sum(job.cpus for job in held) <= cpus
    wall = max(end for _, end in slots)
    bound = max(max(ranks(jobs)), math.ceil(sum(job.seconds * job.gpus for job in jobs) / gpus))
    assert bound <= wall <= sum(job.seconds for job in jobs)
