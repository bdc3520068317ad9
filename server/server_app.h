// quantryd as objects: everything main() needs to run and drain a server.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "quantry/v1/config.pb.h"
#include "server/rpc/rpc_server.h"

namespace quantry::server {

class ServerApp {
 public:
  // Opens the stores, binds the ports, writes the address files, starts the
  // background loops and (embedded) the agent. Any failure undoes all of it.
  // Credentials are judged by `wall_clock`, which outlives it: null for the system's.
  static absl::StatusOr<std::unique_ptr<ServerApp>> Start(const v1::ServerConfig& config,
                                                          const Clock* wall_clock = nullptr);

  virtual ~ServerApp() = default;
  virtual const RpcServer::Addresses& addresses() const = 0;
  virtual std::string admin_address() const = 0;

  // Health NOT_SERVING, watches end, the agent gives its jobs back, open calls
  // finish; all within drain_timeout_s. Call once.
  virtual void Drain() = 0;
};

}  // namespace quantry::server
