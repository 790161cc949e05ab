// SPDX-License-Identifier: Apache-2.0
// Files of /sys and /proc as programs read and write them: the shell, coreutils and C.
#include <gtest/gtest.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "tests/shim/run_program.h"
#include "tests/support/random_source.h"

namespace stagetwo::test {
namespace {

const std::string kParameters = "P=/sys/module/kvm/parameters; ";

Outcome run_shell(const std::string& script, std::vector<std::string> options = {}) {
  std::vector<std::string> command = {tool(), "run"};
  command.insert(command.end(), options.begin(), options.end());
  command.insert(command.end(), {"--", "bash", "-c", kParameters + script});
  return run_program(command);
}

class WrittenParameter : public testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "skipped: needs root (parameters of modules)";
  }
};

TEST_F(WrittenParameter, IsReadByEveryProcessOfTheSession) {
  const std::string read = "cat $P/nx_huge_pages $P/nx_huge_pages_recovery_period_ms";
  EXPECT_EQ(run_shell(read).out, "N\n0\n");
  EXPECT_EQ(run_shell("echo 1 > $P/nx_huge_pages; "
                      "echo 100 | tee -a $P/nx_huge_pages_recovery_period_ms > /dev/null; " +
                      read)
                .out,
            "Y\n100\n");
  EXPECT_EQ(run_shell(read).out, "N\n0\n") << "the next run has its own";
}

TEST_F(WrittenParameter, TakesTheWritesOfEveryTool) {
  const std::string file = "$P/nx_huge_pages_recovery_ratio";
  for (const std::string write :
       {"echo 7 > F", "echo 7 >> F", "printf 7 > F", "/bin/echo 7 > F", "echo 7 | cat > F",
        "echo 7 | tee F >/dev/null", "echo 7 | dd of=F status=none", "exec 5>F; echo 7 >&5",
        "(echo 7) > F", "sh -c 'echo 7 > \"$0\"' F"}) {
    std::string line = write;
    line.replace(line.find('F'), 1, file);
    const Outcome outcome = run_shell(line + "; cat " + file);
    EXPECT_EQ(outcome.out, "7\n") << write << outcome.err;
  }
}

TEST_F(WrittenParameter, RefusesWithTheKernelsErrno) {
  const std::string period = "$P/nx_huge_pages_recovery_period_ms";
  const auto error_of = [&](const std::string& line) { return run_shell(line).err; };
  EXPECT_NE(error_of("echo ten > " + period).find("Invalid argument"), std::string::npos);
  EXPECT_NE(error_of("echo ten | tee " + period).find("Invalid argument"), std::string::npos);
  EXPECT_NE(error_of("echo ten | dd of=" + period).find("Invalid argument"), std::string::npos);
  EXPECT_NE(error_of("echo 4294967296 > " + period).find("out of range"), std::string::npos);
  EXPECT_NE(error_of("echo N > $P/tdp_mmu").find("Permission denied"), std::string::npos);
  EXPECT_EQ(run_shell("echo 5 > " + period + "; echo ten > " + period + "; cat " + period).out,
            "5\n");
}

TEST_F(WrittenParameter, HasTheKernelsMode) {
  EXPECT_EQ(run_shell("stat -c %A $P/nx_huge_pages $P/tdp_mmu").out, "-rw-r--r--\n-r--r--r--\n");
}

TEST(WrittenParameterOfAUser, IsRefused) {
  if (geteuid() != 0) {
    EXPECT_EQ(run_shell("echo 1 > $P/nx_huge_pages").status, 1);
    return;
  }
  const Outcome outcome = run_shell(
      "setpriv --reuid=65534 --clear-groups bash -c 'echo 1 > /sys/module/kvm/parameters/"
      "nx_huge_pages'");
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.err.find("Permission denied"), std::string::npos) << outcome.err;
}

TEST(Param, IsInForceFromTheBeginningOfTheSession) {
  const std::string show =
      "cat $P/nx_huge_pages $P/nx_huge_pages_recovery_ratio $P/nx_huge_pages_recovery_period_ms";
  EXPECT_EQ(run_shell(show, {"--param=kvm.nx_huge_pages=force,kvm.nx_huge_pages_recovery_ratio=1",
                             "--param=kvm.nx_huge_pages_recovery_period_ms=100"})
                .out,
            "Y\n1\n100\n");
  EXPECT_EQ(run_shell("cat $P/nx_huge_pages").out, "N\n");
}

TEST(Param, ThatIsNoneIsRefusedOrSaid) {
  EXPECT_EQ(run_shell("true", {"--param=nonsense"}).status, 2);
  const Outcome outcome = run_shell("cat $P/nx_huge_pages", {"--param=kvm.tdp_mmu=0"});
  EXPECT_EQ(outcome.out, "N\n");
  EXPECT_NE(outcome.err.find("--param: not taken: kvm.tdp_mmu=0"), std::string::npos)
      << outcome.err;
}

TEST_F(WrittenParameter, OutlivesWhatTheSessionBeganWith) {
  EXPECT_EQ(run_shell("echo 0 > $P/nx_huge_pages; cat $P/nx_huge_pages; bash -c 'cat "
                      "/sys/module/kvm/parameters/nx_huge_pages'",
                      {"--param=kvm.nx_huge_pages=1"})
                .out,
            "N\nN\n");
}

TEST(PageIdle, SaysWhichPagesTheGuestUsed) {
  for (const char* which : {"used_pages", "refusals", "other_memory", "asleep", "streams"}) {
    const Outcome outcome = run_under("page_idle", {which});
    EXPECT_EQ(outcome.status, 0) << which << outcome.err;
  }
}

TEST(PageIdle, NeedsNoPrivileges) {
  if (geteuid() != 0) return;  // then the test above has shown it
  const Outcome outcome = run_program({"setpriv", "--reuid=65534", "--clear-groups", tool(), "run",
                                       "--", program("page_idle"), "used_pages"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
}

TEST(StandIn, AnswersAsHugetlbfs) {
  for (const char* which : {"mappings", "files", "pool", "guest"}) {
    const Outcome outcome =
        run_program({tool(), "run", "--hugetlb=standin", "--", program("huge_pages"), which});
    EXPECT_EQ(outcome.status, 0) << which << outcome.err;
  }
}

TEST(StandIn, IsOffWithoutItsOption) {
  const Outcome outcome = run_under("huge_pages", {"kernels_own"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(run_shell("cat /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages").out,
            run_program({"cat", "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"}).out);
}

TEST(StandIn, PoolIsTheSessions) {
  const std::string pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
  const auto run_with = [](const std::string& script) {
    return run_shell(script, {"--hugetlb=standin"});
  };
  EXPECT_EQ(run_with("cat " + pool + " /proc/sys/vm/nr_hugepages").out, "2048\n2048\n");
  EXPECT_NE(run_with("cat /proc/meminfo").out.find("HugePages_Total:    2048\n"),
            std::string::npos);
  if (geteuid() != 0) GTEST_SKIP() << "skipped: needs root (the size of the pool)";
  EXPECT_EQ(run_with("echo 5 > " + pool + "; cat " + pool).out, "5\n");
  EXPECT_EQ(run_with("echo 6 | tee -a /proc/sys/vm/nr_hugepages > /dev/null; cat " + pool).out,
            "6\n");
  EXPECT_NE(run_with("echo x > " + pool).err.find("Invalid argument"), std::string::npos);
}

// Mediated devices: made, found, driven and removed by a plain program, and by the shell.
TEST(MediatedDevice, IsAnOrdinaryClientsFromSysfsToItsInterrupts) {
  const Outcome outcome = run_under("vfio_serial");
  EXPECT_EQ(outcome.out, "done\n") << outcome.err;
}

TEST(MediatedDevice, RefusesWithTheKernelsErrnos) {
  const Outcome outcome = run_under("vfio_serial", {"errnos"});
  EXPECT_EQ(outcome.out, "done\n") << outcome.err;
}

std::string example(const std::string& name) {
  const std::string bin = "bin/stagetwo";
  return tool().substr(0, tool().size() - bin.size()) + "examples/" + name;
}

// 16 devices, four processes, two machines; kill -9 included. Longer: dma_storm.c by hand.
TEST(MediatedDevice, StaysItsOwnersWhateverHappensToOthers) {
  const std::string seconds = std::to_string(test_seconds() / 4);
  const std::string seed = std::to_string(announced_seed("dma_storm"));
  const Outcome outcome = run_under("dma_storm", {seconds, seed, example("vfio_vmm")});
  EXPECT_NE(outcome.out.find("all devices are free\n"), std::string::npos)
      << outcome.out << outcome.err;
}

// A guest's slot, private memory and a limit of memory over what a device works on.
TEST(MediatedDevice, ReachesItsMemoryWhateverElseBecomesOfIt) {
  const Outcome outcome = run_program(
      {tool(), "run", "--memory-limit=4M", "--swap=/tmp", "--", program("dma_interplay")});
  EXPECT_NE(outcome.out.find(" pages were absent, none of them pinned\ndone\n"), std::string::npos)
      << outcome.out << outcome.err;
  EXPECT_EQ(outcome.out.find("reclaim: 0 pages"), std::string::npos) << outcome.out;
}

// A PCI function of the session stands beside the machine's own devices; without the option there
// is none, and nothing is moved.
TEST(PciFunction, IsListedBesideTheMachines) {
  const std::string list = "ls /sys/bus/pci/devices/ 2>/dev/null";
  const std::string machines = run_shell(list).out;
  EXPECT_EQ(machines.find("fffe:"), std::string::npos);
  const auto run_with = [](const std::string& script) {
    return run_shell(script, {"--vfio-device=ioat"});
  };
  EXPECT_EQ(run_with(list).out, machines + "fffe:00:04.0\n");
  const Outcome told = run_with(
      "cd /; P=/sys/bus/pci/devices/fffe:00:04.0; cat $P/vendor $P/device; "
      "realpath $P/driver; basename $(readlink $P/driver); basename $(readlink $P/iommu_group); ls "
      "$P/iommu_group/devices; "
      "ls /sys/bus/pci/drivers/vfio-pci; ls -d /sys/module/vfio_pci; ls -l $P/ > /dev/null; "
      "for d in /sys/bus/pci/devices/*; do cat $d/vendor > /dev/null || echo $d; done; "
      "echo 1 > $P/enable");
  EXPECT_EQ(told.out,
            "0x8086\n0x2021\n/sys/bus/pci/drivers/"
            "vfio-pci\nvfio-pci\n0\nfffe:00:04.0\nfffe:00:04.0\n/sys/module/vfio_pci\n");
  EXPECT_NE(told.err.find("Permission denied"), std::string::npos) << told.err;
  EXPECT_EQ(told.err.find("No such file"), std::string::npos) << told.err;
}

TEST(PciFunction, IsDrivenThroughItsMappedRegisters) {
  const Outcome outcome =
      run_program({tool(), "run", "--vfio-device=ioat", "--", program("pci_function")});
  EXPECT_EQ(outcome.out, "done\n") << outcome.err;
}

// What sysfs shows of the configuration is what is there, and what is written there is the
// device's.
TEST(PciFunction, IsConfiguredThroughSysfs) {
  const Outcome told = run_shell(
      "cd /sys/bus/pci/devices/fffe:00:04.0; C='od -An -tx2 -j4 -N2'; $C config; "
      "printf '\\006' | dd of=config bs=1 seek=4 conv=notrunc status=none; $C config; "
      "printf '\\002' > /tmp/two$$; dd if=/tmp/two$$ of=$PWD/config bs=1 seek=4 status=none; "
      "rm /tmp/two$$; $C $PWD/config; stat -c %s config; "
      "printf '\\377' | dd of=config bs=1 seek=0 conv=notrunc status=none; od -An -tx2 -N2 config",
      {"--vfio-device=ioat"});
  EXPECT_EQ(told.out, " 0002\n 0006\n 0002\n4096\n 8086\n") << told.err;
  EXPECT_EQ(told.err, "");
}

TEST(MediatedDevice, IsMadeAndRemovedFromInsideItsFolders) {
  const Outcome told = run_shell(
      "cd /sys/class/mdev_bus/serial/mdev_supported_types/serial-1; "
      "echo 83b8f4f2-509f-382f-3c1e-e6bfe0fa1002 > create; cat available_instances; ls devices; "
      "cd /sys/bus/mdev/devices/83b8f4f2-509f-382f-3c1e-e6bfe0fa1002; echo x > remove; "
      "echo 0 > ./remove; ls ..; echo 1 > ../*/remove; ls /sys/bus/mdev/devices");
  EXPECT_EQ(told.out,
            "23\n83b8f4f2-509f-382f-3c1e-e6bfe0fa1002\n83b8f4f2-509f-382f-3c1e-e6bfe0fa1002\n"
            "mdev_supported_types\n");
  EXPECT_NE(told.err.find("Invalid argument"), std::string::npos) << told.err;
}

// By sendfile and by splice, by name and by number: a write each, and what is refused stays where
// it came from.
TEST(MediatedDevice, IsMadeOfWhatIsSplicedToItsFile) {
  const Outcome told = run_program(
      {tool(), "run", "--", "python3", "-c",
       "import ctypes, os, tempfile\n"
       "C = ctypes.CDLL(None, use_errno=True)\n"
       "T = '/sys/class/mdev_bus/serial/mdev_supported_types/serial-1/'\n"
       "name = lambda n: b'83b8f4f2-509f-382f-3c1e-e6bfe0fa10%02d' % n\n"
       "def say(f, *a):\n"
       "  try: print(f(*a), end=' ')\n"
       "  except OSError as e: print(os.strerror(e.errno), end=' ')\n"
       "f = os.open(T + 'create', os.O_WRONLY)\n"
       "t = tempfile.TemporaryFile(); t.write(name(1) + name(2)); t.flush(); s = t.fileno()\n"
       "os.lseek(s, 0, 0)\n"
       "say(os.sendfile, f, s, None, 36); say(os.sendfile, f, s, 0, 36)\n"
       "say(os.lseek, s, 0, 1); say(os.sendfile, f, s, None, 5); say(os.lseek, s, 0, 1)\n"
       "at = ctypes.c_long(36); say(C.syscall, 40, f, s, ctypes.byref(at), 36); print(at.value)\n"
       "r, w = os.pipe(); os.write(w, name(3)[:20]); os.write(w, name(3)[20:])\n"
       "say(os.splice, r, f, 36); os.write(w, name(3)); say(os.splice, r, f, 36)\n"
       "os.write(w, name(4)); os.read(r, 36); at = ctypes.c_long(7)\n"
       "say(C.syscall, 275, r, None, f, ctypes.byref(at), 36, 0); print(at.value)\n"
       "say(os.splice, r, f, 36, 5); say(os.splice, s, f, 36)\n"
       "os.set_blocking(r, False); say(os.splice, r, f, 36)\n"
       "os.close(w); say(os.splice, r, f, 36); print(*sorted(x[-2:] for x in os.listdir(T + "
       "'devices')))\n"
       "g = os.open(T + 'devices/' + name(1).decode() + '/remove', os.O_WRONLY)\n"
       "r, w = os.pipe(); os.write(w, b'1\\n'); say(os.splice, r, g, 4096); os.close(g)\n"
       "print(len(os.listdir(T + 'devices')))\n"});
  EXPECT_EQ(told.out,
            "36 File exists 36 Invalid argument 36 36 72\n36 File exists 36 43\n"
            "Illegal seek Invalid argument Resource temporarily unavailable 0 01 02 03 04\n"
            "2 3\n")
      << told.err;
}

TEST(MediatedDevice, IsMadeAndRemovedByTheShell) {
  const std::string types =
      "T=/sys/class/mdev_bus/serial/mdev_supported_types; "
      "U=83b8f4f2-509f-382f-3c1e-e6bfe0fa1002; ";
  EXPECT_EQ(run_shell(types + "echo $U > $T/serial-2/create; cat $T/*/available_instances; "
                              "cat /sys/bus/mdev/devices/$U/mdev_type/name; "
                              "echo 1 > /sys/bus/mdev/devices/$U/remove; "
                              "cat $T/serial-1/available_instances; ls /sys/bus/mdev/devices")
                .out,
            "22\n11\nDual port serial\n24\n");
  EXPECT_NE(run_shell(types + "echo $U > $T/serial-1/create; echo $U > $T/serial-1/create")
                .err.find("File exists"),
            std::string::npos);
}

}  // namespace
}  // namespace stagetwo::test
