"""The job of measuring how this host trains quickest."""

from __future__ import annotations

import os
import signal
import time

import torch

from fedsim.errors import BadInput
from fedsim.learning.engine import make_deterministic
from fedsim.learning.measuring import manners, measure
from fedsim.learning.networks import count_parameters, task_roles
from fedsim.learning.strategies import make_strategy
from fedsim.memory import usable_processors
from fedsim.messages import SpeedInfo
from fedsim.pdeathsig import end_with_parent
from fedsim.worker.jobs import MeasureSpeed, SpeedMeasured


def measure_speed(job: MeasureSpeed) -> SpeedMeasured:
    """Measure in processes that this one forks; raises `BadInput` if the model may not or cannot be trained here."""
    make_deterministic(1)
    spec, started, parent = job.request.model_spec, time.monotonic(), os.getpid()

    def prepare(threads: int) -> None:
        end_with_parent(parent, signal.SIGKILL)  # so that a measurement that is given up leaves no process
        torch.set_num_threads(threads)

    roles = task_roles(spec, job.request.settings, make_strategy(job.request.settings))
    number = count_parameters(spec)
    if number is None:
        number = roles.flat_size
    if job.max_parameters is not None and number > job.max_parameters:
        raise BadInput(f"the model has {number:,} parameters, this institution allows {job.max_parameters:,}")
    found = measure(
        job.request,
        manners(job.engines, usable_processors(), job.threads, job.workers),
        num_parameters=roles.flat_size,
        personal=roles.kept_size,
        engine_options=job.engine_options,
        memory_bytes=job.memory_bytes,
        budget_seconds=job.budget_seconds,
        prepare=prepare,
        clock=time.monotonic,
    )
    speed = SpeedInfo(
        key=job.request.key,
        engine=found.manner.engine,
        threads=found.manner.threads,
        workers=found.manner.workers,
        chunk_clients=found.chunk_clients,
    )
    return SpeedMeasured(speed=speed, seconds=time.monotonic() - started)
