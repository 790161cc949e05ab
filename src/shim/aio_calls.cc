// SPDX-License-Identifier: Apache-2.0
#include "shim/aio_calls.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

#include "base/sys.h"
#include "host/kernel_io.h"
#include "shim/behind.h"
#include "shim/engine.h"
#include "shim/files.h"
#include "shim/next.h"
#include "shim/requests.h"
#include "sync/atomic.h"

namespace stagetwo::shim {
namespace {

constexpr int kMostListed = 256;

void* call_back(void* event) {
  const auto* const told = static_cast<const aiocb*>(event);
  told->aio_sigevent.sigev_notify_function(told->aio_sigevent.sigev_value);
  return nullptr;
}

// As libc tells of the end of a request.
void tell_ended(aiocb* request) {
  const sigevent& how = request->aio_sigevent;
  if (how.sigev_notify == SIGEV_SIGNAL) {
    siginfo_t info;
    std::memset(&info, 0, sizeof(info));
    info.si_signo = how.sigev_signo;
    info.si_code = SI_ASYNCIO;
    info.si_pid = sys::getpid();
    info.si_uid = getuid();
    info.si_value = how.sigev_value;
    sys::call(SYS_rt_sigqueueinfo, sys::getpid(), how.sigev_signo, sys::arg(&info));
  } else if (how.sigev_notify == SIGEV_THREAD) {
    pthread_attr_t detached;
    pthread_t thread;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    const auto* const wanted = static_cast<const pthread_attr_t*>(how.sigev_notify_attributes);
    pthread_create(&thread, wanted != nullptr ? wanted : &detached, call_back, request);
    pthread_attr_destroy(&detached);
  }
}

// Has it ended, refused? Then everything but the telling is done.
bool ends_refused(aiocb* request, bool writes) {
  if (behind_fd(request->aio_fildes) == Behind::kForeign) return false;
  const int before = errno;
  const off_t at = request->aio_offset;
  const bool refused = io_refused(request->aio_fildes, writes ? Io::kWrite : Io::kRead, &at);
  if (refused) {
    request->__return_value = -1;
    reinterpret_cast<sync::Atomic<int>*>(&request->__error_code)->store(errno, sync::kRelease);
  }
  errno = before;
  return refused;
}

Hva word_of(const aiocb* request) {
  return Hva(reinterpret_cast<u64>(&request->__error_code));
}

// What it is to fill stays in place until libc says its end (host/kernel_io.h).
void note_read(aiocb* request) {
  if (!awake()) return;
  request->__error_code = EINPROGRESS;  // as libc is about to
  note_requests([&] { host::read_begins(word_of(request)); });
}
void note_refused(const aiocb* request) {
  note_requests([&] { host::read_refused(word_of(request)); });
}

}  // namespace

int aio_transfer(aiocb* request, bool writes) {
  if (!ends_refused(request, writes)) {
    if (writes) return next::aio_write(request);
    note_read(request);
    const int begun = next::aio_read(request);
    if (begun != 0) note_refused(request);
    return begun;
  }
  tell_ended(request);
  return 0;
}

int aio_list(int mode, aiocb* const* list, int count, sigevent* when_all) {
  aiocb* others[kMostListed];
  const bool judged = count > 0 && count <= kMostListed && (mode == LIO_WAIT || mode == LIO_NOWAIT);
  bool any = false;
  for (int i = 0; judged && i < count; ++i) {
    others[i] = list[i];
    const int what = list[i] == nullptr ? LIO_NOP : list[i]->aio_lio_opcode;
    if (what == LIO_NOP) continue;
    if (!ends_refused(list[i], what == LIO_WRITE)) {
      if (what == LIO_READ) note_read(list[i]);
      continue;
    }
    others[i] = nullptr;
    any = true;
    tell_ended(list[i]);
  }
  const int done = next::lio_listio(mode, any ? others : list, count, when_all);
  return any && done == 0 && mode == LIO_WAIT ? static_cast<int>(as_libc(-EIO)) : done;
}

}  // namespace stagetwo::shim
