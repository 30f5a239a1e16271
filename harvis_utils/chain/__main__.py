"""``python -m harvis_utils.chain``."""

import sys

from harvis_utils.chain.commands import main

sys.exit(main())
