"""An accelerated module trains as its plain layers do, whatever is done to it; and the table says what computes it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from near import channels_last
from networks import MobileNet, ResNet, UNet
from step_results import BF16, byte_images, errors_of, exact_step, one_step
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from yolox.config import ModelConfig
from yolox.kernels.training.acceleration import accelerate, restore, table
from yolox.models.detector import build_detector
from yolox.models.layers import ConvBnAct, CspLayer, DepthwiseConv

pytestmark = pytest.mark.usefixtures("need_compiler")


def _detector() -> nn.Module:
    torch.manual_seed(0)
    config = ModelConfig(num_classes=3, depth=0.33, width=0.25, depthwise=True)
    return build_detector(config).train().to(memory_format=torch.channels_last)


def test_a_whole_detector_in_fp32_equals_float64() -> None:
    plain, images = _detector(), byte_images(96)
    exact = exact_step(plain, images)
    apart = errors_of(one_step(copy.deepcopy(plain), images), exact)
    together = errors_of(one_step(accelerate(plain), images), exact)
    assert max(together.values()) < 2e-3
    assert sum(together.values()) < 2 * sum(apart.values())
    assert not any("on their own" in row.kernel for row in table(plain)), "the whole network is one plan"


def test_a_whole_detector_in_bf16_is_as_exact_as_its_plain_layers() -> None:
    plain, images = _detector(), byte_images(128)
    exact = exact_step(plain, images)
    apart = errors_of(one_step(copy.deepcopy(plain), images, BF16), exact)
    together = errors_of(one_step(accelerate(plain), images, BF16), exact)
    assert sum(together.values()) < 1.2 * sum(apart.values())
    assert max(together[f"output {number}"] for number in range(3)) < 1.2 * max(
        apart[f"output {number}"] for number in range(3)
    )


@pytest.mark.parametrize("network", [ResNet, MobileNet, UNet])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [None, BF16], ids=["fp32", "bf16"])
def test_networks_never_seen(network: Any, layout: torch.memory_format, dtype: torch.dtype | None) -> None:
    torch.manual_seed(0)
    plain = network().train().to(memory_format=layout)
    x = torch.randn(8, 3, 32, 48).contiguous(memory_format=layout)
    exact = exact_step(plain, x)
    apart, ours = copy.deepcopy(plain), accelerate(copy.deepcopy(plain))
    wanted, found = one_step(apart, x, dtype), one_step(ours, x, dtype)
    assert found["output 0"].is_contiguous() == wanted["output 0"].is_contiguous()
    errors, usual = errors_of(found, exact), errors_of(wanted, exact)
    tolerance = 1e-5 if dtype is None else 1e-2
    assert {name: error for name, error in errors.items() if error > 2 * usual[name] + tolerance} == {}
    rows = table(ours)
    assert all(row.layer for row in rows)
    assert sum("normalisation" in row.kernel or "convolution" in row.kernel for row in rows) >= 5


@pytest.mark.usefixtures("bf16_products")
def test_the_table_of_nano() -> None:
    ours = accelerate(_detector())
    one_step(ours, byte_images(), BF16)
    rows = {row.layer: row for row in table(ours)}
    assert rows["backbone.backbone.stem.conv.conv + bn"].kernel.startswith("space-to-depth and 3x3 as one 6x6")
    assert "readers normalise" in rows["backbone.backbone.dark2.0.dconv.conv + bn"].kernel
    first = rows["backbone.C3_p4.conv1.conv + bn"].kernel
    assert "joined with backbone.C3_p4.conv2.conv + bn" in first
    assert "concatenation that is not made" in first
    assert "shortcut" in rows["backbone.backbone.dark3.1.m.1.conv1.conv + bn"].kernel
    assert "readers normalise" not in rows["backbone.backbone.dark5.1.conv1.conv + bn"].kernel, "pooling reads it"
    assert "joined with head.obj_preds.0" in rows["head.reg_preds.0"].kernel
    assert len([row for row in rows.values() if row.reason]) == 0
    one_step(ours, byte_images())
    rows = {row.layer: row for row in table(ours)}
    assert rows["backbone.backbone.stem.conv.conv + bn"].reason == "no kernel for the stem in this precision"


def _as_before(module: nn.Module, x: Tensor, change: Callable[[nn.Module], Any], dtype: Any = BF16) -> list[str]:
    """Compare plain and accelerated layers after a step, a change and another step; return the kernels of the table."""
    plain, ours = copy.deepcopy(module), accelerate(copy.deepcopy(module))
    for each in (plain, ours):
        one_step(each, x, dtype)
        change(each)
    errors = errors_of(one_step(ours, x, dtype), one_step(plain, x, dtype))
    assert max(errors.values()) < 0.1, errors
    return [f"{row.layer}: {row.kernel}, {row.reason}" for row in table(ours)]


def _csp() -> CspLayer:
    torch.manual_seed(0)
    return CspLayer(32, 32, depth=2, depthwise=True).train().to(memory_format=torch.channels_last)


def _freeze(module: nn.Module) -> None:
    module.get_submodule("m.0.conv1.bn").eval()
    module.conv2.requires_grad_(False)


def _replace(module: nn.Module) -> None:
    torch.manual_seed(3)
    module.conv2 = ConvBnAct(32, 16, 3).to(memory_format=torch.channels_last)


def _reset_act(module: nn.Module) -> None:
    module.conv1.act = nn.Hardswish()


CHANGES = {"freeze": _freeze, "replace": _replace, "another activation": _reset_act, "nothing": lambda module: None}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("dtype", [None, BF16], ids=["fp32", "bf16"])
def test_changes_on_the_way_are_noticed(change: str, dtype: Any) -> None:
    _as_before(_csp(), channels_last(4, 32, 12, 8), CHANGES[change], dtype)


@pytest.mark.parametrize("place", ["", "m", "m.0", "m.1.conv2", "conv1", "conv1.conv", "conv3.bn", "conv2.act"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_hooks_see_their_module_called_with_tensors(place: str, kind: str) -> None:
    seen: list[Any] = []

    def hook(part: nn.Module, *values: Any) -> None:
        seen.extend(value for value in values for value in (value if isinstance(value, tuple) else (value,)))

    def change(module: nn.Module) -> None:
        part = module.get_submodule(place)
        register: dict[str, Callable[..., Any]] = {
            "forward": part.register_forward_hook,
            "forward_pre": part.register_forward_pre_hook,
            "full_backward": part.register_full_backward_hook,
        }
        register[kind](hook)

    _as_before(_csp(), channels_last(4, 32, 12, 8).requires_grad_(), change)
    assert len(seen) >= 2, "both modules called it"
    assert all(type(value) is Tensor for value in seen if value is not None)
    assert all(value.ndim == 4 for value in seen if value is not None)


def test_hooks_on_all_modules_see_them() -> None:
    ours, seen = accelerate(_csp()), []
    with nn.modules.module.register_module_forward_hook(lambda part, *_: seen.append(type(part))):
        one_step(ours, channels_last(2, 32, 8, 8), BF16)
    assert seen.count(nn.Conv2d) == 9


class _Watch(TorchFunctionMode):
    """Sees every function that is called on tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


def test_modes_see_every_function() -> None:
    ours = accelerate(_csp())
    with _Watch() as watch:
        one_step(ours, channels_last(2, 32, 8, 8), BF16)
    assert watch.names.count("batch_norm") == 9


def test_a_forward_method_of_ones_own_is_called() -> None:
    module, x = _csp(), channels_last(2, 32, 8, 8)
    module.m[1].forward = lambda x: 2 * x
    errors = errors_of(one_step(accelerate(copy.deepcopy(module)), x, BF16), one_step(copy.deepcopy(module), x, BF16))
    assert max(errors.values()) < 0.1


def test_evaluation_gradients_off_and_other_types_take_the_plain_layers() -> None:
    plain, x = _csp(), channels_last(2, 32, 8, 8)
    ours = accelerate(copy.deepcopy(plain))
    found, exact = (one_step(each.double(), x.double()) for each in (ours, plain))
    torch.testing.assert_close(found, exact, rtol=0, atol=0)
    ours, plain = ours.float().eval(), plain.float().eval()
    torch.testing.assert_close(ours(x), plain(x), rtol=0, atol=0)
    with torch.no_grad():
        ours.train(), plain.train()
        torch.testing.assert_close(ours(x), plain(x), rtol=0, atol=0)
    assert ours(x).dtype == torch.float32
    with torch.autocast("cpu", BF16):
        assert ours(x).dtype == BF16, "the precision may change from call to call"


def test_gradients_accumulate_and_inputs_get_theirs() -> None:
    plain, ours = _csp(), accelerate(_csp())
    inputs = [channels_last(2, 32, 8, 8), channels_last(2, 32, 8, 8)]
    gradients = []
    for module in (plain, ours):
        leaves = [x.clone().requires_grad_() for x in inputs]
        for x in leaves:
            module(x).square().sum().backward()
        gradients.append({name: p.grad for name, p in module.named_parameters()} | {"x": leaves[1].grad})
    assert max(errors_of(gradients[1], gradients[0]).values()) < 1e-4


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool, inside: bool) -> None:
    calls: list[int] = []

    class Saving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = ConvBnAct(32, 32, 1), DepthwiseConv(32, 32, 3)

        def forward(self, x: Tensor) -> Tensor:
            calls.append(1)
            y = self.first(x)
            y = checkpoint(self.second, y, use_reentrant=reentrant) if inside else self.second(y)
            assert isinstance(y, Tensor)
            return y

    torch.manual_seed(0)
    plain = Saving().train().to(memory_format=torch.channels_last)
    ours = accelerate(copy.deepcopy(plain))

    def run(module: nn.Module) -> Callable[[Tensor], Tensor]:
        return module if inside else lambda x: checkpoint(module, x, use_reentrant=reentrant)

    x = channels_last(2, 32, 8, 8)
    found: list[dict[str, Any]] = []
    for module in (ours, plain):
        leaf = x.clone().requires_grad_()
        run(module)(leaf).square().sum().backward()
        found.append({name: p.grad for name, p in module.named_parameters()} | {"x": leaf.grad})
    assert max(errors_of(*found).values()) < 1e-3


def test_copies_and_originals_go_their_own_ways() -> None:
    ours, x = accelerate(_csp()), channels_last(2, 32, 8, 8)
    before = one_step(ours, x)
    copied = copy.deepcopy(ours)
    with torch.no_grad():
        copied.get_parameter("conv3.bn.weight").zero_()
        copied.get_parameter("conv3.bn.bias").zero_()
    assert float(copied(x).detach().abs().max()) == 0
    torch.testing.assert_close(one_step(ours, x)["output 0"], before["output 0"])


def test_restored_modules_are_as_they_were() -> None:
    module, x = _csp(), channels_last(2, 32, 8, 8)
    keys, attributes = list(module.state_dict()), [sorted(vars(part)) for part in module.modules()]
    ours = accelerate(module)
    assert ours is module
    one_step(ours, x)
    assert list(ours.state_dict()) == keys
    assert restore(ours) is module
    assert [sorted(vars(part)) for part in module.modules()] == attributes
    assert table(module) == []


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_recorded_graphs_consist_of_pytorchs_operators() -> None:
    ours, x = accelerate(_csp()), channels_last(2, 32, 8, 8)
    traced = torch.jit.trace(ours, x, check_trace=False)
    assert "batch_norm" in str(traced.inlined_graph)
    program = torch.export.export(ours, (x,))
    assert any("batch_norm" in str(node.target) for node in program.graph.nodes)
