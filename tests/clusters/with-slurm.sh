#!/usr/bin/env bash
# with-slurm.sh EMPTY-FOLDER COMMAND...: run a command beside a Slurm of two nodes on this machine, then end it.
# In a network namespace of its own, so that nothing can be reached from outside. As root. Without accounting, as many
# clusters are: what a launcher must live with.
set -euo pipefail
if [ -z "${IN_NAMESPACE:-}" ]; then
    IN_NAMESPACE=1 exec unshare -n "$0" "$@"
fi
folder=$(realpath -m "$1")
shift
mkdir -p "$folder"/{munge,state,spool/n1,spool/n2,log}
chmod 755 "$folder" "$folder/munge"
ip link set lo up
ip addr add 192.0.2.77/32 dev lo # with 127.0.0.1 alone, names are not looked up
host=$(hostname -s)
cores=$(($(nproc) / 2 > 0 ? $(nproc) / 2 : 1))
export SLURM_CONF=$folder/slurm.conf
cat > "$SLURM_CONF" <<CONF
ClusterName=kdbench
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort=26817
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
ReturnToService=2
JobRequeue=1
SlurmdTimeout=10
KillWait=20
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=26821 CPUs=$cores RealMemory=4000 State=UNKNOWN
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=26822 CPUs=$cores RealMemory=4000 State=UNKNOWN
PartitionName=test Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
CONF
pids=()
finish() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    sleep 1
    for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
}
trap finish EXIT
start() { # name, command: apart from this shell's input and output, or a pipe would stay open
    local name=$1
    shift
    setsid "$@" > "$folder/log/$name.out" 2>&1 < /dev/null &
    pids=("$!" "${pids[@]}")
}
head -c 1024 /dev/urandom > "$folder/munge/key"
chmod 600 "$folder/munge/key"
start munged munged -F --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
    --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" --num-threads=4
for _ in $(seq 50); do [ -S "$folder/munge/socket" ] && break; sleep 0.1; done
start slurmctld slurmctld -D -i
for node in n1 n2; do start "$node" slurmd -D -N "$node"; done
for _ in $(seq 100); do
    [ "$(timeout 2 sinfo -h -N -o %T 2>/dev/null | grep -c ^idle)" = 2 ] && break
    sleep 0.1
done
"$@"
