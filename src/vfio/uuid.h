// SPDX-License-Identifier: Apache-2.0
#pragma once

// The name of a mediated device. Analogue: guid_t, guid_parse (kernel file: lib/uuid.c).

#include <string_view>

#include "base/result.h"
#include "base/text.h"
#include "base/types.h"

namespace stagetwo::vfio {

struct Uuid {
  static constexpr size_t kTextBytes = 36;
  u8 bytes[16];

  friend bool operator==(const Uuid&, const Uuid&) = default;
  void append(TextWriter& out) const;  // in lower case
};

// The first 36 characters of `text`; what is behind them is not looked at. Failure: EINVAL.
[[nodiscard]] Result<Uuid> parse_uuid(std::string_view text);

}  // namespace stagetwo::vfio
