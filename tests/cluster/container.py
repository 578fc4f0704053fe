"""The first process of a container: makes its root and rights out of a JSON description, then becomes its program.

Started in new mount, process and (the pod's) network, host name and IPC namespaces; see kubelet.py. Standard library only.
"""
import ctypes
import json
import os
import pathlib
import signal
import subprocess
import sys

PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
LIBC = ctypes.CDLL(None, use_errno=True)


def mount(*words):
    subprocess.run(["mount", *map(str, words)], check=True)


def inside(root, path):
    return root / str(path).lstrip("/")


def bind(source, target, is_read_only):
    if pathlib.Path(source).is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    mount("--bind", source, target)
    if is_read_only:
        mount("-o", "remount,bind,ro", target)


def devices(root):
    mount("-t", "tmpfs", "-o", "mode=755", "dev", root / "dev")
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        bind("/dev/" + name, root / "dev" / name, False)
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"),
                         ("stderr", "/proc/self/fd/2"), ("ptmx", "pts/ptmx")):
        (root / "dev" / name).symlink_to(target)
    (root / "dev" / "pts").mkdir()
    mount("-t", "devpts", "-o", "newinstance,ptmxmode=0666,mode=0620", "devpts", root / "dev" / "pts")
    (root / "dev" / "shm").mkdir()
    mount("-t", "tmpfs", "-o", "size=64m,mode=1777", "shm", root / "dev" / "shm")  # a container's default


def make_root(spec):
    """The image under a layer of its own, as a container engine does it."""
    place = pathlib.Path("/run/container")
    mount("-t", "tmpfs", "-o", "mode=755", "container", place)
    for name in ("upper", "work", "root"):
        (place / name).mkdir()
    root = place / "root"
    mount("-t", "overlay", "-o", f"lowerdir={spec['image']},upperdir={place}/upper,workdir={place}/work", "overlay", root)
    mount("-t", "proc", "proc", root / "proc")
    mount("-t", "sysfs", "-o", "ro", "sysfs", root / "sys")
    devices(root)
    for source, target, is_read_only in spec["mounts"]:
        bind(source, inside(root, target), is_read_only)
    if spec["read_only"]:
        mount("-o", "remount,ro", root)
    return root


def give_up_rights(spec):
    if spec["no_new_privileges"]:
        assert LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    if spec["drop_all"]:
        for capability in range(64):
            LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.setgroups(spec["groups"])
    os.setresgid(*[spec["gid"]] * 3)
    os.setresuid(*[spec["uid"]] * 3)


def main():
    spec = json.loads(sys.argv[1])
    root = make_root(spec)
    os.chroot(root)
    os.chdir(spec["workdir"])
    give_up_rights(spec)
    os.umask(0o022)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvpe(spec["command"][0], spec["command"], spec["environment"])
    except OSError as error:
        print(f"{spec['command'][0]}: {error.strerror}", file=sys.stderr)
        sys.exit(128)


main()
