#!/usr/bin/env bash
# Several "hosts" on one machine: each has its own network, host name, /dev/shm, /sys and sshd, on one bridge.
#   lab.sh N COMMAND...    makes hosts node0..node(N-1), runs COMMAND beside them, takes all away; COMMAND's exit status
# Host I is 10.77.0.(10+I) and fd77::(10+I) (in hexadecimal digits: fd77::10 is host 0), its interface eth0; with
#   LAB_WIRE="MBIT US [MTU]"  also 10.78.0.(10+I) and fd78::(10+I), its interface "wire": a second network of that rate and
#                          one-way delay, in which IP packets larger than MTU vanish (wire.c; build/lab_wire)
#   LAB_FAMILY=4 or 6      no addresses of the other family
#   LAB_SLOTS=N            slots per host in the hostfile
# COMMAND finds in its environment:
#   LAB                    a folder: hostfile, and the programs below
#   $LAB/on I CMD...       runs CMD on host I
#   $LAB/link I up|down    its cable
# and the variables that make mpirun start its daemons by ssh between the hosts ($LAB/environment: the same, to source).
# $LAB/ready exists once all hosts stand.
#
# Everything lives in namespaces of this script (network, mounts, processes, /run): however it ends, even by SIGKILL, the
# kernel takes every process, mount and interface away. Nothing of the machine itself is touched.
# Needs root, iproute2, openssh-server. Exit 77, with the reason, where that is missing.
set -eu

if [ "${LAB_INSIDE:-}" != yes ]; then
    skip() { echo "SKIPPED: $1"; exit 77; }
    [ "$(id -u)" -eq 0 ] || skip "network namespaces need root"
    for program in unshare nsenter ip ssh ssh-keygen mpirun; do
        command -v "$program" > /dev/null || skip "no $program"
    done
    [ -x /usr/sbin/sshd ] || skip "no sshd"
    if [ -n "${LAB_WIRE:-}" ]; then
        LAB_WIRE_PROGRAM=$(realpath "${WEFT_BUILD:-$(dirname "$0")/../../../build}/lab_wire")
        export LAB_WIRE_PROGRAM
        [ -x "$LAB_WIRE_PROGRAM" ] || skip "no $LAB_WIRE_PROGRAM"
        [ -w /dev/net/tun ] || skip "no /dev/net/tun"
    fi
    unshare --mount --net --uts --pid --fork true 2> /dev/null || skip "no right to make namespaces"
    unshare --net sh -c 'ip link add name labtest type bridge' 2> /dev/null || skip "no bridges in this kernel"
    export LAB_INSIDE=yes
    exec unshare --mount --net --pid --fork --kill-child --mount-proc "$0" "$@"
fi

count=$1
shift
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/sshd /run/lab/tmp
# bash reads this for every command that comes by ssh: seconds, or a lock that a killed rank left behind.
[ ! -e ~/.bashrc ] || mount --bind /dev/null ~/.bashrc
export LAB=/run/lab
ip link set lo up
ip link add bridge type bridge
ip link set bridge up

ssh-keygen -q -t ecdsa -b 521 -N '' -f "$LAB/id"
ssh-keygen -q -t ed25519 -N '' -f "$LAB/hostkey"
cp "$LAB/id.pub" "$LAB/authorized_keys"
echo "127.0.0.1 localhost" > "$LAB/hosts"
# Of host I, in both families as far as wanted.
addresses() # NETWORK I
{
    [ "${LAB_FAMILY:-4}" != 4 ] || echo "10.$1.0.$((10 + $2))/24"
    [ "${LAB_FAMILY:-6}" != 6 ] || echo "fd$1::$((10 + $2))/64"
}
give_addresses() # NETWORK I INTERFACE
{
    local address
    for address in $(addresses "$1" "$2"); do
        case $address in
            *:*) "$LAB/on" "$2" ip addr add "$address" dev "$3" nodad ;;
            *) "$LAB/on" "$2" ip addr add "$address" dev "$3" ;;
        esac
    done
}
for i in $(seq 0 $((count - 1))); do
    echo "$(addresses 77 "$i" | head -n 1 | cut -d/ -f1) node$i" >> "$LAB/hosts"
    echo "node$i slots=${LAB_SLOTS:-1}" >> "$LAB/hostfile"
done

cat > "$LAB/host" << 'END'
#!/bin/sh
# The first process of a host: sets up what only it sees, then stays.
hostname "node$1"
mount -t tmpfs -o size=1g shm /dev/shm
mount --bind "$LAB/hosts" /etc/hosts
# UCX finds TCP devices in /sys/class/net: sysfs must belong to this network namespace.
mount -t sysfs sysfs /sys
ip link set lo up
touch "$LAB/ready$1"
exec sleep infinity
END
cat > "$LAB/on" << 'END'
#!/bin/sh
i=$1
shift
exec nsenter --target "$(cat "$LAB/pid$i")" --net --uts --mount --wdns="$PWD" "$@"
END
cat > "$LAB/link" << 'END'
#!/bin/sh
exec ip link set "port$1" "$2"
END
cat > "$LAB/rsh" << END
#!/bin/sh
exec ssh -F $LAB/ssh_config "\$@"
END
cat > "$LAB/ssh_config" << END
Host node*
    User root
    IdentityFile $LAB/id
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
END
chmod +x "$LAB/host" "$LAB/on" "$LAB/link" "$LAB/rsh"

for i in $(seq 0 $((count - 1))); do
    unshare --net --uts --mount --propagation private "$LAB/host" "$i" < /dev/null > "$LAB/log$i" 2>&1 &
    echo $! > "$LAB/pid$i"
done
for i in $(seq 0 $((count - 1))); do
    for _ in $(seq 3000); do
        [ ! -e "$LAB/ready$i" ] || break
        sleep 0.01
    done
    [ -e "$LAB/ready$i" ] || { echo "host $i did not start:" >&2; cat "$LAB/log$i" >&2; exit 1; }
    ip link add "port$i" type veth peer name eth0 netns "$(cat "$LAB/pid$i")"
    ip link set "port$i" master bridge up
    give_addresses 77 "$i" eth0
    "$LAB/on" "$i" ip link set eth0 up
    cat > "$LAB/sshd_config$i" << END
ListenAddress node$i
HostKey $LAB/hostkey
AuthorizedKeysFile $LAB/authorized_keys
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PidFile none
MaxStartups 100:30:200
END
    "$LAB/on" "$i" /usr/sbin/sshd -f "$LAB/sshd_config$i" -E "$LAB/sshd_log$i"
done
# sshd listens a moment after it has gone into the background.
for i in $(seq 0 $((count - 1))); do
    for _ in $(seq 3000); do
        ! grep -qs "Server listening" "$LAB/sshd_log$i" || break
        sleep 0.01
    done
done

if [ -n "${LAB_WIRE:-}" ]; then
    read -r rate delay mtu <<< "$LAB_WIRE"
    : > "$LAB/wire.log"
    "$LAB_WIRE_PROGRAM" "$rate" "$delay" "${mtu:-0}" $(seq -f "$LAB/pid%g" 0 $((count - 1)) | xargs cat) > "$LAB/wire.log" 2>&1 &
    for _ in $(seq 3000); do
        ! grep -q ready "$LAB/wire.log" || break
        sleep 0.01
    done
    grep -q ready "$LAB/wire.log" || { cat "$LAB/wire.log" >&2; exit 1; }
    for i in $(seq 0 $((count - 1))); do
        give_addresses 78 "$i" wire
        "$LAB/on" "$i" ip link set wire up
    done
fi

# What the MPI operator of Kubernetes sets, so that the same names are tested; and binding off: mpirun would bind the
# first rank of every host to the same core. One interface: docker's and loopback's addresses are the same everywhere.
# A daemon whose host fell off the network is given up after seconds, not minutes. Sessions lie in this lab's own /run:
# in /tmp those of another lab, with the same names and process ids, would be in the way.
cat > "$LAB/environment" << END
export LAB=$LAB
export OMPI_MCA_plm_rsh_agent=$LAB/rsh OMPI_MCA_orte_keep_fqdn_hostnames=true
export OMPI_MCA_orte_default_hostfile=$LAB/hostfile OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_MCA_btl_tcp_if_include=eth0 OMPI_MCA_oob_tcp_if_include=eth0
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_orte_tmpdir_base=$LAB/tmp
export OMPI_MCA_oob_tcp_keepalive_time=2 OMPI_MCA_oob_tcp_keepalive_intvl=1 OMPI_MCA_oob_tcp_keepalive_probes=2
END
. "$LAB/environment"
touch "$LAB/ready"

status=0
"$@" || status=$?
exit $status
