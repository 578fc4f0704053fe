"""The gRPC server's own behaviour, over a test double of the engine (fake_engine.c): everything a real model does
rarely or slowly. What a real engine answers is tested in test_serve_model.py."""
import random
import signal
import subprocess
import threading
import time

import grpc
import pytest
from metrics_client import Scrape
from weft_cli import BUSY
from weft_server import FAKE, HANG_S, Server, generate, health_pb2, retry_hint, until, weft_pb2

pytestmark = pytest.mark.timeout(120)
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def fake(model="fake:", *arguments, **keywords):
    return Server("--model", model, *arguments, binary=FAKE, **keywords)


@pytest.fixture(scope="module")
def server():
    with fake("fake:token_us=200,context=64000") as running:
        yield running


@pytest.fixture
def stub(server):
    return server.stub()


def code_of(call):
    with pytest.raises(grpc.RpcError) as caught:
        result = call()
        if hasattr(result, "__iter__"):
            list(result)
    return caught.value.code(), caught.value.details()


def request(prompt="hello", **settings):
    return weft_pb2.GenerateRequest(prompt=prompt, **settings)


def expected(prompt, count):
    key = 0
    for byte in prompt.encode():
        key = (key * 31 + byte) % 2**64
    return "".join(chr(ord("a") + (key + k * 7 + k // 5) % 26) for k in range(count))


def test_stream_content_and_last_message(stub):
    text, ids, last = generate(stub, prompt="hello", max_tokens=20)
    assert text == expected("hello", 20)
    assert ids == [ord(c) for c in text]
    assert last.finish_reason == weft_pb2.FINISH_REASON_LENGTH
    assert (last.usage.prompt_tokens, last.usage.output_tokens) == (5, 20)
    assert last.timings.ttft_ms == 1
    assert len(last.logits_sha256) == 64


def test_tokens_stream(hold):
    """The first comes while the second has not been made."""
    with fake(f"fake:hold={hold}") as server:
        call = server.stub().Generate(request(max_tokens=30), timeout=HANG_S)
        messages = [next(call)]
        assert list(messages[0].token_ids) == [ord(expected("hello", 1))]
        hold.unlink()
        messages += call
        assert "".join(m.text for m in messages) == expected("hello", 30)
        assert all(m.finish_reason == weft_pb2.FINISH_REASON_UNSPECIFIED for m in messages[:-1])


def test_prompt_as_token_ids(stub):
    text, _, last = generate(stub, prompt_token_ids=list(b"hello"), max_tokens=7)
    assert text == expected("hello", 7)
    assert last.usage.prompt_tokens == 5


def test_prompt_with_nul_is_not_cut(stub):
    assert generate(stub, prompt="a\0b", max_tokens=5)[0] == expected("a\0b", 5)


def test_malformed_bytes(server):
    for method in ("/weft.v1.Inference/Generate", "/weft.v1.Inference/Tokenize", "/weft.v1.Inference/Detokenize",
                   "/weft.v1.Inference/GetModel", "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"):
        raw = server.channel().unary_stream(method, request_serializer=lambda b: b, response_deserializer=bytes)
        for junk in (b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x05abc"):
            code, _ = code_of(lambda: raw(junk, timeout=HANG_S))
            assert code == grpc.StatusCode.INVALID_ARGUMENT, (method, junk)


def test_random_bytes_never_hurt(server):
    """Seeded; half of them real messages with bytes changed."""
    chance = random.Random(20)
    good = weft_pb2.GenerateRequest(prompt="hello", max_tokens=3, temperature=0.5, stop=["x", "yy"], seed=7,
                                    prompt_token_ids=[1, 2, 3]).SerializeToString()
    channel = server.channel()
    allowed = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}
    for method in ("/weft.v1.Inference/Generate", "/weft.v1.Inference/Tokenize", "/weft.v1.Inference/Detokenize",
                   "/weft.v1.Inference/GetModel", "/grpc.health.v1.Health/Check"):
        call = channel.unary_stream(method, request_serializer=lambda b: b, response_deserializer=bytes)
        for _ in range(100):
            if chance.random() < 0.5:
                message = bytearray(good)
                for _ in range(chance.randrange(1, 4)):
                    message[chance.randrange(len(message))] = chance.randrange(256)
            else:
                message = chance.randbytes(chance.randrange(40))
            stream = call(bytes(message), timeout=HANG_S)
            try:
                next(stream)
                stream.cancel()
            except StopIteration:
                pass
            except grpc.RpcError as error:
                assert error.code() in allowed, (method, bytes(message), error.details())
    assert server.process.poll() is None


def test_prompt_that_is_no_utf8(server):
    raw = server.channel().unary_stream("/weft.v1.Inference/Generate", request_serializer=lambda b: b,
                                        response_deserializer=bytes)
    for text in (b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"abc\xff"):
        code, details = code_of(lambda: raw(b"\x0a" + bytes([len(text)]) + text, timeout=HANG_S))
        assert (code, details) == (grpc.StatusCode.INVALID_ARGUMENT, "prompt: not UTF-8")


@pytest.mark.parametrize("settings, word", [
    ({"max_tokens": 0}, "max_tokens"),
    ({"temperature": -1.0}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"top_p": 0.0}, "top_p"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": [""]}, "stop"),
    ({"stop": ["a\0b"]}, "stop"),
    ({"prompt": ""}, "prompt"),
    ({"prompt_token_ids": [1, 2]}, "prompt"),
])
def test_settings_out_of_range(stub, settings, word):
    code, details = code_of(lambda: stub.Generate(request(**settings), timeout=HANG_S))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert word in details


def test_prompt_longer_than_context(stub):
    code, details = code_of(lambda: stub.Generate(request("x" * 64000), timeout=HANG_S))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "64000" in details and "63999" in details


def test_context_ends_the_answer(stub):
    _, ids, last = generate(stub, prompt="x" * 63990, max_tokens=2**32 - 1)
    assert len(ids) == 10
    assert last.finish_reason == weft_pb2.FINISH_REASON_LENGTH


def test_request_over_the_size_limit(stub):
    code, _ = code_of(lambda: stub.Generate(request("x" * (17 << 20)), timeout=HANG_S))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_unknown_methods(server):
    for path in ("/weft.v1.Inference/Nonsense", "/nobody.Knows/This", "/weft.v1.Inference/"):
        call = server.channel().unary_unary(path, request_serializer=lambda b: b, response_deserializer=bytes)
        assert code_of(lambda: call(b"", timeout=HANG_S))[0] == grpc.StatusCode.UNIMPLEMENTED


def test_tokenize_detokenize(stub):
    text = "añ€😀\0x"
    ids = stub.Tokenize(weft_pb2.TokenizeRequest(text=text)).token_ids
    assert list(ids) == list(text.encode())
    assert stub.Detokenize(weft_pb2.DetokenizeRequest(token_ids=ids)).text == text
    assert list(stub.Tokenize(weft_pb2.TokenizeRequest()).token_ids) == []


def test_get_model(stub):
    model = stub.GetModel(weft_pb2.GetModelRequest())
    assert model.architecture == "FakeForCausalLM"
    assert model.context_length == 64000
    assert model.weft_version


def check_place_is_free(server):
    """The only place is another's again; an answer of one token is never held."""
    assert generate(server.stub(), prompt="next", max_tokens=1)[0] == expected("next", 1)


def test_cancel_stops_the_work(hold):
    with fake(f"fake:hold={hold}", "--sequences", 1) as server:
        call = server.stub().Generate(request(max_tokens=100))
        next(call)
        call.cancel()
        check_place_is_free(server)


def test_deadline_stops_the_work(hold):
    with fake(f"fake:hold={hold}", "--sequences", 1) as server:
        code, _ = code_of(lambda: server.stub().Generate(request(max_tokens=100), timeout=0.3))
        assert code == grpc.StatusCode.DEADLINE_EXCEEDED
        check_place_is_free(server)


def test_disconnect_stops_the_work(hold):
    with fake(f"fake:hold={hold}", "--sequences", 1) as server:
        channel = server.channel()
        call = type(server.stub())(channel).Generate(request(max_tokens=100))
        next(call)
        channel.close()
        check_place_is_free(server)


def test_queue_full(hold):
    with fake(f"fake:hold={hold}", "--sequences", 1, "--queue", 2, "--http", "127.0.0.1:0") as server:
        stub = server.stub()
        calls = [stub.Generate(request(max_tokens=100)) for _ in range(3)]
        assert until(lambda: Scrape(server.http_port)["weft_requests_waiting"] == 2)
        assert code_of(lambda: stub.Generate(request(max_tokens=1))) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full")
        for call in calls:
            call.cancel()


def test_slow_reader_loses_nothing_and_holds_nobody_up(server):
    slow = server.channel(("grpc.http2.lookahead_bytes", 1), ("grpc.http2.bdp_probe", 0))
    call = type(server.stub())(slow).Generate(request("slow", max_tokens=20000))
    first = next(call)
    time.sleep(0.5)
    assert generate(server.stub(), prompt="fast", max_tokens=50)[0] == expected("fast", 50)
    assert first.text + "".join(m.text for m in call) == expected("slow", 20000)


def test_reader_who_never_reads_is_cancelled():
    """100 MB for a client that does not read: the server gives up on it instead of keeping it all."""
    with fake("fake:context=200000", "--sequences", 1) as server:
        stub = server.stub()
        call = stub.Generate(request("<wide>", max_tokens=100000))
        call.initial_metadata()  # it runs
        assert generate(stub, prompt="next", max_tokens=3, timeout=HANG_S)[0] == expected("next", 3)
        with pytest.raises(grpc.RpcError) as caught:
            for _ in call:
                pass
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "slowly" in caught.value.details()
        status = (server.process.pid and open(f"/proc/{server.process.pid}/status").read()).split("VmRSS:")[1]
        assert int(status.split()[0]) < 80000, "the server kept what nobody read"


def test_many_streams_at_once(server):
    prompts = [f"prompt {i}" for i in range(50)]
    answers = [None] * len(prompts)
    stub = server.stub()

    def ask(i):
        answers[i] = generate(stub, prompt=prompts[i], max_tokens=100)[0]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [expected(p, 100) for p in prompts]


def test_health_check(server):
    health = server.health()
    for service in ("", "weft.v1.Inference", "readiness", "startup", "liveness"):
        assert health.Check(health_pb2.HealthCheckRequest(service=service)).status == SERVING
    assert code_of(lambda: health.Check(health_pb2.HealthCheckRequest(service="x")))[0] == grpc.StatusCode.NOT_FOUND


def test_health_watch_unknown_service(server):
    call = server.health().Watch(health_pb2.HealthCheckRequest(service="x"))
    assert next(call).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    call.cancel()


def test_group_failure_reaches_every_client():
    with fake("fake:token_us=2000,context=100000", "--sequences", 7) as server:
        stub = server.stub()
        watch = server.health().Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == SERVING
        others = [stub.Generate(request(f"other {i}", max_tokens=90000)) for i in range(6)]
        for call in others:
            next(call)  # all have begun
        received = []
        with pytest.raises(grpc.RpcError) as error:
            for message in stub.Generate(request("<fail>", max_tokens=100), timeout=HANG_S):
                received.append(message.text)
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE
        assert error.value.details() == "rank 1 on loom failed: a thread broke"
        assert 3 <= retry_hint(error.value) <= 60
        assert "".join(received) and expected("<fail>", 100).startswith("".join(received))
        for call in others:
            with pytest.raises(grpc.RpcError) as error:
                list(call)
            assert error.value.code() == grpc.StatusCode.UNAVAILABLE
            assert 3 <= retry_hint(error.value) <= 60
        assert next(watch).status == NOT_SERVING
        with pytest.raises(grpc.RpcError) as error:
            next(watch)
        assert error.value.details() == "rank 1 on loom failed: a thread broke"
        assert server.wait() == 1
        assert any("stopping: rank 1 on loom failed: a thread broke" in line for line in server.log)


def test_sigterm_cancels_and_ends(hold):
    with fake(f"fake:hold={hold}") as server:
        stub = server.stub()
        watch = server.health().Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == SERVING
        call = stub.Generate(request(max_tokens=100))
        next(call)
        server.process.send_signal(signal.SIGTERM)
        code, details = code_of(lambda: call)
        assert (code, details) == (grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
        assert retry_hint(call) >= 3
        assert server.wait() == 0
        with pytest.raises(grpc.RpcError):
            assert next(watch).status == NOT_SERVING
            next(watch)


def test_sigterm_with_drain_lets_answers_end(hold):
    with fake(f"fake:hold={hold}", "--drain", "1h") as server:
        stub = server.stub()
        call = stub.Generate(request("drained", max_tokens=200))
        first = next(call)
        server.process.send_signal(signal.SIGTERM)
        assert until(lambda: server.process.poll() is not None or any("stopping" in line for line in server.log))
        code, details = code_of(lambda: stub.Generate(request("late"), timeout=HANG_S))
        assert (code, details) == (grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
        hold.unlink()
        assert first.text + "".join(m.text for m in call) == expected("drained", 200)
        assert server.wait() == 0


def test_second_signal_ends_at_once(hold):
    with fake(f"fake:hold={hold}", "--drain", "1h") as server:
        call = server.stub().Generate(request(max_tokens=100))
        next(call)
        server.process.send_signal(signal.SIGTERM)
        assert until(lambda: any("stopping" in line for line in server.log))
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 128 + signal.SIGTERM


def test_a_long_step_does_not_hold_up_the_end():
    """SIGTERM while the engine cannot stop: everybody is told, and the process leaves all the same."""
    with fake("fake:close_ms=600000") as server:  # far longer than wait() has patience
        call = server.stub().Generate(request("<stuck>", max_tokens=4000))
        next(call)
        server.process.send_signal(signal.SIGTERM)
        assert code_of(lambda: call) == (grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
        assert server.wait() == 0
        assert "weft: stopped in the middle of a step\n" in server.log


@pytest.mark.parametrize("seed", range(5))
def test_shutdown_under_fire(seed):
    """Calls of every kind keep coming while the server goes down: each gets an answer or a status, and the end is clean."""
    with fake("fake:token_us=100") as server:
        is_over = threading.Event()
        codes = set()

        def fire():
            stub, health = server.stub(), server.health()
            while not is_over.is_set():
                try:
                    stub.Tokenize(weft_pb2.TokenizeRequest(text="x" * 1000), timeout=HANG_S)
                    list(stub.Generate(request(max_tokens=20), timeout=HANG_S))
                    next(health.Watch(health_pb2.HealthCheckRequest(), timeout=HANG_S))
                except grpc.RpcError as error:
                    codes.add(error.code())

        threads = [threading.Thread(target=fire) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(0.1 + seed * 0.05)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0, "".join(server.log)
        is_over.set()
        for thread in threads:
            thread.join()
        assert codes <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}, codes


def test_port_in_use(server):
    done = subprocess.run([str(FAKE), "serve", "--model", "fake:", "--grpc", server.address], capture_output=True,
                          text=True, timeout=HANG_S)
    assert done.returncode == BUSY
    assert done.stderr == f"weft: serve: cannot listen on {server.address}: Address already in use\n"
