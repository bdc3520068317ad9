#include "server/status/status_json.h"

#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/errors.h"
#include "common/recipes.h"

namespace quantry::server {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

double InSeconds(const google::protobuf::Duration& d) {
  return static_cast<double>(d.seconds()) + 1e-9 * d.nanos();
}

std::string TimeText(const google::protobuf::Timestamp& time) {
  return quantry::server::TimeText(
      Time(std::chrono::seconds(time.seconds()) + std::chrono::microseconds(time.nanos() / 1000)));
}

// "QUANTIZING" of STAGE_QUANTIZING.
std::string Word(const std::string& name, std::string_view prefix) {
  return name.rfind(prefix, 0) == 0 ? name.substr(prefix.size()) : name;
}

std::string StageWord(v1::Stage stage) { return Word(v1::Stage_Name(stage), "STAGE_"); }

// The method's grid, where it has one: most messages of the oneof hold a field
// of that name.
const v1::WeightGrid* GridOf(const v1::Method& method) {
  const auto* oneof = v1::Method::descriptor()->oneof_decl(0);
  const FieldDescriptor* kind = method.GetReflection()->GetOneofFieldDescriptor(method, oneof);
  if (kind == nullptr) return nullptr;
  const FieldDescriptor* field = kind->message_type()->FindFieldByName("grid");
  if (field == nullptr || field->message_type() != v1::WeightGrid::descriptor()) return nullptr;
  const Message& chosen = method.GetReflection()->GetMessage(method, kind);
  return static_cast<const v1::WeightGrid*>(&chosen.GetReflection()->GetMessage(chosen, field));
}

// Beside the method's name, what tells its jobs apart: figures of other recipes
// and of restored models compare with none of its own.
void AddMethod(const v1::JobSpec& spec, Json& json) {
  const std::string recipe = RecipeName(spec.method());
  if (!recipe.empty()) json["recipe"] = recipe;
  if (const v1::WeightGrid* grid = GridOf(spec.method()); grid != nullptr && grid->bits() > 0) {
    json["grid"] = {{"bits", grid->bits()}, {"group_size", grid->group_size()}};
  }
  if (spec.has_preprocessing()) json["preprocessing"] = "lora";
}

Json ProgressJson(const v1::JobProgress& progress) {
  Json json = {
      {"stage", StageWord(progress.stage())},       {"blocks_done", progress.blocks_done()},
      {"blocks_total", progress.blocks_total()},    {"steps_done", progress.steps_done()},
      {"steps_total", progress.steps_total()},      {"ratio", progress.ratio()},
      {"peak_rss_bytes", progress.peak_rss_bytes()}};
  if (progress.has_eta()) json["eta_s"] = InSeconds(progress.eta());
  if (progress.device_memory_bytes() > 0) {
    json["device_memory_bytes"] = progress.device_memory_bytes();
  }
  return json;
}

Json LossesJson(const BlockLosses& losses) {
  Json list = Json::array();
  for (const auto& [index, loss] : losses) {
    list.push_back({{"index", index}, {"rtn", loss.rtn}, {"final", loss.final}});
  }
  return list;
}

Json ErrorJson(const google::rpc::Status& error) {
  return {{"reason", ReasonOf(FromRpcStatus(error))}, {"message", error.message()}};
}

Json QualityJson(const v1::Quality& quality) {
  const v1::Perplexity& perplexity = quality.perplexity();
  return {{"perplexity_dense", perplexity.dense()},
          {"perplexity_quantized", perplexity.quantized()},
          {"kl_divergence", quality.kl_divergence()},
          {"top1_agreement", quality.top1_agreement()},
          {"tokens", perplexity.tokens()}};
}

Json StagesJson(const v1::JobProgress& progress) {
  Json list = Json::array();
  for (const v1::StageTime& stage : progress.stage_times()) {
    Json row = {{"stage", StageWord(stage.stage())}};
    if (stage.has_start_time()) row["start"] = TimeText(stage.start_time());
    if (stage.has_end_time()) row["end"] = TimeText(stage.end_time());
    list.push_back(std::move(row));
  }
  return list;
}

void AddResult(const v1::JobResult& result, Json& json) {
  if (result.has_quality()) json["quality"] = QualityJson(result.quality());
  json["quality_gate_failed"] = result.quality_gate_failed();
  json["bits"] = {{"linears", result.bits().linears()},
                  {"file", result.bits().file()},
                  {"dense_bytes", result.bits().dense_bytes()}};
  Json outputs = Json::array();
  for (const v1::OutputSummary& output : result.outputs()) {
    outputs.push_back({{"format", output.format()},
                       {"bytes", output.bytes()},
                       {"bits_per_weight", output.bits_per_weight()},
                       {"compatibility", output.compatibility()}});
  }
  json["outputs"] = std::move(outputs);
  json["run_s"] = result.timing().run_s();
  json["peak_rss_bytes"] = result.peak_rss_bytes();
  json["artifact_uri"] = result.artifact_uri();
}

std::string EventText(const v1::JobEvent& event) {
  switch (event.kind_case()) {
    case v1::JobEvent::kStateChanged: {
      const v1::StateChanged& change = event.state_changed();
      return absl::StrCat(Word(v1::JobState_Name(change.to()), "JOB_STATE_"),
                          change.reason().empty() ? "" : ": ", change.reason());
    }
    case v1::JobEvent::kProgress:
      return absl::StrCat(event.progress().steps_done(), " of ", event.progress().steps_total(),
                          " steps");
    case v1::JobEvent::kBlockDone:
      return absl::StrCat("block ", event.block_done().index(), " done in ",
                          event.block_done().seconds(), " s");
    case v1::JobEvent::kLog:
      return event.log().message();
    case v1::JobEvent::kCheckpoint:
      return absl::StrCat("checkpoint of ", event.checkpoint().blocks_done(), " blocks, ",
                          event.checkpoint().bytes(), " bytes");
    case v1::JobEvent::kStageChanged:
      return StageWord(event.stage_changed().stage());
    case v1::JobEvent::KIND_NOT_SET:
      break;
  }
  return "";
}

std::string EventKind(const v1::JobEvent& event) {
  const auto* oneof = v1::JobEvent::descriptor()->oneof_decl(0);
  const FieldDescriptor* kind = event.GetReflection()->GetOneofFieldDescriptor(event, oneof);
  return kind == nullptr ? "" : kind->name();
}

}  // namespace

std::string TimeText(Time time) {
  return absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ",
                          absl::FromUnixMicros(time.time_since_epoch().count()),
                          absl::UTCTimeZone());
}

Json QueueJson(const StoreStats& stats) {
  Json states = Json::object();
  for (const auto& [state, count] : stats.jobs) states[std::string(JobStateName(state))] = count;
  Json json = {{"jobs", std::move(states)},          {"depth", stats.depth},
               {"delayed", stats.delayed},           {"held", stats.held},
               {"live_workers", stats.live_workers}, {"busy_slots", stats.busy_slots},
               {"total_slots", stats.total_slots}};
  if (stats.oldest_queued) json["oldest"] = TimeText(*stats.oldest_queued);
  if (stats.pause) {
    json["pause"] = {{"reason", stats.pause->reason}, {"since", TimeText(stats.pause->since)}};
  }
  return json;
}

Json WorkerJson(const Worker& worker) {
  Json gpus = Json::array();
  for (const v1::Gpu& gpu : worker.info.gpus()) {
    gpus.push_back({{"model", gpu.model()}, {"memory_bytes", gpu.memory_bytes()}});
  }
  Json jobs = Json::array();
  for (const JobKey& key : worker.jobs) jobs.push_back({{"tenant", key.tenant}, {"id", key.id}});
  return {{"id", worker.info.worker_id()},
          {"live", worker.live},
          {"draining", worker.draining},
          {"refusal", worker.refusal},
          {"last_seen", TimeText(worker.last_seen)},
          {"slots", worker.info.slots()},
          {"cores", worker.info.cores()},
          {"host_memory_bytes", worker.info.host_memory_bytes()},
          {"gpus", std::move(gpus)},
          {"engine_version", worker.info.engine_version()},
          {"jobs", std::move(jobs)}};
}

Json JobRowJson(const Job& job, const BlockLosses& losses) {
  Json json = {{"tenant", job.key.tenant},
               {"id", job.key.id},
               {"title", job.display_name},
               {"method", MethodName(job.spec.method())},
               {"state", std::string(JobStateName(job.state))},
               {"reason", job.state_reason},
               {"priority", job.priority},
               {"attempts", job.epoch},
               {"worker", job.worker},
               {"create_time", TimeText(job.create_time)}};
  AddMethod(job.spec, json);
  if (!job.labels.empty()) json["labels"] = job.labels;
  if (job.start_time) json["start_time"] = TimeText(*job.start_time);
  if (job.end_time) json["end_time"] = TimeText(*job.end_time);
  if (job.progress.steps_total() > 0 || IsLeased(job.state)) {
    json["progress"] = ProgressJson(job.progress);
  }
  if (!losses.empty()) json["blocks"] = LossesJson(losses);
  if (job.result && job.result->has_quality()) {
    json["quality"] = QualityJson(job.result->quality());
  }
  if (job.error.code() != 0) json["error"] = ErrorJson(job.error);
  return json;
}

Json JobPageJson(const Job& job, const BlockLosses& losses) {
  Json json = JobRowJson(job, losses);
  json["uid"] = job.uid;
  json["spec_digest"] = job.spec_digest;
  json["stages"] = StagesJson(job.progress);
  json["last_sequence"] = job.last_sequence;
  if (job.result) AddResult(*job.result, json);
  return json;
}

Json EventJson(const v1::JobEvent& event) {
  return {{"sequence", event.sequence()},
          {"time", TimeText(event.time())},
          {"attempt", event.epoch()},
          {"kind", EventKind(event)},
          {"text", EventText(event)}};
}

std::string JsonText(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace quantry::server
