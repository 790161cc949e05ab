// SPDX-License-Identifier: Apache-2.0
#include "vcpu/decoder.h"

namespace stagetwo::vcpu {
namespace {

constexpr const char* kOpNames[] = {
#define ST_OP(name) #name,
#include "vcpu/op_list.inc"
#undef ST_OP
};

}  // namespace

const char* op_name(Op op) { return kOpNames[static_cast<std::size_t>(op)]; }

}  // namespace stagetwo::vcpu
