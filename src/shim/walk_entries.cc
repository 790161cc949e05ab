// SPDX-License-Identifier: Apache-2.0
// The entry points of shim/tree_walks.h, as shim/buffered_entries.cc makes them. The forms with 64
// are the same here: their types have other names and one shape.

#include "shim/tree_walks.h"

#define ST_ENTRY(result, name, parameters)                                                     \
  extern "C"                                                                                   \
      __attribute__((visibility("default"))) result st_entry_##name parameters __asm__(#name); \
  result st_entry_##name parameters

namespace shim = stagetwo::shim;

ST_ENTRY(int, glob, (const char* pattern, int flags, shim::GlobError on_error, glob_t* to)) {
  return shim::find_names(pattern, flags, on_error, to);
}
ST_ENTRY(int, glob64, (const char* pattern, int flags, shim::GlobError on_error, glob_t* to)) {
  return shim::find_names(pattern, flags, on_error, to);
}
ST_ENTRY(int, nftw, (const char* path, shim::WalkStep step, int most_open, int flags)) {
  return shim::walk_tree(path, step, most_open, flags);
}
ST_ENTRY(int, nftw64, (const char* path, shim::WalkStep step, int most_open, int flags)) {
  return shim::walk_tree(path, step, most_open, flags);
}
ST_ENTRY(int, ftw, (const char* path, shim::OldWalkStep step, int most_open)) {
  return shim::walk_tree(path, step, most_open);
}
ST_ENTRY(int, ftw64, (const char* path, shim::OldWalkStep step, int most_open)) {
  return shim::walk_tree(path, step, most_open);
}
ST_ENTRY(FTS*, fts_open, (char* const* names, int options, shim::FtsOrder order)) {
  return shim::open_walk(names, options, order);
}
ST_ENTRY(FTS*, fts64_open, (char* const* names, int options, shim::FtsOrder order)) {
  return shim::open_walk(names, options, order);
}
ST_ENTRY(FTSENT*, fts_read, (FTS * walk)) {
  return shim::read_walk(walk);
}
ST_ENTRY(FTSENT*, fts64_read, (FTS * walk)) {
  return shim::read_walk(walk);
}
ST_ENTRY(FTSENT*, fts_children, (FTS * walk, int options)) {
  return shim::children_of_walk(walk, options);
}
ST_ENTRY(FTSENT*, fts64_children, (FTS * walk, int options)) {
  return shim::children_of_walk(walk, options);
}
