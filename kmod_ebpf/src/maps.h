/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the maps hold. Python's view of the same structures is kmod_ebpf/maps.py;
 * tests/unit/test_maps.py compares sizes and offsets.
 *
 * A line of the cache that was not used since the packet before costs more than anything that is
 * done with it. So what encode and decode read for each packet lies together at the beginning of a
 * structure, and structures are whole lines long. The values of the arrays begin at a page's
 * beginning (BPF_F_MMAPABLE, xmasq.c). An element of a hash table is 48 bytes of the kernel's, the
 * key, and the value: lines begin 16 bytes before the end of a struct flow over IPv4.
 *
 * Programs read flow entries and slots without a lock, while another CPU may replace them, or
 * the kernel may hand an element's memory to another key. Each entry therefore carries a seal
 * over the words that must belong together (seal.h): a torn read fails it, and the packet takes
 * the safe way.
 */
#ifndef XMASQ_MAPS_H
#define XMASQ_MAPS_H

#include "defs.h"
#include "family.h"

#define LINK_UNDERLAYS 8
#define MAX_LINKS 1025 /* index 0 counts what belongs to no link */
#define MAX_PAIRS 4096
#define BLOCK_HINTS 16384
#define HOPS 256
#define MAX_BLOCKS 1024
#define BLOCK_KEYS 64 /* keys whose slots are handed out together */
#define MAX_FLOWS 65536

/* Settings of the datapath, written by the control code. */
struct conf {
	__u32 magic; /* random; the upper 28 bits of skb->mark between our own programs */
	__u8 mark; /* DSCP of ours, low three bits of it when xbits > 0 */
	__u8 bounce;
	__u8 seg_bits;
	__u8 xbits;
	__u64 salt; /* random; mixed into nonces */
	__u64 tag; /* random; in frames that only ask our FDB */
	__u16 stamp; /* random; in skb->tc_index along with magic in skb->mark */
	__u16 pad[3];
	__u64 rx_hold; /* boot time, ns: no key is given before */
	__u64 tx_hold; /* boot time, ns: no key is accepted before */
	__u64 ports; /* a bit for each UDP port of a VTEP address, by its last six bits */
};

#define LINK_UP 0x01 /* fast path on */
#define LINK_SECRET 0x02 /* control packets carry an authenticator */
#define LINK_LEARNING 0x04 /* the FDB learns, so a MAC seen elsewhere has moved */
#define LINK_EXTERNAL 0x20 /* a device in collect metadata mode: the VNI comes with each packet */
/* For the control code only: */
#define LINK_ATTACHED 0x08 /* the device is somebody else's */
#define LINK_HALF 0x10 /* being made or taken apart; or that was not finished */

struct link {
	__u32 ifindex;
	__u32 vni;
	addr_t local;
	__be16 port;
	__u8 mac[ETH_ALEN];
	__u32 flags;
	__u32 lease_ms;
	__u32 guard_ms;
	__u32 tx_gen; /* flow entries of another generation must be vouched for anew */
	__u32 rx_gen; /* slots of another generation are dead */
	ADDR_PAD(1)
	__u64 there_at; /* tick, ns: the device was there then */
	__u32 underlays[LINK_UNDERLAYS]; /* ifindexes of the devices with the hooks; 0: no more */
	__u64 secret[2];
	__u64 hooked[LINK_UNDERLAYS]; /* an underlay device, and when it had our hook (route.h) */
	__u64 away_at; /* tick, ns: the link's packets would have left by a device without it */
	LINE_PAD(3, 1)
};

#define VNI_ANY 0xffffffffU /* of an external link, here and in vnis */
#define WHERE_EXTERNAL 0x80000000U /* in place of an ifindex, none of which is so large */
#define MAX_EXTERNAL 128 /* external links have an index below this one */

struct vni_key {
	addr_t local;
	__u32 vni;
};

struct vtep {
	__be16 port; /* one UDP port per VTEP address: decode can tell tunnel from tenant by it */
	__u16 pad;
};

struct underlay {
	__u32 mtu;
};

/*
 * A flow as the sender sees it at the link: the key of several tables. peer is 0 in the table
 * of encoded flows, elsewhere the remote VTEP.
 */
struct flow {
	union {
		struct {
			__u8 smac[ETH_ALEN];
			__u8 dscp;
			__u8 variant;
		};
		__u64 from;
	};
	union {
		struct {
			__u8 dmac[ETH_ALEN];
			__u16 zero;
		};
		__u64 to;
	};
	addr_t sip;
	addr_t dip;
	__u32 ifindex; /* of an external link: its index and the VNI (state.h, flow_where) */
	addr_t peer;
	ADDR_PAD(1)
} __attribute__((aligned(8)));

/*
 * Sender: how a flow is encoded. The seal is over the words from lease_end up to mtu, the flow, and
 * the addresses, which encode reads from the pair.
 */
struct entry {
	__u64 seal;
	__u64 lease_end;
	union {
		struct {
			__u32 oif;
			__u32 pair_gen;
		};
		__u64 out;
	};
	__u16 pair;
	__u16 link;
	__u32 wire; /* MARK and key as they are on the wire: ip4.h, ip6.h, wire_make */
	__u32 renew_ms; /* a packet is to ask for renewal so long before the lease's end */
	__u16 mtu;
	/* Hints, written in place: */
	__u16 sent; /* encoded with this key, up to USED_ENOUGH */
	__u32 gen; /* the link's tx_gen when a fallback packet last left for this very peer */
	__u32 way; /* the routing table's answer at the last CONFIRM; 0: it gives none */
	/* Not read by encode as a rule: */
	addr_t local;
	addr_t peer;
	addr_t nexthop;
	__u32 key;
	__u32 off_ms; /* see off_until: for so long the last time */
	__u8 proven; /* the receiver has decoded packets of this flow from this peer */
	__u8 route; /* 1: nexthop is known, as of the last CONFIRM; for people to read */
	__u16 zero;
	ADDR_PAD(1)
	__u64 asked; /* a packet took the fallback for renewal then */
	__u64 sent_at; /* when sent reached USED_ENOUGH */
	__u64 off_until; /* no key is accepted before: a router refused this flow's packets */
	LINE_PAD(2, 0)
};

#define ENTRY_WORDS 5 /* that hold what is sealed, and the seal */

/* So many packets encoded, and none decoded: the path eats them. */
#define USED_ENOUGH 16

/* Sender: a fallback packet of this flow has left for flow.peer. */
struct solicit {
	addr_t local;
	__u32 oif;
	__u32 link;
	__u32 tx_gen; /* of the link when the packet left */
	ADDR_PAD(1)
	__u64 at;
	__u64 seal;
};

/* Sender: ACCEPT was sent. */
struct pending {
	addr_t peer;
	__u32 key;
	__u32 nonce_a;
	__u32 nonce_b;
	__u32 oif;
	__u32 lease_ms;
	__u32 tx_gen;
	__u32 sent; /* enough was encoded with this key, well before */
	ADDR_PAD(1)
	__u64 at; /* of the first ACCEPT of this round: the lease counts from here */
	__u64 seal;
};

struct txkey_key {
	addr_t local;
	addr_t peer;
	__u32 key;
	__u32 pad;
} __attribute__((aligned(8)));

/* Sender: what a key at a peer stands for, until nothing with it can be under way. */
struct txkey {
	struct flow flow;
	__u64 until;
	__u64 seal;
};

/* Receiver: one key. Sealed up to and including rx_gen. */
struct slot {
	__u64 seal;
	__u64 valid; /* decodable until; 0: not granted */
	addr_t local;
	addr_t peer;
	addr_t sip;
	addr_t dip;
	union {
		struct {
			__u8 smac[ETH_ALEN];
			__u8 dscp;
			__u8 variant;
		};
		__u64 from;
	};
	union {
		struct {
			__u8 dmac[ETH_ALEN];
			__u16 link;
		};
		__u64 to;
	};
	__u32 key;
	__u32 ifindex; /* of an external link: its index and the VNI (state.h, flow_where) */
	__u32 rx_gen;
	__u32 used; /* a packet was decoded since the last CONFIRM; written by decode */
	/* Under the lock only: */
	__u64 until; /* reserved until */
	__u64 offered; /* when the open round began, 0: none */
	__u32 nonce_b;
	__u32 zero;
	LINE_PAD(5, 0)
};

struct block {
	__u64 busy_until; /* no slot is reserved for longer */
	__u32 owner; /* pair index + 1 */
	__u32 owner_gen;
	__u32 base; /* first key / BLOCK_KEYS */
	__u32 zero;
	LINE_PAD(5, 0)
	struct slot slots[BLOCK_KEYS];
};

struct pair_key {
	addr_t local;
	addr_t peer;
};

/* A local and a remote VTEP. */
struct pair {
	addr_t local;
	addr_t peer;
	__u32 gen; /* entries with another generation are dead */
	__u32 own_gen; /* of the pair's ownership of its blocks */
	__u32 cursor; /* key given last */
	__u32 strays;
	__u64 strays_since;
	__u64 off_until; /* the path spoils MARK or key: no encoding until then */
	__u64 off_for;
	__u64 busy_until; /* nothing of this pair is live for longer */
	__u64 heard; /* last announced or control packet */
	__u16 block[PAIR_BLOCKS]; /* index + 1 */
};

/* All allocation of pairs, blocks and keys, and every CONFIRM, goes under this one lock. */
struct pool {
	struct bpf_spin_lock lock;
	__u32 block_hand;
	__u32 pair_hand;
	__u32 pad;
};

/* Receiver: which key a flow of a peer has, and when it may be offered again. */
struct grant {
	__u32 key;
	__u32 backoff_ms;
	__u64 next_offer;
};

struct mac_key {
	__u32 link;
	__u8 mac[ETH_ALEN];
	__u16 pad;
};

/* Where a MAC was last seen as a source. */
struct mac_seen {
	addr_t peer; /* 0: at the link's egress, so it is ours */
	__u32 moved; /* was elsewhere before; the link's ingress hook takes note */
	__u64 at;
};

/* Full-size packets between two addresses take the fallback: since when, and when that was told. */
struct big {
	__u64 first;
	__u64 told; /* 0: not yet */
};

/* The way to a peer by a device, for a tick (hop.h). */
struct hop {
	__u64 at; /* the tick, the link and the pair */
	__u64 out; /* as in an entry: the device, and the pair's generation */
	__u32 way; /* what the routing table says (route.h, way_to) */
	__u16 by; /* there is a way by the device */
	__u16 state;
	__u64 to; /* destination MAC, as in a flow */
	__u64 from; /* source MAC, and the protocol */
};

/* Per CPU. */
struct scratch {
	__u64 tick;
	__u64 now; /* boot time, ns, at that tick */
	struct flow missed; /* the flow that encode has just sent into the fallback */
	__u64 missed_at; /* 0: it could not be encoded */
	__u64 let_go_at; /* encode let a packet go on to the driver */
	__u32 tx_gen; /* of the link, before the driver looked into its FDB */
	__u16 stamp; /* in skb->tc_index of that packet */
	__u16 tc_index; /* what it was before */
	__u32 hook; /* the underlay device whose hook has seen a frame that asked for it */
	__u32 zero;
	/* At the underlay's ingress, where the stack has no room: */
	__u64 headers[HEADER_WORDS]; /* of the packet */
	__u64 text[CTL_AUTH_WORDS]; /* what an authenticator covers */
	struct flow flow; /* that it is about */
	struct solicit solicit;
	struct txkey txkey;
	struct pending pending;
	struct entry entry;
	struct hop hops[HOPS];
};

/* Counters of a link, per CPU. The order is the order in kmod_ebpf/maps.py. */
enum counter {
	C_ENCODED,
	C_ENCODED_BYTES,
	C_DECODED,
	C_DECODED_BYTES,
	/* fallback, by reason */
	C_FB_OFF,
	C_FB_NOT_IP,
	C_FB_VLAN,
	C_FB_OPTIONS,
	C_FB_FRAGMENT,
	C_FB_DF_CLEAR,
	C_FB_TTL,
	C_FB_MULTICAST,
	C_FB_LENGTH,
	C_FB_TUNNEL_PORT,
	C_FB_SEGMENTS,
	C_FB_MTU,
	C_FB_NO_GRANT,
	C_FB_EXPIRED,
	C_FB_RENEWAL,
	C_FB_UNVOUCHED,
	C_FB_TORN,
	C_FB_HEADER,
	C_FB_TUNNEL_PROTO,
	C_FB_DSCP,
	C_FB_ROUTE,
	/* negotiation */
	C_ANNOUNCED,
	C_OFFER_TX,
	C_OFFER_RX,
	C_ACCEPT_TX,
	C_ACCEPT_RX,
	C_CONFIRM_TX,
	C_CONFIRM_RX,
	C_BOUNCE_TX,
	C_BOUNCE_RX,
	C_RESTORED,
	C_STRAY,
	C_EXHAUSTED,
	C_NOT_OWNER,
	C_UNTOLD,
	C_NO_ROOM,
	C_HELD,
	C_CTL_BAD,
	C_CTL_VERSION,
	C_CTL_PATH,
	C_CTL_UNSOLICITED,
	C_CTL_NONCE,
	C_CTL_AUTH,
	C_CTL_PARAMS,
	C_CTL_CONFLICT,
	C_PATH_OFF,
	C_PEER_GONE,
	C_ICMP_RX,
	C_ICMP_REFUSED,
	C_ICMP_STRAY,
	C_TOO_BIG_TX,
	C_SANITISED,
	C_MOVED,
	C_ERROR,
	C_MAX
};

struct counters {
	__u64 c[C_MAX];
};

/* What happens, for those who listen (event.h). What value says is in brackets. */
enum event_kind {
	EV_FLOW_ENCODED = 1, /* from now on (lease, ms) */
	EV_FLOW_RENEWED, /* (lease, ms) */
	EV_FLOW_BOUNCED, /* ended: the peer did not know the key */
	EV_FLOW_WITHDRAWN, /* ended: the peer took the key back */
	EV_FLOW_ELSEWHERE, /* ended: our FDB sends it to another peer now */
	EV_FLOW_REFUSED, /* ended: a router refused its packets */
	EV_KEY_GRANTED, /* (lease, ms) */
	EV_KEY_RENEWED, /* (lease, ms) */
	EV_KEY_UNKNOWN, /* an encoded packet was bounced */
	EV_PEER_OFF, /* nothing is encoded towards it (for, ms) */
	EV_PEER_STRAY, /* it bounced a key that is not in use */
	EV_PEER_GONE, /* its host answers itself: it has no datapath any more */
	EV_MAC_MOVED, /* the source of a frame from the tunnel was elsewhere before */
	EV_EXHAUSTED, /* no key free */
	EV_CONFLICT, /* a peer offers a key that stands for another flow */
	EV_CTL_REFUSED, /* a control packet (enum counter: why) */
};

struct event {
	__u64 at; /* boot time, ns */
	__u32 kind;
	__u32 link; /* index, 0: none */
	__u32 ifindex;
	__u32 key;
	__u32 value;
	__u8 dscp;
	__u8 variant;
	__u8 has_flow;
	__u8 pad;
	__u8 smac[ETH_ALEN];
	__u8 dmac[ETH_ALEN];
	__u32 pad2;
	/* The first bytes are an address of the datapath's family. */
	__u8 sip[16];
	__u8 dip[16];
	__u8 local[16];
	__u8 peer[16];
};

/* What a capture shows in front of a packet's bytes (capture.c). */
#define FRAME_IN 1
#define FRAME_OUT 2

struct frame {
	__u64 at; /* boot time, ns */
	__u32 len; /* Ethernet header included; of all segments, if there are several */
	__u32 caplen;
	__u32 ifindex;
	__u16 vlan_tci;
	__be16 vlan_proto; /* 0: no tag beside the packet */
	__u8 direction; /* FRAME_IN or FRAME_OUT */
	__u8 pad[7];
};

/* What a count is of (count.c). */
struct counted_key {
	__u32 ifindex;
	__u8 direction; /* FRAME_IN or FRAME_OUT */
	__u8 family; /* 4 or 6 */
	__u16 pad;
	__u8 src[16];
	__u8 dst[16];
};

#endif
