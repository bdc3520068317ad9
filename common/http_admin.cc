#include "common/http_admin.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <stop_token>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/http_host.h"
#include "common/http_page_thread.h"
#include "common/listen_address.h"
#include "common/unique_fd.h"

namespace quantry {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kMaxRequestBytes = 8 << 10;  // line and headers; bodies are not read
constexpr size_t kMaxConnections = 64;        // more wait in the kernel's backlog
constexpr int kMaxLastReads = 64;             // of 4 KiB, after the answer
constexpr auto kConnectionTime = std::chrono::seconds(10);

struct Connection {
  UniqueFd fd;
  Clock::time_point deadline;
  std::uint64_t id = 0;
  std::string request = {};
  bool waiting = false;       // for a page
  std::string response = {};  // empty while the request is incomplete
  size_t written = 0;
};

HttpResponse NoSuchPage(const HttpAdmin::Handlers& handlers) {
  std::string known;
  for (const auto& [name, unused] : handlers) absl::StrAppend(&known, name, "\n");
  return {.status = 404, .body = "no such page; there are:\n" + known};
}

class PollServer : public HttpAdmin {
 public:
  PollServer(UniqueFd listener, UniqueFd wake, std::string address, HttpHostRule host_rule,
             Handlers handlers, Pages pages)
      : listener_(std::move(listener)),
        wake_(std::move(wake)),
        address_(std::move(address)),
        host_rule_(std::move(host_rule)),
        handlers_(std::move(handlers)),
        pages_(pages ? std::make_unique<HttpPageThread>(std::move(pages), [this] { Wake(); })
                     : nullptr),
        thread_([this](std::stop_token stop) { Loop(stop); }) {}

  ~PollServer() override {
    thread_.request_stop();
    Wake();
    thread_.join();
  }

  std::string address() const override { return address_; }

 private:
  void Wake() {
    const std::uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(wake_.get(), &one, sizeof one);
  }

  void Loop(const std::stop_token& stop) {
    while (!stop.stop_requested()) Step();
  }

  void Step() {
    std::vector<pollfd> fds = {{wake_.get(), POLLIN, 0}};
    const bool accepting = connections_.size() < kMaxConnections;
    fds.push_back({accepting ? listener_.get() : -1, POLLIN, 0});
    for (const Connection& connection : connections_) {
      const short events = connection.response.empty() ? POLLIN : POLLOUT;
      fds.push_back({connection.fd.get(), connection.waiting ? short{0} : events, 0});
    }
    poll(fds.data(), fds.size(), PollTimeoutMs());
    std::vector<Connection> alive;
    for (size_t i = 0; i < connections_.size(); ++i) {
      Connection& connection = connections_[i];
      const bool ready = fds[i + 2].revents != 0;
      const bool keep = ready ? Advance(&connection) : Clock::now() < connection.deadline;
      if (keep) alive.push_back(std::move(connection));
    }
    connections_ = std::move(alive);
    if ((fds[0].revents & POLLIN) != 0) Deliver();
    if ((fds[1].revents & POLLIN) != 0) Accept();
  }

  // Hands pages to the connections that asked for them and are still there.
  void Deliver() {
    std::uint64_t ignored = 0;
    [[maybe_unused]] const ssize_t got = read(wake_.get(), &ignored, sizeof ignored);
    if (pages_ == nullptr) return;
    std::map<std::uint64_t, std::string> answers = pages_->Take();
    for (Connection& connection : connections_) {
      const auto answer = answers.find(connection.id);
      if (answer == answers.end()) continue;
      connection.waiting = false;
      connection.response = std::move(answer->second);
    }
  }

  int PollTimeoutMs() const {
    if (connections_.empty()) return -1;
    auto first = Clock::time_point::max();
    for (const Connection& connection : connections_) first = std::min(first, connection.deadline);
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(first - Clock::now()).count();
    return static_cast<int>(std::max<std::int64_t>(left, 0));
  }

  void Accept() {
    UniqueFd fd(accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (fd.get() < 0) return;
    connections_.push_back(
        {.fd = std::move(fd), .deadline = Clock::now() + kConnectionTime, .id = ++last_id_});
  }

  // One step of reading or writing; false when the connection is over.
  bool Advance(Connection* connection) {
    if (connection->waiting) return false;  // the client is gone
    if (connection->response.empty()) return Read(connection);
    return Write(connection);
  }

  bool Read(Connection* connection) {
    char buffer[4096];
    const ssize_t got = recv(connection->fd.get(), buffer, sizeof buffer, 0);
    if (got < 0) return errno == EAGAIN || errno == EINTR;
    if (got == 0) return false;
    std::string& request = connection->request;
    request.append(buffer, static_cast<size_t>(got));
    const bool complete = request.find("\r\n\r\n") != std::string::npos;
    if (!complete && request.size() < kMaxRequestBytes) return true;
    if (!complete) return Reply(connection, {.status = 431, .body = "request too large\n"});
    return Answer(connection, std::string_view(request).substr(0, request.find("\r\n\r\n")));
  }

  // `head`: request line and headers.
  bool Answer(Connection* connection, std::string_view head) {
    HttpRequest parsed = ParseRequestLine(head.substr(0, head.find("\r\n")));
    if (parsed.error == 405) return Reply(connection, {.status = 405, .body = "only GET\n"});
    if (parsed.error != 0) {
      return Reply(connection, {.status = parsed.error, .body = "wanted: GET PATH HTTP/1.1\n"});
    }
    const std::string refusal = host_rule_.Refusal(head);
    if (!refusal.empty()) return Reply(connection, {.status = 421, .body = refusal}, parsed.head);
    const auto handler = handlers_.find(parsed.path);
    if (handler != handlers_.end()) return Reply(connection, handler->second(), parsed.head);
    if (pages_ == nullptr) return Reply(connection, NoSuchPage(handlers_), parsed.head);
    connection->waiting = pages_->Ask(connection->id, std::move(parsed));
    if (connection->waiting) return true;
    return Reply(connection, {.status = 503, .body = "too many requests wait; try again\n"});
  }

  bool Reply(Connection* connection, const HttpResponse& response, bool head = false) {
    connection->response = RenderResponse(response, head);
    return Write(connection);
  }

  bool Write(Connection* connection) {
    const std::string& response = connection->response;
    const ssize_t put = send(connection->fd.get(), response.data() + connection->written,
                             response.size() - connection->written, MSG_NOSIGNAL);
    if (put < 0) return errno == EAGAIN || errno == EINTR;
    connection->written += static_cast<size_t>(put);
    if (connection->written < response.size()) return true;
    // Data left unread would turn the close into a reset that eats the answer. A
    // client that goes on sending gets the reset.
    shutdown(connection->fd.get(), SHUT_WR);
    char rest[4096];
    for (int i = 0; i < kMaxLastReads; ++i) {
      if (recv(connection->fd.get(), rest, sizeof rest, 0) <= 0) break;
    }
    return false;
  }

  UniqueFd listener_;
  UniqueFd wake_;
  std::string address_;
  HttpHostRule host_rule_;
  Handlers handlers_;
  std::vector<Connection> connections_;  // the thread's own, as the next
  std::uint64_t last_id_ = 0;
  std::unique_ptr<HttpPageThread> pages_;  // null: none
  std::jthread thread_;                    // last: uses all of the above
};

absl::Status SocketError(std::string_view what, const std::string& address) {
  return absl::FailedPreconditionError(
      absl::StrCat(std::string(what), " ", address, ": ", std::strerror(errno)));
}

// Fills in the address and returns its size.
socklen_t ToSockaddr(const ListenAddress& address, sockaddr_storage* out) {
  std::memset(out, 0, sizeof *out);
  if (address.is_ipv6()) {
    auto* v6 = reinterpret_cast<sockaddr_in6*>(out);
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(address.port);
    inet_pton(AF_INET6, address.host.c_str(), &v6->sin6_addr);
    return sizeof *v6;
  }
  auto* v4 = reinterpret_cast<sockaddr_in*>(out);
  v4->sin_family = AF_INET;
  v4->sin_port = htons(address.port);
  inet_pton(AF_INET, address.host.c_str(), &v4->sin_addr);
  return sizeof *v4;
}

std::uint16_t BoundPort(int fd) {
  sockaddr_storage bound{};
  socklen_t size = sizeof bound;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &size) != 0) return 0;
  return ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&bound)->sin6_port
                                           : reinterpret_cast<sockaddr_in*>(&bound)->sin_port);
}

}  // namespace

absl::StatusOr<std::unique_ptr<HttpAdmin>> HttpAdmin::Start(std::string_view address,
                                                            Handlers handlers,
                                                            HttpAdminAccess access, Pages pages) {
  if (absl::Status status = CheckAdminAddress(address, access.beyond_loopback); !status.ok()) {
    return status;
  }
  if (absl::Status status = CheckHostNames(access.hosts); !status.ok()) return status;
  auto parsed = ParseListenAddress(address);
  sockaddr_storage storage;
  const socklen_t size = ToSockaddr(*parsed, &storage);
  UniqueFd listener(socket(storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  UniqueFd wake(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (listener.get() < 0 || wake.get() < 0) return SocketError("no socket for", parsed->ToString());
  const int one = 1;
  setsockopt(listener.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(listener.get(), reinterpret_cast<sockaddr*>(&storage), size) != 0 ||
      listen(listener.get(), static_cast<int>(kMaxConnections)) != 0) {
    return SocketError("cannot listen on", parsed->ToString());
  }
  parsed->port = BoundPort(listener.get());
  const bool any_host = !IsLoopback(*parsed) && access.hosts.empty();
  return std::make_unique<PollServer>(std::move(listener), std::move(wake), parsed->ToString(),
                                      HttpHostRule(std::move(access.hosts), any_host),
                                      std::move(handlers), std::move(pages));
}

absl::Status CheckAdminAddress(std::string_view address, bool beyond_loopback) {
  const auto parsed = ParseListenAddress(address);
  if (!parsed.ok() || beyond_loopback) return parsed.status();
  return RequireLoopback(*parsed,
                         "--admin-plaintext: this port has no TLS and asks nobody who he "
                         "is (it is read-only)");
}

HttpAdmin::Handlers StandardHandlers(std::function<std::string()> metrics_text,
                                     std::function<std::string()> not_ready) {
  HttpAdmin::Handlers handlers;
  handlers["/livez"] = [] { return HttpResponse{.body = "ok\n"}; };
  handlers["/readyz"] = [not_ready = std::move(not_ready)] {
    const std::string reason = not_ready();
    if (reason.empty()) return HttpResponse{.body = "ok\n"};
    return HttpResponse{.status = 503, .body = "not ready: " + reason + "\n"};
  };
  handlers["/metrics"] = [metrics_text = std::move(metrics_text)] {
    return HttpResponse{.content_type = "text/plain; version=0.0.4; charset=utf-8",
                        .body = metrics_text()};
  };
  return handlers;
}

}  // namespace quantry
