/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The interface of the kernel's driver for page references, /sys/kernel/debug/gup_test, as far as
 * it is there. Facts from Linux 6.12 (mm/gup_test.h, which the kernel installs nowhere); own words.
 */
#ifndef __GUP_TEST_H
#define __GUP_TEST_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define GUP_TEST_MAX_PAGES_TO_DUMP 8

struct gup_test {
  __u64 get_delta_usec; /* out */
  __u64 put_delta_usec; /* out */
  __u64 addr;
  __u64 size; /* in: bytes; out: those of the batches that were begun and not refused */
  __u32 nr_pages_per_call;
  __u32 gup_flags; /* bit 0: for writing; bit 8: long-term */
  __u32 test_flags;
  __u32 which_pages[GUP_TEST_MAX_PAGES_TO_DUMP];
};

#define GUP_FAST_BENCHMARK _IOWR('g', 1, struct gup_test)
#define PIN_FAST_BENCHMARK _IOWR('g', 2, struct gup_test)
#define PIN_LONGTERM_BENCHMARK _IOWR('g', 3, struct gup_test)
#define GUP_BASIC_TEST _IOWR('g', 4, struct gup_test)
#define PIN_BASIC_TEST _IOWR('g', 5, struct gup_test)

#endif /* __GUP_TEST_H */
