"""Several workers of one training stage under Ray Train: each executes the step, and the first reports and writes.

Ray Train places the workers, joins them in a torch process group, and starts all of them anew when one is lost; the
step then goes on from its own last checkpoint. One worker alone is a plain actor (`cluster.py`): it starts faster.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from tasks.errors import Stopped, UserError
from tasks.parameters import Parameters
from tasks.runtime import place as places
from tasks.runtime import worker
from tasks.runtime.place import Files, Place

_BACK_WITHIN_S = 180
_MAX_LOST = 3  # a worker that is lost more often has a reason that starting again does not mend


class Mailbox:
    """Where the first worker leaves what the stage wants to know."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._result: dict[str, Any] | None = None
        self._error: Exception | None = None
        self._is_stopping = False
        self._groups: dict[str, dict[int, str]] = {}
        self._placement = ""

    def join(self, group: str, rank: int, node: str, placement: str) -> None:
        """Worker `rank` of `group` starts on `node`; placement: of their placement group, its id in hexadecimal."""
        self._groups.setdefault(group, {})[rank] = node
        self._placement = placement

    def groups(self) -> list[list[str]]:
        """The nodes of the workers by rank, for every time that they were started."""
        return [[nodes[rank] for rank in sorted(nodes)] for nodes in self._groups.values()]

    def report(self, events: list[dict[str, Any]]) -> bool:
        """Returns whether the step is to stop."""
        self._events += events
        return self._is_stopping

    def stop(self) -> None:
        self._is_stopping = True

    def fail(self, error: Exception) -> None:
        """What the step ended with, where starting the workers again would not help."""
        self._error = self._error or error

    def finish(self, result: dict[str, Any]) -> None:
        self._result = result

    def take(self) -> tuple[list[dict[str, Any]], str]:
        """(What was reported since the last time, the placement group that the workers were in last.)"""
        taken, self._events = self._events, []
        return taken, self._placement

    def result(self) -> tuple[dict[str, Any] | None, Exception | None]:
        return self._result, self._error


def _loop(config: dict[str, Any]) -> None:
    """What Ray Train runs in each worker."""
    import ray
    import ray.train
    import torch.distributed as dist

    if ray.get(config["mailbox"].result.remote())[1] is not None:
        return  # started again because one has failed for good
    place, files = config["place"], config["files"]
    places.enter(place)
    worker.note_files(place.root)
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    node_rank = context.get_local_rank() if place.store else None
    mailbox = config["mailbox"]
    pending: list[dict[str, Any]] = []
    sent_at = time.monotonic()
    answer: Any = None
    is_stopping = False

    def report(step: int, n_steps: int, values: Any) -> None:
        nonlocal sent_at, answer
        if rank:
            return
        pending.append({"step": step, "n_steps": n_steps, "time": time.time(), "values": dict(values)})
        if time.monotonic() - sent_at > 0.5 or step == n_steps:
            answer = mailbox.report.remote(pending[:])
            pending.clear()
            sent_at = time.monotonic()

    def asked_to_stop() -> bool:
        nonlocal answer, is_stopping
        if answer is not None and ray.wait([answer], timeout=0)[0]:
            is_stopping, answer = ray.get(answer), None
        return is_stopping

    try:
        places.fetch(place, files)
        with places.saving(place, files, is_first_here=not node_rank, is_first=rank == 0) as folder:
            group = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"  # another one after every start
            placement = ray.util.get_current_placement_group()
            held = "" if placement is None else placement.id.hex()
            ray.get(mailbox.join.remote(group, rank, ray.util.get_node_ip_address(), held))
            dist.barrier()  # nobody looks for checkpoints before they are there
            result = worker.execute(
                place.root,
                config["step"],
                config["params"],
                folder,
                report=report,
                rank=rank,
                size=size,
                node_rank=node_rank,
                asked_to_stop=asked_to_stop,
            )
        if not rank:
            result["outputs"] = places.leave(place, files.outs)
    except Exception as error:
        if _comes_of_a_lost_worker(error):
            raise
        # Starting all of them again would end the same way.
        ray.get(mailbox.fail.remote(error if isinstance(error, UserError | Stopped | OSError) else _in_words(error)))
        dist.destroy_process_group()  # the others wait for this one
        return
    if not rank:
        ray.get(mailbox.report.remote(pending))
        ray.get(mailbox.finish.remote(result))


def _in_words(error: Exception) -> RuntimeError:
    """The error without what only its own process could make again from bytes."""
    return RuntimeError("".join(traceback.format_exception(error)))


def _comes_of_a_lost_worker(error: Exception) -> bool:
    """Whether an exchange between workers failed: the torch process group of a lost one breaks for all."""
    import ray
    import torch.distributed as dist

    if isinstance(error, UserError | Stopped):
        return False
    told = str(error).lower()
    is_exchange = any(word in told for word in ("gloo", "nccl", "connection closed by peer", "connection reset"))
    return isinstance(error, dist.DistError | ray.exceptions.RayError) or is_exchange


def run(
    place: Place,
    step: str,
    params: Parameters,
    files: Files,
    *,
    storage: str,
    on_event: Callable[[dict[str, Any]], None],
    stopping: threading.Event,
    stop_within_s: float,
    on_placement: Callable[[str], None] = lambda placement: None,
) -> dict[str, Any]:
    """Execute `step` in `params.workers` processes; returns the first one's result.

    Where `runtime.min_workers` allows it, training goes on with those that are left when nodes are lost; "workers" of
    the result says on which nodes they were, each time that they were started. `on_placement` is told, before the
    events are, which placement group (its id) holds the workers' resources. Raises what the step raised,
    `ray.train.WorkerGroupError` when workers were lost too often, or `UserError` where a lost node does not come back.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    box_class: Any = ray.remote(Mailbox)
    mailbox = box_class.options(num_cpus=0, scheduling_strategy=here).remote()  # a node that is lost is not the stage's
    uses_gpu = params.device == "cuda"
    trainer = TorchTrainer(
        _loop,
        train_loop_config={
            "place": place,
            "files": files,
            "step": step,
            "params": params,
            "mailbox": mailbox,
        },
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if uses_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=_how_many(params), use_gpu=uses_gpu, resources_per_worker={"CPU": params.threads}
        ),
        run_config=RunConfig(name=step, storage_path=storage, failure_config=FailureConfig(max_failures=_MAX_LOST)),
    )
    failed: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # noqa: BLE001 raised again below, in the caller's thread
            failed.append(error)

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    asked_at: float | None = None
    room = _Room(params)
    while thread.is_alive():
        thread.join(0.5)
        room.check()
        if stopping.is_set() and asked_at is None:
            asked_at = time.monotonic()
            mailbox.stop.remote()
        if asked_at is not None and time.monotonic() - asked_at > stop_within_s:
            raise Stopped("stopped in the middle; what was saved before is kept")
        events, placement = ray.get(mailbox.take.remote())
        on_placement(placement)
        for event in events:
            on_event(event)
    if failed:
        raise failed[0]
    result, error = ray.get(mailbox.result.remote())
    if error is not None:
        raise error
    return {**result, "workers": ray.get(mailbox.groups.remote())}


def _how_many(params: Parameters) -> Any:
    """Of Ray Train's workers: so many, or (fewest, most)."""
    fewest = params.runtime.min_workers or params.workers
    return params.workers if fewest >= params.workers else (fewest, params.workers)


class _Room:
    """Whether the cluster has what the workers need; a node that was lost has some minutes to come back."""

    def __init__(self, params: Parameters) -> None:
        self._fewest = params.runtime.min_workers or params.workers
        self._needed = self._fewest * params.threads
        self._is_short_since: float | None = None

    def check(self) -> None:
        import ray

        there = ray.cluster_resources().get("CPU", 0.0)
        if there >= self._needed:
            self._is_short_since = None
            return
        self._is_short_since = self._is_short_since or time.monotonic()
        if time.monotonic() - self._is_short_since > _BACK_WITHIN_S:
            raise UserError(
                f"a node was lost and is not back after {_BACK_WITHIN_S} s: {self._fewest} worker(s) need "
                f"{self._needed} CPUs, and Ray has {there:g}. `axon run` goes on from the last checkpoint when it is "
                "back; runtime.min_workers in params.yaml lets training go on with fewer, and other bytes come of it.",
                exit_code=1,
            )
