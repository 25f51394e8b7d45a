"""Every preset through the whole pipeline: trained, aligned, evaluated, registered, one after another, at a tiny size.

Run: `make zoo`, or `.venv/bin/python -m benchmarks.zoo [--only NAME,…] [--minutes 25] [--out docs/zoo.md]
[--work FOLDER] [--size default]`. With `--size default` nothing but the preset differs from params.yaml: some ten
minutes each, so give `--minutes 150`.

In a fresh copy of the checkout it runs `axon run --set model.preset=NAME` for each preset in turn, with the real
engines. Nothing but the preset changes, so data and tokens are made once. A preset that fails is shown with its last
lines, and the others go on. Exit code: 0 all is well, 1 a preset failed, 3 time was over before all had their turn.

The copy, results and logs lie in a folder named after the code, so the same command goes on where it was cut off:
presets that went well are not run again, and the seconds of one that was cut off are those of its last part. The
folder goes when all presets have gone well, unless it was given by `--work`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from axon_models.presets import PRESETS
from tasks.data import records
from tasks.files import read_json, write_json
from tasks.parameters import load
from tasks.steps.pretrain import config_of_shape
from tests.flows.workspace import TINY, Workspace
from tests.helpers import code_digest, make_params, make_tree

SIZES = ("tiny", "default")
# The tiny size: enough steps that the figures of presets differ by more than chance; widths that follow from others are
# the preset's.
PARAMETERS: dict[str, Any] = TINY | {
    "model.kv_heads": None,
    "model.d_feed_forward": None,
    "pretrain.n_steps": 400,
    "pretrain.batch_size": 8,
    "pretrain.warmup_steps": 40,
    "pretrain.evaluate_every": 200,
    "sft.n_steps": 400,
    "sft.warmup_steps": 20,
    "sft.evaluate_every": 200,
    "evaluate.n_maths": 60,
}
COMPARED = ("sft", "dpo", "ppo")
N_LINES = 15  # of the log of a preset that failed
TO_LEAVE_S = 60  # for a run that was asked to stop: it saves a checkpoint and closes its engines


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of one preset: figures, or the reason why there are none."""

    preset: str
    seconds: float
    figures: dict[str, float] = field(default_factory=dict)
    failure: str = ""
    lines: tuple[str, ...] = ()


def figures(root: Path, preset: str) -> dict[str, float]:
    """The row of a preset from what a run left below `root`; a `ValueError` where that is not of this preset."""
    parameters = load(root)
    pretrained = read_json(root / "metrics" / "pretrain.json")
    evaluated = read_json(root / "metrics" / "evaluate.json")
    config = config_of_shape(parameters.model, read_json(root / "metrics" / "tokenizer.json")["vocab_size"])
    if (parameters.model.preset, config.n_parameters) != (preset, pretrained["n_parameters"]):
        raise ValueError(
            f"the run left a {parameters.model.preset} of {pretrained['n_parameters']:,} parameters,"
            f" not a {preset} of {config.n_parameters:,}"
        )
    answers = records.read(root / "evaluation" / "answers.parquet")
    scores: dict[str, list[float]] = {}
    for model, score in zip(answers["model"], answers["score"], strict=True):
        scores.setdefault(model, []).append(score)
    found = {
        "n_parameters": config.n_parameters,
        "n_active_parameters": config.n_active_parameters,
        "bits_per_byte": pretrained["bits_per_byte"],
        "validation_loss": read_json(root / "metrics" / "sft.json")["validation_loss"],
    }
    for model in COMPARED:
        found |= {f"{model}/score": fmean(scores[model])}
        found |= {f"{model}/exact_match": float(evaluated[model]["exact_match"])}
    return found


def row(result: Result) -> str:
    """A line of the table."""
    if result.failure:
        return f"| `{result.preset}` | **{result.failure}** {'| ' * 9}| {result.seconds:.0f} |"
    f = result.figures
    cells = [f"{f['n_parameters']:,.0f}", f"{f['n_active_parameters']:,.0f}"]
    cells += [f"{f['bits_per_byte']:.3f}", f"{f['validation_loss']:.3f}"]
    cells += [f"{f[f'{model}/{name}']:.3f}" for name in ("score", "exact_match") for model in COMPARED]
    return f"| `{result.preset}` | {' | '.join(cells)} | {result.seconds:.0f} |"


def table(results: Sequence[Result]) -> str:
    """Markdown: a row for each preset, and below it the last lines of those that failed."""
    heads = ["preset", "parameters", "of a token", "bits per byte", "SFT loss"]
    heads += [f"{what} {model.upper()}" for what in ("score", "exact match") for model in COMPARED]
    lines = ["| " + " | ".join([*heads, "seconds"]) + " |", "| --- " * (len(heads) + 1) + "|", *map(row, results)]
    for result in results:
        if result.lines:
            lines += ["", f"Last lines of `{result.preset}`:", "", *(f"    {line}" for line in result.lines)]
    return "\n".join(lines)


def page(results: Sequence[Result], machine: str, size: str) -> str:
    """docs/zoo.md, or docs/zoo_default.md."""
    parameters = make_params(overrides(size))
    of_steps = f"{parameters.pretrain.n_steps} steps of pretraining and {parameters.sft.n_steps} of fine-tuning"
    n_prompts = parameters.evaluate.n_maths + parameters.evaluate.n_docs
    command, models = (
        ("make zoo", "tiny") if size == "tiny" else ('make zoo ZOO="--size default"', "of the default size")
    )
    return f"""# Every preset through the whole pipeline{", at the default size" if size == "default" else ""}
`{command}` ran `axon run --set model.preset=NAME` for each preset, from data to report, with the real engines.
{machine}.

The models are {models}: width {parameters.model.d_model}, {parameters.model.n_layers} layers, {of_steps} on one
seed. The table shows that each preset trains, aligns and is evaluated; it does not say which is better, since their
numbers of parameters differ and nothing was tuned{" but `x_llama`" if size == "default" else ""}.

{table(results)}

*Of a token*: parameters that one token goes through, fewer than all where there are experts. *Bits per byte*: of the
pretrained model on validation text. *SFT loss*: nats a token of held-out answers. *Score*: the programmatic judge's
mean over at most {n_prompts} held-out prompts, 0 to 1. *Exact match*: of the maths questions among them. *Seconds*:
all of `axon run`, engines included; data and tokens had been made before.
"""


def overrides(size: str) -> dict[str, Any]:
    """What a size changes in params.yaml."""
    return PARAMETERS if size == "tiny" else {}


def last_lines(log: str) -> tuple[str, ...]:
    """What a log ends with, empty lines left out."""
    return tuple(line.rstrip() for line in log.splitlines() if line.strip())[-N_LINES:]


def run_axon(workspace: Workspace, arguments: Sequence[str], log: Path, *, limit_s: float) -> tuple[str, float]:
    """("" or why `axon ARGUMENTS` failed, its seconds). Its output is in `log`. Past the limit it is asked to stop."""
    environment = {**workspace.environment(), "PYTHONPATH": str(workspace.root)}
    command = [sys.executable, "-m", "flows.cli", *arguments]
    started, failure = time.monotonic(), ""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=workspace.root, env=environment, stdout=output, stderr=subprocess.STDOUT, process_group=0
        )
        try:
            code = process.wait(max(limit_s, 0.0))
            failure = f"failed with exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            failure = f"stopped after {limit_s:.0f} s"
        finally:  # also when this command itself is told to stop
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(TO_LEAVE_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    return failure, time.monotonic() - started


def run_preset(workspace: Workspace, preset: str, log: Path, *, limit_s: float) -> Result:
    failure, seconds = run_axon(workspace, ["run", "--set", f"model.preset={preset}"], log, limit_s=limit_s)
    lines = last_lines(log.read_text(errors="replace"))
    if failure:
        return Result(preset=preset, seconds=seconds, failure=failure, lines=lines)
    try:
        return Result(preset=preset, seconds=seconds, figures=figures(workspace.root, preset))
    except (OSError, KeyError, TypeError, ValueError) as error:  # a run that left less than it should has failed
        told = (*lines, f"{type(error).__name__}: {error}")
        return Result(preset=preset, seconds=seconds, failure="ended well, but left no figures", lines=told)


def kept(work: Path) -> dict[str, Result]:
    """The results of presets that went well, by an earlier call in the same folder."""
    trees = [read_json(path) for path in sorted((work / "results").glob("*.json"))]
    results = [Result(**{**tree, "lines": tuple(tree["lines"])}) for tree in trees]
    return {result.preset: result for result in results if not result.failure}


def keep(work: Path, result: Result) -> None:
    (work / "results").mkdir(parents=True, exist_ok=True)
    write_json(work / "results" / f"{result.preset}.json", asdict(result))


def presets_named(text: str) -> list[str]:
    """The presets of a list with commas, in the order of the table; an argparse error for one that is unknown."""
    wanted = [name for name in text.split(",") if name]
    unknown = [name for name in wanted if name not in PRESETS]
    if unknown or not wanted:
        known = ", ".join(PRESETS)
        raise argparse.ArgumentTypeError(f"unknown preset(s) {', '.join(unknown) or repr(text)}; known: {known}")
    return [name for name in PRESETS if name in wanted]


def version(size: str) -> str:
    """What results may be put into one table: those of the same code and parameters."""
    return hashlib.sha256(json.dumps([code_digest(), make_tree(overrides(size))]).encode()).hexdigest()[:12]


def made(work: Path, only: Sequence[str], minutes: float, size: str) -> list[Result]:
    """Run the presets that have no result yet; those that time was too short for are left out."""
    deadline = time.monotonic() + 60 * minutes
    workspace = Workspace(work / "checkout")
    if not (work / "made").is_file():  # a copy that was cut off is no copy
        shutil.rmtree(workspace.root, ignore_errors=True)
        Workspace.create(workspace.root).set_parameters(overrides(size))
        (work / "made").write_text("")
    results = kept(work)
    if set(only) - set(results):
        log = work / "logs" / "tokenizer.log"
        failure, seconds = run_axon(workspace, ["run", "tokenizer"], log, limit_s=deadline - time.monotonic())
        print(f"data and tokens: {failure or 'made'}, {seconds:.0f} s", flush=True)
        if failure:
            raise SystemExit("\n".join(last_lines(log.read_text(errors="replace"))))
    for preset in only:
        left_s = deadline - time.monotonic()
        if preset not in results and left_s > 0:
            results[preset] = run_preset(workspace, preset, work / "logs" / f"{preset}.log", limit_s=left_s)
            keep(work, results[preset])
            print(f"{preset}: {results[preset].failure or 'went well'}, {results[preset].seconds:.0f} s", flush=True)
    return [results[preset] for preset in PRESETS if preset in results]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=presets_named, default=list(PRESETS), metavar="NAME,…")
    parser.add_argument("--minutes", type=float, default=25.0, help="no preset goes on past this (default: 25)")
    parser.add_argument(
        "--size", choices=SIZES, default="tiny", help="tiny, if not given; default: that of params.yaml"
    )
    parser.add_argument("--out", type=Path, help="write the page there")
    parser.add_argument("--work", type=Path, help="a folder for the copy of the checkout (default: a temporary one)")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the run that is under way, too
    work = (asked.work or Path(tempfile.gettempdir()) / f"axon-zoo-{os.getuid()}") / version(asked.size)
    work.mkdir(parents=True, exist_ok=True)
    print(f"in {work}; the same command goes on from here", flush=True)
    results = made(work.resolve(), asked.only, asked.minutes, asked.size)
    print(f"\n{table(results)}")
    if asked.out:
        machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
        asked.out.write_text(page(results, f"{time.strftime('%Y-%m-%d')}, {machine}", asked.size), encoding="utf-8")
    failed = [result.preset for result in results if result.failure]
    not_run = [preset for preset in asked.only if preset not in {result.preset for result in results}]
    for what, names in (("failed", failed), ("not run, time was over", not_run)):
        if names:
            print(f"{what}: {', '.join(names)}")
    if not asked.work and {result.preset for result in results} == set(PRESETS) and not failed:
        shutil.rmtree(work)
    return 1 if failed else 3 if not_run else 0


if __name__ == "__main__":
    raise SystemExit(main())
