// SPDX-License-Identifier: Apache-2.0
#pragma once

// The next functions behind shim/buffered_calls.def, where a line stands for a call and its
// buffers.

#include <dirent.h>
#include <mqueue.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/epoll.h>
#include <sys/msg.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/times.h>
#include <sys/timex.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>
#include <utime.h>
#include <wordexp.h>

#include "host/pin_account.h"
#include "shim/next.h"

namespace stagetwo::shim::next {

#define ST_CALL(result, name, parameters, arguments, ...) \
  extern constinit Next<result parameters> name;
#include "shim/buffered_calls.def"
#undef ST_CALL

}  // namespace stagetwo::shim::next
