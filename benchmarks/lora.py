"""What the stage `dpo` takes of a large model with adapters: memory and time, on the CPU of this machine.

Run: `.venv/bin/python -m benchmarks.lora [--preset phi_1] [--rank 16] [--pairs 16] [--precision bfloat16]
[--threads 2]`.

The stage's own code (`tasks/steps/dpo.py`) trains a published size with random weights and a vocabulary of 262 on
made-up pairs of 64 tokens, with adapters in all linear layers and with recomputed activations, in a process of its
own. Memory is that process's peak resident set: loading and writing count. Of 1.2 B parameters it takes some ten
gigabytes, and as many of disk, for a few minutes. Prints one line of markdown and one of JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from axon_models.decoder.sizes import SIZES

PAIRS_A_STEP, N_TOKENS = 4, 64


def settings(asked: argparse.Namespace) -> dict[str, Any]:
    """What the stage is told, in the words of params.yaml."""
    from tests.tasks.tiny_root import OVERRIDES

    return OVERRIDES | {
        "threads": asked.threads,
        "precision": asked.precision,
        "lora": {"rank": asked.rank, "alpha": 2.0 * asked.rank, "targets": ["attention", "feed_forward"]},
        "dpo.batch_size": PAIRS_A_STEP,
        "dpo.n_epochs": 1,
        "runtime.activation_checkpointing": True,
    }


def prepare(root: Path, asked: argparse.Namespace) -> int:
    """Tokenizer, pairs and a random `models/sft` below `root`; returns the model's parameters."""
    from dataclasses import replace

    import torch

    from axon_models import checkpoint
    from axon_models.decoder.model import Decoder
    from tasks.alignment import comparisons
    from tasks.alignment.comparisons import Comparison
    from tests.tasks.tiny_root import make_root

    make_root(root)
    generator = torch.Generator().manual_seed(0)
    prompt, *answers = torch.randint(6, 262, (3, N_TOKENS // 2), generator=generator).tolist()
    splits = ["train"] * asked.pairs + ["validation"] * PAIRS_A_STEP
    made = [
        Comparison(
            record_id=i.to_bytes(16, "big"), source="maths", task="addition", split=split, prompt=str(i),
            prompt_tokens=prompt, answers=["", ""], answer_tokens=answers, scores=[1.0, 0.0], ranks=[1, 2],
            judge="programmatic",
        )
        for i, split in enumerate(splits)
    ]  # fmt: skip
    (root / "preferences").mkdir()
    comparisons.write(root, made)
    model = Decoder(replace(SIZES[asked.preset](), vocab_size=262))
    model.init_weights(generator)
    checkpoint.save(model, root / "models" / "sft", tokenizer_dir=root / "tokenizer")
    return model.config.n_parameters


def measured(root: Path, asked: argparse.Namespace) -> dict[str, float]:
    """Run the stage here."""
    from tasks.steps import dpo
    from tests.helpers import make_context

    started = time.perf_counter()
    dpo.run(make_context(root, settings(asked), checkpoints=root / "checkpoints"))
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return {"peak_gb": peak * 1024 / 1e9, "seconds": time.perf_counter() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="phi_1", choices=SIZES, metavar="NAME", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--precision", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--in-folder", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.in_folder:
        print(json.dumps(measured(Path(asked.in_folder), asked)))
        return
    with tempfile.TemporaryDirectory() as folder:
        n = prepare(Path(folder), asked)
        command = [sys.executable, "-m", "benchmarks.lora", *sys.argv[1:], "--in-folder", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        found = json.loads(done.stdout.splitlines()[-1])
    print("| model | parameters | rank | peak, GB | bytes a parameter | stage, s |\n" + "| --- " * 6 + "|")
    per_parameter = found["peak_gb"] * 1e9 / n
    print(
        f"| `{asked.preset}` | {n:,} | {asked.rank} | {found['peak_gb']:.1f} | {per_parameter:.1f} | "
        f"{found['seconds']:.0f} |"
    )
    print(json.dumps({**found, "preset": asked.preset, "n_parameters": n, "rank": asked.rank}))


if __name__ == "__main__":
    main()
