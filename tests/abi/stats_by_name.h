// SPDX-License-Identifier: Apache-2.0
#pragma once

// A value of a statistics file, found as a program finds it: by its name.

#include <string>

#include "tests/abi/kvm_client.h"

namespace kvm_client {

inline u64 stat_of(int fd, const std::string& name) {
  if (!on_oracle()) stagetwo::host::find(fd)->refresh();  // what a read through the shim does
  kvm_stats_header header{};
  EXPECT_EQ(::pread(fd, &header, sizeof(header), 0), static_cast<ssize_t>(sizeof(header)));
  const size_t row = sizeof(kvm_stats_desc) + header.name_size;
  for (u32 i = 0; i < header.num_desc; ++i) {
    char text[128] = {};
    kvm_stats_desc desc;
    EXPECT_GT(::pread(fd, text, row, static_cast<off_t>(header.desc_offset + i * row)), 0);
    std::memcpy(&desc, text, sizeof(desc));
    if (text + sizeof(desc) != name) continue;
    u64 value = 0;
    EXPECT_EQ(::pread(fd, &value, 8, header.data_offset + desc.offset), 8);
    return value;
  }
  ADD_FAILURE() << name;
  return 0;
}

}  // namespace kvm_client
