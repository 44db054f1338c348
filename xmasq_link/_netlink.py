# SPDX-License-Identifier: Apache-2.0
"""What pyroute2 0.9.7 leaves out of, or reads wrongly in, a vxlan device's netlink attributes."""

from __future__ import annotations

from pyroute2.netlink import nla
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg


class _Data(nla):  # type: ignore[misc]
    """linux/if_link.h, IFLA_VXLAN_*.

    pyroute2 0.9.7 ends at IFLA_VXLAN_DF and silently drops what comes behind it, has the flow label
    in the host's byte order, and reads any answer to IFLA_VXLAN_TTL_INHERIT as true.
    """

    prefix = "IFLA_"
    nla_map = (
        ("IFLA_VXLAN_UNSPEC", "none"),
        ("IFLA_VXLAN_ID", "uint32"),
        ("IFLA_VXLAN_GROUP", "ip4addr"),
        ("IFLA_VXLAN_LINK", "uint32"),
        ("IFLA_VXLAN_LOCAL", "ip4addr"),
        ("IFLA_VXLAN_TTL", "uint8"),
        ("IFLA_VXLAN_TOS", "uint8"),
        ("IFLA_VXLAN_LEARNING", "uint8"),
        ("IFLA_VXLAN_AGEING", "uint32"),
        ("IFLA_VXLAN_LIMIT", "uint32"),
        ("IFLA_VXLAN_PORT_RANGE", "port_range"),
        ("IFLA_VXLAN_PROXY", "uint8"),
        ("IFLA_VXLAN_RSC", "uint8"),
        ("IFLA_VXLAN_L2MISS", "uint8"),
        ("IFLA_VXLAN_L3MISS", "uint8"),
        ("IFLA_VXLAN_PORT", "be16"),
        ("IFLA_VXLAN_GROUP6", "ip6addr"),
        ("IFLA_VXLAN_LOCAL6", "ip6addr"),
        ("IFLA_VXLAN_UDP_CSUM", "uint8"),
        ("IFLA_VXLAN_UDP_ZERO_CSUM6_TX", "uint8"),
        ("IFLA_VXLAN_UDP_ZERO_CSUM6_RX", "uint8"),
        ("IFLA_VXLAN_REMCSUM_TX", "uint8"),
        ("IFLA_VXLAN_REMCSUM_RX", "uint8"),
        ("IFLA_VXLAN_GBP", "flag"),
        ("IFLA_VXLAN_REMCSUM_NOPARTIAL", "flag"),
        ("IFLA_VXLAN_COLLECT_METADATA", "uint8"),
        ("IFLA_VXLAN_LABEL", "be32"),
        ("IFLA_VXLAN_GPE", "flag"),
        ("IFLA_VXLAN_TTL_INHERIT", "asked_by_flag"),
        ("IFLA_VXLAN_DF", "uint8"),
        ("IFLA_VXLAN_VNIFILTER", "uint8"),
        ("IFLA_VXLAN_LOCALBYPASS", "uint8"),
        ("IFLA_VXLAN_LABEL_POLICY", "uint32"),
        ("IFLA_VXLAN_RESERVED_BITS", "be64"),
        ("IFLA_VXLAN_MC_ROUTE", "uint8"),
    )

    class port_range(nla):  # type: ignore[misc]
        fields = (("low", ">H"), ("high", ">H"))

    class asked_by_flag(nla):  # type: ignore[misc]
        """Without a payload in a request, a byte in an answer (vxlan_core.c, vxlan_fill_info)."""

        fields = ()

        def decode(self) -> None:
            super().decode()
            self.value = bool(self.length > 4 and self.data[self.offset + 4])


def register() -> None:
    """Has pyroute2 use these, by its public way: for the whole process, under the names it has itself."""
    ifinfmsg.ifinfo.register_link_kind(module={"vxlan": _Data})
