"""`python -m patnet.cli`, the same as `patnet`."""

import sys

from . import main

sys.exit(main())
