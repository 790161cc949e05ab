// SPDX-License-Identifier: Apache-2.0
#pragma once

// Translations of a secure guest's vCPUs, with nothing behind them: a list of pages and where they
// are, used and changed under one lock, and the rule by which an answer may become one of them.

#include <cstring>
#include <map>
#include <mutex>

#include "sync/futex.h"
#include "uv/ultravisor.h"

namespace stagetwo::test {

class ToyGuestTable final : public uv::GuestTable {
 public:
  void listen(uv::Ultravisor* ultravisor, u32 lpid) {
    ultravisor_ = ultravisor;
    lpid_ = lpid;
    listens_ = ultravisor->set_table(lpid, this).has_value();
  }
  void leave() {
    if (listens_) static_cast<void>(ultravisor_->set_table(lpid_, nullptr));
  }

  void going(u64 first, u64 count) override {
    const std::lock_guard guard(lock_);
    ++changing_;
    ++rings;
    for (auto at = pages_.begin(); at != pages_.end();) {
      at = at->first - first < count ? pages_.erase(at) : std::next(at);
    }
  }
  void gone() override {
    const std::lock_guard guard(lock_);
    --changing_;
    ++sequence_;
  }

  // A vCPU's load or store of a word. kSecure: it was made. Any other answer: it was not, because
  // the page is not the table's (or is nowhere, after a while of asking).
  uv::Where access(Gpa at, u64* word, bool write) {
    const u64 page = at.raw() / page_bytes;
    for (int tries = 0; tries < 200; ++tries) {
      u64 seen = 0;
      {
        const std::lock_guard guard(lock_);
        const auto found = pages_.find(page);
        if (found != pages_.end()) {
          u8* const bytes = found->second + at.raw() % page_bytes;
          write ? std::memcpy(bytes, word, sizeof(*word)) : std::memcpy(word, bytes, sizeof(*word));
          return uv::Where::kSecure;
        }
        seen = sequence_;
      }
      u8* bytes = nullptr;
      const uv::Where where = ultravisor_->translate(lpid_, Gpa(page * page_bytes), &bytes);
      if (where == uv::Where::kLater) {
        if (ultravisor_->bring(lpid_, Gpa(page * page_bytes)) == uv::GuestAccess::kRetry) {
          sync::yield_thread();
        }
        continue;
      }
      if (where != uv::Where::kSecure) return where;
      const std::lock_guard guard(lock_);
      if (changing_ == 0 && sequence_ == seen) pages_[page] = bytes;
    }
    return uv::Where::kLater;
  }
  [[nodiscard]] size_t size() {
    const std::lock_guard guard(lock_);
    return pages_.size();
  }
  u64 page_bytes = 4096;
  u64 rings = 0;

 private:
  uv::Ultravisor* ultravisor_ = nullptr;
  u32 lpid_ = 0;
  bool listens_ = false;
  std::mutex lock_;
  std::map<u64, u8*> pages_;
  u64 sequence_ = 0;
  unsigned changing_ = 0;
};

}  // namespace stagetwo::test
