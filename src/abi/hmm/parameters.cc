// SPDX-License-Identifier: Apache-2.0
// What the module was told when it was loaded. kernel file: lib/test_hmm.c (module_param).
#include "abi/hmm/hmm.h"
#include "base/text.h"
#include "host/session.h"

namespace stagetwo::abi_hmm {
namespace {

constexpr u32 kFirstCoherent = 2;
constexpr u32 kUnits = 4;

}  // namespace

Result<void> set_parameter(std::string_view name, std::string_view value) {
  const unsigned number = name == "spm_addr_dev0" ? 0 : name == "spm_addr_dev1" ? 1 : 2;
  if (number == 2) return refuse(ENOENT);
  host::session_word(host::kSpmWords + number)
      .store(static_cast<u64>(ST_TRY(parse_kernel_signed(value))), sync::kRelaxed);
  return {};
}

bool has_unit(u32 unit) {
  if (unit < kFirstCoherent) return true;
  return unit < kUnits && host::session_word(host::kSpmWords).load(sync::kRelaxed) != 0 &&
         host::session_word(host::kSpmWords + 1).load(sync::kRelaxed) != 0;
}

}  // namespace stagetwo::abi_hmm
