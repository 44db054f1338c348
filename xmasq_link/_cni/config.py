# SPDX-License-Identifier: Apache-2.0
"""The network configuration: from JSON to checked values. Knows nothing of the host."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import INCOMPATIBLE_VERSION, INVALID_CONFIG, UNSUPPORTED_FIELD, CniError, invalid

VERSIONS = ("0.4.0", "1.0.0", "1.1.0")
TYPE = "xmasq-cni"
RUN_DIR = "/run/xmasq/cni"
ENCAPSULATIONS = ("xmasq", "vxlan", "none")
IPV4, IPV6 = 4, 6

Ip = ipaddress.IPv4Address | ipaddress.IPv6Address
Net = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Of the specification and of runtimes; the rest are ours.
_COMMON = frozenset(
    {"cniVersion", "cniVersions", "name", "type", "args", "capabilities", "runtimeConfig", "prevResult"}
    | {"ipMasq", "ipam", "dns", "disableCheck"}
)
_OURS = frozenset(
    {"encapsulation", "vni", "port", "link", "underlay", "mtu", "secretFile", "network", "subnet"}
    | {"subnetLength", "peers", "datastore", "runDir"}
)
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_CONTAINER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A node in one address family: its containers' subnet, and where the tunnel to it ends.

    mac: the link's address at that node, which frames to the subnet are sent to.
    """

    subnet: Net
    vtep: Ip
    mac: str

    @property
    def family(self) -> int:
        """4 or 6: the subnet's, which is the underlay's as well."""
        return self.subnet.version


@dataclass(frozen=True, slots=True)
class Datastore:
    """Where nodes publish themselves. options: by kind, see docs/cni.md."""

    kind: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Network:
    """A network configuration, checked as far as that needs no look at the host."""

    name: str
    version: str
    encapsulation: str
    vni: int
    port: int
    link: str
    underlay: str | None
    mtu: int | None
    secret_file: str | None
    cluster: tuple[Net, ...]
    subnets: tuple[Net, ...]
    subnet_length: int
    peers: tuple[Endpoint, ...]
    datastore: Datastore | None
    ip_masq: bool
    mac: str | None
    run_dir: str
    raw: dict[str, Any] = field(repr=False)


def mac_of(vtep: Ip, vni: int) -> str:
    """The link address that a node has unless it says otherwise: local, unicast, made from its VTEP address.

    So a static list of peers needs no link addresses, and a node that moves to another address gets
    another one: nothing that was learnt about the old one can then be mistaken for the new.
    """
    if vtep.version == IPV4:
        return "02:78:" + vtep.packed.hex(":")
    from hashlib import blake2b

    return "02:36:" + blake2b(vtep.packed + vni.to_bytes(3, "big"), digest_size=4).digest().hex(":")


def parse(raw: Any, *, strict: bool = True) -> Network:
    """The configuration that a runtime gives on standard input. Raises CniError.

    strict: also refuse keys that nothing is known of, and values that only setting up needs. What
    takes things away must work with whatever there is.
    """
    if not isinstance(raw, dict):
        raise CniError(INVALID_CONFIG, "the network configuration is not a JSON object")
    version = _get(raw, "cniVersion", str, "0.1.0")  # the specification's default, too old for us
    if version not in VERSIONS:
        raise CniError(
            INCOMPATIBLE_VERSION,
            f'cniVersion: "{version}" is not supported',
            f"supported are {', '.join(VERSIONS)}",
        )
    name = _get(raw, "name", str, "")
    if not _NAME.fullmatch(name):
        raise invalid(
            "name", f'"{name}" is not a network name: letters, digits, "_", "." and "-", at most 128'
        )
    if strict:
        for key in raw:
            if key not in _COMMON | _OURS and "/" not in key:
                raise CniError(UNSUPPORTED_FIELD, f'"{key}": {raw[key]!r} is not a key of {TYPE}')
    encapsulation = _one_of(raw, "encapsulation", ENCAPSULATIONS, "xmasq")
    vni = _number(raw, "vni", 0, (1 << 24) - 1, 1)
    network = Network(
        name=name,
        version=version,
        encapsulation=encapsulation,
        vni=vni,
        port=_number(raw, "port", 1, 65535, 4789),
        link=_device(raw, "link", f"xm{vni}"),
        underlay=_get(raw, "underlay", str, "") or None,
        mtu=_number(raw, "mtu", 68, 65535, 0) or None,
        secret_file=_get(raw, "secretFile", str, "") or None,
        cluster=_networks(raw, "network"),
        subnets=_networks(raw, "subnet") or _ipam_subnets(raw),
        subnet_length=_number(raw, "subnetLength", 8, 30, 24),
        peers=_peers(raw, vni),
        datastore=_datastore(raw),
        ip_masq=_get(raw, "ipMasq", bool, False),
        mac=_mac(raw),
        run_dir=_get(raw, "runDir", str, RUN_DIR),
        raw=raw,
    )
    if strict:
        _check(network)
    return network


def _check(network: Network) -> None:
    """What is right by itself, but not together."""
    ipam = _get(network.raw, "ipam", dict, {})
    if not _get(ipam, "type", str, "", "ipam."):
        raise invalid("ipam", 'missing; a plugin for addresses is needed, such as {"type": "host-local"}')
    if network.datastore and network.peers:
        raise invalid("peers", "peers come from the datastore, both can not be given")
    if not network.datastore and not network.subnets:
        raise invalid("subnet", "missing: without a datastore the node's own subnet has to be given")
    if network.encapsulation == "none" and not network.cluster:
        raise invalid("network", "missing: without encapsulation it tells which routes are this network's")
    if network.ip_masq and not network.cluster:
        raise invalid("network", "missing: ipMasq leaves traffic within it alone")
    if network.secret_file and network.encapsulation != "xmasq":
        raise invalid("secretFile", f"has no meaning with encapsulation {network.encapsulation}")
    if network.datastore and network.datastore.kind == "etcd" and not network.subnets and not network.cluster:
        raise invalid("network", "missing: the node's subnet is taken from it")
    for key, nets in (("subnet", network.subnets), ("peers", tuple(p.subnet for p in network.peers))):
        for net in nets:
            if network.cluster and not any(within(net, whole) for whole in network.cluster):
                raise invalid(key, f"{net} is not within network {', '.join(map(str, network.cluster))}")
    for own in network.subnets:
        for peer in network.peers:
            if own.overlaps(peer.subnet):
                raise invalid("peers", f"{peer.subnet} overlaps this node's own subnet {own}")


def within(net: Net, whole: Net) -> bool:
    """Whether net is a part of whole, or all of it."""
    return net.version == whole.version and net.subnet_of(whole)  # type: ignore[arg-type]


def container_id(text: str) -> str:
    """A container's id as the specification wants it. Raises ValueError."""
    if not _CONTAINER.fullmatch(text):
        raise ValueError('must begin with a letter or digit, and have only those, "_", "." and "-"')
    return text


# Reading values


def _get(raw: Mapping[str, Any], key: str, kind: type, default: Any, where: str = "") -> Any:
    value = raw.get(key)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        words = {str: "a string", int: "a number", bool: "true or false", dict: "an object", list: "a list"}
        raise invalid(where + key, f"{value!r} is not {words[kind]}")
    return value


def _number(raw: Mapping[str, Any], key: str, low: int, high: int, default: int, where: str = "") -> int:
    value: int = _get(raw, key, int, default, where)
    if value != default and not low <= value <= high:
        raise invalid(where + key, f"{value} is out of range, allowed is {low} to {high}")
    return value


def _one_of(
    raw: Mapping[str, Any], key: str, words: Collection[str], default: str | None, where: str = ""
) -> str:
    value = _get(raw, key, str, default, where)
    if value not in words:
        raise invalid(where + key, f"{value!r} is unknown, allowed is {', '.join(words)}")
    return str(value)


def _device(raw: Mapping[str, Any], key: str, default: str) -> str:
    name: str = _get(raw, key, str, default)
    if not 1 <= len(name.encode()) <= 15 or name in (".", "..") or re.search(r"[\s/:]", name):
        raise invalid(key, f'"{name}" is not a device name: 1 to 15 bytes without "/", ":" or space')
    return name


def read_net(key: str, text: Any) -> Net:
    """A subnet such as 198.51.100.0/28. Raises CniError."""
    try:
        if "/" not in text:
            raise ValueError
        return ipaddress.ip_network(text)
    except (ValueError, TypeError):
        raise invalid(key, f"{text!r} is not a network such as 198.51.100.0/24, host bits 0") from None


def read_ip(key: str, text: Any) -> Ip:
    """A host's address. Raises CniError."""
    try:
        if not isinstance(text, str):
            raise ValueError
        address = ipaddress.ip_address(text)
    except ValueError:
        raise invalid(key, f"{text!r} is not an IP address") from None
    if address.is_multicast or address.is_unspecified or address.is_loopback:
        raise invalid(key, f"{text} is not a unicast address of a host")
    return address


def read_mac(key: str, text: Any) -> str:
    """A unicast link layer address, in lower case. Raises CniError."""
    value = text.lower() if isinstance(text, str) else ""
    if not _MAC.fullmatch(value) or int(value[:2], 16) & 1 or not int(value.replace(":", ""), 16):
        raise invalid(key, f"{text!r} is not a unicast link layer address such as 02:00:00:00:00:01")
    return value


def _networks(raw: Mapping[str, Any], key: str) -> tuple[Net, ...]:
    """One network, or a list with one for each family."""
    value = raw.get(key)
    if value is None:
        return ()
    found = tuple(read_net(key, item) for item in (value if isinstance(value, list) else [value]))
    if len({net.version for net in found}) != len(found):
        raise invalid(key, "at most one for each of IPv4 and IPv6 is allowed")
    return found


def _ipam_subnets(raw: Mapping[str, Any]) -> tuple[Net, ...]:
    """The subnets that host-local and its likes give addresses from: the node's own."""
    ipam = _get(raw, "ipam", dict, {})
    texts = [ipam["subnet"]] if "subnet" in ipam else []
    ranges = _get(ipam, "ranges", list, [], "ipam.")
    for of_family in ranges:
        if isinstance(of_family, list) and of_family and isinstance(of_family[0], dict):
            texts.append(of_family[0].get("subnet"))
    found: dict[int, Net] = {}
    for text in texts:
        net = read_net("ipam.subnet", text)
        found.setdefault(net.version, net)
    return tuple(found.values())


def endpoint(raw: Any, key: str, vni: int) -> Endpoint:
    """A peer, from {"subnet": …, "address": …, "mac": …}; mac may be left out. Raises CniError."""
    if not isinstance(raw, dict):
        raise invalid(key, f'{raw!r} is not an object such as {{"subnet": …, "address": …}}')
    for word in raw:
        if word not in ("subnet", "address", "mac"):
            raise invalid(f"{key}.{word}", "unknown, allowed is subnet, address, mac")
    subnet = read_net(f"{key}.subnet", raw.get("subnet"))
    vtep = read_ip(f"{key}.address", raw.get("address"))
    if subnet.version != vtep.version:
        raise invalid(f"{key}.address", f"{vtep} is of another family than the subnet {subnet}")
    mac = read_mac(f"{key}.mac", raw["mac"]) if raw.get("mac") else mac_of(vtep, vni)
    return Endpoint(subnet, vtep, mac)


def _peers(raw: Mapping[str, Any], vni: int) -> tuple[Endpoint, ...]:
    found = tuple(endpoint(item, f"peers[{n}]", vni) for n, item in enumerate(_get(raw, "peers", list, [])))
    for word, values in (
        ("subnet", [p.subnet for p in found]),
        ("address", [p.vtep for p in found]),
        ("mac", [p.mac for p in found]),
    ):
        twice = _twice(values)
        if twice is not None:
            raise invalid(f"peers.{word}", f"{twice} is there twice")
    return found


def _twice(values: Iterable[Any]) -> Any | None:
    seen = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


#: What a datastore may have, and of which type.
_STORES: dict[str, dict[str, type]] = {
    "etcd": {
        "endpoints": list,
        "prefix": str,
        "lease": int,
        "caFile": str,
        "certFile": str,
        "keyFile": str,
        "username": str,
        "passwordFile": str,
    },
    "kubernetes": {"kubeconfig": str},
}


def _datastore(raw: Mapping[str, Any]) -> Datastore | None:
    value = raw.get("datastore")
    if value is None:
        return None
    if isinstance(value, str):
        value = {"type": value}
    if not isinstance(value, dict):
        raise invalid("datastore", f'{value!r} is not an object such as {{"type": "etcd"}}')
    kind = _one_of(value, "type", _STORES, None, "datastore.")
    for key, item in value.items():
        if key == "type":
            continue
        if key not in _STORES[kind]:
            raise invalid(f"datastore.{key}", f"unknown, allowed is {', '.join(_STORES[kind])}")
        _get(value, key, _STORES[kind][key], None, "datastore.")
        if key == "endpoints" and not (item and all(isinstance(x, str) and "://" in x for x in item)):
            raise invalid(
                "datastore.endpoints", f"{item!r} is not a list of URLs such as http://192.0.2.9:2379"
            )
    _number(value, "lease", 3, 7 * 86400, 0, "datastore.")
    return Datastore(kind, {k: v for k, v in value.items() if k != "type"})


def _mac(raw: Mapping[str, Any]) -> str | None:
    """The container's link address, if the runtime wants a certain one (CONVENTIONS.md, "mac")."""
    for key, where in (
        ("runtimeConfig.mac", _get(raw, "runtimeConfig", dict, {})),
        ("args.cni.mac", _get(_get(raw, "args", dict, {}), "cni", dict, {}, "args.")),
    ):
        if where.get("mac"):
            return read_mac(key, where["mac"])
    return None
