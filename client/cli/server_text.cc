// Texts about the server, its methods, workers and events: the rest of
// job_text.h.
#include <algorithm>
#include <map>

#include "client/cli/errors.h"
#include "client/cli/format.h"
#include "client/cli/job_text.h"
#include "client/cli/names.h"
#include "client/cli/progress.h"
#include "client/cli/text.h"
#include "common/enum_word.h"

namespace quantry::cli {
namespace {

template <typename List>
std::string Joined(const List& list) {
  return Plain(CommaSeparated(list));
}

std::string GpuText(const v1::WorkerInfo& worker) {
  if (worker.gpus().empty()) return "none";
  return Cat(worker.gpus_size(), "x ", Plain(worker.gpus(0).model()), " ",
             Bytes(worker.gpus(0).memory_bytes()));
}

// "2 bits, groups of 128"; "any" when it fixes nothing.
std::string RecipeText(const v1::RecipeDescription& recipe) {
  std::string text;
  const auto add = [&text](const std::string& part) { text += (text.empty() ? "" : ", ") + part; };
  if (recipe.bits() != 0) add(Cat(recipe.bits(), " bits"));
  if (recipe.group_size() > 0) add(Cat("groups of ", recipe.group_size()));
  if (recipe.group_size() < 0) add("per channel");
  if (recipe.activation_bits() != 0) add(Cat("activations of ", recipe.activation_bits(), " bits"));
  return text.empty() ? "any" : text;
}

std::string WorkerState(const v1::WorkerStatus& status) {
  if (!status.live()) return "gone";
  if (status.draining()) return "draining";
  if (!status.refusal().empty()) return "takes no jobs";
  return status.jobs().empty() ? "idle" : "busy";
}

std::string BlockText(const v1::BlockReport& block) {
  return Cat("block ", block.index(), " done in ", Seconds(block.seconds()), LossText(block));
}

std::string StateText(const v1::StateChanged& change) {
  std::string text = Cat(StateWord(change.from()), " -> ", StateWord(change.to()));
  if (change.from() == v1::JOB_STATE_UNSPECIFIED) text = StateWord(change.to());
  if (!change.reason().empty()) text += Cat("  (", Plain(change.reason()), ")");
  if (change.has_error()) {
    const ErrorReport report = Describe(change.error());
    text += Cat("  ", report.reason, ": ", Plain(report.message));
  }
  return text;
}

std::string EventBody(const v1::JobEvent& event) {
  switch (event.kind_case()) {
    case v1::JobEvent::kStateChanged:
      return StateText(event.state_changed());
    case v1::JobEvent::kStageChanged:
      return StageWord(event.stage_changed().stage());
    case v1::JobEvent::kProgress:
      return Cat("progress ", Percent(event.progress().ratio()));
    case v1::JobEvent::kBlockDone:
      return BlockText(event.block_done());
    case v1::JobEvent::kLog:
      return Cat(EnumWord(v1::LogLine::Level_Name(event.log().level()), "LEVEL_"), ": ",
                 Plain(event.log().message()));
    case v1::JobEvent::kCheckpoint:
      return Cat("checkpoint after block ", event.checkpoint().blocks_done(), ", ",
                 Bytes(event.checkpoint().bytes()));
    default:
      return "event of a kind this version does not know";
  }
}

// A server starts before its engine has answered, and serves without one.
std::string OfTheEngine(const std::string& names) {
  return names.empty() ? "not known: the engine has not answered" : names;
}

}  // namespace

std::string EventText(const v1::JobEvent& event) {
  std::string number = Cat(event.sequence());
  number.insert(0, number.size() < 5 ? 5 - number.size() : 0, ' ');
  const std::string attempt = event.epoch() > 0 ? Cat("attempt ", event.epoch()) : "         ";
  return Cat(number, "  ", Rfc3339(event.time()), "  ", attempt, "  ", EventBody(event));
}

std::string MethodsText(const v1::ListMethodsResponse& methods) {
  std::string text;
  for (const v1::MethodDescription& method : methods.methods()) {
    text +=
        Cat(text.empty() ? "" : "\n", Plain(method.name()), "  ", Plain(method.summary()), "\n");
    text += Fields({{"bits", Joined(method.bits())},
                    {"calibration", method.needs_calibration() ? "needed" : "not needed"},
                    {"formats", Joined(method.output_formats())},
                    {"reference", Plain(method.reference())}});
    std::vector<std::pair<std::string, std::string>> recipes;
    for (const v1::RecipeDescription& recipe : method.recipes()) {
      recipes.emplace_back("  " + Plain(recipe.name()), RecipeText(recipe));
    }
    if (!recipes.empty()) text += "  recipes (--recipe) and the grids they fix\n" + Fields(recipes);
    std::vector<std::pair<std::string, std::string>> parameters;
    for (const v1::MethodParameter& p : method.parameters()) {
      parameters.emplace_back("  " + Plain(p.name()),
                              Cat(Plain(p.type()), ", default ", Plain(p.default_value()), "  ",
                                  Plain(p.description())));
    }
    if (!parameters.empty()) text += "  parameters (--method-config)\n" + Fields(parameters);
  }
  return text;
}

std::string ServerInfoText(const v1::ServerInfo& info, const std::string& address) {
  std::vector<std::pair<std::string, std::string>> fields = {
      {"address", address},
      {"version",
       Cat(Plain(info.version()), info.commit().empty() ? "" : " ", Plain(info.commit()))},
      {"started", Rfc3339(info.start_time())},
      {"mode", info.embedded() ? "embedded: runs its own worker" : "workers elsewhere"},
      {"model types", OfTheEngine(Joined(info.architectures()))},
      {"formats", OfTheEngine(Joined(info.output_formats()))},
      {"local roots",
       info.local_roots().empty() ? "none: --model-path is refused" : Joined(info.local_roots())},
      {"largest file", Bytes(info.max_blob_bytes())}};
  if (!info.unimplemented().empty()) {
    fields.emplace_back("not offered", Joined(info.unimplemented()));
  }
  return "quantryd\n" + Fields(fields);
}

std::string WorkerTable(const v1::ListWorkersResponse& workers, WallTime now) {
  if (workers.workers().empty()) return "no worker has registered\n";
  std::vector<std::vector<std::string>> rows = {
      {"WORKER", "STATE", "SEEN", "JOBS", "CORES", "MEMORY", "GPU", "METHODS", "VERSION"}};
  for (const v1::WorkerStatus& status : workers.workers()) {
    const v1::WorkerInfo& worker = status.worker();
    rows.push_back({Plain(worker.worker_id()), WorkerState(status),
                    Ago(status.last_seen_time(), now), Cat(status.jobs_size(), "/", worker.slots()),
                    Cat(worker.cores()), Bytes(worker.host_memory_bytes()), GpuText(worker),
                    Joined(worker.methods()), Plain(worker.version())});
  }
  std::string text = Table(rows);
  for (const v1::WorkerStatus& status : workers.workers()) {
    if (!status.live() || status.refusal().empty()) continue;
    text +=
        Cat(Plain(status.worker().worker_id()), " takes no jobs: ", Plain(status.refusal()), "\n");
  }
  return text;
}

std::string QueueText(const v1::QueueStats& stats, WallTime now) {
  std::vector<std::pair<std::string, std::string>> fields = {
      {"waiting", Cat(stats.depth())},
      {"oldest waits", stats.has_oldest_queued_time() ? Age(stats.oldest_queued_time(), now) : "-"},
      {"workers", Cat(stats.live_workers(), " live")},
      {"slots", Cat(stats.busy_slots(), " busy of ", stats.total_slots())}};
  if (stats.has_pause()) {
    const std::string age = Age(stats.pause().start_time(), now);
    fields.emplace_back("paused", Cat(age == "now" ? "just " : "for ", age,
                                      stats.pause().reason().empty() ? "" : ": ",
                                      Plain(stats.pause().reason()), "; quantry queue resume"));
  }
  for (const auto& [state, count] :
       std::map<std::string, int64_t>(stats.jobs().begin(), stats.jobs().end())) {
    fields.emplace_back("jobs " + EnumWord(state, "JOB_STATE_"), Cat(count));
  }
  return "queue\n" + Fields(fields);
}

}  // namespace quantry::cli
