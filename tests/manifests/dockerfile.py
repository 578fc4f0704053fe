"""Runs a Dockerfile without a container engine: its steps, in order, in folders made from Debian packages.

Only what launch/docker/Dockerfile uses; anything else is refused. FROM debian:12-slim is what mmdebstrap makes of the same
packages; RUN is a chroot in namespaces of its own. Unlike an engine: no seccomp, the machine's network, no metadata but
what is returned.

  .venv/bin/python tests/manifests/dockerfile.py [NAME=VALUE...]      every stage, the build too (minutes), as docker build
                                                                      --build-arg NAME=VALUE; prints where the root is
"""
import dataclasses
import fcntl
import fnmatch
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "launch" / "docker" / "Dockerfile"
BASES = {"debian:12-slim": "bookworm"}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# In a mount and process namespace: what an engine gives a RUN step, and for pip the certificates that this machine trusts.
ENTER = r"""
set -eu
root=$1 folder=$2
shift 2
mount --make-rprivate /
mkdir -p "$root/proc" "$root/dev"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 dev "$root/dev"
for name in null zero full random urandom; do touch "$root/dev/$name"; mount --bind "/dev/$name" "$root/dev/$name"; done
ln -s /proc/self/fd "$root/dev/fd"
trusted=/etc/ssl/certs/ca-certificates.crt pip=
[ ! -r $trusted ] || { cp $trusted "$root/dev/ca.crt"; pip=PIP_CERT=/dev/ca.crt; }
mkdir "$root/dev/shm"; mount -t tmpfs shm "$root/dev/shm"
touch "$root/etc/resolv.conf"
mount --bind "$(realpath /etc/resolv.conf)" "$root/etc/resolv.conf"
exec chroot "$root" env -i PATH="$PATH" HOME=/root DEBIAN_FRONTEND=noninteractive $pip \
    ${http_proxy+http_proxy="$http_proxy"} ${https_proxy+https_proxy="$https_proxy"} sh -c 'cd "$0"; exec "$@"' "$folder" "$@"
"""


class Absent(Exception):
    """Something that this needs is not there: no network, no right, no program."""


@dataclasses.dataclass
class Image:
    """What the last stage ends as: its root and what an engine would note beside it."""
    root: pathlib.Path
    user: str
    command: list
    environment: dict
    workdir: str
    exposed: list


def instructions(path=DOCKERFILE):
    """[(word, rest)] of a Dockerfile."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.M)
    return [tuple(line.split(None, 1)) for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line.strip()]


def stages(path=DOCKERFILE):
    """[(name, base, [(word, rest)])]; the last is the image."""
    found = []
    for word, rest in instructions(path):
        if word == "FROM":
            words = rest.split()
            found.append((words[2] if len(words) == 3 and words[1] == "AS" else "", words[0], []))
        else:
            found[-1][2].append((word, rest))
    return found


def size_of(root):
    """Bytes of all files, a hard link once."""
    seen = {}
    for folder, _, names in os.walk(root):
        for name in names:
            info = os.lstat(os.path.join(folder, name))
            seen[info.st_dev, info.st_ino] = info.st_size
    return sum(seen.values())


def fingerprint(path):
    """Names, modes and contents below path."""
    digest = hashlib.sha256()
    paths = sorted(p for p in path.rglob("*")) if path.is_dir() else [path]
    for entry in paths:
        digest.update(f"{entry.relative_to(path)} {entry.lstat().st_mode:o}\n".encode())
        if entry.is_symlink():
            digest.update(os.readlink(entry).encode())
        elif entry.is_file():
            digest.update(entry.read_bytes())
    return digest.hexdigest()


def needs():
    """Raises Absent when this machine cannot do it."""
    if os.geteuid() != 0:
        raise Absent("a root of Debian packages needs root to make")
    for program in ("mmdebstrap", "unshare", "chroot"):
        if shutil.which(program) is None:
            raise Absent(f"no {program}")
    if subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True).returncode != 0:
        raise Absent("no right to make namespaces")


def make_base(suite, into):
    done = subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", suite, into], capture_output=True,
                          text=True)
    if done.returncode != 0:
        raise Absent(f"mmdebstrap found no packages: {done.stderr.strip().splitlines()[-1:]}")
    # As in the official image: what packages install must not start.
    policy = into / "usr" / "sbin" / "policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)


class Builder:
    """Keeps the result of each RUN under cache, by all that led to it; whatever the last build did not use is removed."""

    def __init__(self, cache, given=None, arguments=None):
        self.cache = cache
        self.arguments = arguments or {}
        self.given = given or {}  # {stage: folder}: taken instead of running the stage
        self.roots = {}
        self.used = set()
        self.ignored = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().split()

    def layer(self, key, parent, make):
        """The folder that make(folder) has turned a copy of parent into."""
        path = self.cache / key[:16]
        self.used.add(path.name)
        if not path.is_dir():
            partial = self.cache / "partial"
            shutil.rmtree(partial, ignore_errors=True)
            if parent is not None:
                subprocess.run(["cp", "-a", "--reflink=auto", parent, partial], check=True)
            else:
                partial.mkdir()
            make(partial)
            partial.rename(path)
        return path

    def source(self, rest):
        """(files, target, owner) of a COPY."""
        words = rest.split()
        options = dict(w[2:].split("=", 1) for w in words if w.startswith("--"))
        assert set(options) <= {"from", "chown"}, rest
        *names, target = [w for w in words if not w.startswith("--")]
        above = self.roots[options["from"]] if "from" in options else ROOT
        return [above / name.lstrip("/") for name in names], target, options.get("chown")

    def is_ignored(self, folder, names):
        here = pathlib.Path(folder)
        return {n for n in names for pattern in self.ignored
                if (fnmatch.fnmatch(n, pattern[3:]) if pattern.startswith("**/") else
                    here == ROOT and fnmatch.fnmatch(n, pattern))}

    def copy(self, root, workdir, rest):
        files, target, owner = self.source(rest)
        into = root / workdir.lstrip("/") / target if not target.startswith("/") else root / target.lstrip("/")
        into_folder = target.endswith("/") or target == "." or len(files) > 1
        for path in files:
            if path.is_dir():  # its contents
                from_context = path == ROOT or ROOT in path.parents and self.cache not in path.parents
                shutil.copytree(path, into, symlinks=True, dirs_exist_ok=True,
                                ignore=self.is_ignored if from_context else None)
            else:
                (into if into_folder else into.parent).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, into)
        if owner is not None:
            subprocess.run(["chown", "-R", owner, into], check=True)

    def run(self, root, shell, workdir, command):
        done = subprocess.run(["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, "sh", root, workdir,
                               *shell, command], capture_output=True, text=True, env={**os.environ, "PATH": PATH})
        assert done.returncode == 0, f"RUN {command}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        shutil.rmtree(root / "dev", ignore_errors=True)
        (root / "dev").mkdir()

    def stage(self, name, base, steps):
        image = Image(None, "0:0", [], {"PATH": PATH}, "/", [])
        shell, arguments = ["/bin/sh", "-c"], {}
        key, root, pending = hashlib.sha256(base.encode()).hexdigest(), None, []
        if base in BASES:
            root = self.layer(key, None, lambda into: (into.rmdir(), make_base(BASES[base], into)))
        elif base != "scratch":
            raise ValueError(f"FROM {base}: not known here")

        def apply(into, todo):
            for word, rest, where, how in todo:
                if word == "COPY":
                    self.copy(into, where, rest)
                elif word == "RUN":
                    self.run(into, how, where, rest)
                else:
                    (into / where.lstrip("/")).mkdir(parents=True, exist_ok=True)
        for word, rest in steps:
            key = hashlib.sha256(f"{key} {word} {rest}".encode()).hexdigest()
            if word == "SHELL":
                shell = json.loads(rest)
            elif word == "ARG":
                argument, value = rest.split("=", 1)
                arguments[argument] = self.arguments.get(argument, value)
                key = hashlib.sha256(f"{key} {arguments[argument]}".encode()).hexdigest()
            elif word == "CMD":
                image.command = json.loads(rest)
            elif word == "ENV":
                image.environment.update(w.split("=", 1) for w in rest.split())
            elif word == "USER":
                image.user = rest
            elif word == "EXPOSE":
                image.exposed += map(int, rest.split())
            elif word in ("COPY", "RUN", "WORKDIR"):
                if word == "WORKDIR":
                    image.workdir = rest
                if word == "COPY":
                    parts = [fingerprint(p) for p in self.source(rest)[0] if p != ROOT]
                    key = hashlib.sha256(f"{key} {parts}".encode()).hexdigest()
                exported = "".join(f"export {k}='{v}'; " for k, v in arguments.items()) if word == "RUN" else ""
                pending.append((word, exported + rest, image.workdir, shell))
                if word == "RUN":
                    root = self.layer(key, root, lambda into, todo=tuple(pending): apply(into, todo))
                    pending = []
            else:
                raise ValueError(f"{word}: not known here")
        image.root = self.layer(key, root, lambda into: apply(into, pending)) if pending else root
        return image

    def build(self):
        needs()
        self.cache.mkdir(parents=True, exist_ok=True)
        for name, base, steps in stages():
            if name in self.given:
                self.roots[name] = self.given[name]
            else:
                image = self.stage(name, base, steps)
                self.roots[name] = image.root
        for path in self.cache.iterdir():
            if path.name not in self.used:
                shutil.rmtree(path)
        return image


def build_with(binary_folder, cache):
    """The image with the weft of a build folder in place of the Dockerfile's own build stage. One caller at a time: tests
    that run beside each other share it."""
    staged = cache.parent / (cache.name + "-installed")
    with open(cache.parent / (cache.name + "-lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(staged, ignore_errors=True)
        (staged / "image/usr/local/lib/weft").mkdir(parents=True)
        subprocess.run(["cmake", "--install", binary_folder, "--strip", "--prefix", "/usr/local"], check=True,
                       capture_output=True, env={**os.environ, "DESTDIR": str(staged / "image")})
        return Builder(cache, {"build": staged}).build()


if __name__ == "__main__":
    made = Builder(ROOT / "build" / "image-whole", arguments=dict(word.split("=", 1) for word in sys.argv[1:])).build()
    print(f"{made.root}: {size_of(made.root) / 2**20:.1f} MiB")
