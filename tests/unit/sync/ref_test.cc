// SPDX-License-Identifier: Apache-2.0
#include "sync/ref.h"

#include <gtest/gtest.h>

#include "base/failpoint.h"
#include "sync/sequence_counter.h"

namespace stagetwo::sync {
namespace {

struct Base : RefCounted {
  explicit Base(int& n) : alive(n) { ++alive; }
  ~Base() override { --alive; }
  int& alive;
};
struct Derived final : Base {
  using Base::Base;
  char more[300] = {};
};

TEST(Ref, TheLastOneEndsTheWholeObject) {
  int alive = 0;
  const AllocUse before = alloc_use();
  {
    auto made = Ref<Derived>::make("test", alive);
    ASSERT_TRUE(made);
    Ref<Base> base = std::move(*made);
    Ref<Base> second = base.clone();
    EXPECT_EQ(base->debug_count(), 2u);
    base.reset();
    EXPECT_EQ(alive, 1);
    second = nullptr;
    EXPECT_EQ(alive, 0);
  }
  EXPECT_EQ(alloc_use().bytes, before.bytes);
}

TEST(Ref, ARefusedMakeIsARefusal) {
  int alive = 0;
  failpoint::arm("test", 1);
  EXPECT_FALSE(Ref<Derived>::make("test", alive));
  failpoint::disarm();
  EXPECT_EQ(alive, 0);
}

struct Dying : RefCounted {
  explicit Dying(bool& out) : could(out) {}
  ~Dying() override { could = try_ref(); }
  bool& could;
};
TEST(Ref, ADyingObjectCannotBeRevived) {
  bool revived = true;
  Ref<Dying>::make("test", revived)->reset();
  EXPECT_FALSE(revived);
}

TEST(SequenceCounter, SaysWhetherAWriterWasThere) {
  SequenceCounter counter;
  Sequenced<u64> word(1);
  u64 s = counter.begin_read();
  EXPECT_EQ(word.read(), 1u);
  EXPECT_FALSE(counter.retry_read(s));
  counter.begin_write();
  word.write(2);
  EXPECT_TRUE(counter.retry_read(s));
  counter.end_write();
  EXPECT_TRUE(counter.retry_read(s));
  s = counter.begin_read();
  EXPECT_FALSE(counter.retry_read(s));
}

}  // namespace
}  // namespace stagetwo::sync
