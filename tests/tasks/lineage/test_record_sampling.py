"""Counting without running: what the index computes for a sampler is what running the sampler through gives."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.alignment import prompts
from tasks.errors import UserError
from tasks.lineage.records import ids as record_ids
from tasks.lineage.records import sampling
from tasks.steps import sft_continued
from tasks.training.batches import stream_batch
from tasks.training.examples import Example, pack
from tasks.training.packing import PackedData
from tasks.training.sampling import rows_of_batch, seed_of

CPU = torch.device("cpu")


@settings(deadline=None)
@given(n_rows=st.integers(1, 30), batch_size=st.integers(1, 12), n_steps=st.integers(0, 20), seed=st.integers(0, 9))
def test_times_taken_counts_rows_of_batch(n_rows, batch_size, n_steps, seed):
    batches = [rows_of_batch(k, n_rows=n_rows, batch_size=batch_size, seed=seed) for k in range(n_steps)]
    truth = Counter(row for rows in batches for row in rows.tolist())
    counts = sampling.times_taken(n_rows, n_steps * batch_size, seed)
    assert counts.tolist() == [truth[row] for row in range(n_rows)]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=20, max_size=60),
    seq_len=st.integers(2, 16),
    batch_size=st.integers(1, 6),
    n_steps=st.integers(0, 40),
    seed=st.integers(0, 99),
)
def test_documents_read_counts_the_documents_of_each_row(lengths, seq_len, batch_size, n_steps, seed):
    stream = np.repeat(np.arange(len(lengths)), lengths).astype(np.uint16)
    if (len(stream) - 1) // seq_len < 2:
        return
    truth = Counter()
    for k in range(n_steps):
        batch = stream_batch(stream, k, batch_size=batch_size, seq_len=seq_len, seed=seed, device=CPU)
        for row in torch.cat([batch.tensors["tokens"], batch.tensors["targets"]], dim=1).tolist():
            truth.update(set(row))
    ends = np.cumsum(lengths)
    sizes = {"n_tokens": len(stream), "seq_len": seq_len, "n_rows": n_steps * batch_size, "seed": seed}
    counts = sampling.documents_read(ends - lengths, np.array(lengths), **sizes)
    assert counts.tolist() == [truth[number] for number in range(len(lengths))]


def _examples(lengths: list[int]) -> list[Example]:
    return [
        Example(record_id=seed_of("example", i).to_bytes(8, "big") * 2, tokens=[0] * length, prompt_length=1)
        for i, length in enumerate(lengths)
    ]


def _packing(examples: list[Example], seq_len: int, seed: int) -> sampling.Packing:
    ids = record_ids.of_bytes([e.record_id for e in examples])
    return sampling.pack(ids, np.array([len(e.tokens) for e in examples]), seq_len=seq_len, seed=seed)


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60), seq_len=st.integers(1, 36), seed=st.integers(0, 9)
)
def test_packing_puts_examples_into_the_rows_of_training(lengths, seq_len, seed):
    examples = _examples(lengths)
    rows, n_too_long = pack(examples, seq_len=seq_len, seed=seed)
    packing = _packing(examples, seq_len, seed)
    assert len(packing.items) == len(examples) - n_too_long
    found = [[examples[i] for i in packing.items[packing.rows == row]] for row in range(packing.n_rows)]
    assert found == rows
    assert packing.n_tokens.tolist() == [sum(len(e.tokens) - 1 for e in row) for row in rows]


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(2, 30), min_size=1, max_size=40),
    tokens=st.integers(1, 3000),
    n_steps=st.integers(1, 30),
    seed=st.integers(0, 9),
)
def test_the_budget_is_that_of_the_control(lengths, tokens, n_steps, seed):
    examples = _examples(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sft_continued,
            "packed_demonstrations",
            lambda context, split, *, seed_name, batch_size: PackedData.of(
                examples, seq_len=32, batch_size=batch_size, seed=seed
            ),
        )
        truth = sft_continued.match_budget(None, tokens=tokens, n_steps=n_steps)  # type: ignore[arg-type]
    assert sampling.budget(_packing(examples, 32, seed), seed, tokens=tokens, n_steps=n_steps) == truth


@settings(deadline=None)
@given(
    tasks=st.lists(st.sampled_from(["addition", "docs", "latex", "own"]), max_size=60),
    n=st.integers(0, 70),
    seed=st.integers(0, 9),
)
def test_dealing_chooses_the_prompts_of_training(tasks, n, seed):
    examples = [
        Example(record_id=seed_of(i).to_bytes(8, "big") * 2, task=task, tokens=[1], prompt_length=1)
        for i, task in enumerate(tasks)
    ]
    chosen = sampling.deal([e.record_id.hex() for e in examples], tasks, n, seed)
    assert [examples[i] for i in chosen] == prompts.choose(examples, n, seed)


@settings(deadline=None)
@given(n_steps=st.integers(1, 50), every=st.integers(1, 60))
def test_evaluations_are_those_of_the_loop(n_steps, every):
    truth = sum(step % every == 0 or step == n_steps for step in range(n_steps + 1))
    assert sampling.n_evaluations(n_steps, every) == truth


_FEW_BYTES = st.lists(st.sampled_from([0, 1, 255]), min_size=16, max_size=16).map(bytes)
_IDS = st.lists(st.one_of(st.binary(min_size=16, max_size=16), _FEW_BYTES, st.just(bytes(16))), max_size=40)


@settings(deadline=None)
@given(table=_IDS, wanted=_IDS)
def test_ids_are_ordered_and_found_as_bytes(table, wanted):
    ids = record_ids.of_bytes(table)
    assert [table[i] for i in record_ids.order(ids)] == sorted(table)
    rows = record_ids.distinct(ids)
    assert [table[i] for i in rows] == sorted(set(table))
    assert rows.tolist() == [table.index(record_id) for record_id in sorted(set(table))]
    known = sorted(set(table))
    asked = wanted + table[:3]
    truth = [known.index(record_id) if record_id in known else -1 for record_id in asked]
    assert record_ids.find(ids[rows], record_ids.of_bytes(asked)).tolist() == truth


@pytest.mark.parametrize("text", ["", "zz", "0" * 31, "g" * 32, "0" * 33])
def test_what_is_not_an_id_is_refused(text):
    with pytest.raises(UserError, match=f"has {len(text)} characters"):
        record_ids.parse(text)


def test_an_id_is_read_as_it_is_shown():
    assert record_ids.parse(" 00FF" + "ab" * 14 + "\n") == b"\x00\xff" + b"\xab" * 14
