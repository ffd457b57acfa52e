"""``python -m lazyfs`` is the command ``lazyfs``."""

import sys

from lazyfs.cli import main

sys.exit(main())
