#!/usr/bin/env bash
# Slurm from Debian's packages, and submitit into the Python that is given (default: python3). As root.
set -euo pipefail
python=${1:-python3}
apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge iproute2
"$python" -m pip install -q 'submitit>=1.5'
