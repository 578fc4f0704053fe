"""Starting `weft serve` as a process and talking to it; shared by the tests of this folder and tests/e2e."""
import atexit
import importlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading

import grpc

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from weft_cli import BUILD, HANG_S, ROOT, WEFT, until  # noqa: E402,F401

FAKE = BUILD / "weft_fake"


def _protos():
    """The Python modules of weft.proto and health.proto, generated here and now as a client would."""
    from grpc_tools import protoc

    out = tempfile.mkdtemp(prefix="weft-proto-")
    atexit.register(shutil.rmtree, out, ignore_errors=True)
    source = ROOT / "runtime" / "serve"
    for name in ("weft", "health", "retry"):
        status = protoc.main(["protoc", f"-I{source}", f"--python_out={out}", f"--grpc_python_out={out}",
                              f"{name}.proto"])
        assert status == 0, f"protoc: {name}.proto"
    sys.path.insert(0, out)
    return [importlib.import_module(m) for m in ("weft_pb2", "weft_pb2_grpc", "health_pb2", "health_pb2_grpc", "retry_pb2")]


weft_pb2, weft_pb2_grpc, health_pb2, health_pb2_grpc, retry_pb2 = _protos()


def retry_hint(error):
    """Seconds after which to try again, from the trailing metadata of an UNAVAILABLE; both forms say the same."""
    trailing = dict(error.trailing_metadata() or ())
    status = retry_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    assert (status.code, status.message) == (grpc.StatusCode.UNAVAILABLE.value[0], error.details())
    assert [d.type_url for d in status.details] == ["type.googleapis.com/google.rpc.RetryInfo"]
    delay = retry_pb2.RetryInfo.FromString(status.details[0].value).retry_delay
    seconds = delay.seconds + delay.nanos / 1e9
    assert abs(seconds - int(trailing["grpc-retry-pushback-ms"]) / 1000) < 0.001
    return seconds


class Server:
    """A `weft serve` process on a free port. Its standard error is collected in .log.

    With a `port` the constructor does not wait until it serves: .wait_ready() does.
    """

    def __init__(self, *arguments, binary=WEFT, environment=None, wrapper=(), port=None):
        command = [*wrapper, str(binary), "serve", "--grpc", f"127.0.0.1:{port or 0}", *map(str, arguments)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env={**os.environ, **(environment or {})})
        self.log = []
        self.port = port
        self.http_port = None
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if port is None:
            self.wait_ready()

    def wait_ready(self):
        if not self._ready.wait(HANG_S) or not any("gRPC on" in line for line in self.log):
            self.kill()
            raise AssertionError("weft serve did not start:\n" + "".join(self.log))

    def _read(self):
        for line in self.process.stderr:
            self.log.append(line)
            found = re.search(r"(gRPC|HTTP) on .*:(\d+)", line)
            if found and found.group(1) == "HTTP":
                self.http_port = int(found.group(2))
            elif found:
                self.port = int(found.group(2))
                self._ready.set()
        self._ready.set()

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def channel(self, *options):
        return grpc.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1), *options])

    def stub(self):
        return weft_pb2_grpc.InferenceStub(self.channel())

    def health(self):
        return health_pb2_grpc.HealthStub(self.channel())

    def wait(self, timeout=HANG_S):
        code = self.process.wait(timeout)
        self._reader.join(5)
        return code

    def stop(self, number=signal.SIGTERM, timeout=HANG_S):
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait(timeout)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self._reader.join(5)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()
                raise


def generate(stub, timeout=60, **request):
    """Whole answer of one Generate call: text, ids and the last message."""
    text, ids, last = "", [], None
    for message in stub.Generate(weft_pb2.GenerateRequest(**request), timeout=timeout):
        assert last is None or last.finish_reason == weft_pb2.FINISH_REASON_UNSPECIFIED
        text += message.text
        ids += list(message.token_ids)
        last = message
    assert last is not None and last.finish_reason != weft_pb2.FINISH_REASON_UNSPECIFIED
    return text, ids, last
