// quantry-engine: one process a job. See proto/quantry/v1/engine.proto.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "worker/engine/base/error.h"
#include "worker/engine/base/memory.h"
#include "worker/engine/base/seal.h"
#include "worker/engine/device/device.h"
#include "worker/engine/evaluation/tools.h"
#include "worker/engine/export/unpack.h"
#include "worker/engine/inference/generate.h"
#include "worker/engine/methods/catalog.h"
#include "worker/engine/model/architecture.h"
#include "worker/engine/pipeline/events.h"
#include "worker/engine/pipeline/failure.h"
#include "worker/engine/pipeline/job.h"
#include "worker/engine/pipeline/quote.h"
#include "worker/engine/pipeline/run.h"
#include "worker/engine/pipeline/trace.h"

namespace quantry::engine {
namespace {

constexpr int kTerminated = 143;  // 128 + SIGTERM
constexpr int kUsage = 2;

constexpr char kHelp[] = R"(quantry-engine: quantizes one model, measures it, writes verified files.

  quantry-engine run --job FILE      run a job; events as JSON lines on stdout
  quantry-engine quote --job FILE    what that job would cost, as JSON; reads headers and short texts
  quantry-engine methods             methods and their parameters as JSON
  quantry-engine devices             what a job's "device" may name here, and why no GPU if none, as JSON
  quantry-engine eval --model DIR --text FILE [--length 256] [--windows 0] [--device auto]
                                     perplexity of a dense checkpoint or a quantry container
  quantry-engine generate --model DIR --prompt TEXT [--max-tokens 128] [--device auto]
                                     goes on with a text, the likeliest token each time
  quantry-engine logits --model DIR --tokens FILE --output FILE
                                     logits of token windows as safetensors
  quantry-engine inspect --model DIR architecture, shapes and parameters
  quantry-engine unpack --input DIR --output DIR
                                     a packed output (quantry, compressed-tensors, GPTQ, AWQ)
                                     as a dense checkpoint
  quantry-engine --version | --help

A job is the JSON of EngineJob in proto/quantry/v1/engine.proto. The smallest useful one:

  {"model_dir": "examples/stories260k", "output_dir": "out", "checkpoint_dir": "checkpoint",
   "method": {"awq": {"grid": {"bits": 4, "group_size": -1}}},
   "calibration": {"text": {"path": "examples/text/calibration.txt"},
                   "samples": 128, "sequence_length": 256},
   "evaluation": {"text": {"path": "examples/text/evaluation.txt"}, "sequence_length": 256},
   "outputs": [{"format": "OUTPUT_FORMAT_COMPRESSED_TENSORS"}]}

Killed at any moment, the same command goes on after the last whole block and gives the same bytes.
Exit status: 0 done, 1 an error event (or message) says what, 2 wrong usage, 143 stopped by SIGTERM.
)";

void StopAtOnce(int) { _exit(kTerminated); }

// OpenMP reads its settings when it is loaded, before main. Its default, to
// spin at each barrier, costs up to ten times the time where another process
// wants a core (benchmarks/README.md), so the engine starts itself again once
// with waits that sleep after a microsecond or so, unless the user has said how to wait.
void WaitWithoutSpinning(char** argv) {
  if (getenv("OMP_WAIT_POLICY") != nullptr) return;
  setenv("OMP_WAIT_POLICY", "PASSIVE", 0);
  setenv("GOMP_SPINCOUNT", "1000", 0);
  execv("/proc/self/exe", argv);  // returns only where there is no /proc: then spin
}

// Whoever confined this process had to leave execve open for its start.
bool SealIfAsked() { return getenv("QUANTRY_ENGINE_SEALED") == nullptr || ForbidPrograms(); }

// Landlock's rule for this process lies on inodes of /proc, which the kernel forgets under memory
// pressure, the rule with them; what is open it keeps.
void KeepOwnFolder() {
  [[maybe_unused]] static const int kept = open("/proc/self/task", O_PATH | O_CLOEXEC);
}

double SteadySeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The value of the only flag a sub-command takes; empty when it is not there.
std::string OnlyFlag(int argc, char** argv, const std::string& flag) {
  return argc == 3 && argv[1] == flag ? argv[2] : "";
}

int QuoteSubcommand(int argc, char** argv) {
  const std::string path = OnlyFlag(argc, argv, "--job");
  if (path.empty()) {
    std::cerr << "usage: quantry-engine quote --job FILE\n";
    return kUsage;
  }
  try {
    const Job job = ReadJobFile(path);
    ConfigureRuntime(job.threads);  // what is held depends on the cores that work
    std::cout << QuoteJson(job).dump() << "\n";
    return 0;
  } catch (const std::exception& error) {
    EventWriter(STDOUT_FILENO).Error(Translate(error));
    return 1;
  }
}

int RunSubcommand(int argc, char** argv) {
  const std::string path = OnlyFlag(argc, argv, "--job");
  if (path.empty()) {
    std::cerr << "usage: quantry-engine run --job FILE\n";
    return kUsage;
  }
  EventWriter events(STDOUT_FILENO);
  try {
    const Job job = ReadJobFile(path);
    if (const auto trace = ParseTraceParent(job.traceparent)) events.SetTrace(trace->trace_id);
    RunJob(job, events, SteadySeconds);
    return 0;
  } catch (const std::exception& error) {
    events.Error(Translate(error));
    return 1;
  }
}

// What a server tells its clients about this engine.
int PrintMethods() {
  nlohmann::json json = MethodsJson();
  json["engine_version"] = QUANTRY_VERSION;
  json["architectures"] = nlohmann::json::array();
  for (const Architecture* row : Architectures()) {
    for (const std::string& type : row->model_types) json["architectures"].push_back(type);
  }
  std::cout << json.dump(2) << "\n";
  return 0;
}

int PrintDevices() {
  nlohmann::json json = {{"devices", nlohmann::json::array()}};
  for (const at::Device& device : AvailableDevices()) {
    json["devices"].push_back(DescribeDevice(device));
  }
  if (const std::string problem = CudaProblem(); !problem.empty()) json["cuda_problem"] = problem;
  std::cout << json.dump(2) << "\n";
  return 0;
}

int Dispatch(int argc, char** argv) {
  const std::string command = argc > 1 ? argv[1] : "--help";
  if (argc > 2 && std::string_view(argv[2]) == "--help") {
    std::cout << kHelp;
    return 0;
  }
  if (command == "run") return RunSubcommand(argc - 1, argv + 1);
  if (command == "eval") return RunEval(argc - 1, argv + 1);
  if (command == "generate") return RunGenerate(argc - 1, argv + 1);
  if (command == "logits") return RunLogits(argc - 1, argv + 1);
  if (command == "inspect") return RunInspect(argc - 1, argv + 1);
  if (command == "quote") return QuoteSubcommand(argc - 1, argv + 1);
  if (command == "unpack") return RunUnpack(argc - 1, argv + 1);
  if (command == "methods") return PrintMethods();
  if (command == "devices") return PrintDevices();
  if (command == "--version") {
    std::cout << "quantry-engine " << QUANTRY_VERSION << "\n";
    return 0;
  }
  if (command == "--help" || command == "help" || command == "-h") {
    std::cout << kHelp;
    return argc > 1 ? 0 : kUsage;
  }
  std::cerr << "quantry-engine: unknown command " << command << "; see quantry-engine --help\n";
  return kUsage;
}

// `status`, but for a result that never reached its file: a full disk shows at
// the last flush.
int AfterFlush(int status) {
  if (std::cout.flush()) return status;
  std::cerr << "quantry-engine: WRITE_FAILED: stdout took not all of the result (is its disk "
               "full, or its reader gone?)\n";
  return 1;
}

}  // namespace

int Main(int argc, char** argv) {
  WaitWithoutSpinning(argv);
  if (!SealIfAsked()) {
    std::cerr
        << "quantry-engine: QUANTRY_ENGINE_SEALED is set, but the kernel refuses the filter\n";
    return 1;
  }
  KeepOwnFolder();
  KeepFreedMemory();
  signal(SIGTERM, StopAtOnce);
  signal(SIGPIPE, SIG_IGN);
  try {
    return AfterFlush(Dispatch(argc, argv));
  } catch (const std::exception& error) {
    const EngineError translated = Translate(error);
    std::cerr << "quantry-engine: " << translated.reason << ": " << translated.what() << "\n";
    return 1;
  }
}

}  // namespace quantry::engine

int main(int argc, char** argv) { return quantry::engine::Main(argc, argv); }
