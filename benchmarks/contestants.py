"""One training of one contestant in a process of its own: Axon's Llama and GPT-2, transformers', and litgpt.

Run by `benchmarks.train` and `benchmarks.cost_curves` as `PYTHON -m benchmarks.contestants SPEC`, SPEC the JSON of a
`Spec`; prints the JSON of what was measured. All take the same step: mean cross-entropy of the same rows, gradients
clipped at 1, fused AdamW that decays the same matrices. What is imported is imported by the contestant that needs it:
litgpt has an environment of its own.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.flops import Shape

LEARNING_RATE, WEIGHT_DECAY, BETA2, CLIP_NORM = 1e-3, 0.1, 0.95, 1.0
N_WARM = 2  # steps before those that are timed: the first ones fill caches and allocate
Step = Callable[[Any, Any], float]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Who trains what, and how. attention: "sdpa" or "eager" where the contestant has a choice, else "".

    weights: a checkpoint of Axon to start from, "" for fresh weights. tokens: an .npy file of token ids.
    """

    contestant: str
    precision: str
    attention: str = ""
    compiled: bool = False
    recompute: bool = False
    weights: str = ""
    tokens: str
    n_steps: int
    threads: int
    shape: dict[str, int] = field(default_factory=dict)

    @property
    def label(self) -> str:
        more = [self.attention, "compiled" if self.compiled else "", "recomputing" if self.recompute else ""]
        named = ", ".join(word for word in more if word)
        return f"{self.contestant} ({named})" if named else self.contestant


def _adamw(model: Any) -> Any:
    """Fused AdamW of a peer, with the groups of `tasks.training.optimizer.adamw`."""
    import torch

    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    decayed = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in embeddings]
    others = [p for p in model.parameters() if p.ndim < 2 or id(p) in embeddings]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, BETA2), eps=1e-8, fused=True)


def _peer(spec: Spec, model: Any, logits: Callable[[Any], Any]) -> Step:
    """The step that a user of a model writes down: scores, cross-entropy, backward, clip, step."""
    import torch

    if spec.compiled:
        model.compile()
    model.train()
    optimizer = _adamw(model)

    def step(tokens: Any, targets: Any) -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=spec.precision == "bfloat16"):
            scores = logits(tokens)  # (B, T, V)
            loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1).float(), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        return float(loss.item())

    return step


def fresh_decoder(shape: Shape) -> Any:
    """Axon's decoder of this shape with the weights of seed 0."""
    import torch

    from axon_models.decoder.model import Decoder
    from axon_models.decoder.presets import x_llama

    names = ("vocab_size", "d_model", "n_layers", "heads", "kv_heads", "d_feed_forward")
    sizes = {name: getattr(shape, name) for name in names}
    model = Decoder(x_llama(**sizes, max_positions=max(512, shape.seq_len)))
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def fresh_gpt2(shape: Shape) -> Any:
    """Axon's GPT-2 of the sizes of `_gpt2`, with the weights of seed 0."""
    import torch

    from axon_models.decoder.model import Decoder
    from axon_models.decoder.presets import gpt2

    names = ("vocab_size", "d_model", "n_layers", "heads")
    sizes = {name: getattr(shape, name) for name in names}
    model = Decoder(gpt2(**sizes, d_feed_forward=shape.gpt2_inner, max_positions=shape.seq_len))
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def _axon(spec: Spec, shape: Shape) -> Step:
    """The step of the stage `pretrain`: the product's own functions, with its deterministic algorithms."""
    import torch

    from axon_models.checkpoint import load
    from tasks.training import loop
    from tasks.training.batches import Batch
    from tasks.training.device import set_threads
    from tasks.training.losses import stream_loss
    from tasks.training.optimizer import adamw
    from tasks.training.parallel import ALONE, Objective
    from tasks.training.recomputation import recompute_activations

    set_threads(spec.threads)
    if spec.contestant == "axon-gpt2":
        model = fresh_gpt2(shape)
    else:
        model = load(Path(spec.weights)) if spec.weights else fresh_decoder(shape)
    model.train()
    if spec.recompute:
        recompute_activations(model)
    if spec.compiled:
        for block in model.blocks:
            block.compile()
    objective = Objective(model, stream_loss)
    optimizer = adamw(model, learning_rate=LEARNING_RATE, beta2=BETA2, weight_decay=WEIGHT_DECAY)
    recipe = loop.Recipe(
        stage="benchmark",
        n_steps=spec.n_steps,
        learning_rate=LEARNING_RATE,
        warmup_steps=0,
        weight_decay=WEIGHT_DECAY,
        clip_norm=CLIP_NORM,
        evaluate_every=1,
        precision=spec.precision,
    )

    def step(tokens: torch.Tensor, targets: torch.Tensor) -> float:
        n = tokens.numel()
        rows = Batch(tensors={"tokens": tokens, "targets": targets}, n_targets=n, n_tokens=n)
        loss, _ = loop.gradients(objective, optimizer, rows, recipe, torch.device("cpu"), ALONE)
        optimizer.step()
        return loss

    return step


def _llama(spec: Spec, shape: Shape) -> Step:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(spec.weights, attn_implementation=spec.attention)
    # Left to itself it keeps the vector of the padding token from learning, and the loss curve is another one.
    model.get_input_embeddings().padding_idx = None
    return _peer(spec, model, lambda tokens: model(tokens, use_cache=False).logits)


def _gpt2(spec: Spec, shape: Shape) -> Step:
    """GPT-2 as deep and wide, its feed-forward as wide as makes its blocks as large; with weights of its own."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=shape.vocab_size,
        n_positions=shape.seq_len,
        n_embd=shape.d_model,
        n_layer=shape.n_layers,
        n_head=shape.heads,
        n_inner=shape.gpt2_inner,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        attn_implementation=spec.attention,
    )
    model = GPT2LMHeadModel(config)
    return _peer(spec, model, lambda tokens: model(tokens, use_cache=False).logits)


def _litgpt(spec: Spec, shape: Shape) -> Step:
    import torch
    from litgpt.config import Config
    from litgpt.model import GPT
    from safetensors.torch import load_file

    config = Config(
        block_size=shape.seq_len,
        n_layer=shape.n_layers,
        n_head=shape.heads,
        n_query_groups=shape.kv_heads,
        n_embd=shape.d_model,
        intermediate_size=shape.d_feed_forward,
        vocab_size=shape.vocab_size,
        padded_vocab_size=shape.vocab_size,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=1e-5,
        mlp_class_name="LLaMAMLP",
    )
    model = GPT(config)
    theirs = load_file(Path(spec.weights) / "model.safetensors")
    own = {
        "transformer.wte.weight": theirs["model.embed_tokens.weight"],
        "lm_head.weight": theirs["model.embed_tokens.weight"],
    }
    own["transformer.ln_f.weight"] = theirs["model.norm.weight"]
    for i in range(shape.n_layers):
        at, to = f"model.layers.{i}.", f"transformer.h.{i}."
        own[f"{to}attn.qkv.weight"] = torch.cat([theirs[f"{at}self_attn.{x}_proj.weight"] for x in "qkv"])
        for name, other in _LITGPT_NAMES.items():
            own[f"{to}{name}.weight"] = theirs[f"{at}{other}.weight"]
    model.load_state_dict(own)
    model.lm_head.weight = model.transformer.wte.weight
    return _peer(spec, model, model)


_LITGPT_NAMES = {
    "norm_1": "input_layernorm",
    "norm_2": "post_attention_layernorm",
    "attn.proj": "self_attn.o_proj",
    "mlp.fc_1": "mlp.gate_proj",
    "mlp.fc_2": "mlp.up_proj",
    "mlp.proj": "mlp.down_proj",
}
# Loaded before memory is first read, so that "above imports" is what training takes.
IMPORTS = {
    "axon": ("axon_models.checkpoint", "tasks.training.loop"),
    "axon-gpt2": ("axon_models.checkpoint", "tasks.training.loop"),
    "llama": ("transformers.models.llama.modeling_llama",),
    "gpt2": ("transformers.models.gpt2.modeling_gpt2",),
    "litgpt": ("litgpt.model",),
}
BUILDERS: dict[str, Callable[[Spec, Shape], Step]] = {
    "axon": _axon,
    "axon-gpt2": _axon,
    "llama": _llama,
    "gpt2": _gpt2,
    "litgpt": _litgpt,
}


def _kib(name: str) -> int:
    """A line of /proc/self/status: VmRSS now, VmHWM at most. (getrusage would count the parent's before exec.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measure(spec: Spec) -> dict[str, Any]:
    """Train; tokens/s over the steps behind the first two, seconds of the first one, memory in MiB, all losses."""
    import numpy as np
    import torch

    torch.set_num_threads(spec.threads)
    shape = Shape(**spec.shape)
    stream = np.load(spec.tokens, mmap_mode="r", allow_pickle=False)
    for module in IMPORTS[spec.contestant]:
        importlib.import_module(module)
    before = _kib("VmRSS")
    step = BUILDERS[spec.contestant](spec, shape)
    n, losses, ends = shape.tokens_per_step, [], [time.perf_counter()]
    for k in range(spec.n_steps + N_WARM):
        start = k * n % (len(stream) - n - 1)
        both = torch.from_numpy(stream[start : start + n + 1].astype(np.int64))
        tokens, targets = both[:-1].view(-1, shape.seq_len), both[1:].view(-1, shape.seq_len)  # (B, T) each
        losses.append(step(tokens, targets))
        ends.append(time.perf_counter())
    return {
        "tokens_per_s": spec.n_steps * n / (ends[-1] - ends[N_WARM]),
        "first_step_s": ends[1] - ends[0],
        "peak_mib": _kib("VmHWM") / 1024,
        "rise_mib": (_kib("VmHWM") - before) / 1024,
        "losses": losses,
    }


def to_json(spec: Spec) -> str:
    return json.dumps(asdict(spec))


if __name__ == "__main__":
    print(json.dumps(measure(Spec(**json.loads(sys.argv[1])))))
