// SPDX-License-Identifier: Apache-2.0
#include "abi/hmm/requests.h"

#include <array>

#include "abi/hmm/gup_uapi.h"
#include "abi/hmm/uapi.h"

namespace stagetwo::abi_hmm {
namespace {

#define ST_UNIT(request, remark)         \
  Request {                              \
    request, #request, On::kUnit, remark \
  }
#define ST_GUP(request, remark)             \
  Request {                                 \
    request, #request, On::kGupTest, remark \
  }
constexpr std::array kRequests = {
    ST_UNIT(HMM_DMIRROR_READ, ""),
    ST_UNIT(HMM_DMIRROR_WRITE, ""),
    ST_UNIT(HMM_DMIRROR_MIGRATE_TO_DEV,
            "private anonymous memory and the private copies of a file's pages, 4 KiB at a time"),
    ST_UNIT(HMM_DMIRROR_MIGRATE_TO_SYS, ""),
    ST_UNIT(HMM_DMIRROR_SNAPSHOT, "zero page and huge entries are told apart since Linux 6.7"),
    ST_UNIT(HMM_DMIRROR_EXCLUSIVE, ""),
    ST_UNIT(HMM_DMIRROR_CHECK_EXCLUSIVE, ""),
    ST_UNIT(HMM_DMIRROR_RELEASE, "of this process's pages"),
    ST_GUP(GUP_FAST_BENCHMARK, "given back within the call"),
    ST_GUP(PIN_FAST_BENCHMARK, "given back within the call"),
    ST_GUP(PIN_LONGTERM_BENCHMARK, "given back within the call"),
    ST_GUP(GUP_BASIC_TEST, "given back within the call"),
    ST_GUP(PIN_BASIC_TEST, "given back within the call"),
    ST_GUP(DUMP_USER_PAGES_TEST, "the dump goes to the trace"),
    ST_GUP(PIN_LONGTERM_TEST_START, "one set a process"),
    ST_GUP(PIN_LONGTERM_TEST_STOP, ""),
    ST_GUP(PIN_LONGTERM_TEST_READ, ""),
};
#undef ST_UNIT
#undef ST_GUP

}  // namespace

std::span<const Request> requests() {
  return kRequests;
}

}  // namespace stagetwo::abi_hmm
