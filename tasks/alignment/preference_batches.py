"""Ranked answers as tensors: prompts with all their answers for the reward model, pairs for DPO."""

# P prompts or pairs, K answers of a prompt, T time

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tasks.alignment.comparisons import Comparison, best_and_worst
from tasks.tokenizers.chat import PAD
from tasks.training.batches import Batch, pad_rows


def ranked_batch(comparisons: Sequence[Comparison], device: torch.device) -> Batch:
    """tokens (P, K, T) int64; lengths (P, K) int64, 1 for an answer that is not there; ranks (P, K); n_answers (P,).

    Every answer is one sequence that passes the model once, however many pairs it is in.
    """
    most = max(len(c.ranks) for c in comparisons)
    sequences, lengths, ranks = [], [], []
    for comparison in comparisons:
        missing = most - len(comparison.ranks)
        sequences += comparison.sequences() + [[PAD]] * missing
        lengths.append([len(s) for s in comparison.sequences()] + [1] * missing)
        ranks.append(comparison.ranks + [0] * missing)
    tensors = {
        "tokens": pad_rows(sequences, pad_id=PAD).unflatten(0, (len(comparisons), most)),
        "lengths": torch.tensor(lengths),
        "ranks": torch.tensor(ranks),
        "n_answers": torch.tensor([len(c.ranks) for c in comparisons]),
    }
    return Batch(
        tensors={name: t.to(device) for name, t in tensors.items()},
        n_targets=len(comparisons),
        n_tokens=sum(len(s) for c in comparisons for s in c.sequences()),
    )


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A preferred and a refused answer to one prompt, each with its log-probability under the reference."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    ref_chosen: float = 0.0
    ref_rejected: float = 0.0

    @property
    def longest(self) -> int:
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


def best_worst_pair(comparison: Comparison) -> Pair:
    """One pair of a prompt: a best and a worst answer.

    All pairs would make a prompt with two right and two wrong answers count four times, with every answer in two
    of them, and cost twice the time; the widest margin of each prompt carries most of what the judge said.
    """
    chosen, rejected = best_and_worst(comparison)
    return Pair(prompt=comparison.prompt_tokens, chosen=chosen, rejected=rejected)


def pair_batch(pairs: Sequence[Pair], device: torch.device) -> Batch:
    """tokens (P, 2, T) int64: chosen, rejected; answer (P, 2, T−1) bool: places whose next token is the answer's;
    reference (P, 2) float32."""
    sequences = [prompt_answer for p in pairs for prompt_answer in (p.prompt + p.chosen, p.prompt + p.rejected)]
    tokens = pad_rows(sequences, pad_id=PAD)  # (2P, T)
    starts = torch.tensor([len(p.prompt) for p in pairs for _ in range(2)])[:, None]  # (2P, 1)
    ends = torch.tensor([len(s) for s in sequences])[:, None]  # (2P, 1)
    targets = torch.arange(1, tokens.shape[1])  # (T−1,): place t predicts token t+1
    answer = (targets >= starts) & (targets < ends)  # (2P, T−1)
    tensors = {
        "tokens": tokens.unflatten(0, (-1, 2)),
        "answer": answer.unflatten(0, (-1, 2)),
        "reference": torch.tensor([[p.ref_chosen, p.ref_rejected] for p in pairs]),
    }
    return Batch(
        tensors={name: t.to(device) for name, t in tensors.items()},
        n_targets=len(pairs),
        n_tokens=sum(len(s) for s in sequences),
    )
