"""/metrics on a real model: what Prometheus reads agrees with what clients saw."""
import math
import pathlib
import re
import threading

import grpc
import pytest
from metrics_client import Scrape
from weft_cli import PROMPT, model_folder
from weft_server import ROOT, Server, generate, until, weft_pb2

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return model_folder("qwen2", tmp_path_factory.mktemp("qwen2"))


@pytest.fixture
def server(model):
    with Server("--model", model, "--ranks", 2, "--threads", 1, "--sequences", 2, "--queue", 6, "--http", "127.0.0.1:0") as running:
        yield running


def ask_all(server, requests):
    """Asks them at once: the list that their last messages come into, and the threads that do it."""
    last = [None] * len(requests)

    def ask(i):
        last[i] = generate(server.stub(), timeout=120, **requests[i])[2]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(requests))]
    for thread in threads:
        thread.start()
    return last, threads


def check_growth(before, after):
    """Counters and histograms go up only, and a histogram's count is that of its last bucket."""
    old, new = before.growing(), after.growing()
    assert set(old) == set(new)
    assert [key for key in old if new[key] < old[key]] == []
    for name in after.histograms():
        bounds, counts = zip(*after.buckets(name))
        assert bounds[-1] == float("inf") and list(counts) == sorted(counts)
        assert counts[-1] == after[name + "_count"]


def test_an_idle_server(server, model):
    scrape = Scrape(server.http_port)
    assert scrape["weft_ranks"] == 2 and scrape["weft_serving"] == 1
    assert scrape["weft_requests_running_limit"] == 2 and scrape["weft_requests_waiting_limit"] == 6
    assert scrape["weft_requests_running"] == scrape["weft_requests_waiting"] == scrape["weft_kv_pages_used"] == 0
    assert scrape["weft_kv_pages"] > 0 and scrape["weft_kv_page_positions"] == 16
    assert scrape["weft_steps_total"] == 0 and scrape.results() == {}
    info = next(s for s in scrape.families["weft_model_info"].samples)
    assert info.value == 1 and info.labels["model"] == str(model)
    assert (info.labels["architecture"], info.labels["comm"]) == ("Qwen2ForCausalLM", "shm")
    version = re.search(r"VERSION (\d+\.\d+\.\d+)", (ROOT / "CMakeLists.txt").read_text().split("project(weft")[1])[1]
    assert scrape.value("weft_build_info", version=version) == 1


def test_figures_agree_with_what_clients_saw(server):
    # No more than the queue holds, so that none is refused; then once more.
    requests = [{"prompt": PROMPT[:3 + i], "max_tokens": 8 * (i + 1), "ignore_eos": i % 2 == 0} for i in range(6)]
    last = []
    before = Scrape(server.http_port)
    for _ in range(2):
        got, threads = ask_all(server, requests)
        while any(thread.is_alive() for thread in threads):
            scrape = Scrape(server.http_port)
            check_growth(before, scrape)
            before = scrape
            assert scrape["weft_requests_running"] <= 2 and scrape["weft_requests_waiting"] <= 6
        last += got
    scrape = Scrape(server.http_port)
    check_growth(before, scrape)

    def seen(name, count, total_ms):
        assert scrape[name + "_count"] == count
        assert scrape[name + "_sum"] == pytest.approx(total_ms / 1e3, rel=1e-6, abs=1e-6)
    output = sum(m.usage.output_tokens for m in last)
    assert scrape["weft_prompt_tokens_total"] == sum(m.usage.prompt_tokens for m in last)
    assert scrape["weft_output_tokens_total"] == output
    finished = {name: sum(m.finish_reason == value for m in last) for name, value in
                (("stop", weft_pb2.FINISH_REASON_STOP), ("length", weft_pb2.FINISH_REASON_LENGTH))}
    assert scrape.results() == {name: count for name, count in finished.items() if count}
    seen("weft_request_queue_time_seconds", len(last), sum(m.timings.queue_ms for m in last))
    seen("weft_time_to_first_token_seconds", len(last), sum(m.timings.ttft_ms for m in last))
    seen("weft_inter_token_latency_seconds", output - len(last), sum(m.timings.decode_ms for m in last))
    seen("weft_e2e_request_latency_seconds", len(last), sum(m.timings.ttft_ms + m.timings.decode_ms for m in last))
    assert scrape["weft_steps_total"] >= max(m.usage.output_tokens for m in last)
    for bound, count in scrape.buckets("weft_time_to_first_token_seconds"):
        assert count == sum(m.timings.ttft_ms / 1e3 <= bound for m in last)
    assert scrape["weft_requests_running"] == scrape["weft_requests_waiting"] == scrape["weft_kv_pages_used"] == 0


def test_whoever_finds_no_place_waits_or_is_refused(tmp_path):
    """Answers that end when the test says so."""
    arguments = ("--model", model_folder("qwen2", tmp_path, context=200_000), "--sequences", 2, "--queue", 3,
                 "--kv-tokens", 400_000, "--threads", 1, "--http", "127.0.0.1:0")
    with Server(*arguments) as server:
        stub = server.stub()
        message = weft_pb2.GenerateRequest(prompt="Once", max_tokens=190_000, ignore_eos=True)
        calls = []
        for wanted in ((1, 0), (2, 0), (2, 1), (2, 2), (2, 3)):
            calls.append(stub.Generate(message))

            def load():
                scrape = Scrape(server.http_port)
                return scrape["weft_requests_running"], scrape["weft_requests_waiting"]
            assert until(lambda: load() == wanted), (wanted, load())
        scrape = Scrape(server.http_port)
        prompt = len(stub.Tokenize(weft_pb2.TokenizeRequest(text="Once")).token_ids)
        assert scrape["weft_kv_pages_used"] == 2 * math.ceil((prompt + 190_000 - 1) / 16)  # the last token is never cached
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Generate(message))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert Scrape(server.http_port).results() == {"refused": 1}
        for call in calls:
            call.cancel()
        assert until(lambda: load() == (0, 0)), load()
        # The last is counted a moment after its place is free.
        assert until(lambda: Scrape(server.http_port).results() == {"refused": 1, "cancelled": 5})
        scrape = Scrape(server.http_port)
        assert scrape["weft_kv_pages_used"] == 0
        assert scrape["weft_e2e_request_latency_seconds_count"] == 0


def test_the_process(server):
    def status(name):
        text = pathlib.Path(f"/proc/{server.process.pid}/status").read_text()
        return int(re.search(rf"^{name}:\s+(\d+)", text, re.M)[1])
    generate(server.stub(), prompt=PROMPT, max_tokens=5)
    scrape = Scrape(server.http_port)
    assert scrape["process_virtual_memory_bytes"] == pytest.approx(status("VmSize") * 1024, rel=0.2)
    assert scrape["process_resident_memory_bytes"] == pytest.approx(status("VmRSS") * 1024, rel=0.2)
    # The scrape's own connection is one of them.
    fds = len(list(pathlib.Path(f"/proc/{server.process.pid}/fd").iterdir()))
    assert abs(scrape["process_open_fds"] - fds) <= 2
    limits = pathlib.Path(f"/proc/{server.process.pid}/limits").read_text()
    assert scrape["process_max_fds"] == int(re.search(r"Max open files\s+(\d+)", limits)[1])
    fields = pathlib.Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    assert 0 <= scrape["process_cpu_seconds_total"] <= (int(fields[11]) + int(fields[12])) / 100
    boot = int(re.search(r"btime (\d+)", pathlib.Path("/proc/stat").read_text())[1])
    assert scrape["process_start_time_seconds"] == pytest.approx(boot + int(fields[19]) / 100, abs=1)


def test_the_readme_lists_what_is_there(server):
    readme = (ROOT / "runtime" / "serve" / "README.md").read_text()
    assert set(re.findall(r"^\| `((?:weft|process)_\w+)", readme, re.M)) == Scrape(server.http_port).names()
