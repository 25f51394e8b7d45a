"""What runs inside Ray: the actor that executes one step, and the pool that steps fan out to."""

from __future__ import annotations

import importlib
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import Stopped
from tasks.files import read_json, write_text
from tasks.runtime import place as places
from tasks.runtime.place import Files, Place

if TYPE_CHECKING:
    from tasks.parameters import Parameters

STEP_MODULES = "tasks.steps"
Report = Callable[[int, int, Mapping[str, float]], None]


def _resolve(function: str) -> Callable[[Any], Any]:
    module, _, name = function.partition(":")
    resolved: Callable[[Any], Any] = getattr(importlib.import_module(module), name)
    return resolved


class PoolWorker:
    """One process with one thread that applies named functions to JSON items."""

    def __init__(self, place: Place, files: Files, imports: Sequence[str]) -> None:
        places.enter(place)
        places.fetch(place, files)
        self._place = place
        note_files(place.root)
        for module in imports:
            importlib.import_module(module)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)

    def apply(self, function: str, item: str) -> str:
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        return json.dumps(_resolve(function)(json.loads(item)), allow_nan=False)

    def bring(self, digests: Mapping[str, str]) -> None:
        """Read from the store what the step has written meanwhile."""
        places.bring(self._place, digests)

    def used(self) -> list[str]:
        return used()


_opened: set[str] = set()


def note_files(root: str) -> None:
    """Note which files of the checkout Python opens from here on, for the test of `deps`."""
    prefix = root.rstrip("/") + "/"

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(prefix):
            _opened.add(arguments[0].removeprefix(prefix))

    sys.addaudithook(hook)


def used() -> list[str]:
    """The modules of this project that are loaded in this process, and the files of the checkout it has opened."""
    modules = [m for m in sys.modules if m.split(".")[0] in ("flows", "tasks", "axon_models")]
    return sorted({m.replace(".", "/") + ".py" for m in modules} | _opened)


class StepWorker:
    """The process that executes one step. `run` works in one thread; `events` answers in another."""

    def __init__(self, place: Place, step: str) -> None:
        places.enter(place)
        note_files(place.root)
        self._place = place
        self._step = step
        self._events: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def warm(self) -> None:
        """Import the step ahead of its call: torch takes seconds."""
        importlib.import_module(f"{STEP_MODULES}.{self._step}")

    def stop(self) -> None:
        """Ask the step to save what it has and to raise `Stopped`."""
        self._stop.set()

    def events(self) -> list[dict[str, Any]]:
        """What was reported since the last call."""
        with self._lock:
            taken, self._events = self._events, []
        return taken

    def _report(self, step: int, n_steps: int, values: Mapping[str, float]) -> None:
        event = {"step": step, "n_steps": n_steps, "time": time.time(), "values": dict(values)}
        with self._lock:
            self._events.append(event)

    def _share(self, path: str, pool: Sequence[Any]) -> None:
        import ray

        digests = places.leave(self._place, [path])
        ray.get([member.bring.remote(digests) for member in pool])

    def run(self, params: Parameters, files: Files, pool: list[Any]) -> dict[str, Any]:
        """Execute the step; returns the seconds of work, the files that it used, and the digests of what it left."""
        places.fetch(self._place, files)
        with places.saving(self._place, files) as folder:
            result = execute(
                self._place.root,
                self._step,
                params,
                folder,
                report=self._report,
                pool=pool,
                asked_to_stop=self._stop.is_set,
                share=lambda path: self._share(path, pool),
            )
        return {**result, "outputs": places.leave(self._place, files.outs)}


def execute(
    root: str,
    step: str,
    params: Parameters,
    folder: Path,
    *,
    report: Report,
    pool: Sequence[Any] = (),
    rank: int = 0,
    size: int = 1,
    node_rank: int | None = None,
    asked_to_stop: Callable[[], bool] = lambda: False,
    share: Callable[[str], None] = lambda _path: None,
) -> dict[str, Any]:
    """Execute `step` in this process, worker `rank` of `size`; returns the seconds of work and the files it used.

    folder: where checkpoints are; node_rank, share: see `StepContext`.
    """
    from tasks.steps.context import StepContext

    module = importlib.import_module(f"{STEP_MODULES}.{step}")
    folder.mkdir(parents=True, exist_ok=True)
    context = StepContext(
        params=params,
        root=Path(root),
        checkpoints=folder,
        checkpoint_every_s=params.runtime.checkpoint_every_s,
        report=report,
        fan_out=PoolFanOut(list(pool), folder, report, asked_to_stop),
        rank=rank,
        n_workers=size,
        node_rank=node_rank,
        asked_to_stop=asked_to_stop,
        share=share,
    )
    started = time.monotonic()
    module.run(context)
    work_s = time.monotonic() - started
    files = set(used())
    if pool:
        import ray

        files.update(*ray.get([member.used.remote() for member in pool]))
    return {"work_s": work_s, "used": sorted(files)}


class PoolFanOut:
    """Hand items to whichever worker is free; keep each result as soon as it is there; see `FanOut`."""

    def __init__(self, pool: list[Any], folder: Path, report: Report, asked_to_stop: Callable[[], bool]) -> None:
        self._asked_to_stop = asked_to_stop
        self._pool = pool
        self._folder = folder
        self._report = report

    def __call__(self, name: str, function: str, items: Sequence[Mapping[str, Any]]) -> list[Any]:
        import ray

        if not self._pool:
            raise RuntimeError("this stage fans out, but tasks/runtime/cluster.py has no pool for it")
        kept = [self._folder / name / f"{i:06d}.json" for i in range(len(items))]
        waiting = [i for i, path in enumerate(kept) if not path.is_file()]
        n_done = len(items) - len(waiting)
        waiting.reverse()
        idle = list(self._pool)
        busy: dict[Any, tuple[int, Any]] = {}
        self._report(n_done, len(items), {})
        while waiting or busy:
            while waiting and idle:
                index, worker = waiting.pop(), idle.pop()
                busy[worker.apply.remote(function, json.dumps(items[index]))] = (index, worker)
            done, _ = ray.wait(list(busy), num_returns=1, timeout=1.0)
            if self._asked_to_stop():
                raise Stopped(f"stopped behind {n_done} of {len(items)} results of {name}")
            if not done:
                continue
            index, worker = busy.pop(done[0])
            write_text(kept[index], ray.get(done[0]))
            idle.append(worker)
            n_done += 1
            self._report(n_done, len(items), {})
        return [read_json(path) for path in kept]
