"""The argument parser of all tools: one spelling for every option, overrides anywhere, answers that help."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn

from yolox.config import field_names
from yolox.errors import UsageError, did_you_mean

_GPU = "This package runs on CPUs; leave it out."
_RATE = "Write 'basic_lr_per_img RATE' at the end: the rate of one image, which is {value} divided by the batch."
ELSEWHERE = {
    "-d": _GPU,
    "--devices": _GPU,
    "--device": _GPU,
    "--gpus": _GPU,
    "--fp16": "Use '--precision bf16'.",
    "--half": "Use '--precision bf16'.",
    "--amp": "Use '--precision bf16'.",
    "--trt": "TensorRT needs a GPU; see 'python -m yolox.tools.inference_demo --help' for fast CPU methods.",
    "--legacy": "Weights of release 0.1.0 are not supported; use those of release 0.1.1 or later.",
    "--occupy": "There is no GPU memory to reserve; leave it out.",
    "-o": "There is no GPU memory to reserve; leave it out.",
    "--fuse": "Convolutions and normalisations are always fused where that is safe; leave it out.",
    "--use_hpu": _GPU,
    "--hpu": _GPU,
    "--hmp": "Use '--precision bf16', and '--hmp_bf16 FILE', '--hmp_fp32 FILE' for lists of operators.",
    "--hmp_opt_level": "Use '--precision bf16', and '--hmp_bf16 FILE', '--hmp_fp32 FILE' for lists of operators.",
    "--num_machines": "Use '--strategy ray --cluster ADDRESS'; docs/trainer.md says how.",
    "--machine_rank": "Use '--strategy ray --cluster ADDRESS'; docs/trainer.md says how.",
    "--dist_url": "Use '--strategy ray --cluster ADDRESS'; docs/trainer.md says how.",
    "--dist_backend": "Use '--process_group_backend gloo'.",
    "--speed": "Times are always printed; leave it out.",
    "--test": "A split without labels has no AP; leave it out.",
    "--pth_path": "Use '-c {value}'.",
    "--save_txt": "Use '--formats yolo'.",
    "--save_crop": "Use '--formats crops'.",
    "--nproc_per_node": "Use '--num_processes {value}'.",
    "--weights": "Use '-c {value}'.",
    "--model": "Use '-n {value}' for a published model or '-c {value}' for a file.",
    "--data": "Use '--data_dir {value}'.",
    "--data_path": "Use '--data_dir {value}'.",
    "--batch": "Use '-b {value}'.",
    "--workers": "Use '--num_workers {value}'.",
    "--project": "Use '--output_dir {value}'.",
    "--img": "Write 'input_size {value} test_size {value}' at the end, without dashes.",
    "--imgsz": "Write 'input_size {value} test_size {value}' at the end, without dashes.",
    "--img_size": "Write 'input_size {value} test_size {value}' at the end, without dashes.",
    "--epochs": "Write 'max_epoch {value}' at the end, without dashes.",
    "--max_epochs": "Write 'max_epoch {value}' at the end, without dashes.",
    "--lr": _RATE,
    "--lr0": _RATE,
    "--close_mosaic": "Write 'no_aug_epochs {value}' at the end, without dashes.",
    "--noresize": "Use '--no-multiscale'.",
    "--save_period": "Write 'save_history_ckpt true' at the end, without dashes.",
    "--iou": "Use '--nms {value}'.",
    "--source": "Use 'yolox predict {value}'.",
}
"""Options of other implementations that have another name or no place here, and what to write instead."""
_SIMILAR_TO_PROCESSES = ("-d", "--devices", "--gpus")
_KEY = re.compile(r"[A-Za-z_][\w.]*\Z")
_NUMBER = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\Z")

_called_as: ContextVar[str | None] = ContextVar("called_as", default=None)


@contextmanager
def called_as(command: str) -> Iterator[None]:
    """Let the parsers built inside present themselves as ``command`` (``yolox val``) instead of a module's name."""
    token = _called_as.set(command)
    try:
        yield
    finally:
        _called_as.reset(token)


class ToolParser(argparse.ArgumentParser):
    """An argument parser that raises `UsageError`, names the nearest option, and takes ``-`` and ``_`` as one.

    Words such as ``max_epoch 2`` or ``data.degrees=0``, anywhere in the command, are overrides of the experiment where
    the tool takes them (an argument named ``opts``); no option with several values swallows them.

    Args:
        tool: The module's name, as in ``python -m yolox.tools.<tool>``.
        description: One sentence.
    """

    def __init__(self, tool: str, description: str) -> None:
        self._spelled: dict[str, argparse.Action] = {}
        self._words: list[str] = []  # names of the arguments that are no options
        self._complete = False
        command = _called_as.get() or f"python -m yolox.tools.{tool}"
        super().__init__(prog=command, description=description, allow_abbrev=False)
        self._complete = True

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:  # type: ignore[override]
        """Add an argument and remember its spellings."""
        return self.remember(super().add_argument(*names, **settings))

    def add_argument_group(self, *titles: Any, **settings: Any) -> Any:
        """Return a titled group of options in ``--help``; its options are known under all spellings as well."""
        group = super().add_argument_group(*titles, **settings)
        return OptionGroup(self, group) if self._complete else group  # argparse's constructor builds two of its own

    def remember(self, action: argparse.Action) -> argparse.Action:
        """Let ``action`` be found under every spelling of its names, and return it."""
        for name in action.option_strings:
            self._spelled[_plain(name)] = action
        if not action.option_strings:
            self._words.append(action.dest)
        return action

    @property
    def spellings(self) -> tuple[str, ...]:
        """All options, as ``--help`` writes them."""
        return tuple(name for action in self._unique_actions() for name in action.option_strings)

    def option(self, name: str) -> argparse.Action | None:
        """Return the option of that name, in any spelling, or None."""
        return self._spelled.get(_plain(name))

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            UsageError: Always.
        """
        raise UsageError(f"{message}. See '{self.prog} --help'.")

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Return the arguments; options and overrides may come in any order.

        Raises:
            UsageError: For an unknown option or a value that does not convert.
        """
        words, overrides = self._without_overrides(sys.argv[1:] if argv is None else argv)
        namespace = self.parse_intermixed_args(words)
        if "opts" in self._words:
            namespace.opts = [*namespace.opts, *overrides]
        return namespace

    def _without_overrides(self, argv: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the words for argparse, options in the spelling it knows, and the overrides among them."""
        kept: list[str] = []
        overrides: list[str] = []
        owed = 0  # values that still belong to the option before
        words = iter(argv)
        for word in words:
            if word == "--":
                kept.extend((word, *words))
            elif owed:
                kept.append(word)
                owed -= 1
            elif word.startswith("-") and len(word) > 1 and not _NUMBER.match(word):
                spelled, owed = self._read_option(word, words)
                kept.append(spelled)
            elif self._is_override(word):
                overrides.append(word)
                if "=" not in word:
                    value = next(words, None)
                    overrides.extend(() if value is None else (value,))
            else:
                kept.append(word)
        return kept, overrides

    def _read_option(self, word: str, following: Iterator[str]) -> tuple[str, int]:
        """Return an option in the spelling that argparse knows, and how many values it owns for certain."""
        name, equals, value = word.partition("=")
        action = self.option(name)
        if action is None:
            if not word.startswith("--") and self.option(word[:2]) is not None:
                return word, 0  # a short option with its value attached: -b8
            self._refuse_option(name, value if equals else next(following, ""))
        spelled = next(own for own in action.option_strings if _plain(own) == _plain(name))
        number = 1 if action.nargs in (None, argparse.ONE_OR_MORE) else action.nargs
        owed = number if isinstance(number, int) and not equals else 0
        return spelled + equals + value, owed

    def _is_override(self, word: str) -> bool:
        if "opts" not in self._words:
            return False
        key, equals, _ = word.partition("=")
        if key in field_names():
            return True
        return bool(equals) and self._words == ["opts"] and _KEY.match(key) is not None

    def _refuse_option(self, name: str, value: str) -> NoReturn:
        plain, given = _plain(name), value or "VALUE"
        processes = self.option("--num_processes") is not None and plain in _SIMILAR_TO_PROCESSES
        if processes:
            advice = f" {_GPU} Use '--num_processes {given}' to share the work among several processes."
        elif "opts" in self._words and plain.lstrip("-") in field_names():
            field = plain.lstrip("-")
            advice = f" It is a field of the experiment: write '{field} {given}' or '{field}={given}', without dashes."
        elif plain in ELSEWHERE:
            advice = " " + ELSEWHERE[plain].format(value=given)
        else:
            advice = did_you_mean(name, [own for own in self.spellings if len(own) > 2])
        raise UsageError(f"unknown option '{name}'.{advice} See '{self.prog} --help'.")

    def _unique_actions(self) -> Iterator[argparse.Action]:
        return iter(dict.fromkeys(self._spelled.values()))


class OptionGroup:
    """Options under a title of their own.

    Args:
        parser: The parser they belong to.
        group: What ``add_argument_group`` of the parser returned.
    """

    def __init__(self, parser: ToolParser, group: Any) -> None:
        self._parser = parser
        self._group = group

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        """Add an option to the group."""
        return self._parser.remember(self._group.add_argument(*names, **settings))


def _plain(name: str) -> str:
    """Return an option's name with underscores, so that both spellings are one."""
    dashes = len(name) - len(name.lstrip("-"))
    return name[:dashes] + name[dashes:].replace("-", "_")
