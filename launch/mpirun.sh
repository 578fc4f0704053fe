#!/usr/bin/env bash
# Runs weft over the hosts of a hostfile with mpirun, and keeps it running: sane flags always, waits for the hosts,
# starts the group again when it dies, drains it on SIGTERM. See --help.
#
# mpirun only starts processes here. On SIGTERM it would kill its ranks after a second; therefore the signal goes to the
# leader alone (by the pid it writes), which drains and ends the group, and mpirun ends by itself.
set -u

program=launch/mpirun.sh
hostfile=${WEFT_HOSTFILE:-}
ranks=${WEFT_RANKS:-}
wait_s=${WEFT_WAIT_HOSTS:-300}
restarts=${WEFT_RESTARTS:-}
log=${WEFT_RESTART_LOG:-}
interface=${WEFT_INTERFACE:-}
weft=${WEFT_BINARY:-}

usage()
{
    cat << 'EOF'
usage: launch/mpirun.sh [OPTION...] serve|run|... [WEFT OPTION...]

Starts weft on every host of a hostfile. Both Open MPI 4 and 5 are understood.

  --hostfile FILE    "HOST slots=N" a line [WEFT_HOSTFILE; /etc/mpi/hostfile where it exists; else this host]
  --ranks N          ranks in all [WEFT_RANKS; all slots]
  --wait SECONDS     how long to wait for names and ssh of every host [WEFT_WAIT_HOSTS; 300]
  --restarts N       how often serve is started again after a failure [WEFT_RESTARTS; no limit]; other commands: never
  --log FILE         keeps the reason of every end [WEFT_RESTART_LOG; none]
  --interface NAME   network between the hosts, for mpirun and weft: eth0 or 10.0.0.0/8 [WEFT_INTERFACE; by route]
  --weft FILE        the binary, at the same path on every host [WEFT_BINARY; build/weft, else the one in PATH]
  --dry-run          prints the mpirun command and ends

Variables named WEFT_*, UCX_*, NCCL_* and OMP_*, PATH and LD_LIBRARY_PATH reach every rank. SIGTERM and SIGINT let the
leader drain (weft serve --drain) before anything is killed.

What no restart cures is not tried for ever: a wrong call (2) not again; a start that its configuration makes impossible
(78: no such model, a damaged one ...) not again either, or three times more where an earlier start has been possible; a
port that is taken or memory that is short (75) three times more.

Exit status: that of the last run; 2 for a wrong call; 3 when hosts stayed away.
EOF
}

fail()
{
    echo "$program: $1" >&2
    exit "${2:-2}"
}

note()
{
    echo "$program: $1" >&2
    [ -z "$log" ] || printf '%s %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$1" >> "$log"
}

dry_run=false
while [ $# -gt 0 ]; do
    case $1 in
        --hostfile | --ranks | --wait | --restarts | --log | --interface | --weft)
            [ $# -ge 2 ] || fail "$1 needs a value"
            case $1 in
                --hostfile) hostfile=$2 ;;
                --ranks) ranks=$2 ;;
                --wait) wait_s=$2 ;;
                --restarts) restarts=$2 ;;
                --log) log=$2 ;;
                --interface) interface=$2 ;;
                --weft) weft=$2 ;;
            esac
            shift 2
            ;;
        --dry-run) dry_run=true; shift ;;
        -h | --help) usage; exit 0 ;;
        -*) fail "unknown option $1 (see --help); options of weft come after its command" ;;
        *) break ;;
    esac
done
[ $# -gt 0 ] || { usage >&2; exit 2; }
for pair in "ranks:$ranks" "wait:$wait_s" "restarts:$restarts"; do
    [[ ${pair#*:} =~ ^[0-9]*$ ]] || fail "--${pair%%:*}: expected a number, found '${pair#*:}'"
done
command=$1
if [ -z "$weft" ]; then
    weft=$(cd "$(dirname "$0")/.." && pwd)/build/weft
    [ -x "$weft" ] || weft=$(command -v weft) || fail "no weft: neither build/weft nor one in PATH; --weft names it"
fi
command -v mpirun > /dev/null || fail "no mpirun: install openmpi-bin"
[ -n "$hostfile" ] || [ ! -r /etc/mpi/hostfile ] || hostfile=/etc/mpi/hostfile
[ -z "$hostfile" ] || [ -r "$hostfile" ] || fail "--hostfile: cannot read $hostfile"

# hosts and their slots, in order; "host", "host slots=N" and "host:N" are the forms in the wild
hosts=()
slots=0
read_hostfile()
{
    local name rest n
    while read -r name rest; do
        [[ -n $name && $name != \#* ]] || continue
        n=1
        [[ $name != *:* ]] || { n=${name##*:}; name=${name%:*}; }
        [[ ! $rest =~ (^|[[:space:]])slots[[:space:]]*=[[:space:]]*([^[:space:]]*) ]] || n=${BASH_REMATCH[2]}
        [[ $n =~ ^0*[1-9][0-9]*$ ]] || fail "$hostfile: slots of $name: expected a number from 1 on, found '$n'"
        hosts+=("$name")
        slots=$((slots + n))
    done < "$hostfile"
    [ ${#hosts[@]} -gt 0 ] || fail "$hostfile names no host"
}
[ -z "$hostfile" ] || read_hostfile
[ -n "$ranks" ] || ranks=$slots
[ "$ranks" -gt 0 ] || ranks=1

# ---- waiting for the hosts ----

remote=(${OMPI_MCA_plm_rsh_agent:-ssh -o BatchMode=yes -o ConnectTimeout=5})

is_here()
{
    [ "$1" = localhost ] || [ "$1" = "$(hostname)" ] || [ "${1%%.*}" = "$(hostname)" ]
}

# Prints what is still missing of host $1; nothing when all is well.
host_lacks()
{
    if ! getent ahosts "$1" > /dev/null; then # unlike hosts, it takes an address that has no name
        echo "no address"
    elif ! is_here "$1" && ! "${remote[@]}" "$1" true < /dev/null > /dev/null 2>&1; then
        echo "no ssh"
    fi
}

wait_for_hosts()
{
    local deadline=$((SECONDS + wait_s)) host lack missing told=
    while :; do
        missing=
        while read -r host lack; do
            [ -z "$lack" ] || missing+="${missing:+, }$host ($lack)"
        done < <(for host in "${hosts[@]}"; do echo "$host $(host_lacks "$host")" & done; wait) # all at once
        [ -n "$missing" ] || return 0
        [ "$missing" = "$told" ] || note "waiting for $missing"
        told=$missing
        if [ $SECONDS -ge "$deadline" ]; then
            note "gave up after $wait_s s on: $missing"
            return 1
        fi
        sleep 1
    done
}

# ---- the command ----

pid_file=$(mktemp -u "${TMPDIR:-/tmp}/weft-leader-XXXXXX")

build_command()
{
    local name
    line=(mpirun -n "$ranks" --bind-to none)
    [ -z "$hostfile" ] || line+=(--hostfile "$hostfile")
    [ -n "$hostfile" ] || [ "$(nproc)" -ge "$ranks" ] || line+=(--oversubscribe)
    [ "$(id -u)" -ne 0 ] || line+=(--allow-run-as-root)
    # A daemon whose host fell off the network is noticed after seconds; the default is minutes.
    line+=(--mca oob_tcp_keepalive_time 2 --mca oob_tcp_keepalive_intvl 1 --mca oob_tcp_keepalive_probes 2)
    # Ranks that wait give their core away when there are more of them than cores.
    line+=(--mca mpi_yield_when_idle 1)
    if [ -n "$interface" ]; then
        line+=(--mca btl_tcp_if_include "$interface" --mca oob_tcp_if_include "$interface" -x "WEFT_INTERFACE=$interface")
    fi
    # sshd starts ranks with an empty environment: what they need must be named. Open MPI 5 ignores the names of 4.
    for name in PATH LD_LIBRARY_PATH $(compgen -e | grep -E '^(WEFT|UCX|NCCL|OMP)_' | grep -vx WEFT_INTERFACE); do
        case $name in
            WEFT_RANKS | WEFT_HOSTFILE | WEFT_WAIT_HOSTS | WEFT_RESTART* | WEFT_BINARY) ;;
            *) [ -z "${!name:-}" ] || line+=(-x "$name") ;;
        esac
    done
    export PRTE_MCA_plm_ssh_args=${PRTE_MCA_plm_ssh_args:-${OMPI_MCA_plm_rsh_args:-}}
    export PRTE_MCA_prte_keep_fqdn_hostnames=${PRTE_MCA_prte_keep_fqdn_hostnames:-1}
    line+=("$weft" "$@")
    [ "$command" != serve ] || line+=(--pid-file "$pid_file")
}

# ---- running, draining ----

mpirun_pid=
is_stopping=false

# Sends SIGTERM to the leader, on its host; false when nobody knows it.
signal_leader()
{
    local host=${hosts[0]:-localhost}
    local kill_it="test -s $pid_file && kill -TERM \$(cat $pid_file)"
    if is_here "$host"; then
        sh -c "$kill_it" 2> /dev/null
    else
        "${remote[@]}" "$host" "$kill_it" < /dev/null 2> /dev/null
    fi
}

# The first signal drains; a second, or one before there is a leader, goes to mpirun and ends all at once.
stop()
{
    if ! $is_stopping && [ -n "$mpirun_pid" ] && signal_leader; then
        note "stopping: the leader drains"
    elif [ -n "$mpirun_pid" ]; then
        kill -TERM "$mpirun_pid" 2> /dev/null
    fi
    is_stopping=true
}
trap stop TERM INT HUP

why()
{
    case $1 in
        0) echo "ended" ;;
        137) echo "a rank was killed (exit status 137)" ;;
        2) echo "wrong call of weft (exit status 2)" ;;
        75) echo "a port is taken, or memory is short (exit status 75)" ;;
        78) echo "it cannot run as it is configured (exit status 78)" ;;
        205) echo "a host or its daemon was lost (exit status 205)" ;;
        *) echo "exit status $1" ;;
    esac
}

# Runs the group once; $status is how it ended.
run_once()
{
    local begin=$SECONDS
    # Its own session: the terminal's Ctrl-C must not reach mpirun, whose way of stopping is not ours.
    setsid "${line[@]}" < /dev/null &
    mpirun_pid=$!
    while :; do # a trapped signal ends wait early
        wait "$mpirun_pid"
        status=$?
        kill -0 "$mpirun_pid" 2> /dev/null || break
    done
    mpirun_pid=
    uptime_s=$((SECONDS - begin))
}

build_command "$@"
if $dry_run; then
    printf '%q ' "${line[@]}"
    echo
    exit 0
fi
if [ "$command" != serve ]; then
    [ -z "$hostfile" ] || wait_for_hosts || exit 3
    exec "${line[@]}"
fi

# Whether to start again after status $1; the codes are those of launch/exit_code.c. How often in a row counts: it begins
# anew as soon as a group has ended in any other way, which also shows that a start was possible.
refused=0
refused_max=3
was_possible=false
is_curable()
{
    case $1 in
        2) return 1 ;;
        78) $was_possible || return 1 ;;
        75) ;;
        *) refused=0; was_possible=true; return 0 ;;
    esac
    refused=$((refused + 1))
    [ $refused -le $refused_max ]
}

pause_s=1
count=0
while :; do
    [ -z "$hostfile" ] || wait_for_hosts || exit 3
    ! $is_stopping || exit 0
    run_once
    rm -f "$pid_file"
    if $is_stopping || [ "$status" -eq 0 ]; then
        note "stopped after $uptime_s s: $(why "$status")"
        exit "$status"
    fi
    if ! is_curable "$status"; then
        note "failed after $uptime_s s: $(why "$status"): not started again"
        exit "$status"
    fi
    # A group that lived a while starts the back-off anew.
    [ "$uptime_s" -lt 60 ] || { pause_s=1; count=0; }
    count=$((count + 1))
    if [ -n "$restarts" ] && [ "$count" -gt "$restarts" ]; then
        note "failed after $uptime_s s: $(why "$status"); $restarts restarts were allowed"
        exit "$status"
    fi
    note "failed after $uptime_s s: $(why "$status"); starting again in $pause_s s (restart $count)"
    for _ in $(seq $((pause_s * 10))); do
        ! $is_stopping || exit "$status"
        sleep 0.1
    done
    pause_s=$((pause_s * 2 > 30 ? 30 : pause_s * 2))
done
