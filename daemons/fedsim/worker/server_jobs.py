"""What a server's workers do: make the initial model, combine updates, test a model, save a checkpoint."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedsim.array_layout import Layout
from fedsim.data import arrays_to_examples, load_dataset
from fedsim.errors import BadInput
from fedsim.initial import InitialFile
from fedsim.learning.aggregate import (
    SharedStatistics,
    aggregate,
    downlink_layout,
    further_arrays,
    initial_state,
    model_digest,
    round_context,
    uplink_layout,
    weights_of,
)
from fedsim.learning.common_scale import apply_scale, scale_of
from fedsim.learning.conform import conform
from fedsim.learning.contributions import measure_contributions
from fedsim.learning.examples import Examples, FloatArray
from fedsim.learning.initial_arrays import WantedArrays, fill_from_file
from fedsim.learning.objectives import make_objective
from fedsim.learning.screenings import Screened, make_screening, screen
from fedsim.learning.strategies import Strategy, make_strategy
from fedsim.learning.transforms import make_pipeline
from fedsim.spool.durable import FOLDER_MODE, remove_tree, write_json
from fedsim.spool.layout import BROADCAST_FILE, MODEL_FILE, TENSORS_FILE
from fedsim.spool.npy import (
    FLOAT32,
    TARGET_DIMENSIONS,
    TARGETS,
    check_digest,
    hash_file,
    hash_vector,
    open_array,
    open_vector,
    write_vector,
)
from fedsim.spool.updates import open_arrays
from fedsim.update import PARAMETERS, Update
from fedsim.worker.jobs import (
    Aggregate,
    CheckpointSaved,
    Evaluate,
    MakeInitialModel,
    ModelMade,
    Reply,
    SaveCheckpoint,
    ServerJob,
    Tested,
    TestSetFiles,
)

if TYPE_CHECKING:
    from fedsim.learning.networks import TaskNetwork


def state_file(name: str) -> str:
    """The path of a strategy's state vector in a round's folder."""
    return f"state-{name}.npy"


class ServerJobs:
    """One task's aggregations or evaluations; test set and model are kept between jobs."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._testset: tuple[TestSetFiles, Examples] | None = None
        self._network: TaskNetwork | None = None

    def do(self, job: ServerJob) -> Reply:
        """Do one job; raises `BadInput` where what was given cannot be used."""
        match job:
            case MakeInitialModel():
                return self._make_initial_model(job)
            case Aggregate():
                return self._aggregate(job)
            case Evaluate():
                return self._evaluate(job)
            case SaveCheckpoint():
                return self._save_checkpoint(job)

    def _make_initial_model(self, job: MakeInitialModel) -> Reply:
        from fedsim.learning.fixed_arrays import check_fixed, frozen_digest, wanted_by  # noqa: PLC0415 - imports torch
        from fedsim.learning.networks import check_size, initial_vector, task_network, task_roles  # noqa: PLC0415

        started = time.monotonic()
        settings = job.settings
        check_size(job.model_spec, job.max_parameters, "server.yml (limits.max_parameters)")
        strategy = make_strategy(settings)
        spec, roles = job.model_spec, task_roles(job.model_spec, settings, strategy)
        vector = initial_vector(spec, settings.seed_of_model, objective=make_objective(settings), roles=roles)
        if job.initial is not None:
            _start_from(job.initial, vector, wanted_by(roles))
        frozen = ""
        if roles.fixed:
            network = task_network(spec, settings, strategy)
            frozen = frozen_digest(network)
            if job.initial is not None:
                check_fixed(network, job.initial.path)
        _empty(job.out)
        files = {MODEL_FILE: write_vector(job.out / MODEL_FILE, vector)}
        files |= _write_tensors(job.out, roles.shared_statistics.count, frozen)
        states = initial_state(strategy, len(vector))
        for name, state in states.items():
            files[state_file(name)] = write_vector(job.out / state_file(name), state)
        return ModelMade(
            round=0,
            digest=model_digest(vector),
            files={**files, **_write_broadcast(strategy, job.out, vector, states)},
            finite=True,
            seconds=time.monotonic() - started,
        )

    def _aggregate(self, job: Aggregate) -> Reply:
        started = time.monotonic()
        strategy = make_strategy(job.settings)
        for name in (MODEL_FILE, TENSORS_FILE, *map(state_file, strategy.server_state)):
            if name in job.digests:
                check_digest(job.base / name, job.digests[name])
        base = open_vector(job.base / MODEL_FILE)
        pipeline = make_pipeline(job.settings, strategy)
        layout = pipeline.layout(uplink_layout(strategy, base.size))
        updates = [
            pipeline.on_server(_open(update, path, layout), base)
            for update, path in zip(job.updates, job.files, strict=True)
        ]
        screened: tuple[Screened, ...] = ()
        if (screening := make_screening(job.settings)) is not None:
            screened, updates = screen(screening, strategy, base, updates)
        count, frozen = _read_tensors(job.base)
        for update in updates:
            if update.frozen_digest != frozen:
                raise BadInput(
                    f"{update.node or 'a node'} trained with other frozen tensors than the server: "
                    "install the same version of the model's package and the same files on every host, and submit the "
                    "task again"
                )
        _empty(job.out)
        out = _new_vector(job.out / MODEL_FILE, base.size)
        state_out = {name: _new_vector(job.out / state_file(name), base.size) for name in strategy.server_state}
        finite = aggregate(
            strategy,
            base,
            [update.arrays[PARAMETERS] for update in updates],
            weights_of(strategy, job.round, updates),
            {name: open_vector(job.base / state_file(name)) for name in strategy.server_state},
            out,
            state_out,
            arrays=further_arrays(strategy, updates),
            context=round_context(job.settings, job.round, updates, strategy),
            statistics=SharedStatistics(count, job.settings.statistics == "frozen"),
        )
        contributions = measure_contributions(strategy, base, updates, drift=job.settings.tests_round(job.round))
        _sync(out, job.out / MODEL_FILE)  # the names of the files become durable when the round is committed
        model_file, digest = hash_vector(job.out / MODEL_FILE)
        files = {MODEL_FILE: model_file, **_write_broadcast(strategy, job.out, out, state_out)}
        files |= _write_tensors(job.out, count, frozen)
        for name, array in state_out.items():
            _sync(array, job.out / state_file(name))
            files[state_file(name)] = hash_file(job.out / state_file(name))
        return ModelMade(
            round=job.round,
            digest=digest,
            files=files,
            finite=finite,
            seconds=time.monotonic() - started,
            screening=screened,
            contributions=contributions,
        )

    def _evaluate(self, job: Evaluate) -> Reply:
        from fedsim.learning.engine import make_deterministic  # noqa: PLC0415 - imports torch, which aggregating never needs
        from fedsim.learning.evaluate import evaluate  # noqa: PLC0415
        from fedsim.learning.networks import point_to, task_network  # noqa: PLC0415

        started = time.monotonic()
        make_deterministic(self._threads)
        if job.digest is not None:
            check_digest(job.model, job.digest)
        if self._network is None:
            self._network = task_network(job.model_spec, job.settings, make_strategy(job.settings))
        point_to(self._network.model, open_vector(job.model), self._network.roles)
        test = self._load_testset(job.testset, job.model_spec.num_classes)
        evaluation = evaluate(self._network.model, test, objective=make_objective(job.settings))
        return Tested(
            round=job.round,
            metrics=evaluation.metrics,
            class_metrics=evaluation.class_metrics,
            seconds=time.monotonic() - started,
        )

    def _load_testset(self, files: TestSetFiles, num_classes: int) -> Examples:
        if self._testset is not None and self._testset[0] == files:
            return self._testset[1]
        if files.dataset is not None and files.folder is not None:
            dataset = load_dataset(files.dataset, files.folder)
            if files.data_schema is not None:
                dataset = conform(dataset, files.data_schema, num_classes)
            test = dataset.test
            if test is None:
                raise BadInput(f"the server's data set {files.dataset.name} has no test set")
        elif files.data is not None and files.labels is not None:
            for path, digest in zip((files.data, files.labels), files.digests or (), strict=False):
                check_digest(path, digest)
            features = open_array(files.data, FLOAT32, range(2, 5))
            labels = open_array(files.labels, TARGETS, TARGET_DIMENSIONS)
            kind = "classes" if files.data_schema is None else files.data_schema.targets
            test = arrays_to_examples(features, labels, num_classes, f"the test set {files.data.name}", kind)
        else:
            raise BadInput("no test set was named")
        if files.data_schema is not None:
            test = apply_scale(test, scale_of(files.data_schema))
        self._testset = (files, test)
        return test

    def _save_checkpoint(self, job: SaveCheckpoint) -> Reply:
        from fedsim.worker.checkpoint import save_checkpoint  # noqa: PLC0415

        if job.digest is not None:
            check_digest(job.model, job.digest)
        digest, size = save_checkpoint(job)
        return CheckpointSaved(round=job.round, digest=digest, size=size)


def _start_from(initial: InitialFile, vector: FloatArray, wanted: WantedArrays) -> None:
    """Let the first model, float32 [P], be that of a file, which must be the one that the task was submitted with."""
    try:
        if hash_file(initial.path) != initial.digest:
            raise BadInput(f"{initial.source} has changed since the task was submitted: submit the task again")
        fill_from_file(vector, wanted, initial.path)
    except FileNotFoundError as error:
        raise BadInput(f"{initial.source}, from which the task starts, is no longer on the server") from error


def _write_tensors(folder: Path, statistics: int, frozen: str) -> dict[str, str]:
    """Record what `_read_tensors` returns, unless there is nothing to record; returns the file's digest."""
    if not statistics and not frozen:
        return {}
    write_json(folder / TENSORS_FILE, {"statistics": statistics, "frozen": frozen})
    return {TENSORS_FILE: hash_file(folder / TENSORS_FILE)}


def _read_tensors(folder: Path) -> tuple[int, str]:
    """How many of the last numbers of a round's model are statistics, and the digest of its frozen tensors."""
    try:
        content = json.loads((folder / TENSORS_FILE).read_bytes())
    except FileNotFoundError:
        return 0, ""
    return int(content["statistics"]), str(content["frozen"])


def _empty(folder: Path) -> None:
    """Make an empty folder in place of what a worker that died may have left there."""
    remove_tree(folder)
    folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)


def _open(update: Update, path: Path, layout: Layout) -> Update:
    """Map the arrays of an update that the roster names; its file must be the very one that it names."""
    check_digest(path, update.digest)
    return update.with_arrays(open_arrays(path, layout))


def _write_broadcast(
    strategy: Strategy, folder: Path, vector: FloatArray, state: Mapping[str, FloatArray]
) -> dict[str, str]:
    """Write what clients receive besides the model into one file with it, if there is anything; returns its digest."""
    if not strategy.downlink_arrays:
        return {}
    layout = downlink_layout(strategy, len(vector))
    file = _new_vector(folder / BROADCAST_FILE, layout.size)
    for name, array in layout.views(file).items():
        array[:] = vector if name == PARAMETERS else state[name]
    _sync(file, folder / BROADCAST_FILE)
    return {BROADCAST_FILE: hash_file(folder / BROADCAST_FILE)}


def _new_vector(path: Path, size: int) -> np.memmap[tuple[int], np.dtype[np.float32]]:
    """A new flat float32 `.npy` of `size` elements, mapped for writing."""
    vector = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype("<f4"), shape=(size,))
    # Writing through a map to a full disk would kill the process: reserve the space first, which raises an error.
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, vector.offset + vector.nbytes)
        except OSError as error:
            error.filename = str(path)  # which a call with a descriptor does not name
            raise
    return vector


def _sync(array: np.memmap[tuple[int], np.dtype[np.float32]], path: Path) -> None:
    """Bring what was written through the map onto the disk."""
    array.flush()
    with path.open("rb") as file:
        os.fsync(file.fileno())
