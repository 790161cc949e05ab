// SPDX-License-Identifier: Apache-2.0
//
// Op to operation. What has no entry is an instruction this processor does not offer: #UD. What
// needs a CPUID bit is behind a gate that asks for it.
#include "vcpu/operand.h"
#include "vcpu/ops.h"
#include "vcpu/sse.h"

namespace stagetwo::vcpu {
namespace {

// `operation` only if CPUID offers `feature`.
template <bool Features::* feature, OpFn* operation>
Step gated(Cpu& c, const Insn& insn) {
  return c.features.*feature ? operation(c, insn) : c.ud();
}

// x87, MMX: outside; an emulation failure unless the OS turned the unit off.
Step outside(Cpu& c, const Insn& insn) {
  return ops::x87(c, insn);
}

struct Table {
  ExecFn at[kOpCount];

  consteval Table() {
    for (ExecFn& f : at) f = &ops::undefined;
    integer();
    transfers();
    strings();
    system();
    extended();
    // From Cvtpd2pi on everything touches MMX registers, up to what is recognised for its length.
    for (std::size_t i = index(Op::kCvtpd2pi); i < index(Op::kSseLater); ++i) at[i] = &outside;
  }

  static consteval std::size_t index(Op op) { return static_cast<std::size_t>(op); }
  consteval void set(Op op, ExecFn f) { at[index(op)] = f; }

  consteval void integer() {
    set(Op::kAdd, &ops::add);
    set(Op::kAdc, &ops::adc);
    set(Op::kSub, &ops::sub);
    set(Op::kSbb, &ops::sbb);
    set(Op::kCmp, &ops::cmp);
    set(Op::kAnd, &ops::and_);
    set(Op::kOr, &ops::or_);
    set(Op::kXor, &ops::xor_);
    set(Op::kTest, &ops::test);
    set(Op::kInc, &ops::inc);
    set(Op::kDec, &ops::dec);
    set(Op::kNeg, &ops::neg);
    set(Op::kNot, &ops::not_);
    set(Op::kXadd, &ops::xadd);
    set(Op::kMul, &ops::mul);
    set(Op::kImul, &ops::imul);
    set(Op::kImulWide, &ops::imul_wide);
    set(Op::kDiv, &ops::div);
    set(Op::kIdiv, &ops::idiv);
    set(Op::kAaa, &ops::aaa);
    set(Op::kAad, &ops::aad);
    set(Op::kAam, &ops::aam);
    set(Op::kAas, &ops::aas);
    set(Op::kDaa, &ops::daa);
    set(Op::kDas, &ops::das);
    set(Op::kAdcx, &gated<&Features::adx, ops::adcx>);
    set(Op::kAdox, &gated<&Features::adx, ops::adox>);
    set(Op::kRol, &ops::rol);
    set(Op::kRor, &ops::ror);
    set(Op::kRcl, &ops::rcl);
    set(Op::kRcr, &ops::rcr);
    set(Op::kShl, &ops::shl);
    set(Op::kShr, &ops::shr);
    set(Op::kSar, &ops::sar);
    set(Op::kShld, &ops::shld);
    set(Op::kShrd, &ops::shrd);
    set(Op::kBt, &ops::bt);
    set(Op::kBts, &ops::bts);
    set(Op::kBtr, &ops::btr);
    set(Op::kBtc, &ops::btc);
    set(Op::kBsf, &ops::bsf);
    set(Op::kBsr, &ops::bsr);
    set(Op::kTzcnt, &ops::tzcnt);
    set(Op::kLzcnt, &ops::lzcnt);
    set(Op::kPopcnt, &gated<&Features::popcnt, ops::popcnt>);
    set(Op::kBswap, &ops::bswap);
    set(Op::kCrc32, &gated<&Features::crc32, ops::crc32>);
    set(Op::kMov, &ops::mov);
    set(Op::kMovzx, &ops::movzx);
    set(Op::kMovsx, &ops::movsx);
    set(Op::kMovsxd, &ops::movsx);
    set(Op::kLea, &ops::lea);
    set(Op::kXchg, &ops::xchg);
    set(Op::kCmpxchg, &ops::cmpxchg);
    set(Op::kCmpxchg8b, &ops::cmpxchg8b);
    set(Op::kCmpxchg16b, &gated<&Features::cx16, ops::cmpxchg16b>);
    set(Op::kCmovcc, &ops::cmovcc);
    set(Op::kSetcc, &ops::setcc);
    set(Op::kCbw, &ops::cbw);
    set(Op::kCwd, &ops::cwd);
    set(Op::kMovbe, &gated<&Features::movbe, ops::movbe>);
    set(Op::kMovnti, &ops::movnti);
    for (Op op : {Op::kNop, Op::kEndbr32, Op::kEndbr64}) set(op, &ops::nop);
    set(Op::kPause, &ops::pause);
    set(Op::kClc, &ops::clc);
    set(Op::kStc, &ops::stc);
    set(Op::kCmc, &ops::cmc);
    set(Op::kCld, &ops::cld);
    set(Op::kStd, &ops::std_);
    set(Op::kLahf, &ops::lahf);
    set(Op::kSahf, &ops::sahf);
    set(Op::kSalc, &ops::salc);
    set(Op::kXlat, &ops::xlat);
    set(Op::kBound, &ops::bound);
  }

  consteval void transfers() {
    set(Op::kPush, &ops::push);
    set(Op::kPop, &ops::pop);
    set(Op::kPusha, &ops::pusha);
    set(Op::kPopa, &ops::popa);
    set(Op::kPushf, &ops::pushf);
    set(Op::kPopf, &ops::popf);
    set(Op::kEnter, &ops::enter);
    set(Op::kLeave, &ops::leave);
    set(Op::kPushSeg, &ops::push_segment);
    set(Op::kPopSeg, &ops::pop_segment);
    set(Op::kJcc, &ops::jcc);
    set(Op::kJmp, &ops::jmp);
    set(Op::kCall, &ops::call);
    set(Op::kRet, &ops::ret);
    set(Op::kJcxz, &ops::jcxz);
    set(Op::kLoop, &ops::loop);
    set(Op::kLoope, &ops::loope);
    set(Op::kLoopne, &ops::loopne);
    set(Op::kJmpFar, &ops::jmp_far);
    set(Op::kCallFar, &ops::call_far);
    set(Op::kRetFar, &ops::ret_far);
    set(Op::kIret, &ops::iret);
    set(Op::kInt, &ops::int_);
    set(Op::kInt1, &ops::int1);
    set(Op::kInt3, &ops::int3);
    set(Op::kInto, &ops::into);
    set(Op::kSyscall, &ops::syscall);
    set(Op::kSysret, &ops::sysret);
    set(Op::kSysenter, &ops::sysenter);
    set(Op::kSysexit, &ops::sysexit);
  }

  consteval void strings() {
    set(Op::kMovs, &ops::movs);
    set(Op::kCmps, &ops::cmps);
    set(Op::kScas, &ops::scas);
    set(Op::kLods, &ops::lods);
    set(Op::kStos, &ops::stos);
    set(Op::kIn, &ops::in);
    set(Op::kOut, &ops::out);
    set(Op::kIns, &ops::ins);
    set(Op::kOuts, &ops::outs);
  }

  consteval void system() {
    set(Op::kMovToSeg, &ops::mov_to_segment);
    set(Op::kMovFromSeg, &ops::mov_from_segment);
    for (Op op : {Op::kLds, Op::kLes, Op::kLfs, Op::kLgs, Op::kLss})
      set(op, &ops::load_far_pointer);
    set(Op::kLar, &ops::lar);
    set(Op::kLsl, &ops::lsl);
    set(Op::kVerr, &ops::verr);
    set(Op::kVerw, &ops::verw);
    set(Op::kArpl, &ops::arpl);
    set(Op::kLgdt, &ops::lgdt);
    set(Op::kLidt, &ops::lidt);
    set(Op::kSgdt, &ops::sgdt);
    set(Op::kSidt, &ops::sidt);
    set(Op::kLldt, &ops::lldt);
    set(Op::kLtr, &ops::ltr);
    set(Op::kSldt, &ops::sldt);
    set(Op::kStr, &ops::str);
    set(Op::kSwapgs, &ops::swapgs);
    for (Op op : {Op::kRdfsbase, Op::kRdgsbase}) set(op, &ops::rdfsbase);
    for (Op op : {Op::kWrfsbase, Op::kWrgsbase}) set(op, &ops::wrfsbase);
    set(Op::kHlt, &ops::hlt);
    set(Op::kCli, &ops::cli);
    set(Op::kSti, &ops::sti);
    set(Op::kClts, &ops::clts);
    set(Op::kLmsw, &ops::lmsw);
    set(Op::kSmsw, &ops::smsw);
    set(Op::kMovToCr, &ops::mov_to_cr);
    set(Op::kMovFromCr, &ops::mov_from_cr);
    set(Op::kMovToDr, &ops::mov_to_dr);
    set(Op::kMovFromDr, &ops::mov_from_dr);
    set(Op::kInvlpg, &ops::invlpg);
    set(Op::kInvpcid, &ops::invpcid);
    set(Op::kCpuid, &ops::cpuid);
    set(Op::kRdtsc, &ops::rdtsc);
    set(Op::kRdtscp, &ops::rdtscp);
    set(Op::kRdpmc, &ops::rdpmc);
    set(Op::kRdpid, &ops::rdpid);
    set(Op::kRdmsr, &ops::rdmsr);
    set(Op::kWrmsr, &ops::wrmsr);
    set(Op::kXgetbv, &ops::xgetbv);
    set(Op::kXsetbv, &ops::xsetbv);
    set(Op::kMonitor, &ops::monitor);
    set(Op::kMwait, &ops::mwait);
    for (Op op : {Op::kVmcall, Op::kVmmcall}) set(op, &ops::vmcall);
    for (Op op : {Op::kInvd, Op::kWbinvd}) set(op, &ops::invd);
    set(Op::kClac, &ops::clac);
    set(Op::kStac, &ops::stac);
    for (Op op : {Op::kMfence, Op::kLfence, Op::kSfence}) set(op, &ops::fence);
    for (Op op : {Op::kClflush, Op::kClflushopt, Op::kClwb}) set(op, &ops::clflush);
    for (Op op : {Op::kPrefetch, Op::kPrefetchw}) set(op, &ops::prefetch);
    for (Op op : {Op::kRdrand, Op::kRdseed}) set(op, &ops::rdrand);
    for (Op op : {Op::kRdpkru, Op::kWrpkru}) set(op, &ops::rdpkru);
    for (Op op : {Op::kUd0, Op::kUd1, Op::kUd2}) set(op, &ops::ud);
  }

  consteval void extended() {
    for (std::size_t i = index(Op::kAddps); i <= index(Op::kPxor); ++i) at[i] = &ops::sse;
    set(Op::kMaskmovdqu, &ops::maskmovdqu);
    set(Op::kFxsave, &ops::fxsave);
    set(Op::kFxrstor, &ops::fxrstor);
    set(Op::kLdmxcsr, &ops::ldmxcsr);
    set(Op::kStmxcsr, &ops::stmxcsr);
    set(Op::kFldcw, &ops::fldcw);
    set(Op::kFnstcw, &ops::fnstcw);
    set(Op::kFnstsw, &ops::fnstsw);
    set(Op::kFninit, &ops::fninit);
    set(Op::kFnclex, &ops::fnclex);
    set(Op::kFwait, &ops::fwait);
    set(Op::kX87, &ops::x87);
  }
};

constinit const Table kTable;

}  // namespace

ExecFn exec_function(Op op) {
  return kTable.at[static_cast<std::size_t>(op)];
}

bool ends_block(Op op) {
  switch (op) {
    case Op::kJcc:
    case Op::kJmp:
    case Op::kCall:
    case Op::kRet:
    case Op::kJcxz:
    case Op::kLoop:
    case Op::kLoope:
    case Op::kLoopne:
    case Op::kJmpFar:
    case Op::kCallFar:
    case Op::kRetFar:
    case Op::kIret:
    case Op::kInt:
    case Op::kInt1:
    case Op::kInt3:
    case Op::kInto:
    case Op::kSyscall:
    case Op::kSysret:
    case Op::kSysenter:
    case Op::kSysexit:
    case Op::kHlt:
    case Op::kSti:
    case Op::kPopf:
    case Op::kMovToCr:
    case Op::kClts:
    case Op::kLmsw:
    case Op::kWrmsr:
    case Op::kInvlpg:
    case Op::kInvpcid:
    case Op::kMovToSeg:
    case Op::kPopSeg:
    case Op::kUd0:
    case Op::kUd1:
    case Op::kUd2:
    case Op::kPause:
    case Op::kVmcall:
    case Op::kVmmcall:
    case Op::kMwait:
      return true;
    default:
      return false;
  }
}

}  // namespace stagetwo::vcpu
