# SPDX-License-Identifier: Apache-2.0
"""The CNI plugin's configuration and results. Needs no network; the rest is in tests/e2e/test_cni.py."""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lab import ROOT
from xmasq_link._cni import config, result
from xmasq_link._cni.errors import CniError

GOOD: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "name": "pods",
    "type": "xmasq-cni",
    "network": "198.51.100.0/24",
    "peers": [{"subnet": "198.51.100.32/28", "address": "192.0.2.2"}],
    "ipam": {"type": "host-local", "subnet": "198.51.100.16/28"},
}


def refused(**change: Any) -> CniError:
    raw = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    with pytest.raises(CniError) as caught:
        config.parse(raw)
    assert "\n" not in caught.value.msg
    return caught.value


def test_defaults():
    network = config.parse(GOOD)
    assert (network.encapsulation, network.vni, network.port, network.link) == ("xmasq", 1, 4789, "xm1")
    assert network.subnets == (ipaddress.ip_network("198.51.100.16/28"),)
    (peer,) = network.peers
    assert (str(peer.vtep), peer.mac, peer.family) == ("192.0.2.2", "02:78:c0:00:02:02", 4)
    assert not network.ip_masq
    assert network.mac is None


def test_a_link_address_is_a_local_unicast_one_and_depends_on_the_vtep():
    found = {config.mac_of(ipaddress.ip_address(a), 7) for a in ("192.0.2.1", "192.0.2.2", "2001:db8::1")}
    assert len(found) == 3
    for mac in found:
        assert config.read_mac("", mac) == mac
        assert int(mac[:2], 16) & 3 == 2


@pytest.mark.parametrize(
    ("code", "word", "change"),
    [
        (1, "cniVersion", {"cniVersion": "0.3.1"}),
        (1, "cniVersion", {"cniVersion": None}),
        (2, "pears", {"pears": []}),
        (7, "cniVersion", {"cniVersion": 1}),
        (7, "name", {"name": None}),
        (7, "name", {"name": "../x"}),
        (7, "name", {"name": "a\nb"}),
        (7, "encapsulation", {"encapsulation": "gre"}),
        (7, "vni", {"vni": True}),
        (7, "vni", {"vni": -1}),
        (7, "port", {"port": 65536}),
        (7, "link", {"link": "a b"}),
        (7, "link", {"link": ""}),
        (7, "mtu", {"mtu": 67}),
        (7, "ipMasq", {"ipMasq": "yes"}),
        (7, "network", {"network": None, "ipMasq": True}),
        (7, "network", {"network": None, "encapsulation": "none"}),
        (7, "network", {"network": "198.51.100.1/24"}),
        (7, "network", {"network": ["198.51.100.0/24", "203.0.113.0/24"]}),
        (7, "subnet", {"subnet": "203.0.113.0/28"}),
        (7, "subnet", {"ipam": {"type": "dhcp"}}),
        (7, "ipam", {"ipam": None, "subnet": "198.51.100.16/28"}),
        (7, "ipam", {"ipam": "host-local"}),
        (7, "secretFile", {"secretFile": "/x", "encapsulation": "vxlan"}),
        (7, "peers", {"peers": {}}),
        (7, "peers[0]", {"peers": ["192.0.2.2"]}),
        (7, "peers[0].adress", {"peers": [{"adress": "192.0.2.2"}]}),
        (7, "peers[0].mac", {"peers": [{**GOOD["peers"][0], "mac": "01:00:5e:00:00:01"}]}),
        (7, "peers[0].address", {"peers": [{**GOOD["peers"][0], "address": "224.0.0.1"}]}),
        (7, "peers[0].address", {"peers": [{**GOOD["peers"][0], "address": "2001:db8::1"}]}),
        (7, "peers.subnet", {"peers": GOOD["peers"] * 2}),
        (7, "peers", {"peers": [{"subnet": "198.51.100.0/26", "address": "192.0.2.2"}]}),
        (7, "peers", {"datastore": "kubernetes"}),
        (7, "datastore", {"datastore": 5, "peers": None}),
        (7, "datastore.type", {"datastore": {"type": "consul"}, "peers": None}),
        (7, "datastore.endpoints", {"datastore": {"type": "etcd", "endpoints": ["a:1"]}, "peers": None}),
        (7, "datastore.lease", {"datastore": {"type": "etcd", "lease": 1}, "peers": None}),
        (7, "datastore.color", {"datastore": {"type": "etcd", "color": 1}, "peers": None}),
        (7, "runtimeConfig.mac", {"runtimeConfig": {"mac": "ff:ff:ff:ff:ff:ff"}}),
    ],
)
def test_bad_values_name_their_key(code, word, change):
    error = refused(**change)
    assert error.code == code
    assert error.msg.startswith((f"{word}:", f'"{word}"')), error.msg


def test_taking_away_works_with_nearly_any_configuration():
    raw = {"cniVersion": "1.0.0", "name": "pods", "pears": 1}
    assert config.parse(raw, strict=False).name == "pods"
    for raw in ("text", [], None, {"cniVersion": "1.0.0"}):
        with pytest.raises(CniError):
            config.parse(raw, strict=False)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.sampled_from(sorted(config._COMMON | config._OURS)), JSON, st.booleans())
def test_any_json_is_accepted_or_refused_in_one_line(key, value, strict):
    error = None
    try:
        config.parse({**GOOD, key: value}, strict=strict)
    except CniError as e:
        error = e
    assert error is None or (error.code in (1, 2, 7) and error.msg.isprintable())


@pytest.mark.parametrize("version", config.VERSIONS)
def test_results_by_version(version):
    network = config.parse({**GOOD, "cniVersion": version, "dns": {"domain": "example"}})
    interfaces = [{"name": "h", "mtu": 1500}, {"name": "eth0", "sandbox": "/x", "mtu": 1500}]
    ips = [{"address": "198.51.100.18/28", "gateway": "198.51.100.17", "version": "4", "interface": 9}]
    made = result.make(network, interfaces, {"ips": ips, "routes": [{"dst": "0.0.0.0/0"}]})
    assert made["cniVersion"] == version
    assert all(("mtu" in item) == (version == "1.1.0") for item in made["interfaces"])
    assert made["ips"][0]["interface"] == 1
    assert ("version" in made["ips"][0]) == (version == "0.4.0")
    assert made["dns"] == {"domain": "example"}


def plugin(text: str, **env: str) -> tuple[int, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "xmasq_link._cni"],
        input=text.encode(errors="surrogateescape"),
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, **env},
        timeout=60,
    )
    assert not done.stderr
    return done.returncode, json.loads(done.stdout)


def test_the_program_answers_in_json():
    status, answer = plugin("", CNI_COMMAND="VERSION")
    assert (status, answer["supportedVersions"]) == (0, ["0.4.0", "1.0.0", "1.1.0"])
    for code, text, env in (
        (4, "{}", {}),
        (6, "\udcff", {"CNI_COMMAND": "STATUS"}),
        (7, "[]", {"CNI_COMMAND": "STATUS"}),
        (4, json.dumps(GOOD), {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "-", "CNI_IFNAME": "a"}),
    ):
        status, answer = plugin(text, **env)
        assert (status, answer["code"]) == (1, code)


def test_what_needs_no_netlink_does_not_load_it():
    """Start-up is paid for each container; VERSION and errors are asked for often."""
    code = "import sys, xmasq_link._cni.plugin; print('pyroute2' in sys.modules, 'kubernetes' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_the_manifest_holds_together():
    """Its configuration is accepted, and the role allows what the agent does."""
    yaml = pytest.importorskip("yaml")
    text = (ROOT / "docs/deploy/kubernetes.yaml").read_text()
    objects = {item["kind"]: item for item in yaml.safe_load_all(text)}
    conflist = json.loads(objects["ConfigMap"]["data"]["10-xmasq.conflist"])
    plugin = {**conflist["plugins"][0], "name": conflist["name"], "cniVersion": conflist["cniVersion"]}
    network = config.parse(plugin)
    assert network.datastore == config.Datastore("kubernetes", {})
    (rule,) = objects["ClusterRole"]["rules"]
    assert (rule["resources"], set(rule["verbs"])) == (["nodes"], {"get", "list", "watch", "patch"})
    spec = objects["DaemonSet"]["spec"]["template"]["spec"]
    assert spec["hostNetwork"]
    mounted = {
        mount["name"] for c in spec["initContainers"] + spec["containers"] for mount in c["volumeMounts"]
    }
    assert mounted == {volume["name"] for volume in spec["volumes"]}
    (agent,) = spec["containers"]
    assert agent["args"][0] == "/config/10-xmasq.conflist"
    assert network.run_dir.startswith(
        next(m["mountPath"] for m in agent["volumeMounts"] if m["name"] == "run")
    )
