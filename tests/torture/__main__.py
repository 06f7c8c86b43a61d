"""`python -m tests.torture`."""

import sys

from tests.torture.torture import main

sys.exit(main())
