#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "worker/engine/pipeline/block_file.h"
#include "worker/engine/pipeline/events.h"
#include "worker/engine/pipeline/stage_file.h"
#include "worker/engine/pipeline/streams.h"
#include "worker/engine/reconstruct/training_state.h"

namespace quantry::engine {

// The folder a job resumes from:
//   block-00000.safetensors ..   quantized blocks, one a block done
//   tuned-00000.safetensors ..   the same blocks tuned together, instead of them
//   streams-00003.safetensors    inputs of block 3, the newest only
//   stage-00003-007.safetensors  block 3 after 7 of its stages, the newest only
//   tuning-1-00040.safetensors   all blocks after 40 steps of tuning's first retry, newest only
//   state.json                   fingerprint, blocks done, size and sha256 of each file
// state.json is replaced last, after everything it names is durable, and old
// streams are removed after that: whatever moment the process dies, the folder
// holds one whole checkpoint. A folder that does not fit is never an error:
// nothing of it is used, and its files are removed; of a damaged stage or tuning
// that file alone. One process at a time.
class Checkpoints {
 public:
  // Creates `dir`. `fingerprint` stands for everything that decides the bytes
  // of a block; a checkpoint with another one is foreign.
  Checkpoints(std::string dir, std::string fingerprint);

  // Blocks done (0 = start over), and the streams after them when `streams` is
  // wanted and not all blocks are done. `warn` hears why a checkpoint is ignored.
  int Resume(int blocks_total, Streams* streams,
             const std::function<void(const std::string&)>& warn, const OnBytes& on_bytes = {});

  // Makes block `index` durable; then (Commit) the checkpoint after it.
  void StoreBlock(const QuantizedBlock& block, const BlockReport& report);
  // `streams`: inputs of the next block, nullptr when there are none. Returns
  // the files that make up the checkpoint.
  const std::vector<HashedFile>& Commit(int blocks_done, const Streams* streams);

  // Makes what block `blocks_done` has learned so far part of the checkpoint.
  const std::vector<HashedFile>& CommitStage(int blocks_done, const StageState& state);
  // The newest stage of that block; none, or one that cannot be read, is empty.
  std::optional<StageState> LoadStage(int block) const;

  // The same of all blocks while they are tuned together.
  const std::vector<HashedFile>& CommitTuning(int blocks_done, const TrainingState& state);
  std::optional<TrainingState> LoadTuning() const;

  // All blocks once more, tuned together: replaces every block at once.
  const std::vector<HashedFile>& CommitTuned(const std::vector<StoredBlock>& blocks);
  bool tuned() const;

  // Files of another folder's checkpoint that belong to every one from here on.
  void Carry(const std::vector<HashedFile>& files) { carried_ = files; }
  // The files that make up the checkpoint.
  const std::vector<HashedFile>& Files() { return List(); }

  StoredBlock Load(int index) const;
  // Removes every file of the checkpoint.
  void Clear();

 private:
  std::string PathOf(const std::string& name) const { return dir_ + "/" + name; }
  int Read(int blocks_total, Streams* streams, const std::function<void(const std::string&)>& warn,
           const OnBytes& on_bytes);
  std::string FaultOf(const HashedFile& wanted, const OnBytes& on_bytes) const;
  void WriteState(int blocks_done);
  const std::vector<HashedFile>& List();
  const std::vector<HashedFile>& CommitPassing(
      bool (*is)(const std::string& name), const std::string& name, int blocks_done,
      const std::function<void(const std::string&)>& write);
  // Takes the files which `is` names off the list; they go after the next state.
  std::vector<std::string> Drop(bool (*is)(const std::string& name));
  void RemoveStrangers() const;

  std::string dir_;
  std::string fingerprint_;
  std::vector<HashedFile> files_;  // without state.json
  std::vector<HashedFile> carried_;
  std::vector<HashedFile> listed_;  // all of them
};

}  // namespace quantry::engine
