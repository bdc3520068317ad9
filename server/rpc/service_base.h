#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "server/rpc/service_context.h"

namespace quantry::server {

// What the services share: the way of a unary rpc from gRPC's callback to a
// member function `absl::Status Body(const Request&, Response*)` of `Service`,
// which derives from this. `context` outlives the service.
template <class Service>
class ServiceBase {
 protected:
  // `name` as in the proto, "AdminService"; bodies run on `executor` unless
  // the call says otherwise.
  ServiceBase(const ServiceContext* context, std::string_view name, Executor* executor)
      : context_(context),
        runtime_(context->runtime),
        prefix_(absl::StrCat("/quantry.v1.", std::string(name), "/")),
        executor_(executor) {}

  template <class Request, class Response>
  using Body = absl::Status (Service::*)(const Request&, Response*);
  // For those that ask who calls, and in which trace.
  template <class Request, class Response>
  using BodyOfCall = absl::Status (Service::*)(const Request&, Response*, const Call&);

  template <class Request, class Response>
  grpc::ServerUnaryReactor* Run(std::string_view method, grpc::CallbackServerContext* call,
                                const Request* request, Response* response,
                                Body<Request, Response> body) {
    return RunOn(executor_, method, call, request, response, body);
  }

  template <class Request, class Response>
  grpc::ServerUnaryReactor* RunOn(Executor* executor, std::string_view method,
                                  grpc::CallbackServerContext* call, const Request* request,
                                  Response* response, Body<Request, Response> body) {
    auto* service = static_cast<Service*>(this);
    return runtime_->Unary<Request, Response>(
        executor, prefix_ + std::string(method), call, request, response,
        [service, body](const Request& in, Response* out, const Call&) {
          return (service->*body)(in, out);
        });
  }

  template <class Request, class Response>
  grpc::ServerUnaryReactor* RunOn(Executor* executor, std::string_view method,
                                  grpc::CallbackServerContext* context, const Request* request,
                                  Response* response, BodyOfCall<Request, Response> body) {
    auto* service = static_cast<Service*>(this);
    return runtime_->Unary<Request, Response>(
        executor, prefix_ + std::string(method), context, request, response,
        [service, body](const Request& in, Response* out, const Call& call) {
          return (service->*body)(in, out, call);
        });
  }

  // For rpcs of later versions; `instead` says what to do meanwhile.
  template <class Request, class Response>
  grpc::ServerUnaryReactor* Unimplemented(std::string_view method,
                                          grpc::CallbackServerContext* call, const Request* request,
                                          Response* response, std::string_view instead) {
    return runtime_->Unimplemented(prefix_ + std::string(method), call, request, response, instead);
  }

  const ServiceContext* const context_;
  RpcRuntime* const runtime_;

 private:
  const std::string prefix_;
  Executor* const executor_;
};

}  // namespace quantry::server
