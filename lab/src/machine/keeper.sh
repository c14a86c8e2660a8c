#!/bin/sh
# Keeps one machine: boots it and stops it on words read from standard input, and removes every trace of it at the end.
#
# The end is the end of standard input. The lab holds the other end of that pipe, so a test that panics, is interrupted
# or is killed outright stops its machine as surely as one that drops it. A parent-death signal from the lab would not
# do: it fires when the *thread* that started the process ends, and tests start machines on threads.
#
# usage: keeper.sh DIRECTORY CGROUP, in a network namespace of its own. That namespace is the machine's network; it
# lives as long as this script, so what listens in it for the machine (a control plane) outlives the machine's reboots.
set -u
directory=$1 cgroup=$2
supervisor=

boot() {
    mkdir -p "$cgroup"
    # Before a reboot the clocks had counted up; after it a real machine starts near zero again.
    read -r uptime _ </proc/uptime
    offset=-${uptime%%.*}
    # Descriptor 3 is the lab's end; the machine's own output goes to its console.
    setpriv --pdeathsig KILL \
        unshare --mount --pid --uts --ipc --time --monotonic "$offset" --boottime "$offset" \
        --propagation private --fork --kill-child \
        sh "$directory/init.sh" "$directory" "$cgroup" 3>&1 >>"$directory/console.log" 2>&1 </dev/null &
    supervisor=$!
}

# Power goes: every process of the machine dies at once.
stop() {
    [ -n "$supervisor" ] || return 0
    if populated && [ -w "$cgroup/cgroup.kill" ]; then
        # Leaves the supervisor, which reaps PID 1; its own parent might leave a zombie lying about.
        echo 1 >"$cgroup/cgroup.kill"
    else
        # Before Linux 5.14, or before init got there: PID 1 dies with its supervisor (--kill-child). Not reaped before
        # `wait`, the supervisor's number cannot have gone to another process.
        kill -KILL "$supervisor" 2>/dev/null
    fi
    wait "$supervisor" 2>/dev/null
    supervisor=
    while populated; do sleep 0.01; done
    remove_cgroup
}

populated() {
    grep -q 'populated 1' "$cgroup/cgroup.events" 2>/dev/null
}

remove_cgroup() {
    [ -d "$cgroup" ] && find "$cgroup" -depth -type d -exec rmdir {} \; 2>/dev/null
    return 0
}

# Signals meant for the lab reach the lab; this script ends when the lab does.
trap '' HUP INT TERM
ip link set lo up || exit 1
while read -r word; do
    case $word in
        boot) boot ;;
        stop) stop && echo stopped ;;
        # The machine was asked to power off and does so in its own time.
        wait)
            wait "$supervisor"
            stop && echo stopped
            ;;
    esac
done
stop
rm -rf --one-file-system "$directory"
