"""Cropping half of all channels, and what it is worth: against Torch-Pruning, and against itself at other widths.

Both libraries drop the last half of every group of channels of the same network with the same weights. Printed are the
difference of the two results' outputs, relative to the largest, and the time of finding the groups and cropping them;
where one of them fails, what it says. On ResNeXt-50 the results differ because Torch-Pruning takes the last half of all
channels of a grouped convolution, whole runs of them, and leaves the number of groups: the filters that stay read other
channels than before. Its result is 11 % off the network with those channels masked, ours, half of every run, 2e-7.

Then the latency of convolutions by width: why widths are rounded.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial

import torch
import torchvision
from _timing import Row, compare, options, print_head, print_summary
from torch import Tensor, nn

from striate.compress.edit import crop_channels, first_channels
from striate.compress.graph import channel_graph
from striate.compress.widths import fast_multiple
from striate.engine.latency import compare_latency

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    name: partial(torchvision.models.get_model, name)
    for name in ("resnet18", "mobilenet_v2", "densenet121", "shufflenet_v2_x1_0", "resnext50_32x4d")
}


def ours(model: nn.Module, x: Tensor) -> nn.Module:
    graph = channel_graph(model, x)
    halves = {g.index: max(1, g.size // g.multiple // 2) * g.multiple for g in graph.groups}
    return crop_channels(model, graph, first_channels(graph, halves), x, check=False)


def peer(model: nn.Module, x: Tensor) -> nn.Module:
    import torch_pruning as tp

    model = copy.deepcopy(model)
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=x)
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    for group in list(graph.get_all_groups(ignored_layers=[last], root_module_types=[nn.Conv2d, nn.Linear])):
        root, prune = group[0].dep.target.module, group[0].dep.handler
        channels = graph.get_out_channels(root)
        graph.get_pruning_group(root, prune, idxs=list(range(max(1, channels // 2), channels))).prune()
    return model


def apart(x: Tensor, first: nn.Module, second: nn.Module) -> float:
    with torch.no_grad():
        a, b = first.eval()(x), second.eval()(x)
    return float((a - b).abs().max() / a.abs().max())


def main() -> None:
    warnings.simplefilter("ignore")
    asked = options(__doc__ or "", device=False)
    rows: list[Row] = []
    print_head("Cropping half of the channels of every group, batch 1, 224 x 224", ("torch-pruning",))
    for name, build in NETWORKS.items():
        torch.manual_seed(0)
        model, x = build().eval(), torch.rand(1, 3, 224, 224)
        try:
            peer(model, x)
        except Exception as error:
            ours(model, x)
            print(f"{name + ', Torch-Pruning':46} fails: {type(error).__name__}: {str(error).splitlines()[0][:60]}")
            continue
        rows += compare(
            f"{name}, Torch-Pruning",
            partial(ours, model, x),
            partial(peer, model, x),
            difference=partial(apart, x),
            repeats=3 if asked.quick else asked.repeats,
            threads=1,
        )
    print_summary(rows)
    print(f"\n3 x 3 convolution, 28 x 28, batch 1; widths in multiples of {fast_multiple()} are fastest here")
    for width in (33, 40, 47, 49):
        full = (width + fast_multiple() - 1) // fast_multiple() * fast_multiple()
        first, second = (nn.Sequential(*[nn.Conv2d(w, w, 3, padding=1) for _ in range(4)]) for w in (width, full))
        found = compare_latency(Padded(first, width), Padded(second, full), torch.zeros(1), repeats=31)
        print(
            f"{width} channels {1000 * found.first / 4:.3f} ms, {full} channels {1000 * found.second / 4:.3f} ms, "
            f"ratio {found.ratio:.2f} [{found.low:.2f}, {found.high:.2f}]"
        )


class Padded(nn.Module):
    """Gives a network images of its own width, so that two widths can be timed in turns."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("image", torch.rand(1, width, 28, 28))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.image)


if __name__ == "__main__":
    main()
