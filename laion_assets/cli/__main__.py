"""Run ``laion-assets`` as ``python -m laion_assets.cli``."""

import sys

from laion_assets.cli import main

sys.exit(main())
