"""The registry of methods: every name makes the class it says, one call runs any of them, importing stays light."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import striate.explain
from striate.errors import InputError
from striate.explain.base import Explainer
from striate.explain.registry import METHODS, attribute, get_method

PAPER = {
    "gradient", "input-x-gradient", "integrated-gradients", "gradient-shap", "smoothgrad", "lime", "rise",
    "meaningful-perturbation", "occlusion", "cam", "grad-cam", "grad-cam++", "xgrad-cam", "ablation-cam", "score-cam",
    "guided-backprop", "guided-xgrad-cam",
}  # fmt: skip
SHORT = {
    "integrated-gradients": {"n_steps": 4},
    "gradient-shap": {"n_samples": 4},
    "smoothgrad": {"n_samples": 4},
    "lime": {"n_segments": 6, "n_samples": 20},
    "rise": {"n_masks": 20, "grid": 3},
    "meaningful-perturbation": {"iterations": 4},
}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()


def images(n=2):
    return torch.rand(n, 3, 16, 18, generator=torch.Generator().manual_seed(1))


def test_all_methods_are_here():
    assert set(METHODS) >= PAPER


@pytest.mark.parametrize("name", METHODS)
def test_an_entry_says_what_its_class_says(name):
    info = METHODS[name]
    found = get_method(name)
    assert issubclass(found, Explainer)
    assert not inspect.isabstract(found)
    assert (info.name, info.name, info.family) == (name, found.name, found.family)
    assert pickle.loads(pickle.dumps(info)) == info


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_maps_in_the_unit_interval(name, net):
    maps = attribute(net, images(), 1, method=name, **SHORT.get(name, {}))
    assert maps.shape == (2, 16, 18)
    assert torch.isfinite(maps).all()
    assert 0 <= maps.min() <= maps.max() <= 1
    assert not maps.requires_grad


@pytest.mark.parametrize(
    ("name", "option", "default", "fewer"),
    [
        ("gradient", None, 0, 0),
        ("input-x-gradient", None, 0, 0),
        ("integrated-gradients", "n_steps", 50, 5),
        ("gradient-shap", "n_samples", 50, 5),
        ("smoothgrad", "n_samples", 50, 5),
        ("lime", "n_samples", 1000, 20),
        ("rise", "n_masks", 8000, 20),
        ("meaningful-perturbation", "iterations", 300, 5),
        ("occlusion", None, 0, 0),
    ],
)
def test_the_cost_of_an_image_is_the_one_stated(name, option, default, fewer):
    """Counted at 224 x 224 on a network that costs nothing; with fewer samples, each of which costs the same."""

    class Free(nn.Module):
        def forward(self, x):
            counted["forward"] += len(x)
            if x.requires_grad:
                counted["backward"] += len(x)
            few = x[:, :, ::112, ::112].flatten(1)
            return torch.stack([few.sum(1), few.mean(1)], 1)

    counted = {"forward": 0, "backward": 0}
    options = {option: fewer} if option else {}
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    get_method(name)(Free().eval(), **options).attribute(image, 0)
    info = METHODS[name]
    a_sample = 1 if option is None else {"gradient-shap": 2}.get(name, 1)
    assert counted["forward"] == info.forwards - a_sample * (default - fewer)
    assert counted["backward"] == info.backwards - (default - fewer if info.backwards > 1 else 0)


def test_rise_is_the_default(net):
    expected = get_method("rise")(net, n_masks=30).attribute(images(), 1).normalized
    torch.testing.assert_close(attribute(net, images(), 1, n_masks=30), expected)


def test_a_wrong_name_gets_the_nearest_one(net):
    with pytest.raises(InputError, match="Did you mean 'grad-cam'"):
        get_method("gradcam")
    with pytest.raises(InputError, match="Did you mean 'smoothgrad'"):
        attribute(net, images(), 1, method="smooth-grad")


def test_a_wrong_option_gets_the_nearest_one(net):
    with pytest.raises(InputError, match="Did you mean 'n_steps'"):
        attribute(net, images(), 1, method="integrated-gradients", nsteps=5)


def test_every_public_name_is_there():
    for name in striate.explain.__all__:
        assert getattr(striate.explain, name) is not None
        assert name in dir(striate.explain)
    with pytest.raises(AttributeError, match="no attribute 'GradCam'"):
        _ = striate.explain.GradCam


def test_listing_methods_does_not_import_torch():
    code = "import sys, striate.explain; list(striate.explain.METHODS); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
