// Checkpoints of both stores.
#pragma once

#include "google/protobuf/util/message_differencer.h"
#include "quantry/v1/worker_service.pb.h"
#include "server/jobs/sql_rows.h"

namespace quantry::server::sql {

// This attempt has committed it, or a later one: a call that was under way for long, whose repeat
// came first, must not bring back what the worker has removed since.
template <class Context, class Row>
bool IsSuperseded(const Context& context, const Row& row, const v1::CheckpointRef& checkpoint) {
  auto rows =
      context.db.Query("SELECT epoch, checkpoint FROM job_checkpoints WHERE pk = $1", row.pk);
  if (!rows.Next() || rows.Int(0) != row.epoch) return false;
  v1::CheckpointRef stored;
  rows.Parse(1, &stored);
  if (checkpoint.sequence() > 0) return checkpoint.sequence() <= stored.sequence();
  return checkpoint.blocks_done() < stored.blocks_done() ||
         google::protobuf::util::MessageDifferencer::Equals(stored, checkpoint);
}

}  // namespace quantry::server::sql
