"""The scan over a map: contract, symmetry, reach, published names, and every mode."""

from __future__ import annotations

import pytest
import torch

from striate.errors import InputError
from striate.layers.channel_first import Linear2d, PatchMerging
from striate.layers.ss2d import SS2D
from striate.testing import check_layer

MODES = ["cross2d", "bidi", "unidi", "cascade"]

# github.com/MzeroMiko/VMamba, commit 2ed52ead: its SS2D (8 channels, 2 states, ssm_ratio 2) in float32 on a CPU,
# forward types v05_noz, v052d_noz, v051d_noz, v052dc_noz and v0, on the weights and the map of ``official``: the
# output at [0, :4, 1, 5] and [1, 2, 4, :4]. In v052dc what was scanned backwards was turned round before it was added.
GOLDEN = {
    "cross2d": ([-0.449065, 2.085427, -0.472513, -0.802587], [1.097236, 1.534996, 0.340854, -1.078504]),
    "bidi": ([-0.448686, 2.082832, -0.465339, -0.798972], [1.102502, 1.538592, 0.344796, -1.072148]),
    "unidi": ([-0.437017, 2.080897, -0.460606, -0.797032], [1.104118, 1.540002, 0.342125, -1.061849]),
    "cascade": ([-0.458455, 2.146988, -0.570891, -0.701314], [1.316284, 1.410701, 0.321927, -1.081572]),
    "vanilla": ([0.955027, -0.344562, -0.693581, -0.703297], [0.148441, -0.345592, -0.284457, -0.359644]),
}


def layer(**options: object) -> SS2D:
    torch.manual_seed(0)
    made = SS2D(8, **options)  # type: ignore[arg-type]
    with torch.no_grad():  # at the start steps are tiny, so that little passes along a route
        made.dt_projs_bias.fill_(0.5)
        made.Ds.uniform_(0.5, 1.5)
    return made


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("vanilla", [False, True])
def test_the_contract(mode: str, vanilla: bool) -> None:
    options = {"d_state": 2, "ssm_ratio": 2.0, "conv_bias": True, "gate": True} if vanilla else {}
    check_layer(layer(scan=mode, **options), torch.randn(2, 8, 3, 5))


def official(made: SS2D) -> torch.Tensor:
    """Fill a layer with seeded weights of a trained one's size; return a seeded map of 5 x 7."""
    g = torch.Generator().manual_seed(0)
    weights = {}
    for name, value in sorted(made.state_dict().items()):
        drawn = torch.rand(value.shape, generator=g) if name == "A_logs" else torch.randn(value.shape, generator=g)
        if name == "Ds" or (value.dim() == 1 and name.endswith("weight")):
            drawn = 1 + 0.1 * drawn
        elif name == "dt_projs_bias":
            drawn = drawn - 2
        elif value.dim() == 1:
            drawn = 0.1 * drawn
        elif name != "A_logs":
            drawn = drawn / value[0].numel() ** 0.5
        weights[name] = drawn
    made.load_state_dict(weights)
    return torch.randn(2, 8, 5, 7, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mode", GOLDEN)
def test_outputs_are_those_of_the_official_code(mode: str) -> None:
    vanilla = mode == "vanilla"
    made = SS2D(8, 2, 2.0, conv_bias=vanilla, gate=vanilla, scan="cross2d" if vanilla else mode)  # type: ignore[arg-type]
    x = official(made)
    with torch.no_grad():
        y = made(x)
    first, second = GOLDEN[mode]
    torch.testing.assert_close(y[0, :4, 1, 5], torch.tensor(first), rtol=0, atol=5e-6)
    torch.testing.assert_close(y[1, 2, 4, :4], torch.tensor(second), rtol=0, atol=5e-6)


def test_names_and_shapes_are_those_of_the_official_checkpoints() -> None:
    state = SS2D(96).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "x_proj_weight": (4, 8, 96),
        "Ds": (384,),
        "A_logs": (384, 1),
        "dt_projs_weight": (4, 96, 6),
        "dt_projs_bias": (4, 96),
        "in_proj.weight": (96, 96),
        "conv2d.weight": (96, 1, 3, 3),
        "out_norm.weight": (96,),
        "out_norm.bias": (96,),
        "out_proj.weight": (96, 96),
    }
    vanilla = SS2D(96, 16, 2.0, conv_bias=True, gate=True).state_dict()
    assert vanilla["in_proj.weight"].shape == (384, 96)
    assert vanilla["A_logs"].shape == (768, 16)
    torch.testing.assert_close(vanilla["A_logs"][0].exp(), torch.arange(1.0, 17.0))


def test_every_pixel_reaches_the_centre_and_one_direction_only_those_before_it() -> None:
    x = torch.randn(1, 8, 5, 7, requires_grad=True)
    for mode in ("cross2d", "bidi", "cascade"):
        (gradient,) = torch.autograd.grad(layer(scan=mode, d_conv=1)(x)[0, :, 2, 3].sum(), x)
        assert (gradient.abs().sum(dim=1) > 1e-12).all(), mode
    (gradient,) = torch.autograd.grad(layer(scan="unidi", d_conv=1)(x)[0, :, 2, 3].sum(), x)
    seen = gradient.abs().sum(dim=1).flatten() > 0
    assert seen[: 2 * 7 + 4].all()
    assert not seen[2 * 7 + 4 :].any()


@pytest.mark.parametrize("d_conv", [1, 3])
def test_tied_routes_turn_with_the_map(d_conv: int) -> None:
    made = layer(d_conv=d_conv).double()
    if made.conv2d is not None:
        made.conv2d.weight.data += made.conv2d.weight.flip(2, 3)
    x = torch.randn(2, 8, 4, 6, dtype=torch.float64)
    turned = x.flip(2, 3)
    assert not torch.allclose(made(turned), made(x).flip(2, 3))
    with torch.no_grad():
        for parameter in (made.x_proj_weight, made.dt_projs_weight, made.dt_projs_bias):
            parameter[:] = parameter[:1].clone()
        for flat in (made.A_logs, made.Ds):
            flat.unflatten(0, (4, -1))[:] = flat.unflatten(0, (4, -1))[:1].clone()
    torch.testing.assert_close(made(turned), made(x).flip(2, 3))


def test_linear_and_merging() -> None:
    linear = Linear2d(6, 4)
    x = torch.randn(2, 6, 3, 5)
    torch.testing.assert_close(
        linear(x), torch.nn.functional.linear(x.movedim(1, -1), *linear.parameters()).movedim(-1, 1)
    )
    linear.load_state_dict({"weight": torch.ones(4, 6, 1, 1), "bias": torch.zeros(4)})
    assert linear.weight.shape == (4, 6)
    check_layer(PatchMerging(3), torch.randn(2, 3, 4, 5))
    assert PatchMerging(3)(torch.randn(1, 3, 5, 7)).shape == (1, 6, 3, 4)
    order = PatchMerging(1, 4)
    with torch.no_grad():
        order.reduction.weight.copy_(torch.eye(4))
    merged = order(torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]))[0, :, 0, 0]
    assert merged.argsort().tolist() == [0, 2, 1, 3]  # (0, 0), (1, 0), (0, 1), (1, 1)


def test_refusals() -> None:
    with pytest.raises(InputError, match="cascade"):
        SS2D(8, scan="spiral")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="odd"):
        SS2D(8, d_conv=2)
    with pytest.raises(InputError, match="'ssm_init' of SS2D"):
        SS2D(8, ssm_init="v3")  # type: ignore[arg-type]
    for options, name in (({"ssm_ratio": 0.1}, "d_inner"), ({"d_state": 0}, "d_state"), ({"dt_rank": 0}, "dt_rank")):
        with pytest.raises(InputError, match=f"'{name}' of SS2D must be >= 1"):
            SS2D(8, **options)  # type: ignore[arg-type]
