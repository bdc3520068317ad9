#include "server/rpc/rpc_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/listen_address.h"
#include "quantry/v1/worker_service.grpc.pb.h"  // grpc::Service
#include "server/rpc/artifact_service.h"
#include "server/rpc/quantization_service.h"
#include "server/rpc/worker_service.h"

namespace quantry::server {
namespace {

// spec/service.md §3.3.
constexpr int kTenantMessageBytes = 1 << 20;
constexpr int kWorkerMessageBytes = 4 << 20;
constexpr int kMaxMetadataBytes = 8 << 10;
constexpr int kMaxStreamsPerConnection = 1000;
constexpr int kMinPingIntervalMs = 30'000;
// A client that went without a word (its machine, a NAT's table) gives its calls
// and watches back after 80 s.
constexpr int kKeepaliveMs = 60'000;
constexpr int kKeepaliveTimeoutMs = 20'000;
// What calls that are open when a connection reaches its age get at most.
constexpr std::chrono::milliseconds kMostAgeGrace = std::chrono::minutes(1);

struct Listener {
  int max_message_bytes = 0;
  std::chrono::milliseconds connection_age{};
  std::int64_t memory_bytes = 0;
  std::vector<std::unique_ptr<grpc::Service>> services = {};
  std::unique_ptr<grpc::Server> server = {};
  std::string address = {};
  bool local_port = false;  // beside `address`, plain, on loopback
  std::string local_address = {};
};

using Credentials = std::shared_ptr<grpc::ServerCredentials>;

// gRPC spreads the age by 10 % itself. Balancers, new certificates and new DNS
// answers get their turn; clients reconnect unseen and resume their watches.
void SetConnectionAge(std::chrono::milliseconds age, grpc::ServerBuilder* builder) {
  builder->AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS, static_cast<int>(age.count()));
  builder->AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS,
                              static_cast<int>(std::min(age, kMostAgeGrace).count()));
}

void SetLimits(int max_message_bytes, grpc::ServerBuilder* out) {
  grpc::ServerBuilder& builder = *out;
  builder.SetMaxReceiveMessageSize(max_message_bytes);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // two servers must not share a port
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinPingIntervalMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);  // however long it is quiet
}

// gRPC reads a message whole before it judges its size, and before anybody knows
// whose it is: only this bounds what strangers make a server hold. Each port has
// its own, so that what tenants send ends no call of a worker. Not a hard limit: it
// is looked at after bytes have come. Windows still follow a line's speed (gRPC's
// BDP probe): fixed ones would bound no message, and a far client's upload would be
// one chunk a round trip.
void SetMemoryLimit(std::int64_t bytes, grpc::ServerBuilder* builder) {
  grpc::ResourceQuota quota;
  quota.Resize(static_cast<size_t>(bytes));
  builder->SetResourceQuota(quota);
}

absl::Status Listen(std::string_view text, const Credentials& credentials, Listener* listener) {
  auto address = ParseListenAddress(text);
  if (!address.ok()) return address.status();
  grpc::ServerBuilder builder;
  SetLimits(listener->max_message_bytes, &builder);
  SetConnectionAge(listener->connection_age, &builder);
  SetMemoryLimit(listener->memory_bytes, &builder);
  int port = 0;
  int local_port = -1;  // stays when there is none
  builder.AddListeningPort(address->ToString(), credentials, &port);
  if (listener->local_port) {
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &local_port);
  }
  for (const auto& service : listener->services) builder.RegisterService(service.get());
  listener->server = builder.BuildAndStart();
  if (listener->server == nullptr || port == 0 || local_port == 0) {
    return MakeError(Reason::kInvalidConfig,
                     absl::StrCat("cannot listen on ", address->ToString(),
                                  ": the port is taken or not allowed; choose another, or port 0"),
                     {{"address", address->ToString()}});
  }
  address->port = static_cast<std::uint16_t>(port);
  listener->address = address->ToString();
  listener->local_address =
      listener->local_port ? absl::StrCat("127.0.0.1:", local_port) : listener->address;
  return absl::OkStatus();
}

class TwoPortServer : public RpcServer {
 public:
  TwoPortServer(Listener tenant, Listener worker)
      : tenant_(std::move(tenant)), worker_(std::move(worker)) {
    addresses_ = {tenant_.address, worker_.address, worker_.local_address};
    SetServing(true);
  }
  ~TwoPortServer() override { Shutdown(std::chrono::milliseconds(0)); }

  const Addresses& addresses() const override { return addresses_; }

  void SetServing(bool serving) override {
    ForEachHealth([serving](auto& health) { health.SetServingStatus(serving); });
  }

  void EndServing() override {
    ForEachHealth([](auto& health) { health.Shutdown(); });
  }

  void Shutdown(std::chrono::milliseconds grace) override {
    if (shut_down_) return;
    shut_down_ = true;
    const auto deadline = std::chrono::system_clock::now() + grace;
    tenant_.server->Shutdown(deadline);
    worker_.server->Shutdown(deadline);
    tenant_.server->Wait();
    worker_.server->Wait();
  }

 private:
  template <class Say>
  void ForEachHealth(const Say& say) {
    for (const Listener* listener : {&tenant_, &worker_}) {
      if (auto* health = listener->server->GetHealthCheckService()) say(*health);
    }
  }

  Listener tenant_;
  Listener worker_;
  Addresses addresses_;
  bool shut_down_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<RpcServer>> StartRpcServer(const ServiceContext* context,
                                                          const RpcServer::Addresses& listen,
                                                          const ServerSecurity& security) {
  const bool tls = security.identity != nullptr;
  if (!tls || context->runtime->auth == nullptr) {
    for (const std::string& text : {listen.tenant, listen.worker}) {
      auto address = ParseListenAddress(text);
      if (!address.ok()) return address.status();
      absl::Status status = RequireLoopback(*address, "TLS and authentication");
      if (!status.ok()) return status;
    }
  }
  Credentials credentials = grpc::InsecureServerCredentials();
  if (tls) {
    auto made = MakeServerCredentials(security);
    if (!made.ok()) return made.status();
    credentials = *std::move(made);
  }
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  const auto age = std::chrono::duration_cast<std::chrono::milliseconds>(context->connection_age);
  Listener tenant{kTenantMessageBytes, age, context->call_memory_bytes};
  tenant.services.push_back(NewQuantizationService(context));
  tenant.services.push_back(NewArtifactService(context));
  tenant.services.push_back(NewAdminService(context));
  Listener worker{kWorkerMessageBytes, age, context->call_memory_bytes};
  worker.services.push_back(NewWorkerService(context));
  worker.local_port = tls && context->embedded;
  absl::Status status = Listen(listen.tenant, credentials, &tenant);
  if (!status.ok()) return status;
  status = Listen(listen.worker, credentials, &worker);
  if (!status.ok()) {
    tenant.server->Shutdown();
    return status;
  }
  return std::make_unique<TwoPortServer>(std::move(tenant), std::move(worker));
}

}  // namespace quantry::server
