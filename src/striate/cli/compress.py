"""``striate compress``: a smaller network, with the latency that it really has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from torch import Tensor, nn

    from striate.compress.precropping import CropReport
    from striate.engine.latency import Comparison
    from striate.engine.model import VisionModel

__all__ = ["compress"]

_METHODS = ("precrop", "preconfig")


def compress(
    model: Annotated[str, typer.Argument(help="Any network: lite0, a timm name, torchvision:NAME, …")],
    method: Annotated[str, typer.Option(help="precrop (narrower) or preconfig (wider and narrower).")] = "precrop",
    density: Annotated[float | None, typer.Option(help="Share of the weights that stays.")] = None,
    flops: Annotated[float | None, typer.Option(help="Share of the multiply-accumulates that stays.")] = None,
    layers: Annotated[
        str, typer.Option(help="precrop: synexp, synflow, erk, uniform, magnitude, random, or snip, grasp on --images.")
    ] = "synexp",
    residual: Annotated[str, typer.Option(help="inner leaves what additions join; stage crops it too.")] = "inner",
    divisor: Annotated[
        str, typer.Option(help="Widths in multiples of it; auto: what this machine is fast with.")
    ] = "1",
    p_max: Annotated[float, typer.Option(help="preconfig: largest density of a layer.")] = 4.0,
    images: Annotated[str | None, typer.Option(help="For snip and grasp: a folder with class folders.")] = None,
    labels: Annotated[Path | None, typer.Option(help="CSV of file and label; class folders need none.")] = None,
    batch_size: Annotated[int, typer.Option(help="Of the images that latency is measured on.")] = 1,
    repeats: Annotated[int, typer.Option(help="Timed runs of each network.")] = 25,
    seed: Annotated[int, typer.Option(help="Of the new weights.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for model.safetensors and recipe.json.")] = Path("striate-compress"),
    architecture: Annotated[str | None, typer.Option(help="Which network a checkpoint file belongs to.")] = None,
    input_size: Annotated[str | None, typer.Option(help="CxHxW, where the network does not say.")] = None,
    mean: Annotated[str | None, typer.Option(help="Per channel for pixels in [0, 1].")] = None,
    std: Annotated[str | None, typer.Option(help="Per channel, like --mean.")] = None,
    class_names: Annotated[Path | None, typer.Option(help="Text file with one class name per line.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …")] = None,
) -> None:
    """Make a network smaller before training, and say what that is worth on this machine.

    The result has fresh weights; train it as you would the original: load_model("striate-compress/model.safetensors").
    Examine what you trained: striate examine trained.pth --architecture striate-compress/model.safetensors

    Example: striate compress torchvision:resnet18 --density 0.3 --divisor auto
    """
    import torch
    from rich.console import Console

    from striate.cli.options import model_options
    from striate.compress.save import save_network
    from striate.engine.latency import compare_latency
    from striate.engine.load import load_model
    from striate.errors import InputError, did_you_mean

    if method not in _METHODS:
        hint = did_you_mean(method, _METHODS)
        raise InputError("--method", "striate compress", allowed=" or ".join(_METHODS), got=method, hint=hint)
    for name, value in (("--batch-size", batch_size), ("--repeats", repeats - 1)):
        if value < 1:
            raise InputError(name, "striate compress", allowed=">= 1" if name == "--batch-size" else ">= 2", got=value)
    if method == "precrop" and density is None and flops is None:
        raise InputError("--density", "striate compress", allowed="given, or --flops, or both", got="neither")
    if method == "precrop" and layers in {"snip", "grasp"} and images is None:
        hint = "synflow and synexp need none."
        raise InputError("--images", "striate compress", allowed=f"given for {layers}", got="none", hint=hint)
    loaded = load_model(model, **model_options(architecture, False, input_size, mean, std, class_names, device))
    size = loaded.preprocessing.input_size
    example = torch.rand(1, *size, generator=torch.Generator().manual_seed(0)).to(loaded.mean.device)
    step: Any = "auto" if divisor == "auto" else int(divisor) if divisor.isdigit() else divisor
    options: dict[str, Any] = {"residual": residual, "divisor": step, "seed": seed}
    make = _preconfig if method == "preconfig" else _precrop
    batch = None if images is None else _batch(loaded, images, labels)
    small = make(loaded.network, example, density, flops, options, layers=layers, batch=batch, p_max=p_max)
    report: CropReport = small.crop_report  # type: ignore[assignment]

    pixels = torch.rand(batch_size, *size, generator=torch.Generator().manual_seed(0)).to(loaded.mean.device)
    timed = compare_latency(loaded.network, small, pixels, repeats=repeats)
    console = Console(highlight=False)
    _print(console, loaded, small, report, timed, pixels)
    spelling = architecture or model
    path = save_network(_wrapped(loaded, small), out, spelling)
    console.print(f"{path} and recipe.json beside it: fresh weights, to be trained", soft_wrap=True)


def _precrop(
    network: nn.Module,
    example: Tensor,
    density: float | None,
    flops: float | None,
    options: dict[str, Any],
    **more: Any,
) -> nn.Module:
    from striate.compress.density import layer_density
    from striate.compress.precropping import precrop

    target = layer_density(network, example, more["layers"], density, flops, batch=more["batch"], seed=options["seed"])
    return precrop(network, target, example, budget="params" if density is not None else "flops", **options)


def _preconfig(
    network: nn.Module,
    example: Tensor,
    density: float | None,
    flops: float | None,
    options: dict[str, Any],
    **more: Any,
) -> nn.Module:
    from striate.compress.precropping import preconfig

    return preconfig(network, example, params=density, flops=flops, p_max=more["p_max"], **options)


def _batch(loaded: VisionModel, images: str, labels: Path | None) -> tuple[Tensor, Tensor]:
    """Return normalised images and their labels, at most 256 of them."""
    from striate.data.images import read_images
    from striate.engine.model import count_classes
    from striate.errors import InputError

    classes = count_classes(loaded)
    found = read_images(
        images, loaded.preprocessing, labels=labels, limit=256, class_names=loaded.class_names, num_classes=classes
    )
    if found.labels is None:
        raise InputError("--images", "striate compress", allowed="labelled images", got=found.label_rule)
    pixels = found.images.to(loaded.mean.device)
    return (pixels - loaded.mean) / loaded.std, found.labels


def _wrapped(loaded: VisionModel, small: nn.Module) -> VisionModel:
    from striate.engine.model import VisionModel

    return VisionModel(small, loaded.preprocessing, class_names=loaded.class_names, name=loaded.name)


def _print(
    console: Console, loaded: VisionModel, small: nn.Module, report: CropReport, timed: Comparison, pixels: Tensor
) -> None:
    from rich.table import Table

    from striate.compress.widths import fast_multiple
    from striate.engine.macs import count_macs
    from striate.engine.memory import activation_bytes

    before, after = loaded.network, small
    images = f"batch of {len(pixels)}, {'x'.join(map(str, pixels.shape[1:]))}"
    rows: list[tuple[str, float, float, Callable[[float], str]]] = [
        ("parameters", _parameters(before), _parameters(after), lambda n: f"{n / 1e6:.3f} M"),
        ("  weights of layers", *report.params, lambda n: f"{n / 1e6:.3f} M"),
        (
            "multiply-accumulates",
            count_macs(before, pixels[:1]),
            count_macs(after, pixels[:1]),
            lambda n: f"{n / 1e9:.3f} G",
        ),
        (
            "kept for backward",
            activation_bytes(before, pixels[:1].expand(2, -1, -1, -1)) / 2,
            activation_bytes(after, pixels[:1].expand(2, -1, -1, -1)) / 2,
            lambda n: f"{n / 2**20:.1f} MiB",
        ),
        ("latency, measured", timed.first, timed.second, lambda n: f"{1000 * n:.2f} ms"),
    ]
    table = Table(f"{loaded.name}, {images}", "before", "after", "after / before")
    for name, old, new, show in rows:
        table.add_row(name, show(old), show(new), f"{new / old:.3f}" if old else "–")
    console.print(table)
    place = f"{timed.threads} threads" if pixels.device.type == "cpu" else str(pixels.device)
    spread = f"{timed.ratio:.2f} times as fast (quartiles {timed.low:.2f} to {timed.high:.2f}; {place}, in turns)"
    if timed.high < 1 or timed.ratio < 0.98:
        console.print(f"SLOWER: smaller on paper, but only {spread}", soft_wrap=True)
    elif timed.low < 1:
        console.print(f"NOT FASTER beyond doubt: {spread}", soft_wrap=True)
    else:
        console.print(spread, soft_wrap=True)
    if report.fixed:
        layer, why = next(iter(report.fixed.items()))
        console.print(
            f"{len(report.fixed)} of {len(report.achieved)} layers keep their widths; first {layer}: {why}",
            soft_wrap=True,
            markup=False,
        )
    multiple = fast_multiple(pixels.device)
    if report.divisor % multiple and any(new % multiple for _, new in report.widths.values()):
        console.print(
            f"convolutions are fastest here in multiples of {multiple} channels; --divisor auto rounds to them",
            soft_wrap=True,
        )
    for check in report.checks:
        mark = {True: "passed", False: "FAILED", None: "–"}[check.passed]
        console.print(f"{mark:>7}  {check.name}: {check.statement}", soft_wrap=True, markup=False)


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
