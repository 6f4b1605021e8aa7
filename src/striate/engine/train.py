"""The one training loop: any device, one or several processes, exact resume, a cache of trained networks.

Every random thing in a step is a function of (seed, step) alone: the order of the data, the augmentation, the loss's
own noise, dropout. So a run that was killed continues from its last checkpoint to the very same bytes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from striate.engine.checkpoint import Checkpoint, data_fingerprint, identity_of, read_tensors
from striate.engine.files import cache_dir, write_json
from striate.engine.parallel import processes, shared_batch_norm, sum_over_processes
from striate.engine.progress import progress_bar
from striate.engine.record import environment, fingerprint
from striate.engine.state import device_of, mix_seeds, seeded
from striate.errors import InputError, RunError

__all__ = ["AfterEpoch", "Augment", "Loss", "Recipe", "cross_entropy", "fit", "trained"]

Loss = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]
"""``loss(model, images, labels, generator)``: the mean over the batch, a scalar."""

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""``augment(images, generator)``: images of the same shape, float."""

AfterEpoch = Callable[[nn.Module, list[dict[str, Any]]], bool]
"""``after_epoch(model, records)``: may add to the last record, JSON-able; True ends the training."""

CHECKPOINT_SECONDS = 5.0
"""Least time between two checkpoints; it changes nothing but how much a kill costs."""

_ORDER, _AUGMENT, _LOSS, _DROPOUT = range(4)  # streams of random numbers


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run besides model, data, loss and augmentation.

    Attributes:
        epochs: passes over the data; the last incomplete batch of a pass is left out.
        batch_size: images a step, over all processes together.
        optimizer: ``"adam"`` (weight decay as an L2 term), ``"adamw"`` (decoupled) or ``"sgd"``.
        lr: the highest learning rate.
        weight_decay: on every trainable parameter.
        momentum: of sgd.
        nesterov: sgd looks ahead along its momentum.
        schedule: over steps: ``"constant"``; ``"cosine"`` to 0; ``"step"``: a tenth from each of ``milestones`` on;
            ``"one-cycle"``: cosine from lr / 25 up to lr in the first 30 % of the steps, then down to lr / 250,000
            (PyTorch's OneCycleLR without its momentum cycle); ``"inverse"``: lr / (1 + decay n) after n finished
            epochs.
        milestones: of the step schedule, in epochs; rounded to the nearest step.
        decay: of the inverse schedule.
        warmup_epochs: linear rise from 0 before a constant, cosine or step schedule.
        seed: of order, augmentation, loss noise and dropout; :func:`trained` builds the model under it too.
        clip: largest norm of the whole gradient, or None.
        precision: ``"float32"``, or ``"bfloat16"`` for autocast with float32 weights.
    """

    epochs: int
    batch_size: int = 128
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.0
    nesterov: bool = False
    schedule: Literal["constant", "cosine", "step", "one-cycle", "inverse"] = "constant"
    milestones: tuple[float, ...] = ()
    decay: float = 0.0
    warmup_epochs: float = 0.0
    seed: int = 0
    clip: float | None = None
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        choices = {
            "optimizer": ("adam", "adamw", "sgd"),
            "schedule": ("constant", "cosine", "step", "one-cycle", "inverse"),
            "precision": ("float32", "bfloat16"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InputError(name, "Recipe", allowed=f"one of {', '.join(allowed)}", got=getattr(self, name))
        limits = {
            "epochs": (self.epochs >= 1, ">= 1"),
            "batch_size": (self.batch_size >= 1, ">= 1"),
            "lr": (self.lr > 0, "> 0"),
            "weight_decay": (self.weight_decay >= 0, ">= 0"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "seed": (self.seed >= 0, ">= 0"),
            "clip": (self.clip is None or self.clip > 0, "> 0 or None"),
            "decay": (self.decay >= 0, ">= 0"),
            "warmup_epochs": (0 <= self.warmup_epochs <= self.epochs, f"from 0 to epochs ({self.epochs})"),
        }
        for name, (held, words) in limits.items():
            if not held:
                raise InputError(name, "Recipe", allowed=words, got=getattr(self, name))
        if self.warmup_epochs and self.schedule in {"one-cycle", "inverse"}:
            raise InputError("warmup_epochs", "Recipe", allowed=f"0 with schedule '{self.schedule}'", got="> 0")
        if self.decay and self.schedule != "inverse":
            raise InputError("decay", "Recipe", allowed=f"0 with schedule '{self.schedule}'", got=self.decay)
        if self.momentum and self.optimizer != "sgd":
            raise InputError("momentum", "Recipe", allowed=f"0 with {self.optimizer}", got=self.momentum)
        if self.nesterov and not self.momentum:
            raise InputError("nesterov", "Recipe", allowed="False without momentum", got=True)
        if bool(self.milestones) != (self.schedule == "step"):
            words = f"{'given' if self.schedule == 'step' else 'left out'} with {self.schedule}"
            raise InputError("milestones", "Recipe", allowed=words, got=self.milestones)
        if not all(0 < epoch <= self.epochs for epoch in self.milestones):
            raise InputError("milestones", "Recipe", allowed=f"in (0, {self.epochs}] epochs", got=self.milestones)

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of step ``step``, counted from 0.

        >>> Recipe(epochs=10, lr=0.1, schedule="cosine").lr_at(50, 10)
        0.05
        """
        total = self.epochs * steps_per_epoch
        if self.schedule == "inverse":
            return self.lr / (1 + self.decay * (step // steps_per_epoch))
        if self.schedule == "one-cycle":
            low, peak = self.lr / 25, 0.3 * total - 1
            if step <= peak:
                return _cosine(low, self.lr, step / peak)
            return _cosine(self.lr, low / 1e4, (step - peak) / (total - 1 - peak) if total > 1 else 0.0)
        warmup = self.warmup_epochs * steps_per_epoch
        if step < warmup:
            return self.lr * (step + 1) / math.ceil(warmup)
        if self.schedule == "step":
            return self.lr * 0.1 ** sum(step >= round(epoch * steps_per_epoch) for epoch in self.milestones)
        if self.schedule == "cosine":
            return _cosine(self.lr, 0.0, (step - warmup) / max(1.0, total - warmup))
        return self.lr


def cross_entropy(
    model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, label_smoothing: float = 0.0
) -> Tensor:
    """Cross entropy of the model's logits, the default loss of :func:`fit`.

    For smoothed labels give :func:`fit` ``functools.partial(cross_entropy, label_smoothing=0.1)``.
    """
    return F.cross_entropy(model(images), labels, label_smoothing=label_smoothing)


def fit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    *,
    loss: Loss = cross_entropy,
    augment: Augment | None = None,
    after_epoch: AfterEpoch | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | None = False,
) -> list[dict[str, Any]]:
    """Train ``model`` in place.

    Under ``torchrun`` each process takes its share of every batch; gradients are summed and batch statistics shared,
    so that one and several processes give the same result up to the order of float additions (dropout and the
    loss's own noise are drawn for each process apart). The model is not wrapped, so a loss sees it as it is.

    On a GPU cuDNN's convolutions are repeatable for the time. A kernel that adds in any order (torchvision's deformable
    convolution, memory-efficient attention and bilinear resizing backwards) makes a run repeatable but for rounding.

    Args:
        model: trained where its parameters are (under torchrun: on the process's device). Frozen parameters stay.
        images: (N, C, H, W), uint8 (scaled to [0, 1] batch by batch) or floating point; or (N, L) int64, numbers that
            stand for something, handed on as they are.
        labels: (N,) classes, or whatever the loss takes, one row an image.
        recipe: how.
        loss: see :data:`Loss`; called in train mode, its generator is on the images' device.
        augment: see :data:`Augment`; applied to the whole batch in float, its generator is on the images' device.
        after_epoch: see :data:`AfterEpoch`; the model is in train mode. A run that continues from a checkpoint hands
            it the earlier records, so what it needs of the past should stand there.
        checkpoint: folder for a checkpoint every few seconds (``state.safetensors``), ``metrics.jsonl`` and the
            final ``model.safetensors``; a run that finds its own checkpoint continues, a finished one is read back.
        progress: True shows a bar, None where stderr is a terminal.

    Returns:
        One record an epoch: ``epoch`` (from 1), ``step``, ``loss`` (mean over the epoch), ``lr`` (of its last step);
        ``stopped`` in the last one where ``after_epoch`` ended the training.

    Raises:
        InputError: sizes do not match, or nothing is trainable.
        RunError: the loss is not finite, or the checkpoint belongs to another run.
    """
    job = processes()
    _check(model, images, labels, recipe, job.num_processes)
    device = device_of(model) if job.num_processes == 1 else job.device
    model.to(device)
    batch_size = min(recipe.batch_size, len(images))
    per_epoch = len(images) // batch_size
    total = per_epoch * recipe.epochs
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = _optimizer(parameters, recipe)
    book, step, sum_of_losses = None, 0, 0.0
    records: list[dict[str, Any]] = []
    if checkpoint is not None:
        book = Checkpoint(checkpoint, _identity(model, images, labels, recipe, loss, augment))
        step, sum_of_losses, records = book.resume(model, optimizer)
    running = torch.tensor(sum_of_losses, dtype=torch.float64, device=device)
    batch = _Batches(images, labels, batch_size, recipe.seed, augment, device, job)
    saved = time.monotonic()
    with (
        _training(model, optimizer),
        seeded(recipe.seed),
        shared_batch_norm(model),
        progress_bar(total, "training", done=step, show=progress and job.is_main_process) as advance,
    ):
        while step < total and not (records and records[-1].get("stopped")):
            lr = recipe.lr_at(step, per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad(set_to_none=True)
            x, y = batch(step)
            running += _gradient(model, x, y, loss, recipe, share=len(x) / batch_size, step=step, parameters=parameters)
            if recipe.clip is not None:
                nn.utils.clip_grad_norm_(parameters, recipe.clip)
            optimizer.step()
            step += 1

            if step % per_epoch == 0:
                mean = float(running) / per_epoch
                _check_finite(mean, step, recipe)
                records.append({"epoch": step // per_epoch, "step": step, "loss": mean, "lr": lr})
                running.zero_()
                if after_epoch is not None and after_epoch(model, records):
                    records[-1]["stopped"] = True
            advance(1, f"loss {records[-1]['loss']:.4f}" if records else "")
            if book is not None and step < total and time.monotonic() - saved >= CHECKPOINT_SECONDS:
                _check_finite(float(running), step, recipe)
                if job.is_main_process:
                    book.save(model, optimizer, step=step, running=float(running), records=records)
                saved = time.monotonic()
    if book is not None and job.is_main_process:
        book.finish(model, step, records)
    job.wait_for_everyone()
    return records


def trained(
    name: str,
    build: Callable[[], nn.Module],
    data: Callable[[], tuple[Tensor, Tensor]],
    recipe: Recipe,
    *,
    loss: Loss = cross_entropy,
    augment: Augment | None = None,
    key: dict[str, Any],
    device: str | torch.device = "cpu",
    progress: bool | None = False,
) -> nn.Module:
    """Return a trained network in eval mode: from the cache, or trained now and kept.

    The cache (``models`` in :func:`striate.engine.files.cache_dir`) is keyed by ``name``, the whole recipe, ``key``,
    loss and augmentation (their names, and the options of a dataclass or a partial), and the names and shapes of the
    network's tensors. A run that was cut off is resumed. Of two processes that want the same network at once, one
    trains and the other waits.

    Args:
        name: short, for the folder's name.
        build: returns the untrained network; called under ``recipe.seed``.
        data: returns (images, labels) for :func:`fit`; called only where training is needed.
        recipe: how.
        loss, augment: see :func:`fit`.
        key: JSON-able; all else that decides the result: the data's origin, size and seed, and whatever ``loss``,
            ``augment`` and ``build`` close over.
        device: where to train, and where the network is returned.
        progress: as in :func:`fit`.
    """
    with seeded(recipe.seed):
        model = build()
    shapes = {tensor_name: list(tensor.shape) for tensor_name, tensor in model.state_dict().items()}
    full_key = {
        "name": name,
        "recipe": asdict(recipe),
        "key": key,
        "loss": identity_of(loss),
        "augment": identity_of(augment),
        "architecture": {"type": identity_of(type(model)), "tensors": shapes},
    }
    folder = cache_dir("models", f"{name}-{fingerprint(full_key)}")
    job = processes()
    with _locked(folder / "lock") if job.is_main_process else nullcontext():
        job.wait_for_everyone()  # the others of this job go in under the main process's lock
        final = folder / "model.safetensors"
        if final.is_file():
            model.load_state_dict(read_tensors(final)[0])
        else:
            if job.is_main_process:
                write_json(folder / "recipe.json", {**full_key, "environment": environment()})
            model.to(device)
            images, labels = data()
            fit(model, images, labels, recipe, loss=loss, augment=augment, checkpoint=folder, progress=progress)
        job.wait_for_everyone()
    return model.to(device).eval()


class _Batches:
    """Batch of a step, as a function of (seed, step) alone: this process's share of it."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        size: int,
        seed: int,
        augment: Augment | None,
        device: torch.device,
        job: Any,
    ) -> None:
        self.images, self.labels, self.size, self.seed = images, labels, size, seed
        self.augment, self.device = augment, device
        self.generator = torch.Generator(device)
        rank, count = job.process_index, job.num_processes
        self.share = slice(size * rank // count, size * (rank + 1) // count)
        self.epoch, self.order = -1, torch.empty(0, dtype=torch.long)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        epoch, place = divmod(step, len(self.images) // self.size)
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed(mix_seeds(self.seed, epoch, _ORDER))
            self.epoch, self.order = epoch, torch.randperm(len(self.images), generator=generator)
        chosen = self.order[place * self.size : (place + 1) * self.size]
        x = self.images[chosen.to(self.images.device)].to(self.device)
        y = self.labels[chosen.to(self.labels.device)].to(self.device)
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        if self.augment is not None:
            x = self.augment(x, self.generator.manual_seed(mix_seeds(self.seed, step, _AUGMENT)))
        return x[self.share], y[self.share]


def _gradient(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    loss: Loss,
    recipe: Recipe,
    *,
    share: float,
    step: int,
    parameters: list[nn.Parameter],
) -> Tensor:
    """Put the gradient of the whole batch's mean loss into ``parameters``; return that loss, detached."""
    rank = processes().process_index
    torch.manual_seed(mix_seeds(recipe.seed, step, _DROPOUT, rank))
    generator = torch.Generator(x.device).manual_seed(mix_seeds(recipe.seed, step, _LOSS, rank))
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=recipe.precision == "bfloat16"):
        value = loss(model, x, y, generator)
    if value.dim() != 0:
        raise InputError("loss", "fit", allowed="a function that returns a scalar", got=tuple(value.shape))
    # Weighted by its share, so that the sum over processes is the mean over the whole batch.
    value = value * share
    value.backward()
    shown = value.detach().clone()
    sum_over_processes([shown, *[parameter.grad for parameter in parameters if parameter.grad is not None]])
    return shown


@contextmanager
def _training(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Train mode and repeatable cuDNN algorithms inside; modes as they were, and no gradients, after."""
    modes = [(module, module.training) for module in model.modules()]
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    try:
        model.train()
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        optimizer.zero_grad(set_to_none=True)
        for module, mode in modes:
            module.training = mode


def _check(model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, n_processes: int) -> None:
    numbers = images.dtype == torch.int64 and images.dim() == 2
    known = images.is_floating_point() or images.dtype == torch.uint8 or numbers
    if images.dim() < 2 or images.shape[0] == 0 or not known:
        got = f"{images.dtype} {tuple(images.shape)}"
        allowed = "uint8 or floating point (N, C, H, W), or int64 (N, L), with N > 0"
        raise InputError("images", "fit", allowed=allowed, got=got)
    if labels.shape[:1] != images.shape[:1]:
        raise InputError("labels", "fit", allowed=f"one for each of {len(images)} images", got=tuple(labels.shape))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("model", "fit", allowed="a network with trainable parameters", got="none that require grad")
    if min(recipe.batch_size, len(images)) < n_processes:
        raise InputError("batch_size", "fit", allowed=f">= {n_processes}, the processes", got=recipe.batch_size)


def _check_finite(value: float, step: int, recipe: Recipe) -> None:
    if not math.isfinite(value):
        raise RunError(
            f"The loss is not finite at step {step}; the run diverged. Lower lr ({recipe.lr:g}) or set clip. "
            "Nothing after the last checkpoint was kept."
        )


def _optimizer(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    common: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=recipe.momentum, nesterov=recipe.nesterov, **common)
    return (torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW)(parameters, **common)


def _identity(
    model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, loss: Loss, augment: Augment | None
) -> dict[str, Any]:
    return {
        **{f"recipe's {name}": value for name, value in asdict(recipe).items()},
        "loss": identity_of(loss),
        "augment": identity_of(augment),
        "network": fingerprint({key: list(value.shape) for key, value in model.state_dict().items()}),
        "data": data_fingerprint(images, labels),
    }


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


@contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """Hold an exclusive lock, which the system releases when the process ends, however it ends."""
    with path.open("wb") as file:
        try:
            import fcntl
        except ImportError:  # no fcntl on Windows: both train, and the last rename wins with the same bytes
            yield file
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
