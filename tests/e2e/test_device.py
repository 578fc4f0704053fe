"""--device and --cuda-module: what runs where, and the one line when it cannot."""
import json
import pathlib
import re

import pytest
from weft_cli import answer, one_error_line, weft

pytestmark = pytest.mark.timeout(120)
PROMPT = ["--prompt", "12+30="]
has_gpu = pathlib.Path("/proc/driver/nvidia/gpus").is_dir()


def refusal(*arguments):
    return one_error_line(weft("run", "--quiet", *arguments, *PROMPT), 1)


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
