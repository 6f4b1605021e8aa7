"""The training loop: what it computes, exact resume after a kill, several processes, the cache."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from striate.engine import train
from striate.engine.checkpoint import identity_of, read_tensors
from striate.engine.train import Recipe, cross_entropy, fit, trained
from striate.errors import InputError, RunError, StriateError, WeightsError

PER_EPOCH = 6


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are slower on two threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (100, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return images, images.float().mean((1, 2, 3)).gt(127.5).long()


def build() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(144, 2)
    )


def noisy(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return images + 0.1 * torch.randn(images.shape, generator=generator, device=images.device)


def noisy_loss(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    return F.cross_entropy(model(images + 0.05 * torch.rand(images.shape, generator=generator)), labels)


RECIPE = Recipe(epochs=3, batch_size=16, lr=0.01, schedule="one-cycle", weight_decay=1e-4, clip=1.0, seed=3)


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# --- what a step computes


def test_one_step_of_sgd_is_the_closed_form() -> None:
    # logits = w * x with x = 1, cross entropy against class 0 of two: dL/dw = softmax(w) - onehot.
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0], [1.0]]))
    records = fit(model, torch.ones(1, 1), torch.zeros(1).long(), Recipe(1, optimizer="sgd", lr=0.5))
    p = torch.softmax(torch.tensor([0.0, 1.0]), 0)
    expected = torch.tensor([0.0, 1.0]) - 0.5 * (p - torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(model.weight.detach()[:, 0], expected)
    assert records == [{"epoch": 1, "step": 1, "loss": pytest.approx(-p[0].log().item()), "lr": 0.5}]


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "nesterov"])
def test_whole_run_equals_a_plain_loop(optimizer: str) -> None:
    # The slow twin: an ordinary PyTorch loop over the same order. No dropout, no noise.
    images = torch.rand(40, 6, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(40) % 3
    nesterov = optimizer == "nesterov"
    options = {"momentum": 0.9, "nesterov": nesterov} if optimizer in {"sgd", "nesterov"} else {}
    name = "sgd" if nesterov else optimizer
    recipe = Recipe(2, 8, name, lr=0.02, weight_decay=0.01, seed=5, **options)
    torch.manual_seed(0)
    ours, plain = nn.Linear(6, 3), nn.Linear(6, 3)
    plain.load_state_dict(ours.state_dict())
    order: list[torch.Tensor] = []

    def spy(model: nn.Module, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        order.append((images[:, None] == x).all(-1).int().argmax(0))
        return cross_entropy(model, x, y, generator)

    fit(ours, images, labels, recipe, loss=spy)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[name]
    stepper = kind(plain.parameters(), lr=0.02, weight_decay=0.01, **options)
    for chosen in order:
        stepper.zero_grad()
        F.cross_entropy(plain(images[chosen]), labels[chosen]).backward()
        stepper.step()
    assert same_weights(ours, plain)
    for epoch in (order[:5], order[5:]):  # each pass sees every image once
        assert torch.cat(epoch).sort().values.tolist() == list(range(40))
    assert not torch.equal(torch.cat(order[:5]), torch.cat(order[5:]))


def test_uint8_images_are_scaled_to_one() -> None:
    seen = []

    def look(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        seen.append(images)
        return images

    fit(build(), *data(), replace(RECIPE, epochs=1), augment=look)
    assert seen[0].dtype == torch.float32
    assert seen[0].min() >= 0
    assert 0.9 < seen[0].max() <= 1


def test_it_learns() -> None:
    images = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    labels = (images[:, 0] > 0).long()
    model = nn.Linear(2, 2)
    records = fit(model, images, labels, Recipe(8, 20, lr=0.1))
    assert records[-1]["loss"] < 0.3 * records[0]["loss"]
    assert (model(images).argmax(1) == labels).float().mean() > 0.97


def test_bfloat16_runs_in_autocast_and_keeps_float32_weights() -> None:
    seen = []

    def look(model: nn.Module, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        logits = model(x)
        seen.append(logits.dtype)
        return F.cross_entropy(logits.float(), y)

    model = build()
    fit(model, *data(), replace(RECIPE, epochs=1, precision="bfloat16"), loss=look)
    assert seen[0] == torch.bfloat16
    assert next(model.parameters()).dtype == torch.float32


# --- after an epoch, and numbers instead of images


def test_after_epoch_sees_the_records_adds_to_them_and_ends_the_training() -> None:
    seen = []

    def watch(model: nn.Module, records: list[dict]) -> bool:
        assert model.training
        seen.append([record["epoch"] for record in records])
        records[-1]["mark"] = 10 * records[-1]["epoch"]
        return len(records) == 2

    records = fit(build(), *data(), replace(RECIPE, epochs=5), after_epoch=watch)
    assert seen == [[1], [1, 2]]
    assert [record["mark"] for record in records] == [10, 20]
    assert [record.get("stopped") for record in records] == [None, True]


def test_a_run_that_was_ended_stays_ended(tmp_path: Path) -> None:
    def stop(model: nn.Module, records: list[dict]) -> bool:
        return True

    first = build()
    records = fit(first, *data(), RECIPE, after_epoch=stop, checkpoint=tmp_path)
    second = build()
    assert fit(second, *data(), RECIPE, after_epoch=stop, checkpoint=tmp_path) == records
    assert len(records) == 1
    assert same_weights(first, second)


def test_numbers_are_handed_on_as_they_are() -> None:
    numbers = torch.arange(24).view(12, 2) - 1
    seen = []

    def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        seen.append(x)
        return model(x.float()).mean()

    fit(nn.Linear(2, 1), numbers, torch.zeros(12), Recipe(1, 4), loss=loss)
    assert torch.cat(seen).flatten().sort().values.tolist() == list(range(-1, 23))


# --- schedules


def test_the_inverse_schedule_goes_by_finished_epochs() -> None:
    recipe = Recipe(3, lr=0.3, schedule="inverse", decay=0.5)
    assert [recipe.lr_at(step, 2) for step in range(6)] == pytest.approx([0.3, 0.3, 0.2, 0.2, 0.15, 0.15])


@pytest.mark.parametrize("total", [2, 3, 10, 40])
def test_one_cycle_is_pytorchs(total: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    peer = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total, cycle_momentum=False)
    recipe = Recipe(epochs=1, lr=0.1, schedule="one-cycle")
    for step in range(total):
        assert recipe.lr_at(step, total) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        if step + 1 < total:
            peer.step()


def test_cosine_is_pytorchs_and_warmup_rises_to_it() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    peer = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    plain, warm = Recipe(4, lr=0.1, schedule="cosine"), Recipe(5, lr=0.1, schedule="cosine", warmup_epochs=1)
    for step in range(20):
        assert plain.lr_at(step, 5) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        assert warm.lr_at(step + 5, 5) == pytest.approx(plain.lr_at(step, 5))
        optimizer.step()
        peer.step()
    assert [round(warm.lr_at(step, 5), 3) for step in range(5)] == [0.02, 0.04, 0.06, 0.08, 0.1]


def test_steps_are_pytorchs() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    peer = torch.optim.lr_scheduler.MultiStepLR(optimizer, [8, 12], gamma=0.1)
    plain = Recipe(4, lr=0.1, schedule="step", milestones=(2, 3))
    warm = Recipe(4, lr=0.1, schedule="step", milestones=(2, 3), warmup_epochs=1)
    for step in range(16):
        assert plain.lr_at(step, 4) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        assert step < 4 or warm.lr_at(step, 4) == plain.lr_at(step, 4)
        optimizer.step()
        peer.step()
    assert warm.lr_at(0, 4) == pytest.approx(0.025)
    assert Recipe(4, schedule="step", milestones=(2.4,)).lr_at(10, 4) == pytest.approx(1e-4)  # 9.6 is step 10


@given(st.sampled_from(["constant", "cosine", "one-cycle"]), st.integers(1, 9), st.integers(1, 30), st.floats(1e-5, 10))
@settings(max_examples=60, deadline=None)
def test_learning_rates_stay_in_range(schedule: str, epochs: int, per_epoch: int, lr: float) -> None:
    recipe = Recipe(epochs, lr=lr, schedule=schedule)
    rates = [recipe.lr_at(step, per_epoch) for step in range(epochs * per_epoch)]
    assert all(0 <= rate <= lr * (1 + 1e-9) for rate in rates)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"optimizer": "lion"},
        {"lr": 0.0},
        {"weight_decay": -1.0},
        {"momentum": 1.0},
        {"momentum": 0.9},
        {"schedule": "sometimes"},
        {"milestones": (), "schedule": "step"},
        {"milestones": (4.0,), "schedule": "step"},
        {"milestones": (1.0,)},
        {"nesterov": True, "optimizer": "sgd"},
        {"warmup_epochs": 4.0},
        {"warmup_epochs": 1.0, "schedule": "one-cycle"},
        {"warmup_epochs": 1.0, "schedule": "inverse"},
        {"decay": -1.0, "schedule": "inverse"},
        {"decay": 0.1},
        {"seed": -1},
        {"clip": 0.0},
        {"precision": "float16"},
    ],
)
def test_wrong_recipes_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Recipe(**{"epochs": 3, **wrong})


# --- manners


def test_global_random_state_modes_and_gradients_are_as_before() -> None:
    model = build()
    model[1].eval()
    before = torch.get_rng_state()
    fit(model, *data(), replace(RECIPE, epochs=1))
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert not model[1].training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_exception_leaves_modes_and_random_state_as_before() -> None:
    def broken(*_: object) -> torch.Tensor:
        raise KeyError("loss")

    model = build().eval()
    before = torch.get_rng_state()
    with pytest.raises(KeyError):
        fit(model, *data(), RECIPE, loss=broken)
    assert not model.training
    assert torch.equal(before, torch.get_rng_state())


def test_frozen_parameters_stay() -> None:
    model = build()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    fit(model, *data(), replace(RECIPE, epochs=1))
    assert torch.equal(before, model[0].weight)


def test_the_result_depends_on_the_seed_alone() -> None:
    first, again, other = build(), build(), build()
    torch.manual_seed(11)
    fit(first, *data(), RECIPE, augment=noisy, loss=noisy_loss)
    torch.manual_seed(12)
    fit(again, *data(), RECIPE, augment=noisy, loss=noisy_loss)
    fit(other, *data(), replace(RECIPE, seed=4), augment=noisy, loss=noisy_loss)
    assert same_weights(first, again)
    assert not same_weights(first, other)


@pytest.mark.parametrize(
    ("images", "labels", "match"),
    [
        (torch.zeros(0, 1, 8, 8), torch.zeros(0).long(), "images"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.int64), torch.zeros(4).long(), "images"),
        (torch.zeros(4, 1, 8, 8), torch.zeros(3).long(), "labels"),
    ],
)
def test_wrong_data_is_refused(images: torch.Tensor, labels: torch.Tensor, match: str) -> None:
    with pytest.raises(InputError, match=match):
        fit(build(), images, labels, RECIPE)


def test_a_frozen_model_and_a_vector_loss_are_refused() -> None:
    with pytest.raises(InputError, match="trainable"):
        fit(build().requires_grad_(False), *data(), RECIPE)
    with pytest.raises(InputError, match="scalar"):
        fit(build(), *data(), RECIPE, loss=lambda m, x, y, g: F.cross_entropy(m(x), y, reduction="none"))


def test_a_diverged_run_says_so_and_keeps_no_nan(tmp_path: Path) -> None:
    def nan(model: nn.Module, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return cross_entropy(model, x, y, generator) * float("nan")

    with pytest.raises(RunError, match="not finite at step"):
        fit(build(), *data(), RECIPE, loss=nan, checkpoint=tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


# --- exact resume

CHILD = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import {module} as here
from striate.engine import train
train.CHECKPOINT_SECONDS = 0.0
kill_at, calls = int(sys.argv[3]), 0
def loss(*parts):
    global calls
    calls += 1
    if calls == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return here.noisy_loss(*parts)
loss.__module__, loss.__qualname__ = "test", "loss"
model = here.build()
train.fit(model, *here.data(), here.RECIPE, loss=loss, augment=here.noisy, checkpoint=sys.argv[2])
print(calls)
"""


def run_child(folder: Path, kill_at: int) -> subprocess.CompletedProcess[str]:
    here = Path(__file__)
    code = CHILD.format(module=here.stem)
    command = [sys.executable, "-c", code, str(here.parent), str(folder), str(kill_at)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_killed_at_any_step_and_run_again_gives_the_same_bytes(tmp_path: Path) -> None:
    # Four interpreters start here (about 3 s each): a kill is only real if it ends a process.
    whole = run_child(tmp_path / "whole", 0)
    assert whole.returncode == 0, whole.stderr
    total = int(whole.stdout)
    assert total == 3 * PER_EPOCH
    first = 2 + int.from_bytes(os.urandom(2), "big") % (total - 2)  # a random step, named if the test fails
    cut = run_child(tmp_path / "cut", first)
    assert cut.returncode == -signal.SIGKILL, cut.stderr
    assert (tmp_path / "cut" / "state.safetensors").is_file()
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    second = run_child(tmp_path / "cut", 0)
    assert second.returncode == 0, second.stderr
    assert int(second.stdout) == total - first + 1, f"killed at {first}"  # continued, not begun again
    for name in ("model.safetensors", "metrics.jsonl"):
        same = (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        assert same, f"{name} differs after a kill at step {first}"
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["metrics.jsonl", "model.safetensors"]


class StopError(Exception):
    pass


@pytest.mark.parametrize("stop_at", [1, 2, PER_EPOCH, PER_EPOCH + 1, 3 * PER_EPOCH])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_resume_inside_and_between_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int, optimizer: str
) -> None:
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0.0)
    recipe = replace(RECIPE, optimizer=optimizer, momentum=0.9 if optimizer == "sgd" else 0.0)
    whole = build()
    records = fit(whole, *data(), recipe, loss=noisy_loss, augment=noisy)
    calls = 0

    def stopping(model: nn.Module, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise StopError
        return noisy_loss(model, x, y, generator)

    with pytest.raises(StopError):
        fit(build(), *data(), recipe, loss=stopping, augment=noisy, checkpoint=tmp_path)
    again = build()
    with torch.no_grad():  # a resumed run must not depend on where the fresh network starts
        again[0].weight.zero_()
        if stop_at == 1:  # nothing was kept yet
            again = build()
    assert fit(again, *data(), recipe, loss=stopping, augment=noisy, checkpoint=tmp_path) == records
    assert same_weights(whole, again)


def test_a_finished_run_is_read_back(tmp_path: Path) -> None:
    first, second = build(), build()
    records = fit(first, *data(), RECIPE, checkpoint=tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def never(*_: object) -> torch.Tensor:
        raise AssertionError

    never.__module__, never.__qualname__ = cross_entropy.__module__, cross_entropy.__qualname__
    assert fit(second, *data(), RECIPE, loss=never, checkpoint=tmp_path) == records
    assert same_weights(first, second)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == records


@pytest.mark.parametrize("change", ["recipe", "data", "labels", "augment", "network"])
def test_another_runs_folder_is_refused_by_what_differs(tmp_path: Path, change: str) -> None:
    fit(build(), *data(), RECIPE, checkpoint=tmp_path)
    images, labels = data()
    model, recipe, augment = build(), RECIPE, None
    if change == "recipe":
        recipe = replace(RECIPE, lr=0.02)
    elif change == "data":
        images = images.flip(0)
    elif change == "labels":
        labels = 1 - labels
    elif change == "augment":
        augment = noisy
    else:
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    word = {"recipe": "recipe's lr was 0.01, here it is 0.02", "labels": "data"}.get(change, change)
    with pytest.raises(RunError, match=word):
        fit(model, images, labels, recipe, augment=augment, checkpoint=tmp_path)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    fit(build(), *data(), RECIPE, checkpoint=tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(WeightsError, match="damaged"):
        fit(build(), *data(), RECIPE, checkpoint=tmp_path)


def test_tied_weights_are_kept(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 2))
        model[2].weight = model[1].weight
        return model

    torch.manual_seed(0)
    first, second = tied(), tied()
    fit(first, *data(), replace(RECIPE, epochs=1), checkpoint=tmp_path)
    fit(second, *data(), replace(RECIPE, epochs=1), checkpoint=tmp_path)
    assert same_weights(first, second)


# --- several processes

WORKER = """
import atexit, os, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
threads = lambda: len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
atexit.register(lambda before=threads(): print("left" if threads() <= before else "threads remain"))
import {module} as here
from dataclasses import replace
from striate.engine.parallel import processes
from striate.engine.train import fit
model = here.build()
model[4].p = 0.0  # dropout is drawn for each process apart
records = fit(model, *here.data(), replace(here.RECIPE, batch_size=15), augment=here.noisy, checkpoint=sys.argv[2])
print(processes().num_processes)
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
def test_two_processes_give_the_result_of_one(tmp_path: Path) -> None:
    # Starts torchrun with two interpreters (about 8 s). The batch of 15 splits into 7 and 8.
    here = Path(__file__)
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(module=here.stem))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    outputs = []
    for name, command in (("one", [sys.executable]), ("two", launch)):
        words = [*command, str(script), str(here.parent), str(tmp_path / name)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr
        # Joined: lines that two processes print at once may run into each other.
        outputs.append(("".join(done.stdout.split()), read_tensors(tmp_path / name / "model.safetensors")))
    (one_said, (one, one_note)), (two_said, (two, two_note)) = outputs
    assert one_said == "1left"
    assert sorted(two_said) == sorted("2left" * 2)
    # Adam divides by the gradient's own size, so a rounding difference in a gradient near zero moves a weight by up to
    # lr; sums of 18 steps agree far closer than one step of lr = 0.01.
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-3, atol=2e-4)
    assert [r["loss"] for r in one_note["records"]] == pytest.approx([r["loss"] for r in two_note["records"]], rel=1e-4)


# --- the cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path))
    return tmp_path


def fresh() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))


def test_a_trained_network_is_kept_and_its_data_not_asked_for_again(cache: Path) -> None:
    def never() -> tuple[torch.Tensor, torch.Tensor]:
        raise AssertionError

    first = trained("tiny", fresh, data, RECIPE, key={"data": "noise"})
    again = trained("tiny", fresh, never, RECIPE, key={"data": "noise"})
    assert same_weights(first, again)
    assert not again.training
    torch.manual_seed(RECIPE.seed)  # what the cache holds is what fit gives, from a network built under the seed
    plain = fresh()
    fit(plain, *data(), RECIPE)
    assert same_weights(first, plain)


@dataclass(frozen=True)
class Scaled:
    factor: float = 1.0

    def __call__(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, g: torch.Generator) -> torch.Tensor:
        return self.factor * cross_entropy(model, x, y, g)


def test_everything_that_matters_is_in_the_key(cache: Path) -> None:
    quick = replace(RECIPE, epochs=1)
    calls = [
        {},
        {"recipe": replace(quick, lr=0.02)},
        {"recipe": replace(quick, precision="bfloat16")},
        {"key": {"data": "other"}},
        {"loss": Scaled(1.0)},
        {"loss": Scaled(2.0)},
        {"augment": noisy},
        {"build": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3))},
        {"name": "other"},
    ]
    for count, change in enumerate(calls, start=1):
        options = {"name": "tiny", "build": fresh, "data": data, "recipe": quick, "key": {"data": "noise"}, **change}
        trained(**options)
        assert len(list((cache / "models").iterdir())) == count, change


def test_a_network_cut_off_in_training_is_continued(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0.0)
    whole = trained("whole", fresh, data, RECIPE, loss=Scaled(1.0), key={})
    calls = 0
    original = Scaled.__call__

    def stopping(self: Scaled, *parts: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise StopError
        return original(self, *parts)

    monkeypatch.setattr(Scaled, "__call__", stopping)
    with pytest.raises(StopError):
        trained("cut", fresh, data, RECIPE, loss=Scaled(1.0), key={})
    again = trained("cut", fresh, data, RECIPE, loss=Scaled(1.0), key={})
    assert calls == 9 + 3 * PER_EPOCH - 8
    assert same_weights(whole, again)


def test_of_two_processes_one_trains_and_the_other_waits(cache: Path) -> None:
    # Two interpreters (about 5 s): a lock is only real between processes.
    here = Path(__file__)
    code = (
        f"import sys; sys.path.insert(0, {str(here.parent)!r})\n"
        f"import {here.stem} as here\n"
        "from striate.engine.train import trained\n"
        "asked = []\n"
        "def data():\n    asked.append(1)\n    return here.data()\n"
        "model = trained('tiny', here.fresh, data, here.RECIPE, key={})\n"
        "print(len(asked), model[1].weight.double().sum().item().hex())\n"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ})
        for _ in range(2)
    ]
    said = [child.communicate(timeout=300)[0].split() for child in children]
    assert sorted(asked for asked, _ in said) == ["0", "1"]
    assert said[0][1] == said[1][1]


def test_identity_of_sees_options_and_never_addresses() -> None:
    from functools import partial

    assert identity_of(Scaled(2.0)) != identity_of(Scaled(1.0))
    assert identity_of(partial(noisy, generator=3)) != identity_of(partial(noisy, generator=4))
    assert "0x" not in json.dumps([identity_of(object()), identity_of(noisy), identity_of(partial(noisy, fresh))])
    assert issubclass(RunError, StriateError)
    assert asdict(RECIPE)["precision"] == "float32"
