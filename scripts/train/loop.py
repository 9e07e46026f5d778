"""Fine-tune a multiple-choice model, or distil a smaller one from it; resumable at any step.

Fine-tuning minimises the cross-entropy over a question's choices. Distillation adds the divergence from a teacher's
softened choice distribution (Hinton et al. 2015, arXiv:1503.02531), on the questions as they are and on noisy copies
that only the teacher can label (word masking after Tang et al. 2019, arXiv:1903.12136).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from marctl.build.recipe import Training, TrainingRun
from marctl.core.files import replacing
from marctl.core.progress import track
from marctl.train.batches import NO_LABEL, Example, Step, epoch_order
from marctl.train.precision import MasterWeights, cheapen_dropout
from marctl_handlers.text.tokenization import PairEncoder, Row

CHECKPOINT_EVERY_STEPS = 250


@dataclass
class Run:
    """Everything that a checkpoint must hold to go on as if nothing had happened."""

    master: MasterWeights
    optimizer: torch.optim.Optimizer
    step: int = 0

    def save(self, path: Path) -> None:
        """A checkpoint is whole or absent."""
        state = {"weights": self.master.state(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        with replacing(path) as partial:
            torch.save(state | {"random": torch.get_rng_state()}, partial)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.master.load(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        self.step = state["step"]


def train(
    model: nn.Module,
    encoder: PairEncoder,
    examples: Sequence[Example],
    settings: Training,
    plan: TrainingRun,
    checkpoint: Path,
    teacher_logits: Sequence[Tensor | None] | None = None,
) -> dict[str, Tensor]:
    """Train `model` and return the trained parameters, fp32, by name; the model itself is left in bf16.

    teacher_logits: per example, float32, shape (choices,), None where the teacher was not asked.
    An interrupted run goes on from `checkpoint`, with the same questions in the same order.
    """
    torch.manual_seed(plan.seed)
    cheapen_dropout(model)
    master = MasterWeights(model)
    optimizer = torch.optim.AdamW(master.weights, lr=plan.learning_rate, weight_decay=settings.weight_decay)
    run = Run(master, optimizer)
    if checkpoint.exists():
        run.load(checkpoint)
    orders = [epoch_order(examples, settings.questions_per_step, plan.seed, e) for e in range(plan.epochs)]
    steps = [positions for order in orders for positions in order]
    losses: list[float] = []
    special = torch.tensor(encoder.tokenizer.all_special_ids)
    model.train()
    # The fused CPU kernel is faster forwards and six times slower backwards at these lengths.
    with sdpa_kernel(SDPBackend.MATH), track("training", total=len(steps), done=run.step) as progress:
        for positions in steps[run.step :]:
            step = Step.of([examples[p] for p in positions], encoder.pad_id)
            if settings.input_mask_share:
                step = step.masked(settings.input_mask_share, encoder.tokenizer.mask_token_id, special)
            for group in optimizer.param_groups:
                group["lr"] = plan.learning_rate * schedule(run.step / len(steps), settings.warmup_share)
            logits = model(**step.inputs(encoder.template.has_type_ids)).logits.float()
            loss = step_loss(logits, step, settings, teacher_logits)
            loss.backward()
            master.take_gradients()
            nn.utils.clip_grad_norm_(master.weights, 1.0)
            optimizer.step()
            master.publish()
            run.step += 1
            losses = [*losses[-99:], loss.item()]
            progress(f"loss {sum(losses) / len(losses):.3f}")
            if run.step % CHECKPOINT_EVERY_STEPS == 0:
                run.save(checkpoint)
    run.save(checkpoint)
    model.eval()
    return master.state()


def schedule(done: float, warmup_share: float) -> float:
    """Linear warm-up, then linear decay to nothing."""
    return min(done / warmup_share if warmup_share else 1.0, (1 - done) / (1 - warmup_share))


def step_loss(
    logits: Tensor,
    step: Step,
    settings: Training,
    teacher_logits: Sequence[Tensor | None] | None,
) -> Tensor:
    """Cross-entropy, mixed with the teacher's distribution where there is one; logits: (questions, choices)."""
    if teacher_logits is None:
        return cross_entropy(logits, step.labels)
    heat = settings.temperature
    opinions = [teacher_logits[i] for i in step.index.tolist()]
    taught = torch.tensor([opinion is not None for opinion in opinions]).float()
    teacher = torch.stack([torch.zeros(logits.shape[1]) if one is None else one for one in opinions])
    soft = kl_div(log_softmax(logits / heat, -1), softmax(teacher / heat, -1), reduction="none").sum(-1) * heat**2
    hard = cross_entropy(logits, step.labels, reduction="none")
    known = (step.labels != NO_LABEL).float()
    hard_weight = known * (1 - settings.teacher_weight * taught)
    return ((1 - hard_weight) * soft + hard_weight * hard).mean()


def noisy_copies(examples: Sequence[Example], settings: Training, mask_id: int, special: set[int]) -> list[Example]:
    """`noisy_copies` masked versions of every example; positions go on after the originals'."""
    dice = random.Random(settings.runs[0].seed)

    def masked(row: Row) -> Row:
        ids = [mask_id if i not in special and dice.random() < settings.mask_share else i for i in row.ids]
        return replace(row, ids=ids)

    copies: list[Example] = []
    for _ in range(settings.noisy_copies):
        for example in examples:
            rows = [masked(row) for row in example.rows]
            copies.append(Example(rows, None, len(examples) + len(copies)))
    return copies


@torch.no_grad()
def teacher_logits(model: nn.Module, encoder: PairEncoder, examples: Sequence[Example]) -> list[Tensor]:
    """The teacher's logits for every example, by position; float32, shape (choices,)."""
    found: dict[int, Tensor] = {}
    order = epoch_order(examples, 32, 0, 0)
    with track("asking the teacher", total=len(order)) as progress:
        for positions in order:
            step = Step.of([examples[p] for p in positions], encoder.pad_id)
            logits = model(**step.inputs(encoder.template.has_type_ids)).logits.float()
            found.update(zip(step.index.tolist(), logits.clone(), strict=True))
            progress("")
    return [found[example.index] for example in examples]


def freeze(model: nn.Module, names: Sequence[str]) -> None:
    """Stop training of the parameters whose name holds one of `names`."""
    for name, parameter in model.named_parameters():
        if any(part in name for part in names):
            parameter.requires_grad_(False)
