/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The way of an encoded packet out of the host: what the routing table says, and the link layer
 * addresses, remembered for as long as a tick, which is 1 to 10 ms.
 *
 * bpf_redirect_neigh looks the route up for each packet, and then the neighbour. With the next hop
 * given to it, it would not look the route up, but if the neighbour has to be resolved, the packet
 * waits with its route to the link, and the kernel then sends it by that route's neighbour
 * (neigh_update): to a wrong address. So the first packet in a tick goes that way, with no next
 * hop, which also keeps the neighbour's state going; the second one asks the routing table, and if
 * the neighbour is there, the others of this tick get the same addresses, and leave at once. A
 * change of the route or the neighbour is followed a tick later at most, as it is by packets in a
 * queue.
 */
#ifndef XMASQ_HOP_H
#define XMASQ_HOP_H

#include "parse.h"
#include "route.h"
#include "state.h"

#define HOP_NEW 0
#define HOP_ASK 1 /* one packet has left in this tick */
#define HOP_KNOWN 2
#define HOP_NONE 3 /* the routing table could not tell */

#define HOP_PAIR_BITS 12
#define HOP_TICK_SHIFT (HOP_PAIR_BITS + 11)

_Static_assert(MAX_PAIRS <= 1 << HOP_PAIR_BITS && MAX_LINKS <= 1 << 11, "hop bits");

/* Where the hop of an entry is kept. Others may be, too. */
static __always_inline struct hop *hop_at(struct scratch *scratch, const struct entry *e)
{
	__u64 place = e->pair ^ e->oif;

	opaque(place);
	return &scratch->hops[place % HOPS];
}

/* What the hop of an entry has in this tick, besides the entry's own word. */
static __always_inline __u64 hop_now(const struct scratch *scratch, const struct entry *e)
{
	return scratch->tick << HOP_TICK_SHIFT | (__u64)e->link << HOP_PAIR_BITS | e->pair;
}

static __always_inline int hop_known(const struct hop *h, __u64 at, const struct entry *e)
{
	return h->at == at && h->out == e->out;
}

/* Makes it this entry's for the rest of the tick. Null if it is another one's. */
static __always_inline struct hop *hop_take(struct hop *h, __u64 at, const struct entry *e,
					    __u32 way, __u16 by)
{
	if (h->at >> HOP_TICK_SHIFT == at >> HOP_TICK_SHIFT)
		return 0;
	h->at = at;
	h->out = e->out;
	h->way = way;
	h->by = by;
	h->state = HOP_NEW;
	return h;
}

/* Puts the link layer addresses in, if this hop has them by now. */
static __always_inline int hop_put(struct __sk_buff *skb, struct hop *h, const struct entry *e)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (unlikely(h->state == HOP_ASK)) {
		struct bpf_fib_lookup fib = {};
		addr_t nexthop;

		h->state = HOP_NONE;
		fib.ifindex = e->oif;
		if (ip_fib(skb, &fib, e->local, e->peer, 0, &nexthop) != BPF_FIB_LKUP_RET_SUCCESS ||
		    fib.ifindex != e->oif)
			return 0;
		h->to = 0;
		__builtin_memcpy(&h->to, fib.dmac, ETH_ALEN);
		h->from = (__u64)be16(ETHERTYPE_IP) << 48;
		__builtin_memcpy(&h->from, fib.smac, ETH_ALEN);
		h->state = HOP_KNOWN;
	}
	if (unlikely(h->state == HOP_NEW))
		h->state = HOP_ASK;
	if (unlikely(h->state != HOP_KNOWN || data + ETH_HLEN > end))
		return 0;
	eth_put(data, h->to, h->from);
	return 1;
}

/* Sends an encoded packet out. h: its hop, or null. */
static __always_inline int forward(struct __sk_buff *skb, struct hop *h, const struct entry *e)
{
	if (likely(h && hop_put(skb, h, e)))
		return xm_redirect(e->oif, 0);
	return redirect_routed(skb, e->oif);
}

#endif
