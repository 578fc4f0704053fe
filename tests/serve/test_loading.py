"""While the model loads: the ports are taken and answer, but nobody takes this server for a ready one."""
import signal

import grpc
import pytest
from metrics_client import get
from test_serve_fake import expected
from weft_cli import free_port
from weft_server import FAKE, Server, generate, health_pb2, retry_hint, until, weft_pb2

pytestmark = pytest.mark.timeout(120)
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
LOADING = "the model is loading"


class Loading(Server):
    """Loads until the file `hold` is gone."""

    def __init__(self, hold):
        http_port = free_port()
        super().__init__("--model", f"fake:load={hold}", "--http", f"127.0.0.1:{http_port}", binary=FAKE, port=free_port())
        self.http_port = http_port
        assert until(self.is_listening), self.log

    def is_listening(self):
        try:
            return get(self.http_port, "/health") is not None
        except OSError:
            return False

    def check(self, service):
        return self.health().Check(health_pb2.HealthCheckRequest(service=service), wait_for_ready=True).status


def test_probes_are_answered_and_requests_refused(hold):
    with Loading(hold) as server:
        status, _, body = get(server.http_port, "/health")
        assert (status, body) == (503, f"{LOADING}\n".encode())
        states = {name: server.check(name) for name in ("", "weft.v1.Inference", "readiness", "startup", "liveness")}
        assert states.pop("liveness") == SERVING
        assert set(states.values()) == {NOT_SERVING}
        status, _, body = get(server.http_port, "/metrics")
        assert status == 200 and b"\nweft_serving 0\n" in body and b"weft_model_info" not in body
        for call in (lambda: generate(server.stub(), prompt="x", max_tokens=1),
                     lambda: server.stub().Tokenize(weft_pb2.TokenizeRequest(text="x")),
                     lambda: server.stub().Detokenize(weft_pb2.DetokenizeRequest(token_ids=[1])),
                     lambda: server.stub().GetModel(weft_pb2.GetModelRequest())):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNAVAILABLE, LOADING)
            assert retry_hint(caught.value) >= 1
        assert not any("ready" in line for line in server.log)

        watch = server.health().Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == NOT_SERVING
        hold.unlink()
        assert next(watch).status == SERVING
        server.wait_ready()
        assert get(server.http_port, "/health")[0] == 200
        assert {server.check(name) for name in ("", "readiness", "startup", "liveness")} == {SERVING}
        assert generate(server.stub(), prompt="hello", max_tokens=20)[0] == expected("hello", 20)


def test_a_load_that_fails_tells_watchers_and_ends(hold):
    with Loading(hold) as server:
        watch = server.health().Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == NOT_SERVING
        (hold.parent / "bad").write_text("bad")
        (hold.parent / "bad").rename(hold)
        with pytest.raises(grpc.RpcError) as caught:
            next(watch)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert server.wait() > 0
        assert any("damaged" in line for line in server.log)


def test_a_signal_ends_it(hold):
    with Loading(hold) as server:
        assert server.stop() == 128 + signal.SIGTERM
        assert server.log[-1] == "weft: interrupted while loading\n"
