"""`sas` and `python -m sas`. What needs no options is answered here, before the parser and the settings are imported, so that it comes at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sas.console import reader_may_leave

OVERVIEW = {
    "demo": "Take generated scenes and example pictures apart with the shipped weights.",
    "sample": "Take photographs apart into ordered amodal layers.",
    "train": "Train a network; started again with the same arguments, training goes on where it stopped.",
    "evaluate": "Score weights on a data set.",
    "compose": "Write composed scenes to disk.",
    "average": "Average weights of one network: the ends of runs that went on from each other.",
    "export": "Write the network to ONNX: encoder.onnx, denoiser.onnx and settings.json.",
    "doctor": "Check the installation, and data if a folder is named.",
    "data": "Check, convert and pack annotated data sets; `sas data --help`.",
    "--version": "Print the version.",
}


@reader_may_leave()
def main(arguments: Sequence[str] | None = None) -> int:
    """`sas COMMAND ...`; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = [f"  {name:10s} {words}" for name, words in OVERVIEW.items()]
        print("usage: sas COMMAND ...\n\nSequential amodal segmentation: images to ordered, complete object masks.\n")
        print("\n".join(lines), "\n\n`sas COMMAND --help` lists the options of a command.", sep="")
        return 0
    if arguments[0] == "--version":
        from sas import __version__

        print(f"sas-amodal {__version__}")
        return 0
    from sas import cli

    return cli.dispatch(arguments[0], arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
