/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Links in external (collect metadata) mode. VNI and peer come with each packet, in the metadata
 * that OVS, a bridge with vlan_tunnel or a BPF program has attached to it
 * (include/net/dst_metadata.h). What arrives must have them again: the link's ingress hook attaches
 * what the vxlan driver would.
 */
#ifndef XMASQ_EXTERNAL_H
#define XMASQ_EXTERNAL_H

#include "state.h"

#if XM_EXTERNAL

/* struct bpf_tunnel_key (uapi/linux/bpf.h) since Linux 6.0. Addresses are in the host's order. */
struct tunnel_key {
	__u32 id;
	__u32 remote; /* get: ip_tunnel_key.u.ipv4.src; set: dst */
	__u32 remote_rest[3];
	__u8 tos;
	__u8 ttl;
	__u16 flags;
	__u32 label;
	__u32 local; /* get: ip_tunnel_key.u.ipv4.dst; set: src */
	__u32 local_rest[3];
};

/* A packet's way through an external link, as its metadata say. Addresses may be 0. */
struct outer {
	__u32 where;
	addr_t src;
	addr_t dst;
};

/* Reads the metadata of a packet at a hook of an external link. 0 if there are any for IPv4. */
static __always_inline int outer_of(struct __sk_buff *skb, struct link **link, __u32 *idx,
				    struct outer *o)
{
	__u32 *id = link_id(skb->ifindex);
	struct tunnel_key k = {};

	*link = id ? link_at(*id) : 0;
	if (!*link || xm_skb_get_tunnel_key(skb, &k, sizeof(k), 0))
		return -1;
	*idx = *id;
	o->where = flow_where(*link, *id, k.id);
	o->src = be32(k.remote);
	o->dst = be32(k.local);
	return 0;
}

/* Attaches metadata. src and dst: of the outer header. */
static __always_inline int outer_set(struct __sk_buff *skb, __u32 where, addr_t src, addr_t dst)
{
	struct tunnel_key k = {
		.id = where & 0xffffff,
		.remote = be32(dst),
		.local = be32(src),
		.ttl = 64,
	};

	return xm_skb_set_tunnel_key(skb, &k, sizeof(k), 0);
}

/* skb->cb from decode to the link's ingress hook, besides what mark_set keeps there. */
#define CB_WHERE 1
#define CB_PEER 2
#define CB_SEAL 3

static __always_inline __u32 carry_seal(const struct conf *conf, __u32 where, addr_t peer)
{
	return ((((__u64)where << 32 | peer) ^ conf->tag) * 0x9e3779b97f4a7c15ULL) >> 32;
}

/* Where the link's ingress hook finds VNI and peer: the way there drops metadata. */
static __always_inline void carry(struct __sk_buff *skb, const struct conf *conf, __u32 where,
				  addr_t peer)
{
	skb->cb[CB_WHERE] = where;
	barrier();
	skb->cb[CB_PEER] = peer;
	barrier();
	skb->cb[CB_SEAL] = carry_seal(conf, where, peer);
}

/* Attaches what was carried. If something has written over it, its VNI is not known any more. */
static __always_inline int carried(struct __sk_buff *skb, const struct conf *conf)
{
	__u32 where = skb->cb[CB_WHERE], idx = where_link(where);
	addr_t peer = skb->cb[CB_PEER];
	struct link *link = link_at(idx);

	if (skb->cb[CB_SEAL] != carry_seal(conf, where, peer) || !link)
		return -1;
	return outer_set(skb, where, peer, link->local);
}

#endif
#endif
