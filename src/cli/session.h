// SPDX-License-Identifier: Apache-2.0
#pragma once

// The session directory: ${XDG_RUNTIME_DIR:-/tmp}/stagetwo-UID/NAME, mode 0700.
//
// It is made at first use: for a name that is joined, at once; a run without a name has no use for
// one yet and makes none. A supervisor holds a shared flock on the directory's file `alive`; a
// directory whose lock nobody holds is stale and removed by the next run. The lock dies with its
// holder, kill -9 included. Whoever ends last removes the directory.

#include <string>

namespace stagetwo::cli {

class Session {
 public:
  // `name` empty: a session of this process alone. Failure: failure() says why, directory() is
  // empty.
  static Session open(const std::string& name);
  Session(Session&& other) noexcept;
  Session& operator=(Session&&) = delete;
  ~Session();

  [[nodiscard]] const std::string& directory() const { return directory_; }
  [[nodiscard]] const std::string& failure() const { return failure_; }

 private:
  Session() = default;

  std::string directory_;
  std::string failure_;
  int lock_fd_ = -1;
};

}  // namespace stagetwo::cli
