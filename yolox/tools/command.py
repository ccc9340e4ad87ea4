"""The command ``yolox``: ``yolox train``, ``yolox val``, ``yolox predict``, ... are the tools of this package."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence

from yolox import __version__
from yolox.errors import UsageError, did_you_mean
from yolox.tools.arguments import run_tool
from yolox.tools.parser import ToolParser, called_as

COMMANDS: Mapping[str, tuple[str, str]] = {
    "train": ("train", "train or fine-tune on a data set"),
    "val": ("eval", "COCO AP and speed of a model on a data set"),
    "predict": ("predict", "find objects in images, videos, cameras and streams"),
    "optimize": ("inference_demo", "measure every way to run a model here, keep the fastest that is right"),
    "export": ("export", "write a checkpoint as ONNX, OpenVINO, TorchScript, torch.export or ncnn"),
    "doctor": ("doctor", "find out what is wrong with a data set"),
    "serve": ("serve", "answer predictions over HTTP"),
    "preprocess": ("preprocess", "write a data set's images as the binary files that a foreign runtime reads"),
    "postprocess": ("postprocess", "COCO AP of what a foreign runtime or detector found"),
    "info": ("info", "versions, machine, optional libraries; what is in a model"),
    "kernels": ("kernels", "what computes each layer of a network in training here, and why"),
    "settings": ("settings", "all settings that a run would use, and where they come from"),
}
"""Each command, its module in this package, and one line about it."""
_ALIASES = {"eval": "val", "demo": "predict"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    first = words[0] if words else "--help"
    if first in ("-h", "--help", "help"):
        print(_help())
        return 0
    if first in ("-V", "--version", "version"):
        print(f"yolox-cpu {__version__}")
        return 0
    if first == "completion":
        return run_tool(lambda: print(completion(words[1] if len(words) > 1 else "bash")))
    name = _ALIASES.get(first, first)
    if name not in COMMANDS:
        return run_tool(lambda: _refuse(first))
    with called_as(f"yolox {name}"):
        code: int = importlib.import_module(f"yolox.tools.{COMMANDS[name][0]}").main(words[1:])
    return code


def _refuse(word: str) -> None:
    raise UsageError(f"unknown command '{word}'.{did_you_mean(word, COMMANDS)} See 'yolox --help'.")


def _help() -> str:
    lines = [f"  {name:<12} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        (
            "usage: yolox COMMAND [options] [field=value ...]",
            "",
            "commands:",
            *lines,
            '  completion   print the completion script of a shell: eval "$(yolox completion bash)"',
            "",
            "'yolox COMMAND --help' lists the options; 'yolox --version' says which version this is.",
        )
    )


def completion(shell: str) -> str:
    """Return the script that completes commands and options in ``bash`` or ``zsh``, or in ``fish``.

    Raises:
        UsageError: For another shell.
    """
    if shell not in ("bash", "zsh", "fish"):
        raise UsageError(f"no completion for '{shell}'; expected bash, zsh or fish.")
    options = {}
    for name, (module, _) in COMMANDS.items():
        parser: ToolParser = importlib.import_module(f"yolox.tools.{module}").build_parser()
        options[name] = " ".join(sorted({spelling for spelling in parser.spellings if spelling.startswith("--")}))
    if shell == "fish":
        lines = [f"complete -c yolox -n __fish_use_subcommand -a {name} -d '{COMMANDS[name][1]}'" for name in COMMANDS]
        for name, words in options.items():
            lines += [
                f"complete -c yolox -n '__fish_seen_subcommand_from {name}' -l {word[2:]}" for word in words.split()
            ]
        return "\n".join(lines)
    cases = "\n".join(f"    {name}) words='{words}' ;;" for name, words in options.items())
    start = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return f"""{start}_yolox() {{
  local words word=${{COMP_WORDS[COMP_CWORD]}}
  case ${{COMP_WORDS[1]}} in
{cases}
    *) words='{" ".join(COMMANDS)}' ;;
  esac
  [ "$COMP_CWORD" -eq 1 ] && words='{" ".join(COMMANDS)}'
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  [ ${{#COMPREPLY[@]}} -gt 0 ] || COMPREPLY=($(compgen -f -- "$word"))
}}
complete -o filenames -F _yolox yolox"""
