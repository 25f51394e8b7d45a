"""Pretraining that starts from a released checkpoint, with the checkpoint's own tokenizer."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer

from axon_models import checkpoint
from axon_models.vocabulary import NEW, renumbered
from tasks.errors import UserError
from tasks.lineage import forget
from tasks.lineage.forget import Request
from tasks.steps import data, pretrain, sft, tokenizer
from tasks.tokenizers import adopted, bytelevel, chat
from tests.axon_models.small import small_decoder, some_tokens
from tests.helpers import make_context, make_params
from tests.tasks.released import KINDS, release
from tests.tasks.test_data_own_files import _write
from tests.tasks.tiny_root import OVERRIDES, byte_tokenizer, digests

TEXT = "so did 17 cats\nand  the   dogs: naïve 日本 <|user|> <|endoftext|></s>"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
INIT_FROM = {"pretrain.init_from": "sources/models/released"}


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_text_and_logits_are_the_checkpoint_s_under_other_ids(kind: str, tmp_path: Path) -> None:
    theirs, own = release(tmp_path, kind)
    found = adopted.adopt(tmp_path)
    model = renumbered(checkpoint.load(tmp_path), found.rows)
    assert [found.tokenizer.token_to_id(token) for token in chat.SPECIAL_TOKENS] == [0, 1, 2, 3, 4, 5]
    own.encode_special_tokens = True
    before, after = own.encode(TEXT, add_special_tokens=False), chat.encode_text(found.tokenizer, TEXT)
    assert [own.token_to_id(found.tokenizer.id_to_token(i)) for i in after] == before.ids
    assert [found.rows[i] for i in after] == before.ids
    assert min(after) > chat.END, "what a text spells is no special token"
    assert found.tokenizer.decode(after) == own.decode(before.ids) == TEXT
    old = torch.tensor(found.rows)
    kept = old != NEW
    with torch.no_grad():
        expected = theirs(torch.tensor([before.ids])).logits[..., old[kept]]
        scores = model(torch.tensor([after]))[..., kept]
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_of_a_text_is_the_checkpoint_s_own(kind: str, tmp_path: Path) -> None:
    theirs, own = release(tmp_path, kind)
    rows = adopted.adopt(tmp_path).rows
    assert rows[1:6] == (NEW,) * 5
    ends = own.token_to_id("<|endoftext|>") if kind in ("gpt2", "phi") else own.token_to_id("</s>")
    assert rows[0] == ends
    assert sorted({row for row in rows if row != NEW}) == list(range(theirs.config.vocab_size)), "no row is lost"


@pytest.mark.parametrize("sizes", [{"tied_embeddings": True}, {"tied_embeddings": False, "output_bias": True}])
def test_a_new_row_is_the_mean_of_the_old_ones(sizes: dict[str, bool]) -> None:
    model = small_decoder(**sizes)
    changed = renumbered(model, [NEW, 3, 3, 66, NEW])
    for name in ["embedding.weight"] + ([] if sizes["tied_embeddings"] else ["output.weight"]):
        old, new = model.get_parameter(name), changed.get_parameter(name)
        torch.testing.assert_close(new[0], old.mean(0))
        assert torch.equal(new, torch.stack([new[0], old[3], old[3], old[66], new[0]]))
    assert changed.config.vocab_size == 5
    tokens = some_tokens(2, 9, vocab_size=2)
    with torch.no_grad():
        expected = model(torch.where(tokens == 0, 3, 66))[..., [3, 66]]
        torch.testing.assert_close(changed(torch.where(tokens == 0, 1, 3))[..., [1, 3]], expected)
    with pytest.raises(ValueError, match=r"from 0 to 66, or -1 for new ones, but there are \[-2, 67\]"):
        renumbered(model, [67, -2])


def test_a_model_of_axon_s_own_keeps_its_ids(tmp_path: Path) -> None:
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    checkpoint.save(small_decoder(vocab_size=270), tmp_path)
    found = adopted.adopt(tmp_path)
    assert found.rows == tuple(range(270))
    assert found.tokenizer.to_str() == byte_tokenizer().to_str()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a released GPT-2 with its tokenizer made ready."""
    folder = tmp_path_factory.mktemp("run")
    release(folder / "sources" / "models" / "released", "gpt2")
    overrides = OVERRIDES | _write(folder, 120, 0) | INIT_FROM
    data.run(make_context(folder, overrides))
    tokenizer.run(make_context(folder, overrides))
    return folder


def _train(root: Path, **more: object) -> None:
    overrides = OVERRIDES | INIT_FROM | {key.replace("__", "."): value for key, value in more.items()}
    pretrain.run(make_context(root, overrides, checkpoints=root / ".axon" / "checkpoints" / "pretrain"))


def test_the_pipeline_goes_on_with_model_and_tokenizer(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    directory = tmp_path / "models" / "pretrain"
    _train(tmp_path, pretrain__learning_rate=1e-12, pretrain__min_learning_rate=0.0)
    source = tmp_path / "sources" / "models" / "released"
    expected = renumbered(checkpoint.load(source), adopted.adopt(source).rows).state_dict()
    torch.testing.assert_close(checkpoint.load(directory).state_dict(), expected, atol=1e-6, rtol=0)
    tokens, theirs = AutoTokenizer.from_pretrained(directory), AutoModelForCausalLM.from_pretrained(directory)
    assert tokens("a cat")["input_ids"] == chat.encode_text(bytelevel.load(tmp_path / "tokenizer"), "a cat")
    asked = torch.tensor([tokens("so did the dogs")["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(theirs(asked).logits, checkpoint.load(directory)(asked), atol=1e-4, rtol=0)
    sft.run(make_context(tmp_path, OVERRIDES | INIT_FROM, checkpoints=tmp_path / ".axon" / "checkpoints" / "sft"))
    assert checkpoint.load(tmp_path / "models" / "sft").config.vocab_size == 306
    metrics = {
        stage: json.loads((tmp_path / "metrics" / f"{stage}.json").read_text()) for stage in ("tokenizer", "pretrain")
    }
    assert (metrics["tokenizer"]["kept"], metrics["tokenizer"]["vocab_size"]) == (True, 306)
    assert metrics["pretrain"]["started_from"] == "sources/models/released"


def test_it_learns_and_twice_the_same(root: Path, tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        shutil.copytree(root, tmp_path / name)
        _train(tmp_path / name, pretrain__n_steps=12)
        found.append(digests(tmp_path / name, "models", "metrics"))
    assert found[0] == found[1]
    rows = list(csv.DictReader((tmp_path / "a" / "metrics" / "curves" / "pretrain.csv").open()))
    values = [float(row["validation_bits_per_byte"]) for row in rows if row["validation_bits_per_byte"]]
    assert values[-1] < values[0]


def test_a_released_model_that_is_too_short_or_not_the_tokenizer_s_is_refused(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"model.max_positions=128 must be at most 64, what pretrain.init_from=\S+ has"):
        _train(tmp_path, model__max_positions=128)
    with pytest.raises(UserError, match=r"partition=pipeline with workers=3 does not go with"):
        _train(tmp_path, partition="pipeline", workers=3)
    byte_tokenizer().save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    with pytest.raises(UserError, match=r"tokenizer/ is of something else; make it again with: axon run tokenizer"):
        _train(tmp_path)
    (tmp_path / "sources" / "models" / "released" / "model.safetensors.index.json").unlink()
    shutil.copytree(root / "tokenizer", tmp_path / "tokenizer", dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"pretrain.init_from=\S+: .*model.safetensors is missing"):
        _train(tmp_path)


def test_rows_longer_than_a_dynamically_scaled_model_was_trained_on_are_refused(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "data", tmp_path / "data")
    released = tmp_path / "sources" / "models" / "released"
    release(released, "llama")
    plain = json.loads((released / "config.json").read_text())
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    (released / "config.json").write_text(json.dumps({**plain, "rope_parameters": rope}))
    tokenizer.run(make_context(tmp_path, OVERRIDES | INIT_FROM))
    with pytest.raises(UserError, match=r"must be at most 64, the length that pretrain.init_from=\S+ was .* is 96"):
        _train(tmp_path, model__max_positions=128, sft__seq_len=96)
    _train(tmp_path, model__max_positions=128)


def test_another_tokenizer_that_is_kept_is_a_contradiction(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    kept = tmp_path / "sources" / "tokenizer"
    shutil.copytree(root / "tokenizer", kept)
    context = make_context(tmp_path, OVERRIDES | INIT_FROM)
    tokenizer.run(context)
    assert digests(tmp_path, "tokenizer", "tokens") == digests(root, "tokenizer", "tokens")
    byte_tokenizer().save(str(kept / "tokenizer.json"))
    with pytest.raises(UserError, match=r"another tokenizer than that of pretrain.init_from=sources/models/released"):
        tokenizer.run(context)


def test_tokenizers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer.json is missing, and a model to start from needs its tokenizer"):
        adopted.adopt(tmp_path)
    own = byte_tokenizer()
    own.add_tokens([f"word{i}" for i in range(9)])
    own.save(str(tmp_path / "tokenizer.json"))
    checkpoint.save(small_decoder(vocab_size=264), tmp_path)
    message = r"has 264 rows \(vocab_size in config.json\): there are no rows for ids 264 \('word2'\), .* and 2 more"
    with pytest.raises(UserError, match=message):
        adopted.adopt(tmp_path)
    (tmp_path / "config.json").write_text('{"vocab_size": 70000}')
    with pytest.raises(UserError, match="70000 tokens, but there can be 65536 at most: ids are 16 bits"):
        adopted.adopt(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="vocab_size=None must be a whole number"):
        adopted.adopt(tmp_path)
    Tokenizer(models.Unigram([("a", -1.0)], unk_id=0)).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"model.type='Unigram' must be BPE"):
        adopted.adopt(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer.json is not JSON"):
        adopted.adopt(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "gpt2",
        "openai-community/gpt2",
        "../gpt2",
        "sources/models/..",
        "sources/models/a/b",
        "/x/y",
        f"a/b@{COMMIT[1:]}",
    ],
)
def test_what_dvc_cannot_track_is_no_start(name: str) -> None:
    with pytest.raises(
        UserError, match=r"pretrain.init_from=.* must be null, sources/models/NAME, or OWNER/NAME@COMMIT"
    ):
        make_params({"pretrain.init_from": name})


def test_a_folder_or_a_commit_of_the_hub_is_a_start() -> None:
    for name in (None, "sources/models/gpt2", "sources/models/Llama-2.7b_hf", f"openai-community/gpt2@{COMMIT}"):
        assert make_params({"pretrain.init_from": name}).pretrain.init_from == name


def test_a_commit_of_the_hub_is_looked_for_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    name = f"owner/name@{COMMIT}"
    with pytest.raises(UserError, match="fetch it once with HF_HUB_OFFLINE=0 in the environment, or put") as caught:
        adopted.directory_of(tmp_path, name)
    assert (caught.value.exit_code, f"pretrain.init_from={name}" in str(caught.value)) == (1, True)
    there = tmp_path / "models--owner--name" / "snapshots" / COMMIT
    release(there, "gpt2")
    found = adopted.directory_of(tmp_path, name)
    assert found == there
    assert adopted.adopt(found).rows[0] == 300


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pretrain.init_from=sources/models/x: there is no such folder"):
        adopted.directory_of(tmp_path, "sources/models/x")


@pytest.mark.parametrize(("init_from", "expected"), [(None, "trained again"), ("sources/models/x", "as it is")])
def test_forgetting_a_record_does_not_train_the_checkpoint_s_tokenizer(
    tmp_path: Path, init_from: str | None, expected: str
) -> None:
    params, kept = make_params({"pretrain.init_from": init_from}), [SimpleNamespace(split="train")]
    request = Request(source="maths", reason="asked")
    assert forget._tokenizer(tmp_path, params, request, kept, True) == expected
