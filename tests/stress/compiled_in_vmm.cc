// SPDX-License-Identifier: Apache-2.0
// The ioctl of a VMM in plain C that is compiled with -Dioctl=vmm_ioctl into one program with the
// engine.
#include <cstdarg>

#include "tests/abi/kvm_client.h"

extern "C" int vmm_ioctl(int fd, unsigned long request, ...) {
  va_list more;
  va_start(more, request);
  const unsigned long argument = va_arg(more, unsigned long);
  va_end(more);
  const long done = kvm_client::call(fd, request, argument);
  if (done < 0) errno = static_cast<int>(-done);
  return done < 0 ? -1 : static_cast<int>(done);
}
