"""``python -m analognoise`` is the command ``analognoise``."""

import sys

from analognoise.cli import main

if __name__ == "__main__":
    sys.exit(main())
