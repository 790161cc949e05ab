// SPDX-License-Identifier: Apache-2.0
// A device that works on its process's own addresses (dma-engine-sva), by its own node: what the
// client attaches to it stands beside them, in every order.
#include <linux/idxd.h>
#include <unistd.h>

#include <cstring>

#include "tests/unit/abi/vfio/node_client.h"
#include "vfio/queue_device.h"

namespace stagetwo {
namespace {

class NodeSva : public Node {
 protected:
  NodeSva() { type_ = "dma-engine-sva"; }
  void SetUp() override {
    Node::SetUp();
    ASSERT_EQ(bind(device_, iommufd_), 0);
  }
  // The status of a fill's record, by pointers; 0: none came. What went wrong is in error_.
  u8 fill(u8 value) {
    auto* const record = reinterpret_cast<dsa_completion_record*>(memory_.address());
    *record = {};
    dsa_hw_desc d{};
    d.opcode = DSA_OPCODE_MEMFILL;
    d.flags = IDXD_OP_FLAG_CRAV | IDXD_OP_FLAG_RCR | IDXD_OP_FLAG_BOF;
    d.completion_addr = memory_.address();
    d.pattern = 0x0101010101010101 * value;
    d.dst_addr = memory_.address() + kPageSize;
    d.xfer_size = 64;
    *memory_.bytes_at(kPageSize) = 0;
    const auto ref = host::find(device_);
    auto* const file = dynamic_cast<host::PlacedIo*>(ref.get());
    u64 words[8];
    memcpy(words, &d, sizeof(d));
    off_t place = off_t{2} << 40;  // the portal
    for (const u64& part : words) {
      EXPECT_TRUE(file->write_at(reinterpret_cast<u64>(&part), sizeof(part), place));
      place += off_t{8};
    }
    for (unsigned i = 0; i < 100'000 && record_status() == 0 && error() == 0; ++i) usleep(50);
    EXPECT_EQ(byte(1), record_status() == DSA_COMP_SUCCESS ? value : 0);
    return record_status();
  }
  u8 record_status() const { return byte(0); }
  u64 word(off_t offset) {
    u64 value = 0;
    const auto ref = host::find(device_);
    EXPECT_TRUE(dynamic_cast<host::PlacedIo*>(ref.get())->read_at(reinterpret_cast<u64>(&value),
                                                                  sizeof(value), offset));
    return value;
  }
  u64 error() { return word(0xc0); }
  u32 pasid() { return static_cast<u32>(word(off_t{vfio::QueueDevice::kPasid})); }
};

TEST_F(NodeSva, WorksBesideAnIoasThatWasAttachedFirst) {
  const u32 ioas = make_ioas();
  ASSERT_EQ(attach(ioas), 0);
  EXPECT_EQ(fill(1), DSA_COMP_SUCCESS);
  EXPECT_NE(pasid(), 0u);
  EXPECT_EQ(attach(make_ioas()), 0) << "replaced";
  EXPECT_EQ(fill(2), DSA_COMP_SUCCESS);
  EXPECT_EQ(detach(), 0);
  EXPECT_EQ(fill(3), DSA_COMP_SUCCESS);
  EXPECT_EQ(error(), 0u);
}

TEST_F(NodeSva, AnIoasIsAttachedWhileItWorks) {
  EXPECT_EQ(fill(1), DSA_COMP_SUCCESS) << "nothing is attached";
  EXPECT_EQ(attach(make_ioas()), 0);
  EXPECT_EQ(fill(2), DSA_COMP_SUCCESS);
  // Closed with both, and opened again.
  close_fd(device_);
  device_ = *abi_vfio::open_node(0, O_RDWR | O_CLOEXEC);
  ASSERT_EQ(bind(device_, iommufd_), 0);
  EXPECT_EQ(attach(make_ioas()), 0);
  EXPECT_EQ(fill(3), DSA_COMP_SUCCESS);
  EXPECT_EQ(error(), 0u);
}

// Its number is a PASID of the device like another, but not its client's to give or to take.
TEST_F(NodeSva, ItsPasidIsNotItsClients) {
  abi_vfio::set_newer_requests(true);
  EXPECT_EQ(fill(1), DSA_COMP_SUCCESS);
  const u32 own = pasid(), table = make_table(make_ioas());
  EXPECT_EQ(attach(table, VFIO_DEVICE_ATTACH_PASID, own), -EBUSY);
  EXPECT_EQ(detach(VFIO_DEVICE_DETACH_PASID, own), 0) << "of nothing";
  EXPECT_EQ(fill(2), DSA_COMP_SUCCESS);
  EXPECT_EQ(attach(table, VFIO_DEVICE_ATTACH_PASID, own + 1), 0);
  EXPECT_EQ(fill(3), DSA_COMP_SUCCESS);
  EXPECT_EQ(detach(VFIO_DEVICE_DETACH_PASID, own + 1), 0);
  EXPECT_EQ(fill(4), DSA_COMP_SUCCESS);
}

}  // namespace
}  // namespace stagetwo
