#!/bin/sh
# Print the path of a Python that PyMC 6 runs on (3.12 to 3.14): from PATH, then from pyenv.
# Each is tried by running it, since a pyenv shim may stand on PATH and refuse to start.
fits='import sys, ssl, venv, ensurepip; assert (3, 12) <= sys.version_info[:2] <= (3, 14)'
for name in python3.13 python3.12 python3.14 python3 python; do
    if "$name" -c "$fits" >/dev/null 2>&1; then
        "$name" -c 'import sys; print(sys.executable)'
        exit 0
    fi
done
for path in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[234]*/bin/python; do
    if "$path" -c "$fits" >/dev/null 2>&1; then
        echo "$path"
        exit 0
    fi
done
echo "No Python from 3.12 to 3.14 (with venv and ssl) was found on PATH or under pyenv." >&2
echo "Install one (pyenv install 3.13, conda create -n pymc python=3.13, or your system's" >&2
echo "package), or name it: make PYTHON=/path/to/python3.13 $*" >&2
exit 1
