// SPDX-License-Identifier: Apache-2.0
#pragma once

// The session directory: ${XDG_RUNTIME_DIR:-/tmp}/stagetwo-UID/NAME, mode 0700.
//
// A run without a name has one of its own (".run-" and numbers), which no --session can join; where
// it cannot be made, such a run goes without, and what a session shares is each process's own.
// A supervisor holds a shared flock on the directory's file `alive`; a
// directory whose lock nobody holds is stale and removed by the next run. The lock dies with its
// holder, kill -9 included. Whoever ends last removes the directory.

#include <string>

namespace stagetwo::cli {

class Session {
 public:
  // `name` empty: a session of this run alone. Failure: failure() says why, directory() is empty;
  // without a name there is none.
  static Session open(const std::string& name);
  // Where the session of that name is, if there is one.
  static std::string directory_of(const std::string& name);
  // The one that this process runs in, by its environment; empty: none.
  static std::string directory_around();
  // Of a run inside another's session.
  static Session none() { return {}; }
  Session(Session&& other) noexcept;
  Session& operator=(Session&&) = delete;
  ~Session();

  [[nodiscard]] const std::string& directory() const { return directory_; }
  [[nodiscard]] const std::string& failure() const { return failure_; }

 private:
  Session() = default;
  void enter(const std::string& house, const std::string& name);

  std::string directory_;
  std::string failure_;
  int lock_fd_ = -1;
};

}  // namespace stagetwo::cli
