"""Bad parameters end in one message that names every mistake, before anything runs."""

import pytest

from tasks.errors import UserError
from tasks.parameters import check, load, read_tree
from tests.helpers import REPOSITORY, make_tree

LORA = {"rank": 16, "alpha": 32, "targets": ["attention", "feed_forward"]}


def message(overrides: dict) -> str:
    tree = make_tree()
    for key, value in overrides.items():
        *path, last = key.split(".")
        section = tree
        for part in path:
            section = section[part]
        section[last] = value
    with pytest.raises(UserError) as caught:
        check(tree)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_the_repository_s_own_parameters_are_allowed():
    assert load(REPOSITORY).model.preset == "x_llama"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"dpo.betta": 0.1}, "dpo.betta is not a parameter; did you mean dpo.beta?"),
        ({"sead": 1}, "sead is not a parameter; did you mean seed?"),
        ({"model.heads": "six"}, "model.heads='six'"),
        ({"seed": True}, "seed=True"),
        ({"model.preset": "lama2_7b"}, "or 'phi_2'; did you mean llama2_7b?"),
        ({"dpo.beta": 0}, "dpo.beta=0"),
        ({"dpo.beta": float("nan")}, "dpo.beta=nan"),
        ({"pretrain.learning_rate": float("inf")}, "pretrain.learning_rate=inf"),
        ({"preferences.answers_per_prompt": 1}, "preferences.answers_per_prompt=1"),
        ({"model.d_model": 190, "model.heads": 6}, "model.d_model=190 must be divisible by model.heads=6"),
        ({"model.d_model": 192, "model.heads": 6, "model.kv_heads": 4}, "model.kv_heads=4 must divide model.heads=6"),
        ({"tokenizer.vocab_size": 200}, "tokenizer.vocab_size=200 must be at least 262"),
        (
            {"tokenizer.vocab_size": 267, "tokenizer.kind": "byte_fallback"},
            "tokenizer.vocab_size=267 must be at least 268",
        ),
        ({"tokenizer.kind": "word"}, "tokenizer.kind='word'"),
        ({"pretrain.seq_len": 4096}, "pretrain.seq_len=4096 must be at most model.max_positions"),
        ({"pretrain.accumulation": 3}, "pretrain.accumulation=3 must divide pretrain.batch_size"),
        ({"data.maths.kinds": ["additon"]}, "data.maths.kinds.0='additon'"),
        ({"data.splits": {"preference": 0.5, "validation": 0.3, "test": 0.3}}, "data.splits"),
        ({"lora": {**LORA, "rank": 0}}, "lora.rank=0"),
        ({"lora": {**LORA, "rank": 257}}, "lora.rank=257 must be at most model.d_model=256"),
        ({"lora": {**LORA, "alpha": 0}}, "lora.alpha=0"),
        ({"lora": {**LORA, "targets": []}}, "lora.targets=[]"),
        ({"lora": {**LORA, "targets": ["embedding"]}}, "lora.targets.0='embedding'"),
        ({"lora": {**LORA, "targets": ["attention"] * 2}}, "lora.targets=['attention', 'attention'] must name each"),
        ({"lora": {**LORA, "ranc": 8}}, "lora.ranc is not a parameter; did you mean lora.rank?"),
        ({"lora": {"rank": 8, "alpha": 8}}, "lora.targets is missing"),
        ({"lora": LORA, "partition": "shard"}, "partition=shard is not for lora"),
        ({"lora": LORA, "partition": "pipeline"}, "partition=pipeline is not for lora"),
        ({"lora": LORA, "model.preset": "mixtral"}, "'feed_forward'] is not for model.preset=mixtral"),
        ({"precision": "float16"}, "precision='float16'"),
        ({"data.files": [{"path": "sources/x.jsonl"}]}, "data.files.0.license is missing"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_value(overrides, expected):
    assert expected in message(overrides)


def test_several_mistakes_are_reported_together():
    text = message({"dpo.betta": 1, "model.heads": "x", "preferences.answers_per_prompt": 1})
    assert "3 mistake(s)" in text
    assert text.count("\n  - ") == 3


def test_a_missing_key_is_a_mistake_because_there_are_no_defaults():
    tree = make_tree()
    del tree["dpo"]["beta"]
    with pytest.raises(UserError, match=r"dpo\.beta is missing"):
        check(tree)


@pytest.mark.parametrize("content", ["a: [1,", "\tx: 1", "just text", "- 1\n- 2", "", b"\xff\xfe\x00"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, content):
    path = tmp_path / "params.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match="params"):
        check(read_tree(path))


def test_a_missing_file_says_how_to_restore_it(tmp_path):
    with pytest.raises(UserError, match="git checkout"):
        load(tmp_path)
