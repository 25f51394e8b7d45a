"""`axon audit`: hash and verify everything anew, and say what was checked and what is not as it must be."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tasks.errors import UserError
from tasks.lineage import policy as policies
from tasks.lineage.audit import anchoring, examination, export
from tasks.lineage.audit import reproduce as reproducing
from tasks.lineage.audit.comparing import EXACT, NOT, WITHIN
from tasks.lineage.audit.findings import PARTS, Anchor, Finding, Report, plural
from tasks.lineage.audit.reproduce import Result
from tasks.runtime import guard
from tasks.runtime.checkout import Checkout

FORMATS = ("text", "json")
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def audit(
    checkout: Checkout, target: str | None, *, keys: list[str], head: str | None, policy: Path | None,
    to: Path | None, form: str,
) -> int:  # fmt: skip
    """Audit the checkout and print the report; returns the exit code. Raises `UserError` for mistakes in the call."""
    _check_format(form)
    anchor = anchoring.given(keys, head)
    rules = policies.load(policy) if policy is not None else None
    if to is not None:
        export.check_place(to)

    def waiting(holder: str) -> None:
        print(f"waiting for {holder} to end …", file=sys.stderr)

    with guard.exclusive(checkout.locks / "run", who="axon audit", waiting=waiting):
        scene = examination.of_checkout(checkout, target=target, anchor=anchor, policy=rules)
        told = export.write(scene, to) if to is not None else None
    show(scene.report, form, told)
    return scene.report.exit_code


def audit_offline(folder: Path, *, keys: list[str], head: str | None, form: str) -> int:
    """Audit an exported folder and print the report; returns the exit code."""
    _check_format(form)
    scene = examination.of_folder(folder, anchor=anchoring.given(keys, head))
    show(scene.report, form, None)
    return scene.report.exit_code


def _check_format(form: str) -> None:
    if form not in FORMATS:
        raise UserError(f"--format {form}: allowed are {' and '.join(FORMATS)}.")


def show(report: Report, form: str, told: str | None) -> None:
    """Print the report; `told` is what an export says of itself."""
    if form == "json":
        print(json.dumps(report.as_json(), indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    if report.target:
        console.print(f"[bold]{escape(report.target)}[/bold] and all behind it\n")
    _print_parts(console, report)
    console.print()
    _print_anchor(console, report.anchor)
    for note in report.notes:
        console.print(f"note    {escape(note)}")
    for number, finding in enumerate(report.findings, 1):
        _print_finding(console, number, finding)
    console.print()
    if told:
        console.print(escape(told))
    console.print(_verdict(report))


def _print_parts(console: Console, report: Report) -> None:
    """A line for each part: its name, the result, and what was checked; wrapped on a terminal alone."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(2):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for part in PARTS:
        checked, missed = report.checked[part], report.not_reachable[part]
        found = len(report.of(part))
        if not (checked or missed or found):
            continue
        text = _counts(checked) or "nothing"
        if missed:
            text += f"; not reachable: {_counts(missed)}"
        result = plural(found, "findings") if found else "well" if checked else "–"
        color = "red" if found else "green" if checked else "dim"
        if console.is_terminal:
            table.add_row(part, f"[{color}]{result}[/{color}]", escape(text))
        else:
            print(f"{part:<12}{result:<13}{text}")
    if console.is_terminal:
        console.print(table)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(_size(n) if what == "bytes" else plural(n, what) for what, n in counts.items() if n)


def _size(n_bytes: int) -> str:
    unit = next(((size, name) for size, name in _UNITS if n_bytes >= size), None)
    return f"{n_bytes / unit[0]:.1f} {unit[1]}" if unit else f"{n_bytes} bytes"


def _print_anchor(console: Console, anchor: Anchor | None) -> None:
    if anchor is None:
        console.print("key     none is known to be the right one\nhead    none")
        return
    for key in anchor.keys:
        console.print(f"key     {key}  ({anchor.place})", soft_wrap=True)
    console.print(f"head    {anchor.head}", soft_wrap=True)


def _print_finding(console: Console, number: int, finding: Finding) -> None:
    console.print(f"\n[red]{number}. {escape(finding.place)}[/red]", soft_wrap=True)
    console.print(f"   expected  {escape(finding.expected)}", soft_wrap=True)
    console.print(f"   found     {escape(finding.found)}", soft_wrap=True)
    console.print(f"   do        {escape(finding.what_to_do)}", soft_wrap=True)


def _verdict(report: Report) -> str:
    if report.findings:
        return f"[red]{plural(len(report.findings), 'findings')}[/red]: not all is as it must be."
    if report.anchor is None:
        return "[yellow]Everything agrees, but nothing anchors it[/yellow]: give --key and --head."
    return "[green]All is well.[/green]"


def reproduce(checkout: Checkout, names: list[str], *, tolerance: float, form: str) -> int:
    """Run stages again in a scratch workspace and print how they compare; returns 1 if one is not what it was."""
    _check_format(form)
    chosen = reproducing.choose(checkout, names)
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    results = []

    def waiting(holder: str) -> None:
        print(f"waiting for {holder} to end …", file=sys.stderr)

    with guard.exclusive(checkout.locks / "run", who="axon audit --reproduce", waiting=waiting):
        for name, statement in chosen.items():
            if form == "text":
                console.print(f"[bold]{name}[/bold] runs again …")
            result = reproducing.reproduce(checkout, statement, tolerance=tolerance)
            results.append(result)
            if form == "text":
                _print_result(console, result)
    if form == "json":
        print(json.dumps({result.stage: result.as_json() for result in results}, indent=2, ensure_ascii=False))
    return int(any(result.kind in (reproducing.FAILED, NOT) for result in results))


def _print_result(console: Console, result: Result) -> None:
    color = {EXACT: "green", WITHIN: "yellow"}.get(result.kind, "red")
    largest = f", largest difference {result.largest:.3g}" if result.largest else ""
    console.print(f"  [{color}]{result.kind}[/{color}]{largest}  {result.n_files} files, {result.seconds:.0f} s")
    if result.why:
        console.print(f"    {escape(result.why)}", soft_wrap=True)
    for file in result.files:
        by = f"differs by {file.difference:.3g}" if file.difference is not None else file.why
        console.print(f"    {escape(file.path)}: {escape(by)}", soft_wrap=True)
    if result.environment:
        console.print(f"    not the same environment: {escape(', '.join(result.environment[:5]))}", soft_wrap=True)
