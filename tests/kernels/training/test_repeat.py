"""A recorded step gives what the plan gives, bit by bit, and nothing is repeated that has changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import MobileNet, ResNet, UNet
from step_results import BF16, byte_images, one_step
from torch import Tensor, nn

from yolox.config import ModelConfig
from yolox.kernels.training.acceleration import accelerate, programs
from yolox.models.detector import build_detector

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "detector": lambda: build_detector(ModelConfig(depth=0.33, width=0.25, depthwise=True, num_classes=5)),
    "dense": lambda: build_detector(ModelConfig(depth=0.33, width=0.25, num_classes=3)),
    "resnet": ResNet,
    "mobilenet": MobileNet,
    "unet": UNet,
}


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.act = nn.SiLU()
        self.last = nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.bn(self.conv(x))))


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = _Block(), _Block()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.one(x), self.two(-x)


def _block() -> Any:
    torch.manual_seed(0)
    return accelerate(_Block().train())


def _input(height: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 16, height, 5, generator=generator).contiguous(memory_format=torch.channels_last)


def _repeated(module: nn.Module) -> bool:
    return any(not row.reason for row in programs(module))


def _warm(module: nn.Module, x: Tensor, dtype: torch.dtype | None = None, steps: int = 3) -> dict[str, Tensor]:
    """Take steps from one state, and return what the last one gave."""
    state = copy.deepcopy(module.state_dict())
    for _ in range(steps):
        module.load_state_dict(state)
        found = one_step(module, x, dtype)
    return found


@pytest.mark.parametrize("dtype", [None, BF16])
@pytest.mark.parametrize("name", NETWORKS)
def test_each_step_gives_the_same_bits(name: str, dtype: torch.dtype | None) -> None:
    torch.manual_seed(0)
    module = accelerate(NETWORKS[name]().train().to(memory_format=torch.channels_last))
    x = byte_images(64, 2) if name in {"detector", "dense"} else byte_images(32, 2).float() / 255
    state = copy.deepcopy(module.state_dict())
    first = one_step(module, x, dtype)
    for _ in range(3):
        module.load_state_dict(state)
        again = one_step(module, x, dtype)
        assert first.keys() == again.keys()
        assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert _repeated(module), programs(module)


def test_the_detector_is_one_program() -> None:
    module = accelerate(NETWORKS["detector"]().train())
    _warm(module, byte_images(64, 2))
    (row,) = programs(module)
    assert row.part == ""
    assert row.kernels > 300
    assert row.operators < 30
    assert row.memory > 0


def test_other_images_and_weights_are_computed_anew() -> None:
    ours, plain = _block(), _block()
    _warm(ours, _input())
    for module in (ours, plain):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(1.5)
    plain.load_state_dict(ours.state_dict())
    x = _input() * 0.7 + 0.1
    found, expected = one_step(ours, x), one_step(plain, x)
    assert _repeated(ours)
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


def _new_weight(module: Any) -> None:
    module.conv.weight = nn.Parameter(module.conv.weight.detach() * 2)


def _frozen(module: Any) -> None:
    module.conv.weight.requires_grad_(False)


def _slower_statistics(module: Any) -> None:
    module.bn.momentum = 0.5


def _larger_epsilon(module: Any) -> None:
    module.bn.eps = 0.5


def _no_activation(module: Any) -> None:
    module.act = nn.Identity()


def _statistics_elsewhere(module: Any) -> None:
    module.bn.running_mean.data = module.bn.running_mean.data.clone()


CHANGES = [_new_weight, _frozen, _slower_statistics, _larger_epsilon, _no_activation, _statistics_elsewhere]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_module_is_seen(change: Callable[[Any], None]) -> None:
    ours, plain = _block(), _block()
    _warm(ours, _input())
    assert _repeated(ours)
    plain.load_state_dict(ours.state_dict())
    change(ours)
    change(plain)
    found, expected = one_step(ours, _input()), one_step(plain, _input())
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


def test_a_module_whose_tensors_move_at_each_step_is_not_recorded_for_ever() -> None:
    module, plain = _block(), _block()
    for _ in range(140):
        one_step(module, _input())
        module.bn.running_mean.data = module.bn.running_mean.data.clone()
    for _ in range(3):
        one_step(module, _input())
    assert not programs(module)
    plain.load_state_dict(module.state_dict())
    found, expected = one_step(module, _input()), one_step(plain, _input())
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


def test_two_forward_passes_before_their_backward_passes() -> None:
    module, x = _block(), _input()
    expected = _warm(module, x)
    one = module(x)
    two = module(x * 2)
    module.zero_grad()
    generator = torch.Generator().manual_seed(1)
    (one.double() * torch.randn(one.shape, generator=generator, dtype=torch.float64)).sum().backward()
    assert torch.equal(module.conv.weight.grad, expected["conv.weight"])
    two.sum().backward()
    assert not torch.equal(module.conv.weight.grad, expected["conv.weight"])


def test_a_graph_that_is_kept_gives_the_same_gradients_again() -> None:
    module, x = _block(), _input()
    _warm(module, x)
    loss = module(x).square().sum()
    weights = list(module.parameters())
    first = torch.autograd.grad(loss, weights, retain_graph=True)
    second = torch.autograd.grad(loss, weights)
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


def test_gradients_of_some_weights_alone() -> None:
    module, x = _block(), _input()
    _warm(module, x)
    every = torch.autograd.grad(module(x).square().sum(), list(module.parameters()))
    some = [module.last.bias, module.bn.weight]
    found = torch.autograd.grad(module(x).square().sum(), some)
    numbers = [[id(y) for y in module.parameters()].index(id(parameter)) for parameter in some]
    assert all(torch.equal(gradient, every[number]) for gradient, number in zip(found, numbers, strict=True))


class _ActsOnItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.block = _Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.act(x))


def test_an_argument_that_is_changed_in_place() -> None:
    torch.manual_seed(0)
    plain: Any = _ActsOnItsInput().train()
    ours: Any = accelerate(copy.deepcopy(plain))
    for _ in range(4):
        found = []
        for module in (plain, ours):
            x = _input().requires_grad_()
            y = x * 1  # its memory is changed, and the sum below reads what it is then
            (module(y) + y).square().sum().backward()
            assert x.grad is not None
            found.append(x.grad)
        assert torch.allclose(found[0], found[1], atol=1e-3)
    assert [row.reason for row in programs(ours)] == ["act changes an argument in place"]


def test_the_gradient_of_the_input_and_sums_of_gradients() -> None:
    module, x = _block(), _input()
    _warm(module, x.clone().requires_grad_())
    module.zero_grad()
    inputs = x.clone().requires_grad_()
    module(inputs).square().sum().backward()
    once = [parameter.grad.clone() for parameter in module.parameters()]
    assert inputs.grad is not None
    gradient = inputs.grad.clone()
    module(inputs).square().sum().backward()
    pairs = zip(once, module.parameters(), strict=True)
    assert all(torch.allclose(2 * one, parameter.grad) for one, parameter in pairs)
    assert torch.allclose(2 * gradient, inputs.grad)
    assert float(gradient.abs().sum()) > 0


def test_weights_changed_before_the_backward_pass_are_an_error() -> None:
    module, x = _block(), _input()
    _warm(module, x)
    loss = module(x).square().sum()
    with torch.no_grad():
        module.conv.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_weight_of_two_layers_gets_the_sum_of_their_gradients() -> None:
    torch.manual_seed(0)
    module: Any = _Two()
    module.two.conv.weight = module.one.conv.weight
    accelerate(module.train())
    x = _input()
    gradients = []
    for _ in range(4):
        module.zero_grad()
        sum(y.square().sum() for y in module(x)).backward()
        gradients.append(module.one.conv.weight.grad.clone())
    assert _repeated(module)
    assert all(torch.equal(gradients[0], other) for other in gradients)


def test_each_size_has_a_program() -> None:
    module, plain = _block(), _block()
    for height in (6, 7, 6, 7, 6, 7):
        one_step(module, _input(height))
    plain.load_state_dict(module.state_dict())
    found, expected = one_step(module, _input(6)), one_step(plain, _input(6))
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


def test_dropout_draws_anew() -> None:
    torch.manual_seed(0)
    module = accelerate(nn.Sequential(_Block(), nn.Dropout(0.5)).train())
    outputs = []
    for _ in range(4):
        y = module(_input())
        y.sum().backward()
        outputs.append(y.detach())
    assert _repeated(module), programs(module)
    assert len({tuple((y == 0).flatten().tolist()) for y in outputs}) == 4


def test_an_output_that_is_not_used_gives_its_layers_no_gradient() -> None:
    module: Any = accelerate(_Two().train())
    for _ in range(4):
        module.zero_grad()
        module(_input())[0].sum().backward()
    assert module.two.conv.weight.grad is None
    assert float(module.one.conv.weight.grad.abs().sum()) > 0
    assert [row.reason for row in programs(module)] == ["an output has no gradient"]


def test_code_of_ones_own_runs_at_every_step() -> None:
    calls = []

    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            calls.append(1)
            return x * self.scale

    module = accelerate(nn.Sequential(_Block(), Counted()).train())
    for _ in range(4):
        module(_input()).sum().backward()
    assert len(calls) == 4


def test_a_hook_on_a_parameter_sees_each_gradient_once() -> None:
    module = _block()
    seen: list[Tensor] = []
    handle = module.conv.weight.register_hook(seen.append)
    for _ in range(3):
        module(_input()).sum().backward()
    assert len(seen) == 3
    handle.remove()


def test_a_step_without_a_backward_pass_is_forgotten() -> None:
    module = _block()
    for _ in range(5):
        module(_input())
    assert not _repeated(module)
    for _ in range(3):
        module(_input()).sum().backward()
    assert _repeated(module), programs(module)
