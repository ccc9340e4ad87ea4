"""``python -m yolox`` is the command ``yolox``."""

import sys

from yolox.tools.early_interrupt import end_on_interrupt

__all__ = ["main"]


def main() -> int:
    """Run the command ``yolox`` and return its exit code."""
    end_on_interrupt()
    from yolox.tools import command

    return command.main()


if __name__ == "__main__":
    sys.exit(main())
