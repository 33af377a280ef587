"""Train a network: `accelerate launch train.py CONFIG.yaml [--section.field VALUE ...]`. The same as `sas train`."""

import sys

from sas.cli import Train, run

if __name__ == "__main__":
    sys.exit(run(Train, program="train.py"))
