// SPDX-License-Identifier: Apache-2.0
// VFIO and mediated devices as whole programs meet them. The numbers are those of the checks that
// docs/support-matrix-vfio.md lists.
#include <gtest/gtest.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "tests/shim/run_program.h"

namespace stagetwo::test {
namespace {

Outcome shell(const std::string& script) {
  return run_program({tool(), "run", "--", "bash", "-c",
                      "T=/sys/class/mdev_bus/serial/mdev_supported_types; "
                      "B=/sys/bus/mdev/devices; "
                      "U=83b8f4f2-509f-382f-3c1e-e6bfe0fa10; " +
                          script});
}
// What each `try` of a script is refused with, a word each.
const std::string kTry =
    "try() { m=$(printf %s \"$1\" 2>&1 > $2) && echo taken || "
    "case $m in *'Invalid argument'*) echo EINVAL;; *'File exists'*) echo EEXIST;; "
    "*'No space'*) echo ENOSPC;; *'No such file'*) echo ENOENT;; *'Permission'*) echo EACCES;; "
    "*) echo \"$m\";; esac; }; ";

TEST(Vfio, S4_01_ACreateIsRefusedWithTheKernelsErrnos) {
  const Outcome told = shell(kTry +
                             "try ${U}0 $T/serial-1/create; try ${U}0123 $T/serial-1/create; try "
                             "${U}zz $T/serial-1/create; "
                             "try ${U}01 $T/serial-1/create; try ${U}01 $T/serial-1/create; try "
                             "${U}01 $T/serial-2/create; "
                             "for i in 02 03 04 05 06 07 08 09 10 11 12; do try ${U}$i "
                             "$T/serial-2/create; done | uniq -c; "
                             "try ${U}13 $T/serial-2/create; try ${U}14 $T/serial-1/create; try "
                             "${U}15 $T/serial-1/create");
  EXPECT_EQ(told.out,
            "EINVAL\nEINVAL\nEINVAL\ntaken\nEEXIST\nEEXIST\n     11 taken\nENOSPC\ntaken\nENOSPC\n")
      << told.err;
}

TEST(Vfio, S4_02_InstancesAreCountedForAllTypesOfAParent) {
  const Outcome told = shell(
      "A='cat $T/serial-1/available_instances $T/serial-2/available_instances'; eval $A; "
      "echo ${U}01 > $T/serial-1/create; eval $A; echo 1 > $B/${U}01/remove; "
      "echo ${U}02 > $T/serial-2/create; eval $A; echo 1 > $B/${U}02/remove; eval $A");
  EXPECT_EQ(told.out, "24\n12\n23\n11\n22\n11\n24\n12\n") << told.err;
}

TEST(Vfio, S4_03_ARemovalIsTakenOnce) {
  const Outcome told = shell(kTry +
                             "echo ${U}01 > $T/serial-1/create; R=$B/${U}01/remove; try x $R; "
                             "try '' $R; try 0 $R; ls $B; try 1 $R; ls $B; try 1 $R");
  EXPECT_EQ(told.out, "EINVAL\ntaken\ntaken\n83b8f4f2-509f-382f-3c1e-e6bfe0fa1001\ntaken\nENOENT\n")
      << told.err;
}

TEST(Vfio, TheTreeIsOneOfFoldersAndLinks) {
  const Outcome told = shell(
      "echo ${U}01 > $T/serial-2/create; D=$B/${U}01; ls $T/serial-2 $D; "
      "readlink $D/iommu_group | sed 's:.*/kernel:kernel:'; readlink $D/mdev_type; "
      "ls $D/iommu_group/devices $T/serial-2/devices; cat $T/serial-2/{device_api,name}; "
      "readlink -f /sys/class/mdev_bus/serial; find $D/ -name dev");
  EXPECT_EQ(told.out,
            "/sys/bus/mdev/devices/83b8f4f2-509f-382f-3c1e-e6bfe0fa1001:\n"
            "driver\niommu_group\nmdev_type\npower\nremove\nsubsystem\nuevent\nvfio-dev\n\n"
            "/sys/class/mdev_bus/serial/mdev_supported_types/serial-2:\n"
            "available_instances\ncreate\ndevice_api\ndevices\nname\n"
            "kernel/iommu_groups/0\n../mdev_supported_types/serial-2\n"
            "/sys/bus/mdev/devices/83b8f4f2-509f-382f-3c1e-e6bfe0fa1001/iommu_group/devices:\n"
            "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001\n\n"
            "/sys/class/mdev_bus/serial/mdev_supported_types/serial-2/devices:\n"
            "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001\n"
            "vfio-pci\nDual port serial\n/sys/devices/virtual/serial/serial\n"
            "/sys/bus/mdev/devices/83b8f4f2-509f-382f-3c1e-e6bfe0fa1001/vfio-dev/vfio0/dev\n")
      << told.err;
}

// Who looks for groups and devices there finds them, by whatever name.
TEST(Vfio, TheFoldersOfNodesAreListed) {
  const Outcome told = shell(
      "ls -p /dev/vfio /dev/vfio/devices/; echo ${U}01 > $T/serial-1/create; "
      "echo ${U}02 > $T/serial-1/create; cd /dev/vfio && ls; stat -c '%F %t' 0 devices/vfio1; cd "
      "/; "
      "find /dev/vfio -type c | sort; echo /dev/vfio/*; realpath /dev/vfio/devices; "
      "python3 -c 'import os; d = os.open(\"/dev/vfio\", os.O_RDONLY); "
      "os.close(os.open(\"1\", os.O_RDWR, dir_fd=d)); print(\"opened\")'; "
      "echo 1 > $B/${U}01/remove; ls /dev/vfio /dev/vfio/devices");
  EXPECT_EQ(told.out,
            "/dev/vfio:\ndevices/\nvfio\n\n/dev/vfio/devices/:\n"
            "0\n1\ndevices\nvfio\ncharacter special file 1ff\ncharacter special file 1fe\n"
            "/dev/vfio/0\n/dev/vfio/1\n/dev/vfio/devices/vfio0\n/dev/vfio/devices/vfio1\n"
            "/dev/vfio/vfio\n/dev/vfio/0 /dev/vfio/1 /dev/vfio/devices /dev/vfio/vfio\n"
            "/dev/vfio/devices\nopened\n/dev/vfio:\n1\ndevices\nvfio\n\n"
            "/dev/vfio/devices:\nvfio1\n")
      << told.err;
}

// By whatever function of libc's that goes through folders, opens or makes something by a name.
TEST(Vfio, NamesAreTheSessionsInWhateverTakesThem) {
  const Outcome outcome = run_under("names");
  EXPECT_EQ(outcome.out, "done\n") << outcome.err;
  const Outcome told = shell(
      "echo ${U}01 > $T/serial-1/create; python3 -c 'import glob; "
      "print(*glob.glob(\"/sys/class/mdev_bus/serial/*/serial-1/n*\"), "
      "*glob.glob(\"/dev/vfio/[0-9]*\"))'; "
      "find $B/${U}01/ -name mdev_type | wc -l; "
      "stat -f -c %T $B; "
      "if command -v hexdump > /dev/null; then hexdump -C $T/serial-1/device_api | head -1; "
      "else echo '00000000  76 66 69 6f 2d 70 63 69  0a                       |vfio-pci.|'; fi");
  EXPECT_EQ(told.out,
            "/sys/class/mdev_bus/serial/mdev_supported_types/serial-1/name /dev/vfio/0\n1\nsysfs\n"
            "00000000  76 66 69 6f 2d 70 63 69  0a                       |vfio-pci.|\n")
      << told.err;
}

// As of any file of sysfs without a show, root included.
TEST(Vfio, WhatIsWrittenOnlyIsNotOpenedToBeRead) {
  const Outcome told = shell(
      "echo ${U}01 > $T/serial-1/create; for f in $T/serial-1/create $B/${U}01/remove; do "
      "(exec 3< $f) 2>&1 | grep -o 'Permission.*'; (exec 3<> $f) 2>&1 | grep -o 'Permission.*'; "
      "done; ls $B");
  EXPECT_EQ(told.out,
            "Permission denied\nPermission denied\nPermission denied\nPermission denied\n"
            "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001\n")
      << told.err;
}

// One process, `o` is os. Each word of what say() tells is an errno, or what the call answers.
Outcome python(const std::string& script) {
  return shell(
      "python3 -c '\nimport errno, os as o, sys\nS = sys.argv[1]; C = S + \"/create\"\n"
      "def say(f, *a, **k):\n"
      "  try: print(f(*a, **k), end=\" \")\n"
      "  except OSError as e: print(errno.errorcode[e.errno], end=\" \")\n" +
      script + "' $T/serial-1");
}

// sysfs has the files it has, for root, too: kernfs has no operation that would make or take away
// one.
TEST(Vfio, NamesAreMadeAndTakenAwayByTheBusAlone) {
  const Outcome told = python(
      "for n in \"/x\", \"/name\", \"/no/x\", \"/name/x\": say(o.mkdir, S + n)\n"
      "say(open, S + \"/x\", \"w\"); say(o.open, S + \"/x\", o.O_CREAT)\n"
      "say(o.unlink, S + \"/name\"); say(o.unlink, S + \"/no\"); say(o.unlink, S + \"/devices\")\n"
      "say(o.rmdir, S + \"/devices\"); say(o.rmdir, S + \"/name\"); print()\n"
      "say(o.rename, S + \"/name\", S + \"/other\"); say(o.rename, S + \"/name\", \"/tmp/name\")\n"
      "say(o.rename, S + \"/no\", S + \"/other\"); say(o.link, S + \"/name\", S + \"/other\")\n"
      "say(o.link, S + \"/name\", C); say(o.symlink, \"x\", S + \"/other\")\n"
      "say(o.symlink, \"x\", C); say(o.mkfifo, S + \"/x\"); say(o.mknod, C); print()\n"
      "o.chdir(S); d = o.open(S, o.O_RDONLY)\n"
      "for k in {}, {\"dir_fd\": d}:\n"
      "  say(o.mkdir, \"x\", **k); say(o.unlink, \"name\", **k); say(o.symlink, \"x\", \"y\", "
      "**k)\n"
      "say(o.open, \"x\", o.O_CREAT | o.O_WRONLY); say(o.remove, \"create\")\n"
      "print(); print(*sorted(o.listdir()))\n");
  EXPECT_EQ(told.out,
            "EPERM EEXIST ENOENT ENOTDIR EACCES EACCES EPERM ENOENT EISDIR EPERM ENOTDIR \n"
            "EPERM EXDEV ENOENT EPERM EEXIST EPERM EEXIST EPERM EEXIST \n"
            "EPERM EPERM EPERM EPERM EPERM EPERM EACCES EPERM \n"
            "available_instances create device_api devices name\n")
      << told.err;
}

TEST(Vfio, RightsOwnersAndSizesAreAsTheyAreSet) {
  const Outcome told = python(
      "show = lambda p: print(oct(o.stat(p).st_mode), o.stat(p).st_size, end=\" \")\n"
      "A = S + \"/available_instances\"; show(C); show(A); o.chmod(C, 0o666); o.chmod(A, 0o400)\n"
      "say(o.open, C, o.O_RDONLY); o.utime(C)\n"
      "f = o.open(C, o.O_WRONLY); print(o.fstat(f).st_size)\n"
      "o.write(f, b\"83b8f4f2-509f-382f-3c1e-e6bfe0fa1001\")\n"
      "o.system(\"ls /sys/class/mdev_bus > /dev/null\"); show(C); show(A); print()\n"
      "for n in \"vfio\", \"0\", \"devices/vfio0\":\n"
      "  n = \"/dev/vfio/\" + n; show(n); o.chmod(n, 0o440); show(n)\n"
      "  if o.geteuid() == 0: o.chown(n, 65534, 65534); assert o.stat(n).st_uid == 65534\n"
      "print(); o.chdir(\"/dev/vfio\"); o.chmod(\"0\", 0o600); show(\"/dev/vfio/0\")\n"
      "print(oct(o.fstat(o.open(\"/dev/vfio/0\", o.O_RDWR)).st_mode), end=\" \")\n"
      "say(o.chmod, \"/dev/vfio/7\", 0o600)\n");
  std::string nodes;
  for (unsigned i = 0; i < 3; ++i) nodes += "0o20666 0 0o20440 0 ";
  EXPECT_EQ(told.out, "0o100200 4096 0o100444 4096 EACCES 4096\n0o100666 4096 0o100400 4096 \n" +
                          nodes + "\n0o20600 0 0o20600 ENOENT ")
      << told.err;
}

// A function that was asked for is there for whoever is in the session, whether or not the program
// that came with it looks.
TEST(Vfio, AFunctionIsTheSessionsFromItsBeginning) {
  const std::string session = "--session=vfio-function-" + std::to_string(getpid());
  const Outcome told =
      run_program({tool(), "run", session, "--vfio-device=ioat", "--", "env", "-u", "LD_PRELOAD",
                   "sh", "-c", tool() + " mdev list " + session + " | cut -c1-12"});
  EXPECT_EQ(told.out, "fffe:00:04.0\n") << told.err;
}

TEST(Vfio, S4_17_AnUnmodifiedClientMovesAMebibyte) {
  const Outcome outcome = run_under("vfio_move");
  EXPECT_EQ(outcome.out, "done\n") << outcome.err;
}

TEST(Vfio, S4_20_TwoProcessesShareTheirAddressesWithOneEngine) {
  const Outcome outcome = run_under("vfio_move", {"sva"});
  EXPECT_EQ(outcome.out, "done\n") << outcome.err;
}

TEST(Vfio, AHostileClientHurtsNobody) {
  const Outcome outcome = run_under("vfio_move", {"hostile"});
  EXPECT_EQ(outcome.out, "done\n") << outcome.err;
}

TEST(Vfio, Type1ChargesTheProcessThatMaps) {
  const Outcome outcome = run_under("vfio_charges");
  EXPECT_EQ(outcome.out, "done\n") << outcome.err;
}

// What children of fork have of a region, they hold the device by.
TEST(Vfio, AMappingHoldsItsDeviceInWhomeverHasIt) {
  const Outcome outcome = run_under("region_mappings", {"forks"});
  EXPECT_EQ(outcome.out, "done\n") << outcome.err;
}

TEST(Vfio, AMappingFollowsItsClientsChanges) {
  const Outcome outcome = run_under("region_mappings", {"changes"});
  EXPECT_EQ(outcome.out, "done\n") << outcome.err;
}

TEST(Vfio, WhoInheritsADeviceGivesItWork) {
  const Outcome outcome = run_under("region_mappings", {"daemon"});
  EXPECT_EQ(outcome.out, "done\n") << outcome.err;
}

TEST(Vfio, ANumberThatChangesHandsIsNotMappedAsAnother) {
  const Outcome outcome = run_under("region_mappings", {"numbers"});
  EXPECT_EQ(outcome.out, "done\n") << outcome.err;
}

// By its own node and an iommufd, from sysfs to DMA and interrupts; by PASID where there are any.
TEST(Vfio, AFunctionIsDrivenByItsOwnNode) {
  for (const bool newer : {false, true}) {
    std::vector<std::string> command = {tool(), "run", "--vfio-device=ioat"};
    if (newer) command.emplace_back("--abi=6.18");
    command.insert(command.end(), {"--", program("vfio_node")});
    if (newer) command.emplace_back("pasids");
    const Outcome outcome = run_program(command);
    EXPECT_EQ(outcome.out, "done\n") << outcome.err;
  }
}

// Its registers are a slot of KVM's: what the guest stores to them the device hears.
TEST(Vfio, AGuestDrivesAFunctionThroughItsSlot) {
  const Outcome outcome =
      run_program({tool(), "run", "--vfio-device=ioat", "--", program("guest_registers")});
  EXPECT_EQ(outcome.out, "done\n") << outcome.err;
}

TEST(Vfio, APasidOfADeviceIsAnAddressSpaceOfItsOwn) {
  const Outcome outcome =
      run_program({tool(), "run", "--abi=6.18", "--", program("engine_pasids")});
  EXPECT_EQ(outcome.out, "done\n") << outcome.err;
}

// ---- stagetwo mdev

Outcome mdev(const std::string& script) {
  const std::string session = "--session=vfio-test-" + std::to_string(getpid());
  return run_program({tool(), "run", session, "--", "bash", "-c",
                      "M='" + tool() + " mdev'; O=" + session + "; " + script});
}

TEST(MdevCommand, MakesListsAndRemoves) {
  const std::string uuid = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
  const Outcome told = mdev("U=" + uuid +
                            "; $M create $O serial-2 $U; $M list $O; $M types $O | grep serial; "
                            "cat /sys/bus/mdev/devices/$U/mdev_type/available_instances; "
                            "$M remove $O $U; $M list $O; echo end");
  EXPECT_EQ(told.out, uuid + "\n" + uuid +
                          " serial-2         group 0\n"
                          "serial-1         Single port serial           22 left\n"
                          "serial-2         Dual port serial             11 left\n11\nend\n")
      << told.err;
  EXPECT_EQ(told.err, "");
}

TEST(MdevCommand, FindsTheSessionAroundIt) {
  const std::string uuid = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
  const std::string script = "M='" + tool() + " mdev'; U=" + uuid +
                             "; $M create serial-2 $U; $M list; $M remove $U; $M list; echo end";
  const Outcome told = run_program({tool(), "run", "--", "bash", "-c", script});
  EXPECT_EQ(told.out, uuid + "\n" + uuid + " serial-2         group 0\nend\n") << told.err;
  EXPECT_EQ(told.err, "");
}

TEST(MdevCommand, SaysWhatIsWrong) {
  const std::string uuid = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
  const Outcome told =
      mdev("U=" + uuid +
           "; T=/sys/class/mdev_bus/serial/mdev_supported_types/serial-2; $M create $O serial-3; "
           "$M create $O serial-1 xyz; $M create $O serial-1 $U; "
           "$M create $O serial-2 $U; $M remove $O 0$U; $M remove $O ${U%1}2; "
           "for i in 1 2 3 4 5 6 7 8 9 a b; do echo ${U%001}90$i > $T/create; done; "
           "$M create $O serial-2; $M types --session=nobodys; $M remove $O $U; echo $?");
  EXPECT_EQ(told.out, uuid + "\n0\n");
  for (const char* part : {"there is no type serial-3", "see 'stagetwo mdev types'",
                           "xyz: not a UUID", "fe0fa1001: there is such a device already",
                           "083b8f4f2-509f-382f-3c1e-e6bfe0fa1001: not a UUID",
                           "e6bfe0fa1002: there is no such device", "serial-2: no instance is left",
                           "no program of session nobodys runs"}) {
    EXPECT_NE(told.err.find(part), std::string::npos) << part << "\n" << told.err;
  }
}

}  // namespace
}  // namespace stagetwo::test
