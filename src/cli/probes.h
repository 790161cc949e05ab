// SPDX-License-Identifier: Apache-2.0
#pragma once

// One question a probe: is it there, what exactly was found, what follows from it.

#include <string>
#include <vector>

namespace stagetwo::cli {

enum class Verdict { kYes, kLimited, kNo };

struct Finding {
  std::string name;  // stable, for scripts
  Verdict verdict = Verdict::kNo;
  std::string detail;     // what was found
  std::string mechanism;  // what the engine uses because of it; empty: nothing depends on it
  std::string advice;     // how to improve it; empty: nothing to improve
  bool required = false;  // the engine cannot work without it
  std::vector<std::string> items;  // of a list: "what: what becomes of it"
};

inline Finding finding(const char* name) {
  Finding f;
  f.name = name;
  return f;
}
inline Finding required_finding(const char* name) {
  Finding f = finding(name);
  f.required = true;
  return f;
}

std::vector<Finding> probe_all();

}  // namespace stagetwo::cli
