"""How far a method came, and how it ended. Its process tells the stage; the status of a failure follows from it."""

from __future__ import annotations

from enum import Enum


class Status(str, Enum):
    """How a method ended."""

    SUCCESSFUL = "successful"
    LACK_DEPENDENCY = "lack dependency"
    FAIL_TO_CONVERT = "fail to convert"
    EARLY_STOPPED = "early stopped"
    FAIL_TO_FORWARD = "fail to forward"


class Stage(str, Enum):
    """What the process of a method does; the values read as "stopped while ..."."""

    STARTING = "starting"
    CONVERTING = "converting"
    RUNNING = "running the sample"
    TUNING = "tuning"
    SCORING = "measuring accuracy"
    SAVING = "saving"
    CHECKING = "checking the saved model"
    MEASURING = "measuring latency"

    @property
    def failure(self) -> Status:
        """The status of a method that fails here."""
        early = self in (Stage.STARTING, Stage.CONVERTING)
        return Status.FAIL_TO_CONVERT if early else Status.FAIL_TO_FORWARD
