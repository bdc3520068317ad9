// The two gRPC listeners of quantryd: tenant port (QuantizationService,
// ArtifactService, AdminService when embedded, health, reflection) and worker
// port (WorkerService, health, reflection).
//
// Shutdown order: StopServing (health says NOT_SERVING, watches and long polls
// end) while workers can still report; then Shutdown.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/rpc/service_context.h"

namespace quantry::server {

class RpcServer {
 public:
  struct Addresses {
    std::string tenant;
    std::string worker;
  };

  virtual ~RpcServer() = default;
  // With the ports that were bound.
  virtual const Addresses& addresses() const = 0;
  // What health checks hear; "" and each service.
  virtual void SetServing(bool serving) = 0;
  // Refuses new calls, waits for open ones, cancels what is left at the end
  // of `grace`. Returns when no handler runs any more.
  virtual void Shutdown(std::chrono::milliseconds grace) = 0;
};

// Both addresses HOST:PORT on loopback. `context` must outlive the server.
// Errors: FAILED_PRECONDITION (not loopback, or the port is taken).
absl::StatusOr<std::unique_ptr<RpcServer>> StartRpcServer(const ServiceContext* context,
                                                          const RpcServer::Addresses& listen);

}  // namespace quantry::server
