// SPDX-License-Identifier: Apache-2.0
#include "cli/doctor.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/engine.h"
#include "cli/probe_engine.h"
#include "cli/probes.h"

namespace stagetwo::cli {
namespace {

const char* word(Verdict verdict) {
  switch (verdict) {
    case Verdict::kYes:
      return "yes";
    case Verdict::kLimited:
      return "limited";
    case Verdict::kNo:
      return "no";
  }
  return "";
}

Finding probe_engine() {
  Finding f = required_finding("engine");
  f.detail = find_engine();
  f.verdict = f.detail.empty() ? Verdict::kNo : Verdict::kYes;
  if (f.detail.empty()) {
    f.detail = fmt::format("{} was not found beside this tool", kEngineName);
    f.advice = "build the target stagetwo_preload, or install the whole package";
  }
  return f;
}

void print_text(const std::vector<Finding>& findings, bool works) {
  for (const Finding& f : findings) {
    fmt::print("{:<14} {:<8} {}\n", f.name, word(f.verdict), f.detail);
    for (const std::string& item : f.items) fmt::print("{:<23} - {}\n", "", item);
    if (!f.mechanism.empty()) fmt::print("{:<23} uses: {}\n", "", f.mechanism);
    if (!f.advice.empty()) fmt::print("{:<23} better: {}\n", "", f.advice);
  }
  fmt::print("{}\n", works ? "stagetwo can run programs here."
                           : "stagetwo cannot run programs here: see the lines with 'no' above.");
}

void print_json(const std::vector<Finding>& findings, bool works) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Finding& f : findings) {
    list.push_back({{"name", f.name},
                    {"verdict", word(f.verdict)},
                    {"detail", f.detail},
                    {"mechanism", f.mechanism},
                    {"advice", f.advice},
                    {"required", f.required}});
    if (!f.items.empty()) list.back()["items"] = f.items;
  }
  const nlohmann::ordered_json report = {
      {"version", STAGETWO_VERSION}, {"works", works}, {"findings", list}};
  fmt::print("{}\n", report.dump(2));
}

}  // namespace

int doctor(const DoctorOptions& options) {
  std::vector<Finding> findings = {probe_engine()};
  for (Finding& f : probe_all()) findings.push_back(std::move(f));
  findings.push_back(probe_libc(find_engine()));
  findings.push_back(describe_unseen(findings));
  const bool works = std::none_of(findings.begin(), findings.end(), [](const Finding& f) {
    return f.required && f.verdict == Verdict::kNo;
  });
  if (options.json) {
    print_json(findings, works);
  } else {
    print_text(findings, works);
  }
  return works ? 0 : 1;
}

}  // namespace stagetwo::cli
