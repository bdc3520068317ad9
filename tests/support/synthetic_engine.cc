// An engine without numerics, for tests of agents and servers: a job takes it
// milliseconds. It follows a script, the job's calibration text, one command a
// line:
//   block            one block: files, block_done and checkpoint events; a block
//                    that is already in checkpoint_dir is skipped
//   artifact         writes the artifact with its manifest
//   complete         the completed event, exit 0
//   error CLASS REASON TEXT   an error event, exit 1
//   stage NAME       a stage event ("QUANTIZING")
//   garbage          lines on stdout that are no events
//   huge-line BYTES  one line of so many bytes on stdout
//   flood            events on stdout for ever, as fast as they are read
//   fill BYTES       a file of so many bytes beside the artifact's, listed with them; DISK_FULL if
//                    there is no room
//   link NAME TARGET a symbolic link in the attempt's folder
//   offer NAME       a checkpoint event of this one file, without its sha256
//   nan              progress with numbers that are none
//   sleep MS
//   spin             for ever, busy
//   stderr TEXT      one line of log
//   touch FILE       says "I am here"
//   wait FILE        until the file exists
//   ignore-term      SIGTERM does nothing from here on
//   hang             for ever
//   signal N         kills itself
//   exit N
//   epoch N COMMAND  the command, only in attempt N
// The artifact depends only on the number of blocks, so a resumed job can be
// compared with an undisturbed one.
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <thread>

#include "common/digest.h"
#include "google/protobuf/util/json_util.h"
#include "quantry/v1/engine.pb.h"
#include "tests/support/files.h"

namespace {

namespace fs = std::filesystem;
namespace v1 = quantry::v1;
using quantry::test::ReadFile;
using quantry::test::WriteFile;

// Metrics of the moment, as a method that learns roundings has them.
constexpr std::pair<const char*, double> kMetrics[] = {
    {"stage", 3},           {"stages", 20},      {"stage_step", 7},        {"stage_steps", 25},
    {"loss_soft", 0.5},     {"loss_hard", 0.75}, {"hard_fraction", 0.375}, {"flip_ratio", 0.125},
    {"block_seconds", 0.25}};

void Emit(const v1::EngineEvent& event) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string line;
  (void)google::protobuf::util::MessageToJsonString(event, &line, options);
  std::cout << line << std::endl;
}

v1::ArtifactFile Describe(const fs::path& folder, const std::string& name) {
  const std::string bytes = ReadFile(folder / name);
  v1::ArtifactFile file;
  file.set_path(name);
  file.set_size_bytes(static_cast<std::int64_t>(bytes.size()));
  file.set_sha256(quantry::Sha256Hex(bytes));
  return file;
}

class SyntheticEngine {
 public:
  explicit SyntheticEngine(v1::EngineJob job) : job_(std::move(job)) {}

  int Run() {
    std::istringstream script(ReadFile(job_.calibration().text().path()));
    while (fs::exists(fs::path(job_.checkpoint_dir()) / BlockName(resumed_))) ++resumed_;
    v1::EngineEvent started;
    started.mutable_started()->set_engine_version("synthetic");
    started.mutable_started()->set_device("cpu");
    started.mutable_started()->set_blocks_total(4);
    started.mutable_started()->set_resumed_blocks(resumed_);
    Emit(started);
    for (std::string line; std::getline(script, line);) {
      std::istringstream words(line);
      std::string command;
      words >> command;
      std::string rest;
      std::getline(words >> std::ws, rest);
      if (const int status = Do(command, rest); status >= 0) return status;
    }
    return 0;
  }

 private:
  static std::string BlockName(int index) { return "block-" + std::to_string(index); }
  static std::string StreamName(int index) { return "streams-" + std::to_string(index); }

  // The exit status, or -1 to go on.
  int Do(const std::string& command, const std::string& rest) {
    if (command == "block") Block();
    if (command == "artifact") Artifact();
    if (command == "stage") Stage(rest);
    if (command == "garbage") std::cout << "not json\n{\"started\": 7}\n\x01\xff\n" << std::endl;
    if (command == "huge-line") std::cout << std::string(std::stoul(rest), 'x') << std::endl;
    if (command == "flood") Flood();
    if (command == "fill") return Fill(std::stoul(rest));
    if (command == "link") Link(rest);
    if (command == "offer") Offer(rest);
    if (command == "nan") NotANumber();
    if (command == "sleep") std::this_thread::sleep_for(std::chrono::milliseconds(std::stoi(rest)));
    if (command == "spin") Spin();
    if (command == "epoch") return InEpoch(rest);
    if (command == "stderr") std::cerr << rest << std::endl;
    if (command == "touch") WriteFile(rest, std::to_string(getpid()));
    if (command == "wait") WaitFor([&] { return fs::exists(rest); });
    if (command == "ignore-term") signal(SIGTERM, SIG_IGN);
    if (command == "hang") WaitFor([] { return false; });
    if (command == "signal") kill(getpid(), std::atoi(rest.c_str()));
    if (command == "exit") return std::atoi(rest.c_str());
    if (command == "error") return Error(rest);
    if (command == "complete") return Complete();
    return -1;
  }

  static void WaitFor(const std::function<bool()>& done) {
    while (!done()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }

  int InEpoch(const std::string& rest) {
    std::istringstream words(rest);
    std::int64_t epoch = 0;
    std::string command;
    words >> epoch >> command;
    std::string arguments;
    std::getline(words >> std::ws, arguments);
    return epoch == job_.epoch() ? Do(command, arguments) : -1;
  }

  int Fill(std::size_t bytes) {
    const fs::path path = fs::path(job_.output_dir()) / "fill.bin";
    WriteFile(path, std::string(bytes, 'f'));
    std::error_code ignored;
    if (fs::file_size(path, ignored) == bytes) return -1;
    return Error("ENVIRONMENT DISK_FULL no room for fill.bin");
  }

  // As an engine would that was taken over.
  static void Link(const std::string& rest) {
    std::istringstream words(rest);
    std::string name, target;
    words >> name >> target;
    fs::create_symlink(target, name);
  }

  void Offer(const std::string& name) {
    v1::EngineEvent event;
    event.mutable_checkpoint()->set_blocks_done(blocks_);
    event.mutable_checkpoint()->add_files()->set_path(name);
    Emit(event);
  }

  static void Flood() {
    std::string events;
    while (events.size() < (1 << 16)) events += "{\"progress\":{\"steps_done\":\"1\"}}\n";
    while (std::cout << events << std::flush) {
    }
  }

  static void Spin() {
    for (volatile bool forever = true; forever;) {
    }
  }

  // As an engine would write it that does not check what it measures.
  static void NotANumber() {
    std::cout << R"({"progress": {"blocks_done": 1, "loss_after": "NaN", "ratio": "Infinity", )"
              << R"("metrics": {"loss": "NaN"}}})" << std::endl;
  }

  void Stage(const std::string& name) {
    v1::EngineEvent event;
    v1::Stage stage = v1::STAGE_UNSPECIFIED;
    v1::Stage_Parse("STAGE_" + name, &stage);
    event.set_stage(stage);
    Emit(event);
  }

  void Block() {
    const int index = blocks_++;
    if (index < resumed_) return;
    const fs::path folder(job_.checkpoint_dir());
    WriteFile(folder / BlockName(index), "block " + std::to_string(index * 31));
    WriteFile(folder / StreamName(index), std::string(1000, static_cast<char>('a' + index)));
    fs::remove(folder / StreamName(index - 1));
    v1::EngineEvent progress;
    progress.mutable_progress()->set_blocks_done(blocks_);
    progress.mutable_progress()->set_blocks_total(4);
    progress.mutable_progress()->set_steps_done(blocks_);
    progress.mutable_progress()->set_ratio(blocks_ / 4.0);
    progress.mutable_progress()->set_steps_total(4);
    progress.mutable_progress()->set_loss_before(2);
    progress.mutable_progress()->set_loss_after(0.5);
    progress.mutable_progress()->set_peak_rss_bytes(4096);
    progress.mutable_progress()->mutable_eta()->set_seconds(4 - blocks_);
    auto& metrics = *progress.mutable_progress()->mutable_metrics();
    for (const auto& [name, value] : kMetrics) metrics[name] = value;
    Emit(progress);
    v1::EngineEvent done;
    done.mutable_block_done()->set_index(index);
    done.mutable_block_done()->set_loss_rtn(1);
    done.mutable_block_done()->set_loss_final(0.5);
    done.mutable_block_done()->set_seconds(0.25);
    Emit(done);
    v1::EngineEvent checkpoint;
    checkpoint.mutable_checkpoint()->set_blocks_done(blocks_);
    for (int i = 0; i < blocks_; ++i) {
      *checkpoint.mutable_checkpoint()->add_files() = Describe(folder, BlockName(i));
    }
    *checkpoint.mutable_checkpoint()->add_files() = Describe(folder, StreamName(index));
    Emit(checkpoint);
  }

  void Artifact() {
    const fs::path output(job_.output_dir());
    std::string weights;
    for (int i = 0; i < blocks_; ++i) {
      weights += ReadFile(fs::path(job_.checkpoint_dir()) / BlockName(i));
    }
    WriteFile(output / "model.safetensors", weights);
    WriteFile(output / "nested/config.json", "{}");
    v1::Manifest manifest;
    manifest.set_schema("quantry.manifest.v1");
    manifest.set_job(job_.job());
    *manifest.add_files() = Describe(output, "model.safetensors");
    *manifest.add_files() = Describe(output, "nested/config.json");
    if (fs::exists(output / "fill.bin")) *manifest.add_files() = Describe(output, "fill.bin");
    manifest.mutable_quality()->mutable_perplexity()->set_dense(4);
    manifest.mutable_quality()->mutable_perplexity()->set_quantized(5);
    manifest.mutable_bits()->set_linears(4.25);
    manifest.set_peak_rss_bytes(123);
    auto* output_summary = manifest.add_outputs();
    output_summary->set_format("compressed-tensors");
    output_summary->set_bytes(static_cast<std::int64_t>(weights.size()));
    std::string json;
    (void)google::protobuf::util::MessageToJsonString(manifest, &json);
    WriteFile(output / "manifest.json", json);
  }

  int Error(const std::string& rest) {
    std::istringstream words(rest);
    std::string failure_class, reason, text;
    words >> failure_class >> reason;
    std::getline(words >> std::ws, text);
    v1::EngineEvent event;
    v1::FailureClass value = v1::FAILURE_CLASS_BUG;
    v1::FailureClass_Parse("FAILURE_CLASS_" + failure_class, &value);
    event.mutable_error()->set_failure_class(value);
    event.mutable_error()->set_reason(reason);
    event.mutable_error()->set_message(text);
    Emit(event);
    return 1;
  }

  int Complete() {
    v1::EngineEvent event;
    event.mutable_completed()->set_manifest_sha256(
        quantry::Sha256Hex(ReadFile(fs::path(job_.output_dir()) / "manifest.json")));
    Emit(event);
    return 0;
  }

  v1::EngineJob job_;
  int resumed_ = 0;
  int blocks_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  const std::string command = argc > 1 ? argv[1] : "";
  if (command == "--version") {
    std::cout << "quantry-engine synthetic" << std::endl;
    return 0;
  }
  if (command == "methods") {
    std::cout << R"({"methods": [{"name": "rtn"}, {"name": "awq"}]})" << std::endl;
    return 0;
  }
  if (command == "quote") {
    std::cout << R"({"steps": 4, "blocks": 4, "parameters": 100})" << std::endl;
    return 0;
  }
  v1::EngineJob job;
  if (command != "run" || argc != 4 ||
      !google::protobuf::util::JsonStringToMessage(ReadFile(argv[3]), &job).ok()) {
    std::cerr << "usage: synthetic_engine run --job FILE" << std::endl;
    return 2;
  }
  return SyntheticEngine(std::move(job)).Run();
}
