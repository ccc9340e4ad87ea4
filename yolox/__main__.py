"""``python -m yolox`` is the command ``yolox``."""

import sys

from yolox.tools.command import main

if __name__ == "__main__":
    sys.exit(main())
