// SPDX-License-Identifier: Apache-2.0
// What of the two drivers is there, as data: held against the descriptors, and shown in docs.
#include "abi/hmm/requests.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>

#include "abi/hmm/gup_uapi.h"
#include "abi/hmm/hmm.h"
#include "abi/hmm/uapi.h"
#include "host/backstop.h"
#include "host/descriptor.h"
#include "tests/support/pages.h"

namespace stagetwo::abi_hmm {
namespace {

std::string read_file(const std::string& path) {
  std::ifstream in(path);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

// Of the lines of the kernel's suite, how many a variant has, and how many of them pass.
void append_suite(std::ostringstream& out) {
  struct Count {
    unsigned cases = 0, pass = 0;
  };
  std::map<std::string, Count> variants;
  std::istringstream lines(read_file(ST_SOURCE_DIR "/tests/conformance/expected/hmm.txt"));
  const std::regex form("(\\S+)( -r (\\S+)\\.\\S+)?.* : (\\w+).*");
  std::smatch match;
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("#") || !std::regex_match(line, match, form)) continue;
    Count& count = variants[match[3].matched ? match[3].str() : match[1].str()];
    ++count.cases;
    count.pass += match[4] == "pass";
  }
  out << "\n## The kernel's own tests\n\n"
         "`make conformance SUITE=hmm` runs the unmodified `hmm-tests` and `gup_test` of Linux "
         "6.12; what is expected of\n"
         "each case stands in `tests/conformance/expected/hmm.txt`.\n\n"
         "| variant | cases | expected to pass |\n|---|---|---|\n";
  for (const auto& [name, count] : variants) {
    out << "| " << name << " | " << count.cases << " | " << count.pass << " |\n";
  }
}

// The bytes of a snapshot, from the interface.
void append_bytes(std::ostringstream& out) {
  const std::map<std::string, std::string> remarks = {
      {"DEV_PRIVATE_REMOTE", "never, as in the kernel: another unit's page is NONE"},
      {"PUD", "a 1 GiB entry"},
      {"PMD", "a 2 MiB entry"},
      {"ZERO", "the page of zeros"}};
  out << "\n## Bytes of a snapshot\n\n| HMM_DMIRROR_PROT_ | value | remark |\n|---|---|---|\n";
  const std::string text = read_file(ST_SOURCE_DIR "/src/abi/hmm/uapi.h");
  const std::regex line("HMM_DMIRROR_PROT_(\\w+) = (0x[0-9A-F]+)");
  for (std::sregex_iterator it(text.begin(), text.end(), line), end; it != end; ++it) {
    const auto remark = remarks.find((*it)[1]);
    out << "| " << (*it)[1] << " | " << (*it)[2] << " | "
        << (remark == remarks.end() ? "" : remark->second) << " |\n";
  }
}

std::string support_matrix() {
  std::ostringstream out;
  out << "# What of HMM is there\n\n"
         "Generated from `src/abi/hmm/requests.cc`, `src/abi/hmm/uapi.h` and the expected file of "
         "the suite; a test fails when\n"
         "it is stale. Rewrite it with `STAGETWO_UPDATE_DOCS=1 "
         "build/tests/abi_hmm_requests_test`.\n"
         "\n## Requests\n\n"
         "Any other request is EINVAL. A descriptor of a parent's answers EIO to everything.\n\n"
         "| request | on | remark |\n|---|---|---|\n";
  for (const Request& row : requests()) {
    out << "| " << row.name << " | " << (row.on == On::kUnit ? "unit" : "gup_test") << " | "
        << row.remark << " |\n";
  }
  out << "\n## Files\n\n"
         "| file | there | remark |\n|---|---|---|\n"
         "| /dev/hmm_dmirror0, 1 | always | device-private memory |\n"
         "| /dev/hmm_dmirror2, 3 | with both of `--param=test_hmm.spm_addr_dev0=…` and `…dev1=…` | "
         "device-coherent memory; else ENOENT |\n"
         "| /sys/kernel/debug/gup_test | always | nine commands |\n";
  append_bytes(out);
  append_suite(out);
  return out.str();
}

class HmmRequests : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(host::backstop::install()); }
  // The errno of a request that has nothing wrong but, maybe, its number.
  int answer(int fd, u32 number, void* argument) {
    return static_cast<int>(
        -host::find(fd)->ioctl(fd, number, reinterpret_cast<unsigned long>(argument)));
  }
  static void close(int fd) {
    host::CloseWatch watch(fd);
    ::close(fd);
    watch.closed();
  }
  static bool listed(On on, u32 number) {
    for (const Request& row : requests()) {
      if (row.on == on && row.number == number) return true;
    }
    return false;
  }
  test::GuardedPages memory_{1};
  u8 buffer_[kPageSize] = {};
};

TEST_F(HmmRequests, AreListedOnce) {
  std::set<u32> seen;
  for (const Request& row : requests()) EXPECT_TRUE(seen.insert(row.number).second) << row.name;
}

TEST_F(HmmRequests, OfAUnitAreServedAndNoOthers) {
  const int fd = *open_device(0, O_RDWR);
  for (u32 nr = 0; nr < 64; ++nr) {
    const u32 number = static_cast<u32>(_IOWR('H', nr, struct hmm_dmirror_cmd));
    std::memset(memory_.pointer(), 1, kPageSize);
    hmm_dmirror_cmd cmd{memory_.address(), reinterpret_cast<u64>(buffer_), 1, 0, 0};
    EXPECT_EQ(listed(On::kUnit, number) ? 0 : EINVAL, answer(fd, number, &cmd)) << nr;
  }
  close(fd);
}

TEST_F(HmmRequests, OfGupTestAreServedAndNoOthers) {
  const int fd = *open_gup_test(O_RDWR);
  for (const u32 direction : {_IOC_NONE, _IOC_WRITE, _IOC_READ | _IOC_WRITE}) {
    for (const size_t size :
         {size_t{0}, sizeof(u64), sizeof(pin_longterm_test), sizeof(gup_test)}) {
      for (u32 nr = 0; nr < 16; ++nr) {
        const u32 number = static_cast<u32>(_IOC(direction, 'g', nr, size));
        const bool known = listed(On::kGupTest, number);
        if (known && number == PIN_LONGTERM_TEST_READ) continue;  // EINVAL without a START
        std::memset(memory_.pointer(), 1, kPageSize);
        gup_test get{};
        get.addr = memory_.address();
        get.size = kPageSize;
        get.nr_pages_per_call = 1;
        pin_longterm_test pin{memory_.address(), kPageSize, 0};
        void* const argument = size == sizeof(pin) ? static_cast<void*>(&pin) : &get;
        EXPECT_EQ(known ? 0 : EINVAL, answer(fd, number, argument)) << std::hex << number;
        if (number == PIN_LONGTERM_TEST_START) {
          u64 to = reinterpret_cast<u64>(buffer_);
          EXPECT_EQ(0, answer(fd, static_cast<u32>(PIN_LONGTERM_TEST_READ), &to));
          EXPECT_EQ(1, buffer_[9]);
          EXPECT_EQ(0, answer(fd, static_cast<u32>(PIN_LONGTERM_TEST_STOP), nullptr));
        }
      }
    }
  }
  close(fd);
}

TEST_F(HmmRequests, TheMatrixIsCurrent) {
  const std::string path = ST_SOURCE_DIR "/docs/support-matrix-hmm.md";
  const std::string fresh = support_matrix();
  if (std::getenv("STAGETWO_UPDATE_DOCS") != nullptr) std::ofstream(path) << fresh;
  EXPECT_EQ(read_file(path), fresh);
}

}  // namespace
}  // namespace stagetwo::abi_hmm
