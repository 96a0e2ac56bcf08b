// The core's structs as JS objects, property by property as src/native.ts declares them. Callers:
// store_calls.cc, volume_object.cc.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "addon/plumbing.h"
#include "nbd/connection.h"
#include "volume/volume.h"

namespace csnap::addon {

Napi::Object store_summary(Napi::Env env, const format::Superblock& superblock);
// Null: nobody has it.
Napi::Value hold_or_null(Napi::Env env, const HoldInfo& hold);
Napi::Object volume_info(Napi::Env env, const VolumeInfo& info);
Napi::Object snapshot_object(Napi::Env env, const SnapshotInfo& info);
Napi::Array snapshot_list(Napi::Env env, const std::vector<SnapshotInfo>& infos);
Napi::Object check_report(Napi::Env env, const CheckReport& report);
Napi::Object volume_event(Napi::Env env, const VolumeEvent& event);
// `kind`: "connection-closed" or "request-failed".
Napi::Object connection_event(Napi::Env env, const char* kind, uint64_t connection,
                              const std::string& message);
Napi::Array connection_list(Napi::Env env, const std::vector<nbd::ConnectionStats>& all);

const char* on_full_name(format::OnFull on_full);
// False for an unknown name.
bool parse_on_full(const std::string& name, format::OnFull& out);
bool parse_durability(const std::string& name, format::DurabilityMode& out);
// Properties of a JS object as pairs; not strings: TypeError is pending.
std::vector<std::pair<std::string, std::string>> label_pairs(const Napi::Value& labels);

}  // namespace csnap::addon
