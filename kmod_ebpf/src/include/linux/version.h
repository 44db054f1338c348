/* SPDX-License-Identifier: GPL-2.0-only */
/* The programs ask no version: what a kernel can do is probed when they are loaded. */
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 10, 0)
