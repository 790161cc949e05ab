// SPDX-License-Identifier: Apache-2.0
#include "cli/unseen.h"

namespace stagetwo::cli {
namespace {

constexpr Unseen kAll[] = {
    {Where::kEverywhere, "system calls by a program's own instruction (Go, libaio, assembly)",
     "devices are not ours; a change of memory ends in the guarded access: EFAULT where nothing "
     "is, "
     "and what took the address is used as it is"},
    {Where::kEverywhere, "io_uring", "the same: its madvise, fallocate, reads and writes"},
    {Where::kEverywhere, "a second libc (dlmopen)", "the same for what it maps and unmaps"},
    {Where::kEverywhere, "a change under way in another thread while the first device is opened",
     "it is not waited for"},
    {Where::kEverywhere, "what another process does to a mapped file: its end, holes",
     "the guarded access: EFAULT; a pinned page that goes with it is lost to its device"},
    {Where::kEverywhere,
     "a process that is stopped (SIGSTOP, a debugger, a freezer) inside of a request on an iommufd "
     "that others share",
     "their requests on it wait until it goes on"},
    {Where::kEverywhere,
     "an end or a hole of a mapped file by open_by_handle_at, shm_open or the ioctls of XFS",
     "the guarded access: EFAULT"},
    {Where::kEverywhere,
     "the end of a thread by its own instruction, by the function of clone that returns, by a "
     "signal or the end of the process; of libc's threads that of the first one by "
     "pthread_exit and those on a stack of the program's own or of 32 KiB at most; everywhere "
     "where doctor's line libc does not name madvise as seen: of the robust mutexes it holds "
     "and the word of set_tid_address those on absent pages",
     "the mutex stays locked and the word stays: who waits for it waits on"},
    {Where::kEverywhere,
     "absent memory looked at from another process (/proc/PID/mem, process_vm_readv, ptrace)",
     "EIO or EFAULT, or it waits for the page; without userfaultfd the bytes from before the page "
     "left"},
    {Where::kEverywhere, "what a core dump reads of guest memory that is absent", "zeros"},
    {Where::kEverywhere,
     "what another process writes (process_vm_writev, a debugger) into guest memory that is shared "
     "or may be executed, while it is taken under a limit",
     "bytes that come after a page was copied are lost"},
    {Where::kEverywhere,
     "a device that a program opened, in a child it has forked, in a program it was sent to and "
     "after exec",
     "it answers there, but DMA reaches only what that process itself has mapped, and rings only "
     "eventfds set there or before the fork; the rest is a fault, an error in its completion; an "
     "own node (/dev/vfio/devices/vfioN) that was bound and is sent or kept over exec answers EIO "
     "while the process that bound it lives and has not run another program, then EINVAL, as one "
     "that nobody has bound"},
    {Where::kEverywhere,
     "the file of shared guest memory of which pages are absent, "
     "read by a program's own instruction, or opened by another process "
     "by /proc/PID/fd or pidfd_getfd",
     "absent pages are zeros there, and what another process stores is lost"},
    {Where::kEverywhere,
     "a guest_memfd or a vCPU larger than a hard RLIMIT_FSIZE that the process may not raise",
     "it is not made: EFBIG"},
    {Where::kEverywhere,
     "the engine's own descriptors count against RLIMIT_NOFILE: six or more a process, two a "
     "guest_memfd, "
     "one for each descriptor that was closed while a copy or a mapping of it stays",
     "EMFILE so much earlier"},
    {Where::kEverywhere,
     "the close of a VM or a vCPU in a full descriptor table at a hard RLIMIT_NOFILE that the "
     "process may not raise, while another one closed there is still mapped or copied",
     "what was behind it lives until the process ends"},
    {Where::kEverywhere,
     "a close by a process that shares the descriptors and not the memory (clone with CLONE_FILES, "
     "without CLONE_VM)",
     "what was behind it lives until the process ends"},
    {Where::kEverywhere,
     "a descriptor of ours that comes to a process without devices past libc's recvmsg, recvmmsg, "
     "pidfd_getfd, open and exec (a seccomp supervisor adds it, io_uring receives it)",
     "until that process opens a device, of a guest_memfd mmap and pread answer zeroes where the "
     "kernel refuses, and fallocate is EPERM"},
    {Where::kEverywhere,
     "reads under way of an io_uring of which nothing is mapped and that was made by a program's "
     "own instruction, and of the first requests it submits so to an io_context that libc's "
     "syscall() made or submits to as well; into shared memory, and where pages are copied: "
     "userfaultfd "
     "denied, before Linux 6.8, memory that may be executed",
     "what arrives after the copy is lost; elsewhere such a page stays"},
    {Where::kEverywhere,
     "another root or another user than when the first device was opened, in a child that is "
     "forked "
     "there; or before it",
     "where the files of /proc/self cannot be opened, pages do not go to a device: ENOENT, EACCES"},
    {Where::kEverywhere,
     "a VFIO node opened, or a device asked of a group, by a process that has become another user "
     "than the one that the session is of",
     "EACCES, whatever the rights of the node"},
    {Where::kEverywhere,
     "a guest_memfd in a program that exec started without the library (another environment, a "
     "static or a setuid program), by a program's own instruction, by io_uring",
     "mmap and pread answer zeroes where the kernel refuses, rewind moves a stream; fallocate is "
     "EPERM, and no page of the guest's is reached"},
    {Where::kEverywhere,
     "fallocate of a guest_memfd in a program that inherited or received it and may not look into "
     "/proc/PID/fd of the VM's process (another user, another pid namespace)",
     "EIO; in another pid namespace 0, and no page goes"},
    {Where::kEverywhere,
     "a number that the program does not have and closes, or that a call on /dev/iommu needs for "
     "itself and dup2 takes, while the engine has it for the length of one call",
     "the engine's call fails, or is made on the file that comes there, and closes it"},
    {Where::kEverywhere,
     "each range of a guest_memfd that a slot is bound to is a mapping of the process, and counts "
     "for vm.max_map_count",
     "ENOMEM so much earlier"},
    {Where::kEverywhere, "the lines of /proc/self/maps while a part of a mapping is with a device",
     "one mapping is shown as several, and counts as several for vm.max_map_count; the calls that "
     "take one mapping only (mremap, UFFDIO_MOVE, remap_file_pages, MADV_COLLAPSE) find one"},
    {Where::kEverywhere,
     "/proc/self/pagemap and /sys/kernel/mm/page_idle/bitmap by a stream that freopen opens again",
     "the kernel's own: other streams, read, pread, write and pwrite see the guest's"},
    {Where::kEverywhere,
     "a PCI function's config to be written, by a stream that freopen opens again", "EACCES"},
    {Where::kEverywhere,
     "posix_spawn_file_actions_addopen of a device or of a file of sysfs to be written; "
     "wordexp's patterns; a link elsewhere, a bind or a mount whose name leads to what the "
     "session shows; the lists of the folders above it (/dev, /sys/class, /sys/bus)",
     "the machine's own: ENOENT where it has none"},
    {Where::kEverywhere,
     "the end of every thread by system calls of their number (SYS_exit) while a device "
     "that works by itself is open; a first device that is opened after the first thread "
     "has left by pthread_exit",
     "the process stays, until SIGKILL; the client's memory is not found: EFAULT"},
    {Where::kWithUserfaultfd,
     "the touch of a private file mapping's absent page by a thread that blocks SIGSEGV",
     "the process ends by SIGSEGV"},
    {Where::kWithoutUserfaultfd,
     "absent pages, and pages beside them that nobody has touched, as buffers of a program's own "
     "system-call instructions and of io_uring",
     "EFAULT; syscall() and the functions of libc that take buffers bring theirs back and hold "
     "them, but for those below"},
    {Where::kWithoutUserfaultfd,
     "absent pages that libc itself hands to the kernel: a futex, a stream's own buffer (setvbuf), "
     "what it has from malloc (a DIR), words that printf writes in blocks",
     "EFAULT inside libc: the stream or the call fails, the lock ends the program"},
    {Where::kWithoutUserfaultfd,
     "absent pages as buffers of aio_read, aio_write and lio_listio, of rcmd_af and rexec_af, of "
     "forkpty, of the processor-time clocks of clock_gettime",
     "EFAULT"},
    {Where::kDenied, "absent pages of a stack the program switches to by itself (coroutines)",
     "the process ends by SIGSEGV; stacks of threads and alternate stacks are never taken"},
    {Where::kDenied,
     "threads that blocked SIGSEGV before the first device was opened, or by "
     "pthread_attr_setsigmask_np,"
     " setcontext, sighold or sigblock",
     "while there is one, no page is taken from the program"},
    {Where::kDenied, "a descriptor table that is full, or a RLIMIT_NOFILE that allows no more",
     "while no file of /proc can be opened, no page is taken from the program"},
    {Where::kDenied, "the signal mask that posix_spawn and system give to a child",
     "SIGSTKFLT is blocked in place of SIGSEGV"},
};

}  // namespace

std::span<const Unseen> all_unseen() {
  return kAll;
}

}  // namespace stagetwo::cli
