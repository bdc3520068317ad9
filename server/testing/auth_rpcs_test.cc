// Identity through a running server: every rpc of the descriptors is called
// without credentials, with each role and as another tenant.
#include <grpcpp/generic/generic_stub.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/crc32c.h"
#include "common/digest.h"
#include "common/errors.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/dynamic_message.h"
#include "google/protobuf/util/time_util.h"
#include "gtest/gtest.h"
#include "server/rpc/artifact_streams.h"
#include "server/rpc/permissions.h"
#include "server/rpc/service_context.h"
#include "server/rpc/watch.h"
#include "server/testing/test_server.h"
#include "tests/support/test_jwt.h"

namespace quantry::server::testing {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::MethodDescriptor;
using google::protobuf::util::TimeUtil;

constexpr auto kLook = std::chrono::milliseconds(10);
constexpr char kUid[] = "00000000-0000-4000-8000-000000000000";

struct Credential {
  const char *token, *role, *tenant;
  bool expired = false;
};
constexpr Credential kCredentials[] = {
    {"qtk_viewer", "viewer", "acme"}, {"qtk_submitter", "submitter", "acme"},
    {"qtk_admin", "admin", "acme"},   {"qtk_root", "admin", "*"},
    {"qtk_reader", "viewer", "*"},    {"qtk_other", "admin", "other"},
    {"qtk_worker", "worker", "*"},    {"qtk_late", "admin", "*", true},
};

std::string LineOf(const Credential& credential, std::int64_t expire_seconds = 0) {
  std::string line = absl::StrCat(R"({"principal":")", credential.token + 4, R"(","role":")",
                                  credential.role, R"(","tenant":")", credential.tenant,
                                  R"(","token_sha256":")", Sha256Hex(credential.token), "\"");
  if (credential.expired) absl::StrAppend(&line, R"(,"expire_time":"2020-01-01T00:00:00Z")");
  if (expire_seconds > 0) {
    absl::StrAppend(&line, R"(,"expire_time":")",
                    TimeUtil::ToString(TimeUtil::SecondsToTimestamp(expire_seconds)), "\"");
  }
  return line + "}\n";
}

// A row of docs/security.md: what is promised, apart from the code's table.
struct Promise {
  std::string rpc, role, tenant, audited;
};

std::vector<Promise> Promises() {
  std::ifstream in(QUANTRY_SOURCE_DIR "/docs/security.md");
  std::vector<Promise> rows;
  for (std::string line; std::getline(in, line);) {
    const std::vector<std::string> cells = absl::StrSplit(line, " | ");
    if (cells.size() != 4 || cells[0].find("Service/") == std::string::npos) continue;
    rows.push_back(
        {cells[0].substr(2), cells[1], cells[2], cells[3].substr(0, cells[3].find(' '))});
  }
  return rows;
}

// Of every file of proto/ that has a service, so that none is forgotten.
std::map<std::string, const MethodDescriptor*> MethodsOfDescriptors() {
  std::map<std::string, const MethodDescriptor*> methods;
  for (const auto& entry :
       std::filesystem::directory_iterator(QUANTRY_SOURCE_DIR "/proto/quantry/v1")) {
    std::stringstream text;
    text << std::ifstream(entry.path()).rdbuf();
    if (text.str().find("\nservice ") == std::string::npos) continue;
    const auto* file = google::protobuf::DescriptorPool::generated_pool()->FindFileByName(
        "quantry/v1/" + entry.path().filename().string());
    if (file == nullptr) {
      ADD_FAILURE() << entry.path() << ": no part of this program";
      continue;
    }
    for (int i = 0; i < file->service_count(); ++i) {
      const auto& service = *file->service(i);
      for (int j = 0; j < service.method_count(); ++j) {
        methods[absl::StrCat(service.name(), "/", service.method(j)->name())] = service.method(j);
      }
    }
  }
  return methods;
}

TEST(Permissions, MetricsKnowEveryRpc) {
  std::set<std::string> wanted;
  for (const auto& [name, method] : MethodsOfDescriptors()) wanted.insert("/quantry.v1." + name);
  const std::vector<std::string> names = AllMethodNames();
  EXPECT_EQ(std::set<std::string>(names.begin(), names.end()), wanted);
}

TEST(Permissions, EveryRpcHasOneRowAndTheDocumentHasTheSame) {
  const auto methods = MethodsOfDescriptors();
  const std::vector<Promise> promises = Promises();
  std::set<std::string> seen;
  ASSERT_EQ(promises.size(), AllPermissions().size());
  for (size_t i = 0; i < promises.size(); ++i) {
    const Permission& row = AllPermissions()[i];
    EXPECT_EQ(row.method, promises[i].rpc);
    EXPECT_EQ(RoleName(row.least), promises[i].role) << row.method;
    const char* scope = row.scope == Scope::kTenant    ? "own"
                        : row.scope == Scope::kAnybody ? "any"
                                                       : "all";
    EXPECT_EQ(scope, promises[i].tenant) << row.method;
    EXPECT_EQ(row.changes ? "yes" : "no", promises[i].audited) << row.method;
    EXPECT_TRUE(seen.insert(std::string(row.method)).second) << row.method << " twice";
    EXPECT_EQ(methods.count(std::string(row.method)), 1u) << row.method << " is no rpc";
    EXPECT_EQ(FindPermission(absl::StrCat("/quantry.v1.", std::string(row.method))), &row);
    EXPECT_EQ(row.scope == Scope::kTenant,
              row.least != Role::kWorker && !row.name.empty() && row.least != Role::kAdmin)
        << row.method;
  }
  for (const auto& [name, method] : methods) {
    EXPECT_EQ(seen.count(name), 1u) << name << " has no row in server/rpc/permissions.cc";
  }
  EXPECT_EQ(FindPermission("/quantry.v1.AdminService/NoSuchRpc"), nullptr);
  EXPECT_EQ(FindPermission("/grpc.health.v1.Health/Check"), nullptr);
}

// A name of `tenant` that fits the field.
std::string NameFor(const Permission& row, std::string_view tenant) {
  const std::string parent = absl::StrCat("tenants/", std::string(tenant));
  if (row.scope != Scope::kTenant) return "gpu-7";
  if (row.method == "QuantizationService/ListJobEvents") return parent + "/quantizationJobs/job-1";
  if (row.name.size() >= 6 && row.name.substr(row.name.size() - 6) == "parent") return parent;
  if (row.method.substr(0, 8) == "Artifact") return absl::StrCat(parent, "/artifacts/", kUid);
  return parent + "/quantizationJobs/job-1";
}

void SetAt(Message* message, std::string_view path, const std::string& value) {
  const size_t dot = path.find('.');
  const FieldDescriptor* field =
      message->GetDescriptor()->FindFieldByName(std::string(path.substr(0, dot)));
  ASSERT_NE(field, nullptr) << path;
  if (dot == std::string_view::npos) {
    message->GetReflection()->SetString(message, field, value);
  } else {
    SetAt(message->GetReflection()->MutableMessage(message, field), path.substr(dot + 1), value);
  }
}

// One call of any rpc, the first answer of a stream taken and the rest left.
grpc::Status CallRpc(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                     const std::string& request, const std::string& authorization) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
  if (!authorization.empty()) context.AddMetadata("authorization", authorization);
  grpc::CompletionQueue queue;
  const auto stream = stub.PrepareCall(&context, method, &queue);
  const auto done = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  stream->StartCall(nullptr);
  grpc::Slice slice(request);
  const grpc::ByteBuffer out(&slice, 1);
  if (done()) {
    stream->WriteLast(out, grpc::WriteOptions(), nullptr);
    done();
    grpc::ByteBuffer in;
    stream->Read(&in, nullptr);
    if (done()) {
      stream->Read(&in, nullptr);
      // A watch goes on for ever; others have ended by now.
      if (method.find("Watch") != std::string::npos) context.TryCancel();
      done();
    }
  }
  grpc::Status status;
  stream->Finish(&status, nullptr);
  done();
  queue.Shutdown();
  while (done()) {
  }
  return status;
}

class AuthRpcs : public ::testing::Test {
 protected:
  AuthRpcs() : server("auth_rpcs"), principals_(server.root() + "/principals.jsonl") {
    std::filesystem::create_directories(server.root());
    std::string text;
    for (const Credential& credential : kCredentials) text += LineOf(credential);
    WritePrincipals(text);
    server.config().set_principals_file(principals_);
    server.config().set_credentials_reload_s(1);
    server.Start();
  }

  void WritePrincipals(const std::string& text) {
    std::ofstream(principals_ + ".new") << text;
    std::filesystem::rename(principals_ + ".new", principals_);
  }

  absl::Status Call(const Permission& row, const MethodDescriptor& method, std::string_view tenant,
                    const std::string& authorization) {
    const std::unique_ptr<Message> request(google::protobuf::MessageFactory::generated_factory()
                                               ->GetPrototype(method.input_type())
                                               ->New());
    if (!row.name.empty()) SetAt(request.get(), row.name, NameFor(row, tenant));
    const bool worker = row.least == Role::kWorker;
    return FromGrpc(CallRpc(worker ? server.worker_channel : server.tenant_channel,
                            absl::StrCat("/quantry.v1.", std::string(row.method)),
                            request->SerializeAsString(), authorization));
  }

  TestServer server;
  const std::string principals_;
};

// By the document, not by the code under test.
std::string Expected(const Promise& promise, const Credential& credential) {
  static const std::map<std::string, int> ranks = {{"viewer", 0}, {"submitter", 1}, {"admin", 2}};
  if (credential.expired) return "UNAUTHENTICATED";
  const bool is_worker = std::string(credential.role) == "worker";
  if (is_worker != (promise.role == "worker")) return "PERMISSION_DENIED";
  if (!is_worker && ranks.at(credential.role) < ranks.at(promise.role)) return "PERMISSION_DENIED";
  const std::string tenant = credential.tenant;
  if (promise.tenant == "all" && tenant != "*") return "PERMISSION_DENIED";
  if (promise.tenant == "own" && tenant == "other") return "NOT_FOUND";
  return "let in";
}

std::string Outcome(const absl::Status& status) {
  for (const auto code :
       {absl::StatusCode::kUnauthenticated, absl::StatusCode::kPermissionDenied}) {
    if (status.code() == code) return absl::StatusCodeToString(code);
  }
  const bool hidden = status.message().find("whose tenant is") != std::string::npos;
  return hidden ? absl::StatusCodeToString(status.code()) : "let in";
}

TEST_F(AuthRpcs, EachRpcAnswersEachCallerAsTheTableSays) {
  const auto methods = MethodsOfDescriptors();
  for (const Promise& promise : Promises()) {
    const MethodDescriptor& method = *methods.at(promise.rpc);
    const Permission& row = *FindPermission("/quantry.v1." + promise.rpc);
    const absl::Status stranger = Call(row, method, "acme", "");
    EXPECT_EQ(Outcome(stranger), "UNAUTHENTICATED") << promise.rpc << ": " << stranger;
    EXPECT_EQ(MetadataOf(stranger, "cause"), "missing") << promise.rpc;
    EXPECT_EQ(MetadataOf(Call(row, method, "acme", "Bearer qtk_none"), "cause"), "unknown");
    for (const Credential& credential : kCredentials) {
      const absl::Status status =
          Call(row, method, "acme", absl::StrCat("Bearer ", credential.token));
      EXPECT_EQ(Outcome(status), Expected(promise, credential))
          << promise.rpc << " as " << credential.token << ": " << status;
    }
  }
}

TEST_F(AuthRpcs, OnlyHealthIsOpen) {
  EXPECT_TRUE(CallRpc(server.tenant_channel, "/grpc.health.v1.Health/Check", "", "").ok());
  EXPECT_TRUE(CallRpc(server.worker_channel, "/grpc.health.v1.Health/Check", "", "").ok());
}

TEST_F(AuthRpcs, ChangesAreCountedAndDenialsToo) {
  const auto methods = MethodsOfDescriptors();
  const auto call = [&](const std::string& rpc, const std::string& token) {
    return Call(*FindPermission("/quantry.v1." + rpc), *methods.at(rpc), "acme", "Bearer " + token);
  };
  EXPECT_TRUE(call("AdminService/PauseQueue", "qtk_root").ok());
  EXPECT_FALSE(call("AdminService/PauseQueue", "qtk_admin").ok());
  EXPECT_TRUE(call("AdminService/GetQueueStats", "qtk_root").ok());
  EXPECT_FALSE(call("AdminService/GetQueueStats", "qtk_none").ok());
  EXPECT_EQ(server.Metric(R"(quantry_audit_lines_total{outcome="ok"})"), 1);
  EXPECT_EQ(server.Metric(R"(quantry_audit_lines_total{outcome="error"})"), 1);
  EXPECT_EQ(server.Metric(R"(quantry_calls_denied_total{code="PERMISSION_DENIED"})"), 1);
  EXPECT_EQ(server.Metric(R"(quantry_calls_denied_total{code="UNAUTHENTICATED"})"), 1);
}

class AuthWatch : public AuthRpcs {
 protected:
  // A watch of a queued job, its snapshot read; then the wait for its end.
  absl::Status WatchAs(const std::string& token, const std::function<void()>& meanwhile) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    context.AddMetadata("authorization", "Bearer " + token);
    v1::WatchQuantizationJobRequest request;
    request.set_name(NameOf("job-1"));
    const auto stream = server.jobs->WatchQuantizationJob(&context, request);
    v1::WatchQuantizationJobResponse message;
    EXPECT_TRUE(stream->Read(&message));
    EXPECT_TRUE(message.has_snapshot());
    meanwhile();
    while (stream->Read(&message)) {
    }
    return FromGrpc(stream->Finish());
  }

  struct Watch {
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReader<v1::WatchQuantizationJobResponse>> stream;
  };
  std::unique_ptr<Watch> Open(const std::string& token) {
    v1::WatchQuantizationJobRequest request;
    request.set_name(NameOf("job-1"));
    auto watch = std::make_unique<Watch>();
    watch->context.AddMetadata("authorization", "Bearer " + token);
    watch->stream = server.jobs->WatchQuantizationJob(&watch->context, request);
    return watch;
  }

  // The server knows these alone from now on.
  void Reload(const std::string& principals) {
    const std::string reloads = R"(quantry_credential_reloads_total{outcome="ok"})";
    const double before = server.Metric(reloads);
    WritePrincipals(principals);
    while (server.Metric(reloads) == before) std::this_thread::sleep_for(kLook);
  }

  void CreateJob(int64_t expire_seconds = 0) {
    v1::BlobFile file;
    const std::string text = "{}";
    grpc::ClientContext upload;
    upload.AddMetadata("authorization", "Bearer qtk_submitter");
    v1::UploadBlobResponse uploaded;
    auto stream = server.artifacts->UploadBlob(&upload, &uploaded);
    v1::UploadBlobRequest chunk;
    chunk.mutable_header()->set_parent("tenants/acme");
    chunk.mutable_header()->mutable_blob()->set_sha256(Sha256Hex(text));
    chunk.mutable_header()->mutable_blob()->set_size_bytes(2);
    stream->Write(chunk);
    chunk.mutable_chunk()->set_data(text);
    chunk.mutable_chunk()->set_crc32c(Crc32c(text));
    stream->Write(chunk);
    stream->WritesDone();
    ASSERT_TRUE(stream->Finish().ok());
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer qtk_submitter");
    v1::CreateQuantizationJobRequest request;
    request.set_parent("tenants/acme");
    request.set_quantization_job_id("job-1");
    if (expire_seconds > 0) {
      request.mutable_quantization_job()->mutable_expire_time()->set_seconds(expire_seconds);
    }
    v1::JobSpec& spec = *request.mutable_quantization_job()->mutable_spec();
    file.set_path("config.json");
    file.set_sha256(Sha256Hex(text));
    file.set_size_bytes(2);
    *spec.mutable_model()->mutable_blobs()->add_files() = file;
    spec.mutable_method()->mutable_rtn()->mutable_grid()->set_bits(4);
    v1::CreateQuantizationJobResponse response;
    const grpc::Status status = server.jobs->CreateQuantizationJob(&context, request, &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
};

TEST_F(AuthWatch, AJobThatExpiresGetsALineInTheAuditLog) {
  const std::string lines = R"(quantry_audit_lines_total{outcome="ok"})";
  CreateJob(1);  // long ago: removed by the first sweep after its end
  grpc::ClientContext context;
  context.AddMetadata("authorization", "Bearer qtk_submitter");
  v1::CancelQuantizationJobRequest request;
  request.set_name(NameOf("job-1"));
  v1::QuantizationJob response;
  const auto before = server.Metric(lines);
  ASSERT_TRUE(server.jobs->CancelQuantizationJob(&context, request, &response).ok());
  for (int i = 0; i < 200 && server.Metric(lines) < before + 2; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  EXPECT_EQ(server.Metric(lines), before + 2) << "the cancel, then the expiry";
}

TEST_F(AuthWatch, OnePrincipalMayNotHoldAllWatches) {
  CreateJob();
  std::string namesake = LineOf(kCredentials[4]);  // of another tenant
  namesake.replace(namesake.find("reader"), 6, "viewer");
  Reload(LineOf(kCredentials[0]) + LineOf(kCredentials[1]) + namesake);
  v1::WatchQuantizationJobResponse message;
  std::vector<std::unique_ptr<Watch>> watches;
  for (int i = 0; i < kWatchesOfOne; ++i) {
    watches.push_back(Open("qtk_viewer"));
    ASSERT_TRUE(watches.back()->stream->Read(&message)) << i;
  }
  const auto one_more = Open("qtk_viewer");
  EXPECT_FALSE(one_more->stream->Read(&message));
  EXPECT_EQ(ReasonOf(FromGrpc(one_more->stream->Finish())), "RESOURCE_LIMIT");
  const auto another = Open("qtk_submitter");
  EXPECT_TRUE(another->stream->Read(&message)) << "another principal";
  const auto other_tenants = Open("qtk_reader");
  EXPECT_TRUE(other_tenants->stream->Read(&message)) << "another one of that name";
  watches[0]->context.TryCancel();
  while (watches[0]->stream->Read(&message)) {
  }
  // Its place is free once the server has seen it go.
  std::unique_ptr<Watch> again;
  do {
    again = Open("qtk_viewer");
  } while (!again->stream->Read(&message));
  for (const auto& watch : watches) watch->context.TryCancel();
  for (const auto& watch : {again.get(), another.get(), other_tenants.get()}) {
    watch->context.TryCancel();
  }
}

TEST_F(AuthWatch, OnePrincipalMayNotHoldAllUploadsAndDownloads) {
  CreateJob();
  struct Upload {
    grpc::ClientContext context;
    v1::UploadBlobResponse response;
    std::unique_ptr<grpc::ClientWriter<v1::UploadBlobRequest>> stream;
  };
  const auto open = [&](const std::string& token) {
    auto upload = std::make_unique<Upload>();
    upload->context.AddMetadata("authorization", "Bearer " + token);
    upload->stream = server.artifacts->UploadBlob(&upload->context, &upload->response);
    return upload;
  };
  const std::string started =
      R"(grpc_server_call_started_total{grpc_method="/quantry.v1.ArtifactService/UploadBlob"})";
  const double before = server.Metric(started);
  std::vector<std::unique_ptr<Upload>> uploads;
  for (int i = 0; i < kArtifactStreamsOfOne; ++i) uploads.push_back(open("qtk_submitter"));
  while (server.Metric(started) < before + kArtifactStreamsOfOne) std::this_thread::yield();
  const absl::Status one_more = FromGrpc(open("qtk_submitter")->stream->Finish());
  EXPECT_EQ(ReasonOf(one_more), "RESOURCE_LIMIT") << one_more;
  EXPECT_TRUE(RetryAfterOf(one_more).has_value());
  const auto read = [&](const std::string& token) {
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer " + token);
    v1::ReadArtifactRequest request;
    request.set_name(absl::StrCat("tenants/acme/artifacts/", kUid));
    return ReasonOf(FromGrpc(server.artifacts->ReadArtifact(&context, request)->Finish()));
  };
  EXPECT_EQ(read("qtk_submitter"), "RESOURCE_LIMIT");
  EXPECT_EQ(read("qtk_viewer"), "ARTIFACT_NOT_FOUND") << "another principal";
  uploads[0]->context.TryCancel();
  uploads[0]->stream->Finish();
  // Its place is free once the server has seen it go.
  std::string reason;
  while ((reason = read("qtk_submitter")) == "RESOURCE_LIMIT") std::this_thread::yield();
  EXPECT_EQ(reason, "ARTIFACT_NOT_FOUND");
  for (const auto& upload : uploads) upload->context.TryCancel();
  for (size_t i = 1; i < uploads.size(); ++i) uploads[i]->stream->Finish();
}

TEST_F(AuthWatch, AStreamEndsWithItsCredential) {
  CreateJob();
  // Withdrawn while the stream is open.
  const absl::Status withdrawn =
      WatchAs("qtk_viewer", [this] { WritePrincipals(LineOf(kCredentials[1])); });
  EXPECT_EQ(MetadataOf(withdrawn, "cause"), "unknown") << withdrawn;

  // Expired while the stream is open.
  const Credential brief = {"qtk_brief", "viewer", "acme"};
  const std::int64_t now = std::chrono::duration_cast<std::chrono::seconds>(
                               std::chrono::system_clock::now().time_since_epoch())
                               .count();
  Reload(LineOf(kCredentials[1]) + LineOf(brief, now + 4));
  const absl::Status expired = WatchAs("qtk_brief", [] {});
  EXPECT_EQ(MetadataOf(expired, "cause"), "expired") << expired;
}

TEST_F(AuthWatch, AStreamRestsUntilItsCredentialEndsHoweverFarThatIs) {
  CreateJob();
  constexpr std::int64_t kYear9999 = 253402300799;
  const Credential lasting = {"qtk_lasting", "viewer", "acme"};
  Reload(LineOf(lasting, kYear9999));
  const std::string gets = R"(quantry_store_op_seconds_count{op="get"})";
  double reads = 0;
  WatchAs("qtk_lasting", [&] {
    reads = -server.Metric(gets);
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    reads += server.Metric(gets);
    Reload("");
  }).IgnoreError();
  EXPECT_LT(reads, 20);
}

TEST_F(AuthWatch, WatchesCountForTheNameTheyBeganUnder) {
  CreateJob();
  std::string renamed = LineOf(kCredentials[0]);
  renamed.replace(renamed.find("viewer"), 6, "onlooker");
  constexpr int kRounds = 2;  // the first must not take places from the second
  for (int round = 0; round < kRounds; ++round) {
    Reload(LineOf(kCredentials[0]));
    std::vector<std::unique_ptr<Watch>> watches;
    for (int i = 0; i < kWatchesOfOne; ++i) {
      watches.push_back(Open("qtk_viewer"));
      v1::WatchQuantizationJobResponse message;
      ASSERT_TRUE(watches.back()->stream->Read(&message)) << round << ", " << i;
    }
    Reload(renamed);
    for (const auto& watch : watches) watch->context.TryCancel();
    for (const auto& watch : watches) {
      v1::WatchQuantizationJobResponse message;
      while (watch->stream->Read(&message)) {
      }
    }
    while (server.Metric("quantry_watch_streams") > 0) std::this_thread::sleep_for(kLook);
  }
}

class TwoHoursAhead : public SystemClock {
 public:
  Time Now() const override { return SystemClock::Now() + std::chrono::hours(2); }
};

// The job store's clock is two hours behind: this machine's was set right after the server began,
// or the database's is wrong.
TEST(AuthClock, CredentialsCountByTheWallClock) {
  const TwoHoursAhead wall_clock;
  TestServer server("auth_clock");
  std::filesystem::create_directories(server.root());
  const quantry::testing::JwtKey key(quantry::testing::JwtKey::Kind::kEc);
  std::ofstream(server.root() + "/jwks") << R"({"keys":[)" << key.Jwk("e") << "]}";
  server.config().set_jwks_file(server.root() + "/jwks");
  server.config().set_jwt_issuer("https://issuer");
  server.config().set_jwt_audience("quantry");
  server.wall_clock = &wall_clock;
  server.Start();
  const auto call = [&](std::int64_t nbf, std::int64_t exp) {
    const std::string claims = absl::StrCat(
        R"({"iss":"https://issuer","aud":"quantry","sub":"ann","quantry_role":"viewer",)",
        R"("quantry_tenant":"acme","nbf":)", nbf, R"(,"exp":)", exp, "}");
    grpc::ClientContext context;
    context.AddMetadata("authorization",
                        "Bearer " + key.Sign(R"({"alg":"ES256","kid":"e"})", claims));
    v1::ListQuantizationJobsRequest request;
    request.set_parent("tenants/acme");
    v1::ListQuantizationJobsResponse response;
    return FromGrpc(server.jobs->ListQuantizationJobs(&context, request, &response));
  };
  const std::int64_t now = ToUnixMicros(wall_clock.Now()) / 1'000'000;
  const absl::Status begun = call(now, now + 600);
  EXPECT_TRUE(begun.ok()) << begun;
  const absl::Status ended = call(now - 7200, now - 3600);
  EXPECT_EQ(MetadataOf(ended, "cause"), "expired") << ended;
}

}  // namespace
}  // namespace quantry::server::testing
