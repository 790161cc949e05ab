// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a page of a secure guest can be, and what every call does with it: one table for both
// halves. Each half has the state of every page by itself, as on POWER, and looks its answer up
// here. Analogue: KVMPPC_GFN_* and the comment above them (kernel file: book3s_hv_uvmem.c); the
// ultravisor's page states.
//
// A SHARED PAGE belongs to the secure guest, lies in normal memory, holds its contents decrypted,
// because the guest asked for that, and is mapped on both sides: the hypervisor's process and the
// guest use one frame. Nothing stands in for it, and touching it is no event.
//
// A SECURE PAGE lies in secure memory, in clear; the hypervisor's process has a stand-in, which
// represents the secure page: a page that is absent and whose touch is reported (SecurePageStandIn,
// process_pages.h). It has no contents. Paged out, the page lies in normal memory, sealed, and
// touching it is no event.

#include "base/types.h"
#include "uv/calls.h"

namespace stagetwo::uv {

// Of a guest. Transient, from INIT_START to INIT_DONE or INIT_ABORT; secure, until SVM_OFF.
enum class GuestState : u8 { kNormal, kTransient, kSecure };

enum class PageState : u8 {
  kNone,      // in no slot
  kNormal,    // in normal memory, in clear; or never told of
  kSecure,    // in secure memory; never touched there, it has no memory yet and is zeros
  kPagedOut,  // in normal memory, sealed
  kShared,    // see above
  kLost,      // what came back for it was not what left: the guest has ended
};
inline constexpr unsigned kPageStates = 6;

// Who wants what of a page. The first group is the hypervisor's half, the second the ultravisor's.
enum class PageEvent : u8 {
  kHvPageIn,
  kHvPageInShared,
  kHvPageOut,
  kHvTouch,     // the process touched the stand-in
  kHvUnmapped,  // the process gave the address up
  kHvInitDone,
  kHvInitAbort,
  kHvSvmOff,  // also: its slot goes

  kUvPageIn,
  kUvPageOut,
  kUvPageInval,
  kUvShare,  // of the guest
  kUvUnshare,
  kUvUnshareAll,
  kUvTouch,  // the guest wants to use it
};
inline constexpr unsigned kPageEvents = 15;

// What is to be done; what that means is said where it is done.
enum class PageWork : u8 {
  kNothing,
  kMoveIn,        // a frame's bytes go to secure memory: copied, opened, or of a shared page wiped
  kMoveOut,       // the secure page goes to a frame, sealed
  kShareFrame,    // the frame that is there is used by both sides
  kShareCleared,  // the same, wiped: it has a sealed page
  kShareFresh,    // a frame of zeros takes the stand-in's place, and nothing is paged out
  kForgetFrame,   // a shared page's frame is used no more
  kGiveUp,        // contents are thrown away
  kRestore,       // contents go back in clear
  kLeave,         // they are where they belong; the page changes its name
};

struct PageCell {
  Status status;
  PageState next;
  PageWork work;
};

namespace detail {
using enum PageWork;
using enum Status;
// A cell: it stays as it is, with success (ok) or not (no); or it becomes another thing by a work.
inline constexpr PageCell ok{kSuccess, PageState::kNone, kNothing};
constexpr PageCell no(Status status) {
  return {status, PageState::kNone, kNothing};
}
constexpr PageCell secure(PageWork work) {
  return {kSuccess, PageState::kSecure, work};
}
constexpr PageCell shared(PageWork work) {
  return {kSuccess, PageState::kShared, work};
}
constexpr PageCell normal(PageWork work) {
  return {kSuccess, PageState::kNormal, work};
}
inline constexpr PageCell out{kSuccess, PageState::kPagedOut, kMoveOut};

// clang-format off
inline constexpr PageCell kPageTable[kPageEvents][kPageStates] = {
    // none, normal, secure, paged out, shared, lost
    // -- the hypervisor's half: H_SVM_PAGE_IN, with SHARED, H_SVM_PAGE_OUT, a touch, an unmap, DONE,
    //    ABORT, OFF
    {no(kParameter), secure(kMoveIn), no(kParameter), secure(kMoveIn), secure(kMoveIn), no(kState)},
    {no(kParameter), shared(kShareFrame), shared(kShareFresh), shared(kShareCleared),
     shared(kShareFrame), no(kState)},
    {no(kParameter), ok, out, ok, ok, no(kState)},
    {no(kParameter), ok, out, ok, ok, ok},
    {ok, normal(kForgetFrame), ok, ok, shared(kForgetFrame), ok},
    {ok, secure(kGiveUp), ok, ok, ok, no(kState)},
    {ok, ok, normal(kRestore), normal(kRestore), normal(kLeave), normal(kGiveUp)},
    {ok, ok, normal(kGiveUp), normal(kGiveUp), normal(kGiveUp), normal(kGiveUp)},
    // -- the ultravisor's half: UV_PAGE_IN, UV_PAGE_OUT, UV_PAGE_INVAL, share, unshare, unshare all, a touch
    {no(kP3), secure(kMoveIn), no(kP2), secure(kMoveIn), shared(kShareFrame), no(kState)},
    {no(kP3), no(kParameter), out, no(kParameter), ok, no(kState)},
    {no(kP2), ok, no(kP2), no(kP2), shared(kForgetFrame), no(kP2)},
    {no(kParameter), shared(kShareFrame), shared(kShareFresh), shared(kShareCleared), ok, no(kState)},
    {no(kParameter), ok, ok, ok, secure(kGiveUp), no(kState)},
    {ok, ok, ok, ok, secure(kGiveUp), ok},
    {no(kNotAvailable), secure(kMoveIn), ok, secure(kMoveIn), ok, no(kState)},
};
// clang-format on
}  // namespace detail

constexpr PageCell page_cell(PageEvent event, PageState state) {
  PageCell cell = detail::kPageTable[static_cast<unsigned>(event)][static_cast<unsigned>(state)];
  if (cell.work == PageWork::kNothing) cell.next = state;
  return cell;
}

static_assert(page_cell(PageEvent::kHvSvmOff, PageState::kShared).next == PageState::kNormal &&
                  page_cell(PageEvent::kUvTouch, PageState::kPagedOut).work == PageWork::kMoveIn,
              "a row of the table for every event");

}  // namespace stagetwo::uv
