"""The command line: `axon run | chat | generate | ui | report | clean | doctor`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tasks.errors import UserError
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
MODELS = "champion, challenger, or a stage: pretrain, sft, sft_continued, ppo, dpo"


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
) -> None:
    """Run every stage that is stale, then register the model."""
    from flows import running

    running.run(_checkout(), list(stages or []), list(assignments or []), dry_run=dry_run)


@app.command()
def chat(
    model: Annotated[str, typer.Option(help=MODELS)] = "champion",
    temperature: Annotated[float, typer.Option(min=0.0, max=5.0, help="0 takes the most likely token.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Talk to a model."""
    from flows import talking

    talking.chat(_checkout(), model, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to ask, or to continue with --raw.")],
    model: Annotated[str, typer.Option(help=MODELS)] = "champion",
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text instead of answering it.")] = False,
    temperature: Annotated[float, typer.Option(min=0.0, max=5.0, help="0 takes the most likely token.")] = 0.0,
    top_p: Annotated[float | None, typer.Option(min=0.01, max=1.0)] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Answer one prompt, or continue a text, and leave."""
    from flows import talking

    talking.generate(
        _checkout(),
        model,
        prompt,
        raw=raw,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )


@app.command()
def ui() -> None:
    """Serve the pages of MLflow and Prefect on this machine until Ctrl-C."""
    from flows import pages

    pages.serve(_checkout())


@app.command()
def report() -> None:
    """Show the last run's report here, and say where its page is."""
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
def doctor() -> None:
    """Check versions, processor, memory, disk and ports."""
    from flows import doctor as checks

    raise typer.Exit(checks.examine(_checkout()))


def main() -> None:
    """Run a command; a mistake ends in one message and its exit code, without a traceback unless `--debug`."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    try:
        app(args=[a for a in arguments if a != "--debug"], standalone_mode=True)
    except UserError as error:
        if debug:
            raise
        print(f"axon: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("\naxon: interrupted; `axon run` goes on from the last checkpoint.", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if debug:
            raise
        print(f"axon: {error}. Mend that and run again; nothing half-written is left.", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        print(f"axon: an error in Axon itself: {type(error).__name__}: {error}", file=sys.stderr)
        print("What was done is kept. Run it again with --debug for the place.", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
