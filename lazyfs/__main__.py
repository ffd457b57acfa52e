"""``python -m lazyfs`` is the command ``lazyfs``."""

import sys

from lazyfs.cli.main import main

sys.exit(main())
