"""Transformer layers, which are bounded as the layers that they consist of."""

import pytest
import torch
from torch import nn

from popqorn_train import LpBall, UnsupportedModelError, bound, certify

F, H, C, T = 3, 4, 3, 4


class Encoded(nn.Module):
    """A GRU under an encoder, and one of its frames, or their mean."""

    def __init__(self, encoder: nn.Module, *, mean: bool = False) -> None:
        super().__init__()
        self.rnn, self.encoder, self.mean = nn.GRU(F, H, batch_first=True), encoder, mean
        self.fc = nn.Linear(H, C)

    def forward(self, x, lengths):
        hidden = torch.arange(x.size(1)) >= lengths[:, None]
        found = self.encoder(self.rnn(x)[0], src_key_padding_mask=hidden)
        return self.fc(found.mean(1) if self.mean else found[:, 0])


class Causal(Encoded):
    """Every frame sees those before it."""

    def forward(self, x, lengths):
        mask = nn.Transformer.generate_square_subsequent_mask(x.size(1), dtype=x.dtype)
        return self.fc(self.encoder(self.rnn(x)[0], mask, is_causal=True)[:, -1])


class Decoded(Encoded):
    """A query of the model's own reads the frames."""

    def forward(self, x, lengths):
        query = self.fc.weight[None, :1].expand(x.size(0), -1, -1)
        return self.fc(self.encoder(query, self.rnn(x)[0])[:, 0])


def layer(**options) -> nn.Module:
    return nn.TransformerEncoderLayer(H, 2, 6, batch_first=True, **options)


def cases() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    plain = {"enable_nested_tensor": False}
    return {
        "after": Encoded(layer()),
        "before": Encoded(layer(norm_first=True, activation="gelu")),
        "stack": Encoded(nn.TransformerEncoder(layer(), 2, nn.LayerNorm(H), **plain), mean=True),
        "causal": Causal(layer()),
        "decoder": Decoded(nn.TransformerDecoderLayer(H, 2, 6, batch_first=True)),
    }


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    return torch.randn(3, T, F, dtype=torch.float64), torch.tensor([4, 2, 3])


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", cases())
def test_no_sampled_point_has_a_smaller_margin(name, inputs) -> None:
    model, (x, lengths) = cases()[name].double().eval(), inputs
    with torch.no_grad():
        y = model(x, lengths).argmax(1)
    found = certify(model, inputs, y, LpBall(0.02), method="popqorn-fast")
    assert found.certified.any()
    torch.manual_seed(2)
    for _ in range(200):
        moved = x + 0.02 * torch.randn_like(x).sign()
        with torch.no_grad():
            logits = model(moved, lengths)
        margins = logits.gather(1, y[:, None]) - logits
        others = margins.masked_fill(torch.arange(C) == y[:, None], torch.inf)
        assert (others.amin(1) >= found.margins.amin(1) - 1e-12).all()


def test_the_fast_path_is_on_again_afterwards(inputs) -> None:
    bound(cases()["after"].double().eval()).instance(inputs)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_padded_frames_that_are_0_in_evaluation_alone_are_refused(inputs) -> None:
    model = Encoded(nn.TransformerEncoder(layer(), 1), mean=True).double().eval()
    with torch.no_grad(), pytest.raises(UnsupportedModelError, match="enable_nested_tensor=False"):
        certify(model, inputs, torch.zeros(3, dtype=torch.long), LpBall(0.01))
