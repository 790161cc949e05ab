// SPDX-License-Identifier: Apache-2.0
#include "shim/memory_limit.h"

#include <fcntl.h>

#include <string_view>

#include "base/size_text.h"
#include "base/sys.h"
#include "base/text.h"
#include "host/session.h"
#include "mem/swap_file.h"
#include "reclaim/reclaim.h"
#include "shim/options.h"
#include "sync/passing_number.h"

namespace stagetwo::shim {
namespace {

constexpr u64 kDefaultInterval = 1'000'000'000;
constexpr size_t kLongestPath = 4096;

// The option's value as `parse` reads it, or `otherwise`.
template <typename Parse>
u64 value_of(std::string_view name, u64 otherwise, Parse&& parse) {
  const std::string_view text = option(name);
  if (text.empty()) return otherwise;
  if (const auto value = parse(text)) return *value;
  warn("STAGETWO_OPTIONS: no size or time, ignored: ", name);
  return otherwise;
}

void say(const char* line) {
  warn(line, {});
}

int open_swap() {
  const std::string_view path = option("swap");
  if (path.empty()) return -1;
  const FixedString<kLongestPath> text(path);
  const auto made = mem::SwapFile::create(text.c_str());
  if (made) return *made;
  FixedString<128> line;
  line.append("the swap file cannot be made (errno ")
      .append_int(to_int(made.error()))
      .append("): ");
  warn(line.view(), path);
  return -1;
}

// The file is made anew by its first line; others are put behind.
void append_to(std::string_view path, std::string_view text, int flags) {
  const sync::PassingNumber passing;
  const FixedString<kLongestPath> name(path);
  const auto fd = sys::openat(AT_FDCWD, name.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0644);
  if (!fd) return;
  static_cast<void>(sys::write(*fd, text.data(), text.size()));
  static_cast<void>(sys::close(*fd));
}

void append_mib(TextWriter& to, u64 bytes) {
  to.append_int(bytes >> 20).append_char('.').append_int((bytes >> 10 & 1023) * 10 / 1024);
  to.append(" MiB");
}

void on_sample(const reclaim::Sample& sample) {
  FixedString<256> line;
  line.append("working set ");
  append_mib(line, sample.working_set);
  line.append(", in memory ");
  append_mib(line, sample.resident);
  line.append(", compressed ");
  append_mib(line, sample.compressed);
  line.append(", on disk ");
  append_mib(line, sample.on_disk);
  warn(line.view(), {});
  if (option("wss-file").empty()) return;
  FixedString<256> json;
  json.append("{\"at_ns\": ").append_int(sample.at_ns);
  json.append(", \"working_set\": ").append_int(sample.working_set);
  json.append(", \"resident\": ").append_int(sample.resident);
  json.append(", \"compressed\": ").append_int(sample.compressed);
  json.append(", \"on_disk\": ").append_int(sample.on_disk).append("}\n");
  append_to(option("wss-file"), json.view(), O_APPEND);
}

void append_json(TextWriter& to, const reclaim::Statistics& now) {
  to.append("{");
  for (const reclaim::Figure& figure : reclaim::kFigures) {
    const u64 value = now.*figure.value;
    to.append("\"").append(figure.name).append("\": ");
    if (value == reclaim::kNoLimit) {
      to.append("null, ");
    } else {
      to.append_int(value).append(", ");
    }
  }
  to.append("\"ages\": [");
  for (unsigned i = 0; i < reclaim::kAgeBuckets; ++i) {
    to.append(i == 0 ? "" : ", ").append_int(now.ages[i]);
  }
  to.append("]}\n");
}

void append_words(TextWriter& to, const reclaim::Statistics& now) {
  to.append("guest memory:");
  for (const reclaim::Figure& figure : reclaim::kFigures) {
    const u64 value = now.*figure.value;
    if (value == 0 || value == reclaim::kNoLimit) continue;
    to.append_char(' ').append(figure.name).append_char(' ').append_int(value).append_char(',');
  }
  to.append(" ages");
  for (const u64 pages : now.ages) to.append_char(' ').append_int(pages);
}

// What the session says now, or what this process was told.
u64 limit_of(std::string_view name, unsigned word) {
  const u64 of_session = host::session_word(word).load(sync::kRelaxed);
  if (of_session != 0) return of_session;
  return option(name) == "none" ? reclaim::kNoLimit : value_of(name, reclaim::kNoLimit, parse_size);
}

}  // namespace

bool limited_from_the_start() {
  read_options();
  return !option("memory-limit").empty() || !option("vm-limit").empty();
}

namespace {

// Pre: nothing of it has been started.
Result<void> start_engine(u64 interval_ns) {
  reclaim::Settings settings;
  settings.memory_limit = limit_of("memory-limit", host::kLimitWord);
  settings.guest_limit = limit_of("vm-limit", host::kGuestLimitWord);
  settings.interval_ns = interval_ns;
  settings.swap_fd = open_swap();
  settings.swap_limit = value_of("swap-size", reclaim::kNoLimit, parse_size);
  settings.compressed_limit = value_of("compressed", reclaim::kNoLimit, parse_size);
  settings.say = say;
  if (settings.interval_ns != 0) settings.on_sample = on_sample;
  if (!option("wss-file").empty()) append_to(option("wss-file"), {}, O_TRUNC);
  const auto started = reclaim::start(settings);
  if (!started) {
    const auto pid = static_cast<u64>(sys::getpid());
    host::session_word(host::kNotLimitedWord).store(pid, sync::kRelaxed);
  }
  return started;
}

void say_not_limited(Errno why) {
  FixedString<160> line;
  line.append("guest memory is not limited: ");
  const int error = to_int(why);
  const bool denied = error == EPERM || error == ENOSYS;
  line.append(denied ? "userfaultfd is denied (see 'stagetwo doctor')" : "it cannot be started");
  line.append(", errno ").append_int(error);
  warn(line.view(), {});
}

// Nobody asked for a limit yet, so nobody hears that there can be none: `stagetwo limit` says so.
void start_for_later() {
  static_cast<void>(start_engine(0));
}

}  // namespace

void start_memory_limit() {
  const u64 interval = option("wss").empty()  ? 0
                       : option("wss") == "1" ? kDefaultInterval
                                              : value_of("wss", kDefaultInterval, parse_interval);
  const bool wanted = !option("memory-limit").empty() || interval != 0 ||
                      limit_of("memory-limit", host::kLimitWord) != reclaim::kNoLimit ||
                      !option("swap").empty();
  if (!wanted) {
    if (host::session_is_named()) reclaim::set_before_first_guest(start_for_later);
    return;
  }
  const auto started = start_engine(interval);
  if (!started) say_not_limited(started.error());
}

void say_statistics() {
  const std::string_view where = option("stats");
  if (where.empty()) return;
  const reclaim::Statistics now = reclaim::statistics();
  FixedString<2048> text;
  if (where == "1") {
    append_words(text, now);
    warn(text.view(), {});
  } else {
    append_json(text, now);
    append_to(where, text.view(), O_TRUNC);
  }
}

}  // namespace stagetwo::shim
