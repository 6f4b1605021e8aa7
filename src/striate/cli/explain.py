"""``striate explain``: heat maps as pictures, each with its method's own check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

__all__ = ["explain"]


def explain(
    model: Annotated[
        str, typer.Argument(help="Any network: lite0, a timm name, torchvision:NAME, package.module:factory, …")
    ],
    images: Annotated[
        list[str], typer.Argument(help="Files or folders; 'embedded' for the photographs that come along.")
    ],
    method: Annotated[list[str] | None, typer.Option(help="Repeat for several; default xgrad-cam.")] = None,
    target: Annotated[str | None, typer.Option(help="Class index or name; default the predicted class.")] = None,
    layer: Annotated[str | None, typer.Option(help="Path of the layer for CAMs; default found and named.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("striate-maps"),
    architecture: Annotated[str | None, typer.Option(help="Which network a checkpoint file belongs to.")] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Let timm, torchvision or a hub download weights.")
    ] = False,
    input_size: Annotated[str | None, typer.Option(help="CxHxW, where the network does not say.")] = None,
    mean: Annotated[str | None, typer.Option(help="Per channel for pixels in [0, 1].")] = None,
    std: Annotated[str | None, typer.Option(help="Per channel, like --mean.")] = None,
    class_names: Annotated[Path | None, typer.Option(help="Text file with one class name per line.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …")] = None,
) -> None:
    """Draw where a network looks: one picture per image, the methods side by side on one colour scale.

    Example: striate explain lite0 cat.jpg --method xgrad-cam --method rise
    """
    import torch
    from rich.console import Console
    from rich.table import Table

    from striate.cli.options import class_index, file_name, model_options, output_folder
    from striate.data.images import read_images
    from striate.engine.load import load_model
    from striate.engine.model import try_out
    from striate.explain.registry import METHODS, get_method
    from striate.report.heatmap import overlay

    names = method or ["xgrad-cam"]
    for name in names:
        get_method(name)  # a misspelt method is refused before anything is loaded
    output_folder(out, "striate explain")
    loaded = load_model(model, **model_options(architecture, pretrained, input_size, mean, std, class_names, device))
    try_out(loaded)
    wanted = None if target is None else class_index(target, loaded)
    console = Console(highlight=False)
    table = Table("image", "class", "method", "layer", "check", "seconds")
    refused: list[str] = []
    written = []
    taken: set[str] = set()
    for source in images:
        found = read_images(source, loaded.preprocessing, class_names=loaded.class_names)
        refused += [f"{item.name}: {item.reason}" for item in found.skipped]
        for index, name in enumerate(found.names):
            pixels = found.images[index : index + 1].to(loaded.mean.device)
            panels = [_picture(pixels[0])]
            for key in names:
                options = {"layer": layer} if layer is not None and METHODS[key].family == "cam" else {}
                result = METHODS[key].factory(loaded, **options).attribute(pixels, wanted)
                panels.append(overlay(_picture(pixels[0]), result.normalized[0].cpu().numpy()))
                mark = {True: "passed", False: "failed", None: "–"}[result.check.passed]
                shown = loaded.class_name(int(result.target[0]))
                table.add_row(
                    name,
                    shown,
                    key,
                    result.layer or "input",
                    f"{mark}: {result.check.statement}",
                    f"{result.seconds:.2f}",
                )
            path = out / f"{file_name(name, taken)}.png"
            _sheet(panels).save(path)
            written.append(path)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    console.print(table)
    for path in written:
        typer.echo(str(path))
    for item in refused:
        typer.echo(f"left out: {item}", err=True)


def _picture(pixels: Tensor) -> Image.Image:
    from torchvision.transforms.functional import to_pil_image

    return to_pil_image(pixels.clamp(0, 1).cpu()).convert("RGB")


def _sheet(panels: list[Image.Image], gap: int = 6) -> Image.Image:
    from PIL import Image

    width, height = panels[0].size
    sheet = Image.new("RGB", ((width + gap) * len(panels) - gap, height), "white")
    for number, panel in enumerate(panels):
        sheet.paste(panel, (number * (width + gap), 0))
    return sheet
