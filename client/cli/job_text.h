#pragma once

#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "quantry/v1/admin_service.pb.h"
#include "quantry/v1/artifact.pb.h"
#include "quantry/v1/job.pb.h"
#include "quantry/v1/quantization_service.pb.h"

// What --output text prints. Pure; every server string is made harmless to a
// terminal.
namespace quantry::cli {

using WallTime = std::chrono::system_clock::time_point;

// One job, as much as is known about it, several lines.
std::string JobText(const v1::QuantizationJob& job, WallTime now);
// What a finished job has to show, as names and values.
std::vector<std::pair<std::string, std::string>> ResultFields(const v1::JobResult& result);
// One line a job under a head.
std::string JobTable(const std::vector<v1::QuantizationJob>& jobs, WallTime now);
// "12  2026-01-31T12:00:00Z  block 2 done ...", without a line end.
std::string EventText(const v1::JobEvent& event);
std::string QuoteText(const v1::Quote& quote, const v1::JobSpec& spec);
std::string MethodsText(const v1::ListMethodsResponse& methods);
std::string ServerInfoText(const v1::ServerInfo& info, const std::string& address);
std::string WorkerTable(const v1::ListWorkersResponse& workers, WallTime now);
std::string QueueText(const v1::QueueStats& stats, WallTime now);

}  // namespace quantry::cli
