#include "common/http_admin.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <condition_variable>
#include <mutex>
#include <string>
#include <vector>

#include "common/listen_address.h"
#include "gtest/gtest.h"

namespace quantry {
namespace {

int Connect(const HttpAdmin& server) {
  const auto address = ParseListenAddress(server.address());
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(address->port);
  inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to), 0);
  return fd;
}

std::string ReadAll(int fd) {
  std::string all;
  char buffer[1024];
  for (ssize_t got; (got = read(fd, buffer, sizeof buffer)) > 0;) {
    all.append(buffer, static_cast<size_t>(got));
  }
  close(fd);
  return all;
}

std::string Send(const HttpAdmin& server, const std::string& request) {
  const int fd = Connect(server);
  EXPECT_EQ(send(fd, request.data(), request.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(request.size()));
  return ReadAll(fd);
}

class HttpAdminTest : public testing::Test {
 protected:
  void SetUp() override {
    auto started = HttpAdmin::Start(
        "127.0.0.1:0", StandardHandlers([this] { return metrics_; }, [this] { return reason_; }));
    ASSERT_TRUE(started.ok()) << started.status();
    server_ = *std::move(started);
  }

  std::string metrics_ = "up 1\n";
  std::string reason_;
  std::unique_ptr<HttpAdmin> server_;
};

TEST_F(HttpAdminTest, ServesPages) {
  const std::string metrics = Send(*server_, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
  EXPECT_EQ(metrics.rfind("HTTP/1.1 200 OK\r\n", 0), 0u) << metrics;
  EXPECT_NE(metrics.find("version=0.0.4"), std::string::npos);
  EXPECT_EQ(metrics.substr(metrics.size() - 5), "up 1\n");
  EXPECT_NE(Send(*server_, "GET /livez?x=1 HTTP/1.1\r\n\r\n").find("200 OK"), std::string::npos);
}

TEST_F(HttpAdminTest, ReadinessSaysWhyNot) {
  reason_ = "the store is down";
  const std::string answer = Send(*server_, "GET /readyz HTTP/1.1\r\n\r\n");
  EXPECT_EQ(answer.rfind("HTTP/1.1 503", 0), 0u);
  EXPECT_NE(answer.find("the store is down"), std::string::npos);
}

TEST_F(HttpAdminTest, BadRequestsGetShortAnswers) {
  const std::pair<std::string, std::string> cases[] = {
      {"GET /other HTTP/1.1\r\n\r\n", "404"},    {"POST /metrics HTTP/1.1\r\n\r\n", "405"},
      {"GET /metrics\r\n\r\n", "400"},           {"\r\n\r\n", "400"},
      {"GET  HTTP/1.1\r\n\r\n", "404"},          {std::string("\0\0\0 \r\n\r\n", 8), "400"},
      {"GET /" + std::string(9000, 'a'), "431"},
  };
  for (const auto& [request, status] : cases) {
    EXPECT_EQ(Send(*server_, request).rfind("HTTP/1.1 " + status, 0), 0u) << request.substr(0, 40);
  }
}

TEST_F(HttpAdminTest, RequestsForAnotherHostAreRefused) {
  const std::string rebound = "GET /metrics HTTP/1.1\r\nHost: evil.example:7072\r\n\r\n";
  const std::string answer = Send(*server_, rebound);
  EXPECT_EQ(answer.rfind("HTTP/1.1 421 Misdirected Request\r\n", 0), 0u) << answer;
  EXPECT_NE(answer.find("--admin-hosts=evil.example"), std::string::npos) << answer;
  EXPECT_EQ(answer.find("up 1"), std::string::npos);
  const std::string head = Send(*server_, "HEAD /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n");
  EXPECT_EQ(head.rfind("HTTP/1.1 421", 0), 0u) << head;
  EXPECT_EQ(head.find("--admin-hosts"), std::string::npos);
  EXPECT_EQ(
      Send(*server_, "GET /livez HTTP/1.1\r\nHost: 10.1.2.3:8072\r\n\r\n").rfind("HTTP/1.1 200", 0),
      0u);
}

TEST_F(HttpAdminTest, HostsOfAProxyAndOfANetwork) {
  const struct {
    const char* name;
    const char* address;
    HttpAdminAccess access;
    const char* status;
  } cases[] = {
      {"listed", "127.0.0.1:0", {.hosts = {"gate.example"}}, "200"},
      {"not listed", "127.0.0.1:0", {.hosts = {"other.example"}}, "421"},
      {"open to a network", "0.0.0.0:0", {.beyond_loopback = true}, "200"},
      {"a network's listed names", "0.0.0.0:0", {true, {"gate.example"}}, "200"},
      {"none of a network's listed names", "0.0.0.0:0", {true, {"other.example"}}, "421"},
  };
  for (const auto& c : cases) {
    auto server = HttpAdmin::Start(
        c.address, StandardHandlers([] { return ""; }, [] { return ""; }), c.access);
    ASSERT_TRUE(server.ok()) << c.name << server.status();
    const std::string answer =
        Send(**server, "GET /livez HTTP/1.1\r\nHost: gate.example:443\r\n\r\n");
    EXPECT_EQ(answer.substr(9, 3), c.status) << c.name;
  }
  EXPECT_EQ(HttpAdmin::Start("127.0.0.1:0", {}, {.hosts = {"a:80"}}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(HttpAdminTest, HeadGetsTheHeadersAlone) {
  const std::string head = Send(*server_, "HEAD /metrics HTTP/1.1\r\n\r\n");
  EXPECT_NE(head.find("Content-Length: 5\r\n"), std::string::npos);
  EXPECT_EQ(head.substr(head.size() - 4), "\r\n\r\n");
  EXPECT_NE(head.find("X-Content-Type-Options: nosniff\r\n"), std::string::npos);
  const std::string post = Send(*server_, "DELETE /metrics HTTP/1.1\r\n\r\n");
  EXPECT_NE(post.find("Allow: GET, HEAD\r\n"), std::string::npos);
}

// Pages that do not answer before they are told to.
class SlowPagesTest : public HttpAdminTest {
 protected:
  void SetUp() override {
    auto started =
        HttpAdmin::Start("127.0.0.1:0", StandardHandlers([] { return ""; }, [] { return ""; }), {},
                         [this](const std::string& path) {
                           std::unique_lock lock(mutex_);
                           ++asked_;
                           changed_.notify_all();
                           changed_.wait(lock, [this] { return open_; });
                           return HttpResponse{.body = path, .headers = {{"X-Page", "1"}}};
                         });
    ASSERT_TRUE(started.ok()) << started.status();
    server_ = *std::move(started);
  }
  void TearDown() override { Open(); }

  void WaitUntilAsked() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return asked_ > 0; });
  }
  void Open() {
    std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  int Ask(const std::string& path) {
    const int fd = Connect(*server_);
    const std::string request = "GET " + path + " HTTP/1.1\r\n\r\n";
    EXPECT_EQ(send(fd, request.data(), request.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(request.size()));
    return fd;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  int asked_ = 0;
  bool open_ = false;
};

TEST_F(SlowPagesTest, ASlowPageDelaysNoProbe) {
  const int page = Ask("/jobs/a?x=1");
  WaitUntilAsked();
  EXPECT_NE(Send(*server_, "GET /livez HTTP/1.1\r\n\r\n").find("200 OK"), std::string::npos);
  Open();
  const std::string answer = ReadAll(page);
  EXPECT_EQ(answer.substr(answer.size() - 7), "/jobs/a");
  EXPECT_NE(answer.find("X-Page: 1\r\n"), std::string::npos);
}

TEST_F(SlowPagesTest, WaitingRequestsAreBounded) {
  std::vector<int> fds = {Ask("/0")};
  WaitUntilAsked();  // now /0 is being answered and all others wait
  for (int i = 1; i <= 20; ++i) fds.push_back(Ask("/" + std::to_string(i)));
  // The server reads in order of arrival; a probe after them has been answered
  // only when they were read too.
  EXPECT_NE(Send(*server_, "GET /livez HTTP/1.1\r\n\r\n").find("200 OK"), std::string::npos);
  Open();
  int refused = 0;
  for (const int fd : fds) refused += ReadAll(fd).rfind("HTTP/1.1 503", 0) == 0 ? 1 : 0;
  EXPECT_EQ(refused, 4);
}

TEST_F(SlowPagesTest, EndsWithRequestsInTheAir) {
  const int page = Ask("/jobs/a");
  WaitUntilAsked();
  close(page);
  const int other = Ask("/jobs/b");
  Open();
  server_.reset();
  close(other);
}

TEST_F(HttpAdminTest, LargePagesArriveWhole) {
  metrics_ = std::string(8 << 20, 'm');
  EXPECT_GT(Send(*server_, "GET /metrics HTTP/1.1\r\n\r\n").size(), metrics_.size());
}

TEST_F(HttpAdminTest, ASilentClientDelaysNobody) {
  const int silent = Connect(*server_);
  const int half = Connect(*server_);
  ASSERT_EQ(send(half, "GET /li", 7, MSG_NOSIGNAL), 7);
  EXPECT_NE(Send(*server_, "GET /livez HTTP/1.1\r\n\r\n").find("200 OK"), std::string::npos);
  ASSERT_EQ(send(half, "vez HTTP/1.1\r\n\r\n", 16, MSG_NOSIGNAL), 16);
  EXPECT_NE(ReadAll(half).find("200 OK"), std::string::npos);
  close(silent);
}

TEST_F(HttpAdminTest, StopsWithOpenConnections) {
  const int open = Connect(*server_);
  server_.reset();
  EXPECT_EQ(ReadAll(open), "");
}

TEST_F(HttpAdminTest, RefusesOtherAddresses) {
  EXPECT_EQ(HttpAdmin::Start("0.0.0.0:0", {}).status().code(),
            absl::StatusCode::kFailedPrecondition);
  const auto second = HttpAdmin::Start(server_->address(), {});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(second.status().message().find("in use"), std::string::npos);
}

}  // namespace
}  // namespace quantry
