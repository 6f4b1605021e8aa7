from __future__ import annotations

import pytest
import torch
from torch import nn

from striate.errors import InputError
from striate.layers.bi_recurrent import BiRecurrent


@pytest.mark.parametrize("kind", ["lstm", "rnn"])
def test_it_equals_pytorchs_bidirectional_layer_on_packed_sequences(kind: str) -> None:
    torch.manual_seed(0)
    ours = BiRecurrent(5, 4, kind)  # type: ignore[arg-type]
    peer = {"lstm": nn.LSTM, "rnn": nn.RNN}[kind](5, 4, batch_first=True, bidirectional=True)
    weights = {**ours.ahead.state_dict(), **{f"{k}_reverse": v for k, v in ours.back.state_dict().items()}}
    peer.load_state_dict(weights)
    x, lengths = torch.randn(4, 7, 5), torch.tensor([7, 1, 4, 6])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    expected, _ = nn.utils.rnn.pad_packed_sequence(peer(packed)[0], batch_first=True)
    torch.testing.assert_close(ours(x, torch.arange(7) < lengths[:, None]), expected)


def test_parameters_and_first_values_are_the_papers() -> None:
    layer = BiRecurrent(130, 200)
    assert sum(p.numel() for p in layer.parameters() if p.requires_grad) == 529_600
    assert sum(p.numel() for p in layer.parameters()) == 531_200
    for way in (layer.ahead, layer.back):
        assert way.bias_ih_l0.view(4, 200).mean(1).tolist() == [0, 1, 0, 0]  # input, forget, cell, output
        assert way.bias_hh_l0.abs().sum() == 0
        for gate in way.weight_ih_l0.view(4, 200, 130):
            assert gate.abs().max().item() == pytest.approx((6 / 330) ** 0.5, rel=0.01)
        for gate in way.weight_hh_l0.view(4, 200, 200):
            assert gate.abs().max().item() == pytest.approx((6 / 400) ** 0.5, rel=0.01)


def test_other_kinds_are_refused() -> None:
    with pytest.raises(InputError, match="lstm or rnn"):
        BiRecurrent(3, 3, "gru")  # type: ignore[arg-type]
