"""`python -m nixsnap` is the `nixsnap` command."""

import sys

from nixsnap.cli.main import main

sys.exit(main())
