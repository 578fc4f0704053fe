"""`weft serve` on a real model over several ranks: what clients get is what `weft run` says."""
import random
import threading
import time

import grpc
import pytest
from weft_cli import PROMPT, answer, model_folder
from weft_server import HANG_S, Server, generate, weft_pb2, weft_pb2_grpc

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return model_folder("qwen2", tmp_path_factory.mktemp("qwen2"))


@pytest.fixture(scope="module")
def server(model):
    with Server("--model", model, "--ranks", 2, "--threads", 1, "--shares", "3,1") as running:
        yield running


@pytest.fixture
def stub(server):
    return server.stub()


def test_same_bits_as_run(model, stub):
    wanted = answer("--model", model, "--prompt", PROMPT, "--max-tokens", 30, "--ignore-eos")
    text, ids, last = generate(stub, prompt=PROMPT, max_tokens=30, ignore_eos=True, logits_digest=True)
    assert (ids, text, last.logits_sha256) == (wanted["token_ids"], wanted["text"], wanted["logits_sha256"])
    assert last.usage.prompt_tokens == len(PROMPT) and last.usage.output_tokens == 30
    assert last.finish_reason == weft_pb2.FINISH_REASON_LENGTH
    assert last.timings.ttft_ms > 0


def test_sampling_settings_arrive(model, stub):
    flags = {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.3,
             "presence_penalty": 0.5, "frequency_penalty": 0.25, "seed": 5}
    arguments = [x for name, value in flags.items() for x in ("--" + name.replace("_", "-"), value)]
    wanted = answer("--model", model, "--prompt", PROMPT, "--max-tokens", 30, "--ignore-eos", *arguments)
    assert generate(stub, prompt=PROMPT, max_tokens=30, ignore_eos=True, **flags)[1] == wanted["token_ids"]
    for name, value in (("seed", 6), ("temperature", 0.0), ("repetition_penalty", 1.0), ("top_k", 2)):
        other = generate(stub, prompt=PROMPT, max_tokens=30, ignore_eos=True, **{**flags, name: value})[1]
        assert other != wanted["token_ids"], f"{name} does not arrive"


def test_stop_strings(stub):
    sampling = {"temperature": 2.0, "seed": 3, "ignore_eos": True, "max_tokens": 60, "prompt": PROMPT}
    text = generate(stub, **sampling)[0]
    stop = next(text[i:i + 2] for i in range(8, 50) if "\ufffd" not in text[i:i + 2] and text.find(text[i:i + 2]) == i)
    short, _, last = generate(stub, stop=["never", stop], **sampling)
    assert short == text[:text.find(stop)]
    assert last.finish_reason == weft_pb2.FINISH_REASON_STOP


def test_fifty_streams_equal_the_answers_alone(stub):
    requests = [{"prompt": f"{i} {PROMPT[:i]}", "max_tokens": 10 + i % 40, "ignore_eos": True, "seed": i,
                 "temperature": (i % 3) * 0.7, "logits_digest": True} for i in range(50)]
    alone = [generate(stub, **r) for r in requests]
    together = [None] * len(requests)

    def ask(i):
        together[i] = generate(stub, timeout=120, **requests[i])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, together):
        assert other is not None
        assert (one[0], one[1], one[2].logits_sha256) == (other[0], other[1], other[2].logits_sha256)


def test_cancel_in_the_middle_then_go_on(stub):
    wanted = generate(stub, prompt=PROMPT, max_tokens=20, ignore_eos=True)[1]
    for _ in range(10):
        call = stub.Generate(weft_pb2.GenerateRequest(prompt=PROMPT, max_tokens=80, ignore_eos=True))
        next(call)
        call.cancel()
    assert generate(stub, prompt=PROMPT, max_tokens=20, ignore_eos=True)[1] == wanted


def test_rough_company_changes_no_answer(model):
    """Clients that cancel, run out of time or vanish, on a full queue: whoever stays gets the right bits."""
    with Server("--model", model, "--ranks", 3, "--threads", 1, "--sequences", 6, "--queue", 20) as server:
        requests = [{"prompt": f"{i} hello there" * (1 + i % 5), "max_tokens": 5 + i * 5, "ignore_eos": True,
                     "temperature": (i % 3) * 0.8, "seed": i, "logits_digest": i % 2 == 0} for i in range(12)]
        wanted = [generate(server.stub(), **r) for r in requests]
        end = time.monotonic() + 4  # or later, on a slow machine
        wrong, right, unexpected = [], [], []

        def client(seed):
            chance, stub = random.Random(seed), server.stub()
            while time.monotonic() < end or (len(right) <= 10 and time.monotonic() < end + HANG_S):
                i = chance.randrange(len(requests))
                message = weft_pb2.GenerateRequest(**requests[i])
                try:
                    match chance.randrange(5):
                        case 0:
                            list(stub.Generate(message, timeout=chance.random() * 0.05))
                        case 1:
                            call = stub.Generate(message)
                            next(call, None)
                            call.cancel()
                        case 2:
                            channel = server.channel()
                            call = weft_pb2_grpc.InferenceStub(channel).Generate(message)
                            time.sleep(chance.random() * 0.02)
                            channel.close()
                        case _:
                            text, ids, last = generate(stub, **requests[i])
                            is_same = (text, ids, last.logits_sha256) == (*wanted[i][:2], wanted[i][2].logits_sha256)
                            (right if is_same else wrong).append(i)
                except grpc.RpcError as error:
                    if error.code() not in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED):
                        unexpected.append(error)

        threads = [threading.Thread(target=client, args=(seed,)) for seed in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (wrong, unexpected) == ([], [])
        assert len(right) > 10
        assert server.stop() == 0


def test_deadline(tmp_path):
    """Of a request that takes far longer; its place is free again."""
    model = model_folder("qwen2", tmp_path, context=200_000)
    with Server("--model", model, "--ranks", 2, "--threads", 1, "--sequences", 1, "--kv-tokens", 200_000) as server:
        stub = server.stub()
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Generate(weft_pb2.GenerateRequest(prompt=PROMPT, max_tokens=190_000, ignore_eos=True), timeout=0.3))
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert len(generate(stub, prompt=PROMPT, max_tokens=5, ignore_eos=True)[1]) == 5


def test_prompt_longer_than_the_context(stub):
    for size in (128, 129, 5000):
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Generate(weft_pb2.GenerateRequest(prompt="x" * size)))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert str(size) in caught.value.details()


def test_big_max_tokens_end_with_the_context(stub):
    _, ids, last = generate(stub, prompt="x" * 100, max_tokens=2**32 - 1, ignore_eos=True)
    assert last.finish_reason == weft_pb2.FINISH_REASON_LENGTH
    assert 100 + len(ids) in (128, 129)


@pytest.mark.parametrize("settings", [
    {"temperature": float("nan")}, {"temperature": -1.0}, {"temperature": float("inf")}, {"top_p": 0.0},
    {"top_p": 1.5}, {"min_p": 1.0}, {"repetition_penalty": 0.0}, {"presence_penalty": float("inf")},
])
def test_settings_out_of_range(stub, settings):
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Generate(weft_pb2.GenerateRequest(prompt="x", **settings)))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert next(iter(settings)) in caught.value.details()


def test_token_ids_out_of_range(stub):
    for ids in ([-1], [256], [1, 2**31 - 1]):
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Generate(weft_pb2.GenerateRequest(prompt_token_ids=ids)))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_tokenize_detokenize_roundtrip(stub):
    for text in ("", "plain", "añ€😀 \n\t", "a\0b", "x" * 100000):
        ids = stub.Tokenize(weft_pb2.TokenizeRequest(text=text)).token_ids
        assert stub.Detokenize(weft_pb2.DetokenizeRequest(token_ids=ids)).text == text
    assert stub.Detokenize(weft_pb2.DetokenizeRequest(token_ids=[-5, 2**31 - 1])).text == ""


def test_get_model(stub, model):
    served = stub.GetModel(weft_pb2.GetModelRequest())
    assert served.name == model.name
    assert served.architecture == "Qwen2ForCausalLM"
    assert (served.rank_count, served.thread_count, served.vocab_size, served.context_length) == (2, 1, 256, 128)
    assert served.comm == "shm" and served.weight_dtype == "bf16" and served.parameter_count > 0


def test_the_log_stays_quiet_about_bad_requests(server, stub):
    before = len(server.log)
    test_prompt_longer_than_the_context(stub)
    test_settings_out_of_range(stub, {"top_p": 1.5})
    assert server.log[before:] == []
