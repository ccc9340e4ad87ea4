"""Two states of the code in one measurement: a process for each, which uses the package of a checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.protocol import ROOT


class CheckoutProcess:
    """A process that uses the package of a checkout, and answers one JSON value a line with another.

    Args:
        checkout: The folder with the state of the code.
        command: Arguments of the interpreter; what they import of the benchmarks may come from either state.
    """

    def __init__(self, checkout: Path, command: Sequence[str]) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="benchmark-checkout-")  # it is killed, and removes nothing
        path = os.pathsep.join((str(checkout), str(ROOT)))
        environment = {**os.environ, "PYTHONPATH": path, "TMPDIR": self._temporary.name}
        self._name = checkout.name
        self._process = subprocess.Popen(
            [sys.executable, *command],
            cwd=checkout,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def ask(self, question: object) -> Any:
        """Return the answer to a question.

        Raises:
            RuntimeError: When the process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process of {self._name} ended with exit code {self._process.wait()}")
        return json.loads(answer)

    def __enter__(self) -> CheckoutProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._temporary.cleanup()


@contextmanager
def checkout_of(commit: str) -> Iterator[Path]:
    """Yield a temporary folder with the files of a commit.

    Raises:
        subprocess.CalledProcessError: When git does not know the commit; it says so itself.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-checkout-") as name:
        folder = Path(name) / commit.replace("/", "-")
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
        try:
            yield folder
        finally:
            subprocess.run([*git, "remove", "--force", str(folder)], check=True)
