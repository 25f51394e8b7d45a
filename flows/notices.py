"""Notices of failures, promotions and refusals: events of this checkout, and the Prefect automations that pass them on.

`axon worker` emits one event for each decision, whoever made it, and for each retraining that failed; what it has told
is noted, so that the next worker goes on from there. Where to tell it stands in a file of its own, for its address may
hold a secret: it is given in `AXON_NOTIFY_URL`, and neither printed nor kept anywhere else but in Prefect's block.
"""

from __future__ import annotations

import logging
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from flows import schedule
from tasks.errors import UserError
from tasks.files import read_json, write_json
from tasks.lineage.statement import Statement
from tasks.promotion import decisions
from tasks.registry import NAME
from tasks.runtime.checkout import Checkout

VARIABLE = "AXON_NOTIFY_URL"
EVENTS = {"failure": "axon.failure", "promotion": "axon.promotion", "refusal": "axon.refusal"}
_OF_ACTION = {
    decisions.PROMOTED: EVENTS["promotion"],
    decisions.KEPT: EVENTS["refusal"],
    decisions.ROLLED_BACK: "axon.rollback",  # for automations of one's own; whoever did it knows
}
_RESOURCE = f"axon.model.{NAME}"
_BLOCK = "axon-notices"
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


def _address(checkout: Checkout) -> Path:
    return schedule.folder(checkout) / "notify-url"


def service() -> str:
    """Whose address `AXON_NOTIFY_URL` holds, like Slack or E-Mail.

    Raises `UserError`, without the value, where it is missing or nothing that notices can be sent to.
    """
    from apprise import Apprise

    url = _given()
    logging.getLogger("apprise").disabled = True  # it would say what it cannot read
    plugin = Apprise.instantiate(url, suppress_exceptions=True) if url else None
    if plugin is not None:
        return str(plugin.service_name)
    what = "is not set" if not url else "holds no address that notices can be sent to"
    raise UserError(
        f"{VARIABLE} {what}; give one that Apprise knows: a webhook of Slack or Teams as you got it, "
        "mailtos://user:password@host for e-mail, json://host:port/path (jsons:// with TLS) for one of your own."
    )


def _given() -> str:
    return os.environ.get(VARIABLE, "").strip()


def keep_address(checkout: Checkout) -> None:
    """Keep the address of `AXON_NOTIFY_URL` for the worker, readable by this user alone."""
    path = _address(checkout)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(_given())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def forget_address(checkout: Checkout) -> None:
    _address(checkout).unlink(missing_ok=True)


async def apply(checkout: Checkout, client: Any) -> None:
    """Make block and automations what the schedule says; once, however often this is called."""
    path = _address(checkout)
    if not path.is_file():
        await _remove(client)
        return
    from prefect.blocks.notifications import SlackWebhook
    from pydantic import SecretStr

    # Of Prefect's blocks this one passes on whatever Apprise takes, not only addresses of Slack.
    block = await SlackWebhook(url=SecretStr(path.read_text())).asave(_BLOCK, overwrite=True)
    for kind in EVENTS:
        wanted = _automation(kind, block)
        found = await client.read_automations_by_name(wanted.name)
        for other in found[1:]:
            await client.delete_automation(other.id)
        if found:
            await client.update_automation(found[0].id, wanted)
        else:
            await client.create_automation(wanted)


def _automation(kind: str, block: UUID) -> Any:
    from prefect.events.actions import SendNotification
    from prefect.events.schemas.automations import AutomationCore, EventTrigger

    title, text = "{{ event.payload.title }}", "{{ event.payload.text }}"
    automation = AutomationCore(
        name=f"axon: notice of {kind}",
        description=f"Set by axon schedule --notify; removed with the schedule. Fires on {EVENTS[kind]}.",
        enabled=True,
        trigger=EventTrigger(expect={EVENTS[kind]}, match={"prefect.resource.id": _RESOURCE}, threshold=1),
        actions=[SendNotification(block_document_id=block, subject=title, body=text)],
    )
    # When it updates one, the client sends the fields that were given and no others: the server refuses a trigger
    # without all of them, and an owner.
    return AutomationCore.model_validate(automation.model_dump(exclude={"owner_resource"}))


async def _remove(client: Any) -> None:
    from prefect.exceptions import ObjectNotFound

    for kind in EVENTS:
        for found in await client.read_automations_by_name(f"axon: notice of {kind}"):
            await client.delete_automation(found.id)
    try:
        block = await client.read_block_document_by_name(_BLOCK, "slack-webhook")
    except ObjectNotFound:
        return
    await client.delete_block_document(block.id)


@dataclass
class Announcer:
    """Emits what has not been told yet. `looked_at`: the state of the folders when nothing was left to tell."""

    checkout: Checkout
    looked_at: tuple[int, ...] | None = None

    async def look(self) -> None:
        """Tell Prefect of new decisions and failures; where it does not answer, at the next look."""
        state = _state(self.checkout)
        if state == self.looked_at:
            return
        from prefect.events.clients import get_events_client
        from websockets.exceptions import ConnectionClosed

        waiting = list(_untold(self.checkout))
        try:
            if waiting:
                async with get_events_client(reconnection_attempts=0, checkpoint_every=1) as events:
                    for event, note in waiting:
                        await events.emit(event)
                        note()
        except (OSError, ConnectionClosed):
            return
        self.looked_at = state


def _state(checkout: Checkout) -> tuple[int, ...]:
    folders = (checkout.state.parent / "lineage" / "statements", schedule.folder(checkout) / "done")
    return tuple(path.stat().st_mtime_ns if path.is_dir() else 0 for path in folders)


def _untold(checkout: Checkout) -> Iterator[tuple[Any, Callable[[], None]]]:
    """(event, what notes that it was told), oldest first; nothing of what was there before the first worker."""
    path = schedule.folder(checkout) / "told.json"
    decided = [s for s in decisions.history(decisions.statements_of(checkout)) if _matters(s.parameters)]
    failed = {str(line["flow_run"]): line for line in schedule.noted(checkout) if line.get("failed")}
    if not path.is_file():
        write_json(path, {"decisions": [s.digest for s in decided], "failures": sorted(failed)})
    told = read_json(path)

    def noting(kind: str, name: str) -> Callable[[], None]:
        def note() -> None:
            told[kind].append(name)
            write_json(path, told)

        return note

    for statement in decided:
        if statement.digest not in told["decisions"]:
            yield _of_decision(statement), noting("decisions", statement.digest)
    for run, line in failed.items():
        if run not in told["failures"]:
            yield _of_failure(run, line), noting("failures", run)


def _matters(facts: Mapping[str, Any]) -> bool:
    """Whether a version was let out or kept from it; not where nothing was trained, or the champion came out again."""
    return facts["action"] in _OF_ACTION and (
        facts["action"] != decisions.KEPT or facts["version"] != facts.get("champion")
    )


def _of_decision(statement: Statement) -> Any:
    facts = statement.parameters
    version, before, action = facts["version"], facts.get("champion"), facts["action"]
    titles = {
        decisions.PROMOTED: f"{NAME} version {version} is the champion now" + (f", not {before}" if before else ""),
        decisions.KEPT: f"{NAME} version {version} is not promoted; {before} stays",
        decisions.ROLLED_BACK: f"{NAME} is rolled back to version {version}",
    }
    because = f" Trained for: {facts['because']}." if facts.get("because") else ""
    told = {"action": action, "version": version, "champion": before, "forced": bool(facts.get("forced"))}
    payload = {
        **told,
        "title": titles[action],
        "text": f"{facts['reason']}.{because} (statement {statement.digest[:16]})",
        "reason": facts["reason"],
        "improvement": facts.get("improvement"),
        "statement": statement.digest,
        "decided": statement.finished,
    }
    return _event(_OF_ACTION[action], statement.digest, payload)


def _of_failure(run: str, line: Mapping[str, Any]) -> Any:
    text = f"{line['outcome']} (occasion: {line['occasion']}). The champion stays."
    payload = {"title": f"retraining {NAME} failed", "text": text, "reason": line["outcome"], "flow_run": run}
    return _event(EVENTS["failure"], run, payload)


def _event(name: str, about: str, payload: Mapping[str, Any]) -> Any:
    """The same event for the same thing, so that Prefect drops one that it is told twice."""
    from prefect.events.schemas.events import Event

    shown = {key: _without_credentials(value) if isinstance(value, str) else value for key, value in payload.items()}
    return Event.model_validate(
        {
            "id": uuid.uuid5(uuid.NAMESPACE_URL, f"{name}/{about}"),
            "event": name,
            "resource": {"prefect.resource.id": _RESOURCE, "prefect.resource.name": NAME},
            "payload": shown,
        }
    )


def _without_credentials(text: str) -> str:
    """user:password@ of addresses left out: a message of DVC's may hold them."""
    return _CREDENTIALS.sub("…@", text)
