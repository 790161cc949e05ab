// SPDX-License-Identifier: Apache-2.0
// The dma-engine's descriptors, records and codes are those of linux/idxd.h, field by field.
#include "vfio/dsa_format.h"

#include <gtest/gtest.h>
#include <linux/idxd.h>

#include <cstddef>
#include <cstring>

namespace stagetwo::vfio {
namespace {

static_assert(sizeof(Descriptor) == sizeof(dsa_hw_desc));
static_assert(sizeof(Completion) == sizeof(dsa_completion_record));
static_assert(offsetof(Descriptor, completion) == offsetof(dsa_hw_desc, completion_addr));
static_assert(offsetof(Descriptor, source) == offsetof(dsa_hw_desc, src_addr));
static_assert(offsetof(Descriptor, source) == offsetof(dsa_hw_desc, pattern));
static_assert(offsetof(Descriptor, source) == offsetof(dsa_hw_desc, desc_list_addr));
static_assert(offsetof(Descriptor, destination) == offsetof(dsa_hw_desc, dst_addr));
static_assert(offsetof(Descriptor, destination) == offsetof(dsa_hw_desc, src2_addr));
static_assert(offsetof(Descriptor, size) == offsetof(dsa_hw_desc, xfer_size));
static_assert(offsetof(Descriptor, size) == offsetof(dsa_hw_desc, desc_count));
static_assert(offsetof(Descriptor, interrupt) == offsetof(dsa_hw_desc, int_handle));
static_assert(offsetof(Descriptor, reserved) == offsetof(dsa_hw_desc, rsvd1));
static_assert(offsetof(Descriptor, operation) == offsetof(dsa_hw_desc, crc_seed));
static_assert(offsetof(Completion, status) == offsetof(dsa_completion_record, status));
static_assert(offsetof(Completion, result) == offsetof(dsa_completion_record, result));
static_assert(offsetof(Completion, bytes) == offsetof(dsa_completion_record, bytes_completed));
static_assert(offsetof(Completion, fault_address) == offsetof(dsa_completion_record, fault_addr));
static_assert(offsetof(Completion, special) == offsetof(dsa_completion_record, crc_val));

static_assert(static_cast<int>(Opcode::kNoop) == DSA_OPCODE_NOOP);
static_assert(static_cast<int>(Opcode::kBatch) == DSA_OPCODE_BATCH);
static_assert(static_cast<int>(Opcode::kDrain) == DSA_OPCODE_DRAIN);
static_assert(static_cast<int>(Opcode::kMove) == DSA_OPCODE_MEMMOVE);
static_assert(static_cast<int>(Opcode::kFill) == DSA_OPCODE_MEMFILL);
static_assert(static_cast<int>(Opcode::kCompare) == DSA_OPCODE_COMPARE);
static_assert(static_cast<int>(Opcode::kSum) == DSA_OPCODE_CRCGEN);

static_assert(kFence == IDXD_OP_FLAG_FENCE && kBlockOnFault == IDXD_OP_FLAG_BOF);
static_assert(kCompletionValid == IDXD_OP_FLAG_CRAV && kRequestCompletion == IDXD_OP_FLAG_RCR);
static_assert(kRequestInterrupt == IDXD_OP_FLAG_RCI && kCacheControl == IDXD_OP_FLAG_CC);

constexpr bool same(Status ours, dsa_completion_status theirs) {
  return static_cast<int>(ours) == static_cast<int>(theirs);
}
static_assert(same(Status::kNone, DSA_COMP_NONE) && same(Status::kSuccess, DSA_COMP_SUCCESS));
static_assert(same(Status::kPageFault, DSA_COMP_PAGE_FAULT_NOBOF));
static_assert(same(Status::kPageRefused, DSA_COMP_PAGE_FAULT_IR));
static_assert(same(Status::kBatchFailed, DSA_COMP_BATCH_FAIL));
static_assert(same(Status::kBatchFault, DSA_COMP_BATCH_PAGE_FAULT));
static_assert(same(Status::kBadOpcode, DSA_COMP_BAD_OPCODE));
static_assert(same(Status::kBadFlags, DSA_COMP_INVALID_FLAGS));
static_assert(same(Status::kReservedSet, DSA_COMP_NOZERO_RESERVE));
static_assert(same(Status::kBadSize, DSA_COMP_XFER_ERANGE));
static_assert(same(Status::kBadCount, DSA_COMP_DESC_CNT_ERANGE));
static_assert(same(Status::kOverlap, DSA_COMP_OVERLAP_BUFFERS));
static_assert(same(Status::kListMisaligned, DSA_COMP_DESCLIST_ALIGN));
static_assert(same(Status::kBadInterrupt, DSA_COMP_INT_HANDLE_INVAL));
static_assert(same(Status::kCompletionFault, DSA_COMP_CRA_XLAT));
static_assert(same(Status::kCompletionMisaligned, DSA_COMP_CRA_ALIGN));
static_assert(kFaultWasWrite == DSA_COMP_STATUS_WRITE);

// What the header has in bit fields.
TEST(DsaFormat, ReadsWhatAClientWroteByTheKernelsHeader) {
  dsa_hw_desc theirs{};
  theirs.pasid = 0x54321;
  theirs.priv = 1;
  theirs.flags = 0x21010e;
  theirs.opcode = DSA_OPCODE_CRCGEN;
  theirs.crc_seed = 0x89abcdef;
  Descriptor ours;
  std::memcpy(&ours, &theirs, sizeof(ours));
  EXPECT_EQ(ours.pasid & 0xfffff, 0x54321u);
  EXPECT_EQ(ours.flags(), 0x21010eu);
  EXPECT_EQ(ours.opcode(), DSA_OPCODE_CRCGEN);
  EXPECT_EQ(ours.operation[0], 0x89abcdefu);
  EXPECT_FALSE(ours.has_reserved());
  theirs.rsvd = 1;
  std::memcpy(&ours, &theirs, sizeof(ours));
  EXPECT_TRUE(ours.has_reserved());
}

TEST(DsaFormat, WhatIsOneOperationsIsReservedForTheOthers) {
  for (const u8 opcode : {DSA_OPCODE_MEMMOVE, DSA_OPCODE_CRCGEN, DSA_OPCODE_BATCH}) {
    for (unsigned byte = 40; byte < 64; ++byte) {
      dsa_hw_desc theirs{};
      theirs.opcode = opcode;
      reinterpret_cast<u8*>(&theirs)[byte] = 1;
      Descriptor ours;
      std::memcpy(&ours, &theirs, sizeof(ours));
      EXPECT_EQ(ours.has_reserved(), opcode != DSA_OPCODE_CRCGEN || byte >= 44) << byte;
    }
  }
}

TEST(DsaFormat, ARecordIsReadByTheKernelsHeader) {
  Completion ours{};
  ours.status = static_cast<u8>(Status::kBadFlags);
  ours.special[0] = 0x123456;
  dsa_completion_record theirs{};
  const auto words = ours.words();
  std::memcpy(reinterpret_cast<void*>(&theirs), words.data(), sizeof(theirs));
  EXPECT_EQ(theirs.status, DSA_COMP_INVALID_FLAGS);
  EXPECT_EQ(theirs.invalid_flags, 0x123456u);
}

}  // namespace
}  // namespace stagetwo::vfio
