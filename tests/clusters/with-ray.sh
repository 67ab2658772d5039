#!/usr/bin/env bash
# with-ray.sh EMPTY-FOLDER PYTHON COMMAND...: run a command beside a Ray cluster of two nodes on this machine, then end it.
# $RAY_ADDRESS is the cluster's, $SECOND_NODE holds the number of the second node's process. In a network namespace of its
# own: Ray listens on all addresses. As root.
set -euo pipefail
if [ -z "${IN_NAMESPACE:-}" ]; then
    IN_NAMESPACE=1 exec unshare -n "$0" "$@"
fi
folder=$(realpath -m "$1")
python=$2
shift 2
mkdir -p "$folder"
ip link set lo up
export RAY_USAGE_STATS_ENABLED=0
export RAY_health_check_initial_delay_ms=1000 RAY_health_check_period_ms=500
export RAY_health_check_timeout_ms=1000 RAY_health_check_failure_threshold=2
common=(--node-ip-address=127.0.0.1 --num-cpus=1 --num-gpus=0 --object-store-memory=80000000 --disable-usage-stats --block)
pids=()
finish() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    sleep 2
    for pid in "${pids[@]}"; do kill -9 -- "-$pid" 2>/dev/null || true; done
    rm -rf "${short:-/nowhere}"
}
trap finish EXIT
start() {
    local name=$1
    shift
    setsid "$python" -m ray.scripts.scripts start "$@" "${common[@]}" > "$folder/$name.out" 2>&1 < /dev/null &
    pids=("$!" "${pids[@]}")
}
export RAY_ADDRESS=127.0.0.1:26379
short=$(mktemp -d /tmp/ray.XXXX) # names of sockets have at most 107 bytes
start head --head --port=26379 --include-dashboard=false --temp-dir="$short"
for _ in $(seq 60); do (exec 3<> /dev/tcp/127.0.0.1/26379) 2>/dev/null && break; sleep 0.5; done
sleep 3
start second "--address=$RAY_ADDRESS"
export SECOND_NODE=${pids[0]}
for _ in $(seq 60); do grep -q "Ray runtime started" "$folder/second.out" 2>/dev/null && break; sleep 0.5; done
"$@"
