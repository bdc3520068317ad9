// Azure's client as it is, over a store of a few lines whose connections break.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "common/storage.h"
#include "common/storage_repeat.h"

namespace quantry {
namespace {

using std::chrono::milliseconds;
using storage_internal::BrokeOff;
using storage_internal::kMaxRepeats;
using storage_internal::RepeatDelay;
using storage_internal::UntilWhole;

constexpr char kTime[] = "Fri, 27 Nov 2026 01:00:00 GMT";

// A container that holds nothing but "p/a.txt", whatever is asked, and takes what is written.
// With `goes` somebody else deletes it after the first list.
// After the first `whole` lists, `breaks` of them end in their middle. One request a connection,
// one connection after the other.
class BreakingStore {
 public:
  BreakingStore() : listener_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    auto* plain = reinterpret_cast<sockaddr*>(&address);
    if (bind(listener_, plain, size) != 0 || listen(listener_, 16) != 0 ||
        getsockname(listener_, plain, &size) != 0) {
      abort();
    }
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { Serve(); });
  }
  ~BreakingStore() {
    shutdown(listener_, SHUT_RDWR);
    thread_.join();
    close(listener_);
  }

  std::string uri() const {
    return "abfs://account@127.0.0.1:" + std::to_string(port_) +
           "/bucket/p?enable_tls=false&credential_kind=anonymous";
  }

  std::atomic<int> whole = 0;
  std::atomic<int> breaks = 0;
  std::atomic<int> lists = 0;
  std::atomic<int> block_bytes = 0;  // written, of any object
  std::atomic<bool> empty = false;
  std::atomic<bool> goes = false;

 private:
  void Serve() {
    for (int client; (client = accept(listener_, nullptr, nullptr)) >= 0; close(client)) {
      std::string head;
      std::string body;
      if (!Receive(client, &head, &body)) continue;
      const std::string answer = Answer(head, body);
      if (send(client, answer.data(), answer.size(), MSG_NOSIGNAL) < 0) continue;
      shutdown(client, SHUT_WR);
    }
  }

  // False when the client went away before the end.
  static bool Receive(int client, std::string* head, std::string* body) {
    constexpr std::string_view kEnd = "\r\n\r\n";
    constexpr std::string_view kLength = "content-length: ";
    constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
    while (head->find(kEnd) == std::string::npos) {
      if (!More(client, head)) return false;
    }
    *body = head->substr(head->find(kEnd) + kEnd.size());
    head->resize(head->find(kEnd));
    const auto length = head->find(kLength);
    const std::size_t size =
        length == std::string::npos ? 0 : std::stoul(head->substr(length + kLength.size()));
    if (size > 0 && head->find("expect: 100-continue") != std::string::npos &&
        send(client, kContinue.data(), kContinue.size(), MSG_NOSIGNAL) < 0) {
      return false;
    }
    while (body->size() < size) {
      if (!More(client, body)) return false;
    }
    return true;
  }

  static bool More(int client, std::string* text) {
    char buffer[4096];
    const ssize_t got = recv(client, buffer, sizeof buffer, 0);
    if (got > 0) text->append(buffer, static_cast<std::size_t>(got));
    return got > 0;
  }

  std::string Answer(const std::string& head, const std::string& body) {
    const auto asks = [&](std::string_view what) { return head.find(what) != std::string::npos; };
    if (asks("comp=list")) return List();
    if (asks("action=getAccessControl")) {  // for hierarchical namespaces
      return "HTTP/1.1 400 No\r\nx-ms-error-code: HierarchicalNamespaceNotEnabled\r\n"
             "Content-Length: 0\r\nConnection: close\r\n\r\n";
    }
    if (asks("comp=lease") && empty) {
      return "HTTP/1.1 404 No\r\nx-ms-error-code: BlobNotFound\r\n"
             "Content-Length: 0\r\nConnection: close\r\n\r\n";
    }
    if (asks("comp=block&") || asks("comp=block ")) block_bytes += static_cast<int>(body.size());
    const std::string status = head.starts_with("HEAD")    ? "200 OK"
                               : asks("x-ms-copy-source:") ? "202 Accepted"
                                                           : "201 Created";
    return "HTTP/1.1 " + status + "\r\nETag: \"1\"\r\nLast-Modified: " + kTime +
           "\r\nx-ms-creation-time: " + kTime +
           "\r\nx-ms-blob-type: BlockBlob\r\nx-ms-server-encrypted: true\r\n"
           "x-ms-request-server-encrypted: true\r\nx-ms-copy-id: 1\r\n"
           "x-ms-copy-status: success\r\nContent-Type: application/octet-stream\r\n"
           "Content-Length: 0\r\nConnection: close\r\n\r\n";
  }

  std::string List() {
    const std::string time = kTime;
    const std::string blob = "<Blob><Name>p/a.txt</Name><Properties><Creation-Time>" + time +
                             "</Creation-Time><Last-Modified>" + time +
                             "</Last-Modified><Etag>1</Etag><Content-Length>5</Content-Length>"
                             "<BlobType>BlockBlob</BlobType></Properties></Blob>";
    const std::string body =
        "<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults "
        "ServiceEndpoint=\"http://x/\" ContainerName=\"bucket\"><Blobs>" +
        (empty ? "" : blob) + "</Blobs><NextMarker /></EnumerationResults>";
    if (goes) empty = true;
    const bool cut = lists++ >= whole && breaks > 0;
    if (cut) --breaks;
    return "HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nConnection: close\r\n"
           "Content-Length: " +
           std::to_string(body.size()) + "\r\n\r\n" +
           (cut ? body.substr(0, body.size() / 2) : body);
  }

  const int listener_;
  int port_ = 0;
  std::thread thread_;
};

class AzureStorage : public testing::Test {
 protected:
  void SetUp() override {
    auto storage = OpenStorage(store_.uri());
    ASSERT_TRUE(storage.ok()) << storage.status();
    storage_ = *std::move(storage);
  }

  BreakingStore store_;
  std::unique_ptr<Storage> storage_;
};

TEST_F(AzureStorage, AListThatBreaksOffIsAskedForAgain) {
  store_.breaks = 2;
  const auto files = storage_->List("");
  ASSERT_TRUE(files.ok()) << files.status();
  ASSERT_EQ(files->size(), 1u);
  EXPECT_EQ(files->at(0).path, "a.txt");
  EXPECT_EQ(store_.lists, 3);
}

TEST_F(AzureStorage, ALookUpThatBreaksOffIsAskedForAgain) {
  store_.breaks = 1;
  const auto found = storage_->Stat("a.txt");
  ASSERT_TRUE(found.ok()) << found.status();
  ASSERT_TRUE(found->has_value());
  EXPECT_EQ((*found)->size_bytes, 5);
  EXPECT_EQ(store_.lists, 2);
}

TEST_F(AzureStorage, ADeletionThatBreaksOffIsAskedForAgain) {
  store_.empty = true;
  store_.breaks = 1;
  const absl::Status deleted = storage_->DeleteTree("none");
  EXPECT_TRUE(deleted.ok()) << deleted;
  EXPECT_EQ(store_.lists, 2);
}

// One that was there when it was looked up: Arrow asks for a list to say what it is now.
TEST_F(AzureStorage, ADeletionOfWhatHasJustGoneAsksForItsListAgain) {
  store_.goes = true;
  store_.whole = 1;
  store_.breaks = 1;
  const absl::Status deleted = storage_->Delete("a.txt");
  EXPECT_TRUE(deleted.ok()) << deleted;
  EXPECT_EQ(store_.lists, 3);
  EXPECT_EQ(store_.breaks, 0);
}

// A new object asks for lists of its temporary, of the folder it goes to, of what is to remove.
TEST_F(AzureStorage, AWriteWhoseListsBreakOffAsksForThemAgain) {
  store_.empty = true;
  for (const int whole : {0, 1, 2}) {
    store_.lists = 0;
    store_.whole = whole;
    store_.breaks = 1;
    const absl::Status written = storage_->Write("b.txt", "hello");
    EXPECT_TRUE(written.ok()) << written;
    EXPECT_EQ(store_.lists, 4) << whole;
    EXPECT_EQ(store_.breaks, 0) << whole;
  }
  EXPECT_EQ(store_.block_bytes, 15);
}

const auto kBroken = arrow::Status::IOError(
    "Failed to list blobs: Azure Error: [] Connection closed before getting full response or "
    "response is less than expected. Expected response length = 483. Read until now = 241");

TEST(UntilWhole, StopsAtTheFirstWholeAnswer) {
  int calls = 0;
  std::vector<milliseconds> waits;
  const auto status = UntilWhole([&] { return ++calls < 3 ? kBroken : arrow::Status::OK(); },
                                 [&](milliseconds wait) { waits.push_back(wait); });
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(calls, 3);
  EXPECT_EQ(waits.size(), 2u);
}

TEST(UntilWhole, GivesUpAfterAWhile) {
  int calls = 0;
  milliseconds waited{0};
  const auto result = UntilWhole([&]() -> arrow::Result<int> { return ++calls, kBroken; },
                                 [&](milliseconds wait) { waited += wait; });
  EXPECT_TRUE(result.status().IsIOError());
  EXPECT_EQ(calls, 1 + kMaxRepeats);
  EXPECT_GE(waited, std::chrono::seconds(5));
  EXPECT_LE(waited, std::chrono::seconds(11));
}

TEST(UntilWhole, AnAnswerIsAnAnswer) {
  int calls = 0;
  const auto status =
      UntilWhole([&] { return ++calls, arrow::Status::IOError("Azure Error: [Busy] 503 Busy."); },
                 [](milliseconds) { FAIL(); });
  EXPECT_TRUE(status.IsIOError());
  EXPECT_EQ(calls, 1);
}

TEST(BrokeOff, OnlyWhatTheClientDoesNotRepeatItself) {
  EXPECT_TRUE(BrokeOff(kBroken, std::chrono::seconds(10)));
  EXPECT_FALSE(BrokeOff(arrow::Status::Invalid(kBroken.message()), {}));
  EXPECT_FALSE(BrokeOff(arrow::Status::OK(), {}));
  for (const char* text :
       {"Error while reading from network socket. CURLE code: 56. Failure when receiving",
        "Connection was closed by the server while trying to read a response"}) {
    const auto status = arrow::Status::IOError("Azure Error: [] ", text);
    EXPECT_TRUE(BrokeOff(status, milliseconds(100))) << text;
    EXPECT_FALSE(BrokeOff(status, std::chrono::seconds(6))) << text << ", of four requests";
  }
  EXPECT_FALSE(BrokeOff(arrow::Status::IOError("Fail to get a new connection for: http://x"), {}));
}

TEST(RepeatDelay, GrowsAndEnds) {
  for (int repeated = 0; repeated < 20; ++repeated) {
    EXPECT_GE(RepeatDelay(repeated), milliseconds(100));
    EXPECT_LE(RepeatDelay(repeated), milliseconds(2500));
  }
  EXPECT_LE(RepeatDelay(0), milliseconds(200));
  EXPECT_GE(RepeatDelay(19), milliseconds(1250));
}

}  // namespace
}  // namespace quantry
