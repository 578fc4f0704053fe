"""The exactness matrix: whatever the cluster looks like, the same tokens and the same logits, bit for bit.

Reference: one rank, one thread, the whole prompt in one step, reference kernels. By default a subset in which every pair
of values meets; WEFT_MATRIX=full runs every combination (336 per family).
"""
import itertools
import json
import os
import pathlib
import shutil

import pytest
from weft_cli import MPIRUN, answer, families, model_folder, weft

pytestmark = pytest.mark.timeout(600 if os.environ.get("WEFT_MATRIX") != "full" else 36000)

# More than one chunk of 64, with room for the answer in a context of 128.
PROMPT = "Once upon a time a weaver crossed the river, and the thread she drew behind her held the banks together."

SHARES = {
    1: ["equal"],
    2: ["equal", "3,1", "1,7"],
    3: ["equal", "2,1,1", "1,5,2"],
    4: ["equal", "5,1,1,1", "1,2,3,2"],
    5: ["equal", "4,1,1,1,1", "1,1,3,1,2"],
    8: ["equal"],
}
RANKS = list(SHARES)
THREADS = [1, 2]
CHUNKS = [1, 7, 64, 1024]
LEVELS = {"ref": "", "avx2": " avx2", "avx512": " avx512f", "avx512vnni": " avx512_vnni"}  # flag of /proc/cpuinfo
SPLITS = [0, 1, 2]  # index into SHARES


def machine_levels():
    flags = pathlib.Path("/proc/cpuinfo").read_text()
    return [level for level, flag in LEVELS.items() if flag in flags]


def everything():
    for ranks, threads, chunk, level, split in itertools.product(RANKS, THREADS, CHUNKS, LEVELS, SPLITS):
        if split < len(SHARES[ranks]):
            yield ranks, threads, chunk, level, split


def pairs_of(case):
    return {(i, case[i], k, case[k]) for i, k in itertools.combinations(range(len(case)), 2)}


def pairwise():
    """Greedy: the case with most new pairs next, until every pair that can meet has met."""
    left = list(everything())
    open_pairs = set().union(*map(pairs_of, left))
    chosen = []
    while open_pairs:
        best = max(left, key=lambda case: len(pairs_of(case) & open_pairs))
        open_pairs -= pairs_of(best)
        chosen.append(best)
    return chosen


def cases():
    chosen = list(everything()) if os.environ.get("WEFT_MATRIX") == "full" else pairwise()
    return [case for case in chosen if case[3] in machine_levels()]


def result(model, ranks, threads, chunk, level, split, *more):
    shares = SHARES[ranks][split]
    extra = ["--shares", shares] if shares != "equal" else []
    got = answer("--model", model, "--prompt", PROMPT, "--max-tokens", 20, "--ignore-eos", "--ranks", ranks,
                 "--threads", threads, "--prefill-chunk", chunk, "--cpu-level", level, *extra, *more)
    return got["token_ids"], got["logits_sha256"]


def test_the_subset_is_pairwise_complete():
    met = set().union(*map(pairs_of, pairwise()))
    assert met == set().union(*map(pairs_of, everything()))
    assert len(pairwise()) < 60


@pytest.mark.parametrize("family", families())
def test_same_bits(family, tmp_path):
    model = model_folder(family, tmp_path)
    wanted = result(model, 1, 1, 1024, "ref", 0)
    assert len(wanted[0]) == 20
    different = [case for case in cases() if result(model, *case) != wanted]
    assert different == [], f"ranks, threads, chunk, level, split: {different}"


def test_the_digest_sees_what_may_differ(tmp_path):
    """Another order of additions (--leaves) and another prompt give other logits: equality above means something."""
    model = model_folder("llama3", tmp_path)
    wanted = result(model, 1, 1, 1024, "ref", 0)
    assert result(model, 1, 1, 1024, "ref", 0, "--leaves", "2")[1] != wanted[1]
    assert result(model, 1, 1, 1024, "ref", 0, "--kv-dtype", "bf16")[1] != wanted[1]
    assert result(model, 1, 1, 1024, "ref", 0, "--prompt", PROMPT + "!")[1] != wanted[1]


@pytest.mark.parametrize("family", ["qwen2", "mistral"])
def test_sampled_tokens_too(family, tmp_path):
    """Sampling sees a split vocabulary; its candidates must not depend on the split."""
    model = model_folder(family, tmp_path)
    sampling = ["--temperature", "1.3", "--top-p", "0.9", "--seed", "11", "--repetition-penalty", "1.2",
                "--presence-penalty", "0.3", "--frequency-penalty", "0.2", "--min-p", "0.01"]
    wanted = result(model, 1, 1, 1024, "ref", 0, *sampling)
    for ranks, split in ((2, 1), (3, 0), (4, 2), (5, 1), (8, 0)):
        assert result(model, ranks, 1, 7, "ref", split, *sampling) == wanted, (ranks, split)


def test_bf16_cache_is_exact_among_itself(tmp_path):
    model = model_folder("llama3", tmp_path)
    wanted = result(model, 1, 1, 1024, "ref", 0, "--kv-dtype", "bf16")
    for case in ((2, 1, 7, "ref", 1), (4, 2, 1, machine_levels()[-1], 0), (8, 1, 64, machine_levels()[-1], 0)):
        assert result(model, *case, "--kv-dtype", "bf16") == wanted, case


@pytest.mark.parametrize("family, quantize", [("qwen2", "q8_0"), ("qwen3", "q4_0"), ("mistral", "q8_0"),
                                              ("llama2", "q4_0")])
def test_quantised_is_exact_among_itself(family, quantize, tmp_path):
    """Fewer bits, the same at any rank count and level, read or streamed; and other ones than without."""
    model = model_folder(family, tmp_path)
    wanted = result(model, 1, 1, 1024, "ref", 0, "--quantize", quantize)
    best = machine_levels()[-1]
    for case in ((2, 1, 7, "ref", 1), (3, 2, 64, best, 1), (4, 2, 1, machine_levels()[1 % len(machine_levels())], 0),
                 (8, 1, 64, best, 0)):
        assert result(model, *case, "--quantize", quantize) == wanted, case
        assert result(model, *case, "--quantize", quantize, "--weights", "stream") == wanted, case
    assert result(model, 1, 1, 1024, "ref", 0)[1] != wanted[1]


@pytest.mark.parametrize("comm, is_mpirun", [("shm", False), ("tcp", False), ("ucx", False), ("shm", True),
                                             ("tcp", True), ("ucx", True), ("mpi", True)])
def test_every_transport(comm, is_mpirun, tmp_path):
    model = model_folder("qwen3", tmp_path)
    common = ["--model", model, "--prompt", PROMPT, "--max-tokens", 20, "--ignore-eos", "--threads", 1]
    wanted = answer(*common)
    if is_mpirun and shutil.which("mpirun") is None:
        pytest.skip("no mpirun here")
    wrapper = [*MPIRUN, "-n", "3"] if is_mpirun else []
    ranks = [] if is_mpirun else ["--ranks", 3]
    done = weft("run", "--quiet", "--output", "json", *common, *ranks, "--comm", comm, wrapper=wrapper)
    if done.returncode != 0 and "in this build" in done.stderr:
        pytest.skip(f"{comm} is not in this build")
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert (got["token_ids"], got["logits_sha256"]) == (wanted["token_ids"], wanted["logits_sha256"])


def test_ucx_keeps_its_log_off_standard_output(tmp_path):
    """Standard output is the answer's alone, however talkative UCX is made."""
    done = weft("run", "--quiet", "--output", "json", "--model", model_folder("qwen3", tmp_path), "--prompt", PROMPT,
                "--max-tokens", 2, "--threads", 1, "--ranks", 2, "--comm", "ucx",
                environment={"UCX_LOG_LEVEL": "info"})
    if done.returncode != 0 and "in this build" in done.stderr:
        pytest.skip("ucx is not in this build")
    assert done.returncode == 0, done.stderr
    assert "UCX" in done.stderr
    assert json.loads(done.stdout)["token_ids"]
