"""YOLOX as a LightningModule: what one step does, which weights a checkpoint carries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from yolox.config import Experiment, experiment_to_dict
from yolox.errors import YoloxError
from yolox.losses.detection_loss import detection_loss
from yolox.models.decoding import decode
from yolox.models.detector import Detector, build_detector, check_memory
from yolox.recipe.ema import ModelEma
from yolox.recipe.memory import check_output_memory
from yolox.recipe.optim import build_optimizer, freeze_
from yolox.recipe.resume import move_to_epoch_, resumed_epoch, set_rates_
from yolox.recipe.schedule import (
    build_schedule,
    final_phase_epoch,
    highest_learning_rate,
    resize_batch,
    size_of_step,
    trained_sizes,
)
from yolox.structures import Batch, Decoded, LossTerms

if TYPE_CHECKING:
    from typing_extensions import Self

CHECKPOINT_FORMAT = 1


class YoloxModule(pl.LightningModule):
    """Trains one detector by the YOLOX recipe.

    Args:
        experiment: The whole experiment; ``model.num_classes`` fits ``class_names``.
        class_names: Names in the order of the class indices, stored in every checkpoint.
        batch_size: Total batch over all processes; the learning rate follows it.
        steps_per_epoch: Steps of the optimizer in one epoch, for the schedule.
        start_epoch: Resume as if this 0-based epoch came next, whatever the checkpoint says; None believes it.

    Attributes:
        new_rates: Whether a resumed run takes the rates, momentum and weight decay of ``experiment`` instead of those
            in the checkpoint.
        terms: The loss terms of this process's last batch.
        image_ids: The images of that batch, [B].
    """

    def __init__(
        self,
        experiment: Experiment,
        class_names: Sequence[str],
        batch_size: int,
        steps_per_epoch: int,
        start_epoch: int | None = None,
    ) -> None:
        super().__init__()
        self.start_epoch = start_epoch
        self.new_rates = False
        self.experiment = experiment
        self.class_names = tuple(class_names)
        self.terms: LossTerms | None = None
        self.image_ids: Tensor | None = None
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        check_memory(experiment.model, copies=4)  # weights, gradients, momentum and averages
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(experiment.seed)  # PyTorch's layers draw their weights from the global generator
            self.detector = build_detector(experiment.model)
        recipe = experiment.recipe
        self._frozen = freeze_(self.detector, recipe.freeze)
        self.train()
        for layer in self.detector.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = recipe.bn_momentum
        self.ema = ModelEma(self.detector, recipe.ema_time_constant, recipe.ema_decay) if recipe.ema else None

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all parts but the frozen ones, whose normalisations keep their statistics."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    @property
    def in_final_phase(self) -> bool:
        """Whether this epoch trains without Mosaic and with the L1 term."""
        return self.current_epoch >= final_phase_epoch(self.experiment.recipe)

    @property
    def deployed_detector(self) -> Detector:
        """The detector to evaluate and save: the averaged one, or the raw one where the recipe has no EMA."""
        return self.detector if self.ema is None else self.ema.model

    def forward(self, images: Tensor) -> Decoded:
        """Return decoded predictions of the deployed detector for ``[B, 3, H, W]`` images, 0...255."""
        predictions = self.deployed_detector(images.float())
        with torch.autocast(images.device.type, enabled=False):  # lists of operators are for the network alone
            return decode(predictions)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the total loss of one batch and log its terms."""
        data = self.experiment.data
        size = size_of_step(self.global_step, self.experiment.seed, data.input_size, data.size_range)
        # bytes stay bytes as long as possible: the network makes them floats of the type it wants
        images = batch.images if self.dtype == torch.float32 else batch.images.to(self.dtype)
        images, targets = resize_batch(images, batch.targets, size)
        predictions = self.detector(images)
        world = self.trainer.world_size
        reduce = self._mean_over_ranks if world > 1 else None
        terms = detection_loss(
            predictions,
            targets,
            use_l1=self.in_final_phase,
            mean_over_ranks=reduce,
            num_ranks=world,
            n_candidate_k=self.experiment.recipe.n_candidate_k,
        )
        self.terms, self.image_ids = LossTerms(*(term.detach() for term in terms)), batch.image_ids
        # what is logged is the loss of the whole batch
        logged = terms if world == 1 else LossTerms(*self._mean_over_ranks(torch.stack(terms)))
        self.log_dict(logged.as_log(), batch_size=len(images))
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=len(images))
        return terms.total

    def _mean_over_ranks(self, value: Tensor) -> Tensor:
        reduced: Tensor = self.trainer.strategy.reduce(value.detach().clone(), reduce_op="mean")
        return reduced

    def on_fit_start(self) -> None:
        """Look whether a step fits into memory.

        And let the averages find the tensors of the model again: IPEX puts others in place for the time of a run.
        """
        images = -(-self.batch_size // self.trainer.num_nodes)
        data = self.experiment.data
        check_output_memory(self.experiment.model, images, trained_sizes(data.input_size, data.size_range)[1])
        if self.ema is not None:
            self.ema.forget_pairs()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step the optimizer, then let the averages follow; batches that only accumulate gradients come by neither."""
        super().optimizer_step(*args, **kwargs)
        # a step that `recipe.finite` has left out has no gradients any more
        if self.ema is not None and any(parameter.grad is not None for parameter in self.detector.parameters()):
            self.ema.update_(self.detector)

    def _optimizer(self) -> torch.optim.SGD:
        recipe = self.experiment.recipe
        rate = highest_learning_rate(recipe, self.batch_size)
        fused = self.trainer.precision != "16-mixed"
        return build_optimizer(self.detector, rate, recipe.momentum, recipe.weight_decay, fused=fused)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Build the optimizer and a schedule that moves at every step."""
        optimizer = self._optimizer()
        factor = build_schedule(self.experiment.recipe, self.batch_size, self.steps_per_epoch)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what makes the file describe itself; ``model`` holds the weights to deploy under official keys.

        Raises:
            YoloxError: When a weight is not finite: the files keep what they hold.
        """
        self._check_weights()
        checkpoint["format"] = CHECKPOINT_FORMAT
        checkpoint["model"] = {key: value.detach() for key, value in self.deployed_detector.state_dict().items()}
        checkpoint["ema_updates"] = self.ema.updates if self.ema is not None else 0
        checkpoint["experiment"] = experiment_to_dict(self.experiment)
        checkpoint["class_names"] = list(self.class_names)
        checkpoint["batch_size"] = self.batch_size
        checkpoint["steps_per_epoch"] = self.steps_per_epoch

    def _check_weights(self) -> None:
        for key, value in self.detector.state_dict().items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise YoloxError(
                    f"after step {self.global_step} the weights in '{key}' are not finite (NaN, inf): the training "
                    "has diverged. Nothing is written over the earlier checkpoints. Go on from one with --resume and a "
                    "lower basic_lr_per_img, or begin with one."
                )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue the averages where the file left them."""
        if self.ema is not None:
            self.ema.load_(checkpoint["model"], int(checkpoint["ema_updates"]))
        if "optimizer_states" not in checkpoint:
            return  # what rank 0 sends home after a fit: no run goes on from it
        epoch = self.start_epoch
        if epoch is None:
            epoch = resumed_epoch(checkpoint, self.steps_per_epoch)
        if epoch is not None:
            move_to_epoch_(checkpoint, epoch, self.steps_per_epoch)
        if epoch is not None or self.new_rates:
            factor = build_schedule(self.experiment.recipe, self.batch_size, self.steps_per_epoch)
            set_rates_(checkpoint, self._optimizer(), factor)
