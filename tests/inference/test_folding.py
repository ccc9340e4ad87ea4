"""Folding BatchNorm into convolutions: only where it is the same, and never in the user's own model."""

from __future__ import annotations

import torch
from torch import nn

from yolox.inference.convert.folding import fold_normalisations


class Branching(nn.Module):
    """One normalisation right after its convolution, one after an activation, and a convolution that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_bn = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.later_bn = nn.BatchNorm2d(4)
        self.twice, self.twice_bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.later_bn(torch.relu(self.first_bn(self.first(x))))
        return self.twice_bn(self.twice(y)) + self.twice(y)


def test_only_normalisations_right_after_a_convolution_are_folded() -> None:
    torch.manual_seed(0)
    model = Branching().eval()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2.0)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        before = model(x)
        folded = fold_normalisations(model, (x,))
        assert isinstance(folded.first_bn, nn.Identity)
        assert isinstance(folded.later_bn, nn.BatchNorm2d)
        assert isinstance(folded.twice_bn, nn.BatchNorm2d)
        torch.testing.assert_close(folded(x), before, atol=1e-5, rtol=1e-5)
        assert isinstance(model.first_bn, nn.BatchNorm2d)
        assert torch.equal(model(x), before)


class Standardized(nn.Conv2d):
    """Normalises its weight at each call, so that a factor put into the weight is lost."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight / self.weight.square().sum((1, 2, 3), keepdim=True).sqrt()
        return torch.nn.functional.conv2d(x, weight, self.bias)


def test_a_convolution_that_is_not_linear_in_its_weight_keeps_its_normalisation() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    model = nn.Sequential(Standardized(3, 4, 1), norm).eval()
    assert norm.running_var is not None
    nn.init.uniform_(norm.running_var, 4.0, 9.0)
    x = torch.randn(2, 3, 8, 8)
    folded = fold_normalisations(model, (x,))
    assert isinstance(folded[1], nn.BatchNorm2d)  # type: ignore[index]
    assert torch.equal(folded(x), model(x))


def test_a_network_whose_outputs_are_not_finite_is_left_as_it_is() -> None:
    convolution = nn.Conv2d(3, 4, 1)
    nn.init.constant_(convolution.weight, float("nan"))
    model = nn.Sequential(convolution, nn.BatchNorm2d(4)).eval()
    folded = fold_normalisations(model, (torch.zeros(1, 3, 8, 8),))
    assert isinstance(folded[1], nn.BatchNorm2d)  # type: ignore[index]
