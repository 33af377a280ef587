"""Take photographs apart: `python sample.py INPUT... --out DIR`. The same as `sas sample`."""

import sys

from sas.cli import Sample, run

if __name__ == "__main__":
    sys.exit(run(Sample, program="sample.py"))
