"""How long a picture takes beside another program that never rests, with each way that PyTorch's CPU threads can wait for each other.

    python benchmarks/beside.py [--rounds 3] [--alone]

One row a setting: seconds for `sas/demo_pictures/table.png`, 3 members and 4 steps, seed 0, each round's after one to warm up, in a process of its
own that begins with that setting. The other program is a loop that takes one core; `--alone` leaves it out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

PICTURE = Path(__file__).resolve().parent.parent / "sas" / "demo_pictures" / "table.png"
SETTINGS = {"GOMP_SPINCOUNT": "1000", "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
TIMED = """
import sys, time
from sas import SASPipeline
pipe, rounds = SASPipeline.from_pretrained(), int(sys.argv[2])
for round in range(rounds + 1):
    started = time.perf_counter()
    pipe(sys.argv[1], seed=0)
    if round:
        print(f"{time.perf_counter() - started:.2f}")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", action="store_true")
    options = parser.parse_args()
    with ExitStack() as stack:
        if not options.alone:
            other = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(other.kill)
        plain = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        for name, value in [("", ""), *SETTINGS.items()]:
            command = [sys.executable, "-c", TIMED, str(PICTURE), str(options.rounds)]
            setting = {name: value} if name else {}
            ran = subprocess.run(command, env=plain | setting, check=True, stdout=subprocess.PIPE, text=True)
            print(
                f"| {f'{name}={value}' if name else 'as PyTorch comes'} | {', '.join(ran.stdout.split())} s |",
                flush=True,
            )


if __name__ == "__main__":
    main()
