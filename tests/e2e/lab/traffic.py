"""traffic.py HOST:PORT idle|prefill|decode: keeps a weft serve busy and tells what a client sees, a JSON object a line:
{"what": "served"|"error"|"health", "time": CLOCK_MONOTONIC, ...}. After an error it asks until it is served again."""
import json
import pathlib
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "serve"))
import grpc  # noqa: E402
from weft_server import health_pb2, health_pb2_grpc, retry_hint, weft_pb2, weft_pb2_grpc  # noqa: E402

address, kind = sys.argv[1:]
lock = threading.Lock()


def tell(what, **more):
    with lock:
        print(json.dumps({"what": what, "time": time.monotonic(), **more}), flush=True)


def connect():
    return grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1),
                                                   ("grpc.min_reconnect_backoff_ms", 5000),
                                                   ("grpc.initial_reconnect_backoff_ms", 50),
                                                   ("grpc.max_reconnect_backoff_ms", 100)])


def ask(stub, prompt, tokens, timeout=60, is_first_told=False):
    for _ in stub.Generate(weft_pb2.GenerateRequest(prompt=prompt, max_tokens=tokens, ignore_eos=True), timeout=timeout):
        if is_first_told:
            tell("served")
            is_first_told = False


def wait_until_served():
    while True:
        try:
            return ask(weft_pb2_grpc.InferenceStub(connect()), "x", 1, 2, True)
        except grpc.RpcError:
            time.sleep(0.05)


def busy(index):
    stub = weft_pb2_grpc.InferenceStub(connect())
    while True:
        began = time.monotonic()
        try:
            # The length of the demo model's context is 256 characters and more.
            ask(stub, chr(97 + index) * 200, 1 if kind == "prefill" else 40)
        except grpc.RpcError as error:
            details = error.details() or ""
            is_ours = error.trailing_metadata() and "grpc-retry-pushback-ms" in dict(error.trailing_metadata())
            return tell("error", code=error.code().name, details=details, retry=retry_hint(error) if is_ours else None,
                        began=began)


def watch():
    try:
        for message in health_pb2_grpc.HealthStub(connect()).Watch(health_pb2.HealthCheckRequest()):
            tell("health", status=health_pb2.HealthCheckResponse.ServingStatus.Name(message.status))
    except grpc.RpcError as error:
        tell("health", status=error.code().name, details=error.details())


wait_until_served()
watcher = threading.Thread(target=watch)
watcher.start()
threads = [threading.Thread(target=busy, args=(i,)) for i in range(0 if kind == "idle" else 4)]
for thread in threads:
    thread.start()
for thread in [watcher, *threads]:
    thread.join()
wait_until_served()
