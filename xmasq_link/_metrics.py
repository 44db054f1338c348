# SPDX-License-Identifier: Apache-2.0
"""What there is to measure, in the terms of Prometheus (exposition format 0.0.4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from ._datapath import api
from ._errors import XmasqError
from ._flow import flows, keys, peers
from ._link import HOST_COUNTERS, links
from ._model import Link, Metric, Sample
from ._netns import Netns

#: Counters that have metrics of their own, or are sums.
_ELSEWHERE = {"encoded", "encoded_bytes", "decoded", "decoded_bytes", "fallback", "bounced"}
_FALLBACK = "fb_"


def _per_link(found: list[Link]) -> Iterator[Metric]:
    def gauge(name: str, text: str, value: Callable[[Link], float]) -> Metric:
        return Metric(name, "gauge", text, tuple(Sample({"link": x.name}, value(x)) for x in found))

    yield Metric(
        "xmasq_link_info",
        "gauge",
        "What a link is",
        tuple(Sample({"link": x.name, "vni": str(x.vni), "local": x.local, "dev": x.dev}, 1) for x in found),
    )
    yield gauge("xmasq_link_up", "Whether the link is up", lambda x: int(x.up))
    yield gauge("xmasq_link_fastpath", "Whether the fast path is on", lambda x: int(x.fastpath))
    yield gauge("xmasq_link_mtu_bytes", "The link's MTU", lambda x: x.mtu)
    packets, octets, errors, dropped, reasons, events = [], [], [], [], [], []
    for x in found:
        t = x.traffic
        if t is not None:
            for direction, path, traffic in (
                ("rx", "fast", t.rx_fast),
                ("rx", "fallback", t.rx_fallback),
                ("tx", "fast", t.tx_fast),
                ("tx", "fallback", t.tx_fallback),
            ):
                labels = {"link": x.name, "direction": direction, "path": path}
                packets.append(Sample(labels, traffic.packets))
                octets.append(Sample(labels, traffic.bytes))
            for direction, bad, lost in (
                ("rx", t.rx_errors, t.rx_dropped),
                ("tx", t.tx_errors, t.tx_dropped),
            ):
                labels = {"link": x.name, "direction": direction}
                errors.append(Sample(labels, bad))
                dropped.append(Sample(labels, lost))
        for name, value in x.stats.items():
            if name.startswith(_FALLBACK):
                reasons.append(Sample({"link": x.name, "reason": name.removeprefix(_FALLBACK)}, value))
            elif name not in _ELSEWHERE and name not in HOST_COUNTERS:
                events.append(Sample({"link": x.name, "event": name}, value))
    # These belong to the namespace, and each link shows them.
    for name in HOST_COUNTERS if found else ():
        events.append(Sample({"link": "", "event": name}, found[0].stats[name]))
    for name, text, samples in (
        ("packets", "Packets through a link", packets),
        ("bytes", "Bytes through a link, Ethernet headers included", octets),
        ("errors", "Errors of the link's device", errors),
        ("dropped", "Packets that the link's device dropped", dropped),
        ("fallback_packets", "Packets that were sent as VXLAN, by reason", reasons),
        ("events", "Other things that the datapath counts", events),
    ):
        yield Metric(f"xmasq_{name}_total", "counter", text, tuple(samples))


def _per_peer() -> Iterator[Metric]:
    encoded = Counter((flow.link, flow.peer) for flow in flows())
    given = Counter((key.link, key.peer, key.state) for key in keys())
    yield Metric(
        "xmasq_flows",
        "gauge",
        "Flows that are encoded now",
        tuple(Sample({"link": link, "peer": peer}, n) for (link, peer), n in sorted(encoded.items())),
    )
    yield Metric(
        "xmasq_keys",
        "gauge",
        "Keys that are given, by state",
        tuple(
            Sample({"link": link, "peer": peer, "state": state}, n)
            for (link, peer, state), n in sorted(given.items())
        ),
    )
    known = peers()
    yield Metric(
        "xmasq_peer_heard_seconds",
        "gauge",
        "Time since a peer was last heard to speak xmasq",
        tuple(
            Sample({"peer": p.peer, "local": p.local}, p.heard_ms_ago / 1000)
            for p in known
            if p.heard_ms_ago is not None
        ),
    )
    yield Metric(
        "xmasq_peer_off_seconds",
        "gauge",
        "Time for which nothing is encoded towards a peer, because the path spoils or swallows it",
        tuple(Sample({"peer": p.peer, "local": p.local}, p.off_for_ms / 1000) for p in known),
    )


@api
def metrics(*, netns: Netns | None = None) -> list[Metric]:
    """All that there is to measure about the links of a namespace. Raises InputError, XmasqError.

    str() of a metric is its part of a page for Prometheus.
    """
    return [*_per_link(links()), *_per_peer()]


def serve_metrics(address: str, port: int) -> Callable[[], None]:
    """Serves metrics of the present namespace over HTTP, in threads. Returns what ends that.

    address: an IP address, "" for all. Needs the package prometheus-client. Raises XmasqError.
    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
        from prometheus_client.registry import Collector
    except ImportError as e:
        raise XmasqError("the Python package prometheus-client is missing: pip install xmasq[metrics]") from e

    class Links(Collector):
        def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
            for metric in metrics():
                kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
                family = kind(metric.name, metric.help, labels=list(metric.labels))
                for sample in metric.samples:
                    family.add_metric(list(sample.labels.values()), sample.value)
                yield family

    registry = CollectorRegistry()
    registry.register(Links())
    try:
        server, thread = start_http_server(port, addr=address or "0.0.0.0", registry=registry)
    except OSError as e:
        raise XmasqError(f"cannot listen on {address}:{port}: {e.strerror or e}") from e

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return end
