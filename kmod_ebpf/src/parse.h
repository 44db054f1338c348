/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * MARK, BOUNCE and keys as numbers, and what may be encoded at all (I3): ip4.h, ip6.h.
 */
#ifndef XMASQ_PARSE_H
#define XMASQ_PARSE_H

#include "state.h"
#include "wire.h"

/* Is this DSCP MARK, or BOUNCE, with any further key bits in use? base: conf.mark or conf.bounce.
 */
static __always_inline int dscp_is(const struct conf *conf, __u8 base, __u8 dscp)
{
	__u8 x = dscp - base;

	return !(x & 7) && x < (8U << (conf->xbits & 3));
}

/*
 * A code point for local use (RFC 2474, pool 2: xxxx11), as MARK and BOUNCE are. The packet may be
 * that of another xmasq link, nested in this one, whose keys encode would wipe out.
 */
static __always_inline int tos_local_use(__u8 tos)
{
	return (tos >> 2 & 3) == 3;
}

/*
 * Keys are counted by their index; where the header has no checksum of its own, the lowest bits of
 * a key are a check of the others. An index lies at a slot of its own (pair.h).
 */
static __always_inline __u32 key_index(__u32 key)
{
	return key >> KEY_CHECK_BITS;
}

#if XM_FAMILY == 4
#include "ip4.h"
#else
#include "ip6.h"
#endif

static __always_inline int key_ok(const struct conf *conf, __u32 key)
{
	__u32 index = key_index(key);

	return index && index < (1U << key_bits(conf)) && index < BLOCK_KEYS * PAIR_BLOCKS &&
	       key == key_make(index) && !key_blank(conf, key);
}

/* The key after this one; after the last, the first. */
static __always_inline __u32 key_next(const struct conf *conf, __u32 key)
{
	__u32 index = key_index(key) + 1;

	if (key_blank(conf, key_make(index)))
		index++;
	return key_ok(conf, key_make(index)) ? key_make(index) : key_make(1);
}

#endif
