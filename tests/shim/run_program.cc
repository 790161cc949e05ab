// SPDX-License-Identifier: Apache-2.0
#include "tests/shim/run_program.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace stagetwo::test {
namespace {

constexpr unsigned kSeconds = 60;

std::string temporary() {
  char name[] = "/tmp/stagetwo_test_XXXXXX";
  const int fd = mkstemp(name);
  if (fd >= 0) close(fd);
  return name;
}

std::string take(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  file.close();
  std::filesystem::remove(path);
  return text.str();
}

void into_file(int fd, const std::string& path) {
  const int file = open(path.c_str(), O_WRONLY | O_TRUNC);
  dup2(file, fd);
  close(file);
}

[[noreturn]] void become(const std::vector<std::string>& command,
                         const std::vector<std::string>& settings) {
  for (const std::string& setting : settings) putenv(strdup(setting.c_str()));
  std::vector<char*> arguments;
  for (const std::string& argument : command) arguments.push_back(strdup(argument.c_str()));
  arguments.push_back(nullptr);
  alarm(kSeconds);
  execvp(arguments[0], arguments.data());
  _exit(127);
}

}  // namespace

Outcome run_program(const std::vector<std::string>& command,
                    const std::vector<std::string>& settings) {
  const std::string out = temporary();
  const std::string err = temporary();
  const pid_t child = fork();
  if (child == 0) {
    into_file(STDOUT_FILENO, out);
    into_file(STDERR_FILENO, err);
    become(command, settings);
  }
  int status = 0;
  waitpid(child, &status, 0);
  Outcome outcome;
  outcome.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  outcome.out = take(out);
  outcome.err = take(err);
  return outcome;
}

std::string tool() {
  return ST_BINARY_DIR "/bin/stagetwo";
}
std::string engine() {
  return ST_BINARY_DIR "/lib/stagetwo/libstagetwo_preload.so";
}
std::string program(const std::string& name) {
  return ST_BINARY_DIR "/tests/programs/" + name;
}

Outcome run_under(const std::string& name, const std::vector<std::string>& arguments) {
  std::vector<std::string> command = {tool(), "run", "--", program(name)};
  command.insert(command.end(), arguments.begin(), arguments.end());
  return run_program(command);
}

}  // namespace stagetwo::test
