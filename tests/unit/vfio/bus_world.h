// SPDX-License-Identifier: Apache-2.0
#pragma once

// A bus of a test's own, in a session of its own.

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <string>

#include "host/session.h"
#include "vfio/bus.h"
#include "vfio/device.h"
#include "vfio/registry.h"

namespace stagetwo::vfio {

template <typename T>
int error_of(const Result<T>& result) {
  return result ? 0 : to_int(result.error());
}

class BusWorld : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/stagetwo-bus-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    directory_ = name;
    ASSERT_TRUE(host::join_session(directory_));
    ASSERT_TRUE(start_bus());
  }
  void TearDown() override {
    debug_leave_registry();
    host::debug_leave_session();
    std::filesystem::remove_all(directory_);
  }

  static Uuid uuid(unsigned n) { return {{static_cast<u8>(n), 0x11, 0x22}}; }
  static int create(std::string_view type, unsigned n) {
    return error_of(create_device(find_type(type), uuid(n)));
  }
  static int remove(unsigned n) {
    auto removal = begin_removal(uuid(n));
    if (!removal) return error_of(removal);
    finish_removal(std::move(*removal));
    return 0;
  }
  static sync::Ref<Device> open(unsigned n) {
    auto opened = Device::open(*find_device(uuid(n)));
    EXPECT_TRUE(opened);
    return opened ? std::move(*opened) : sync::Ref<Device>{};
  }

  std::string directory_;
};

}  // namespace stagetwo::vfio
