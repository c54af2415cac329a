"""``python -m popqorn_train.cli``."""

import sys

from popqorn_train.cli import main

sys.exit(main())
