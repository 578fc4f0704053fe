"""Hosts with two networks, and with IPv6 only."""
import json
import subprocess

import pytest

from hosts import HANG, MODEL, WEFT, Lab, finish, until

HOST_COUNT = 3
ANSWER = ["run", "--model", str(MODEL), "--prompt", "Sort: 7 3 9 1", "--max-tokens", "12", "--temperature", "0",
          "--threads", "1", "--ignore-eos", "--output", "json"]
# Of a network that carried the sums of an answer: several times what greetings and plans take.
MANY = 100000

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def wanted():
    done = subprocess.run([WEFT, *ANSWER], capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["logits_sha256"]


@pytest.fixture(scope="module")
def two_networks():
    """eth0 by 10.77.0.x and fd77::x, wire by 10.78.0.x and fd78::x; the hosts' names stand for eth0."""
    lab = Lab(HOST_COUNT, LAB_WIRE="1000 20")
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def only_ipv6():
    lab = Lab(HOST_COUNT, LAB_FAMILY="6")
    yield lab
    lab.close()


def run_by_hand(lab, wanted, leader, *more):
    ranks = [lab.start(r, WEFT, *ANSWER, "--leader", leader, "--rank", r, "--rank-count", HOST_COUNT, *more)
             for r in range(HOST_COUNT)]
    results = [finish(rank) for rank in ranks]
    assert [code for code, _, _ in results] == [0] * HOST_COUNT, results
    assert json.loads(results[0][1])["logits_sha256"] == wanted


def received(lab, interface):
    """Bytes that host 1 has received."""
    code, stdout, stderr = finish(lab.start(1, "cat", f"/sys/class/net/{interface}/statistics/rx_bytes"))
    assert code == 0, stderr
    return int(stdout)


@pytest.mark.parametrize("comm", ["tcp", "ucx"])
@pytest.mark.parametrize("interface, carrier", [("wire", "wire"), ("eth0", "eth0"), ("10.78.0.0/24", "wire"),
                                                ("fd78::/64", "wire"), ("nothing,wire,eth0", "wire"), ("eth0,wire", "eth0")])
def test_interface(two_networks, wanted, comm, interface, carrier):
    """The sums go over the network that was named, by name, CIDR or list; the rendezvous where --leader says."""
    if comm == "ucx" and "," in interface:
        pytest.skip("ucx takes what it likes best of a list")
    other = "eth0" if carrier == "wire" else "wire"
    before = {name: received(two_networks, name) for name in (carrier, other)}
    run_by_hand(two_networks, wanted, "node0:5001", "--comm", comm, "--interface", interface)
    grown = {name: received(two_networks, name) - before[name] for name in (carrier, other)}
    assert grown[carrier] > MANY > grown[other], grown


def test_rendezvous_of_mpi_follows_interface(two_networks, wanted):
    """All that Weft sends goes over wire; what is left on eth0 is mpirun's own."""
    before = received(two_networks, "wire")
    code, stdout, stderr = finish(two_networks.start(0, "mpirun", "-n", HOST_COUNT, WEFT, *ANSWER, "--interface", "wire"))
    assert code == 0, stderr
    assert json.loads(stdout)["logits_sha256"] == wanted
    assert received(two_networks, "wire") - before > MANY


def test_cut_of_the_data_network():
    """Heartbeats to the leader and the rendezvous go over eth0, the data over wire: host 2's wire is pulled, while idle."""
    lab = Lab(HOST_COUNT, LAB_WIRE="1000 20")
    try:
        ranks = [lab.start(r, WEFT, "serve", "--model", MODEL, "--threads", "1", "--leader", "node0:5004", "--rank", r,
                           "--rank-count", HOST_COUNT, "--interface", "wire") for r in range(HOST_COUNT)]
        lines = []
        assert any("gRPC on" in (lines.append(line) or line) for line in ranks[0].stderr), lines
        finish(lab.start(2, "ip", "link", "set", "wire", "down"))
        assert until(lambda: all(rank.poll() is not None for rank in ranks)), "no rank noticed"
        log = finish(ranks[0])[2]
    finally:
        lab.close()
    assert "rank 2 on node2 failed: no answer between it and rank" in log, log


@pytest.mark.parametrize("leader", ["node0:5002", "[fd77::10]:5003"])
@pytest.mark.parametrize("comm", ["auto", "tcp", "ucx"])
def test_ipv6_only(only_ipv6, wanted, comm, leader):
    run_by_hand(only_ipv6, wanted, leader, "--comm", comm)


def test_unknown_interface(only_ipv6):
    """Named, with what was asked for; no rank hangs."""
    ranks = [only_ipv6.start(r, WEFT, *ANSWER, "--leader", "node0:5004", "--rank", r, "--rank-count", HOST_COUNT, "--comm",
                             "tcp", "--interface", "eth7,10.0.0.0/8") for r in range(HOST_COUNT)]
    results = [finish(rank) for rank in ranks]
    assert all(code != 0 for code, _, _ in results)
    assert "no address matches interface eth7,10.0.0.0/8 on rank 0" in results[0][2], results


def test_doctor_finds_vanishing_packets():
    """The network takes 1400 bytes where the interfaces say 1500, and nobody tells: named with both numbers, in seconds."""
    lab = Lab(2, LAB_WIRE="1000 20 1400")
    try:
        ranks = [lab.start(r, WEFT, "doctor", "--output", "json", "--leader", "[fd78::10]:5001", "--rank", r, "--rank-count",
                           2, "--interface", "wire", "--timeout", "20") for r in range(2)]
        code, stdout, stderr = finish(ranks[0])
        assert code == 1 and stdout, stderr
        assert finish(ranks[1])[0] == 1
    finally:
        lab.close()
    report = json.loads(stdout)
    errors = [f["what"] for f in report["findings"] if f["severity"] == "error"]
    assert errors == ["packets from node0 and back larger than 1400 bytes vanish on the way, its interface wire says 1500"]
    assert report["links"][0]["bandwidth_bytes_per_s"] is None and report["links"][0]["latency_us"] > 0
