// SPDX-License-Identifier: Apache-2.0
// The descriptor of a virtual IOMMU's event queue.
#include <climits>
#include <string>

#include "tests/unit/abi/iommufd/viommu_client.h"

namespace stagetwo {
namespace {

class EventFile : public ViommuClient {
 protected:
  void SetUp() override {
    ViommuClient::SetUp();
    ASSERT_EQ(open_queue(2, &queue_, &file_), 0);
    ASSERT_EQ(vdevice_alloc(viommu_, mock_.device, 0x99, &vdevice_), 0);
    ASSERT_EQ(replace(mock_.test_device, nested_), 0);
  }
  void TearDown() override {
    if (file_ >= 0) close_fd(file_);
    ViommuClient::TearDown();
  }
  long open_queue(u32 room, u32* id, int* fd, u32 type = IOMMU_VEVENTQ_TYPE_SELFTEST) {
    iommu_veventq_alloc cmd{};
    cmd.viommu_id = viommu_;
    cmd.type = type;
    cmd.veventq_depth = room;
    const long answer = call(IOMMU_VEVENTQ_ALLOC, &cmd);
    *id = cmd.out_veventq_id;
    *fd = static_cast<int>(cmd.out_veventq_fd);
    return answer;
  }
  long trigger(u32 device) {
    auto cmd = test_cmd(IOMMU_TEST_OP_TRIGGER_VEVENT, 0);
    cmd.trigger_vevent.dev_id = device;
    return call(IOMMU_TEST_CMD, &cmd);
  }
  void trigger_some(int number) {
    for (int i = 0; i < number; ++i) ASSERT_EQ(trigger(mock_.device), 0);
  }
  // What a read of so many bytes brings: "sequence:number" of each event, "sequence:lost".
  std::string read(size_t size) {
    u32 words[64] = {};
    const long bytes = read_fd(file_, words, size);
    if (bytes < 0) return std::to_string(bytes);
    std::string out;
    for (long at = 0; at < bytes;) {
      const u32* const event = words + at / 4;
      out += std::to_string(event[1]) + ":";
      at += 8;
      if (event[0] == IOMMU_VEVENTQ_FLAG_LOST_EVENTS) {
        out += "lost ";
      } else {
        EXPECT_EQ(event[0], 0u);
        out += std::to_string(event[2]) + " ";
        at += 4;
      }
    }
    return out;
  }
  u32 queue_ = 0, vdevice_ = 0;
  int file_ = -1;
};

TEST_F(EventFile, TellsWhatHappenedInItsOrder) {
  EXPECT_EQ(read(120), "") << "never waits";
  trigger_some(2);
  EXPECT_EQ(read(120), "0:153 1:153 ");
  trigger_some(1);
  EXPECT_EQ(read(120), "2:153 ");
}

TEST_F(EventFile, TellsWholeEventsAndAsManyAsThereIsRoomFor) {
  trigger_some(2);
  EXPECT_EQ(read(0), "");
  EXPECT_EQ(read(7), "");
  EXPECT_EQ(read(8), "") << "no room for the data";
  EXPECT_EQ(read(11), "");
  EXPECT_EQ(read(13), "0:153 ");
  EXPECT_EQ(read(12), "1:153 ");
}

TEST_F(EventFile, WhatDoesNotFitLeavesAMarkWithTheLastNumber) {
  trigger_some(5);
  EXPECT_EQ(read(31), "0:153 1:153 ") << "no room for the mark";
  EXPECT_EQ(read(8), "4:lost ");
  EXPECT_EQ(read(120), "");
  trigger_some(1);
  EXPECT_EQ(read(120), "5:153 ");
}

TEST_F(EventFile, AnEventBehindTheMarkTakesItsPlace) {
  trigger_some(3);
  EXPECT_EQ(read(12), "0:153 ");
  trigger_some(1);
  EXPECT_EQ(read(120), "1:153 3:153 ") << "the gap in the numbers tells of it";
}

TEST_F(EventFile, WhatCannotBeToldStays) {
  trigger_some(1);
  EXPECT_EQ(read_fd(file_, nullptr, 12), -EFAULT);
  EXPECT_EQ(read(120), "0:153 ");
  // A header that has a place and data that has none: the header alone is read, the event stays.
  trigger_some(1);
  test::GuardedPages page(1);
  EXPECT_EQ(read_fd(file_, page.bytes_at(kPageSize - 8), 12), 8);
  EXPECT_EQ(read(120), "1:153 ");
}

TEST_F(EventFile, NobodyWritesToIt) {
  EXPECT_EQ(to_int(host::find(file_)->write_bytes(0, 8).error()), EINVAL);
}

TEST_F(EventFile, ThereIsOneOfAType) {
  u32 id = 0;
  int fd = -1;
  EXPECT_EQ(open_queue(2, &id, &fd), -EEXIST);
  ASSERT_EQ(open_queue(2, &id, &fd, 7), 0) << "types are the client's";
  close_fd(fd);
  EXPECT_EQ(destroy(id), 0);
}

TEST_F(EventFile, ItsDescriptorHoldsTheQueueAndTheQueueTheViommu) {
  ASSERT_EQ(replace(mock_.test_device, ioas_), 0);
  ASSERT_EQ(destroy(vdevice_), 0);
  ASSERT_EQ(destroy(nested_), 0);
  EXPECT_EQ(destroy(queue_), -EBUSY);
  EXPECT_EQ(destroy(viommu_), -EBUSY);
  close_fd(file_);
  file_ = -1;
  EXPECT_EQ(destroy(viommu_), -EBUSY);
  EXPECT_EQ(destroy(queue_), 0);
  EXPECT_EQ(destroy(viommu_), 0);
}

TEST_F(EventFile, LivesOnWithoutTheIommufd) {
  trigger_some(1);
  close_fd(fd_);
  fd_ = -1;
  EXPECT_EQ(read(120), "0:153 ");
}

TEST_F(EventFile, ADeviceTellsOnlyWhileItUsesATableThere) {
  EXPECT_EQ(trigger(999), -ENOENT);
  ASSERT_EQ(replace(mock_.test_device, ioas_), 0);
  EXPECT_EQ(trigger(mock_.device), -ENOENT);
  ASSERT_EQ(destroy(vdevice_), 0);
  ASSERT_EQ(vdevice_alloc(viommu_, mock_.device, 0x88, &vdevice_), 0);
  ASSERT_EQ(replace(mock_.test_device, nested_), 0);
  trigger_some(1);
  EXPECT_EQ(read(120), "0:136 ") << "by its new number";
  ASSERT_EQ(destroy(vdevice_), 0);
  trigger_some(1);
  EXPECT_EQ(read(120), "1:136 ") << "the driver has noted the number";
}

TEST_F(EventFile, ADeviceWithoutAQueueHasNobodyToTell) {
  close_fd(file_);
  file_ = -1;
  ASSERT_EQ(destroy(queue_), 0);
  EXPECT_EQ(trigger(mock_.device), -EOPNOTSUPP);
}

}  // namespace
}  // namespace stagetwo
