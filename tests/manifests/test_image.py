"""launch/docker without a container engine: the Dockerfile's steps in a chroot (dockerfile.py), what comes of them, its sshd."""
import os
import re
import shutil
import socket
import subprocess

import dockerfile
import pytest
from crd import LAUNCH, ROOT

WEFT = (ROOT / os.environ.get("WEFT_BUILD", "build")).resolve() / "weft"
DOCKER = LAUNCH / "docker"


@pytest.fixture(scope="module")
def image():
    """The image, of the Debian packages and of the weft that was built here."""
    if not WEFT.exists():
        pytest.skip(f"no {WEFT}: build it first")
    try:
        return dockerfile.build_with(WEFT.parent, WEFT.parent / "image")
    except dockerfile.Absent as reason:
        pytest.skip(f"no image: {reason}")


def inside(image, *command):
    return subprocess.run(["chroot", image.root, *command], capture_output=True, text=True, timeout=60,
                          env=image.environment)


def test_image_holds_the_roles_and_little_else(image):
    """69 MiB when this was written, 75 with the CUDA module; a library that nothing uses, or a lost one, shows here."""
    assert 40 < dockerfile.size_of(image.root) / 2**20 < 80
    assert (image.user, image.command[:2], image.exposed) == ("1000:1000", ["weft", "serve"], [9000, 9001])
    for program in ("weft", "weft-mpirun", "mpirun", "orted", "ssh", "/usr/sbin/sshd", "sleep", "bash"):
        assert inside(image, "sh", "-c", f"command -v {program}").returncode == 0, program
    for program in ("apt-get", "dpkg", "perl", "gcc", "su", "mount"):
        assert inside(image, "sh", "-c", f"command -v {program}").returncode != 0, program
    assert inside(image, "weft-mpirun", "--dry-run", "--ranks", "2", "serve").stdout.startswith("mpirun -n 2 ")
    assert os.stat(image.root / "home/mpiuser").st_uid == 1000


def test_nothing_in_the_image_lacks_a_library(image):
    files = [p for p in image.root.rglob("*") if p.is_file() and not p.is_symlink() and
             (".so" in p.name or os.access(p, os.X_OK))]
    elf = ["/" + str(p.relative_to(image.root)) for p in files if p.open("rb").read(4) == b"\x7fELF"]
    assert len(elf) > 200
    done = inside(image, "ldd", *elf)
    assert "libgrpc.so" in done.stdout and "not found" not in done.stdout + done.stderr


def test_nothing_in_the_image_gives_rights(image):
    modes = {p: p.lstat() for p in image.root.rglob("*")}
    assert [p for p, s in modes.items() if s.st_mode & 0o6000 and not p.is_symlink()] == []
    assert [p for p, s in modes.items() if s.st_mode & 0o002 and not p.is_symlink()] == [image.root / "tmp"]
    assert not list((image.root / "etc/ssh").glob("ssh_host_*"))


def test_packages_of_the_image_are_named_with_their_copyright(image):
    status = (image.root / "var/lib/dpkg/status").read_text()
    names = set(re.findall(r"^Package: (.*)$", status, re.M))
    assert image_packages() - names == set()
    assert all((image.root / "usr/share/doc" / name / "copyright").is_file() for name in names)


def image_packages():
    done = subprocess.run(["bash", "-euc", '. launch/packages.sh; printf %s "$weft_packages_image"'], cwd=ROOT,
                          capture_output=True, text=True, check=True)
    return {line.split("|")[0] for line in done.stdout.split("\n") if line}


def package_of(path):
    # /lib is a link to /usr/lib; dpkg knows some files by one name and some by the other.
    for name in (path, os.path.realpath(path), "/usr" + path):
        done = subprocess.run(["dpkg", "-S", name], capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout.split(":")[0]
    return None


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="not Debian: no dpkg")
def test_run_time_packages_are_those_the_binary_needs():
    if not WEFT.exists():
        pytest.skip(f"no {WEFT}: build it first")
    needed = re.findall(r"NEEDED\s+(\S+)", subprocess.run(["objdump", "-p", WEFT], capture_output=True, text=True,
                                                          check=True).stdout)
    loaded = dict(re.findall(r"(\S+) => (/\S+)", subprocess.run(["ldd", WEFT], capture_output=True, text=True,
                                                                check=True).stdout))
    owners = {name: package_of(loaded[name]) for name in needed if name in loaded}
    assert len(owners) > 5 and all(owners.values()), owners
    # Sanitizer builds bring their own run time; libc6 is in every image.
    direct = {p for p in owners.values() if not re.match(r"libc6|libgcc|libasan|libubsan|libtsan", p)}
    listed = image_packages()
    assert direct <= listed, f"launch/packages.sh: weft_packages_image lacks {sorted(direct - listed)}"
    # What is listed without being linked: programs, and UCX, which comm/ucx opens at run time.
    assert {p for p in listed - direct if p.startswith("lib")} == {"libucx0"}
    known = subprocess.run(["dpkg-query", "-W", "libucx0"], capture_output=True, text=True)
    if known.returncode == 0:
        assert any("libucp.so.0" in line for line in subprocess.run(
            ["dpkg", "-L", "libucx0"], capture_output=True, text=True).stdout.split())


def test_dockerfile_copies_what_exists_and_ends_as_a_number():
    lines = re.sub(r"\\\n", " ", (DOCKER / "Dockerfile").read_text()).split("\n")
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY") and "--from" not in line]
    assert copied and all((ROOT / source).exists() for sources in copied for source in sources)
    assert [line for line in lines if line.startswith("USER")] == ["USER 1000:1000"]
    for command in (line[4:] for line in lines if line.startswith("RUN ")):
        assert subprocess.run(["bash", "-n", "-c", command]).returncode == 0, command


# In a mount namespace of its own: mpiuser exists, its .ssh is a mounted Secret as a pod with fsGroup sees it: a directory that
# all may write to, links, files of root's that the group may read.
POD = r"""
set -eu
{ echo 'mpiuser:x:1000:1000::/home/mpiuser:/bin/bash'; cat /etc/passwd; } > passwd
{ echo 'mpiuser:x:1000:'; cat /etc/group; } > group
mount --make-rprivate /
mount --bind passwd /etc/passwd
mount --bind group /etc/group
mount -t tmpfs tmpfs /home
mount -t tmpfs tmpfs /etc/ssh
mkdir -p /home/mpiuser/.ssh/..data
cp "$DOCKER/sshd_config" "$DOCKER/ssh_config" /etc/ssh/
sed -i "s/^\( *\)Port 2222/\1Port $PORT/" /etc/ssh/sshd_config /etc/ssh/ssh_config
cd /home/mpiuser/.ssh
ssh-keygen -q -t ecdsa -b 521 -m PEM -N '' -f ..data/id_rsa
cp ..data/id_rsa.pub ..data/authorized_keys
chgrp -R 1000 ..data; chmod 640 ..data/*
ln -s ..data/id_rsa ..data/id_rsa.pub ..data/authorized_keys .
chmod 3777 .
as_pod=(setpriv --reuid 1000 --regid 1000 --clear-groups --no-new-privs --bounding-set=-all)
"${as_pod[@]}" /usr/sbin/sshd -De & sshd=$!
trap 'kill $sshd' EXIT
for _ in $(seq 300); do
    if "${as_pod[@]}" ssh -o BatchMode=yes 127.0.0.1 'id -un; command -v orted' 2> /tmp/last; then exit 0; fi
    sleep 0.1
done
cat /tmp/last
exit 1
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a mount namespace with another user in it")
@pytest.mark.skipif(shutil.which("setpriv") is None or not os.path.exists("/usr/sbin/sshd"), reason="no sshd here")
def test_sshd_answers_without_root_and_without_privileges(tmp_path):
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0:
        pytest.skip("no mount namespaces here")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = POD.replace("/tmp/last", str(tmp_path / "last"))
    done = subprocess.run(["unshare", "-m", "bash", "-c", script], cwd=tmp_path, capture_output=True, text=True,
                          timeout=120, env={**os.environ, "PORT": str(port), "DOCKER": str(DOCKER)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["mpiuser", "/usr/bin/orted"]
