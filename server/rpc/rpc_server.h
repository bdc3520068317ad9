// The two gRPC listeners of quantryd: tenant port (QuantizationService,
// ArtifactService, AdminService when embedded, health, reflection) and worker
// port (WorkerService, health, reflection).
//
// Shutdown order: StopServing (health says NOT_SERVING, watches and long polls
// end) while workers can still report; then Shutdown.
//
// With TLS both ports speak it and nothing else; the embedded agent then gets
// a third, plain port on loopback that serves what the worker port serves.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/grpc_credentials.h"
#include "server/rpc/service_context.h"

namespace quantry::server {

class RpcServer {
 public:
  struct Addresses {
    std::string tenant;
    std::string worker;
    std::string agent;  // where the embedded agent finds the worker port
  };

  virtual ~RpcServer() = default;
  // With the ports that were bound.
  virtual const Addresses& addresses() const = 0;
  // What health checks hear; "" and each service.
  virtual void SetServing(bool serving) = 0;
  // They hear that it does not serve from now on, whatever SetServing says later.
  virtual void EndServing() = 0;
  // Refuses new calls, waits for open ones, cancels what is left at the end
  // of `grace`. Returns when no handler runs any more.
  virtual void Shutdown(std::chrono::milliseconds grace) = 0;
};

// `listen`: tenant and worker as HOST:PORT. `security` without an identity:
// plain, for loopback. `context` must outlive the server.
// Errors: FAILED_PRECONDITION (beyond loopback without TLS and authentication),
// INVALID_CONFIG (the port is taken, the CRLs of `security` cannot be used).
absl::StatusOr<std::unique_ptr<RpcServer>> StartRpcServer(const ServiceContext* context,
                                                          const RpcServer::Addresses& listen,
                                                          const ServerSecurity& security);

}  // namespace quantry::server
