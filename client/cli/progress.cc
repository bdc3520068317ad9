#include "client/cli/progress.h"

#include <algorithm>
#include <cmath>

#include "client/cli/format.h"
#include "client/cli/names.h"
#include "client/cli/text.h"
#include "common/enum_word.h"

namespace quantry::cli {
namespace {

constexpr int kLeastBar = 10;
constexpr int kWidestBar = 30;
constexpr int kBesideBar = 80;      // id, stage, blocks, percent, eta and losses
constexpr size_t kStageWidth = 11;  // "calibrating"

double EtaSeconds(const v1::JobProgress& progress) {
  return static_cast<double>(progress.eta().seconds()) + 1e-9 * progress.eta().nanos();
}

std::string Bar(double ratio, int width) {
  const double share = std::isfinite(ratio) ? std::clamp(ratio, 0.0, 1.0) : 0.0;
  const auto filled = static_cast<size_t>(share * width);
  std::string bar(filled, '=');
  if (filled < static_cast<size_t>(width)) bar += '>';
  bar.resize(static_cast<size_t>(width), ' ');
  return "[" + bar + "]";
}

std::string Losses(const v1::JobProgress& progress) {
  if (progress.loss_before() == 0 && progress.loss_after() == 0) return "";
  return Cat("loss ", Number(progress.loss_before(), 3), " -> ", Number(progress.loss_after(), 3));
}

// Adds "  part" when it still fits.
void Append(const std::string& part, int columns, std::string& line) {
  if (part.empty()) return;
  if (line.size() + 2 + part.size() < static_cast<size_t>(columns)) line += "  " + part;
}

std::string RunningLine(const v1::QuantizationJob& job, int columns) {
  const v1::JobProgress& progress = job.progress();
  std::string line(ShortId(job.name()));
  std::string stage =
      progress.stage() == v1::STAGE_UNSPECIFIED ? "running" : StageWord(progress.stage());
  stage.resize(std::max(stage.size(), kStageWidth), ' ');
  Append(stage, columns, line);
  if (progress.blocks_total() > 0) {
    Append(Cat("block ", progress.blocks_done(), "/", progress.blocks_total()), columns, line);
  }
  const std::string eta = progress.has_eta() ? "eta " + Seconds(EtaSeconds(progress)) : "";
  // By the terminal's width alone, so that the bar does not breathe.
  Append(Bar(progress.ratio(), std::clamp(columns - kBesideBar, kLeastBar, kWidestBar)), columns,
         line);
  Append(Percent(progress.ratio()), columns, line);
  Append(eta, columns, line);
  Append(Losses(progress), columns, line);
  return line;
}

}  // namespace

bool IsEnded(v1::JobState state) {
  return state == v1::JOB_STATE_SUCCEEDED || state == v1::JOB_STATE_FAILED ||
         state == v1::JOB_STATE_CANCELLED;
}

bool IsMeasured(const v1::BlockReport& block) { return block.loss_final() > 0; }

std::string LossText(const v1::BlockReport& block) {
  if (!IsMeasured(block)) return "";
  return Cat(", loss ", Number(block.loss_rtn(), 3), " -> ", Number(block.loss_final(), 3));
}

std::string StateWord(v1::JobState state) {
  return EnumWord(v1::JobState_Name(state), "JOB_STATE_");
}
std::string StageWord(v1::Stage stage) { return EnumWord(v1::Stage_Name(stage), "STAGE_"); }

std::string ProgressLine(const v1::QuantizationJob& job, int columns) {
  if (job.state() == v1::JOB_STATE_RUNNING) return RunningLine(job, columns);
  std::string line(ShortId(job.name()));
  Append(StateWord(job.state()), columns, line);
  if (!job.state_reason().empty()) Append("(" + Plain(job.state_reason()) + ")", columns, line);
  return line;
}

std::vector<std::string> JobView::Apply(const v1::WatchQuantizationJobResponse& message) {
  switch (message.kind_case()) {
    case v1::WatchQuantizationJobResponse::kSnapshot:
      return ApplySnapshot(message.snapshot());
    case v1::WatchQuantizationJobResponse::kEvent:
      return ApplyEvent(message.event());
    case v1::WatchQuantizationJobResponse::kProgress:
      *job_.mutable_progress() = message.progress();
      return {};
    case v1::WatchQuantizationJobResponse::kEnd:
      ended_ = true;
      job_ = message.end().job();
      return {};
    default:
      return {};
  }
}

std::vector<std::string> JobView::ApplySnapshot(const v1::QuantizationJob& job) {
  job_ = job;
  // On a resumed stream the events up to the snapshot still follow.
  if (last_sequence_ == 0) last_sequence_ = job.last_sequence();
  if (told_) return {};
  told_ = true;
  std::string line = StateWord(job.state());
  if (job.state() == v1::JOB_STATE_RUNNING && job.progress().blocks_total() > 0) {
    line += Cat(", ", StageWord(job.progress().stage()), ", block ", job.progress().blocks_done(),
                "/", job.progress().blocks_total());
  }
  if (job.state() == v1::JOB_STATE_QUEUED && !job.state_reason().empty()) {
    line += Cat(", ", Plain(job.state_reason()));
  }
  return {line};
}

std::vector<std::string> JobView::ApplyState(const v1::StateChanged& change) {
  job_.set_state(change.to());
  job_.set_state_reason(change.reason());
  if (change.has_error()) *job_.mutable_error() = change.error();
  std::string line = StateWord(change.to());
  if (!change.reason().empty()) line += Cat(": ", Plain(change.reason()));
  return {line};
}

std::string JobView::BlockLine(const v1::BlockReport& block) const {
  // Its number counts from 0, as in reports and in the names of tensors.
  std::string line = Cat("block ", block.index(), " done in ", Seconds(block.seconds()));
  if (job_.progress().blocks_total() > 0) {
    line += Cat(" (", block.index() + 1, " of ", job_.progress().blocks_total(), ")");
  }
  line += LossText(block);
  if (job_.progress().has_eta()) line += Cat(", eta ", Seconds(EtaSeconds(job_.progress())));
  return line;
}

std::vector<std::string> JobView::ApplyEvent(const v1::JobEvent& event) {
  // Progress of the moment carries no sequence of its own.
  if (event.sequence() > 0) {
    if (event.sequence() <= last_sequence_) return {};
    last_sequence_ = event.sequence();
  }
  v1::JobProgress* progress = job_.mutable_progress();
  switch (event.kind_case()) {
    case v1::JobEvent::kStateChanged:
      return ApplyState(event.state_changed());
    case v1::JobEvent::kStageChanged:
      progress->set_stage(event.stage_changed().stage());
      return {StageWord(event.stage_changed().stage())};
    case v1::JobEvent::kProgress:
      *progress = event.progress();
      return {};
    case v1::JobEvent::kBlockDone:
      progress->set_blocks_done(std::max(progress->blocks_done(), event.block_done().index() + 1));
      progress->set_loss_before(event.block_done().loss_rtn());
      progress->set_loss_after(event.block_done().loss_final());
      return {BlockLine(event.block_done())};
    case v1::JobEvent::kLog:
      // Why a queued job waits comes as a log line of the server.
      if (job_.state() == v1::JOB_STATE_QUEUED && event.epoch() == 0) {
        const bool waiting = event.log().level() == v1::LogLine::LEVEL_WARNING;
        job_.set_state_reason(waiting ? event.log().message() : "");
      }
      if (event.log().level() == v1::LogLine::LEVEL_INFO) return {};
      return {Cat(EnumWord(v1::LogLine::Level_Name(event.log().level()), "LEVEL_"), ": ",
                  Plain(event.log().message()))};
    default:
      return {};
  }
}

}  // namespace quantry::cli
