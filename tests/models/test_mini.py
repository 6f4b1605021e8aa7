"""Parameter counts, shapes and gradients of the small classifiers."""

from __future__ import annotations

import pytest
import torch

from striate.models.mini import densenet_mini, inception_mini, resnet_mini

NETWORKS = {"resnet": resnet_mini, "inception": inception_mini, "densenet": densenet_mini}


@pytest.mark.parametrize(("name", "parameters"), [("resnet", 77_754), ("inception", 6_266), ("densenet", 21_018)])
def test_parameter_counts(name, parameters):
    assert sum(parameter.numel() for parameter in NETWORKS[name]().parameters()) == parameters


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (1, 3, 32, 32), (3, 1, 9, 11)])
def test_returns_logits_for_any_channels_and_odd_sizes(name, shape):
    network = NETWORKS[name](in_chans=shape[1], num_classes=7).eval()
    assert network(torch.rand(shape)).shape == (shape[0], 7)
    assert network.num_classes == 7


@pytest.mark.parametrize("name", NETWORKS)
def test_images_of_a_batch_do_not_mix_in_eval_mode(name):
    torch.manual_seed(0)
    network, x = NETWORKS[name]().eval(), torch.rand(4, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(network(x)[1:2], network(x[1:2]))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_learns(name):
    network = NETWORKS[name]()
    network(torch.rand(4, 1, 16, 16)).logsumexp(dim=1).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_published_networks_of_the_study_have_their_published_sizes():
    import timm
    import torchvision

    def count(network):
        return sum(parameter.numel() for parameter in network.parameters())

    with torch.device("meta"):
        assert count(torchvision.models.resnet34()) == 21_797_672
        assert count(torchvision.models.densenet161()) == 28_681_000
        assert count(torchvision.models.googlenet(aux_logits=False, init_weights=False)) == 6_624_904
        assert count(torchvision.models.googlenet(aux_logits=True, init_weights=False)) == 13_004_888
    assert count(timm.create_model("tf_efficientnet_lite0")) == 4_652_008
