#!/usr/bin/env python3
"""House rules that a machine can check. usage: check.py BUILD_FOLDER; run from anywhere, standard library only.

Every rule_* function returns a list of findings; none means the rule holds. See README.md in this folder.
"""
import pathlib
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 90

# Mutable objects of the library that are meant to be: the log (log.h says why).
GLOBALS_ALLOWED = {"log_state", "thread_rank", "thread_last_error", "thread_is_quiet"}


def tracked(*suffixes):
    names = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                           capture_output=True, check=True).stdout.decode().split("\0")
    return sorted(ROOT / n for n in names if n.endswith(suffixes) and (ROOT / n).is_file())


def relative(path):
    return str(path.relative_to(ROOT))


def sources():
    return tracked(".c", ".h", ".cu")


def rule_format(_build):
    """clang-format 14 leaves every file as it is."""
    found = []
    files = [str(p) for p in sources()]
    for i in range(0, len(files), 50):
        done = subprocess.run(["clang-format-14", "--dry-run", *files[i:i + 50]], capture_output=True, text=True)
        found += sorted({line.split(":")[0] for line in done.stderr.splitlines() if "warning" in line})
    return [f"{f}: not formatted (clang-format-14 -i)" for f in found]


def is_cuda(header):
    """Headers of the CUDA module are C++, except those that libweft includes too."""
    return "cuda" in header.parts and header.name not in ("module.h", "nvml.h")


def compile_alone(job):
    compiler, header = job
    text = f'#include "{header}"\n'
    language = "c++" if "++" in compiler else "c"
    flags = ["-std=gnu11"] if language == "c" else ["-std=c++17"]
    if is_cuda(header):
        flags += ["-DWEFT_CUDA_EMULATED", "-Wno-unknown-pragmas", f"-I{ROOT}/tests"]
    done = subprocess.run([compiler, "-x", language, *flags, "-Wall", "-Wextra", "-Werror", "-fsyntax-only",
                           f"-I{ROOT}/include", f"-I{ROOT}/runtime",
                           f"-I{ROOT}/{relative(header).split('/')[0]}", f"-I{header.parent}", "-"],
                          input=text, capture_output=True, text=True)
    return [] if done.returncode == 0 else [f"{relative(header)}: {compiler}: {done.stderr.splitlines()[0]}"]


def rule_headers_compile_alone(_build):
    """Headers alone: public ones in C with both compilers, the embedders' in C++ too, private ones with gcc, CUDA's
    as the emulator has them."""
    jobs = [("gcc", h) for h in tracked(".h") if "tests" not in h.parts and not is_cuda(h)]
    jobs += [("g++", h) for h in tracked(".h") if "tests" not in h.parts and is_cuda(h)]
    jobs += [("clang-14", h) for h in tracked(".h") if relative(h).startswith("include/")]
    jobs += [("g++", ROOT / "include/weft" / name) for name in ("weft.h", "status.h", "log.h")]
    with ThreadPoolExecutor(2) as pool:
        return [line for lines in pool.map(compile_alone, jobs) for line in lines]


def rule_layers(_build):
    """comm and kernels see include/weft, their own files and vendors; nobody reaches into another folder."""
    found = []
    quoted = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)
    for path in sources():
        top = relative(path).split("/")[0]
        if top not in ("comm", "kernels", "include"):
            continue
        for name in quoted.findall(path.read_text()):
            if name.startswith("weft/") or (path.parent / name).exists() or (ROOT / top / name).exists():
                continue
            if (relative(path), name) in (("kernels/cuda/port.h", "emulator/cuda_emulated.h"),
                                          ("kernels/cuda/ptx.h", "emulator/ptx_emulated.h")):
                continue  # only when the module is built for the emulator of tests/
            found.append(f"{relative(path)}: includes {name}, outside include/weft and {top}/")
    vendors = {"nccl.h": r"comm/comm_nccl", "mpi.h": r"comm/.*_mpi\.c", "ucp/": r"comm/comm_ucx",
               "grpc/": r"runtime/serve/", "cuda": r"kernels/cuda/", "jansson.h": r"runtime/base/json\.h"}
    angled = re.compile(r"^\s*#\s*include\s+<([^>]+)>", re.M)
    for path in sources():
        if relative(path).startswith("tests/"):
            continue
        for name in angled.findall(path.read_text()):
            for vendor, home in vendors.items():
                if name.startswith(vendor) and not re.match(home, relative(path)):
                    found.append(f"{relative(path)}: includes <{name}>, which lives in {home}")
    return found


def nm(build, *flags):
    library = pathlib.Path(build) / "libweft.a"
    done = subprocess.run(["nm", "-A", *flags, str(library)], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        parts = line.split()
        if len(parts) >= 3:
            yield parts[0].split(":")[1], parts[-2], parts[-1]


def rule_symbol_prefix(build):
    """Every external symbol of libweft begins with weft_."""
    return [f"{member}: {name}" for member, _kind, name in nm(build, "-g", "--defined-only")
            if not name.startswith("weft_")]


def rule_no_mutable_globals(build):
    """Nothing writable with static storage in libweft: N ranks can be N threads of one process."""
    found = []
    for member, kind, name in nm(build, "--defined-only"):
        base = re.sub(r"\.\d+$", "", name)
        if kind in "bBdDC" and base not in GLOBALS_ALLOWED and not member.endswith(".pb-c.c.o"):
            # const data with relocations is .data.rel.ro: nm says 'd'; ask objdump only about those
            found.append((member, base))
    return [f"{member}: {name}" for member, name in found if not is_read_only(build, member, name)]


SECTIONS = {}


def is_read_only(build, member, name):
    if member not in SECTIONS:
        done = subprocess.run(["objdump", "-t", str(pathlib.Path(build) / "libweft.a")], capture_output=True, text=True,
                              check=True)
        current = None
        for line in done.stdout.splitlines():
            if ":" in line and "file format" in line:
                current = line.split(":")[0]
                SECTIONS.setdefault(current, {})
            else:
                parts = line.split()
                if current and len(parts) >= 4:
                    SECTIONS[current].setdefault(re.sub(r"\.\d+$", "", parts[-1]), line)
    return ".data.rel.ro" in SECTIONS.get(member, {}).get(name, "")


def rule_lengths(_build):
    """Files and functions that a reader can take in."""
    found = []
    for path in sources():
        lines = path.read_text().splitlines()
        if len(lines) > FILE_LINES_MAX:
            found.append(f"{relative(path)}: {len(lines)} lines, at most {FILE_LINES_MAX}")
        begin = None
        for number, line in enumerate(lines, 1):
            if line == "{":
                begin = number
            elif line == "}" and begin is not None:
                if number - begin > FUNCTION_LINES_MAX:
                    found.append(f"{relative(path)}:{begin}: function of {number - begin} lines, "
                                 f"at most {FUNCTION_LINES_MAX}")
                begin = None
    return found


def rule_readme_in_every_folder(_build):
    """Every folder with sources says what lives there (generated and data folders belong to their parent)."""
    folders = {p.parent for p in sources() + tracked(".py", ".sh")}
    return [f"{relative(f)}: no README.md" for f in sorted(folders)
            if f != ROOT and not (f / "README.md").exists() and not (f.parent / "README.md").exists()]


def rule_words(_build):
    """No banners, no to-do notes, no exit() in the library."""
    found = []
    for path in sources():
        name = relative(path)
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search(r"\b(TODO|FIXME|XXX)\b", line):
                found.append(f"{name}:{number}: {line.strip()}")
            if re.search(r"\b(assert|abort|exit)\s*\(", line) and name.startswith(("runtime/serve", "runtime/text")):
                if re.search(r"\bexit\s*\(", line):
                    found.append(f"{name}:{number}: {line.strip()}")
    return found


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    failures = 0
    for name, rule in [(n, f) for n, f in globals().items() if n.startswith("rule_")]:
        findings = rule(sys.argv[1])
        print(f"{'ok  ' if not findings else 'FAIL'} {name[5:]}: {rule.__doc__.splitlines()[0]}")
        for line in findings:
            print(f"     {line}")
        failures += bool(findings)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
