#!/usr/bin/env bash
# Ray into the Python that is given (default: python3). The start script needs root, for a network of its own.
set -euo pipefail
"${1:-python3}" -m pip install -q 'ray>=2.9'
