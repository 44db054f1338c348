/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Wire format, version 1: docs/protocol.md. The same numbers stand in xmasq_link/_wire.py;
 * tests/unit/test_wire.py compares them.
 */
#ifndef XMASQ_WIRE_H
#define XMASQ_WIRE_H

#include "family.h"

#define XM_VERSION 1

#define XM_OFFER 1
#define XM_ACCEPT 2
#define XM_CONFIRM 3

/* Flag bits of a control packet. */
#define XM_CTL_XBITS 0x03 /* further key bits in DSCP, 0 to 3 */
#define XM_CTL_USED 0x80 /* CONFIRM: a packet with this key was decoded since the last one */

/* Variants of a flow: packets that differ in a bit that the wire cannot carry. */
#define XM_VAR_NODF 0x01 /* DF clear: DF is set on the wire, cleared again at decode */

#define XM_NODF_MAX 1280 /* longest DF-clear packet, IP header included, that is encoded */
#define XM_MIN_TTL 16
#define XM_OWN_AGE (300 * NSEC_PER_SEC) /* a source seen at the link's egress is ours so long */

/* So long after a flow's first oversize packet it may still become encoded. */
#define XM_OVERSIZE_PATIENCE (NSEC_PER_SEC / 2)

#define VXLAN_FLAG_I 0x08

/*
 * A control packet's UDP payload. What follows it in the datagram is the rest of the packet
 * that it was made of, and means nothing.
 */
struct ctl {
	__u8 vxlan_flags; /* I clear: a plain VXLAN receiver drops it */
	__u8 vxlan_rest[7];
	__u8 version;
	__u8 type;
	__u8 flags;
	__u8 seg_bits; /* S */
	__be32 vni;
	__u8 smac[ETH_ALEN];
	__u8 dmac[ETH_ALEN];
	addr_t sip;
	addr_t dip;
	__u8 dscp;
	__u8 variant;
	__be16 reserved;
	__be32 key;
	__be32 lease_ms;
	__be32 nonce_a; /* of the sender of the flow; 0 in an OFFER */
	__be32 nonce_b; /* of the receiver of the flow */
	__u64 auth; /* SipHash-2-4, 0 without a secret */
} __attribute__((packed, aligned(4)));

/* A whole control packet, as it is written over the packet that it is made of. */
struct ctl_frame {
	struct ip_hdr ip;
	struct udp_hdr udp;
	struct ctl ctl;
};

_Static_assert(sizeof(struct ctl) == 56 + 2 * sizeof(addr_t), "no gap");
_Static_assert(sizeof(struct ctl) + sizeof(addr_t) * 2 == 8 * CTL_AUTH_WORDS + 8,
	       "the authenticator covers whole words");
_Static_assert(__builtin_offsetof(struct ctl_frame, ctl) == IP_HDR_LEN + UDP_HDR_LEN, "no gap");
_Static_assert(ETH_HLEN + sizeof(struct ctl_frame) <= CTL_HEADROOM, "control packet fits");

#endif
