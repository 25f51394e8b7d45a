"""Training a tokenizer and encoding 100 MB of text: Axon's path against the library `tokenizers` alone.

Run: `.venv/bin/python -m benchmarks.tokenize FOLDER [--megabytes N] [--rounds N] [--own]`. The text, made once in
FOLDER, is the Python sources (docstrings and comments included) of all packages installed in this environment: distinct
files of readable UTF-8, in the order of the SHA-256 of their paths, cut at line ends into documents of at most 8,000
characters, until there are so many megabytes; one document in twenty is held out. The same packages give the same text.

Both read the same Parquet file, train on the same documents with the same settings, and write the ids of all documents
as uint16. Axon's path is what the stage `tokenizer` does up to its metrics: train, save, hand shards to worker
processes, keep their results as files, write arrays with an index from documents to records. Only Ray is left out:
worker processes are Python's, and pass the same JSON. The library has all cores in one process (`encode_batch_fast`).
The clock starts when everything is imported and workers are there. The two take turns, each in a process of its own,
and the ids must be equal. Peak RSS (VmHWM) is that of the process, and for Axon also that of its largest worker.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tasks.data import records
from tasks.files import file_md5, read_json, write_text
from tasks.tokenizers import bytelevel, chat, folder, kinds, own, rows, shards, splits

VOCAB_SIZE, N_WORKERS, MAX_CHARS = 4096, 2, 8000
NAMES = {"axon": "Axon", "library": "`tokenizers` alone", "own": "own BPE, training alone"}


def documents(n_bytes: int) -> Iterator[tuple[str, str]]:
    """(path below the packages, text) until there are `n_bytes`; see above."""
    packages = Path(sysconfig.get_path("purelib"))
    paths = [path.relative_to(packages).as_posix() for path in packages.rglob("*.py")]
    seen: set[bytes] = set()
    left = n_bytes
    for path in sorted(paths, key=lambda path: hashlib.sha256(path.encode()).digest()):
        content = (packages / path).read_bytes()
        digest = hashlib.sha256(content).digest()
        try:
            text = content.decode()
        except UnicodeDecodeError:
            continue
        if digest in seen or not text.strip():
            continue
        seen.add(digest)
        for document in pieces(text):
            yield path, document
            left -= len(document.encode())
            if left <= 0:
                return
    raise SystemExit(f"installed packages have only {(n_bytes - left) / 1e6:.0f} MB of sources; lower --megabytes")


def pieces(text: str) -> Iterator[str]:
    """A text cut at line ends into pieces of at most `MAX_CHARS`; a longer line is a piece of its own."""
    piece = ""
    for line in text.splitlines(keepends=True):
        if piece and len(piece) + len(line) > MAX_CHARS:
            yield piece
            piece = ""
        piece += line
    if piece:
        yield piece


def write_documents(root: Path, megabytes: float) -> None:
    """data/ of a run with these documents and no demonstrations."""
    columns: dict[str, list[Any]] = {"record_id": [], "split": [], "text": []}
    for number, (path, text) in enumerate(documents(round(megabytes * 1e6))):
        columns["record_id"].append(records.record_id(path, f"{number} {text}"))
        columns["split"].append("test" if number % 20 == 19 else "train")
        columns["text"].append(text)
    names = ("record_id", "split", "task", "prompt", "answer")
    records.write(root / "data" / "demonstrations.parquet", {name: [] for name in names})
    records.write(root / "data" / "text.parquet", columns)


def _apply(item: str) -> str:
    return json.dumps(shards.encode(json.loads(item)), allow_nan=False)


def _peak_mb() -> float:
    # Not ru_maxrss: that begins at what the process had that started this one.
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024 / 1e6


def _warm(_number: int) -> float:
    time.sleep(0.2)  # so that each process has its turn
    return _peak_mb()


def fan_out_to(pool: ProcessPoolExecutor, kept: Path) -> splits.FanOut:
    """As tasks/runtime/worker.py hands items out: one for each worker at a time, each result kept as a file."""

    def fan_out(name: str, _function: str, items: Sequence[Mapping[str, Any]]) -> list[Any]:
        paths = [kept / name / f"{i:06d}.json" for i in range(len(items))]
        busy: deque[tuple[Path, Future[str]]] = deque()
        for i, path in enumerate(paths):
            if len(busy) == N_WORKERS + 1:  # one waits, so that no worker does
                keep(*busy.popleft())
            busy.append((path, pool.submit(_apply, json.dumps(items[i]))))
        while busy:
            keep(*busy.popleft())
        return [read_json(path) for path in paths]

    def keep(path: Path, result: Future[str]) -> None:
        write_text(path, result.result())

    return fan_out


def measure_axon(root: Path, out: Path) -> dict[str, float]:
    """Into `out`, a folder that sees data/ of `root`, what the stage writes."""
    import datasets  # noqa: F401 it is imported when the first index is written

    (out / "data").symlink_to((root / "data").resolve())
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(N_WORKERS, mp_context=spawn) as pool:
        list(pool.map(_warm, range(4 * N_WORKERS)))
        started = time.perf_counter()
        tokenizer = kinds.TRAIN["byte_level"](splits.TrainingTexts(root=out), vocab_size=VOCAB_SIZE)
        folder.save(tokenizer, out / "tokenizer")
        trained = time.perf_counter()
        splits.tokenise(out, fan_out_to(pool, out / "kept"))
        ended = time.perf_counter()
        workers = max(pool.map(_warm, range(4 * N_WORKERS)))
    return {"train": trained - started, "encode": ended - trained, "peak": _peak_mb(), "worker": workers}


def measure_library(root: Path, out: Path) -> dict[str, float]:
    """The same ids with nothing but `tokenizers`, pyarrow and numpy."""
    path = root / "data" / "text.parquet"

    def texts(of_split: str) -> Iterable[list[str]]:
        for batch in rows.batches(path, ["split", "text"]):
            columns = batch.to_pydict()
            yield [text for split, text in zip(columns["split"], columns["text"], strict=True) if split == of_split]

    started = time.perf_counter()
    tokenizer = bytelevel.train((text for batch in texts("train") for text in batch), vocab_size=VOCAB_SIZE)
    tokenizer.save(str(out / "tokenizer.json"))
    trained = time.perf_counter()
    tokenizer.encode_special_tokens = True
    (out / "tokens").mkdir()
    for split in ("train", "validation", "test"):
        with (out / "tokens" / f"{split}.bin").open("wb") as file:
            for batch in texts(split):
                tokens = array("H")
                for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                    tokens.fromlist(encoding.ids)
                    tokens.append(chat.END_OF_TEXT)
                tokens.tofile(file)
    ended = time.perf_counter()
    return {"train": trained - started, "encode": ended - trained, "peak": _peak_mb()}


def measure_own(root: Path, _out: Path) -> dict[str, float]:
    started = time.perf_counter()
    own.train(splits.TrainingTexts(root=root), vocab_size=VOCAB_SIZE)
    return {"train": time.perf_counter() - started, "encode": 0.0, "peak": _peak_mb()}


MEASURES: dict[str, Callable[[Path, Path], dict[str, float]]] = {
    "axon": measure_axon,
    "library": measure_library,
    "own": measure_own,
}


def measured(which: str, root: Path, out: Path) -> dict[str, float]:
    """One measurement in a process of its own."""
    out.mkdir()
    command = [sys.executable, "-m", "benchmarks.tokenize", str(root), "--measure", which, "--out", str(out)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found | {"total": found["train"] + found["encode"]}


def same_ids(axon: Path, library: Path) -> bool:
    pairs = [(axon / "tokens" / f"text.{s}.npy", library / "tokens" / f"{s}.bin") for s in ("train", "test")]
    return all(np.array_equal(shards.load_tokens(a), np.fromfile(b, dtype="<u2")) for a, b in pairs)


def compare(root: Path, n_rounds: int, with_own: bool) -> None:
    found: dict[str, list[dict[str, float]]] = {"axon": [], "library": []}
    for number in range(n_rounds):
        with tempfile.TemporaryDirectory(dir=root) as scratch:
            order = list(found) if number % 2 == 0 else list(reversed(found))
            results = {which: measured(which, root, Path(scratch) / which) for which in order}
            if not same_ids(Path(scratch) / "axon", Path(scratch) / "library"):
                raise SystemExit("the ids of the two differ")
        for which, result in results.items():
            found[which].append(result)
    if with_own:
        with tempfile.TemporaryDirectory(dir=root) as scratch:
            found["own"] = [measured("own", root, Path(scratch) / "own")]
    print("| | train, s | encode and write, s | together, s | range | peak RSS, MB | of a worker, MB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for which, results in found.items():
        middle = {key: statistics.median(result[key] for result in results) for key in results[0]}
        totals = [result["total"] for result in results]
        worker = f"{middle['worker']:,.0f}" if "worker" in middle else ""
        print(
            f"| {NAMES[which]} | {middle['train']:.2f} | {middle['encode']:.2f} | {middle['total']:.2f} | "
            f"{min(totals):.2f} to {max(totals):.2f} | {middle['peak']:,.0f} | {worker} |"
        )
    ratios = [a["total"] / b["total"] for a, b in zip(found["axon"], found["library"], strict=True)]
    print(f"\nAxon / library: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}), equal ids")
    text = root / "data" / "text.parquet"
    n_bytes = sum(rows.sizes(text, ["text"]))
    print(json.dumps({"text_bytes": n_bytes, "text_md5": file_md5(text), "vocab_size": VOCAB_SIZE, "found": found}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--own", action="store_true", help="time the training of our own BPE too, once")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(MEASURES[arguments.measure](arguments.folder, arguments.out)))
        return
    root = arguments.folder / f"{arguments.megabytes:g}MB"
    if not (root / "data" / "text.parquet").is_file():
        write_documents(root, arguments.megabytes)
    compare(root, arguments.rounds, arguments.own)


if __name__ == "__main__":
    main()
