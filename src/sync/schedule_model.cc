// SPDX-License-Identifier: Apache-2.0
#include "sync/schedule_model.h"

#if defined(ST_SCHED)

#include <algorithm>

#include "base/check.h"

namespace stagetwo::sync::sched {
namespace {

bool acquires(std::memory_order order) {
  return order == std::memory_order_acquire || order == std::memory_order_acq_rel ||
         order == std::memory_order_seq_cst;
}
bool releases(std::memory_order order) {
  return order == std::memory_order_release || order == std::memory_order_acq_rel ||
         order == std::memory_order_seq_cst;
}

}  // namespace

u64 Random::next() {
  state_ += 0x9e3779b97f4a7c15u;
  return hash_u64(state_);
}

void Model::reset(unsigned threads, bool weak) {
  threads_ = threads;
  words_ = 0;
  weak_ = weak;
  for (View& view : view_) std::fill(std::begin(view.at), std::end(view.at), 0);
}

void Model::forget(const void* memory, u64 bytes) {
  const auto first = reinterpret_cast<u64>(memory);
  for (unsigned i = 0; i < words_; ++i) {
    if (reinterpret_cast<u64>(word_[i].address) - first < bytes) word_[i].address = nullptr;
  }
}

unsigned Model::look_up(const void* word) const {
  for (unsigned i = 0; i < words_; ++i) {
    if (word_[i].address == word) return i;
  }
  return kWords;
}

unsigned Model::find(const void* word, u64 newest) {
  if (const unsigned known = look_up(word); known != kWords) return known;
  ST_CHECK_OP(words_, <, kWords);
  // What stands in it at its first access was written before the run: everybody has seen it.
  Word& fresh = word_[words_];
  fresh.address = word;
  fresh.newest = 0;
  fresh.seq_cst = 0;
  fresh.history[0].value = newest;
  fresh.history[0].carried = View{};
  return words_++;
}

void Model::join(View& into, const View& from) {
  for (unsigned i = 0; i < words_; ++i) into.at[i] = std::max(into.at[i], from.at[i]);
}

u64 Model::load(unsigned thread, const void* address, u64 newest, std::memory_order order,
                Random& random) {
  const unsigned index = look_up(address);
  if (index == kWords) return newest;
  Word& word = word_[index];
  View& view = view_[thread];
  u32 oldest = view.at[index];
  if (order == std::memory_order_seq_cst) oldest = std::max(oldest, word.seq_cst);
  if (word.newest >= kHistory) oldest = std::max(oldest, word.newest - kHistory + 1);
  u32 chosen = word.newest;
  if (weak_ && oldest < word.newest && random.below(2) == 0) {
    chosen = oldest + static_cast<u32>(random.below(word.newest - oldest + 1));
  }
  const Write& write = word.history[chosen % kHistory];
  view.at[index] = chosen;
  if (acquires(order)) join(view, write.carried);
  if (order == std::memory_order_seq_cst) word.seq_cst = std::max(word.seq_cst, chosen);
  return write.value;
}

void Model::read_newest(unsigned thread, const void* address, std::memory_order order) {
  const unsigned index = find(address, 0);
  Word& word = word_[index];
  view_[thread].at[index] = word.newest;
  if (acquires(order)) join(view_[thread], word.history[word.newest % kHistory].carried);
  if (order == std::memory_order_seq_cst) word.seq_cst = word.newest;
}

void Model::write(unsigned thread, const void* address, u64 value, std::memory_order order,
                  bool modify) {
  const unsigned index = find(address, 0);
  Word& word = word_[index];
  const Write& before = word.history[word.newest % kHistory];
  const u32 number = ++word.newest;
  Write& write = word.history[number % kHistory];
  write.carried = modify ? before.carried : View{};
  write.value = value;
  view_[thread].at[index] = number;
  if (releases(order)) join(write.carried, view_[thread]);
  write.carried.at[index] = number;
  if (order == std::memory_order_seq_cst) word.seq_cst = number;
}

void Model::barrier_everywhere() {
  View all{};
  for (unsigned t = 0; t < threads_; ++t) join(all, view_[t]);
  for (unsigned t = 0; t < threads_; ++t) join(view_[t], all);
}

bool Model::ordered(unsigned thread, const void* address) {
  const unsigned index = look_up(address);
  return index == kWords || view_[thread].at[index] == word_[index].newest;
}

}  // namespace stagetwo::sync::sched

#endif
