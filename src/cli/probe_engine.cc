// SPDX-License-Identifier: Apache-2.0
#include "cli/probe_engine.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>

#include "cli/unseen.h"

extern char** environ;

namespace stagetwo::cli {
namespace {

constexpr const char* kSeen = "libc's own calls seen:";
constexpr const char* kUnseen = "; not seen:";

std::vector<std::string> environment_with(const std::string& engine) {
  std::vector<std::string> settings;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string setting = *entry;
    if (setting.starts_with("LD_PRELOAD=") || setting.starts_with("STAGETWO_OPTIONS=")) continue;
    settings.push_back(setting);
  }
  settings.push_back("LD_PRELOAD=" + engine);
  settings.push_back("STAGETWO_OPTIONS=verbose=1");
  return settings;
}

std::string read_all(int fd) {
  std::string text;
  char piece[4096];
  for (ssize_t got = 0; (got = read(fd, piece, sizeof(piece))) > 0;) {
    text.append(piece, static_cast<size_t>(got));
  }
  return text;
}

// What `sh` says on standard error while it opens a device under the engine.
std::string hear(const std::string& engine) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return {};
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDERR_FILENO);
  std::vector<std::string> settings = environment_with(engine);
  std::vector<char*> environment;
  for (std::string& setting : settings) environment.push_back(setting.data());
  environment.push_back(nullptr);
  std::string command[] = {"sh", "-c", ": </dev/kvm"};
  char* arguments[] = {command[0].data(), command[1].data(), command[2].data(), nullptr};
  pid_t child = 0;
  const int spawned =
      posix_spawn(&child, "/bin/sh", &actions, nullptr, arguments, environment.data());
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  const std::string said = spawned == 0 ? read_all(ends[0]) : std::string();
  close(ends[0]);
  if (spawned == 0) waitpid(child, nullptr, 0);
  return said;
}

const Finding* find(const std::vector<Finding>& findings, const char* name) {
  const auto found = std::find_if(findings.begin(), findings.end(),
                                  [name](const Finding& f) { return f.name == name; });
  return found == findings.end() ? nullptr : &*found;
}

}  // namespace

Finding probe_libc(const std::string& engine) {
  Finding f = finding("libc");
  const std::string said = engine.empty() ? std::string() : hear(engine);
  const size_t start = said.find(kSeen);
  const size_t middle = said.find(kUnseen, start == std::string::npos ? 0 : start);
  if (start == std::string::npos || middle == std::string::npos) {
    f.detail = "the engine did not come up in /bin/sh";
    f.mechanism = "memory that libc gives back by itself: guarded accesses, when it is used";
    return f;
  }
  const size_t end = std::min(said.find('\n', middle), said.size());
  const std::string seen =
      said.substr(start + std::string(kSeen).size(), middle - start - std::string(kSeen).size());
  const std::string unseen =
      said.substr(middle + std::string(kUnseen).size(), end - middle - std::string(kUnseen).size());
  const bool all = unseen == " none";
  f.verdict = all ? Verdict::kYes : seen.empty() ? Verdict::kNo : Verdict::kLimited;
  f.detail = fmt::format("its own calls seen:{}", seen.empty() ? " none" : seen);
  if (!all) f.detail += fmt::format("; not seen:{}", unseen);
  f.mechanism = all ? "memory that libc gives back by itself: a jump in its own functions"
                    : "what is not seen: guarded accesses, when the memory is used";
  return f;
}

Finding describe_unseen(const std::vector<Finding>& others) {
  const Finding* const userfaultfd = find(others, "userfaultfd");
  const Verdict verdict = userfaultfd == nullptr ? Verdict::kNo : userfaultfd->verdict;
  const auto applies = [verdict](Where where) {
    switch (where) {
      case Where::kEverywhere:
        return true;
      case Where::kWithUserfaultfd:
        return verdict != Verdict::kNo;
      case Where::kWithoutUserfaultfd:
        return verdict != Verdict::kYes;
      case Where::kDenied:
        return verdict == Verdict::kNo;
    }
    return true;
  };
  Finding f = finding("unseen");
  f.verdict = Verdict::kLimited;
  for (const Unseen& one : all_unseen()) {
    if (applies(one.where)) f.items.push_back(fmt::format("{}: {}", one.what, one.becomes));
  }
  const Finding* const libc = find(others, "libc");
  if (libc != nullptr && libc->verdict != Verdict::kYes) {
    f.items.push_back("what the line 'libc' names as not seen: guarded accesses, when it is used");
  }
  f.detail = fmt::format("{} things are not seen here", f.items.size());
  f.mechanism = "docs/what-is-not-seen.md says more";
  if (verdict != Verdict::kYes && userfaultfd != nullptr) f.advice = userfaultfd->advice;
  return f;
}

}  // namespace stagetwo::cli
