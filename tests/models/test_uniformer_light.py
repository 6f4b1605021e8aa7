"""The light UniFormers against the authors' code, and what pruning tokens must not do."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from striate.errors import InputError
from striate.models.uniformer_light import VARIANTS, EvoBlock, UniFormerLight, checkpoint_filter_fn

Authors = Callable[[nn.Module], dict[str, Tensor]]
MICRO = {"depths": (1, 1, 3, 2), "dims": (16, 32, 64, 96), "head_dim": 16, "num_classes": 3, "class_head": True}

# Sense-X/UniFormer 52a0415, image_classification/models/uniformer_light.py with the sizes of MICRO; every tensor filled
# as `authors` does. Logits of `image` in eval mode at two sizes; in training mode those of the class token.
GOLDEN = {
    (64, 64): [2.128883, 2.206554, -4.551657, 1.164779, 2.139829, -5.540904],
    (96, 128): [2.061141, 4.088022, -4.977559, 2.013666, 3.662172, -4.925463],
}
GOLDEN_CLASS = {
    (64, 64): [-1.516121, 0.321443, -0.22376, -0.594626, 0.559163, 0.27448],
    (96, 128): [-1.186102, 0.770968, 0.185244, 0.309604, 0.647679, 0.395387],
}
CHECKSUM, TENSORS = 0x24248429, 154  # crc32 of all names with their shapes, sorted, a line each


def image(h: int = 64, w: int = 64) -> Tensor:
    return torch.rand(2, 3, h, w, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", GOLDEN)
def test_the_authors_names_and_numbers(size: tuple[int, int], authors: Authors) -> None:
    model = UniFormerLight(**MICRO)
    checkpoint = authors(model)
    names = sorted(f"{name} {tuple(value.shape)}" for name, value in checkpoint.items())
    assert (len(names), zlib.crc32("\n".join(names).encode())) == (TENSORS, CHECKSUM)
    model.load_state_dict(checkpoint_filter_fn({"model": checkpoint}, model), strict=True)
    with torch.no_grad():
        logits = model.eval()(image(*size))
        _, of_class = model.train()(image(*size))
    torch.testing.assert_close(logits.flatten(), torch.tensor(GOLDEN[size]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(of_class.flatten(), torch.tensor(GOLDEN_CLASS[size]), rtol=1e-4, atol=1e-4)


def test_without_the_head_of_the_class_token_the_same_file_loads_and_says_the_same(authors: Authors) -> None:
    full, plain = UniFormerLight(**MICRO), UniFormerLight(**{**MICRO, "class_head": False})
    checkpoint = authors(full)
    for model in (full, plain):
        model.load_state_dict(checkpoint_filter_fn(checkpoint, model), strict=True)
    with torch.no_grad():
        assert torch.equal(plain.eval()(image()), full.eval()(image()))
        assert isinstance(plain.train()(image()), Tensor)  # any loss of a person takes it


@pytest.mark.parametrize(("name", "published"), [("uniformer_xxs", 10_215_280), ("uniformer_xs", 16_509_264)])
def test_the_published_counts_include_the_head_of_the_class_token(name: str, published: int) -> None:
    with torch.device("meta"):
        model = UniFormerLight(**VARIANTS[name].options, class_head=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == published


def test_a_block_attends_to_the_best_rated_and_moves_the_rest_alike() -> None:
    """Tokens rated last all change by the same vector: what became of the one that sums them up."""
    torch.manual_seed(0)
    block = EvoBlock(16, 2, keep=0.25).eval()
    nn.init.zeros_(block.pos_embed.proj.weight)
    nn.init.zeros_(block.pos_embed.proj.bias)
    x, rating = torch.randn(1, 16, 4, 4), torch.rand(1, 16)
    with torch.no_grad():
        y, _, new = block(x, torch.randn(1, 1, 16), rating)
    change = (y - x).flatten(2)[0]
    best = rating[0].topk(4).indices
    others = torch.ones(16, dtype=torch.bool).index_fill(0, best, False)
    torch.testing.assert_close(change[:, others], change[:, others][:, :1].expand(-1, 12), rtol=1e-4, atol=1e-5)
    assert (change[:, best] - change[:, others][:, :1]).abs().amax(dim=0).min() > 1e-2
    assert torch.equal(new[:, others], rating[:, others])
    assert (new[:, best] != rating[:, best]).all()


def test_both_heads_and_the_class_token_learn() -> None:
    model = UniFormerLight(**MICRO).train()
    sum(logits.square().mean() for logits in model(image())).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert model.cls_token.grad.abs().max() > 0


def test_a_map_of_one_token_has_none_to_keep() -> None:
    model = UniFormerLight(**MICRO).eval()
    with torch.no_grad():
        assert torch.isfinite(model(image(32, 32))).all()
        assert torch.isfinite(model(image(29, 29))).all()
    with pytest.raises(InputError, match="at least 29 pixels"):
        model(image(28, 64))


def test_an_exported_graph_takes_other_batches() -> None:
    model = UniFormerLight(**MICRO).eval()
    batch = torch.export.Dim("batch", min=1, max=8)
    x = torch.rand(5, 3, 64, 64)
    with torch.no_grad():
        exported = torch.export.export(model, (x[:2],), dynamic_shapes=({0: batch},)).module()
        torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"dims": (16, 32, 60, 96)}, {"depths": (1, 1, 3)}])
def test_sizes_that_cannot_be_are_refused(wrong: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(InputError, match="head_dim"):
        UniFormerLight(**{**MICRO, **wrong})
