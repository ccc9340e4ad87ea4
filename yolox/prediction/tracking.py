"""Objects followed through a video, by ByteTrack of the library ``trackers``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from yolox.errors import needs
from yolox.prediction.results import Result

_USUAL_RATE = 30.0


def track(results: Iterable[Result]) -> Iterator[Result]:
    """Yield the results with ``boxes.track_ids``; every video and stream has tracks of its own.

    ByteTrack (Zhang et al., 2022) also uses boxes of low scores, so predict with a confidence of 0.1 or so.

    Raises:
        MissingDependencyError: When the libraries are not installed.
    """
    trackers: dict[str | None, Any] = {}
    for result in results:
        if result.source not in trackers:
            trackers[result.source] = _new_tracker(result.rate or _USUAL_RATE)
        yield _follow(result, trackers[result.source])


def _new_tracker(rate: float) -> Any:
    with needs("trackers", "pip install 'yolox-cpu[track]'"):
        from trackers import ByteTrackTracker
    return ByteTrackTracker(frame_rate=rate)


def _follow(result: Result, tracker: Any) -> Result:
    given = result.to_supervision()
    given.data["row"] = np.arange(len(result.boxes))  # the tracker may leave rows out and change their order
    followed = tracker.update(given)
    track_ids = np.full(len(result.boxes), -1, dtype=np.int64)
    if len(followed) and followed.tracker_id is not None:
        track_ids[followed.data["row"].astype(int)] = followed.tracker_id
    return result.with_tracks(track_ids)
