// SPDX-License-Identifier: Apache-2.0
#include "cli/session.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string_view>
#include <system_error>

namespace stagetwo::cli {
namespace {

constexpr const char* kLockName = "/alive";
constexpr int kAttempts = 16;  // another run may remove the directory under us that often

std::string house_of_user() {
  const char* const runtime = std::getenv("XDG_RUNTIME_DIR");
  const std::string base = runtime != nullptr && runtime[0] == '/' ? runtime : "/tmp";
  return fmt::format("{}/stagetwo-{}", base, geteuid());
}

// Ours, a directory, and nobody else's business. /tmp is everybody's: a directory that somebody
// else made there under our name is refused.
std::string make_private_directory(const std::string& path) {
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return fmt::format("{} cannot be made: {}", path, std::strerror(errno));
  }
  struct stat info{};
  if (lstat(path.c_str(), &info) != 0) {
    return fmt::format("{}: {}", path, std::strerror(errno));
  }
  if (!S_ISDIR(info.st_mode) || info.st_uid != geteuid() || (info.st_mode & 077) != 0) {
    return fmt::format("{} is not a directory of mode 0700 of this user", path);
  }
  return {};
}

int open_lock(const std::string& directory, int flags) {
  return ::open((directory + kLockName).c_str(), flags | O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0600);
}

// Removes `directory` when nobody holds its lock.
void remove_if_stale(const std::string& directory) {
  const int fd = open_lock(directory, 0);
  if (fd < 0) return;  // no lock file yet: somebody is just making it
  if (flock(fd, LOCK_EX | LOCK_NB) == 0) {
    std::error_code ignored;
    std::filesystem::remove_all(directory, ignored);
  }
  close(fd);
}

void remove_stale_sessions(const std::string& house, const std::string& own) {
  std::error_code error;
  if (access(house.c_str(), F_OK) != 0) return;
  for (std::filesystem::directory_iterator it(house, error), end; !error && it != end;
       it.increment(error)) {
    if (it->path() != own) remove_if_stale(it->path());
  }
}

// Nobody else's, in another container with the same /tmp either.
std::string name_of_own() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  return fmt::format(".run-{}-{:x}{:08x}", getpid(), now.tv_sec, now.tv_nsec);
}

// A lock on the file that is still in the directory; -1 when it was removed meanwhile.
int hold(const std::string& directory) {
  const int fd = open_lock(directory, O_CREAT);
  if (fd < 0) return -1;
  struct stat held{};
  struct stat named{};
  if (flock(fd, LOCK_SH) == 0 && fstat(fd, &held) == 0 &&
      lstat((directory + kLockName).c_str(), &named) == 0 && held.st_ino == named.st_ino) {
    return fd;
  }
  close(fd);
  return -1;
}

}  // namespace

std::string Session::directory_of(const std::string& name) {
  return house_of_user() + "/" + name;
}

// What was said last wins, as the engine reads it.
std::string Session::directory_around() {
  constexpr std::string_view kName = ":session=";
  const char* const given = std::getenv("STAGETWO_OPTIONS");
  const std::string options = std::string(":") + (given == nullptr ? "" : given);
  const size_t at = options.rfind(kName);
  if (at == std::string::npos) return {};
  const size_t begins = at + kName.size();
  return options.substr(begins, options.find(':', begins) - begins);
}

Session Session::open(const std::string& name) {
  const std::string house = house_of_user();
  const std::string folder = name.empty() ? name_of_own() : name;
  remove_stale_sessions(house, house + "/" + folder);
  Session session;
  session.enter(house, folder);
  if (name.empty()) session.failure_.clear();
  return session;
}

void Session::enter(const std::string& house, const std::string& name) {
  const std::string directory = house + "/" + name;
  failure_ = make_private_directory(house);
  if (!failure_.empty()) return;
  for (int attempt = 0; attempt < kAttempts && lock_fd_ < 0; ++attempt) {
    failure_ = make_private_directory(directory);
    if (!failure_.empty()) return;
    lock_fd_ = hold(directory);
  }
  if (lock_fd_ < 0) {
    failure_ = fmt::format("{} cannot be locked", directory);
  } else {
    directory_ = directory;
  }
}

Session::Session(Session&& other) noexcept
    : directory_(std::move(other.directory_)),
      failure_(std::move(other.failure_)),
      lock_fd_(other.lock_fd_) {
  other.lock_fd_ = -1;
  other.directory_.clear();
}

Session::~Session() {
  if (lock_fd_ < 0) return;
  if (flock(lock_fd_, LOCK_EX | LOCK_NB) == 0) {  // nobody else is in it
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }
  close(lock_fd_);
}

}  // namespace stagetwo::cli
