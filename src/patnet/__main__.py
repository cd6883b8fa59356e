"""`python -m patnet`, the same as `patnet`."""

import sys

from .cli import main

sys.exit(main())
