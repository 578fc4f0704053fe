"""GET over a connection of its own, and /metrics as Prometheus' own parser reads it."""
import http.client

from prometheus_client.parser import text_string_to_metric_families

TIMEOUT_S = 30  # less than the server waits for a silent client


def get(port, path, method="GET", host="127.0.0.1", **keywords):
    """Status, headers and body of one answer."""
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S, **keywords)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


class Scrape:
    """One reading of /metrics: families by name, and values of samples by name and labels."""

    def __init__(self, port, **keywords):
        status, headers, body = get(port, "/metrics", **keywords)
        assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        self.families = {f.name: f for f in text_string_to_metric_families(body.decode())}
        self.samples = {}
        for family in self.families.values():
            assert family.type in ("gauge", "counter", "histogram") and family.documentation, family
            for sample in family.samples:
                key = sample.name, tuple(sorted(sample.labels.items()))
                assert key not in self.samples, f"{key} stands there twice"
                self.samples[key] = sample.value

    def __getitem__(self, name):
        return self.value(name)

    def value(self, name, **labels):
        return self.samples[name, tuple(sorted(labels.items()))]

    def results(self):
        """weft_requests_total by result, without those that are 0."""
        found = {dict(labels)["result"]: int(v) for (name, labels), v in self.samples.items() if name == "weft_requests_total"}
        assert set(found) == {"stop", "length", "cancelled", "error", "refused"}
        return {name: count for name, count in found.items() if count}

    def buckets(self, name):
        """Upper bound and cumulative count of a histogram's buckets, in ascending order."""
        return sorted((float(dict(labels)["le"]), v) for (n, labels), v in self.samples.items() if n == name + "_bucket")

    def histograms(self):
        return [f.name for f in self.families.values() if f.type == "histogram"]

    def growing(self):
        """Every value that must never fall."""
        return {(s.name, tuple(s.labels.items())): s.value
                for f in self.families.values() if f.type != "gauge" for s in f.samples}

    def names(self):
        """As queries write them: counters with _total, histograms without _bucket."""
        return {f.samples[0].name if f.type != "histogram" else f.name for f in self.families.values()}
