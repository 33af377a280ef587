"""Train a network: `accelerate launch train.py CONFIG.yaml [--section.field VALUE ...]`. The same as `sas train`."""

import sys

from sas.cli import run
from sas.cli_options import Train

if __name__ == "__main__":
    sys.exit(run(Train, program="train.py"))
