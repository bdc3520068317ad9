#include "tests/support/s3_test_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <string_view>
#include <thread>
#include <utility>

#include "common/line_reader.h"
#include "common/process.h"
#include "common/unique_fd.h"

namespace quantry {
namespace {

constexpr char kBucket[] = "quantry-test";
constexpr std::string_view kRunning = "Running on http://127.0.0.1:";
constexpr std::string_view kEnvironment[] = {"PATH", "HOME", "LANG", "TMPDIR"};
constexpr std::size_t kMaxLine = 4096;
constexpr auto kStartTime = std::chrono::seconds(60);

std::string ServerBinary() {
  const char* venv = std::getenv("QUANTRY_TEST_VENV");
  return std::string(venv != nullptr ? venv : QUANTRY_DEFAULT_TEST_VENV) + "/bin/moto_server";
}

// The running server. It logs every request, and a full pipe would stop it, so
// a thread reads along.
class Server {
 public:
  explicit Server(ChildProcess child)
      : child_(std::move(child)), reader_([this](std::stop_token stop) { Read(stop); }) {}

  // 0 when it does not say its port in time.
  int WaitForPort() {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kStartTime, [this] { return port_ != 0 || ended_; });
    return port_;
  }

 private:
  void Read(const std::stop_token& stop) {
    LineReader lines(child_.stderr_fd(), kMaxLine);
    bool open = true;
    while (open && !stop.stop_requested()) {
      pollfd wait{.fd = child_.stderr_fd(), .events = POLLIN, .revents = 0};
      if (poll(&wait, 1, 100) <= 0) continue;
      open = lines.Drain([this](std::string_view line, bool) { Take(line); });
    }
    const std::lock_guard lock(mutex_);
    ended_ = true;
    changed_.notify_all();
  }

  void Take(std::string_view line) {
    const std::size_t at = line.find(kRunning);
    if (at == std::string_view::npos) return;
    const std::lock_guard lock(mutex_);
    port_ = std::atoi(std::string(line.substr(at + kRunning.size())).c_str());
    changed_.notify_all();
  }

  ChildProcess child_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int port_ = 0;
  bool ended_ = false;
  std::jthread reader_;  // last: starts when all else is there
};

// Moto does not look at signatures.
bool CreateBucket(int port) {
  const UniqueFd connection(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(connection.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    return false;
  }
  const std::string request = std::string("PUT /") + kBucket +
                              " HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n"
                              "Connection: close\r\n\r\n";
  if (write(connection.get(), request.data(), request.size()) !=
      static_cast<ssize_t>(request.size())) {
    return false;
  }
  char answer[12] = {};  // "HTTP/1.1 200"
  const ssize_t got = recv(connection.get(), answer, sizeof answer, MSG_WAITALL);
  return std::string_view(answer, got > 0 ? static_cast<std::size_t>(got) : 0).ends_with("200");
}

absl::StatusOr<std::string> Start() {
  const std::string binary = ServerBinary();
  if (access(binary.c_str(), X_OK) != 0) {
    return absl::NotFoundError("no " + binary +
                               ": run scripts/bootstrap, or set QUANTRY_TEST_VENV");
  }
  static std::optional<Server> server;  // killed when this process ends
  auto child = ChildProcess::Spawn({.argv = {binary, "-H", "127.0.0.1", "-p", "0"},
                                    .environment = CleanEnvironment(kEnvironment),
                                    .capture_stdout = false});
  if (!child.ok()) return child.status();
  server.emplace(*std::move(child));
  const int port = server->WaitForPort();
  if (port == 0) return absl::InternalError(binary + " did not say its port");
  if (!CreateBucket(port)) return absl::InternalError("no bucket could be made");
  setenv("AWS_ACCESS_KEY_ID", "test", 1);
  setenv("AWS_SECRET_ACCESS_KEY", "test", 1);
  setenv("AWS_EC2_METADATA_DISABLED", "true", 1);
  return std::string("s3://") + kBucket +
         "?scheme=http&region=us-east-1&endpoint_override=127.0.0.1:" + std::to_string(port);
}

}  // namespace

absl::StatusOr<std::string> S3TestBucket() {
  static const absl::StatusOr<std::string> bucket = Start();
  return bucket;
}

}  // namespace quantry
