"""Start a run again from its last checkpoint when a process of it has died."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from yolox.trainer.checkpoint_io import AtomicCheckpointIO
from yolox.trainer.launchers.base import RankError

_log = logging.getLogger(__name__)


def run_with_restarts(
    fit: Callable[[str | Path | None], None],
    checkpoint_io: AtomicCheckpointIO,
    ckpt_path: str | Path | None,
    max_restarts: int,
) -> None:
    """Call ``fit`` until it succeeds, at most ``max_restarts`` times again.

    Only failures of a process are tried again; a mistake of the user would come back.

    Args:
        fit: Trains in worker processes from a checkpoint (None: from the beginning).
        checkpoint_io: Its journal, written by the workers, says which checkpoint is the last.
        ckpt_path: Where the first run starts.
        max_restarts: How often to start again.

    Raises:
        RankError: When the last attempt failed as well.
    """
    folder = Path(tempfile.mkdtemp(prefix="yolox-journal-"))
    checkpoint_io.journal = folder / "checkpoints.txt"
    try:
        for attempt in range(max_restarts + 1):
            try:
                return fit(ckpt_path)
            except RankError as error:
                if attempt == max_restarts:
                    raise
                ckpt_path = _last_written(checkpoint_io.journal) or ckpt_path
                _log.warning(
                    "%s\nrestart %d of %d, from %s", error, attempt + 1, max_restarts, ckpt_path or "the beginning"
                )
    finally:
        checkpoint_io.journal = None
        shutil.rmtree(folder, ignore_errors=True)


def _last_written(journal: Path) -> Path | None:
    lines = journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []
    return next((Path(line) for line in reversed(lines) if Path(line).is_file()), None)
