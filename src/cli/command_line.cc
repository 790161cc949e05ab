// SPDX-License-Identifier: Apache-2.0
#include "cli/command_line.h"

#include <fmt/core.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>

#include "base/size_text.h"
#include "cli/session.h"
#include "mem/swap_file.h"
#include "vfio/mdev.h"

namespace stagetwo::cli {
namespace {

constexpr u64 kLeastLimit = u64{1} << 20;

CommandLine done(int status) {
  CommandLine line;
  line.exit_status = status;
  return line;
}

CommandLine refuse_line(const std::string& sentence, const std::string& hint) {
  fmt::print(stderr, "stagetwo: {}\nHint: {}\n", sentence, hint);
  return done(kExitBadCommandLine);
}

// One line, no full stop, lower case first: it stands behind "stagetwo: ". A name in capitals
// stays.
std::string sentence_of(const CLI::ParseError& error) {
  std::string text = error.what();
  std::replace(text.begin(), text.end(), '\n', ' ');
  const auto is_capital = [&](size_t at) {
    return at < text.size() && text[at] >= 'A' && text[at] <= 'Z';
  };
  if (is_capital(0) && !is_capital(1)) {
    text[0] = static_cast<char>(text[0] - 'A' + 'a');
  }
  return text;
}

void describe(CLI::App& app) {
  app.set_version_flag("--version", "stagetwo " STAGETWO_VERSION, "print the version");
  app.require_subcommand(1);
  app.footer(
      "Exit status of run: the program's own; 128+N when signal N ended it; 125 stagetwo failed,\n"
      "126 the program cannot be executed, 127 it was not found. A bad command line: 2.");
}

std::string check_size(const std::string& text) {
  const auto size = parse_size(text);
  if (!size) return "wants a size: bytes, or a number with K, M, G or T";
  return *size < kLeastLimit ? "is less than a megabyte: nothing could run" : std::string();
}

// What stands behind the first comma has to begin with `name`=.
std::string check_part(const std::string& text, const std::string& name, std::string* value) {
  const size_t comma = text.find(',');
  if (comma == std::string::npos) return {};
  if (text.compare(comma + 1, name.size() + 1, name + "=") != 0) {
    return "knows only '" + name + "=' behind the comma";
  }
  *value = text.substr(comma + name.size() + 2);
  return value->empty() ? "has nothing behind '" + name + "='" : std::string();
}

// SIZE, or none; behind a comma the same for each VM.
std::string check_limit(const std::string& text) {
  std::string each;
  if (const std::string wrong = check_part(text, "vm", &each); !wrong.empty()) return wrong;
  for (const std::string& size : {text.substr(0, text.find(',')), each.empty() ? "none" : each}) {
    if (size == "none") continue;
    if (const std::string wrong = check_size(size); !wrong.empty()) return wrong;
  }
  return {};
}

// The engine makes it inside the program, when that opens its first device; whether it can is seen
// here. Nothing is left of it.
std::string why_no_swap(const std::string& path) {
  const auto made = mem::SwapFile::create(path.c_str());
  if (made) {
    close(*made);
    return {};
  }
  return fmt::format("cannot hold a swap file: {}", std::strerror(to_int(made.error())));
}

std::string check_swap(const std::string& text) {
  std::string size;
  if (const std::string wrong = check_part(text, "size", &size); !wrong.empty()) return wrong;
  const std::string file = text.substr(0, text.find(','));
  if (file.empty()) return "wants a file";
  if (!size.empty() && !parse_size(size)) {
    return "wants a size: bytes, or a number with K, M, G or T";
  }
  std::error_code unknown;
  const std::filesystem::path path(file);
  if (std::filesystem::is_directory(path, unknown)) return why_no_swap(file);
  if (std::filesystem::exists(path, unknown)) {
    return "exists and is no folder: name a file that is not there, or a folder";
  }
  const std::filesystem::path folder = std::filesystem::absolute(path).parent_path();
  return std::filesystem::is_directory(folder, unknown) ? why_no_swap(file)
                                                        : "stands in no folder that exists";
}

// A report that the program's end is to write: whoever cannot have it hears so at the start.
std::string check_report(const std::string& file) {
  std::error_code unknown;
  const std::filesystem::path path = std::filesystem::absolute(file, unknown);
  if (std::filesystem::is_directory(path, unknown)) return "names a folder: it wants a file";
  const bool exists = std::filesystem::exists(path, unknown);
  if (!exists && !std::filesystem::is_directory(path.parent_path(), unknown)) {
    return "stands in no folder that exists";
  }
  const std::string written = exists ? path.string() : path.parent_path().string();
  return access(written.c_str(), W_OK) == 0 ? std::string() : "cannot be written";
}

std::string check_wss(const std::string& text) {
  std::string file;
  if (const std::string wrong = check_part(text, "file", &file); !wrong.empty()) return wrong;
  if (!file.empty()) {
    if (const std::string wrong = check_report(file); !wrong.empty()) return wrong;
  }
  const std::string interval = text.substr(0, text.find(','));
  if (interval.empty()) return {};
  const auto time = parse_interval(interval);
  return time && *time != 0 ? std::string() : "wants an interval: 1s, 500ms, 1min";
}

// It names a folder.
std::string check_session(const std::string& name) {
  const bool plain = std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.';
  });
  const bool hidden = !name.empty() && name[0] == '.';
  return plain && !hidden ? std::string() : "wants a name of letters, digits, '-', '_' and '.'";
}

CLI::App* describe_limit(CLI::App& app, LimitOptions& limit) {
  CLI::App* sub = app.add_subcommand("limit", "change the memory limit of a session that runs");
  sub->add_option("--session", limit.session, "the session's name")
      ->required()
      ->check(check_session);
  sub->add_option("SIZE", limit.size,
                  "bytes, or with K, M, G, T; 'none' takes the limit away.\n"
                  "',vm=SIZE' limits each VM, too")
      ->required()
      ->check(check_limit);
  return sub;
}

CLI::App* describe_mdev(CLI::App& app, MdevOptions& mdev) {
  CLI::App* sub = app.add_subcommand("mdev", "the mediated devices of a session that runs");
  sub->require_subcommand(1);
  const auto action = [&](const char* name, const char* what, MdevAction which) {
    CLI::App* const one = sub->add_subcommand(name, what);
    one->add_option("--session", mdev.session, "the session's name; inside of one, that one")
        ->check(check_session);
    one->callback([&mdev, which] { mdev.action = which; });
    return one;
  };
  action("list", "say which there are", MdevAction::kList);
  action("types", "say which types there are, and how many of each are left", MdevAction::kTypes);
  CLI::App* const create = action("create", "make one", MdevAction::kCreate);
  create->add_option("TYPE", mdev.type, "as 'types' says it")->required();
  create->add_option("UUID", mdev.uuid, "its name; without, a new one, which is printed");
  CLI::App* const remove =
      action("remove", "take one away, when nobody has it open any more", MdevAction::kRemove);
  remove->add_option("UUID", mdev.uuid, "its name")->required();
  return sub;
}

void describe_memory(CLI::App* sub, RunOptions& run) {
  sub->add_option("--memory-limit", run.memory_limit,
                  "guest memory of each process stays under SIZE (bytes, or with K, M, G, T);\n"
                  "what nobody uses is compressed and comes back when it is touched. ',vm=SIZE'\n"
                  "limits each VM, too. 'stagetwo limit' says another one later, if the session\n"
                  "has a name; with 'none' also of what was shared before the first device")
      ->type_name("SIZE[,vm=SIZE]")
      ->check(check_limit);
  sub->add_option(
         "--swap", run.swap,
         "a file for what memory has no room for, compressed or not; nothing of it is left\n"
         "behind. FILE is a folder, or a name that does not exist yet; ',size=SIZE' limits it")
      ->type_name("FILE[,size=SIZE]")
      ->check(check_swap);
  sub->add_option("--compressed", run.compressed,
                  "compressed pages may have SIZE of the limit before the oldest go to the file\n"
                  "(otherwise a quarter of it; half of it where there is no file)")
      ->type_name("SIZE")
      ->check([](const std::string& text) {
        return parse_size(text) ? "" : "wants a size: bytes, or a number with K, M, G or T";
      });
  sub->add_option("--wss", run.wss,
                  "say every INTERVAL (1s, 500ms) how much memory guests have used in it;\n"
                  "',file=FILE' writes it as JSON, too")
      ->type_name("[INTERVAL][,file=FILE]")
      ->expected(0, 1)
      ->default_str("1s")
      ->check(check_wss);
  sub->add_option("--stats", run.stats,
                  "at exit, say what became of guests' memory; with a file, as JSON there")
      ->type_name("[FILE]")
      ->expected(0, 1)
      ->default_str("1")
      ->check([](const std::string& text) { return text == "1" ? "" : check_report(text); });
}

CLI::App* describe_run(CLI::App& app, RunOptions& run) {
  CLI::App* sub = app.add_subcommand("run", "run a program with its devices emulated");
  sub->footer(
      "The program stands behind two dashes: stagetwo run [options] -- program [arguments]");
  sub->add_option("--abi", run.abi, "which kernel's visible ABI: 6.12 or 6.18")
      ->check(CLI::IsMember({"6.12", "6.18"}))
      ->each([&run](const std::string&) { run.abi_given = true; })
      ->capture_default_str();
  sub->add_option("--session", run.session, "join the session of that name, or start it")
      ->check(check_session);
  sub->add_option("--log-file", run.log_file,
                  "write the engine's messages there; %p becomes the process number");
  sub->add_option("--hugetlb", run.hugetlb,
                  "standin: huge pages of the program are ordinary memory that looks like them,\n"
                  "and the pool it sees (nr_hugepages, /proc/meminfo) is the session's")
      ->check(CLI::IsMember({"standin"}));
  sub->add_option("--libc", run.libc,
                  "leave: libc's own code stays as it is; memory that free() gives back to the\n"
                  "kernel is then noticed when it is used")
      ->check(CLI::IsMember({"leave"}));
  sub->add_option("--param", run.params,
                  "module parameters of the session, as on the kernel's command line:\n"
                  "kvm.nx_huge_pages=force")
      ->delimiter(',')
      ->check([](const std::string& text) {
        const size_t dot = text.find('.');
        const size_t equals = text.find('=');
        const bool whole = dot != std::string::npos && equals != std::string::npos && dot < equals;
        return whole && text.find(':') == std::string::npos ? std::string()
                                                            : "wants MODULE.NAME=VALUE";
      });
  sub->add_flag("--iommufd-test", run.iommufd_test,
                "/dev/iommu has the kernel's test command, as with CONFIG_IOMMUFD_TEST");
  sub->add_option("--vfio-device", run.vfio_devices,
                  "PCI functions of the session, bound to vfio-pci from the beginning; ioat:\n"
                  "Intel I/OAT (8086:2021), at fffe:00:04.0. Several are separated by commas")
      ->delimiter(',')
      ->check([](const std::string& name) {
        return vfio::find_function(name) ? std::string() : "there is no such device: " + name;
      });
  sub->add_option(
         "--secure", run.secure,
         "guests may become secure, by POWER's calls: KVM_CAP_PPC_SECURE_GUEST is 1. SIZE\n"
         "is the secure memory they share (256M if none is given)")
      ->type_name("[SIZE]")
      ->expected(0, 1)
      ->default_str("256M")
      ->check([](const std::string& text) {
        const auto size = parse_size(text);
        return size && *size != 0 ? "" : "wants a size: bytes, or a number with K, M, G or T";
      });
  describe_memory(sub, run);
  sub->add_flag("-v,--verbose", run.verbose, "say what is done");
  return sub;
}

// A value travels in STAGETWO_OPTIONS, whose separator is the colon.
std::optional<std::string> untransportable(const RunOptions& run) {
  if (run.log_file.find(':') != std::string::npos) return "--log-file may not contain a colon";
  if (run.swap.find(':') != std::string::npos) return "--swap may not contain a colon";
  if (run.wss.find(':') != std::string::npos) return "--wss may not contain a colon";
  if (run.stats.find(':') != std::string::npos) return "--stats may not contain a colon";
  return std::nullopt;
}

// What --swap and --compressed are for: a limit, or one that may be said later. A run inside a run
// has its caller's.
bool may_have_limit(const RunOptions& run) {
  const char* const given = std::getenv("STAGETWO_OPTIONS");
  const std::string outer = std::string(":") + (given == nullptr ? "" : given);
  return !run.memory_limit.empty() || !run.session.empty() ||
         outer.find(":memory-limit=") != std::string::npos;
}

std::optional<std::string> why_no_mdev(const MdevOptions& mdev, bool has_program) {
  if (has_program) return "mdev takes no program";
  if (!mdev.session.empty() || !Session::directory_around().empty()) return std::nullopt;
  return "mdev needs --session where no session is around it";
}

}  // namespace

CommandLine parse_command_line(int argc, char** argv) {
  char** const end = argv + argc;
  char** const dashes =
      std::find_if(argv, end, [](const char* a) { return a == std::string("--"); });
  CommandLine line;

  CLI::App app{"KVM, VFIO and iommufd in user space", "stagetwo"};
  describe(app);
  CLI::App* const run = describe_run(app, line.run);
  CLI::App* const doctor = app.add_subcommand("doctor", "say what this machine offers");
  doctor->add_flag("--json", line.doctor.json, "as JSON");
  CLI::App* const limit = describe_limit(app, line.limit);
  CLI::App* const mdev = describe_mdev(app, line.mdev);

  try {
    app.parse(static_cast<int>(dashes - argv), argv);
  } catch (const CLI::Success& wanted) {  // --help, --version
    return done(app.exit(wanted));
  } catch (const CLI::ParseError& error) {
    if (run->parsed() && dashes == end) {
      return refuse_line("run needs '--' before the program: " + sentence_of(error),
                         "stagetwo run [options] -- program [arguments]");
    }
    return refuse_line(sentence_of(error),
                       run->parsed() ? "see 'stagetwo run --help'" : "see 'stagetwo --help'");
  }
  if (doctor->parsed()) {
    if (dashes != end) return refuse_line("doctor takes no program", "stagetwo doctor [--json]");
    line.command = Command::kDoctor;
    return line;
  }
  if (limit->parsed()) {
    if (dashes != end)
      return refuse_line("limit takes no program", "stagetwo limit --session=NAME SIZE");
    line.command = Command::kLimit;
    return line;
  }
  if (mdev->parsed()) {
    if (const auto why = why_no_mdev(line.mdev, dashes != end))
      return refuse_line(*why, "stagetwo mdev list --session=NAME");
    line.command = Command::kMdev;
    return line;
  }
  if (dashes == end || dashes + 1 == end) {
    return refuse_line("run needs a program after '--'",
                       "stagetwo run [options] -- program [arguments]");
  }
  if (const auto why = untransportable(line.run)) {
    return refuse_line(*why, "see 'stagetwo run --help'");
  }
  if ((!line.run.swap.empty() || !line.run.compressed.empty()) && !may_have_limit(line.run)) {
    return refuse_line(
        fmt::format("{} does nothing without --memory-limit",
                    line.run.swap.empty() ? "--compressed" : "--swap"),
        "say --memory-limit=SIZE, or --session=NAME if 'stagetwo limit' is to say it later");
  }
  line.run.program.assign(dashes + 1, end);
  line.command = Command::kRun;
  return line;
}

}  // namespace stagetwo::cli
