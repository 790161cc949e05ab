// SPDX-License-Identifier: Apache-2.0
#include "cli/supervisor.h"

#include <fmt/core.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "cli/command_line.h"

namespace stagetwo::cli {
namespace {

std::vector<char*> pointers_to(const std::vector<std::string>& texts) {
  std::vector<char*> result;
  result.reserve(texts.size() + 1);
  for (const std::string& text : texts) result.push_back(const_cast<char*>(text.c_str()));
  result.push_back(nullptr);
  return result;
}

// The signals the supervisor waits for: every one that can be caught but the synchronous faults,
// which are its own.
sigset_t forwarded_signals() {
  sigset_t set;
  sigfillset(&set);
  for (const int own : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT}) {
    sigdelset(&set, own);
  }
  return set;
}

struct Started {
  pid_t pid = -1;
  int exec_error = 0;
};

// What the program inherits, as the tool's caller left it.
struct Inherited {
  sigset_t mask;
  struct sigaction child_action;
};

// vfork: the child borrows our memory until it is the program, so the cost does not grow with us.
// Killed, we take the program along, as every signal that can be caught goes on to it.
Started start(const char* path, char* const* argv, char* const* envp, const Inherited& inherited) {
  volatile int exec_error = 0;
  const pid_t parent = getpid();
  const pid_t pid = vfork();
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(kExitToolFailed);  // it was too late for that
    sigaction(SIGCHLD, &inherited.child_action, nullptr);
    sigprocmask(SIG_SETMASK, &inherited.mask, nullptr);
    execve(path, argv, envp);
    exec_error = errno;
    _exit(kExitCannotExecute);
  }
  return {pid, exec_error};
}

// As a shell does: an executable file the kernel does not know is a script for sh.
Started start_program(const std::string& path, const std::vector<std::string>& arguments,
                      const std::vector<std::string>& environment, const Inherited& inherited) {
  const std::vector<char*> envp = pointers_to(environment);
  Started started = start(path.c_str(), pointers_to(arguments).data(), envp.data(), inherited);
  if (started.exec_error == ENOEXEC) {
    waitpid(started.pid, nullptr, 0);
    std::vector<std::string> script = {"/bin/sh", path};
    script.insert(script.end(), arguments.begin() + 1, arguments.end());
    started = start("/bin/sh", pointers_to(script).data(), envp.data(), inherited);
  }
  return started;
}

// The program has stopped: so do we, and whoever continues us continues it.
void stop_with(pid_t pid) {
  kill(getpid(), SIGSTOP);
  kill(pid, SIGCONT);
}

// The program's status when it has ended, -1 while it lives.
int look_at(pid_t pid) {
  int status = 0;
  while (waitpid(pid, &status, WNOHANG | WUNTRACED) == pid) {
    if (WIFEXITED(status)) return WEXITSTATUS(status);
    if (WIFSIGNALED(status)) return kExitSignalBase + WTERMSIG(status);
    if (WIFSTOPPED(status)) stop_with(pid);
  }
  return -1;
}

// The terminal sends its signals to the whole group, the program has them already.
bool came_from_terminal(const siginfo_t& info) {
  return info.si_code == SI_KERNEL;
}

int watch(pid_t pid, const sigset_t& forwarded) {
  for (;;) {
    const int status = look_at(pid);
    if (status >= 0) return status;
    siginfo_t info{};
    const int signal = sigwaitinfo(&forwarded, &info);
    if (signal <= 0 || signal == SIGCHLD) continue;
    if (!came_from_terminal(info)) kill(pid, signal);
  }
}

}  // namespace

int supervise(const std::string& path, const std::vector<std::string>& arguments,
              const std::vector<std::string>& environment) {
  const sigset_t forwarded = forwarded_signals();
  Inherited inherited{};
  sigprocmask(SIG_BLOCK, &forwarded, &inherited.mask);
  // Where the caller ignores SIGCHLD the kernel would keep no status for us.
  struct sigaction standard{};
  sigaction(SIGCHLD, &standard, &inherited.child_action);
  const Started started = start_program(path, arguments, environment, inherited);
  if (started.pid < 0) throw std::runtime_error(fmt::format("fork: {}", std::strerror(errno)));
  if (started.exec_error != 0) {
    waitpid(started.pid, nullptr, 0);
    fmt::print(stderr, "stagetwo: {}: cannot be executed: {}\n", path,
               std::strerror(started.exec_error));
    return started.exec_error == ENOENT ? kExitNotFound : kExitCannotExecute;
  }
  return watch(started.pid, forwarded);
}

}  // namespace stagetwo::cli
