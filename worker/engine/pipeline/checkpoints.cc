#include "worker/engine/pipeline/checkpoints.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "worker/engine/base/error.h"
#include "worker/engine/base/file.h"
#include "worker/engine/base/sha256.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/pipeline/training_file.h"

namespace quantry::engine {
namespace {

namespace fs = std::filesystem;

constexpr char kCheckpointSchema[] = "quantry.checkpoint.v1";
constexpr char kState[] = "state.json";
constexpr uint64_t kMaxStateBytes = uint64_t{16} << 20;

std::string StreamsFileName(int block) {
  char name[48];
  std::snprintf(name, sizeof(name), "streams-%05d.safetensors", block);
  return name;
}

// Never that of another state: the file that the newest state.json names stays as it is.
std::string TuningFileName(const TrainingState& state) {
  char name[64];
  std::snprintf(name, sizeof(name), "tuning-%d-%05lld.safetensors", state.retries,
                static_cast<long long>(state.steps_done));
  return name;
}

bool IsStreams(const std::string& name) { return name.rfind("streams-", 0) == 0; }
bool IsStage(const std::string& name) { return name.rfind("stage-", 0) == 0; }
bool IsTuning(const std::string& name) { return name.rfind("tuning-", 0) == 0; }
bool IsBlock(const std::string& name) { return name.rfind("block-", 0) == 0; }
bool IsTuned(const std::string& name) { return name.rfind("tuned-", 0) == 0; }
std::string TunedFileName(int index) { return "tuned" + BlockFileName(index).substr(5); }
bool IsPassing(const std::string& name) {
  return IsStreams(name) || IsStage(name) || IsTuning(name);
}
bool IsOurs(const std::string& name) {
  return IsPassing(name) || IsBlock(name) || IsTuned(name) || name.rfind(kState, 0) == 0;
}

HashedFile HashOf(const std::string& dir, const std::string& name, const OnBytes& on_bytes = {}) {
  const FileDigest digest = Sha256OfFile(dir + "/" + name, on_bytes);
  return {name, digest.bytes, digest.sha256};
}

// A checkpoint that cannot be used; the text says why.
struct Unusable {
  std::string why;
};

HashedFile Listed(const nlohmann::json& json) {
  HashedFile file{json.at("path").get<std::string>(), json.at("size_bytes").get<uint64_t>(),
                  json.at("sha256").get<std::string>()};
  if (file.path.find('/') != std::string::npos || !IsOurs(file.path)) {
    throw Unusable{"it names a foreign file " + Printable(file.path)};
  }
  return file;
}

}  // namespace

Checkpoints::Checkpoints(std::string dir, std::string fingerprint)
    : dir_(std::move(dir)), fingerprint_(std::move(fingerprint)) {
  std::error_code error;
  fs::create_directories(dir_, error);
  if (error) {
    throw EngineError(FailureClass::kEnvironment, "WRITE_FAILED",
                      "creating checkpoint folder " + dir_ + ": " + error.message(),
                      {{"path", dir_}});
  }
}

int Checkpoints::Resume(int blocks_total, Streams* streams,
                        const std::function<void(const std::string&)>& warn,
                        const OnBytes& on_bytes) {
  int done = -1;
  if (Exists(PathOf(kState))) {
    try {
      done = Read(blocks_total, streams, warn, on_bytes);
    } catch (const Unusable& unusable) {
      warn(StrCat("checkpoint in ", dir_, " is ignored and removed: ", unusable.why));
    } catch (const EngineError& error) {
      if (IsOfTheDisk(error)) throw;
      warn(StrCat("checkpoint in ", dir_, " is ignored and removed: ", error.what()));
    } catch (const nlohmann::json::exception& error) {
      warn(StrCat("checkpoint in ", dir_,
                  " is ignored and removed: state.json is malformed: ", error.what()));
    }
  }
  if (done < 0) files_.clear();
  if (done <= 0) {
    done = 0;
    if (streams != nullptr) *streams = Streams();
  }
  RemoveStrangers();
  return done;
}

// Empty for a file that is as the list has it.
std::string Checkpoints::FaultOf(const HashedFile& wanted, const OnBytes& on_bytes) const {
  if (!Exists(PathOf(wanted.path))) return " is absent";
  const HashedFile got = HashOf(dir_, wanted.path, on_bytes);
  return got.bytes == wanted.bytes && got.sha256 == wanted.sha256 ? "" : " is damaged";
}

int Checkpoints::Read(int blocks_total, Streams* streams,
                      const std::function<void(const std::string&)>& warn,
                      const OnBytes& on_bytes) {
  const auto state =
      nlohmann::json::parse(ReadFile(PathOf(kState), kMaxStateBytes, "CHECKPOINT_CORRUPT"));
  if (state.at("schema") != kCheckpointSchema) throw Unusable{"its schema is another"};
  if (state.at("fingerprint") != fingerprint_) {
    throw Unusable{
        "it belongs to another job, input, engine version, thread count, device type or CPU "
        "instruction set"};
  }
  const int done = state.at("blocks_done").get<int>();
  if (done < 0 || done > blocks_total) throw Unusable{"it has more blocks than the model"};
  files_.clear();
  for (const nlohmann::json& entry : state.at("files")) {
    const HashedFile wanted = Listed(entry);
    const std::string fault = FaultOf(wanted, on_bytes);
    if (fault.empty()) {
      files_.push_back(wanted);
    } else if (IsStage(wanted.path) || IsTuning(wanted.path)) {
      warn(StrCat(wanted.path, fault, ": what it adds to the blocks is learned again"));
    } else {
      throw Unusable{wanted.path + fault};
    }
  }
  for (int i = 0; i < done; ++i) Load(i);
  const bool kept = std::any_of(files_.begin(), files_.end(),
                                [](const HashedFile& file) { return IsStreams(file.path); });
  if (streams != nullptr && done > 0 && kept) {
    *streams = ReadStreams(PathOf(StreamsFileName(done)));
  } else if (streams != nullptr && done > 0 && done < blocks_total) {
    throw Unusable{"the inputs of the next block are absent"};
  }
  return done;
}

void Checkpoints::RemoveStrangers() const {
  std::vector<fs::path> doomed;
  for (const auto& entry : fs::directory_iterator(dir_)) {
    const std::string name = entry.path().filename().string();
    const bool kept = std::any_of(files_.begin(), files_.end(),
                                  [&](const HashedFile& file) { return file.path == name; });
    if (IsOurs(name) && !kept && (name != kState || files_.empty())) doomed.push_back(entry.path());
  }
  for (const fs::path& path : doomed) fs::remove(path);
}

void Checkpoints::StoreBlock(const QuantizedBlock& block, const BlockReport& report) {
  WriteBlockFile(PathOf(BlockFileName(block.index)), block, report);
}

const std::vector<HashedFile>& Checkpoints::Commit(int blocks_done, const Streams* streams) {
  const std::vector<std::string> old = Drop(IsPassing);
  files_.push_back(HashOf(dir_, BlockFileName(blocks_done - 1)));
  if (streams != nullptr) {
    WriteStreams(PathOf(StreamsFileName(blocks_done)), *streams);
    files_.push_back(HashOf(dir_, StreamsFileName(blocks_done)));
  }
  WriteState(blocks_done);
  for (const std::string& name : old) fs::remove(PathOf(name));
  return List();
}

const std::vector<HashedFile>& Checkpoints::CommitPassing(
    bool (*is)(const std::string& name), const std::string& name, int blocks_done,
    const std::function<void(const std::string&)>& write) {
  const std::vector<std::string> old = Drop(is);
  write(PathOf(name));
  files_.push_back(HashOf(dir_, name));
  WriteState(blocks_done);
  for (const std::string& gone : old) {
    if (gone != name) fs::remove(PathOf(gone));
  }
  return List();
}

const std::vector<HashedFile>& Checkpoints::CommitStage(int blocks_done, const StageState& state) {
  return CommitPassing(IsStage, StageFileName(blocks_done, state.stages_done), blocks_done,
                       [&](const std::string& path) { WriteStageFile(path, blocks_done, state); });
}

const std::vector<HashedFile>& Checkpoints::CommitTuning(int blocks_done,
                                                         const TrainingState& state) {
  return CommitPassing(IsTuning, TuningFileName(state), blocks_done, [&](const std::string& path) {
    WriteTrainingFile(path, fingerprint_, state);
  });
}

std::optional<TrainingState> Checkpoints::LoadTuning() const {
  for (const HashedFile& file : files_) {
    if (IsTuning(file.path)) return ReadTrainingFile(PathOf(file.path), fingerprint_);
  }
  return std::nullopt;
}

std::optional<StageState> Checkpoints::LoadStage(int block) const {
  for (const HashedFile& file : files_) {
    if (IsStage(file.path)) return ReadStageFile(PathOf(file.path), block);
  }
  return std::nullopt;
}

const std::vector<HashedFile>& Checkpoints::List() {
  listed_ = files_;
  listed_.insert(listed_.end(), carried_.begin(), carried_.end());
  listed_.push_back(HashOf(dir_, kState));
  return listed_;
}

std::vector<std::string> Checkpoints::Drop(bool (*is)(const std::string& name)) {
  std::vector<std::string> names;
  std::vector<HashedFile> kept;
  for (const HashedFile& file : files_) {
    if (is(file.path)) {
      names.push_back(file.path);
    } else {
      kept.push_back(file);
    }
  }
  files_ = kept;
  return names;
}

void Checkpoints::WriteState(int blocks_done) {
  nlohmann::ordered_json files = nlohmann::ordered_json::array();
  for (const HashedFile& file : files_) files.push_back(ToJson(file));
  const nlohmann::ordered_json state = {{"schema", kCheckpointSchema},
                                        {"fingerprint", fingerprint_},
                                        {"blocks_done", blocks_done},
                                        {"files", files}};
  WriteFileAtomically(PathOf(kState), state.dump(2) + "\n");
}

const std::vector<HashedFile>& Checkpoints::CommitTuned(const std::vector<StoredBlock>& blocks) {
  std::vector<std::string> old = Drop(IsBlock);
  for (const std::string& name : Drop(IsPassing)) old.push_back(name);
  for (const StoredBlock& stored : blocks) {
    const std::string name = TunedFileName(stored.block.index);
    WriteBlockFile(PathOf(name), stored.block, stored.report);
    files_.push_back(HashOf(dir_, name));
  }
  WriteState(static_cast<int>(blocks.size()));
  for (const std::string& name : old) fs::remove(PathOf(name));
  return List();
}

bool Checkpoints::tuned() const {
  return std::any_of(files_.begin(), files_.end(),
                     [](const HashedFile& file) { return IsTuned(file.path); });
}

StoredBlock Checkpoints::Load(int index) const {
  StoredBlock stored = ReadBlockFile(PathOf(tuned() ? TunedFileName(index) : BlockFileName(index)));
  if (stored.block.index != index) {
    throw EngineError(FailureClass::kEnvironment, "CHECKPOINT_CORRUPT",
                      StrCat(PathOf(BlockFileName(index)), " holds block ", stored.block.index));
  }
  return stored;
}

void Checkpoints::Clear() {
  files_.clear();
  RemoveStrangers();
  std::error_code ignored;
  fs::remove(dir_, ignored);  // only when nothing else is in it
}

}  // namespace quantry::engine
