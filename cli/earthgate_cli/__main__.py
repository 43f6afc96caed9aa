"""``python -m earthgate_cli``: the program where only a Python is known, not its scripts."""

import sys

from earthgate_cli.main import main

sys.exit(main())
