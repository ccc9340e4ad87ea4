"""An accelerated module trains as its plain layers do, whatever is done to it; and the table says what computes it."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from near import channels_last
from networks import MobileNet, ResNet, UNet
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from yolox.config import ModelConfig
from yolox.kernels import library
from yolox.kernels.training.acceleration import accelerate, restore, table
from yolox.kernels.training.bindings import has_pointwise
from yolox.models.detector import build_detector
from yolox.models.layers import ConvBnAct, CspLayer, DepthwiseConv, Focus

needs_pointwise = pytest.mark.skipif(
    not has_pointwise(), reason="this processor does not multiply bfloat16 (AVX512-BF16), so nothing does here"
)
BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def _need_compiler() -> None:
    if library.kernels() is None:
        pytest.skip("no C++ compiler, or YOLOX_KERNELS=0")


def _step(module: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return outputs, gradients and buffers after one step, under autocast where a type is given."""
    module.zero_grad()
    with torch.autocast("cpu", dtype or BF16, enabled=dtype is not None):
        found = module(x)
    outputs = [found] if isinstance(found, Tensor) else [value for value in found if isinstance(value, Tensor)]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(y.shape, generator=generator, dtype=torch.float64) for y in outputs]
    sum((y.double() * w).sum() for y, w in zip(outputs, weights, strict=True)).backward()
    named = {f"output {number}": y.detach() for number, y in enumerate(outputs)}
    named |= {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return named | {name: buffer.clone() for name, buffer in module.named_buffers()}


def _error(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    assert found.keys() == exact.keys()
    scale = max(float(value.double().norm()) for value in exact.values())
    return {
        name: float((found[name].double() - value).norm() / value.double().norm())
        for name, value in exact.items()
        if float(value.double().norm()) > 1e-6 * scale  # a bias before a normalisation has no gradient but rounding
    }


def _exact(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return _step(copy.deepcopy(module).double(), x.double())


def _detector() -> nn.Module:
    torch.manual_seed(0)
    config = ModelConfig(num_classes=3, depth=0.33, width=0.25, depthwise=True)
    return build_detector(config).train().to(memory_format=torch.channels_last)


def _images(size: int = 64, batch: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)
    return images.contiguous(memory_format=torch.channels_last)


def test_a_whole_detector_in_fp32_equals_float64() -> None:
    plain, images = _detector(), _images(96)
    exact = _exact(plain, images)
    apart = _error(_step(copy.deepcopy(plain), images), exact)
    together = _error(_step(accelerate(plain), images), exact)
    assert max(together.values()) < 2e-3
    assert sum(together.values()) < 2 * sum(apart.values())
    assert not any("on their own" in row.kernel for row in table(plain)), "the whole network is one plan"


def test_a_whole_detector_in_bf16_is_as_exact_as_its_plain_layers() -> None:
    plain, images = _detector(), _images(128)
    exact = _exact(plain, images)
    apart = _error(_step(copy.deepcopy(plain), images, BF16), exact)
    together = _error(_step(accelerate(plain), images, BF16), exact)
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
    exact = _exact(plain, x)
    apart, ours = copy.deepcopy(plain), accelerate(copy.deepcopy(plain))
    wanted, found = _step(apart, x, dtype), _step(ours, x, dtype)
    assert found["output 0"].is_contiguous() == wanted["output 0"].is_contiguous()
    errors, usual = _error(found, exact), _error(wanted, exact)
    tolerance = 1e-5 if dtype is None else 1e-2
    assert {name: error for name, error in errors.items() if error > 2 * usual[name] + tolerance} == {}
    rows = table(ours)
    assert all(row.layer for row in rows)
    assert sum("normalisation" in row.kernel or "convolution" in row.kernel for row in rows) >= 5


@needs_pointwise
def test_the_table_of_nano() -> None:
    ours = accelerate(_detector())
    _step(ours, _images(), BF16)
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
    _step(ours, _images())
    rows = {row.layer: row for row in table(ours)}
    assert rows["backbone.backbone.stem.conv.conv + bn"].reason == "no kernel for the stem in this precision"


def _as_before(module: nn.Module, x: Tensor, change: Callable[[nn.Module], Any], dtype: Any = BF16) -> list[str]:
    """Compare plain and accelerated layers after a step, a change and another step; return the kernels of the table."""
    plain, ours = copy.deepcopy(module), accelerate(copy.deepcopy(module))
    for each in (plain, ours):
        _step(each, x, dtype)
        change(each)
    errors = _error(_step(ours, x, dtype), _step(plain, x, dtype))
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
        _step(ours, channels_last(2, 32, 8, 8), BF16)
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
        _step(ours, channels_last(2, 32, 8, 8), BF16)
    assert watch.names.count("batch_norm") == 9


def test_a_forward_method_of_ones_own_is_called() -> None:
    module, x = _csp(), channels_last(2, 32, 8, 8)
    module.m[1].forward = lambda x: 2 * x
    errors = _error(_step(accelerate(copy.deepcopy(module)), x, BF16), _step(copy.deepcopy(module), x, BF16))
    assert max(errors.values()) < 0.1


def test_evaluation_gradients_off_and_other_types_take_the_plain_layers() -> None:
    plain, x = _csp(), channels_last(2, 32, 8, 8)
    ours = accelerate(copy.deepcopy(plain))
    torch.testing.assert_close(_step(ours.double(), x.double()), _step(plain.double(), x.double()), rtol=0, atol=0)
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
    assert max(_error(gradients[1], gradients[0]).values()) < 1e-4


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
    assert max(_error(*found).values()) < 1e-3


class _Code(nn.Module):
    """A block around whose call Python does something."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.scale, self.calls = what, 1.0, 0
        self.seen: Tensor | None = None
        self.block = ConvBnAct(16, 16, 1)

    @property
    def factor(self) -> float:
        return self.scale

    def forward(self, x: Tensor) -> Tensor:
        if self.what == "random" and random.random() < 0.5:
            return self.block(x) * 3
        if self.what == "torch random":
            return self.block(x) * torch.rand(1)
        if self.what == "counts":
            self.calls += 1
        if self.what == "keeps":
            self.seen = x
        if self.what == "property":
            return self.block(x) * self.factor
        if self.what == "values" and x.sum() > 0:
            return self.block(x) * 2
        if self.what == "sizes" and x.shape[-1] > 6:
            return self.block(x) * 2
        return self.block(x) * self.scale


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("random", "random numbers"),
        ("torch random", "random numbers"),
        ("counts", "changes the attribute 'calls'"),
        ("keeps", "changes the attribute 'seen'"),
        ("property", "property 'factor'"),
        ("values", "values or sizes"),
        ("sizes", "values or sizes"),
    ],
)
def test_code_that_cannot_be_captured_runs_as_it_is(what: str, reason: str) -> None:
    torch.manual_seed(0)
    random.seed(0)
    plain = _Code(what).train().to(memory_format=torch.channels_last)
    # every code of a class is looked at, so the class has to hold nothing but what is asked for
    ours, x = accelerate(copy.deepcopy(plain)), channels_last(2, 16, 8, 8)
    for _ in range(3):
        random.seed(4)
        torch.manual_seed(4)
        found = _step(ours, x)
        random.seed(4)
        torch.manual_seed(4)
        assert max(_error(found, _step(plain, x)).values()) < 1e-4
    assert (ours.calls, ours.seen is None) == (plain.calls, plain.seen is None)
    rows = table(ours)
    assert any(row.kernel == "its parts on their own" for row in rows)
    assert any("convolution" in row.kernel for row in rows), "the block itself has a plan"


class _Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.options = 1.0, {"add": 0.0}
        self.block = ConvBnAct(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self._scaled(self.block(x))

    def _scaled(self, x: Tensor) -> Tensor:
        return x * self.scale + self.options["add"]


def test_attributes_that_the_code_reads_may_change() -> None:
    ours: Any = accelerate(_Scaled().train())
    x = channels_last(2, 16, 8, 8)
    one = ours(x)
    ours.scale = 2.0
    torch.testing.assert_close(ours(x), 2 * one)
    ours.options["add"] = 1.0
    torch.testing.assert_close(ours(x), 2 * one + 1)
    assert table(ours)[0].kernel != "its parts on their own"


def test_a_module_that_changes_at_each_step_is_left_to_pytorch(caplog: pytest.LogCaptureFixture) -> None:
    ours: Any = accelerate(_Scaled().train())
    x = channels_last(2, 16, 8, 8)
    for number in range(70):
        ours.scale = float(number)
        assert bool((ours(x) == 0).all()) == (number == 0)
    assert caplog.text.count("changes so often") == 1


def test_copies_and_originals_go_their_own_ways() -> None:
    ours, x = accelerate(_csp()), channels_last(2, 32, 8, 8)
    before = _step(ours, x)
    copied = copy.deepcopy(ours)
    with torch.no_grad():
        copied.get_parameter("conv3.bn.weight").zero_()
        copied.get_parameter("conv3.bn.bias").zero_()
    assert float(copied(x).detach().abs().max()) == 0
    torch.testing.assert_close(_step(ours, x)["output 0"], before["output 0"])


def test_restored_modules_are_as_they_were() -> None:
    module, x = _csp(), channels_last(2, 32, 8, 8)
    keys, attributes = list(module.state_dict()), [sorted(vars(part)) for part in module.modules()]
    ours = accelerate(module)
    assert ours is module
    _step(ours, x)
    assert list(ours.state_dict()) == keys
    assert restore(ours) is module
    assert [sorted(vars(part)) for part in module.modules()] == attributes
    assert table(module) == []


@pytest.mark.parametrize("form", ["slices", "reshape", "unshuffle"])
def test_space_to_depth_is_recognised_however_it_is_written(form: str) -> None:
    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = ConvBnAct(12, 16, 3)

        def forward(self, x: Tensor) -> Tensor:
            if form == "unshuffle":
                return self.conv(F.pixel_unshuffle(x, 2))
            corners = (x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2])
            return self.conv(torch.cat(corners, dim=1))

    torch.manual_seed(0)
    plain = (Focus(3, 16) if form == "reshape" else Stem()).train().to(memory_format=torch.channels_last)
    ours, x = accelerate(copy.deepcopy(plain)), _images().float()
    assert max(_error(_step(ours, x), _exact(plain, x)).values()) < 1e-4
    assert "6x6" in table(ours)[0].kernel
    other = nn.Sequential(nn.ZeroPad2d((1, 0, 1, 0)), ConvBnAct(3, 16, 3)).train()
    assert max(_error(_step(accelerate(copy.deepcopy(other)), x), _exact(other, x)).values()) < 1e-4


@needs_pointwise
def test_images_as_bytes_reach_the_stem() -> None:
    torch.manual_seed(0)
    plain = Focus(3, 16).train().to(memory_format=torch.channels_last)
    for x in (_images(), _images().float()):
        ours = accelerate(copy.deepcopy(plain))
        found, exact = _step(ours, x, BF16), _exact(plain, x)
        assert max(_error(found, exact).values()) < 0.05
        assert table(ours)[0].kernel.startswith("space-to-depth and 3x3 as one")
    _step(ours, _images().float().requires_grad_(), BF16)
    assert table(ours)[0].reason == "its input is not an image without gradient"


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_recorded_graphs_consist_of_pytorchs_operators() -> None:
    ours, x = accelerate(_csp()), channels_last(2, 32, 8, 8)
    traced = torch.jit.trace(ours, x, check_trace=False)
    assert "batch_norm" in str(traced.inlined_graph)
    program = torch.export.export(ours, (x,))
    assert any("batch_norm" in str(node.target) for node in program.graph.nodes)
