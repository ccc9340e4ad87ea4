"""What does not fit into memory is refused before it takes any."""

from __future__ import annotations

import pytest

from yolox.config import ModelConfig
from yolox.errors import UsageError
from yolox.recipe.memory import check_output_memory
from yolox.structures import Size


def test_scores_of_more_classes_than_fit_into_memory_are_refused() -> None:
    config = ModelConfig(num_classes=100_000)
    check_output_memory(config, 1, Size(640, 640), available=2**34)
    with pytest.raises(UsageError, match=r"100,000 classes at 8,400 places in each of 16 images .* take 150.2 GiB"):
        check_output_memory(config, 16, Size(640, 640), available=2**34)
