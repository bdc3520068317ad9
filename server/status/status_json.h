#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "common/clock.h"
#include "server/jobs/job_store.h"
#include "server/status/block_losses.h"

// Store values as the JSON of /status.json and /jobs/TENANT/ID.json
// (docs/operations/status-page.md). Times are RFC 3339, durations seconds,
// bytes numbers; keys without a value are left out. Pure.
namespace quantry::server {

using Json = nlohmann::ordered_json;

std::string TimeText(Time time);

Json QueueJson(const StoreStats& stats);
Json WorkerJson(const Worker& worker);
// One line of a list. `losses` of a job that runs; empty otherwise.
Json JobRowJson(const Job& job, const BlockLosses& losses);
// All of a page: the row, blocks, outputs, stages, error.
Json JobPageJson(const Job& job, const BlockLosses& losses);
Json EventJson(const v1::JobEvent& event);

// One line; bytes that are no UTF-8 are replaced.
std::string JsonText(const Json& json);

}  // namespace quantry::server
