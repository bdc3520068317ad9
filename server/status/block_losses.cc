#include "server/status/block_losses.h"

namespace quantry::server {
namespace {

constexpr int kBatch = 500;
constexpr int kBatchesPerLook = 10;

}  // namespace

const BlockLosses& LossTrails::Look(const Job& job) {
  Trail& trail = trails_[job.uid];
  for (int i = 0; i < kBatchesPerLook && trail.sequence < job.last_sequence; ++i) {
    const auto batch = store_->Events(job.key, trail.sequence, kBatch);
    if (!batch.ok() || batch->events.empty()) break;
    for (const v1::JobEvent& event : batch->events) {
      trail.sequence = event.sequence();
      if (!event.has_block_done()) continue;
      const v1::BlockReport& block = event.block_done();
      trail.losses[block.index()] = {block.loss_rtn(), block.loss_final()};
    }
  }
  return trail.losses;
}

void LossTrails::KeepOnly(const std::set<std::string>& uids) {
  std::erase_if(trails_, [&](const auto& entry) { return uids.count(entry.first) == 0; });
}

}  // namespace quantry::server
