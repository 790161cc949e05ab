// SPDX-License-Identifier: Apache-2.0
#include "host/given_files.h"

#include "host/memory_budget.h"
#include "host/owner_table.h"
#include "host/page_owner.h"

namespace stagetwo::host {

GivenFiles::~GivenFiles() {
  for (unsigned i = 0; i < count_; ++i) shared_file_returns(objects_[i]);
}

bool GivenFiles::add(int fd, GivenTo to) {
  const u64 object = shared_file_escapes(fd, to);
  if (object == 0) return true;
  if (count_ < kMost) objects_[count_++] = object;
  OwnerTable* const table = owners_active() ? owner_table() : nullptr;
  if (table == nullptr) return true;
  // All of it comes, whatever the limit: nobody is waited for.
  const budget::NoRoom none_is_made;
  return table->bring_back_for_good(object);
}

// As a fork does.
void GivenFiles::add_all() {
  owners_before_fork();
  owners_after_fork_parent();
}

}  // namespace stagetwo::host
