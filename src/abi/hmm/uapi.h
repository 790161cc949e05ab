/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The interface of the kernel's HMM test device, /dev/hmm_dmirror*: eight commands on one struct.
 * Facts from Linux 6.12 (lib/test_hmm_uapi.h, which the kernel installs nowhere); own words. C11.
 */
#ifndef _LIB_TEST_HMM_UAPI_H
#define _LIB_TEST_HMM_UAPI_H

#include <linux/ioctl.h>
#include <linux/types.h>

struct hmm_dmirror_cmd {
  __u64 addr;   /* in: first address of the process, page aligned */
  __u64 ptr;    /* in: the caller's buffer: the bytes, or one byte a page for a snapshot */
  __u64 npages; /* in */
  __u64 cpages; /* out: pages transferred */
  __u64 faults; /* out: how often the device had to fault */
};

#define HMM_DMIRROR_READ _IOWR('H', 0x00, struct hmm_dmirror_cmd)
#define HMM_DMIRROR_WRITE _IOWR('H', 0x01, struct hmm_dmirror_cmd)
#define HMM_DMIRROR_MIGRATE_TO_DEV _IOWR('H', 0x02, struct hmm_dmirror_cmd)
#define HMM_DMIRROR_MIGRATE_TO_SYS _IOWR('H', 0x03, struct hmm_dmirror_cmd)
#define HMM_DMIRROR_SNAPSHOT _IOWR('H', 0x04, struct hmm_dmirror_cmd)
#define HMM_DMIRROR_EXCLUSIVE _IOWR('H', 0x05, struct hmm_dmirror_cmd)
#define HMM_DMIRROR_CHECK_EXCLUSIVE _IOWR('H', 0x06, struct hmm_dmirror_cmd)
#define HMM_DMIRROR_RELEASE _IOWR('H', 0x07, struct hmm_dmirror_cmd)

/* A byte of a snapshot: what, or-ed with which rights and which size of entry. */
enum {
  HMM_DMIRROR_PROT_ERROR = 0xFF, /* no mapping, or one that may not be read */
  HMM_DMIRROR_PROT_NONE = 0x00,  /* no entry, or one nobody here can use */
  HMM_DMIRROR_PROT_READ = 0x01,
  HMM_DMIRROR_PROT_WRITE = 0x02,
  HMM_DMIRROR_PROT_PMD = 0x04, /* part of a 2 MiB entry */
  HMM_DMIRROR_PROT_PUD = 0x08, /* part of a 1 GiB entry */
  HMM_DMIRROR_PROT_ZERO = 0x10,
  HMM_DMIRROR_PROT_DEV_PRIVATE_LOCAL = 0x20, /* on the device that is asked */
  HMM_DMIRROR_PROT_DEV_PRIVATE_REMOTE = 0x30,
  HMM_DMIRROR_PROT_DEV_COHERENT_LOCAL = 0x40,
  HMM_DMIRROR_PROT_DEV_COHERENT_REMOTE = 0x50,
};

#endif /* _LIB_TEST_HMM_UAPI_H */
