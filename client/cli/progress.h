#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "quantry/v1/artifact.pb.h"
#include "quantry/v1/job.pb.h"
#include "quantry/v1/quantization_service.pb.h"

namespace quantry::cli {

// What a watcher knows of one job, fed by the stream's messages. Pure: no time,
// no terminal. Repeated events change nothing, so a stream may be resumed from
// any earlier point.
class JobView {
 public:
  // Takes one message in; returns the lines worth telling ("block 2/5 ...").
  std::vector<std::string> Apply(const v1::WatchQuantizationJobResponse& message);

  const v1::QuantizationJob& job() const { return job_; }
  // Resume point: the last sequence seen.
  int64_t last_sequence() const { return last_sequence_; }
  // The server said that no event follows.
  bool ended() const { return ended_; }
  // History before the resume point is gone: start from a fresh snapshot.
  void Restart() { last_sequence_ = 0; }

 private:
  std::vector<std::string> ApplySnapshot(const v1::QuantizationJob& job);
  std::vector<std::string> ApplyEvent(const v1::JobEvent& event);
  std::vector<std::string> ApplyState(const v1::StateChanged& change);
  std::string BlockLine(const v1::BlockReport& block) const;

  v1::QuantizationJob job_;
  int64_t last_sequence_ = 0;
  bool ended_ = false;
  bool told_ = false;  // the first snapshot has been described
};

// "my-job  quantizing  block 2/5  [======>      ]  42%  loss 0.0123 -> 0.0045
// eta 12 s", shortened to what `columns` allow.
std::string ProgressLine(const v1::QuantizationJob& job, int columns);

// Whether the block's losses were measured; without calibration they are not.
bool IsMeasured(const v1::BlockReport& block);
std::string LossText(const v1::BlockReport& block);  // ", loss 0.02 -> 0.01"; "" when not measured

bool IsEnded(v1::JobState state);
std::string StateWord(v1::JobState state);  // "queued"
std::string StageWord(v1::Stage stage);     // "quantizing"

}  // namespace quantry::cli
