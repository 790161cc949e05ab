// SPDX-License-Identifier: Apache-2.0
#include "cli/mdev.h"

#include <fmt/core.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <optional>

#include "cli/session.h"
#include "host/session.h"
#include "vfio/bus.h"

namespace stagetwo::cli {
namespace {

std::string text_of(const vfio::Uuid& uuid) {
  FixedString<vfio::Uuid::kTextBytes + 1> text;
  uuid.append(text);
  return std::string(text.view());
}

std::string folder_of(const vfio::TypeRef& type) {
  if (!type) return "(of another program)";
  FixedString<64> text;
  vfio::append_folder(type, text);
  return std::string(text.view());
}

int failed(const std::string& what, int error) {
  fmt::print(stderr, "stagetwo: {}: {}\n", what, std::strerror(error));
  return kExitToolFailed;
}
int failed(const std::string& what, const char* why, const char* hint = nullptr) {
  fmt::print(stderr, "stagetwo: {}: {}\n", what, why);
  if (hint != nullptr) fmt::print(stderr, "Hint: {}\n", hint);
  return kExitToolFailed;
}

constexpr const char* kNoUuid = "not a UUID";
constexpr const char* kUuidHint = "36 characters, as in 83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";

std::optional<vfio::Uuid> parse(const std::string& text) {
  const auto uuid = vfio::parse_uuid(text);
  if (!uuid || text.size() != vfio::Uuid::kTextBytes) return std::nullopt;
  return *uuid;
}

int print_types() {
  for (unsigned i = 0; const vfio::Parent* parent = vfio::parent_at(i); ++i) {
    if (parent->function != nullptr) continue;
    for (u32 type = 0; type < parent->types.size(); ++type) {
      const vfio::TypeRef ref{parent, type};
      fmt::print("{:<16} {:<28} {} left\n", folder_of(ref), ref.get().pretty,
                 vfio::available_instances(ref));
    }
  }
  return 0;
}

int print_devices() {
  for (u32 from = 0;;) {
    const auto device = vfio::device_from(from);
    if (!device) break;
    FixedString<vfio::Uuid::kTextBytes + 1> name;
    vfio::append_name(*device, name);
    fmt::print("{:<36} {:<16} group {}{}\n", name.view(), folder_of(device->type), device->group(),
               device->removing ? " (being removed)" : "");
    from = device->slot + 1;
  }
  return 0;
}

int create(const MdevOptions& options) {
  const vfio::TypeRef type = vfio::find_type(options.type);
  if (!type) {
    fmt::print(stderr, "stagetwo: there is no type {}\nHint: see 'stagetwo mdev types'\n",
               options.type);
    return kExitToolFailed;
  }
  std::string name = options.uuid;
  if (name.empty()) std::getline(std::ifstream("/proc/sys/kernel/random/uuid"), name);
  const auto uuid = parse(name);
  if (!uuid) return failed(name, kNoUuid, kUuidHint);
  if (const auto done = vfio::create_device(type, *uuid); !done) {
    const int error = to_int(done.error());
    if (error == EEXIST) return failed(name, "there is such a device already");
    if (error == ENOSPC || error == EUSERS) {
      return failed(options.type, "no instance is left",
                    "'stagetwo mdev types' says how many there are, 'mdev list' who has them");
    }
    return failed(name, error);
  }
  fmt::print("{}\n", text_of(*uuid));
  return 0;
}

int remove(const MdevOptions& options) {
  const auto uuid = parse(options.uuid);
  if (!uuid) return failed(options.uuid, kNoUuid, kUuidHint);
  auto removal = vfio::begin_removal(*uuid);
  if (!removal) {
    const int error = to_int(removal.error());
    if (error == ENODEV) return failed(options.uuid, "there is no such device");
    if (error == EAGAIN) return failed(options.uuid, "somebody removes it already");
    return failed(options.uuid, error);
  }
  vfio::finish_removal(std::move(*removal));
  return 0;
}

}  // namespace

int mdev(const MdevOptions& options) {
  const bool named = !options.session.empty();
  const std::string directory =
      named ? Session::directory_of(options.session) : Session::directory_around();
  if (::access(directory.c_str(), F_OK) != 0) {
    fmt::print(stderr, "stagetwo: no program of session {} runs: {}: {}\n",
               named ? options.session : "around this", directory, std::strerror(errno));
    return kExitToolFailed;
  }
  auto ready = host::join_session(directory);
  if (ready) ready = vfio::start_bus();
  if (!ready) return failed(directory, to_int(ready.error()));
  switch (options.action) {
    case MdevAction::kList:
      return print_devices();
    case MdevAction::kTypes:
      return print_types();
    case MdevAction::kCreate:
      return create(options);
    case MdevAction::kRemove:
      return remove(options);
  }
  return kExitToolFailed;
}

}  // namespace stagetwo::cli
