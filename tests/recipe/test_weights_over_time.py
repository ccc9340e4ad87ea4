"""Optimizer groups, averaged weights and input sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from yolox.experiments import EXPERIMENTS
from yolox.models.detector import build_detector
from yolox.recipe.ema import ModelEma, ema_decay
from yolox.recipe.optim import build_optimizer, parameter_groups
from yolox.recipe.schedule import final_phase_epoch, resize_batch, size_of_step
from yolox.structures import Size, Targets


@pytest.mark.parametrize(("name", "sizes"), [("yolox_nano", (104, 113, 113)), ("yolox_s", (74, 83, 83))])
def test_groups_have_the_official_sizes(name: str, sizes: tuple[int, int, int]) -> None:
    groups = parameter_groups(build_detector(EXPERIMENTS[name].model), 5e-4)
    assert tuple(len(group["params"]) for group in groups) == sizes
    assert [group["weight_decay"] for group in groups] == [0.0, 5e-4, 0.0]


def test_every_trainable_parameter_is_in_one_group() -> None:
    model = build_detector(EXPERIMENTS["yolox_nano"].model)
    model.head.requires_grad_(False)
    grouped = [id(p) for group in parameter_groups(model, 0.1) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_optimizer_equals_plain_sgd() -> None:
    torch.manual_seed(0)
    ours, plain = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    plain.load_state_dict(ours.state_dict())
    groups: list[dict[str, Any]] = [{"params": [plain.weight], "weight_decay": 0.01}, {"params": [plain.bias]}]
    optimizers = (
        build_optimizer(ours, 0.1, 0.9, 0.01),
        torch.optim.SGD(
            groups,
            lr=0.1,
            momentum=0.9,
            nesterov=True,
        ),
    )
    for _ in range(5):
        images = torch.randn(4, 3)
        for model, optimizer in zip((ours, plain), optimizers, strict=True):
            optimizer.zero_grad()
            model(images).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.state_dict(), plain.state_dict())


@pytest.mark.parametrize(("updates", "decay"), [(10, 0.005), (100, 0.049), (600, 0.259), (2000, 0.632), (10000, 0.993)])
def test_decay_at_official_figures(updates: int, decay: float) -> None:
    assert ema_decay(updates) == pytest.approx(decay, abs=6e-4)


def test_short_runs_may_average_over_more_steps() -> None:
    assert 1 / (1 - ema_decay(2000)) == pytest.approx(2.7, abs=0.1)
    assert 1 / (1 - ema_decay(2000, time_constant=500)) == pytest.approx(54, abs=1)
    model = torch.nn.Linear(1, 1, bias=False)
    ema = ModelEma(model, time_constant=500)
    torch.nn.init.zeros_(ema.model.weight)
    torch.nn.init.ones_(model.weight)
    ema.updates = 1999
    ema.update_(model)
    assert ema.model.weight.item() == pytest.approx(1 - ema_decay(2000, 500), rel=1e-5)


def test_average_follows_floats_and_copies_counters() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1))
    ema = ModelEma(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(1)
    ema.update_(model)
    decay = ema_decay(1)
    for key, value in ema.model.state_dict().items():
        expected = before[key] + 1 if key.endswith("tracked") else before[key] * decay + (before[key] + 1) * (1 - decay)
        torch.testing.assert_close(value, expected)
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())


def test_sizes_change_every_ten_steps_and_only_then() -> None:
    sizes = [size_of_step(step, 3, Size(416, 416), (10, 20)) for step in range(400)]
    assert sizes[:10] == [Size(416, 416)] * 10
    assert all(len(set(sizes[start : start + 10])) == 1 for start in range(0, 400, 10))
    assert {size.height // 32 for size in sizes} >= {10, 20}
    assert all(320 <= size.height <= 640 and size.width == size.height for size in sizes)


def test_sizes_keep_the_aspect_ratio() -> None:
    assert size_of_step(10, 0, Size(320, 640), (5, 5)) == Size(160, 320)


def test_resize_scales_boxes_with_the_image() -> None:
    targets = Targets(
        torch.tensor([[[10.0, 20.0, 4.0, 8.0]]]), torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1).bool()
    )
    images = torch.rand(1, 3, 32, 64)
    resized, scaled = resize_batch(images, targets, Size(64, 96))
    assert resized.shape == (1, 3, 64, 96)
    assert scaled.boxes_cxcywh.tolist() == [[[15.0, 40.0, 6.0, 16.0]]]
    assert targets.boxes_cxcywh[0, 0, 0] == 10.0
    assert resize_batch(images, targets, Size(32, 64))[0] is images


def test_final_phase_is_the_last_epochs() -> None:
    recipe = EXPERIMENTS["yolox_s"].recipe
    assert final_phase_epoch(recipe) == recipe.max_epoch - 15


class _PackedLinear(torch.nn.Linear):
    """Keeps its weight in another form, as IPEX does; its state dict makes a plain one each time."""

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        assert not keep_vars
        destination[f"{prefix}weight"] = self.weight.detach() * 2


@pytest.mark.parametrize("packed", [False, True])
def test_averages_follow_every_step_whatever_the_state_dict_is_made_of(packed: bool) -> None:
    plain = torch.nn.Linear(2, 2, bias=False)
    ema = ModelEma(plain)
    model = _PackedLinear(2, 2, bias=False) if packed else plain
    expected = ema.model.weight.clone()
    for update in (1, 2, 3):
        with torch.no_grad():
            model.weight.mul_(update)
        ema.update_(model)
        current = model.weight.detach() * (2 if packed else 1)
        expected.lerp_(current, 1 - ema_decay(update))
        torch.testing.assert_close(ema.model.weight, expected)


def test_averages_follow_tensors_that_take_the_place_of_others() -> None:
    """As IPEX puts others in place, before a run and after it."""
    model = torch.nn.Linear(1, 1)
    ema = ModelEma(model)
    ema.update_(model)
    model.weight.data = model.weight.detach().clone() + 1
    before = ema.model.weight.clone()
    ema.forget_pairs()
    ema.update_(model)
    torch.testing.assert_close(ema.model.weight, before.lerp(model.weight.detach(), 1 - ema_decay(2)))


def test_averages_follow_another_model_from_its_first_step_on() -> None:
    first, second = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    ema = ModelEma(first)
    ema.update_(first)
    before = ema.model.weight.clone()
    ema.update_(second)
    torch.testing.assert_close(ema.model.weight, before.lerp(second.weight.detach(), 1 - ema_decay(2)))
