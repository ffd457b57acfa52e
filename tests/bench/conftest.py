"""The benchmark is no installed package: it is imported from where it lies.

This directory is no package either: under the name ``bench`` it would hide the benchmark.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
