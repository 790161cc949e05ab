// SPDX-License-Identifier: Apache-2.0
#pragma once

// libc's functions that go through folders by names: it opens and asks inside of them, where nobody
// can stand in front. What the session shows (shim/paths.h, shim/mdev_files.h) is found by them as
// by open() and opendir(), and told by the names that were asked for.
//
//   glob        with functions of ours in place of libc's, unless the client has its own
//   nftw, ftw   a walk of our own where the first name is one of the session's
//   fts_*       libc's walk of the session's folder, whose name is not in what is told
//
// Context: the client's thread; its functions are called from here. errno is the call's.

#include <fts.h>
#include <ftw.h>
#include <glob.h>
#include <sys/stat.h>

namespace stagetwo::shim {

using GlobError = int (*)(const char*, int);
int find_names(const char* pattern, int flags, GlobError on_error, glob_t* to);

using WalkStep = int (*)(const char*, const struct ::stat*, int, FTW*);
using OldWalkStep = int (*)(const char*, const struct ::stat*, int);
int walk_tree(const char* path, WalkStep step, int most_open, int flags);
int walk_tree(const char* path, OldWalkStep step, int most_open);

using FtsOrder = int (*)(const FTSENT**, const FTSENT**);
FTS* open_walk(char* const* names, int options, FtsOrder order);
FTSENT* read_walk(FTS* walk);
FTSENT* children_of_walk(FTS* walk, int options);

}  // namespace stagetwo::shim
