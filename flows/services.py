"""The engines of a run beside Prefect, started or found: Ray, and the MLflow store behind a sender."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flows.prefect_server import SERVER_NICENESS
from tasks.parameters import Parameters
from tasks.runtime import cluster
from tasks.runtime.checkout import Checkout
from tasks.runtime.head import Head
from tasks.tracking.mlflow_store import Sender, StoreAway


@contextmanager
def ray_head(checkout: Checkout, params: Parameters, *, n_cpus: int | None = None) -> Iterator[Callable[[], None]]:
    """An embedded Ray (of `n_cpus`, or as many as one stage needs), or the cluster of `RAY_ADDRESS`; stages find it by
    the environment. Gives a function that waits until it is ready, also when it has died meanwhile and is started
    again."""
    if os.environ.get("RAY_ADDRESS"):
        os.environ[cluster.ADDRESS] = cluster.start(params)
        try:
            yield lambda: None
        finally:
            del os.environ[cluster.ADDRESS]
            cluster.shut_down()
        return
    ray = Head(checkout, n_cpus or cluster.n_cpus_needed(params))
    try:
        yield ray.wait_until_ready
    finally:
        if "ray" in sys.modules:  # a gate connects to it from this process, which Ray would end with its own
            cluster.shut_down()
        ray.stop()


@contextmanager
def mlflow_sender(checkout: Checkout, *, every_s: float = 10.0) -> Iterator[Sender]:
    """Deliver journals to MLflow in a thread while the run goes on, and what is left when it ends."""
    sender = Sender(checkout)
    stop = threading.Event()

    def deliver() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), SERVER_NICENESS)
        while not stop.wait(every_s):
            try:
                sender.deliver()
            except StoreAway as error:
                # The journals keep what was not told; training must not stop for MLflow.
                logging.getLogger(__name__).warning("MLflow was not reached, trying again: %s", error)

    thread = threading.Thread(target=deliver, name="mlflow-sender", daemon=True)
    thread.start()
    try:
        yield sender
    finally:
        stop.set()
        thread.join()
        try:
            sender.deliver()
        except StoreAway as error:
            print(f"{error}. What it was not told is kept, and told by the next run.", file=sys.stderr)
