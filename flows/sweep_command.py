"""`axon sweep` on the command line."""

from __future__ import annotations

from typing import Annotated

import typer

from tasks.errors import UserError
from tasks.runtime import checkout as checkouts
from tasks.runtime import environment

_OVER = "A parameter and its distribution; as often as you like."


def sweep(
    stage: Annotated[
        str | None, typer.Argument(help="pretrain, sft, reward_model, ppo, dpo or sft_continued.", show_default=False)
    ] = None,
    over: Annotated[list[str] | None, typer.Option(metavar="KEY=DISTRIBUTION", help=_OVER)] = None,
    trials: Annotated[int, typer.Option(min=1, max=1000, help="How many, all different.")] = 8,
    metric: Annotated[str | None, typer.Option(help="The reported value to judge by, if not the stage's own.")] = None,
    mode: Annotated[str | None, typer.Option(help="min or max, if not the metric's own.")] = None,
    concurrent: Annotated[int, typer.Option(min=1, help="Trials at once.")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the sampling.")] = 0,
    budget: Annotated[str | None, typer.Option(metavar="SPAN", help="End the search after 30m, 2h, …")] = None,
    grace: Annotated[
        int, typer.Option(min=1, max=99, metavar="PERCENT", help="Of its training that every trial gets.")
    ] = 12,
    run_best: Annotated[
        bool, typer.Option("--run-best", help="Run the best as a DVC experiment; without STAGE: of the last sweep.")
    ] = False,
) -> None:
    """Search for good parameters of a training stage: trials outside DVC, the bad ones stopped early.

    KEY is any parameter of params.yaml that changes the stage or one before it; DISTRIBUTION one of

    \b
    choice(4, 8, 16)         one of the values
    uniform(0, 0.2)          a number between the two
    loguniform(1e-4, 1e-2)   the same, every factor alike
    randint(1, 5)            a whole number below the second
    lograndint(8, 129)       the same, every factor alike

    For example:

    \b
    axon sweep pretrain --trials 6 \\
      --over 'pretrain.learning_rate=loguniform(1e-3, 1e-2)' \\
      --over 'pretrain.batch_size=choice(4, 8)'
    """
    from flows import schedule
    from flows import sweep as sweeping

    checkout = checkouts.find()
    environment.prepare(checkout)
    if stage is None:
        if not run_best or over:
            raise UserError("which stage? For example: axon sweep pretrain --over "
                            "'pretrain.learning_rate=loguniform(1e-3, 1e-2)'")  # fmt: skip
        raise typer.Exit(sweeping.run_last(checkout))
    asked = sweeping.Request(
        stage=stage,
        over=tuple(over or ()),
        n_trials=trials,
        metric=metric,
        mode=mode,
        concurrent=concurrent,
        seed=seed,
        budget_s=schedule.seconds(budget, "--budget") if budget else None,
        grace=grace,
        run_best=run_best,
    )
    raise typer.Exit(sweeping.sweep(checkout, asked))


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(sweep)
