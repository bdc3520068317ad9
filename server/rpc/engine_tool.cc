#include "server/rpc/engine_tool.h"

#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <memory>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "common/errors.h"
#include "common/ids.h"
#include "google/protobuf/struct.pb.h"
#include "google/protobuf/util/json_util.h"
#include "server/artifacts/file_ops.h"

namespace quantry::server {
namespace {

using std::chrono::milliseconds;
using SteadyClock = std::chrono::steady_clock;

constexpr size_t kMaxOutputBytes = 4 << 20;
constexpr size_t kMaxErrorBytes = 4 << 10;
constexpr auto kCapabilitiesTime = std::chrono::seconds(60);
// How often is looked whether somebody still waits for the engine.
constexpr auto kLookEvery = milliseconds(100);

struct Output {
  ExitStatus exit;
  std::string out;
  std::string err;
  bool out_open = true;
  bool err_open = true;
};

// Appends what is readable now; false at the end of the stream.
bool ReadSome(int fd, size_t limit, std::string* text) {
  char buffer[16 << 10];
  const ssize_t got = read(fd, buffer, sizeof buffer);
  if (got < 0) return errno == EAGAIN || errno == EINTR;
  const size_t room = limit - std::min(limit, text->size());
  text->append(buffer, std::min(room, static_cast<size_t>(got)));
  return got > 0;
}

// Waits at most `wait` for the child to write something; false once it cannot.
bool ReadOutput(const ChildProcess& child, milliseconds wait, Output* output) {
  pollfd fds[] = {{output->out_open ? child.stdout_fd() : -1, POLLIN, 0},
                  {output->err_open ? child.stderr_fd() : -1, POLLIN, 0}};
  poll(fds, 2, static_cast<int>(wait.count()));
  if (fds[0].revents != 0) {
    output->out_open = ReadSome(child.stdout_fd(), kMaxOutputBytes, &output->out);
  }
  if (fds[1].revents != 0) {
    output->err_open = ReadSome(child.stderr_fd(), kMaxErrorBytes, &output->err);
  }
  return output->out_open || output->err_open;
}

// However it returns, the child is gone.
absl::StatusOr<Output> RunChild(std::vector<std::string> argv, milliseconds timeout,
                                const Awaited& awaited, const EngineConfinement& confinement,
                                const EngineAccess& access) {
  ChildOptions options;
  options.argv = std::move(argv);
  const auto deadline = SteadyClock::now() + timeout;
  auto child = SpawnEngine(options, confinement, access);
  if (!child.ok()) return MakeError(Reason::kFileNotFound, std::string(child.status().message()));
  Output output;
  for (bool writing = true;;) {
    const auto left = std::chrono::ceil<milliseconds>(deadline - SteadyClock::now());
    if (left <= milliseconds(0)) break;
    if (absl::Status status = awaited(); !status.ok()) return status;
    if (writing) {
      writing = ReadOutput(*child, std::min(left, kLookEvery), &output);
    } else if (const auto exit = child->Wait(std::min(left, kLookEvery))) {
      output.exit = *exit;
      return output;
    }
  }
  return MakeError(Reason::kDeadlineExceeded, absl::StrCat("quantry-engine did not answer within ",
                                                           timeout.count() / 1000, " s"));
}

absl::Status ProtocolError(std::string_view what, const Output& output) {
  return MakeError(Reason::kEngineProtocol,
                   absl::StrCat("quantry-engine ", std::string(what), ": exit status ",
                                output.exit.code, ", signal ", output.exit.signal, "; it wrote: ",
                                output.err.empty() ? output.out.substr(0, 500) : output.err));
}

google::protobuf::util::JsonParseOptions Lenient() {
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;
  return options;
}

// The error event an engine ends with, if there is one in its output.
absl::Status ErrorEvent(const std::string& out) {
  for (const absl::string_view line : absl::StrSplit(out, '\n', absl::SkipEmpty())) {
    v1::EngineEvent event;
    if (!google::protobuf::util::JsonStringToMessage(std::string(line), &event, Lenient()).ok()) {
      continue;
    }
    if (!event.has_error()) continue;
    const v1::EngineError& error = event.error();
    return MakeNamedError(error.reason(), error.message(),
                          {error.metadata().begin(), error.metadata().end()});
  }
  return absl::OkStatus();
}

class ChildEngineTool : public EngineTool {
 public:
  ChildEngineTool(std::string binary, std::string scratch_dir, EngineConfinement confinement)
      : binary_(std::move(binary)),
        scratch_dir_(std::move(scratch_dir)),
        confinement_(std::move(confinement)) {}

  absl::StatusOr<EngineCapabilities> Capabilities(const Awaited& awaited) override {
    auto output = RunChild({binary_, "methods"}, kCapabilitiesTime, awaited, confinement_, {});
    if (!output.ok()) return output.status();
    if (!output->exit.ok()) return ProtocolError("methods", *output);
    return ParseCapabilities(output->out);
  }

  absl::StatusOr<v1::Quote> QuoteJob(const v1::EngineJob& job,
                                     const std::vector<std::string>& folders, milliseconds timeout,
                                     const Awaited& awaited) override {
    std::string json;
    google::protobuf::util::JsonPrintOptions print;
    print.preserve_proto_field_names = true;
    if (!google::protobuf::util::MessageToJsonString(job, &json, print).ok()) {
      return MakeError(Reason::kInternal, "the job has no JSON form");
    }
    const std::string path = absl::StrCat(scratch_dir_, "/quote-", NewUuid4(), ".json");
    if (absl::Status status = WriteFileAtomically(path, json); !status.ok()) return status;
    EngineAccess access = InputsOf(job, folders);
    if (!access.within.empty()) access.within.push_back(path);
    access.read.push_back(path);
    access.gpu = false;  // headers are read, nothing is computed
    if (confinement_.account) chmod(path.c_str(), 0644);
    auto output =
        RunChild({binary_, "quote", "--job", path}, timeout, awaited, confinement_, access);
    std::error_code ignored;
    std::filesystem::remove(path, ignored);
    if (!output.ok()) return output.status();
    // Its words go to tenants.
    const std::string out = absl::StrReplaceAll(output->out, {{path, "the job"}});
    if (absl::Status status = ErrorEvent(out); !status.ok()) return status;
    v1::Quote quote;
    if (!output->exit.ok() ||
        !google::protobuf::util::JsonStringToMessage(out, &quote, Lenient()).ok()) {
      return ProtocolError("quote", *output);
    }
    return quote;
  }

 private:
  std::string binary_;
  std::string scratch_dir_;
  EngineConfinement confinement_;
};

}  // namespace

absl::StatusOr<EngineCapabilities> ParseCapabilities(const std::string& json) {
  v1::ListMethodsResponse methods;
  google::protobuf::Struct object;
  if (!google::protobuf::util::JsonStringToMessage(json, &methods, Lenient()).ok() ||
      !google::protobuf::util::JsonStringToMessage(json, &object).ok() ||
      methods.methods().empty()) {
    return MakeError(Reason::kEngineProtocol,
                     "quantry-engine methods: wanted {\"methods\": [...]}, got something else");
  }
  EngineCapabilities capabilities;
  capabilities.methods = {methods.methods().begin(), methods.methods().end()};
  const auto& fields = object.fields();
  if (const auto field = fields.find("architectures"); field != fields.end()) {
    for (const auto& value : field->second.list_value().values()) {
      capabilities.architectures.push_back(value.string_value());
    }
  }
  for (const char* key : {"engine_version", "version"}) {
    if (const auto field = fields.find(key); field != fields.end()) {
      capabilities.version = field->second.string_value();
      break;
    }
  }
  return capabilities;
}

CapabilitiesCache::CapabilitiesCache(EngineTool* engine,
                                     std::function<void(const Result&)> on_answer,
                                     milliseconds again)
    : thread_([this, engine, again, on_answer = std::move(on_answer)](std::stop_token stop) {
        while (!Ask(*engine, stop, on_answer)) {
          std::unique_lock lock(mutex_);
          answered_.wait_for(lock, stop, again, [] { return false; });
        }
      }) {}

bool CapabilitiesCache::Ask(EngineTool& engine, const std::stop_token& stop,
                            const std::function<void(const Result&)>& on_answer) {
  Result result = engine.Capabilities([&stop] {
    return stop.stop_requested() ? absl::CancelledError("the server stops") : absl::OkStatus();
  });
  if (stop.stop_requested()) return true;
  bool same = false;
  {
    const std::lock_guard lock(mutex_);
    same = result_ && result_->status() == result.status();
  }
  if (!same) on_answer(result);
  const bool known = result.ok();
  {
    const std::lock_guard lock(mutex_);
    result_ = std::move(result);
  }
  answered_.notify_all();
  return known;
}

CapabilitiesCache::Result CapabilitiesCache::Get(milliseconds wait) const {
  std::unique_lock lock(mutex_);
  if (answered_.wait_for(lock, wait, [this] { return result_.has_value(); })) return *result_;
  return MakeDetailedError(Reason::kStorageError,
                           "the server has just started and its quantry-engine has not answered "
                           "yet; try again in a few seconds",
                           {.retry_after = std::chrono::seconds(2)});
}

bool CapabilitiesCache::answered() const {
  const std::lock_guard lock(mutex_);
  return result_.has_value();
}

std::unique_ptr<EngineTool> NewEngineTool(std::string engine_binary, std::string scratch_dir,
                                          EngineConfinement confinement) {
  return std::make_unique<ChildEngineTool>(std::move(engine_binary), std::move(scratch_dir),
                                           std::move(confinement));
}

}  // namespace quantry::server
