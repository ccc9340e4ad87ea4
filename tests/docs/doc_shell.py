"""Runs the commands of the pages in a folder that holds what they name: small data, few steps, one method.

What cannot run here is held against the parser that would read it, and says why.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from doc_pages import ROOT
from loopback import serving

from yolox.experiments import get_experiment
from yolox.kernels.build import built_library
from yolox.kernels.library import host_variants
from yolox.models.detector import build_detector
from yolox.tools import command
from yolox.tools.parser import ToolParser

SHORTER = {
    "train": ("-b", "8", "--num_workers", "0", "--steps", "1", "input_size=64", "test_size=64", "warmup_epochs=0"),
    "optimize": ("--methods", "native_int8", "-b", "1"),
    "predict": ("--conf", "0.001", "--max_reconnects", "0"),
    "serve": ("--port", "0"),
}
"""What makes each command short; options given twice count as the last one says."""


def place_weights(cache: Path) -> None:
    """Put "published" weights and compiled kernels where a download and the compiler would."""
    (cache / "weights").mkdir(parents=True)
    detector = build_detector(get_experiment("yolox_nano").model)
    torch.save({"model": detector.state_dict()}, cache / "weights" / "yolox_nano.pth")
    library = built_library(host_variants()[0])
    (cache / library.name).symlink_to(library)  # it is not compiled again


def tool_module(name: str) -> Any:
    """Return the module of a command, or of the official ``demo``."""
    return importlib.import_module(f"yolox.tools.{'demo' if name == 'demo' else command.COMMANDS[name][0]}")


def tool_parsers() -> dict[str, ToolParser]:
    """Return the parser of every command."""
    return {name: tool_module(name).build_parser() for name in ("demo", *command.COMMANDS)}


def as_tool(words: Sequence[str]) -> tuple[str, list[str]] | None:
    """Return command and options of ``yolox COMMAND ...`` or ``python -m yolox.tools.MODULE ...``."""
    by_module = {f"yolox.tools.{module}": name for name, (module, _) in command.COMMANDS.items()}
    by_module["yolox.tools.demo"] = "demo"
    if words[:1] == ["yolox"] and len(words) > 1:
        return words[1], list(words[2:])
    if words[:2] == ["python", "-m"] and len(words) > 2 and words[2] in by_module:
        return by_module[words[2]], list(words[3:])
    return None


class Shell:
    """Runs commands one after another in the current folder.

    Args:
        whole: Whether commands of several processes train too; otherwise they build everything and stop.
    """

    def __init__(self, *, whole: bool = False) -> None:
        self._whole = whole
        self._running = ExitStack()
        self._address = ""

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *failure: object) -> None:
        self._running.close()

    def run(self, words: list[str]) -> None:
        """Run or check one command; one that no rule knows fails."""
        words = [word.replace("/data/mine", "mine") for word in words]
        while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        tool = as_tool(words)
        if tool is not None:
            self._run_tool(*tool)
        elif words[0] == "curl":
            self._request(words)
        else:
            assert words[0] in CHECKS, f"no rule says what becomes of: {' '.join(words)}"
            CHECKS[words[0]](words)

    def _run_tool(self, name: str, words: list[str]) -> None:
        parsers = tool_parsers()
        assert name in parsers, f"yolox {name}: unknown command"
        parsers[name].parse(words)  # as it stands on the page
        words = [self._camera() if word.startswith("rtsp://") else word for word in words]
        if name == "serve":
            self._address = self._running.enter_context(served([name, *words, *SHORTER["serve"]]))
            return
        words += SHORTER.get({"demo": "predict"}.get(name, name), ())
        many = "--num_processes" in words or "--use_ipex" in words
        if "--cluster" in words and name != "train":
            return  # it needs a cluster, as a training does, which is built but not run: test_clusters.py starts one
        if "--cluster" in words or (many and not self._whole):
            words.append("--dry-run")
        if name == "postprocess" and Path(words[0]).is_dir():
            write_outputs(Path(words[0]), Path(words[words.index("--results") + 1]))
        code = tool_module(name).main(words)
        assert code == 0, f"exit code {code}: yolox {name} {' '.join(words)}"

    def _camera(self) -> str:
        return self._running.enter_context(camera())

    def _request(self, words: list[str]) -> None:
        """Send what ``curl --data-binary @FILE ADDRESS`` sends to the service that is running."""
        assert words[1] == "--data-binary"
        assert self._address, "nothing is served yet"
        address = re.sub(r"^http://127\.0\.0\.1:8000", self._address, words[3])
        body = Path(words[2].removeprefix("@")).read_bytes()
        with urllib.request.urlopen(address, data=body, timeout=300) as answer:
            assert json.load(answer)["objects"] is not None


@contextmanager
def served(words: Sequence[str]) -> Iterator[str]:
    """Run ``yolox serve`` and give its address."""
    code = "import sys; from yolox.tools.command import main; sys.exit(main(sys.argv[1:]))"
    program = [sys.executable, "-c", code, *words]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as service:
        try:
            assert service.stdout is not None
            yield next(found.group() for line in service.stdout if (found := re.search(r"http://[\d.:]+", line)))
        finally:
            service.terminate()
            service.communicate(timeout=300)
    assert service.returncode == 143  # the server ends in order, and says how


class _Camera(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        data = cv2.imencode(".jpg", np.full((48, 64, 3), 90, np.uint8))[1].tobytes()
        for _ in range(3):
            self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\n\r\n" + data + b"\r\n")


@contextmanager
def camera() -> Iterator[str]:
    """Send three frames of a stream on the loopback, and give its address."""
    with serving(_Camera) as address:
        yield f"{address}/stream.mjpg"


def write_outputs(folder: Path, results: Path) -> None:
    """Stand in for a foreign runtime: write an output that finds nothing for every image of ``yolox preprocess``."""
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    height, width = index["shape"][2:]
    anchors = sum((height // stride) * (width // stride) for stride in (8, 16, 32))
    results.mkdir(exist_ok=True)
    for image in index["images"]:
        np.zeros((anchors, 5 + len(index["class_names"])), np.float32).tofile(results / f"{image['id']}_0.bin")


def check_pip(words: list[str]) -> None:
    """Compare what would be installed with setup.py and the tested versions."""
    assert words[1] == "install"
    extras = _setup_dict("EXTRAS")
    tested = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    }
    names = [word for word in words[2:] if not word.startswith("-")]
    for option, value in pairwise(words):
        if option in ("-c", "-r"):
            names.remove(value)
            assert (ROOT / value).is_file(), value
    for name in names:
        package, _, asked = name.rstrip("]").partition("[")
        if package == "yolox-cpu":
            assert set(filter(None, asked.split(","))) <= {*extras, "all"}, name
        else:
            assert package.lower().replace("_", "-") in tested, name


def _setup_dict(name: str) -> set[str]:
    """Return the keys of a dictionary of setup.py."""
    for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and node.targets[0].id == name:  # type: ignore[attr-defined]
            return {ast.literal_eval(key) for key in node.value.keys if key is not None}
    raise AssertionError(f"setup.py has no {name}")


def check_make(words: list[str]) -> None:
    """Let ``make`` print what it would run, and parse what it would run of ours."""
    make = shutil.which("make")
    assert make is not None
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        [make, "-n", *words[1:]], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    parsers = tool_parsers()
    lines = re.sub(r"\$\(.*?\)( |$)", r"IMAGES\1", done.stdout.replace("\\\n", " "), flags=re.MULTILINE).splitlines()
    for line in lines:
        found = re.search(r"-m (yolox\.tools\.\w+ .*)$", line)
        tool = found and as_tool(["python", "-m", *found[1].split()])
        if tool:
            parsers[tool[0]].parse(tool[1])


def check_docker(words: list[str]) -> None:
    """Parse what a container of ``docker run`` starts, and compare its port and folder with those of the line."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    entry, arguments = (
        json.loads(re.findall(rf"^{word} (\[.*\])$", text, re.MULTILINE)[-1]) for word in ("ENTRYPOINT", "CMD")
    )
    name, options = as_tool([*entry, *arguments]) or ("", [])
    parsed = tool_parsers()[name].parse(options)
    if words[1] == "build":
        assert words[-1] == "."
        return
    assert words[1] == "run"
    assert words[words.index("-p") + 1].endswith(f":{parsed.port}")
    assert words[words.index("-v") + 1].split(":")[1] == parsed.model


def check_torchrun(words: list[str]) -> None:
    """Parse the words of torchrun by its own parser and the tool's by the tool's."""
    from torch.distributed.run import get_args_parser

    parsed: Any = get_args_parser().parse_args(words[1:])
    name, options = as_tool(["python", "-m", parsed.training_script, *parsed.training_script_args]) or ("", [])
    tool_parsers()[name].parse(options)


def check_srun(words: list[str]) -> None:
    """Parse the words of the tool that srun starts."""
    name, options = as_tool(words[words.index("python") :]) or ("", [])
    tool_parsers()[name].parse(options)


CHECKS: dict[str, Callable[[list[str]], None]] = {
    # the tests run in the environment of `make dev` already
    ".": lambda _: None,
    # the tests use no package index; names and extras are compared with setup.py and constraints.txt
    "pip": check_pip,
    # `make demo` takes minutes and `make test` runs this test; what they would run is parsed
    "make": check_make,
    # no container engine; what the container starts is parsed from the Dockerfile
    "docker": check_docker,
    # tests/trainer/test_joined_runs.py starts it; here its words and those of the tool are parsed
    "torchrun": check_torchrun,
    # needs a Slurm cluster; the words of the tool are parsed
    "srun": check_srun,
}
"""What becomes of the commands of programs that are not run here, and why they are not."""
