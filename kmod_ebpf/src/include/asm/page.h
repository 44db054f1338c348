/* SPDX-License-Identifier: GPL-2.0-only */
/* BCC's macros for buffers, unused here, mention the page size. */
#define PAGE_SIZE 4096
