"""Proximal policy optimisation of the SFT model against the reward model, as in InstructGPT.

The details, each with its source (IG: Ouyang et al. 2022, "Training language models to follow instructions with
human feedback"; Z: Ziegler et al. 2019; S: Schulman et al. 2017; 37: Huang et al. 2022, "The 37 implementation
details of PPO"; N: Huang et al. 2024, "The N+ implementation details of RLHF with PPO"):

 1. Prompts are those of the preference split, which fine-tuning never saw; each batch is a part of a permutation,
    so that no prompt comes twice in an epoch (IG, appendix C.4; N 1).
 2. Answers are sampled at `temperature`, and log-probabilities are taken at that temperature too (N 6).
 3. The reward is the reward model's scalar at the last token, moved so that demonstrations score 0 (IG 3.5; N 3).
 4. An answer that does not end within max_new_tokens loses `missing_end_penalty`: the reward model has hardly seen
    such answers, and without it long answers can win by accident (N 5).
 5. Every token is charged kl_coef·(log π − log π_SFT), so that the score at the last token is not the only reward
    (IG, equation 2; Z 2.2). The coefficient is fixed, as in IG.
 6. The value model is a network of its own that starts from the reward model (IG 3.5; Z 2.2), its value of a state
    being that of the prefix before the token is chosen; gamma is 1 (IG, appendix C.4).
 7. Generalised advantage estimation; the value after the last token is 0 (37.5).
 8. Advantages are whitened over the answer tokens of the iteration (37.7, there per minibatch; N 8).
 9. `epochs` passes over the rollouts in shuffled minibatches (S, algorithm 1; 37.6).
10. Clipped policy ratio (S, equation 7), clipped value loss (37.9), entropy bonus (37.10).
11. The old log-probabilities come from a training-like forward pass, not from decoding with a cache, so that the
    ratio of the first minibatch is 1 (N 7).
12. Gradients of policy and value model are clipped apart, by the norm of each (37.11 clips a shared network).
13. Adam with β 0.9 and 0.95, ε 1e-8, no weight decay (IG, appendix C.4); its rate warms up over the first tenth of
    the updates (IG: first 10 iterations) and then falls along a cosine to 0.
14. PPO-ptx: pretraining_coef times the language-modelling loss on pretraining text in every update (IG, equation 2).
15. No dropout, and no normalisation of rewards beyond detail 3 (N 2; IG).

Several workers share the prompts of an iteration and the rows of each minibatch; advantages are whitened, and losses
divided, over the rows of all of them, so that an update is the same for any number of workers. Each holds all four
models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from axon_models.objectives.ppo import masked_mean, policy_loss, value_loss
from tasks.alignment import prompts, rewards
from tasks.alignment.ppo_progress import Progress, first_and_last
from tasks.alignment.rollouts import Rollouts, RolloutSettings, answer_statistics, collect, state_values
from tasks.steps.context import StepContext
from tasks.training import tokens
from tasks.training.batches import stream_batch
from tasks.training.checkpoint import Checkpoints, prefixed, without_prefix
from tasks.training.device import autocast, setup
from tasks.training.divergence import Watch
from tasks.training.lora import attach
from tasks.training.losses import stream_loss
from tasks.training.optimizer import adamw, set_learning_rate, warmup_cosine
from tasks.training.outputs import read_model, write_metrics, write_model
from tasks.training.parallel import World
from tasks.training.recomputation import recompute_activations
from tasks.training.sampling import rows_of_batch, seed_of
from tasks.training.state import load_training_tensors, training_tensors

STAGE = "ppo"


def run(context: StepContext) -> None:
    """Read `models/sft/`, `models/reward_model/` and prompts, write `models/ppo/`, metrics and the curve."""
    trainer = Trainer(context)
    trainer.resume()
    trainer.train()
    write_model(context, STAGE, trainer.policy, adapters=trainer.adapters)
    metrics: dict[str, Any] = {"tokens": trainer.at.tokens, "n_iterations": context.params.ppo.n_iterations}
    if trainer.watch.left_out:
        metrics["left_out_updates"] = trainer.watch.left_out
    write_metrics(context, STAGE, trainer.at.curve, metrics | first_and_last(trainer.at.curve))


class Trainer:
    """The four models of PPO, their optimisers, and the loop over iterations: sample, learn, log, save."""

    def __init__(self, context: StepContext) -> None:
        params = context.params
        self.context, self.section, self.precision = context, params.ppo, params.precision
        self.seed = seed_of(params.seed, STAGE)
        self.world = World(context.rank, context.n_workers, context.node_rank)
        self.device = setup(params)
        self.policy = read_model(context, "sft")
        self.adapters = attach(context, STAGE, self.policy)
        self.reference = read_model(context, "sft").requires_grad_(False)
        directory = context.root / "models" / "reward_model"
        self.reward = rewards.read(directory, device=params.device)
        self.value = rewards.read(directory, device=params.device)
        self.reward.model.requires_grad_(False)
        self.optimizers = {
            "policy": adamw(self.policy, learning_rate=self.section.learning_rate, beta2=0.95, weight_decay=0.0),
            "value": adamw(
                self.value.model, learning_rate=self.section.value_learning_rate, beta2=0.95, weight_decay=0.0
            ),
        }
        self.models: dict[str, nn.Module] = {"policy": self.policy, "value": self.value.model}
        if params.runtime.activation_checkpointing:
            for model in self.models.values():
                recompute_activations(model)
        self.prompts = prompts.to_answer(
            context, params.ppo.n_iterations * params.ppo.prompts_per_iteration, stage=STAGE
        )
        self.pretraining = (
            _pretraining_loss(context, self.device, self.world) if self.section.pretraining_coef else None
        )
        self.n_minibatches = self.section.prompts_per_iteration // self.section.minibatch_size
        self.updates_per_iteration = self.section.epochs * self.n_minibatches
        self.checkpoints = Checkpoints(
            context.checkpoints,
            every_s=context.checkpoint_every_s,
            world=self.world,
            asked_to_stop=context.asked_to_stop,
        )
        self.watch = Watch(STAGE, params.divergence)
        self.at = Progress()

    def train(self) -> None:
        """All iterations that are left. A kill anywhere costs what came after the last checkpoint, nothing more."""
        while self.at.iteration < self.section.n_iterations:
            if self.at.buffer is None:
                self.at.buffer = self.sample()
                self._save_if_due()
            while self.at.n_updates < self.updates_per_iteration:
                figures = self.update(self.at.buffer)
                if figures is not None:
                    self.at.updates.append(figures)
                self.at.n_updates += 1
                self._save_if_due()
            values = self.at.end_iteration(epochs=self.section.epochs)
            self.context.report(self.at.iteration, self.section.n_iterations, values)
            self._save_if_due()

    def sample(self) -> Rollouts:
        """This iteration's rollouts: a function of the models and (seed, iteration)."""
        section, lengths = self.section, self.context.params.preferences
        iteration = self.at.iteration
        rows = rows_of_batch(
            iteration, n_rows=len(self.prompts), batch_size=section.prompts_per_iteration, seed=self.seed
        )
        settings = RolloutSettings(
            prompt_tokens=lengths.prompt_tokens,
            max_new_tokens=lengths.max_new_tokens,
            temperature=section.temperature,
            missing_end_penalty=section.missing_end_penalty,
            kl_coef=section.kl_coef,
            gamma=section.gamma,
            gae_lambda=section.gae_lambda,
            whiten_advantages=section.whiten_advantages,
            batch_size=section.minibatch_size,
            precision=self.precision,
        )
        return collect(
            self.policy,
            self.reference,
            self.reward,
            self.value,
            [self.prompts[row] for row in rows],
            settings,
            seed=seed_of(self.seed, "rollouts", iteration) % 2**31,
            world=self.world,
        )

    def update(self, rollouts: Rollouts) -> dict[str, float] | None:
        """One step of policy and value model on the minibatch that follows the last one; None if it was left out."""
        section, number = self.section, self.at.iteration * self.updates_per_iteration + self.at.n_updates
        epoch, place = divmod(self.at.n_updates, self.n_minibatches)
        rows = rows_of_batch(
            place,
            n_rows=section.prompts_per_iteration,
            batch_size=section.minibatch_size,
            seed=seed_of(self.seed, "minibatches", self.at.iteration, epoch),
        )
        minibatch = rollouts.rows(torch.from_numpy(rows).to(self.device))
        own = self.world.rows(len(rows))
        # A worker for which no row is left still has to take part in the sums: with the first one, at weight 0.
        part = minibatch.rows(torch.tensor(own or [0], device=self.device))
        weight = part.mask.sum() / minibatch.mask.sum() if own else torch.zeros((), device=self.device)
        with autocast(self.device, self.precision):
            logprobs, entropies = answer_statistics(self.policy, part.tokens, part.mask, section.temperature)
            values = state_values(self.value, part.tokens, part.mask)
            of_policy, clip_fraction = policy_loss(
                logprobs, part.logprobs, part.advantages, part.mask, clip_ratio=section.clip_ratio
            )
            of_value, value_clip_fraction = value_loss(
                values, part.values, part.returns, part.mask, clip_value=section.clip_value
            )
            entropy = masked_mean(entropies, part.mask)
            loss = (of_policy + section.value_coef * of_value - section.entropy_coef * entropy) * weight
            if self.pretraining is not None:
                loss = loss + section.pretraining_coef * self.pretraining(self.policy, number)
        own_figures = {
            "loss": loss,
            "policy_loss": of_policy * weight,
            "value_loss": of_value * weight,
            "clip_fraction": clip_fraction * weight,
            "value_clip_fraction": value_clip_fraction * weight,
        }
        totals = self.world.total([figure.item() for figure in own_figures.values()])
        figures = dict(zip(own_figures, totals, strict=True))
        norms = self._step(loss, figures["loss"], number)
        if norms is None:
            return None
        return figures | {"policy_grad_norm": norms["policy"], "value_grad_norm": norms["value"]}

    def _step(self, own_loss: Tensor, loss: float, number: int) -> dict[str, float] | None:
        """Back-propagate this worker's part of `loss` and step both optimisers; returns the norms before clipping.

        None where one is not finite: then nothing is stepped. There is no going back in PPO, since each iteration's
        rollouts are those of the policy as it is.
        """
        section = self.section
        n_updates = section.n_iterations * self.updates_per_iteration
        peaks = {"policy": section.learning_rate, "value": section.value_learning_rate}
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        own_loss.backward()
        for model in self.models.values():
            self.world.add_up(p.grad for p in model.parameters() if p.grad is not None)
        norms = {
            name: nn.utils.clip_grad_norm_(model.parameters(), section.clip_norm).item()
            for name, model in self.models.items()
        }
        fault = self.watch.fault({"loss": loss, **{f"{n} gradient norm": v for n, v in norms.items()}}, ())
        if fault is not None:
            self.watch.leave_out(number, number, fault)
            return None
        for name, optimizer in self.optimizers.items():
            rate = warmup_cosine(number, n_steps=n_updates, warmup_steps=n_updates // 10, peak=peaks[name], floor=0.0)
            set_learning_rate(optimizer, rate)
            optimizer.step()
        return norms

    def _save_if_due(self) -> None:
        """Save everything that the next update depends on, the rollouts included, if it is time."""
        if not self.checkpoints.is_due():
            return
        tensors: dict[str, Tensor] = {}
        for name, model in self.models.items():
            tensors |= prefixed(f"{name}.", training_tensors(model, self.optimizers[name]))
        buffer, state = self.at.to_save()
        number = self.at.number(self.updates_per_iteration)
        self.checkpoints.save(number, tensors | buffer, state | {"left_out": self.watch.left_out})

    def resume(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        saved = self.checkpoints.load(self.device)
        if saved is None:
            return
        tensors, state = saved
        for name, model in self.models.items():
            load_training_tensors(model, self.optimizers[name], without_prefix(f"{name}.", tensors))
        self.watch = Watch(STAGE, self.context.params.divergence, state["left_out"])
        self.at = Progress.saved(tensors, state)


def _pretraining_loss(context: StepContext, device: torch.device, world: World) -> Callable[[Any, int], Tensor]:
    """(policy, update number) -> this worker's part of the mean loss per token on a few rows of pretraining text."""
    stream = tokens.text_stream(context.root, "train")
    seed = seed_of(context.params.seed, STAGE, "pretraining")
    batch_size = max(1, context.params.ppo.minibatch_size // 8)
    seq_len = context.params.pretrain.seq_len

    def loss(policy: Any, number: int) -> Tensor:
        batch = stream_batch(stream, number, batch_size=batch_size, seq_len=seq_len, seed=seed, device=device)
        ((own, weight),) = world.part(batch, 1)
        return stream_loss(policy, own) * weight / batch.n_targets

    return loss
