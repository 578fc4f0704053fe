#!/usr/bin/env bash
# Collects into FOLDER what the roles of the image need of this Debian system, and nothing else: the programs and plugins
# below, the libraries that those are linked to, and for each package a file came from its copyright and its entry in dpkg's
# list (scanners read it). No package manager, no perl, no manuals.
#
#   launch/docker/collect.sh FOLDER
set -euo pipefail

# Beside the ranks: what mpirun.sh and the preStop hooks call, and a little to look around with in a running pod.
programs='
bash sh grep sed awk hostname getent ldd setsid ps pgrep top free
mpirun orted ompi_info
ssh ssh-keygen sshd
weft weft-mpirun
'
# Opened at run time, so that no program is linked to them. Of hwloc only PCI: its others are for X11, OpenCL and XML files
# (it has a reader of its own), and bring 45 MB of libraries.
library=/usr/lib/$(uname -m)-linux-gnu
plugins="
$library/openmpi/lib/openmpi3
$library/pmix2
$library/ucx
$library/libibverbs
$library/hwloc/hwloc_pci.so
$library/libucp.so.0
$library/libnss_dns.so.2
$library/libnss_files.so.2
$library/libgcc_s.so.1
"
data='
/bin /sbin /lib /lib64
/etc/passwd /etc/group /etc/nsswitch.conf /etc/host.conf /etc/os-release /etc/debian_version
/etc/ld.so.conf /etc/ld.so.conf.d /etc/openmpi /etc/libibverbs.d /etc/ssh/sshd_config /etc/ssh/ssh_config /etc/ssh/ssh_config.d
/lib/terminfo/x/xterm /usr/lib/locale/C.utf8 /usr/share/openmpi
/usr/local/lib/weft /usr/local/share/weft /home/mpiuser
'

into=$1
mkdir -p "$into"

# Follows the links of $1, and prints each of them and the end, all by the names they have since /bin became /usr/bin.
link_chain()
{
    local path=$1 to
    while :; do
        [ "$(dirname "$path")" = / ] || path=$(realpath "$(dirname "$path")")/$(basename "$path")
        echo "$path"
        [ -L "$path" ] || return 0
        to=$(readlink "$path")
        [[ $to = /* ]] || to=$(dirname "$path")/$to
        path=$to
    done
}

roots()
{
    local name
    for name in $programs; do
        command -v "$name" > /dev/null || { echo "collect.sh: no program $name" >&2; return 1; }
        type -P "$name"
    done
    sed 's#^/bin/#/usr/bin/#' /var/lib/dpkg/info/coreutils.list | grep -E '^/usr/s?bin/.'
    for name in $plugins $data; do
        [ -e "$name" ] || { echo "collect.sh: no $name" >&2; return 1; }
        if [ -d "$name" ] && [ ! -L "$name" ]; then
            find "$name" -name .ssh -prune -o \( -type f -o -type l \) -print
        else
            echo "$name"
        fi
    done
}

list=$(mktemp)
roots | while read -r path; do link_chain "$path"; done | sort -u > "$list"
# Links to what is no library and no program make ldd complain; what it cannot find would be missing here as well.
xargs -a "$list" ldd 2> /dev/null | sed -n 's/.* => \(\/[^ ]*\) .*/\1/p; s/^\t\(\/[^ ]*\) .*/\1/p' | sort -u |
    while read -r path; do link_chain "$path"; done > "$list.libraries" || true
sort -u "$list" "$list.libraries" -o "$list"
tar -C / --no-recursion -cPf - -T "$list" | tar -C "$into" -xpf - 2> /dev/null

mkdir -p "$into/var/lib/dpkg" "$into"/{dev,proc,sys,run,etc,tmp}
chmod 1777 "$into/tmp"
cp -a --parents /home/mpiuser/.ssh "$into"
chown --reference=/home/mpiuser "$into/home/mpiuser"
ldconfig -r "$into"

# Which packages are the files of? dpkg's lists have the names from before /bin became /usr/bin.
merged='s#^/\(bin\|sbin\|lib\|lib64\)/#/usr/\1/#'
while read -r path; do [ -d "$path" ] || echo "$path"; done < "$list" > "$list.files"
for names in /var/lib/dpkg/info/*.list; do
    package=$(basename "$names" .list)
    if sed "$merged" "$names" | grep -xFf "$list.files" > /dev/null; then
        echo "${package%:*}"
        cp -aL --parents "/usr/share/doc/${package%:*}/copyright" "$into"
    fi
done > "$list.packages"
xargs -a "$list.packages" dpkg-query -s > "$into/var/lib/dpkg/status"
rm -f "$list" "$list".*
