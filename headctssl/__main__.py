"""Main module: `python -m headctssl` is the `headct` command."""

import sys

from headctssl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
