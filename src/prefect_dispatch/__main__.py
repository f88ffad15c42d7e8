"""Entry point of `python -m prefect_dispatch`: the command line interface."""

import sys

from prefect_dispatch.cli.commands import main

sys.exit(main())
