"""The checkpoint folder of one training run: written whole or not at all, continued only by the same run."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from striate.engine.files import write_bytes, write_text
from striate.engine.record import fingerprint
from striate.errors import RunError, WeightsError

__all__ = ["Checkpoint", "data_fingerprint", "identity_of", "read_note", "read_tensors", "write_tensors"]


class Checkpoint:
    """A folder with ``state.safetensors`` while a run goes on, ``model.safetensors`` when it is done.

    Tensors and counters stand in one file, so that no kill can leave two halves that disagree.

    Args:
        folder: made if missing.
        identity: what must be the same for a run to be continued, JSON-able, by name.
    """

    def __init__(self, folder: str | Path, identity: dict[str, Any]) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.identity = json.loads(json.dumps(identity, default=str))
        self.state, self.final = folder / "state.safetensors", folder / "model.safetensors"

    def resume(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float, list[dict[str, Any]]]:
        """Load what is there into ``model`` and ``optimizer``; return steps done, sum of losses, and the records.

        Raises:
            RunError: the folder holds another run.
            WeightsError: its file is damaged.
        """
        path = next((path for path in (self.final, self.state) if path.is_file()), None)
        if path is None:
            return 0, 0.0, []
        tensors, note = read_tensors(path)
        for name, mine in self.identity.items():
            theirs = note["identity"].get(name)
            if theirs != mine:
                raise RunError(
                    f"{self.folder} holds another run: its {name} was {theirs}, here it is {mine}. "
                    "Give another folder, or delete that one."
                )
        if path == self.final:
            model.load_state_dict(tensors)
            return note["step"], 0.0, note["records"]
        model.load_state_dict(
            {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
        )
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, slot = key.split(".", 2)
                slots.setdefault(int(index), {})[slot] = value
        optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
        return note["step"], note["running"], note["records"]

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        step: int,
        running: float,
        records: list[dict[str, Any]],
    ) -> None:
        """Write the state after ``step`` steps."""
        tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
        for index, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items() if value is not None}
        note = {"identity": self.identity, "step": step, "running": running, "records": records}
        write_tensors(self.state, tensors, note)
        self._log(records)

    def finish(self, model: nn.Module, step: int, records: list[dict[str, Any]]) -> None:
        """Write the trained network and drop the state, and what a kill during a write left over."""
        if not self.final.is_file():
            write_tensors(self.final, model.state_dict(), {"identity": self.identity, "step": step, "records": records})
        self._log(records)
        for path in (self.state, *self.folder.glob(".*.safetensors.*")):
            path.unlink(missing_ok=True)

    def _log(self, records: list[dict[str, Any]]) -> None:
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in records))


def write_tensors(path: Path, tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
    """Write tensors and a JSON-able note into one safetensors file, whole or not at all; same content, same bytes."""
    from safetensors.torch import save

    # Copied one by one, since safetensors refuses tied weights; one metadata key, since several have no fixed order.
    apart = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()}
    write_bytes(path, save(apart, {"striate": json.dumps(note)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote.

    Raises:
        WeightsError: damaged, or written by something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            note = json.loads((file.metadata() or {}).get("striate", "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is damaged ({error}); delete its folder and train again.") from error
    if note is None:
        raise WeightsError(f"{path} was not written by Striate's training; give another folder.")
    return tensors, note


def read_note(path: str | Path) -> dict[str, Any]:
    """Return the note that :func:`write_tensors` put into a file; empty where there is none, whatever the file is."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            note = json.loads((file.metadata() or {}).get("striate", "{}"))
    except (SafetensorError, OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def identity_of(thing: Any) -> Any:
    """Return what names a function or a callable object in a key.

    Its path, and the options of a dataclass or a ``functools.partial``; what else an object holds is not seen.
    """
    if thing is None or isinstance(thing, str | int | float | bool):
        return thing
    if isinstance(thing, list | tuple):
        return [identity_of(item) for item in thing]
    if hasattr(thing, "func"):
        options = [[identity_of(value) for value in thing.args], {k: identity_of(v) for k, v in thing.keywords.items()}]
        return [identity_of(thing.func), *options]
    if hasattr(thing, "__qualname__"):
        return f"{thing.__module__}.{thing.__qualname__}"
    name = f"{type(thing).__module__}.{type(thing).__qualname__}"
    if is_dataclass(thing):
        return [name, {field.name: identity_of(getattr(thing, field.name)) for field in fields(thing)}]
    return name


def data_fingerprint(images: Tensor, labels: Tensor) -> str:
    """Return a hash of sizes, types, all labels, and 65,536 pixel values spread over the images."""
    flat = images.reshape(-1)
    sample = flat[:: max(1, flat.numel() // 65_536)].detach().cpu()
    parts = [list(images.shape), str(images.dtype), sample.tolist(), list(labels.shape), labels.detach().cpu().tolist()]
    return fingerprint(parts)
