"""The command line: `axon run`, `chat`, `audit`, `promote` and the others; each asks a module of `flows`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from flows import lineage_commands, release_commands, sweep_command, talk_commands, uptrain_command
from tasks import redact
from tasks.errors import UserError, machine_fault
from tasks.runtime import checkout as checkouts
from tasks.runtime import environment
from tasks.runtime.checkout import Checkout

app = typer.Typer(
    name="axon",
    help="Raw text to an aligned, evaluated, registered language model; repeatable to the byte.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
keys_app = typer.Typer(help="Show the key that signs statements, or export its public half.")
app.add_typer(keys_app, name="keys")
app.add_typer(lineage_commands.app, name="lineage")


def _checkout() -> Checkout:
    checkout = checkouts.find()
    environment.prepare(checkout)
    return checkout


@app.command()
def run(
    stages: Annotated[list[str] | None, typer.Argument(help="Only these stages, and what they need.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change params.yaml first.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run; change nothing.")] = False,
    run_cache: Annotated[
        bool | None,
        typer.Option(
            "--run-cache/--no-run-cache",
            help="Restore earlier results of the same inputs; by default not of stages found not deterministic.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run every stage that is stale, then register the model."""
    from flows import running

    running.run(_checkout(), list(stages or []), list(assignments or []), dry_run=dry_run, run_cache=run_cache)


@app.command()
def ui() -> None:
    """Serve the pages of MLflow and Prefect on this machine until Ctrl-C."""
    from flows import pages

    pages.serve(_checkout())


@app.command()
def report(
    live: Annotated[
        bool,
        typer.Option(
            "--live", help="Instead: how deterministic stages are, versions, quality over time, end of the chain."
        ),
    ] = False,
) -> None:
    """Show the last run's report here, and say where its page is."""
    if live:
        from flows import live as view

        view.show(_checkout())
        return
    from flows import pages

    pages.show_report(_checkout())


@app.command()
def clean(
    everything: Annotated[
        bool, typer.Option("--all", help="Also DVC's cache, checkpoints, and the MLflow and Prefect stores.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove what runs have made."""
    from flows import cleaning

    cleaning.clean(_checkout(), everything=everything, yes=yes)


@app.command()
def forget(
    record: Annotated[list[str] | None, typer.Option(metavar="ID", help="A record id; as often as you like.")] = None,
    source: Annotated[str | None, typer.Option(help="All of a source: python_docs, maths or files:PATH.")] = None,
    where: Annotated[
        str | None, typer.Option(metavar="EXPR", help="A DuckDB expression: \"text LIKE '%someone%'\".")
    ] = None,
    reason: Annotated[str, typer.Option(help="Kept in the list, for everyone to read.")] = "on request",
    keep_tokenizer: Annotated[bool, typer.Option("--keep-tokenizer", help="Do not train the tokenizer again.")] = False,
    keep_sources: Annotated[
        bool, typer.Option("--keep-sources", help="Leave the lines in the files of data.files.")
    ] = False,
    purge: Annotated[bool, typer.Option("--purge", help="After the next run: remove what was made before.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without, only show what it would touch.")] = False,
) -> None:
    """Remove records from everything: show what holds them, list them for removal, purge what is old."""
    from flows import forget as forgetting
    from tasks.lineage.forget import Request

    if purge and (record or source or where):
        raise UserError("--purge takes no records: it removes what the requests before the last run have left.")
    if purge:
        forgetting.purge(_checkout(), yes=yes)
        return
    request = Request(
        records=tuple(record or ()),
        source=source,
        where=where,
        reason=reason,
        keep_tokenizer=keep_tokenizer,
        keep_sources=keep_sources,
    )
    forgetting.forget(_checkout(), request, yes=yes)


@app.command()
def doctor() -> None:
    """Check versions, processor, memory, disk and ports."""
    from flows import doctor as checks

    raise typer.Exit(checks.examine(_checkout()))


@app.command()
def audit(
    targets: Annotated[
        list[str] | None, typer.Argument(metavar="[TARGET]", help="Only what made this; with --reproduce: stages.")
    ] = None,
    key: Annotated[list[str] | None, typer.Option(metavar="FINGERPRINT", help="Who may sign, given to you.")] = None,
    head: Annotated[str | None, typer.Option(metavar="DIGEST", help="Where the chain ends, given to you.")] = None,
    policy: Annotated[Path | None, typer.Option(help="Also hold models against these rules (policy.yaml).")] = None,
    export: Annotated[Path | None, typer.Option(metavar="DIR", help="Write a folder for an outside auditor.")] = None,
    offline: Annotated[Path | None, typer.Option(metavar="DIR", help="Audit such a folder, with nothing else.")] = None,
    reproduce: Annotated[bool, typer.Option("--reproduce", help="Run stages again elsewhere and compare.")] = False,
    tolerance: Annotated[float, typer.Option(min=0.0, help="Largest difference of numbers that is none.")] = 1e-3,
    form: Annotated[str, typer.Option("--format", help="text or json")] = "text",
) -> None:
    """Hash and verify everything anew; leave with 0 if all is well, 1 with findings, 3 where nothing anchors it."""
    from flows import audit as audits

    names = list(targets or [])
    if reproduce:
        if key or head or policy or export or offline:
            raise UserError("--reproduce goes with stages, --tolerance and --format alone.")
        raise typer.Exit(audits.reproduce(_checkout(), names, tolerance=tolerance, form=form))
    if offline is not None:
        if names or policy or export:
            raise UserError("--offline goes with --key, --head and --format alone.")
        raise typer.Exit(audits.audit_offline(offline, keys=list(key or []), head=head, form=form))
    if len(names) > 1:
        raise UserError(f"one target at a time, and not {', '.join(names)}.")
    target = names[0] if names else None
    raise typer.Exit(
        audits.audit(_checkout(), target, keys=list(key or []), head=head, policy=policy, to=export, form=form)
    )


@keys_app.callback(invoke_without_command=True)
def keys(context: typer.Context) -> None:
    """Show the key that signs statements: its fingerprint, where it is, and the head of the chain."""
    from flows import keys as commands

    if context.invoked_subcommand is None:
        commands.show(_checkout())


@keys_app.command("export")
def export_key(path: Annotated[Path, typer.Argument(help="A file, or a folder for it.")]) -> None:
    """Write the public key: it is enough to verify every statement."""
    from flows import keys as commands

    commands.export(_checkout(), path)


talk_commands.add_to(app)
release_commands.add_to(app)
sweep_command.add_to(app)
uptrain_command.add_to(app)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; a mistake ends in one message and its exit code, without a traceback unless `--debug`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    is_debug = "--debug" in arguments
    try:
        app(args=[a for a in arguments if a != "--debug"], standalone_mode=True)
    except KeyboardInterrupt:
        from flows import signals

        print("\naxon: interrupted; `axon run` goes on from the last checkpoint.", file=sys.stderr)
        signals.leave()
    except Exception as error:  # noqa: BLE001 every error ends in a message, its trace on demand
        if is_debug:
            print(redact.traced(error), end="", file=sys.stderr)
        told, code = _explained(error)
        print(f"axon: {redact.redacted(told)}", file=sys.stderr)
        sys.exit(code)


def _explained(error: Exception) -> tuple[str, int]:
    """What to say of an error, and the exit code: a mistake of the user's, the machine's fault, or ours."""
    if isinstance(error, UserError):
        return str(error), error.exit_code
    from tasks.tracking import mlflow_store

    fault = machine_fault(error) or mlflow_store.fault(error)
    if fault:
        return fault, 1
    if isinstance(error, OSError):
        return f"{error}. Mend that and run again; nothing half-written is left.", 1
    return (
        f"an error in Axon itself: {type(error).__name__}: {error}\n"
        "What was done is kept. Run it again with --debug for the place.",
        1,
    )


if __name__ == "__main__":
    main()
