"""A server in the middle of a step that takes seconds, to be told to stop there; under any launcher."""
import re
import sys
import urllib.request

import pytest
from weft_cli import ROOT, model_folder, until

sys.path.insert(0, str(ROOT / "tests" / "serve"))
import grpc  # noqa: E402
from weft_server import retry_hint, weft_pb2, weft_pb2_grpc  # noqa: E402

COUNT = 16
# The reference kernels take seconds for 1024 tokens of the demo model.
OPTIONS = ["--model", str(ROOT / "launch" / "demo-model"), "--cpu-level", "ref", "--threads", "1", "--prefill-chunk", "1024",
           "--sequences", str(COUNT), "--http", "127.0.0.1:0"]
PROMPT = "Once upon a time there was a red box and a blue bag. " * 40
# And many seconds for the attention of a single layer over so many positions, in which nothing can be cut short.
LAYER_POSITIONS = 16384


def layer_options(folder):
    """For a prompt that keeps every rank in one layer for much longer than a server has to stop."""
    positions = str(LAYER_POSITIONS)
    return ["--model", str(model_folder("llama2", folder, context=LAYER_POSITIONS)), "--cpu-level", "ref", "--threads", "1",
            "--prefill-chunk", positions, "--sequences", "1", "--kv-tokens", positions, "--http", "127.0.0.1:0"]


def port_of(log, kind):
    """The port in the line of a server's log, None while it is not there."""
    found = re.search(rf"{kind} on .*:(\d+)", "".join(log))
    return found and int(found[1])


class Streams:
    """Prompts, all being read when the constructor returns: COUNT of them, or the one of a long layer."""

    def __init__(self, grpc_port, http_port, is_layer=False):
        stub = weft_pb2_grpc.InferenceStub(grpc.insecure_channel(f"127.0.0.1:{grpc_port}"))
        request = weft_pb2.GenerateRequest(prompt=PROMPT, max_tokens=100)
        if is_layer:
            request = weft_pb2.GenerateRequest(prompt="a" * (LAYER_POSITIONS - 100), max_tokens=10)
        self.calls = [stub.Generate(request) for _ in range(1 if is_layer else COUNT)]
        page = f"http://127.0.0.1:{http_port}/metrics"
        running = f"weft_requests_running {len(self.calls)}\n"
        assert until(lambda: running in urllib.request.urlopen(page).read().decode(), 60)

    def were_shut_down(self):
        """Each ends with the one line of a server that stops, and a hint when to come back."""
        for call in self.calls:
            with pytest.raises(grpc.RpcError) as caught:
                list(call)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            assert caught.value.details() == "the server is shutting down"
            assert retry_hint(caught.value) >= 3
        return True
