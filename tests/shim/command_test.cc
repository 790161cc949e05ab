// SPDX-License-Identifier: Apache-2.0
// The command line: exit statuses, the session, the supervisor, doctor.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "tests/shim/run_program.h"

namespace stagetwo::test {
namespace {

namespace fs = std::filesystem;

Outcome run_shell(const std::string& script, const std::vector<std::string>& options = {},
                  const std::vector<std::string>& settings = {}) {
  std::vector<std::string> command = {tool(), "run"};
  command.insert(command.end(), options.begin(), options.end());
  command.insert(command.end(), {"--", "sh", "-c", script});
  return run_program(command, settings);
}

TEST(Run, ReturnsTheProgramsOwnStatus) {
  EXPECT_EQ(run_shell("exit 0").status, 0);
  EXPECT_EQ(run_shell("exit 7").status, 7);
  EXPECT_EQ(run_shell("exit 125").status, 125);
}

TEST(Run, ReturnsTheSignalThatEndedTheProgram) {
  EXPECT_EQ(run_shell("kill -TERM $$").status, 128 + SIGTERM);
  EXPECT_EQ(run_shell("kill -KILL $$").status, 128 + SIGKILL);
}

TEST(Run, SaysWhatCannotBeExecuted) {
  EXPECT_EQ(run_program({tool(), "run", "--", "no-such-program"}).status, 127);
  EXPECT_EQ(run_program({tool(), "run", "--", "/no/such/program"}).status, 127);
  EXPECT_EQ(run_program({tool(), "run", "--", "/etc/passwd"}).status, 126);
  EXPECT_EQ(run_program({tool(), "run", "--", "/tmp"}).status, 126);
}

TEST(Run, PassesArgumentsAsTheyAre) {
  const Outcome outcome =
      run_program({tool(), "run", "--", "printf", "%s|", "--abi=9", "-v", "--", "a b"});
  EXPECT_EQ(outcome.out, "--abi=9|-v|--|a b|");
}

TEST(Run, KeepsThePreloadOfTheUser) {
  const Outcome outcome =
      run_shell("echo $LD_PRELOAD", {}, {"LD_PRELOAD=/lib/x86_64-linux-gnu/libm.so.6"});
  EXPECT_EQ(outcome.out, engine() + ":/lib/x86_64-linux-gnu/libm.so.6\n");
}

TEST(Run, FollowsChildren) {
  const Outcome outcome = run_shell("cat /sys/module/kvm/parameters/enable_pmu; test -c /dev/kvm");
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(outcome.out, "N\n");
}

TEST(Run, ShowsTheDevicesToLs) {
  const Outcome outcome = run_shell("exec 2>&1; ls -l /dev/kvm /dev/hmm_dmirror0");
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(outcome.out.find("No such file"), std::string::npos) << outcome.out;
}

TEST(Run, KnowsTheStatusThoughItsCallerIgnoresChildren) {
  const std::string ignore = "trap '' CHLD; ";
  const std::string look = "grep SigIgn /proc/self/status";
  EXPECT_EQ(
      run_program({"bash", "-c", ignore + "exec " + tool() + " run -- sh -c 'exit 6'"}).status, 6);
  // The program inherits what the caller chose.
  const Outcome alone = run_program({"bash", "-c", ignore + "exec " + look});
  const Outcome under = run_program({"bash", "-c", ignore + "exec " + tool() + " run -- " + look});
  EXPECT_EQ(under.out, alone.out);
}

TEST(Run, WorksWhereTheMachineHasNoDevice) {
  if (geteuid() != 0) GTEST_SKIP() << "skipped: needs root (mount namespace)";
  // Neither the device nor the parameters of the kernel's own module.
  const std::string hide =
      "mount -t tmpfs none /dev && mknod /dev/null c 1 3 && "
      "mount -t tmpfs none /sys && exec \"$@\"";
  for (const char* which : {"identity", "every_open", "parameters", "last_close"}) {
    const Outcome outcome = run_program({"unshare", "-m", "sh", "-c", hide, "sh", tool(), "run",
                                         "--", program("descriptors"), which});
    EXPECT_EQ(outcome.status, 0) << which << ": " << outcome.err;
  }
}

TEST(Run, WorksForAUserWithoutRights) {
  if (geteuid() != 0)
    GTEST_SKIP()
        << "skipped: needs root (becoming a user without rights: this whole run is such a user's)";
  for (const char* which : {"identity", "every_open", "stats", "last_close"}) {
    const Outcome outcome =
        run_program({"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", tool(), "run",
                     "--", program("descriptors"), which});
    EXPECT_EQ(outcome.status, 0) << which << ": " << outcome.err;
  }
}

TEST(Run, GivesAUserWithoutRightsTheUserfaultfdThatVcpusNeed) {
  EXPECT_EQ(run_under("memory", {"userfaultfd_serves_vcpus"}).status, 0);
  if (geteuid() != 0) return;  // that was such a user
  const Outcome outcome =
      run_program({"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", tool(), "run",
                   "--", program("memory"), "userfaultfd_serves_vcpus"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
}

TEST(Run, RefusesABadCommandLineInOneSentenceWithAHint) {
  const std::vector<std::vector<std::string>> lines = {
      {tool()},
      {tool(), "frobnicate"},
      {tool(), "run"},
      {tool(), "run", "--"},
      {tool(), "run", "ls"},
      {tool(), "run", "--no-such-option", "--", "ls"},
      {tool(), "run", "--abi=5.4", "--", "ls"},
      {tool(), "run", "--session=a/b", "--", "ls"},
      {tool(), "run", "--log-file=a:b", "--", "ls"},
      {tool(), "run", "--stats=/nonexistent/x", "--", "ls"},
      {tool(), "run", "--stats=/tmp", "--", "ls"},
      {tool(), "run", "--wss=1s,file=/nonexistent/x", "--", "ls"},
      {tool(), "run", "--memory-limit=8M", "--swap=/proc", "--", "ls"},
      {tool(), "run", "--memory-limit=8M", "--swap=/proc/swap", "--", "ls"},
      {tool(), "run", "--swap=/tmp", "--", "ls"},
      {tool(), "run", "--compressed=1M", "--", "ls"},
      {tool(), "limit", "--session=../x", "8M"},
      {tool(), "limit", "--session=x", "8Q"},
      {tool(), "mdev", "list", "--session=../x"},
      {tool(), "mdev", "list"},
      {tool(), "doctor", "--", "ls"},
      {tool(), "doctor", "extra"},
  };
  for (const auto& line : lines) {
    const Outcome outcome = run_program(line);
    EXPECT_EQ(outcome.status, 2) << line.back();
    EXPECT_EQ(outcome.out, "");
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 2) << outcome.err;
    EXPECT_NE(outcome.err.find("\nHint: "), std::string::npos) << outcome.err;
  }
}

TEST(Run, WritesTheLogWhereItIsTold) {
  const std::string pattern = "/tmp/stagetwo_log_" + std::to_string(getpid()) + "_%p";
  const Outcome outcome = run_program(
      {tool(), "run", "-v", "--log-file=" + pattern, "--", program("descriptors"), "identity"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  unsigned found = 0;
  for (const auto& entry : fs::directory_iterator("/tmp")) {
    const std::string prefix = "stagetwo_log_" + std::to_string(getpid());
    if (!entry.path().filename().string().starts_with(prefix)) continue;
    found += fs::file_size(entry.path()) > 0 ? 1u : 0u;
    fs::remove(entry.path());
  }
  EXPECT_EQ(found, 1u);
}

TEST(Run, SaysAtExitWhatTheVcpusDid) {
  const Outcome outcome =
      run_program({tool(), "run", "-v", "--", program("memory"), "discard_and_remap"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  const size_t at = outcome.err.find("at exit: 1 vCPUs, exits ");
  ASSERT_NE(at, std::string::npos) << outcome.err;
  EXPECT_GT(std::stoul(outcome.err.substr(at + 24)), 0u);
  EXPECT_NE(outcome.err.find(", io_exits ", at), std::string::npos) << outcome.err;
  EXPECT_EQ(run_under("memory", {"discard_and_remap"}).err.find("at exit"), std::string::npos);
  // A child of fork has no vCPUs of its own to tell of.
  const Outcome forked = run_program({tool(), "run", "-v", "--", program("descriptors"), "forked"});
  EXPECT_EQ(forked.err.find("at exit: "), forked.err.rfind("at exit: ")) << forked.err;
  EXPECT_NE(forked.err.find("at exit: "), std::string::npos) << forked.err;
}

// After the program's own handlers, whatever its threads do; not in a child.
TEST(Run, ReleasesTheAddressSpaceOnceAtExit) {
  for (const char* name : {"memory discard_and_remap", "descriptors forked"}) {
    const std::string what(name);
    const size_t space = what.find(' ');
    const Outcome outcome = run_program(
        {tool(), "run", "-v", "--", program(what.substr(0, space)), what.substr(space + 1)});
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    const size_t at = outcome.err.find("address space released");
    EXPECT_NE(at, std::string::npos) << outcome.err;
    EXPECT_EQ(at, outcome.err.rfind("address space released")) << outcome.err;
    EXPECT_LT(outcome.err.find("at exit: "), at) << outcome.err;
  }
}

TEST(Run, SaysThatTheLogCannotBeWritten) {
  EXPECT_EQ(run_shell("true", {"--log-file=/nonexistent/x"}).status, 125);
  EXPECT_EQ(run_shell("exit 3", {"--log-file=/dev/null"}).status, 3);
}

TEST(Run, WarnsOnceOfAnUnknownOption) {
  const Outcome outcome =
      run_program({program("descriptors"), "copies"},
                  {"LD_PRELOAD=" + engine(), "STAGETWO_OPTIONS=abi=6.12:frobnicate=1"});
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
  EXPECT_NE(outcome.err.find("frobnicate"), std::string::npos);
}

TEST(Run, KeepsTheCallersOptionsAndLetsTheCommandLineWin) {
  // Without the session a run of its own has, whose name nobody knows beforehand.
  const std::string show = "echo $STAGETWO_OPTIONS | sed 's/:session=[^:]*//'";
  EXPECT_EQ(run_shell(show).out, "abi=6.12\n");
  EXPECT_EQ(run_shell(show, {}, {"STAGETWO_OPTIONS=abi=6.18:verbose=1"}).out,
            "abi=6.12:abi=6.18:verbose=1\n");
  EXPECT_EQ(run_shell(show, {"--abi=6.12", "--log-file=/dev/null"},
                      {"STAGETWO_OPTIONS=abi=6.18:log-file=/tmp/x"})
                .out,
            "abi=6.18:log-file=/tmp/x:abi=6.12:log-file=/dev/null\n");
  // The engine takes the later one: the caller's file is not made.
  const std::string other = "/tmp/stagetwo_callers_log_" + std::to_string(getpid());
  const Outcome outcome =
      run_program({tool(), "run", "--log-file=/dev/null", "--", program("descriptors"), "identity"},
                  {"STAGETWO_OPTIONS=verbose=1:log-file=" + other});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_FALSE(fs::exists(other));
}

TEST(Run, RefusesOptionsTheEngineHasNoRoomFor) {
  const std::string kept(4095 - sizeof("abi=6.12:session=") + 1, 'x');
  const std::string session = "STAGETWO_OPTIONS=session=" + kept;
  EXPECT_EQ(run_shell("exit 3", {}, {session}).status, 3);
  const Outcome outcome = run_shell("exit 3", {}, {session + "x"});
  EXPECT_EQ(outcome.status, 125);
  EXPECT_NE(outcome.err.find("4096 bytes long, the engine takes 4095"), std::string::npos)
      << outcome.err;
}

TEST(Run, WithoutTheToolAnOverlongTextIsOneWarningAndNothingOfItIsUsed) {
  const std::string log = "/tmp/stagetwo_overlong_log_" + std::to_string(getpid());
  const Outcome outcome =
      run_program({program("descriptors"), "copies"},
                  {"LD_PRELOAD=" + engine(), "STAGETWO_OPTIONS=verbose=1:log-file=" + log +
                                                 ":session=" + std::string(4096, 'x')});
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
  EXPECT_NE(outcome.err.find("longer than 4095 bytes"), std::string::npos) << outcome.err;
  EXPECT_FALSE(fs::exists(log));
}

// --- The session ---

class Session : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/stagetwo_session_XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    base_ = name;
  }
  void TearDown() override { fs::remove_all(base_); }
  [[nodiscard]] std::string house() const {
    return base_ + "/stagetwo-" + std::to_string(geteuid());
  }
  Outcome run_in(const std::string& script, const std::vector<std::string>& options = {}) {
    return run_shell(script, options, {"XDG_RUNTIME_DIR=" + base_});
  }
  std::string base_;
};

TEST_F(Session, IsAPrivateDirectoryThatGoesWithTheProgram) {
  const Outcome outcome =
      run_in("stat -c '%a %n' " + house() + "/mine; echo $STAGETWO_OPTIONS", {"--session=mine"});
  EXPECT_NE(outcome.out.find("700 " + house() + "/mine"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("session=" + house() + "/mine"), std::string::npos) << outcome.out;
  EXPECT_FALSE(fs::exists(house() + "/mine"));
  EXPECT_TRUE(fs::exists(house()));
}

TEST_F(Session, IsJoinedByItsName) {
  const std::string second = tool() + " run --session=both -- sh -c 'ls " + house() + "'";
  const Outcome outcome =
      run_in(second + "; test -d " + house() + "/both && echo still there", {"--session=both"});
  EXPECT_EQ(outcome.out, "both\nstill there\n");
}

TEST_F(Session, StaleOnesAreRemovedByTheNextRun) {
  run_in("true", {"--session=mine"});
  fs::create_directory(house() + "/dead");
  std::ofstream(house() + "/dead/alive").put('x');
  run_in("true");
  EXPECT_FALSE(fs::exists(house() + "/dead"));
}

TEST_F(Session, IsRefusedInADirectoryOfOthers) {
  fs::create_directory(house());
  fs::permissions(house(), fs::perms(0755));
  EXPECT_EQ(run_in("true", {"--session=mine"}).status, 125);
  EXPECT_EQ(run_in("true").status, 0);  // without a name it is not needed
}

// --- The supervisor ---

class Supervisor : public testing::Test {
 protected:
  // Starts a program under the tool that sets `trap` and waits for ever.
  void start(const std::string& trap) {
    const std::string script = trap + " echo $$; while :; do sleep 0.05; done";
    int up[2];
    ASSERT_EQ(pipe(up), 0);
    supervisor_ = fork();
    if (supervisor_ == 0) {
      dup2(up[1], STDOUT_FILENO);
      close(up[0]);
      close(up[1]);
      execl(tool().c_str(), "stagetwo", "run", "--", "sh", "-c", script.c_str(),
            static_cast<char*>(nullptr));
      _exit(1);
    }
    close(up[1]);
    char text[16] = {};
    ASSERT_GT(read(up[0], text, sizeof(text) - 1), 0);
    close(up[0]);
    program_ = static_cast<pid_t>(std::stol(text));
  }
  [[nodiscard]] int status() const {
    int status = 0;
    waitpid(supervisor_, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  }
  static char state_of(pid_t pid) {
    std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
    std::string text((std::istreambuf_iterator<char>(file)), {});
    const size_t paren = text.rfind(')');
    return paren == std::string::npos ? '-' : text[paren + 2];
  }
  static bool reaches(pid_t pid, char state) {
    for (int i = 0; i < 500; ++i) {
      if (state_of(pid) == state) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
  }
  pid_t supervisor_ = -1;
  pid_t program_ = -1;
};

TEST_F(Supervisor, ForwardsSignals) {
  start("trap 'exit 9' TERM;");
  kill(supervisor_, SIGTERM);
  EXPECT_EQ(status(), 9);
}

TEST_F(Supervisor, StopsAndContinuesWithTheProgram) {
  start("trap 'exit 4' USR1;");
  kill(program_, SIGSTOP);
  EXPECT_TRUE(reaches(supervisor_, 'T'));
  kill(supervisor_, SIGCONT);
  kill(program_, SIGUSR1);
  EXPECT_EQ(status(), 4);
}

// As where env(1) or taskset(1) stand in front of a program: who kills what he has started kills
// it.
TEST_F(Supervisor, TheProgramIsKilledWithIt) {
  start("");
  kill(supervisor_, SIGKILL);
  EXPECT_EQ(status(), 1000 + SIGKILL);
  // Whoever inherits it may take his time to collect it.
  for (int i = 0; i < 500 && kill(program_, 0) == 0 && state_of(program_) != 'Z'; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_TRUE(kill(program_, 0) != 0 || state_of(program_) == 'Z');
}

// --- doctor ---

TEST(Doctor, AnswersForEveryQuestion) {
  const Outcome outcome = run_program({tool(), "doctor", "--json"});
  EXPECT_EQ(outcome.status, 0);
  const auto report = nlohmann::json::parse(outcome.out);
  EXPECT_TRUE(report["works"].get<bool>());
  std::set<std::string> names;
  for (const auto& finding : report["findings"]) names.insert(finding["name"]);
  for (const char* name :
       {"engine", "proc", "memfd", "userfaultfd", "populate", "membarrier", "rseq", "memfd_secret",
        "hugepages", "real_kvm", "page_maps", "libc", "unseen"}) {
    EXPECT_TRUE(names.contains(name)) << name;
  }
}

nlohmann::json finding_of(const Outcome& outcome, const std::string& name) {
  const auto report = nlohmann::json::parse(outcome.out);
  for (const auto& finding : report["findings"]) {
    if (finding["name"] == name) return finding;
  }
  return {};
}

TEST(Doctor, NamesWhatOfLibcIsSeen) {
  const auto libc = finding_of(run_program({tool(), "doctor", "--json"}), "libc");
  EXPECT_EQ(libc["verdict"], "yes");
  EXPECT_EQ(libc["detail"],
            "its own calls seen: munmap mremap mprotect madvise mmap brk ld.so:munmap "
            "ld.so:mprotect ld.so:mmap");
}

TEST(Doctor, ListsWhatIsNotSeenWhereUserfaultfdIsDenied) {
  const Outcome outcome = run_program({program("denied"), tool(), "doctor", "--json"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(finding_of(outcome, "userfaultfd")["verdict"], "no");
  const auto denied = finding_of(outcome, "unseen")["items"];
  const auto here = finding_of(run_program({tool(), "doctor", "--json"}), "unseen")["items"];
  EXPECT_GT(denied.size(), here.size());
  for (const char* what :
       {"absent pages, and pages beside them that nobody has touched, as buffers of a program's "
        "own system-call instructions and of io_uring",
        "absent pages of a stack the program switches to by itself (coroutines)"}) {
    const auto starts = [what](const std::string& item) { return item.starts_with(what); };
    EXPECT_TRUE(std::any_of(denied.begin(), denied.end(), starts)) << what;
  }
}

// The page has a row for each, in the same words, and none that doctor would not show somewhere.
TEST(Doctor, ListsWhatThePageLists) {
  std::ifstream page(std::string(ST_SOURCE_DIR) + "/docs/what-is-not-seen.md");
  const std::string text((std::istreambuf_iterator<char>(page)), {});
  std::set<std::string> rows;
  for (size_t at = 0; (at = text.find("\n| ", at)) != std::string::npos; ++at) {
    const std::string row = text.substr(at + 3, text.find(" |\n", at) - at - 3);
    if (row.starts_with("what |") || row.starts_with("---")) continue;
    rows.insert(row.substr(0, row.find(" | ")) + ": " + row.substr(row.find(" | ") + 3));
  }
  std::set<std::string> items;
  for (const std::vector<std::string>& command :
       {std::vector<std::string>{tool(), "doctor", "--json"},
        std::vector<std::string>{program("denied"), tool(), "doctor", "--json"}}) {
    const auto unseen = finding_of(run_program(command), "unseen");
    for (const std::string item : unseen["items"]) {
      if (!item.starts_with("what the line 'libc'")) items.insert(item);
    }
  }
  const auto here = finding_of(run_program({tool(), "doctor", "--json"}), "userfaultfd");
  if (here["verdict"] == "no") {  // then there is one line that this machine cannot show
    EXPECT_TRUE(std::includes(rows.begin(), rows.end(), items.begin(), items.end()));
  } else {
    EXPECT_EQ(items, rows);
  }
}

TEST(Doctor, ReadsAsText) {
  const Outcome outcome = run_program({tool(), "doctor"});
  EXPECT_EQ(outcome.status, 0);
  EXPECT_NE(outcome.out.find("stagetwo can run programs here."), std::string::npos);
}

TEST(Mdev, DevicesOfASessionAreMadeAndRemovedFromOutside) {
  const std::string name = "mdev-test-" + std::to_string(getpid());
  const std::string mdev = tool() + " mdev ", of = " --session=" + name + "; ";
  const std::string uuid = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1003";
  const Outcome outcome =
      run_program({tool(), "run", "--session=" + name, "--", "bash", "-c",
                   mdev + "create serial-2 " + uuid + of + mdev + "create serial-2 " + uuid + of +
                       mdev + "list" + of + "cat /sys/bus/mdev/devices/*/mdev_type/name; " + mdev +
                       "remove " + uuid + of + mdev + "types" + of});
  EXPECT_EQ(outcome.out, uuid + "\n" + uuid +
                             " serial-2         group 0\nDual port serial\n"
                             "serial-1         Single port serial           24 left\n"
                             "serial-2         Dual port serial             12 left\n"
                             "dma-engine-1     Work queue, mapped memory    32 left\n"
                             "dma-engine-sva   Work queue, own addresses    32 left\n");
  EXPECT_NE(outcome.err.find("such a device already"), std::string::npos) << outcome.err;
  const Outcome none = run_program({tool(), "mdev", "list", "--session=nobody"});
  EXPECT_EQ(none.status, 125);
}

}  // namespace
}  // namespace stagetwo::test
