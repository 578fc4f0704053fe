"""The HTTP listener's own behaviour, over the test double of the engine: routes, odd and slow clients, the end."""
import http.client
import random
import signal
import socket
import subprocess
import time

import grpc
import pytest
from metrics_client import Scrape, get
from test_serve_fake import expected
from weft_cli import BUSY
from weft_server import FAKE, Server, generate, health_pb2, until, weft_pb2

pytestmark = pytest.mark.timeout(120)
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def fake(model="fake:token_us=200,context=64000", *arguments, **keywords):
    return Server("--model", model, "--http", "127.0.0.1:0", *arguments, binary=FAKE, **keywords)


@pytest.fixture(scope="module")
def server():
    with fake() as running:
        yield running


def connect(server, host="127.0.0.1"):
    return socket.create_connection(("127.0.0.1", server.http_port), timeout=60, source_address=(host, 0))


def raw(server, data):
    """What comes back on a connection that sends `data` and then says no more, until it ends."""
    with connect(server) as link:
        try:
            link.sendall(data)
            link.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has already been cut
        answer = b""
        try:
            while piece := link.recv(65536):
                answer += piece
        except ConnectionResetError:
            pass
        return answer


def check_well(server):
    """Nothing has been hurt: both servers answer, and an answer is right."""
    assert get(server.http_port, "/health")[::2] == (200, b"serving\n")
    assert generate(server.stub(), prompt="hello", max_tokens=20)[0] == expected("hello", 20)


def test_there_is_no_http_unless_asked_for():
    with Server("--model", "fake:", binary=FAKE) as running:
        assert running.http_port is None and not any("HTTP" in line for line in running.log)


def test_routes(server):
    status, headers, body = get(server.http_port, "/health")
    assert (status, headers["Content-Type"], body) == (200, "text/plain; charset=utf-8", b"serving\n")
    for path in ("/", "/metric", "/metrics/", "/health/x", "//metrics", "/%00metrics", "/METRICS"):
        assert get(server.http_port, path)[0] == 404, path
    for path in ("/metrics?name=x", "/health?", "/%6detrics"):
        assert get(server.http_port, path)[0] == 200, path
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get", "BREW"):
        status, headers, _ = get(server.http_port, "/health", method)
        assert (status, headers["Allow"]) == (405, "GET, HEAD"), method
        assert get(server.http_port, "/nowhere", method)[0] == 404


def test_head_is_get_without_a_body(server):
    status, headers, body = get(server.http_port, "/health", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "8", b"")
    status, headers, body = get(server.http_port, "/metrics", "HEAD")
    assert status == 200 and int(headers["Content-Length"]) > 1000 and body == b""


def test_one_connection_serves_many_requests(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    for _ in range(100):
        connection.request("GET", "/health")
        assert connection.getresponse().read() == b"serving\n"
    link = connection.sock
    connection.request("POST", "/health", body=b"x" * 100000)
    assert connection.getresponse().read() != b""
    connection.request("GET", "/health")
    assert connection.getresponse().read() == b"serving\n" and connection.sock is link
    connection.close()


def test_pipelined_requests_are_all_answered(server):
    answer = raw(server, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
    assert answer.count(b"HTTP/1.1 200 OK") == 200 and answer.count(b"serving\n") == 200


HOST = b"Host: x\r\n"
ODD = {
    "nothing": (b"", None),
    "half a request": (b"GET /metr", None),
    "headers without end": (b"GET /metrics HTTP/1.1\r\n" + HOST, None),
    "a huge header": (b"GET /health HTTP/1.1\r\n" + HOST + b"A: " + b"x" * 100_000 + b"\r\n\r\n", b"431"),
    "many headers": (b"GET /health HTTP/1.1\r\n" + HOST + b"A: b\r\n" * 50_000 + b"\r\n", b"431"),
    "a long path": (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", b"414"),
    "a path that is no UTF-8": (b"GET /\xff\xfe\xc0\x80 HTTP/1.1\r\n" + HOST + b"\r\n", b"404"),
    "escapes that are none": (b"GET /%zz%%%f HTTP/1.1\r\n" + HOST + b"\r\n", b"404"),
    "a NUL in the path": (b"GET /health\0x HTTP/1.1\r\n" + HOST + b"\r\n", None),
    "a NUL in a header": (b"GET /health HTTP/1.1\r\n" + HOST + b"A: \0\r\n\r\n", None),
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", b"200"),
    "HTTP/1.0": (b"GET /health HTTP/1.0\r\n\r\n", b"200"),
    "HTTP/0.9": (b"GET /health\r\n", None),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", None),
    "TLS": (bytes.fromhex("16030100c6010000c20303") + b"\0" * 200, None),
    "noise": (bytes(random.Random(1).randbytes(5000)), None),
    "a large body": (b"POST /metrics HTTP/1.1\r\n" + HOST + b"Content-Length: 500000\r\n\r\n" + b"x" * 500_000, b"405"),
    "a body announced too large": (b"POST /metrics HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999999\r\n\r\n", b"413"),
    "a body that is less than announced": (b"POST /metrics HTTP/1.1\r\n" + HOST + b"Content-Length: 500\r\n\r\nx", None),
    "a negative body": (b"POST /metrics HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n", b"400"),
    "a body with GET": (b"GET /health HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc", b"200"),
    "chunks": (b"POST /health HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", b"405"),
    "chunks without end": (b"POST /health HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + b"8000\r\n" +
                           b"x" * 0x8000 + b"\r\n" + (b"8000\r\n" + b"x" * 0x8000 + b"\r\n") * 40, None),
    "chunks that are none": (b"POST /health HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
    "100-continue": (b"GET /health HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\n\r\n", b"100"),
    "any resource": (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", b"404"),
    "a tunnel": (b"CONNECT example.com:443 HTTP/1.1\r\n" + HOST + b"\r\n", b"404"),
    "a whole URL": (b"GET http://x/health HTTP/1.1\r\n" + HOST + b"\r\n", None),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_request_hurts_nobody(server, name):
    data, status = ODD[name]
    stream = server.stub().Generate(weft_pb2.GenerateRequest(prompt="hello", max_tokens=400), timeout=60)
    text = next(stream).text  # perhaps of several tokens
    for _ in range(3):
        answer = raw(server, data)
        if status is not None:
            assert answer.startswith((b"HTTP/1.1 " + status, b"HTTP/1.0 " + status)), answer[:200]
        else:
            assert b" 500 " not in answer[:20]
    assert text + "".join(m.text for m in stream) == expected("hello", 400)
    check_well(server)


def test_noise_hurts_nobody(server):
    chance = random.Random(7)
    pieces = [b"GET ", b"POST ", b"/metrics", b"/health", b" HTTP/1.1\r\n", b"\r\n", b"\r\n\r\n", b"Host: x\r\n", b"\0", b"%", b"\xff",
              b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"5\r\n", b"0\r\n\r\n", b"Connection: close\r\n", b":", b" "]
    for _ in range(300):
        raw(server, b"".join(chance.choice(pieces) for _ in range(chance.randrange(1, 12))))
    check_well(server)


def test_a_client_that_never_reads_holds_nobody_up(server):
    with connect(server) as link:
        link.settimeout(1)
        try:
            for _ in range(3000):
                link.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        except TimeoutError:
            pass
        check_well(server)


def test_slow_clients_leave_room_for_others(server):
    """More than may come from one address; the rest are cut. Whoever comes from elsewhere is answered, and so is gRPC."""
    links = []
    for _ in range(80):
        links.append(connect(server))
        links[-1].sendall(b"GET /metrics HTTP/1.1\r\nHos")
    assert get(server.http_port, "/health", source_address=("127.0.0.2", 0))[0] == 200
    assert Scrape(server.http_port, source_address=("127.0.0.3", 0))["weft_serving"] == 1
    assert generate(server.stub(), prompt="hello", max_tokens=20)[0] == expected("hello", 20)
    for link in links:
        link.close()
    assert until(lambda: len(raw(server, b"GET /health HTTP/1.0\r\n\r\n")) > 0)
    check_well(server)


def test_many_scrapes_at_once_change_no_answer(server):
    streams = [server.stub().Generate(weft_pb2.GenerateRequest(prompt=f"{i}", max_tokens=200), timeout=60) for i in range(10)]
    for _ in range(50):
        Scrape(server.http_port)
    for i, stream in enumerate(streams):
        assert "".join(m.text for m in stream) == expected(f"{i}", 200)


def test_names_of_models_are_escaped():
    name = 'fake:a"b\\c\nd\\n{},é'
    with fake(name) as running:
        labels = Scrape(running.http_port).families["weft_model_info"].samples[0].labels
        assert labels["model"] == name


def test_while_draining_health_is_503_and_http_holds_up_nothing(hold):
    with fake(f"fake:hold={hold}", "--drain", "1h") as running:
        kept, half = connect(running), connect(running)
        kept.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in kept.recv(65536)
        half.sendall(b"GET /metrics HTT")
        assert Scrape(running.http_port)["weft_serving"] == 1
        stream = running.stub().Generate(weft_pb2.GenerateRequest(prompt="hello", max_tokens=200), timeout=60)
        text = next(stream).text
        running.process.send_signal(signal.SIGTERM)
        assert until(lambda: get(running.http_port, "/health")[0] == 503)
        assert get(running.http_port, "/health")[2] == b"the server is shutting down\n"
        reply = running.health().Check(health_pb2.HealthCheckRequest(service="readiness"), timeout=60)
        assert reply.status == NOT_SERVING
        scrape = Scrape(running.http_port)
        assert scrape["weft_serving"] == 0 and scrape["weft_requests_running"] == 1
        hold.unlink()
        text += "".join(m.text for m in stream)
        assert text == expected("hello", 200)
        assert running.wait() == 0
        kept.close()
        half.close()


def test_a_lost_group_ends_all_the_same():
    with fake("fake:token_us=1000") as running:
        links = [connect(running) for _ in range(5)]
        links[0].sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nA: ")
        with pytest.raises(grpc.RpcError):
            list(running.stub().Generate(weft_pb2.GenerateRequest(prompt="<fail>", max_tokens=50), timeout=60))
        assert running.wait() == 1
        for link in links:
            link.close()


def test_stop_under_a_storm_of_requests():
    for seed in range(5):
        with fake("fake:token_us=100") as running:
            links = [connect(running) for _ in range(20)]
            for link in links:
                link.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
            time.sleep(random.Random(seed).random() * 0.02)
            assert running.stop() == 0
            for link in links:
                link.close()


def start(*arguments):
    return subprocess.run([FAKE, "serve", "--model", "fake:", "--grpc", "127.0.0.1:0", *arguments], capture_output=True,
                          text=True, timeout=60)


def test_an_address_that_cannot_be():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = start("--http", address)
        assert done.returncode == BUSY and done.stderr.strip().splitlines()[-1].endswith(f"cannot listen on {address}: Address already in use")
    for word in ("9001", "here:", "[::1]", ":9001", "127.0.0.1:99999", ""):
        done = start("--http", word)
        assert done.returncode == 2 and "expected HOST:PORT" in done.stderr, word


def test_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with Server("--model", "fake:", "--http", "[::1]:0", binary=FAKE) as running:
        assert get(running.http_port, "/health", host="::1")[0] == 200
