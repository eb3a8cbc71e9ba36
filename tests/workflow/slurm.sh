#!/usr/bin/env bash
# A SLURM of one node on this machine, for tests of the cluster profile: sudo tests/workflow/slurm.sh start|stop
# Debian's packages suffice: apt-get install slurm-wlm munge. It overwrites no site's configuration and leaves nothing.
# The node claims what the profile asks for, whatever the machine has: 8 CPUs, 64 GB and two GPUs without a device.
set -euo pipefail

CONF=/etc/slurm/slurm.conf # in its default place: SLURM_CONF does not reach the jobs
GRES=/etc/slurm/gres.conf
MARK='# written by tests/workflow/slurm.sh'
STATE=/run/slurm-for-tests

cannot() { # as far as this machine is concerned, which a test takes for a reason to be skipped
    echo "error: $*" >&2
    exit 77
}

patiently() { # patiently COMMAND...: until it succeeds, 20 s at most
    for _ in {1..100}; do
        "$@" > /dev/null 2>&1 && return
        sleep 0.2
    done
    return 1
}

ended() { ! kill -0 "$1"; }

idle() { [ -z "$(squeue --noheader)" ]; }

ready() { [ "$(sinfo --noheader --format %T)" = idle ]; }

start() {
    [ ! -e "$CONF" ] || cannot "$CONF: this script's SLURM runs already; $0 stop ends it"
    mkdir -p "$STATE/state" "$STATE/spool" "$(dirname "$CONF")"
    chmod 755 "$STATE"
    # a munge of its own: with other keys and another socket than the machine's, should it have one
    head -c 128 /dev/urandom > "$STATE/munge.key"
    chmod 400 "$STATE/munge.key"
    munged --key-file "$STATE/munge.key" --socket "$STATE/munge.socket" --pid-file "$STATE/munged.pid" \
        --log-file "$STATE/munged.log" --seed-file "$STATE/munge.seed"
    cat > "$CONF" << END
$MARK
ClusterName=tests
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
AuthInfo=socket=$STATE/munge.socket
CredType=cred/munge
StateSaveLocation=$STATE/state
SlurmdSpoolDir=$STATE/spool
SlurmctldPidFile=$STATE/slurmctld.pid
SlurmdPidFile=$STATE/slurmd.pid
SlurmctldLogFile=$STATE/slurmctld.log
SlurmdLogFile=$STATE/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0
KillWait=10
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=8 RealMemory=64000 Gres=gpu:2
PartitionName=main Nodes=ALL Default=YES State=UP
END
    printf "Name=gpu File=/dev/%s\n" null zero > "$GRES"
    slurmctld
    slurmd
    patiently ready || {
        tail -n 20 "$STATE"/*.log >&2
        stop
        echo "error: SLURM did not start; above are the ends of its logs" >&2
        exit 1
    }
    echo "SLURM runs: sinfo, squeue, scontrol show job; its logs: $STATE/*.log; $0 stop ends it"
}

stop() {
    [ -e "$CONF" ] || return 0
    scancel --user root 2> /dev/null || true
    patiently idle || true
    pids=$(cat "$STATE"/*.pid 2> /dev/null) || true
    [ -z "$pids" ] || kill $pids 2> /dev/null || true
    for pid in $pids; do
        patiently ended "$pid" || kill -KILL "$pid" || true
    done
    rm -rf "$CONF" "$GRES" "$STATE"
}

[ "$(id -u)" = 0 ] || cannot "a SLURM node is root's to start: sudo $0 ${1:-start}"
for program in slurmctld slurmd munged; do
    command -v "$program" > /dev/null || cannot "$program: not installed; apt-get install slurm-wlm munge"
done
if [ -e "$CONF" ] && [ "$(head -n 1 "$CONF")" != "$MARK" ]; then
    cannot "$CONF: another SLURM's; this script would overwrite it. Take another machine, or test on that SLURM itself"
fi
case "${1:-}" in
    start) start ;;
    stop) stop ;;
    *) echo "usage: $0 start|stop" >&2 && exit 2 ;;
esac
