"""VMamba against the official code, both generations of its names, and the micro network on real images.

Golden numbers: github.com/MzeroMiko/VMamba, commit 2ed52ead, ``vmamba_tiny_s1l8`` and ``vanilla_vmamba_tiny`` run in
float32 on a CPU (its PyTorch paths) on the weights of ``filled`` and the images of ``pixels``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import striate.models.zoo  # noqa: F401
from striate import load_model
from striate.errors import InputError, WeightsError
from striate.models.vmamba import VMamba, VSSBlock, checkpoint_filter_fn, vmamba_micro
from striate.testing import check_model

GOLDEN = {
    ("vmamba_tiny", (64, 64)): ([-0.9652407, 0.6525147, 0.4835348, 0.9722641], [0.3881184, 0.0338753]),
    ("vmamba_tiny", (70, 97)): ([-0.5354021, 0.6736747, -0.0182162, 0.7505650], [0.9643239, 0.1917291]),
    ("vanilla_vmamba_tiny", (64, 64)): ([1.3273870, -0.6841718, -0.1108850, 0.1327627], [0.4361145, 0.0405804]),
    ("vanilla_vmamba_tiny", (70, 97)): ([0.3101900, -0.2709976, 0.0726210, 0.5146338], [0.3652710, -0.5649773]),
}


def filled(model: nn.Module) -> dict[str, Tensor]:
    """Seeded weights of a trained network's size, in the order of their names."""
    g = torch.Generator().manual_seed(0)
    weights = {}
    for name, value in sorted(model.state_dict().items()):
        if name.endswith("A_logs"):
            weights[name] = torch.rand(value.shape, generator=g)
        elif name.endswith("Ds") or (value.dim() == 1 and name.endswith("weight")):
            weights[name] = 1 + 0.1 * torch.randn(value.shape, generator=g)
        elif name.endswith("dt_projs_bias"):
            weights[name] = torch.randn(value.shape, generator=g) - 2
        elif value.dim() == 1:
            weights[name] = 0.1 * torch.randn(value.shape, generator=g)
        else:
            weights[name] = torch.randn(value.shape, generator=g) / max(1, value[0].numel()) ** 0.5
    return weights


def pixels(size: tuple[int, int]) -> Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["vmamba_tiny", "vanilla_vmamba_tiny"])
def test_logits_are_those_of_the_official_code(name: str) -> None:
    model = timm.create_model(name).eval()
    model.load_state_dict(filled(model))
    for size in ((64, 64), (70, 97)):
        with torch.no_grad():
            logits = model(pixels(size))
        first, second = GOLDEN[name, size]
        torch.testing.assert_close(logits[0, :4], torch.tensor(first), rtol=0, atol=2e-5)
        torch.testing.assert_close(logits[1, 500:502], torch.tensor(second), rtol=0, atol=2e-5)


def old_name(name: str) -> str:
    """The first version's name of a tensor."""
    for ours, old in (
        ("patch_embed.0.", "patch_embed.proj."),
        ("patch_embed.2.", "patch_embed.norm."),
        ("classifier.", ""),
        (".norm2.", ".ln_2."),
        (".norm.", ".ln_1.") if ".blocks." in name else ("", ""),
        (".op.", ".self_attention."),
    ):
        name = name.replace(ours, old) if ours else name
    return name


@pytest.mark.parametrize("four_dimensional", [False, True])
def test_checkpoints_of_both_generations_load(tmp_path: Path, four_dimensional: bool) -> None:
    model = timm.create_model("vanilla_vmamba_tiny", num_classes=6)
    weights = filled(model)
    linear = {name for name in weights if name.endswith(("in_proj.weight", "out_proj.weight", "reduction.weight"))}
    old = {
        old_name(name): value[:, :, None, None].contiguous() if four_dimensional and name in linear else value
        for name, value in weights.items()
    }
    assert "layers.0.blocks.0.self_attention.A_logs" in old
    assert "head.weight" in old
    torch.save({"model": {f"module.{name}": value for name, value in old.items()}, "epoch": 3}, tmp_path / "old.pth")
    loaded = load_model(str(tmp_path / "old.pth"), architecture="vanilla_vmamba_tiny")
    for name, value in loaded.network.state_dict().items():
        assert torch.equal(value, weights[name])
    save_file(weights, tmp_path / "new.safetensors")
    assert load_model(str(tmp_path / "new.safetensors"), architecture="vanilla_vmamba_tiny").weights
    with pytest.raises(WeightsError, match="do not fit"):
        load_model(str(tmp_path / "old.pth"), architecture="vmamba_tiny")
    assert set(checkpoint_filter_fn({"model_ema": old}, model)) == set(weights)


def test_the_micro_network() -> None:
    model = vmamba_micro()
    check_model(model, torch.rand(2, 1, 32, 32), classes=10)
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_506_666
    for scan in ("bidi", "unidi", "cascade"):
        assert vmamba_micro(scan=scan)(torch.rand(1, 1, 28, 36)).shape == (1, 10)


def test_it_starts_as_published() -> None:
    torch.manual_seed(0)
    model = vmamba_micro(dims=64, drop_path_rate=0.4)
    blocks = [module for module in model.modules() if isinstance(module, VSSBlock)]
    for block in blocks:
        op = block.op
        assert (op.A_logs == 0).all()  # A = -1
        assert (op.Ds == 1).all()
        steps = nn.functional.softplus(op.dt_projs_bias)
        assert steps.min() > 0.99e-3
        assert steps.max() < 0.101
        assert op.dt_projs_weight.abs().max() <= op.dt_rank**-0.5
        assert op.dt_projs_weight.std() > 0.5 * op.dt_rank**-0.5  # uniform, not the 0.02 of linear layers
        assert block.mlp is not None
        for linear in (op.in_proj, op.out_proj, block.mlp.fc1, block.mlp.fc2):
            assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert linear.bias is None or (linear.bias == 0).all()
    rates = [block.drop_path.drop_prob for block in blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_what_is_not_decayed_and_refusals() -> None:
    names = vmamba_micro().no_weight_decay()
    assert len(names) == 3 * 5  # five blocks
    with pytest.raises(InputError, match="4 stages"):
        VMamba(dims=(32, 64))
    with pytest.raises(InputError, match="at least 4 pixels"):
        VMamba(8, (1, 1), vanilla=True)(torch.rand(1, 3, 3, 9))
    assert VMamba(8, (1, 1), num_classes=2)(torch.rand(1, 3, 1, 1)).shape == (1, 2)
