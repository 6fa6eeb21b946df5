"""``python -m mrmfast`` is ``mrmfast``."""

import sys

from mrmfast.cli import main

if __name__ == "__main__":
    sys.exit(main())
