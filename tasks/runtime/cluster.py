"""Start or find Ray, and the actors of one stage.

Default: an embedded Ray of this run, every listener on loopback, token authentication on. `RAY_ADDRESS` names a
cluster instead.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from tasks.errors import Stopped, UserError
from tasks.parameters import Parameters
from tasks.runtime import training_group, worker
from tasks.runtime.checkout import Checkout

ADDRESS = "AXON_RAY_ADDRESS"
# Modules a pool worker imports ahead of its first item, by stage; stages that are not here do not fan out.
POOLS: dict[str, tuple[str, ...]] = {
    "data": (),
    "tokenizer": (),
    "preferences": ("torch",),
    "evaluate": ("torch",),
    "gate": ("torch",),
}
# A step that is asked to stop has so long for its checkpoint; the run as a whole leaves within 10 s.
STOP_WITHIN_S = 6.0
# Stages that train with `workers` processes, each on its part of every batch.
GROUPS = ("pretrain", "sft", "sft_continued", "reward_model", "dpo")


def _ray() -> Any:
    import ray
    import ray._private.ray_constants as constants

    # With clusters disabled Ray binds every listener to loopback; `_node_ip_address` alone does not (Ray 2.60).
    if not os.environ.get("RAY_ADDRESS"):
        constants.ENABLE_RAY_CLUSTER = False
    return ray


def n_cpus_needed(params: Parameters) -> int:
    return max(os.cpu_count() or 1, params.threads * params.workers, params.runtime.sampling_workers)


def start(params: Parameters) -> str:
    """Start the embedded Ray, or connect to `RAY_ADDRESS`; returns the address for the stages."""
    ray = _ray()
    cluster = os.environ.get("RAY_ADDRESS")
    if cluster:
        ray.init(address=cluster, log_to_driver=False, logging_level="ERROR")
        return cluster
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray.init(
        address="local",  # and not whatever cluster was started last on this machine, which Ray takes by itself
        num_cpus=n_cpus_needed(params),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=256 * 2**20,
        _node_ip_address="127.0.0.1",
    )
    return str(ray.get_runtime_context().gcs_address)


def connect(params: Parameters) -> None:
    """Connect a stage to the run's Ray, or start one for this stage alone (plain `dvc repro`)."""
    if _ray().is_initialized():
        return
    address = os.environ.get(ADDRESS)
    if address:
        _ray().init(address=address, log_to_driver=False, logging_level="ERROR")
    else:
        start(params)


def shut_down() -> None:
    _ray().shutdown()


class WorkerLost(Exception):
    """A Ray process of the stage died; running the stage again goes on from its last checkpoint."""


@dataclass
class StageWorkers:
    """The actors of one stage, owned by the stage process and gone with it."""

    checkout: Checkout
    step: str
    params: Parameters
    stopping: threading.Event = field(default_factory=threading.Event)
    _actor: Any = None
    _pool: list[Any] = field(default_factory=list)

    @property
    def is_group(self) -> bool:
        """Whether the step trains in several processes."""
        return self.params.workers > 1 and self.step in GROUPS

    def start(self) -> None:
        """Create the actor and let it import; returns at once."""
        ray = _ray()
        n_cpus = 0 if self.step in POOLS else self.params.threads
        n_gpus = 1 if self.params.device == "cuda" and self.step not in POOLS else 0
        size = self.params.workers if self.is_group else 1
        there = ray.cluster_resources()
        if n_gpus * size > there.get("GPU", 0):
            raise UserError(
                f"params.yaml: device='cuda' with {size} worker(s), but Ray sees {there.get('GPU', 0):g} GPU(s). Set "
                "device to cpu, workers to fewer, or RAY_ADDRESS to a cluster with GPUs; `axon doctor` shows what this "
                "machine has."
            )
        if n_cpus * size > there.get("CPU", 0):
            raise UserError(
                f"params.yaml: workers={size} of threads={n_cpus} need {n_cpus * size} CPUs, but Ray has "
                f"{there.get('CPU', 0):g}. Set fewer, or RAY_ADDRESS to a larger cluster."
            )
        if self.is_group:
            return
        step_class: Any = ray.remote(num_cpus=n_cpus, num_gpus=n_gpus, max_concurrency=2)(worker.StepWorker)
        self._actor = step_class.remote(str(self.checkout.root), self.step)
        self._actor.warm.remote()

    def _start_pool(self) -> None:
        """Create the processes that the step fans out to, if it does.

        Later than the actor: on few cores their imports would hold up those of the stage, and the step first reads its
        inputs.
        """
        if self.step in POOLS:
            pool_class: Any = _ray().remote(num_cpus=1)(worker.PoolWorker)
            for _ in range(self.params.runtime.sampling_workers):
                self._pool.append(pool_class.remote(str(self.checkout.root), list(POOLS[self.step])))

    def run(self, checkpoints: str, on_event: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Execute the step, passing on what it reports. Raises what the step raised, or `WorkerLost`.

        When `stopping` is set the step is asked to stop; one that does not in `STOP_WITHIN_S` is left.
        """
        ray = _ray()
        if self.is_group:
            return self._run_group(checkpoints, on_event)
        self._start_pool()
        result = self._actor.run.remote(self.params, checkpoints, self._pool)
        asked_at: float | None = None
        try:
            while True:
                done, _ = ray.wait([result], timeout=0.5)
                with suppress(ray.exceptions.GetTimeoutError):  # it may be in one long call
                    for event in ray.get(self._actor.events.remote(), timeout=1.0):
                        on_event(event)
                if done:
                    returned: dict[str, Any] = ray.get(result)
                    return returned
                if self.stopping.is_set() and asked_at is None:
                    asked_at = time.monotonic()
                    self._actor.stop.remote()
                if asked_at is not None and time.monotonic() - asked_at > STOP_WITHIN_S:
                    raise Stopped("stopped in the middle; what was saved before is kept")
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, ray.exceptions.RayActorError):
                raise WorkerLost(str(cause).splitlines()[0]) from None
            raise cause if isinstance(cause, Exception) else error from error
        except ray.exceptions.RayActorError as error:
            raise WorkerLost(str(error).splitlines()[0]) from None

    def _run_group(self, checkpoints: str, on_event: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        import ray.train

        try:
            return training_group.run(
                str(self.checkout.root),
                self.step,
                self.params,
                checkpoints,
                storage=str(self.checkout.state / "ray-train"),
                on_event=on_event,
                stopping=self.stopping,
                stop_within_s=STOP_WITHIN_S,
            )
        except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
            raise WorkerLost(" ".join(str(error).split())[:300]) from None

    def stop(self) -> None:
        ray = _ray()
        for actor in (self._actor, *self._pool):
            if actor is not None:
                ray.kill(actor)


@contextmanager
def stage_workers(checkout: Checkout, step: str, params: Parameters) -> Iterator[StageWorkers]:
    """Connect to Ray and hold the actors of one stage."""
    connect(params)
    workers = StageWorkers(checkout, step, params)
    try:
        workers.start()
        yield workers
    finally:
        workers.stop()
        if ADDRESS not in os.environ:  # the Ray of a run goes on; leaving it takes an import and nothing else
            shut_down()
