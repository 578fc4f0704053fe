"""--device and --cuda-module: what runs where, and the one line when it cannot."""
import json
import os
import pathlib
import re
import subprocess

import pytest
from weft_cli import BUILD, BUSY, CONFIG, WEFT, answer, free_port, one_error_line, weft

pytestmark = pytest.mark.timeout(120)
PROMPT = ["--prompt", "12+30="]
has_gpu = pathlib.Path("/proc/driver/nvidia/gpus").is_dir()


def refusal(*arguments):
    return one_error_line(weft("run", "--quiet", *arguments, *PROMPT), CONFIG)


def test_auto_without_gpu_is_cpu():
    if has_gpu:
        pytest.skip("this host has a GPU")
    assert answer(*PROMPT)["logits_sha256"] == answer("--device", "cpu", *PROMPT)["logits_sha256"]


def test_cuda_without_gpu():
    if has_gpu:
        pytest.skip("this host has a GPU")
    line = refusal("--device", "cuda")
    assert line.startswith("weft: engine/devices: device cuda: no ")


def test_info_says_what_gpus_there_are():
    text = weft("info").stdout
    gpus = json.loads(weft("info", "--output", "json").stdout)["gpus"]
    if has_gpu:
        assert gpus["list"][0]["name"] in text
    else:
        assert gpus["list"] == [] and f"GPUs          none: {gpus['none_because']}\n" in text


def test_doctor_names_a_gpu_that_is_asked_for_and_missing():
    if has_gpu:
        pytest.skip("this host has a GPU")
    assert "GPUs       none used: " in weft("doctor").stdout
    done = weft("doctor", "--quiet", "--device", "cuda")
    assert done.returncode == 1
    assert re.search(r"^error: rank 0 on .*: device cuda: no .*; a run would be refused; change: ", done.stdout, re.M)


def test_unknown_device():
    assert refusal("--device", "abacus") == \
        'weft: kernels: device "abacus": expected auto, cpu, cuda or cuda:0 to cuda:63'


def test_module_that_is_none(tmp_path):
    missing = tmp_path / "weft_cuda.so"
    line = refusal("--device", "cuda", "--cuda-module", missing)
    assert f"the CUDA module cannot be loaded: {missing}: cannot open shared object file" in line
    line = refusal("--device", "cuda", "--cuda-module", "libm.so.6")
    assert "libm.so.6 is the module of another Weft: interface 0, expected" in line


def test_module_is_not_needed_for_cpus(tmp_path):
    assert answer("--device", "cpu", "--cuda-module", tmp_path / "none", *PROMPT)["text"].strip() == "42"


# ---- on the emulated GPU (tests/emulator) ----

MODULE = BUILD / "weft_cuda_emulated.so"
emulated = pytest.mark.skipif(not MODULE.exists(), reason="this build has no emulated CUDA module (no C++ compiler)")


def on_gpus(gpus="devices=1"):
    """Keywords for weft() and answer()."""
    return {"environment": {"WEFT_CUDA_MODULE": str(MODULE), "WEFT_EMULATED_GPU": gpus}}


@emulated
def test_gpu_is_found_and_answers():
    cpu = answer("--device", "cpu", *PROMPT)
    for device in ("auto", "cuda", "cuda:0"):
        gpu = answer("--device", device, *PROMPT, **on_gpus())
        assert gpu["token_ids"] == cpu["token_ids"], device
    reference = answer("--numerics", "reference", *PROMPT, **on_gpus())
    assert reference["logits_sha256"] == cpu["logits_sha256"]


@emulated
def test_ranks_have_a_gpu_each_or_share_one():
    one = answer(*PROMPT, **on_gpus())
    each = answer("--ranks", "2", *PROMPT, **on_gpus(gpus="devices=2"))
    shared = answer("--ranks", "2", "--device", "cuda:0", *PROMPT, **on_gpus())
    assert one["logits_sha256"] == each["logits_sha256"] == shared["logits_sha256"]
    line = one_error_line(weft("run", "--quiet", "--ranks", "2", *PROMPT, **on_gpus()), CONFIG)
    assert "rank 1 on " in line and "finds no GPU of its own: it may use 1" in line


@emulated
@pytest.mark.parametrize("gpus, reason", [
    ("driver=12040", "the NVIDIA driver is too old: it is for CUDA 12.4, this build needs 13.0"),
    ("driver=0", "no NVIDIA driver on this host (libcuda.so.1)"),
    ("devices=0", "a driver for CUDA 13.0, but no GPU that this process may use"),
])
def test_why_there_is_no_gpu(gpus, reason):
    done = weft("run", "--quiet", "--device", "cuda", *PROMPT, **on_gpus(gpus=gpus))
    assert one_error_line(done, CONFIG) == f"weft: engine/devices: device cuda: {reason}"
    assert f"GPUs          none: {reason}\n" in weft("info", **on_gpus(gpus=gpus)).stdout


@emulated
def test_gpu_that_is_not_there():
    done = weft("run", "--quiet", "--device", "cuda:2", *PROMPT, **on_gpus(gpus="devices=2"))
    assert one_error_line(done, CONFIG).endswith("device cuda:2: no such GPU, this host has 2 that this process may use")


@emulated
def test_too_little_gpu_memory():
    done = weft("run", "--quiet", "--device", "cuda", *PROMPT, **on_gpus(gpus="memory=4000000"))
    line = one_error_line(done, BUSY)
    assert re.search(r"the model does not fit: the GPU of rank 0 \(.*\) on .* needs .* 3\.4 MiB available; "
                     r"at least 3 such GPUs would be needed", line), line


@emulated
def test_mixed_groups_are_refused(tmp_path):
    command = [WEFT, "run", "--quiet", "--leader", f"127.0.0.1:{free_port()}", "--ranks", "2", *PROMPT]
    environment = {**os.environ, **on_gpus()["environment"]}
    with subprocess.Popen([*command, "--rank", "1", "--device", "cpu"], env=environment, stderr=subprocess.PIPE,
                          text=True) as worker:
        leader = subprocess.run([*command, "--rank", "0"], env=environment, capture_output=True, text=True, timeout=60)
        worker.communicate(timeout=60)
    assert leader.returncode == CONFIG and worker.returncode == CONFIG
    assert "some ranks run on GPUs (0) and some on CPUs (1, on " in leader.stderr
    assert "--device cpu): a group runs on one of the two" in leader.stderr


@emulated
def test_info_and_doctor_name_the_gpus():
    text = weft("info", **on_gpus(gpus="devices=2")).stdout
    assert re.search(r"^GPU +name +free +memory +capability +SMs +PCI$", text, re.M)
    assert re.search(r"^GPU 1 +to 0: ", text, re.M)
    assert re.search(r"^fast numerics no cuBLASLt, --numerics fast is as exact: \S", text, re.M)
    report = json.loads(weft("doctor", "--ranks", "2", "--output", "json", **on_gpus(gpus="devices=2")).stdout)
    assert [rank["gpu"]["index"] for rank in report["ranks"]] == [0, 1]


STUB = BUILD / "cublaslt_stub"


@emulated
def test_info_and_doctor_say_what_fast_numerics_has():
    without = weft("doctor", **on_gpus()).stdout
    assert re.search(r"^fast numerics on rank 0: no cuBLASLt, --numerics fast is as exact: \S", without, re.M), without
    assert "no cuBLASLt: " not in without
    done = weft("doctor", "--quiet", "--numerics", "fast", **on_gpus())
    assert re.search(r"^warning: rank 0 on .*: no cuBLASLt: .*; --numerics fast is as exact there: ", done.stdout, re.M)
    assert done.returncode == 1
    if not STUB.is_dir():
        pytest.skip("this build has no stub of cuBLASLt (no header of it)")
    environment = {**on_gpus()["environment"], "LD_LIBRARY_PATH": str(STUB)}
    found = f"cuBLASLt 13.1.0, {STUB}/libcublasLt.so.13"
    assert f"fast numerics {found}\n" in weft("info", environment=environment).stdout
    assert f"fast numerics on rank 0: {found}\n" in weft("doctor", environment=environment).stdout
    fast = weft("doctor", "--numerics", "fast", "--output", "json", environment=environment)
    assert json.loads(fast.stdout)["ranks"][0]["gpu"]["fast_library"] == found
