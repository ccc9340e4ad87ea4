"""``fuzz.py READER SECONDS FOLDER``: coverage-guided fuzzing of a reader of foreign files with atheris.

``make fuzz`` installs atheris and runs this for each reader. What is found is written to ``FOLDER/READER/findings``, an
input once per kind of error; the inputs that reached new code are in
``FOLDER/READER/corpus``. ``FOLDER/READER/figures.txt`` has a line for each run: inputs, seconds, processor
seconds, findings.
"""

from __future__ import annotations

import hashlib
import logging
import resource
import sys
import time
import traceback
from pathlib import Path

import atheris
import torch  # before the others: to instrument all of it takes long
from torch import _weights_only_unpickler as unpickler

with atheris.instrument_imports(include=["yolox", "yaml"]):
    import parsers
    import samples

    from yolox.temporary_folders import TemporaryFolder

_REPORT_SECONDS = 5
_MEMORY_BYTES = 16 << 30  # of address space: PyTorch and the libraries alone take 6


def main() -> None:
    """Fuzz until the time is over."""
    name, seconds, place = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]).absolute() / sys.argv[1]
    corpus, findings = place / "corpus", place / "findings"
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(samples.samples()[name]):
        (corpus / f"sample{number}").write_bytes(data)
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    if name == "checkpoints":
        atheris.instrument_func(unpickler.Unpickler.load)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    temporary = TemporaryFolder("fuzz")  # removed by the next run: this process ends without Python's exit handlers
    report = place / "figures.txt"
    earlier = report.read_text(encoding="utf-8") if report.exists() else ""
    count = 0
    kinds: set[str] = set()
    started = told = time.monotonic()

    def one(data: bytes) -> None:
        nonlocal count, told
        count += 1
        if time.monotonic() > told + _REPORT_SECONDS:
            told = time.monotonic()
            figures = f"{count} {told - started:.0f} {time.process_time():.0f} {len(kinds)}\n"
            report.write_text(earlier + figures, encoding="utf-8")
        try:
            parsers.run(parsers.READERS[name], data, temporary.path)
        except Exception as error:  # noqa: BLE001 - any is a finding
            frames = traceback.extract_tb(error.__traceback__)
            kind = f"{type(error).__name__} {[(Path(f.filename).name, f.lineno) for f in frames[-6:]]}"
            if kind not in kinds:
                kinds.add(kind)
                found = findings / hashlib.sha1(kind.encode()).hexdigest()[:12]
                found.write_bytes(data)
                found.with_suffix(".txt").write_text("".join(traceback.format_exception(error)), encoding="utf-8")

    options = [
        f"-max_total_time={seconds}",
        "-timeout=3600",  # of the clock, which other work stops; `parsers.run` counts time of the processor
        "-report_slow_units=3600",
        "-rss_limit_mb=0",
        "-max_len=20000",
        "-print_final_stats=1",
    ]
    seeds = [str(path) for path in (parsers.CORPUS / name,) if path.is_dir()]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={findings}/", str(corpus), *seeds], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
