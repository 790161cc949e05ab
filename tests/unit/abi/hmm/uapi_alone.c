/* SPDX-License-Identifier: Apache-2.0 */
#include "abi/hmm/uapi.h"

_Static_assert(sizeof(struct hmm_dmirror_cmd) == 40, "what a program passes");
__u64 st_hmm_uapi_alone(const struct hmm_dmirror_cmd* cmd);
__u64 st_hmm_uapi_alone(const struct hmm_dmirror_cmd* cmd) {
  return cmd->cpages;
}
