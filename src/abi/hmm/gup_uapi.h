/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The interface of the kernel's driver for page references, /sys/kernel/debug/gup_test. Facts
 * from Linux 6.12 (mm/gup_test.h, which the kernel installs nowhere); own words.
 */
#ifndef __GUP_TEST_H
#define __GUP_TEST_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define GUP_TEST_MAX_PAGES_TO_DUMP 8
#define GUP_TEST_FLAG_DUMP_PAGES_USE_PIN 0x1

struct gup_test {
  __u64 get_delta_usec; /* out */
  __u64 put_delta_usec; /* out */
  __u64 addr;
  __u64 size; /* in: bytes; out: those of the batches that were begun and not refused */
  __u32 nr_pages_per_call;
  __u32 gup_flags; /* bit 0: for writing; bit 8: long-term */
  __u32 test_flags;
  __u32 which_pages[GUP_TEST_MAX_PAGES_TO_DUMP]; /* from 1; out: 0 where there is no such page */
};

#define PIN_LONGTERM_TEST_FLAG_USE_WRITE 1
#define PIN_LONGTERM_TEST_FLAG_USE_FAST 2

struct pin_longterm_test {
  __u64 addr;
  __u64 size;
  __u32 flags;
};

#define GUP_FAST_BENCHMARK _IOWR('g', 1, struct gup_test)
#define PIN_FAST_BENCHMARK _IOWR('g', 2, struct gup_test)
#define PIN_LONGTERM_BENCHMARK _IOWR('g', 3, struct gup_test)
#define GUP_BASIC_TEST _IOWR('g', 4, struct gup_test)
#define PIN_BASIC_TEST _IOWR('g', 5, struct gup_test)
#define DUMP_USER_PAGES_TEST _IOWR('g', 6, struct gup_test)
#define PIN_LONGTERM_TEST_START _IOW('g', 7, struct pin_longterm_test)
#define PIN_LONGTERM_TEST_STOP _IO('g', 8)
#define PIN_LONGTERM_TEST_READ _IOW('g', 9, __u64)

#endif /* __GUP_TEST_H */
