"""List scheduling: when each job of a plan runs on so many GPUs and cores."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """Something that takes a while, holds GPUs and cores meanwhile, and waits for others."""

    seconds: float
    gpus: int = 0
    cpus: int = 1
    after: tuple[int, ...] = ()
    """Positions of the jobs it waits for; all of them before its own."""


def ranks(jobs: Sequence[Job]) -> list[float]:
    """Seconds from the start of each job to the end of the longest chain behind it."""
    behind = [0.0] * len(jobs)
    rank = [0.0] * len(jobs)
    for i in reversed(range(len(jobs))):
        rank[i] = jobs[i].seconds + behind[i]
        for earlier in jobs[i].after:
            behind[earlier] = max(behind[earlier], rank[i])
    return rank


def schedule(jobs: Sequence[Job], gpus: float = math.inf, cpus: float = math.inf) -> list[tuple[float, float]]:
    """(start, end) of each job in seconds: whenever something is free, the ready job with the longest chain behind it.

    What needs GPUs and does not fit waits until they are free, and nothing with a shorter chain overtakes it on GPUs: a
    training on all GPUs is not put off for ever by small jobs. Jobs without GPUs have a queue of their own.

    Raises:
        ValueError: a job asks for more than there is.
    """
    if large := next((j for j in jobs if j.gpus > gpus or j.cpus > cpus), None):
        raise ValueError(f"a job asks for {large.gpus} GPUs and {large.cpus} cores of {gpus} and {cpus}")
    rank = ranks(jobs)
    waits = [len(job.after) for job in jobs]
    followers: list[list[int]] = [[] for _ in jobs]
    for i, job in enumerate(jobs):
        for earlier in job.after:
            followers[earlier].append(i)
    queues: tuple[list[tuple[float, int]], list[tuple[float, int]]] = ([], [])

    def ready(i: int) -> None:
        heapq.heappush(queues[jobs[i].gpus > 0], (-rank[i], i))

    for i, count in enumerate(waits):
        if not count:
            ready(i)
    slots = [(0.0, 0.0)] * len(jobs)
    running: list[tuple[float, int]] = []
    now = 0.0
    while True:
        for queue in reversed(queues):
            while queue and jobs[queue[0][1]].gpus <= gpus and jobs[queue[0][1]].cpus <= cpus:
                _, i = heapq.heappop(queue)
                gpus, cpus = gpus - jobs[i].gpus, cpus - jobs[i].cpus
                slots[i] = now, now + jobs[i].seconds
                heapq.heappush(running, (slots[i][1], i))
        if not running:
            return slots
        now, ended = heapq.heappop(running)
        gpus, cpus = gpus + jobs[ended].gpus, cpus + jobs[ended].cpus
        for i in followers[ended]:
            waits[i] -= 1
            if not waits[i]:
                ready(i)
