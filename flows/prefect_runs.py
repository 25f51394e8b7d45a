"""The flow runs of a checkout at a Prefect server: marked as its own, and closed where their process was killed.

A process that is killed cannot tell Prefect so, and its runs would be shown as running for ever.
"""

from __future__ import annotations

import hashlib
import os
import socket
from typing import Any

from flows.prefect_server import answers, is_away
from tasks.runtime.checkout import Checkout
from tasks.tracking.journal import PIPELINE_ID

BY_DVC = "dvc-repro"  # a stage that no run of ours started, and that may be under way
_UNENDED = ("RUNNING", "PENDING", "CANCELLING", "PAUSED")
_WHY = "its process was killed; the next run of this checkout found it"


def tag_of(checkout: Checkout) -> str:
    """What the runs of a checkout have in common at a server that others use too."""
    return "checkout-" + hashlib.sha256(f"{socket.gethostname()}\0{checkout.root}".encode()).hexdigest()[:12]


def of_pipeline() -> str:
    """What the stages of one run have in common: the beginning of its id."""
    return os.environ.get(PIPELINE_ID, "")[:8] or BY_DVC


def close_dead(checkout: Checkout) -> int:
    """Tell Prefect that what this checkout's earlier runs left open has crashed; returns how many flow runs those were.

    Call it while holding the run lock and before a flow begins: whatever is open then has no process. Where the server
    does not answer, nothing is done.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter

    wanted = {"tags": {"all_": [tag_of(checkout)]}, "state": {"type": {"any_": list(_UNENDED)}}}
    n_closed = 0
    if not answers(f"{os.environ['PREFECT_API_URL']}/health"):
        return 0  # its client would try for a minute
    try:
        with get_client(sync_client=True) as client:
            for run in client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(wanted)):
                if BY_DVC not in run.tags:
                    _close(client, run)
                    n_closed += 1
    except Exception as error:
        if not is_away(error):
            raise
    return n_closed


def _close(client: Any, run: Any) -> None:
    from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
    from prefect.states import Crashed

    tasks = client.read_task_runs(
        flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [run.id]}}),
        task_run_filter=TaskRunFilter.model_validate({"state": {"type": {"any_": list(_UNENDED)}}}),
    )
    for task in tasks:
        client.set_task_run_state(task.id, Crashed(message=_WHY), force=True)
    client.set_flow_run_state(run.id, Crashed(message=_WHY), force=True)
