"""Take photographs apart: `python sample.py INPUT... --out DIR`. The same as `sas sample`."""

import sys

from sas.cli import run
from sas.cli_options import Sample

if __name__ == "__main__":
    sys.exit(run(Sample, program="sample.py"))
