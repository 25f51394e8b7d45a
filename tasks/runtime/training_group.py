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
from tasks.runtime import worker

_MAX_LOST = 3  # a worker that is lost more often has a reason that starting again does not mend


class Mailbox:
    """Where the first worker leaves what the stage wants to know."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._result: dict[str, Any] | None = None
        self._error: Exception | None = None
        self._is_stopping = False

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

    def take(self) -> list[dict[str, Any]]:
        taken, self._events = self._events, []
        return taken

    def result(self) -> tuple[dict[str, Any] | None, Exception | None]:
        return self._result, self._error


def _loop(config: dict[str, Any]) -> None:
    """What Ray Train runs in each worker."""
    import ray
    import ray.train
    import torch.distributed as dist

    if ray.get(config["mailbox"].result.remote())[1] is not None:
        return  # started again because one has failed for good
    worker.enter(config["root"])
    worker.note_files(config["root"])
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
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
        result = worker.execute(
            config["root"],
            config["step"],
            config["params"],
            config["checkpoints"],
            report=report,
            rank=rank,
            size=size,
            asked_to_stop=asked_to_stop,
        )
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
    root: str,
    step: str,
    params: Parameters,
    checkpoints: str,
    *,
    storage: str,
    on_event: Callable[[dict[str, Any]], None],
    stopping: threading.Event,
    stop_within_s: float,
) -> dict[str, Any]:
    """Execute `step` in `params.workers` processes; returns the first one's result.

    Raises what the step raised, or `ray.train.WorkerGroupError` when workers were lost too often.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    mailbox: Any = ray.remote(num_cpus=0)(Mailbox).remote()
    uses_gpu = params.device == "cuda"
    trainer = TorchTrainer(
        _loop,
        train_loop_config={
            "root": root,
            "step": step,
            "params": params,
            "checkpoints": checkpoints,
            "mailbox": mailbox,
        },
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if uses_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=params.workers, use_gpu=uses_gpu, resources_per_worker={"CPU": params.threads}
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
    while thread.is_alive():
        thread.join(0.5)
        if stopping.is_set() and asked_at is None:
            asked_at = time.monotonic()
            mailbox.stop.remote()
        if asked_at is not None and time.monotonic() - asked_at > stop_within_s:
            raise Stopped("stopped in the middle; what was saved before is kept")
        for event in ray.get(mailbox.take.remote()):
            on_event(event)
    if failed:
        raise failed[0]
    result, error = ray.get(mailbox.result.remote())
    if error is not None:
        raise error
    returned: dict[str, Any] = result
    return returned
