"""A server in the middle of a step that takes seconds, to be told to stop there; under any launcher."""
import re
import sys
import urllib.request

import pytest
from weft_cli import ROOT, until

sys.path.insert(0, str(ROOT / "tests" / "serve"))
import grpc  # noqa: E402
from weft_server import retry_hint, weft_pb2, weft_pb2_grpc  # noqa: E402

COUNT = 16
# The reference kernels take seconds for 1024 tokens of the demo model.
OPTIONS = ["--model", str(ROOT / "launch" / "demo-model"), "--cpu-level", "ref", "--threads", "1", "--prefill-chunk", "1024",
           "--sequences", str(COUNT), "--http", "127.0.0.1:0"]
PROMPT = "Once upon a time there was a red box and a blue bag. " * 40


def port_of(log, kind):
    """The port in the line of a server's log, None while it is not there."""
    found = re.search(rf"{kind} on .*:(\d+)", "".join(log))
    return found and int(found[1])


class Streams:
    """COUNT prompts, all being read when the constructor returns."""

    def __init__(self, grpc_port, http_port):
        stub = weft_pb2_grpc.InferenceStub(grpc.insecure_channel(f"127.0.0.1:{grpc_port}"))
        self.calls = [stub.Generate(weft_pb2.GenerateRequest(prompt=PROMPT, max_tokens=100)) for _ in range(COUNT)]
        page = f"http://127.0.0.1:{http_port}/metrics"
        assert until(lambda: f"weft_requests_running {COUNT}\n" in urllib.request.urlopen(page).read().decode(), 60)

    def were_shut_down(self):
        """Each ends with the one line of a server that stops, and a hint when to come back."""
        for call in self.calls:
            with pytest.raises(grpc.RpcError) as caught:
                list(call)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            assert caught.value.details() == "the server is shutting down"
            assert retry_hint(caught.value) >= 3
        return True
