"""`python -m prefect_dispatch`: the command line."""

import sys

from prefect_dispatch.cli import main

sys.exit(main())
