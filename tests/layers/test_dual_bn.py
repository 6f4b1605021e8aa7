"""Two sets of batch norms: names, copies, independence."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from striate.errors import InputError, LayerError
from striate.layers.dual_bn import DualBatchNorm, bn_branch, convert_dual_bn, drop_aux_bn, set_bn_branch

KINDS = [
    (nn.BatchNorm1d, (4, 6), nn.Linear(6, 6)),
    (nn.BatchNorm1d, (4, 6, 5), nn.Conv1d(6, 6, 3)),
    (nn.BatchNorm2d, (4, 6, 5, 5), nn.Conv2d(6, 6, 3)),
    (nn.BatchNorm3d, (2, 6, 4, 4, 4), nn.Conv3d(6, 6, 3)),
]


def network(norm: type[nn.Module] = nn.BatchNorm2d, layer: nn.Module | None = None, **options: object) -> nn.Module:
    layer = nn.Conv2d(6, 6, 3) if layer is None else copy.deepcopy(layer)
    model = nn.Sequential(layer, norm(6, **options), nn.ReLU(), nn.Sequential(norm(6, **options)))
    for module in model.modules():  # as if trained
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize(("norm", "shape", "layer"), KINDS)
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}, {"momentum": None}])
@pytest.mark.parametrize("training", [False, True])
def test_both_branches_start_as_the_original(norm, shape, layer, options, training) -> None:
    model = network(norm, layer, **options).train(training)
    dual = convert_dual_bn(model)
    x = torch.randn(shape)
    outputs = []
    for branch in ("main", "aux"):
        set_bn_branch(dual, branch)
        outputs.append(dual(x))
    expected = copy.deepcopy(model)(x)
    assert torch.equal(outputs[0], expected)
    assert torch.equal(outputs[1], expected)
    assert not any(isinstance(module, DualBatchNorm) for module in model.modules())  # a copy was converted


def test_a_step_of_the_aux_branch_leaves_main_alone() -> None:
    dual = convert_dual_bn(network().train())
    before = {key: value.clone() for key, value in dual.state_dict().items()}
    optimizer = torch.optim.SGD(dual.parameters(), lr=0.1)
    with bn_branch(dual, "aux"):
        dual(torch.randn(8, 6, 5, 5) * 3 + 1).square().mean().backward()
    optimizer.step()
    changed = {key for key, value in dual.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {
        "0.weight",  # not 0.bias: a batch norm takes it out again
        *(
            f"{layer}.aux.{name}"
            for layer in ("1", "3.0")
            for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        ),
    }
    assert all(module.branch == "main" for module in dual.modules() if isinstance(module, DualBatchNorm))


def test_the_names_are_the_originals_and_its_checkpoint_loads() -> None:
    plain = network()
    dual = convert_dual_bn(network())
    assert [key for key in dual.state_dict() if ".aux." not in key] == list(plain.state_dict())
    dual.load_state_dict(plain.state_dict(), strict=True)
    x = torch.randn(2, 6, 5, 5)
    for branch in ("main", "aux"):
        with bn_branch(dual.eval(), branch):
            assert torch.equal(dual(x), plain.eval()(x))


def test_its_own_checkpoint_loads() -> None:
    dual, other = convert_dual_bn(network()), convert_dual_bn(network())
    with bn_branch(dual, "aux"):
        dual(torch.randn(8, 6, 5, 5))  # the sets differ now
    other.load_state_dict(dual.state_dict(), strict=True)
    for key, value in dual.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])
    assert not torch.equal(other.state_dict()["1.aux.running_mean"], other.state_dict()["1.running_mean"])
    broken = dual.state_dict()
    del broken["1.running_mean"]
    with pytest.raises(RuntimeError, match="running_mean"):
        other.load_state_dict(broken)


def test_a_timm_network_whose_norms_hold_the_activation() -> None:
    plain = timm.create_model("tf_efficientnet_lite0", num_classes=5).eval()
    dual = convert_dual_bn(plain)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad(), bn_branch(dual, "aux"):
        assert torch.equal(dual(x), plain(x))
    dual.load_state_dict(plain.state_dict(), strict=True)


def test_deployment_drops_the_aux_set() -> None:
    dual = convert_dual_bn(network())
    with bn_branch(dual, "aux"):
        dual(torch.randn(8, 6, 5, 5))
    plain = drop_aux_bn(dual.eval())
    x = torch.randn(2, 6, 5, 5)
    assert torch.equal(plain(x), dual(x))
    assert list(plain.state_dict()) == list(network().state_dict())
    assert not plain.training


def test_a_shared_norm_stays_shared_and_converting_twice_is_converting_once() -> None:
    norm = nn.BatchNorm2d(6)
    model = nn.Sequential(norm, nn.ReLU(), norm)
    dual = convert_dual_bn(model)
    assert dual[0] is dual[2]
    assert sum(isinstance(module, DualBatchNorm) for module in convert_dual_bn(dual).modules()) == 1
    assert isinstance(convert_dual_bn(nn.BatchNorm2d(3)), DualBatchNorm)


def test_a_copy_and_an_exception_keep_the_branches() -> None:
    dual = convert_dual_bn(network())
    with bn_branch(dual, "aux"):
        assert {m.branch for m in copy.deepcopy(dual).modules() if isinstance(m, DualBatchNorm)} == {"aux"}
    with pytest.raises(RuntimeError), bn_branch(dual, "aux"):
        dual(torch.zeros(1, 5))
    assert {m.branch for m in dual.modules() if isinstance(m, DualBatchNorm)} == {"main"}


def test_refusals() -> None:
    free = nn.Sequential(nn.Conv2d(3, 3, 1), nn.GroupNorm(1, 3), nn.InstanceNorm2d(3))
    with pytest.raises(LayerError, match="no batch norm"):
        convert_dual_bn(free)
    with pytest.raises(LayerError, match="convert_dual_bn"):
        set_bn_branch(free, "aux")
    with pytest.raises(LayerError, match="convert_dual_bn"):
        drop_aux_bn(network())
    with pytest.raises(InputError, match="main"):
        set_bn_branch(convert_dual_bn(network()), "both")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="batch norm"):
        DualBatchNorm(nn.LayerNorm(3))  # type: ignore[arg-type]
