#!/bin/sh
# Install the project into a virtual environment: tools/install.sh PYTHON SPEC
# The versions of constraints.txt are used, but a torch that is already there is kept.
set -eu
python=$1
spec=$2
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
if "$python" -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null; then
    grep -v '^torch==' constraints.txt >"$constraints"
else
    cat constraints.txt >"$constraints"
fi
"$python" -m pip install --quiet --disable-pip-version-check --constraint "$constraints" --editable "$spec"
