# SPDX-License-Identifier: Apache-2.0
"""Offloads of an underlay device that would join packets with different keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ._errors import InputError

_BTF = Path("/sys/kernel/btf/vmlinux")
_FEATURES = ("rx-udp-gro-forwarding", "rx-gro-list")


def gro_compares_ids() -> bool:
    """Whether this kernel's UDP GRO joins packets with consecutive or equal IDs only.

    It does since 6.10 (net/ipv4/udp_offload.c, udp_gro_receive_segment), where struct napi_gro_cb
    got the member ip_fixedid.
    """
    try:
        return b"\0ip_fixedid\0" in _BTF.read_bytes()
    except OSError:
        return False


_GRO_MAX = 65536  # include/linux/netdevice.h, GRO_LEGACY_MAX_SIZE


def check(device: Any, version: int) -> None:
    """Raises InputError if a device's GRO could make what decode cannot take apart.

    device: as netlink tells of it. version: of the IP of the underlay, 4 or 6. Over IPv6, more than
    64 KB get a hop-by-hop header (RFC 2675), behind which decode does not look for a checksum.
    """
    name, size = device.get_attr("IFLA_IFNAME"), device.get_attr("IFLA_GRO_MAX_SIZE")
    if version == 6 and size and size > _GRO_MAX:
        raise InputError(
            "dev",
            f"{name} has gro_max_size {size}, allowed with an IPv6 underlay is {_GRO_MAX}: "
            f"turn BIG TCP off (ip link set {name} gro_max_size {_GRO_MAX})",
        )
    check_udp(name)


def check_udp(device: str) -> None:
    """Raises InputError if the device's GRO could deliver a datagram with another one's key."""
    from pyroute2.ethtool.ethtool import Ethtool

    with Ethtool() as ethtool:
        features = ethtool.get_features(device).features
    on = [name for name in _FEATURES if name in features and features[name].enable]
    if on and not gro_compares_ids():
        raise InputError(
            "dev",
            f"{device} has {on[0]} on, and this kernel would join datagrams of different flows: "
            f"turn it off (ethtool -K {device} {on[0]} off)",
        )
