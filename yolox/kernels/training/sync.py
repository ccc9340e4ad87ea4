"""What a batch normalisation over several processes offers, so that kernels can compute its passes over the samples."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class SharedNormalisation(ABC):
    """A batch normalisation layer whose statistics in training are those of several processes together.

    Besides this method it has the parameters, buffers and settings of ``torch.nn.BatchNorm2d``.
    """

    @abstractmethod
    def sum_over_ranks(self, sums: Tensor) -> None:
        """Add up, in place, what the processes hold.

        Whatever computes the passes over the samples sends the same, so that processes whose kernels differ understand
        each other.

        Args:
            sums: float64. Forwards ``[2 * C + 1]``: the sums of the samples, of their squares, and the number of
                samples; backwards ``[2 * C]``: the sums of the gradient, and of the gradient times the distance of the
                sample to the mean.
        """
