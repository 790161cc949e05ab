// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the user asked for, checked. Everything after the first `--` belongs to the program and is
// never read as an option.

#include <string>
#include <vector>

namespace stagetwo::cli {

// Exit statuses of the tool itself; everything else is the program's own.
inline constexpr int kExitBadCommandLine = 2;
inline constexpr int kExitToolFailed = 125;
inline constexpr int kExitCannotExecute = 126;
inline constexpr int kExitNotFound = 127;
inline constexpr int kExitSignalBase = 128;

struct RunOptions {
  std::string abi = "6.12";  // which kernel's visible ABI
  bool abi_given = false;
  std::string session;                    // empty: a session of its own
  std::string log_file;                   // empty: standard error; %p is the process
  std::string libc;                       // empty: libc's own calls are made visible; or "leave"
  std::string hugetlb;                    // empty: the machine's own huge pages; or "standin"
  std::vector<std::string> params;        // module.name=value
  bool iommufd_test = false;              // IOMMU_TEST_CMD, as with CONFIG_IOMMUFD_TEST
  std::vector<std::string> vfio_devices;  // PCI functions, by the names of vfio/bus.h
  std::string secure;                     // empty: not offered; the pool's SIZE
  std::string memory_limit;               // empty: none; SIZE[,vm=SIZE], each of them or "none"
  std::string swap;                       // FILE[,size=SIZE]
  std::string compressed;                 // empty: a share of the limit; bytes, with K, M, G or T
  std::string wss;                        // empty: not wanted; INTERVAL[,file=FILE]
  std::string stats;                      // empty: not wanted; "1", or a file
  bool verbose = false;
  std::vector<std::string> program;  // name and arguments, never empty
};

struct DoctorOptions {
  bool json = false;
};

struct LimitOptions {
  std::string session;
  std::string size;  // as RunOptions::memory_limit
};

enum class MdevAction { kList, kTypes, kCreate, kRemove };

struct MdevOptions {
  MdevAction action = MdevAction::kList;
  std::string session;
  std::string type;  // of kCreate
  std::string uuid;  // of kCreate (empty: a new one) and kRemove
};

enum class Command { kRun, kDoctor, kLimit, kMdev, kDone };

struct CommandLine {
  Command command = Command::kDone;
  int exit_status = 0;  // of kDone: --help, --version, or a refusal that has been printed
  RunOptions run;
  DoctorOptions doctor;
  LimitOptions limit;
  MdevOptions mdev;
};

CommandLine parse_command_line(int argc, char** argv);

}  // namespace stagetwo::cli
