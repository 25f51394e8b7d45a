"""Checkpoints as others release them: written by `transformers`, with tokenizers of their own, tiny."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
)

TEXTS = [f"the {i} cats sat on the mat, and so did {2 * i} dogs; nobody said why." for i in range(40)]
KINDS = ("gpt2", "llama", "mistral", "mixtral", "phi")


def gpt2_tokenizer() -> Tokenizer:
    """Byte-level, the end of a text last, as GPT-2 has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def phi_tokenizer() -> Tokenizer:
    """GPT-2's, and runs of spaces behind it that are no special tokens."""
    tokenizer = gpt2_tokenizer()
    tokenizer.add_tokens([AddedToken(" " * n, normalized=False) for n in (4, 3, 2)])
    return tokenizer


def llama_tokenizer() -> Tokenizer:
    """Byte fallback, the special tokens first, the begin of a text added by itself, as Llama has it."""
    special = ["<unk>", "<s>", "</s>"]
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.Metaspace()
    learnt.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=60, show_progress=False))
    found = learnt.get_vocab()
    merges = [tuple(pair) for pair in json.loads(learnt.to_str())["model"]["merges"]]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(found, key=found.__getitem__)]
    model = models.BPE(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges,
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def _model(kind: str, tokenizer: Tokenizer) -> PreTrainedModel:
    n = tokenizer.get_vocab_size()
    if kind == "gpt2":
        sizes: dict[str, Any] = {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 64}
        return GPT2LMHeadModel(GPT2Config(vocab_size=n, bos_token_id=n - 1, eos_token_id=n - 1, **sizes))
    sizes = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "max_position_embeddings": 64,
    }
    if kind == "phi":  # more rows than tokens, as Phi has it
        return PhiForCausalLM(
            PhiConfig(vocab_size=n + 13, partial_rotary_factor=0.5, bos_token_id=0, eos_token_id=0, **sizes)
        )
    sizes |= {"vocab_size": n, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**sizes))
    if kind == "mistral":
        return MistralForCausalLM(MistralConfig(sliding_window=16, **sizes))
    return MixtralForCausalLM(MixtralConfig(num_local_experts=4, num_experts_per_tok=2, sliding_window=None, **sizes))


def release(directory: Path, kind: str) -> tuple[PreTrainedModel, Tokenizer]:
    """Write a checkpoint in bfloat16, in shards; returns it in float32, as `transformers` knows it."""
    torch.manual_seed(0)
    tokenizer = {"gpt2": gpt2_tokenizer, "phi": phi_tokenizer}.get(kind, llama_tokenizer)()
    model = _model(kind, tokenizer)
    for parameter in model.parameters():  # weights large enough that every path matters
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    model = model.to(torch.bfloat16)
    model.save_pretrained(directory, max_shard_size="20KB")
    tokenizer.save(str(directory / "tokenizer.json"))
    assert len(list(directory.glob("*.safetensors"))) > 1
    # Read again: the tables of rotary positions of a model in bfloat16 are rounded too.
    return type(model).from_pretrained(directory, dtype=torch.float32).eval(), tokenizer
