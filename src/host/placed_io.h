// SPDX-License-Identifier: Apache-2.0
#pragma once

// A file that reads and writes by itself (Description::moves_bytes) and has places to ask at: the
// p-forms come here, with their offset. Analogue: FMODE_PREAD and FMODE_PWRITE.
// Context: as a Description's other operations; the caller has looked at the access mode.

#include <sys/types.h>

#include "base/result.h"
#include "base/types.h"
#include "host/description.h"

namespace stagetwo::host {

class PlacedIo {
 public:
  // How many bytes, or a refusal. Pre: at >= 0.
  virtual Result<long> read_at(u64 to, u64 size, off_t at) = 0;
  virtual Result<long> write_at(u64 from, u64 size, off_t at) = 0;

 protected:
  ~PlacedIo() = default;
};

// A file whose mappings are not of the memfd behind it: told of each with what was asked, it puts
// there what the client is to see. Failure: the client's, and the mapping is taken away.
class PlacedMaps {
 public:
  virtual Result<void> mapped_at(Hva at, const MapRequest& request) = 0;

 protected:
  ~PlacedMaps() = default;
};

}  // namespace stagetwo::host
