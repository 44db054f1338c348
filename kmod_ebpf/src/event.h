/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Tells user space what happens, for `xmasq monitor`: from slow paths only. While nobody listens
 * that is one look at an array.
 */
#ifndef XMASQ_EVENT_H
#define XMASQ_EVENT_H

#include "state.h"

#define EVENT_LISTENERS 4

static __always_inline __u32 *listeners_get(void);
static __always_inline struct event *event_get(void);
static __always_inline void event_out(struct __sk_buff *skb, struct event *e, __u32 listeners);

/*
 * f: the flow that it is about, or null. local, peer: the VTEP addresses, either may be null.
 * value: what its kind says (maps.h, enum event_kind).
 */
static __always_inline void event(struct __sk_buff *skb, enum event_kind kind, __u32 link,
				  const struct flow *f, const addr_t *local, const addr_t *peer,
				  __u32 key, __u32 value)
{
	__u32 *listeners = listeners_get();
	struct event *e;

	if (likely(!listeners || !*listeners))
		return;
	e = event_get();
	if (!e)
		return;
	__builtin_memset(e, 0, sizeof(*e));
	e->at = xm_boot_ns();
	e->kind = kind;
	e->link = link;
	e->key = key;
	e->value = value;
	if (f) {
		e->ifindex = f->ifindex;
		e->dscp = f->dscp;
		e->variant = f->variant;
		e->has_flow = 1;
		__builtin_memcpy(e->smac, f->smac, ETH_ALEN);
		__builtin_memcpy(e->dmac, f->dmac, ETH_ALEN);
		__builtin_memcpy(e->sip, &f->sip, sizeof(addr_t));
		__builtin_memcpy(e->dip, &f->dip, sizeof(addr_t));
	}
	if (local)
		__builtin_memcpy(e->local, local, sizeof(addr_t));
	if (peer)
		__builtin_memcpy(e->peer, peer, sizeof(addr_t));
	event_out(skb, e, *listeners);
}

#endif
