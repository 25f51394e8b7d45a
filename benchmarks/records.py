"""What the record index costs at 10 million records and 200 artifacts, and in a finished run.

Run: `.venv/bin/python -m benchmarks.records FOLDER [--records N] [--run ROOT]`. In FOLDER, unless it did so before, it
builds two indices of random records, each with 40 stage executions, behind which stand 200 artifacts:

- mixed: four pipelines of ten stages over one version of data
- dense: 40 pretrainings, each on every record about twice: the most that 40 executions can weigh

It prints bytes a record, times of building, and times of questions. Each question is asked in a process of its own
and timed from after the imports to the answer, opening the index and handing uses down to the artifacts included;
"evicted" is with the files dropped from the page cache before. With `--run` the index of a finished run is built
again, each stage in a process of its own, and compared with the work of the stage as its journal has it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tasks.files import file_md5
from tasks.lineage import index
from tasks.lineage.index import RecordIndex
from tasks.lineage.records import ids as record_ids
from tasks.lineage.records import parquet_files, tables, usage
from tasks.lineage.records.answers import Ancestry, inherited
from tasks.lineage.records.tables import DATA, Execution
from tasks.tracking import journal

N_ARTIFACTS, N_PIPELINES, N_ASKED = 200, 4, 20
STAGES = (
    "data",
    "tokenizer",
    "pretrain",
    "sft",
    "preferences",
    "reward_model",
    "ppo",
    "dpo",
    "sft_continued",
    "evaluate",
)
TOKENS_A_TEXT, SEQ_LEN, BATCH_SIZE = 200, 256, 1024


def execution_of(number: int) -> Execution:
    return Execution(STAGES[number % len(STAGES)], hashlib.md5(b"%d" % number).hexdigest())


def artifacts() -> dict[str, Ancestry]:
    """Five artifacts of each execution; behind it are those of its pipeline before it."""
    found = {}
    for number in range(N_ARTIFACTS):
        made_by = number % (N_PIPELINES * len(STAGES))
        first = made_by - made_by % len(STAGES)
        behind = frozenset(execution_of(other).id for other in range(first, made_by))
        found[f"artifact{number}"] = Ancestry(execution_of(made_by).id, behind)
    return found


def write_data(root: Path, n_records: int) -> None:
    """data/ and the index of training text: nine texts to one demonstration, 60 groups of source, license, …"""
    import pyarrow as pa

    rng = np.random.default_rng(0)

    def texts(names: list[str], shares: list[float], n: int) -> Any:
        codes = parquet_files.of_numbers(rng.choice(len(names), n, p=shares).astype(np.int32))
        return pa.DictionaryArray.from_arrays(codes, pa.array(names)).cast("string")

    for path, n in zip(DATA, (n_records // 10, n_records - n_records // 10), strict=True):
        ids = rng.integers(0, 256, (n, record_ids.SIZE), dtype=np.uint8)
        columns = {
            "record_id": record_ids.to_column(ids).cast("binary"),
            "source": texts(["python_docs", "maths", "own"], [0.6, 0.3, 0.1], n),
            "license": texts(["BSD-3-Clause", "MIT"], [0.7, 0.3], n),
            "split": texts(["train", "validation", "test"], [0.9, 0.03, 0.07], n),
            "package": texts(["", "numpy", "pandas", "scipy", "torch"], [0.3, 0.1, 0.2, 0.2, 0.2], n),
            "version": texts(["1"], [1.0], n),
            "file": texts([f"package/module{i}.py" for i in range(5000)], [1 / 5000] * 5000, n),
            "symbol": texts([f"package.module.name{i}" for i in range(5000)], [1 / 5000] * 5000, n),
        }
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        parquet_files.write(root / path, [pa.table(columns)])
    rows = np.flatnonzero(np.array(columns["split"].to_pylist()) == "train")
    lengths = rng.integers(1, 2 * TOKENS_A_TEXT, len(rows))
    indexed = {
        "record_id": record_ids.to_column(ids[rows]),
        "offset": parquet_files.of_numbers(np.cumsum(lengths) - lengths),
        "length": parquet_files.of_numbers(lengths),
    }
    (root / "tokens").mkdir()
    parquet_files.write(root / "tokens" / "text.train.index.parquet", [pa.table(indexed)])
    held_out = {name: column[:2000] for name, column in indexed.items()}
    parquet_files.write(root / "tokens" / "text.validation.index.parquet", [pa.table(held_out)])


def write_lock(root: Path, digests: dict[str, str]) -> None:
    """A dvc.lock as long as that of a run: twelve stages of thirty dependencies."""
    deps = [{"path": f"package/file{i}.py", "hash": "md5", "md5": f"{i:032x}", "size": i} for i in range(30)]
    outs = [{"path": path, "hash": "md5", "md5": digest} for path, digest in digests.items()]
    others = {f"stage{i}": {"cmd": "", "deps": deps, "outs": deps[:2]} for i in range(11)}
    content = {"schema": "2.0", "stages": {"data": {"cmd": "", "deps": deps, "outs": outs}, **others}}
    (root / "dvc.lock").write_text(json.dumps(content))


def counts_of(stage: str, n: int, rng: np.random.Generator) -> dict[str, Any]:
    """Made-up counts, about as many as a pipeline has that trains on all of `n` records."""

    def some(share: float, mean: float) -> Any:
        return (rng.random(n) < share) * (1 + rng.poisson(mean - 1, n))

    if stage == "data":
        return {usage.KEPT: np.ones(n)}
    if stage == "tokenizer":
        return {usage.TOKENIZED: np.ones(n), usage.TOKENIZER: some(0.9, 1), usage.EVALUATED: some(0.06, 1)}
    if stage == "pretrain":
        return {usage.TRAINED: rng.poisson(2, n) * (rng.random(n) < 0.8), usage.VALIDATED: some(0.001, 6)}
    if stage in ("sft", "sft_continued"):
        share, mean = (0.08, 4) if stage == "sft" else (0.02, 1)
        return {usage.TRAINED: some(share, mean), usage.VALIDATED: some(0.002, 5)}
    if stage in ("preferences", "ppo"):
        return {usage.PROMPT: some(0.01, 2)}
    if stage == "evaluate":
        return {usage.EVALUATED: some(0.001, 6), usage.SHOWN: some(1e-6, 1)}
    return {usage.COMPARED: some(0.01, 2), usage.VALIDATED: some(0.002, 3)}


def build(folder: Path, n_records: int) -> None:
    """Both indices in `folder`, with the times that it takes."""
    root, mixed, dense = folder / "root", folder / "mixed", folder / "dense"
    write_data(root, n_records)
    digests = {path: file_md5(root / path) for path in DATA}
    write_lock(root, digests)
    n_tokens = 0.9 * 0.9 * n_records * TOKENS_A_TEXT
    pretrain = {"n_steps": round(2 * n_tokens / SEQ_LEN / BATCH_SIZE), "batch_size": BATCH_SIZE, "seq_len": SEQ_LEN}
    pretrain |= {"evaluate_every": 100, "n_validation_batches": 1}
    for stage, parameters in (("data", {}), ("pretrain", {"seed": 7, "pretrain": pretrain})):
        started = time.monotonic()
        index.build(root, mixed, stage, "0" * 32, parameters, digests, {})
        print(f"build of stage {stage} over {n_records:,} records: {time.monotonic() - started:.1f} s")
    (made,) = (mixed / "records").iterdir()
    for path in made.glob("uses-*"):
        path.unlink()
    records, rng = tables.read(made), np.random.default_rng(1)
    other = dense / "records" / made.name
    other.mkdir(parents=True)
    for name in ("records.parquet", "copies.parquet", "groups.parquet"):
        os.link(made / name, other / name)
    times = []
    for number in range(N_PIPELINES * len(STAGES)):
        execution = execution_of(number)
        found = counts_of(execution.stage, len(records.ids), rng)
        started = time.monotonic()
        tables.write_counts(made, records, execution, found)
        times.append(time.monotonic() - started)
        tables.write_counts(other, records, execution, {usage.TRAINED: rng.poisson(2, len(records.ids))})
    print(
        f"writing the counts of a mixed execution: median {statistics.median(times):.2f} s, at most {max(times):.2f} s"
    )
    np.save(folder / "asked.npy", records.ids[rng.integers(0, len(records.ids), N_ASKED)])
    for state in (mixed, dense):
        sizes = {path.name: path.stat().st_size for path in state.rglob("*.parquet")}
        of_records = sum(size for name, size in sizes.items() if not name.startswith("uses-"))
        print(
            f"{state.name}: {sum(sizes.values()) / n_records:.1f} bytes a record in all, "
            f"{of_records / n_records:.1f} of them for records, the rest for {len(sizes) - 3} executions"
        )


def _uses(asked: RecordIndex, record_id: bytes) -> int:
    return len(inherited(asked.uses_of(record_id), artifacts()))


def _contents(asked: RecordIndex, record_id: bytes) -> int:
    number = 10 * (record_id[0] % N_PIPELINES) + STAGES.index("ppo")
    ancestry = artifacts()[f"artifact{number}"]
    return asked.contents_of({ancestry.maker, *ancestry.behind}).n_records


QUESTIONS: dict[str, Callable[[RecordIndex, bytes], Any]] = {
    "artifacts with a record": _uses,
    "artifacts with an unknown record": _uses,
    "facts of a record": lambda asked, record_id: asked.facts_of(record_id),
    "places of a record": lambda asked, record_id: asked.places_of(record_id),
    "places of an unknown record": lambda asked, record_id: asked.places_of(record_id),
    "records of a PPO model": _contents,
}


def ask(state: Path, question: str, digits: str) -> None:
    """Answer one question in this process; print the seconds and what was found."""
    import duckdb  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    started, cpu = time.monotonic(), time.process_time()
    found = QUESTIONS[question](RecordIndex(state, state.parent / "root"), record_ids.parse(digits))
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    print(json.dumps([seconds, cpu, found if isinstance(found, int) else len(found)]))


def evict(folder: Path) -> None:
    for path in folder.rglob("*.parquet"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(folder: Path, only: str) -> None:
    known = [row.tobytes().hex() for row in np.load(folder / "asked.npy")]
    unknown = [hashlib.md5(digits.encode()).hexdigest() for digits in known]
    print("| index | question | page cache | median, s | max, s | of processors, median, s | answers |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in ("mixed", "dense"):
        for question in (question for question in QUESTIONS if only in question):
            for is_evicted in (False, True):
                answers = []
                for digits in unknown if "unknown" in question else known:
                    if is_evicted:
                        evict(folder)
                    command = [sys.executable, "-m", "benchmarks.records", str(folder), "--ask", name, question, digits]
                    answers.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
                seconds, cpu, found = zip(*answers, strict=True)
                cells = (name, question, "evicted" if is_evicted else "warm")
                times = (f"{n:.3f}" for n in (statistics.median(seconds), max(seconds), statistics.median(cpu)))
                print("|", " | ".join((*cells, *times, f"{min(found):,} to {max(found):,}")), "|", flush=True)


def _events(root: Path) -> dict[str, list[dict[str, Any]]]:
    """The journal of the last execution of each stage that ended well."""
    found = {}
    for path in sorted((root / ".axon" / "journal").glob("*.jsonl")):
        events, _ = journal.read(path)
        if events and events[0].get("kind") == "stage" and events[-1].get("status") == "FINISHED":
            found[events[0]["name"]] = events
    return found


def again(root: Path, state: Path, stage: str) -> None:
    """Build the index of one stage of a finished run in this process, where numpy and pyarrow are loaded."""
    import pyarrow.parquet  # noqa: F401

    events = _events(root)[stage]
    started, cpu = time.monotonic(), time.process_time()
    known = {"outputs": events[-1]["outputs"], "inputs": events[0]["inputs"]}
    index.build(root, state, stage, events[0]["id"], events[0]["params"], **known)
    print(json.dumps([time.monotonic() - started, time.process_time() - cpu]))


def compare(folder: Path, root: Path) -> None:
    print("| stage | work, s | index, s | of it processor, s | index / work |\n| --- | --- | --- | --- | --- |")
    total_work = total_s = 0.0
    for stage, events in _events(root).items():
        work = next(e["values"]["work_s"] for e in events if "work_s" in e.get("values", {}))
        command = [sys.executable, "-m", "benchmarks.records", str(folder), "--run", str(root), "--again", stage]
        seconds, cpu = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        total_work, total_s = total_work + work, total_s + seconds
        print(f"| {stage} | {work:.1f} | {seconds:.2f} | {cpu:.2f} | {seconds / work:.2%} |", flush=True)
    print(f"| all | {total_work:.1f} | {total_s:.2f} | | {total_s / total_work:.2%} |")
    files = list((folder / "again").rglob("*.parquet"))
    size = sum(path.stat().st_size for path in files)
    (records,) = (path for path in files if path.name == "records.parquet")
    print(f"{size / parquet_files.n_rows(records):.1f} bytes a record in all, {size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--only", default="", help="ask the questions with these words alone")
    parser.add_argument("--ask", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--again", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.ask:
        ask(given.folder / given.ask[0], *given.ask[1:])
    elif given.again:
        again(given.run, given.folder / "again", given.again)
    else:
        given.folder.mkdir(parents=True, exist_ok=True)
        if given.run:
            compare(given.folder, given.run)
        if given.records and not (given.folder / "asked.npy").is_file():
            build(given.folder, given.records)
        if given.records:
            measure(given.folder, given.only)


if __name__ == "__main__":
    main()
