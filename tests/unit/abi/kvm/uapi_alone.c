/* SPDX-License-Identifier: Apache-2.0 */
#include "abi/kvm/uapi.h"

_Static_assert(sizeof(struct kvm_run) == 2352, "what a program maps");
int st_uapi_alone(const struct kvm_run* run);
int st_uapi_alone(const struct kvm_run* run) {
  return run->immediate_exit;
}
