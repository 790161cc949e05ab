// SPDX-License-Identifier: Apache-2.0
#include "cli/program.h"

#include <elf.h>
#include <fcntl.h>
#include <fmt/core.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <vector>

#include "cli/command_line.h"

namespace stagetwo::cli {
namespace {

// As the kernel: a script's interpreter may be a script, four times.
constexpr int kMaxInterpreters = 5;

enum class Loading { kDynamic, kStatic, kForeignMachine, kScript, kUnknown };

struct Head {
  Loading loading = Loading::kUnknown;
  std::string interpreter;  // of a kScript
  bool is_of_go = false;    // of a kDynamic
};

std::vector<Elf64_Phdr> segments_of(int fd, const Elf64_Ehdr& head) {
  std::vector<Elf64_Phdr> all(head.e_phnum);
  const size_t size = all.size() * sizeof(Elf64_Phdr);
  const ssize_t got = pread(fd, all.data(), size, static_cast<off_t>(head.e_phoff));
  all.resize(got > 0 ? static_cast<size_t>(got) / sizeof(Elf64_Phdr) : 0);
  return all;
}

// Go's linker leaves a note with its name.
bool has_note_of_go(int fd, const Elf64_Phdr& segment) {
  if (segment.p_type != PT_NOTE) return false;
  constexpr size_t kMostBytes = 4096;
  char notes[kMostBytes];
  const size_t wanted = std::min<size_t>(segment.p_filesz, kMostBytes);
  const ssize_t got = pread(fd, notes, wanted, static_cast<off_t>(segment.p_offset));
  const size_t size = got > 0 ? static_cast<size_t>(got) : 0;
  Elf64_Nhdr note{};
  const auto padded = [](size_t bytes) { return (bytes + 3) & ~size_t{3}; };
  for (size_t at = 0; at + sizeof(note) <= size;) {
    std::memcpy(&note, notes + at, sizeof(note));
    at += sizeof(note);
    constexpr std::string_view kName("Go\0\0", 4);
    if (note.n_namesz == kName.size() && at + kName.size() <= size &&
        std::string_view(notes + at, kName.size()) == kName) {
      return true;
    }
    at += padded(note.n_namesz) + padded(note.n_descsz);
  }
  return false;
}

std::string script_interpreter(std::string_view text) {
  text = text.substr(2, text.find('\n') - 2);
  const size_t start = text.find_first_not_of(" \t");
  if (start == std::string_view::npos) return {};
  text = text.substr(start);
  return std::string(text.substr(0, text.find_first_of(" \t")));
}

Head read_head(const std::string& path) {
  Head result;
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return result;  // may be executed without being readable
  char start[256] = {};
  const ssize_t size = pread(fd, start, sizeof(start) - 1, 0);
  Elf64_Ehdr elf{};
  if (size >= static_cast<ssize_t>(sizeof(elf)) && std::memcmp(start, ELFMAG, SELFMAG) == 0) {
    std::memcpy(&elf, start, sizeof(elf));
    if (elf.e_ident[EI_CLASS] != ELFCLASS64 || elf.e_machine != EM_X86_64) {
      result.loading = Loading::kForeignMachine;
    } else {
      const std::vector<Elf64_Phdr> segments = segments_of(fd, elf);
      const bool has_interpreter =
          std::any_of(segments.begin(), segments.end(),
                      [](const Elf64_Phdr& segment) { return segment.p_type == PT_INTERP; });
      result.loading = has_interpreter ? Loading::kDynamic : Loading::kStatic;
      result.is_of_go = std::any_of(segments.begin(), segments.end(), [&](const auto& segment) {
        return has_note_of_go(fd, segment);
      });
    }
  } else if (size > 2 && start[0] == '#' && start[1] == '!') {
    result.loading = Loading::kScript;
    result.interpreter = script_interpreter({start, static_cast<size_t>(size)});
  }
  close(fd);
  return result;
}

// The loader ignores LD_PRELOAD when the kernel grants more than the caller has.
bool gains_privileges(const std::string& path, const struct stat& info) {
  if ((info.st_mode & S_ISUID) != 0 && info.st_uid != geteuid()) return true;
  if ((info.st_mode & S_ISGID) != 0 && info.st_gid != getegid()) return true;
  return geteuid() != 0 && getxattr(path.c_str(), "security.capability", nullptr, 0) > 0;
}

// Empty: the engine can enter it.
std::string why_engine_cannot_enter(const std::string& path) {
  std::string at = path;
  for (int depth = 0; depth < kMaxInterpreters; ++depth) {
    struct stat info{};
    if (stat(at.c_str(), &info) != 0) return {};
    if (gains_privileges(at, info)) {
      return fmt::format(
          "{} gains privileges when it is executed, so the dynamic loader will not "
          "preload the engine: run a copy without set-id bits and capabilities",
          at);
    }
    const Head head = read_head(at);
    switch (head.loading) {
      case Loading::kStatic:
        return fmt::format(
            "{} is statically linked and the engine enters a program through its "
            "dynamic loader: use a dynamic build of it (link without -static)",
            at);
      case Loading::kForeignMachine:
        return fmt::format("{} is not an x86-64 program", at);
      case Loading::kScript:
        at = head.interpreter;
        break;
      case Loading::kDynamic:
      case Loading::kUnknown:
        return {};
    }
  }
  return {};
}

// execvp's search, without the exec. Empty and errno: not found, or found and not executable.
std::string search(const std::string& name, int* error) {
  *error = ENOENT;
  if (name.empty()) return {};
  if (name.find('/') != std::string::npos) {
    *error = access(name.c_str(), F_OK) == 0 ? 0 : errno;
    return *error == 0 ? name : std::string();
  }
  const char* const path = std::getenv("PATH");
  std::string_view rest = path == nullptr ? "/bin:/usr/bin" : path;
  for (;;) {
    const size_t colon = rest.find(':');
    const std::string_view directory = rest.substr(0, colon);
    const std::string candidate =
        (directory.empty() ? std::string(".") : std::string(directory)) + "/" + name;
    struct stat info{};
    if (stat(candidate.c_str(), &info) == 0 && S_ISREG(info.st_mode)) {
      if (access(candidate.c_str(), X_OK) == 0) {
        *error = 0;
        return candidate;
      }
      *error = EACCES;
    }
    if (colon == std::string_view::npos) return {};
    rest = rest.substr(colon + 1);
  }
}

}  // namespace

Program find_program(const std::string& name) {
  Program program;
  int error = 0;
  program.path = search(name, &error);
  struct stat info{};
  if (error == 0 && stat(program.path.c_str(), &info) == 0) {
    if (S_ISDIR(info.st_mode))
      error = EISDIR;
    else if (access(program.path.c_str(), X_OK) != 0)
      error = errno;
  }
  if (error == ENOENT || error == ENOTDIR) {
    program.refusal = kExitNotFound;
    program.reason = fmt::format("{}: not found", name);
  } else if (error != 0) {
    program.refusal = kExitCannotExecute;
    program.reason = fmt::format("{}: cannot be executed: {}", name, std::strerror(error));
  } else if (const std::string why = why_engine_cannot_enter(program.path); !why.empty()) {
    program.refusal = kExitCannotExecute;
    program.reason = why;
  } else if (read_head(program.path).is_of_go) {
    program.warning = fmt::format(
        "{} is a Go program, which makes its system calls by its own instruction: the devices it "
        "opens are the machine's, the engine sees what it calls in C only (stagetwo doctor)",
        program.path);
  }
  return program;
}

}  // namespace stagetwo::cli
