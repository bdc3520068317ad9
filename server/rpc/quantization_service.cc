#include "server/rpc/quantization_service.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/hub_uri.h"
#include "common/ids.h"
#include "common/recipes.h"
#include "quantry/v1/quantization_service.grpc.pb.h"
#include "server/rpc/convert.h"
#include "server/rpc/filter.h"
#include "server/rpc/own_failure.h"
#include "server/rpc/service_base.h"
#include "server/rpc/stored_bytes.h"
#include "server/rpc/validation.h"
#include "server/rpc/watch.h"

namespace quantry::server {
namespace {

using grpc::CallbackServerContext;
using grpc::ServerUnaryReactor;

// A quote reads headers and counts short texts; a checkpoint with many shards still
// takes time. A caller who waits for less ends it sooner.
constexpr auto kQuoteTime = std::chrono::seconds(60);
// Right after a start the engine may still be loading: nearly as long as clients wait
// (kEngineTime of the CLI).
constexpr auto kCapabilitiesWait = std::chrono::seconds(20);

absl::StatusOr<JobKey> KeyOf(const std::string& name) {
  auto parsed = ParseJobName(name);
  if (!parsed.ok()) return parsed.status();
  return JobKey{parsed->tenant, parsed->id};
}

class JobCalls : public v1::QuantizationService::CallbackService, private ServiceBase<JobCalls> {
  friend ServiceBase;

 public:
  explicit JobCalls(const ServiceContext* context)
      : ServiceBase(context, "QuantizationService", context->runtime->tenant) {}

  ServerUnaryReactor* CreateQuantizationJob(CallbackServerContext* call,
                                            const v1::CreateQuantizationJobRequest* request,
                                            v1::CreateQuantizationJobResponse* response) override {
    return RunOn(CreateExecutor(*request), "CreateQuantizationJob", call, request, response,
                 &JobCalls::Create);
  }
  ServerUnaryReactor* GetQuantizationJob(CallbackServerContext* call,
                                         const v1::GetQuantizationJobRequest* request,
                                         v1::QuantizationJob* response) override {
    return Run("GetQuantizationJob", call, request, response, &JobCalls::Get);
  }
  ServerUnaryReactor* ListQuantizationJobs(CallbackServerContext* call,
                                           const v1::ListQuantizationJobsRequest* request,
                                           v1::ListQuantizationJobsResponse* response) override {
    return Run("ListQuantizationJobs", call, request, response, &JobCalls::List);
  }
  ServerUnaryReactor* UpdateQuantizationJob(CallbackServerContext* call,
                                            const v1::UpdateQuantizationJobRequest* request,
                                            v1::QuantizationJob* response) override {
    return Run("UpdateQuantizationJob", call, request, response, &JobCalls::Update);
  }
  ServerUnaryReactor* CancelQuantizationJob(CallbackServerContext* call,
                                            const v1::CancelQuantizationJobRequest* request,
                                            v1::QuantizationJob* response) override {
    return Run("CancelQuantizationJob", call, request, response, &JobCalls::Cancel);
  }
  ServerUnaryReactor* RetryQuantizationJob(CallbackServerContext* call,
                                           const v1::RetryQuantizationJobRequest* request,
                                           v1::QuantizationJob* response) override {
    return RunOn(runtime_->artifacts, "RetryQuantizationJob", call, request, response,
                 &JobCalls::Retry);
  }
  ServerUnaryReactor* DeleteQuantizationJob(CallbackServerContext* call,
                                            const v1::DeleteQuantizationJobRequest* request,
                                            google::protobuf::Empty* response) override {
    return Run("DeleteQuantizationJob", call, request, response, &JobCalls::Delete);
  }
  grpc::ServerWriteReactor<v1::WatchQuantizationJobResponse>* WatchQuantizationJob(
      CallbackServerContext* call, const v1::WatchQuantizationJobRequest* request) override {
    return StartWatch(context_, call, *request);
  }
  ServerUnaryReactor* ListJobEvents(CallbackServerContext* call,
                                    const v1::ListJobEventsRequest* request,
                                    v1::ListJobEventsResponse* response) override {
    return Run("ListJobEvents", call, request, response, &JobCalls::ListEvents);
  }
  ServerUnaryReactor* ListMethods(CallbackServerContext* call,
                                  const v1::ListMethodsRequest* request,
                                  v1::ListMethodsResponse* response) override {
    return RunOn(EngineExecutor(), "ListMethods", call, request, response, &JobCalls::Methods);
  }
  ServerUnaryReactor* GetServerInfo(CallbackServerContext* call,
                                    const v1::GetServerInfoRequest* request,
                                    v1::ServerInfo* response) override {
    return RunOn(EngineExecutor(), "GetServerInfo", call, request, response, &JobCalls::Info);
  }

 private:
  Executor* CreateExecutor(const v1::CreateQuantizationJobRequest& request) const {
    if (request.validate_only()) return runtime_->slow;
    if (HasUploads(request.quantization_job().spec())) return runtime_->artifacts;
    return NeedsEngine(request) ? EngineExecutor() : runtime_->tenant;
  }

  // Only while the engine has not answered do these calls wait.
  Executor* EngineExecutor() const {
    return context_->capabilities->answered() ? runtime_->tenant : runtime_->slow;
  }

  // The engine's table of recipes, or its version, decides about the request.
  static bool NeedsEngine(const v1::CreateQuantizationJobRequest& request) {
    return request.reuse_result() ||
           !RecipeName(request.quantization_job().spec().method()).empty();
  }

  // What the engine offers; nothing of one that failed. Without its answer a recipe would mean
  // another job than with it: UNAVAILABLE until it is there. A result is then not shared, and which
  // formats a method writes is not worth a wait: the engine looks once more.
  absl::StatusOr<EngineCapabilities> EngineFor(
      const v1::CreateQuantizationJobRequest& request) const {
    const bool needed = NeedsEngine(request);
    const v1::JobSpec& spec = request.quantization_job().spec();
    if (!needed && spec.outputs().empty()) return EngineCapabilities();
    auto known = context_->capabilities->Get(needed ? kCapabilitiesWait : std::chrono::seconds(0));
    const bool unanswered = absl::IsUnavailable(known.status());
    if (known.ok() || (unanswered && !RecipeName(spec.method()).empty())) return known;
    return EngineCapabilities();
  }

  absl::Status Create(const v1::CreateQuantizationJobRequest& request,
                      v1::CreateQuantizationJobResponse* response, const Call& call) {
    const auto engine = EngineFor(request);
    if (!engine.ok()) return engine.status();
    auto submit = ValidateCreate(request, context_->limits, engine->methods);
    if (!submit.ok()) return submit.status();
    submit->engine_version = engine->version;
    absl::Status sources = CheckSources(submit->key.tenant, submit->spec, call);
    if (request.validate_only()) {
      if (sources.ok()) sources = Quote(*submit, response, call);
      return WithoutPlaces("make a quote", sources);
    }
    if (!sources.ok()) return Repeated(*submit, sources, response);
    const auto upload_bytes =
        UploadBytesToCount(*context_, submit->key.tenant, !HasUploads(submit->spec));
    if (!upload_bytes.ok()) return upload_bytes.status();
    submit->upload_bytes = *upload_bytes;
    submit->traceparent = call.traceparent();
    auto result = context_->store->Submit(*submit, context_->clock->Now());
    if (!result.ok()) return result.status();
    *response->mutable_quantization_job() = ToProto(result->job);
    return absl::OkStatus();
  }

  // Sources may be gone since the first call with this request_id: the repeat is told of its job.
  absl::Status Repeated(SubmitRequest& submit, const absl::Status& sources,
                        v1::CreateQuantizationJobResponse* response) {
    if (submit.request_id.empty() || absl::IsCancelled(sources)) return sources;
    submit.repeat_only = true;
    const auto earlier = context_->store->Submit(submit, context_->clock->Now());
    const bool none = HasReason(earlier.status(), Reason::kJobNotFound) ||
                      HasReason(earlier.status(), Reason::kJobIdTaken);
    if (!earlier.ok()) return none ? sources : earlier.status();
    *response->mutable_quantization_job() = ToProto(earlier->job);
    return absl::OkStatus();
  }

  absl::Status CheckSources(const std::string& tenant, const v1::JobSpec& spec,
                            const Call& call) const {
    if (!context_->hub_sources && IsHubUri(spec.model().uri())) return NoHub();
    return context_->sources->Check(tenant, spec, [&call] { return call.Awaited(); });
  }

  static absl::Status NoHub() {
    return MakeError(Reason::kSourceForbidden,
                     "quantization_job.spec.model.uri: this server fetches nothing from model "
                     "hubs; the operator turns it on with --hub-endpoint, or upload the model",
                     {{"field", "model.uri"}});
  }

  absl::Status Quote(const SubmitRequest& submit, v1::CreateQuantizationJobResponse* response,
                     const Call& call) {
    const auto awaited = [&call] { return call.Awaited(); };
    auto local = context_->sources->Materialise(submit.key.tenant, submit.spec, awaited);
    if (!local.ok()) return local.status();
    v1::EngineJob& job = (*local)->job;
    job.set_job(FormatJobName(submit.key.tenant, submit.key.id));
    job.set_job_uid(submit.uid);
    auto quote = context_->engine->QuoteJob(job, (*local)->folders, kQuoteTime, awaited);
    if (!quote.ok()) return (*local)->WithGivenNames(quote.status());
    for (std::string& problem : *quote->mutable_problems()) {
      problem = (*local)->WithGivenNames(problem);
    }
    *response->mutable_quote() = *std::move(quote);
    v1::QuantizationJob& preview = *response->mutable_quantization_job();
    preview.set_name(job.job());
    preview.set_display_name(submit.display_name);
    for (const auto& [key, value] : submit.labels) (*preview.mutable_labels())[key] = value;
    *preview.mutable_spec() = submit.spec;
    preview.set_spec_digest(submit.spec_digest);
    preview.set_priority(submit.priority);
    if (submit.expire_time) *preview.mutable_expire_time() = ToProto(*submit.expire_time);
    return absl::OkStatus();
  }

  absl::Status Get(const v1::GetQuantizationJobRequest& request, v1::QuantizationJob* response) {
    auto key = KeyOf(request.name());
    if (!key.ok()) return key.status();
    return Answer(context_->store->Get(*key), response);
  }

  absl::Status List(const v1::ListQuantizationJobsRequest& request,
                    v1::ListQuantizationJobsResponse* response) {
    auto tenant = ParseTenantName(request.parent());
    if (!tenant.ok()) return tenant.status();
    auto limit = PageSize(request.page_size());
    if (!limit.ok()) return limit.status();
    auto filter = ParseJobFilter(request.filter());
    if (!filter.ok()) return filter.status();
    ListQuery query{.tenant = *tenant,
                    .states = std::move(filter->states),
                    .labels = std::move(filter->labels),
                    .method = std::move(filter->method),
                    .limit = *limit,
                    .after = std::nullopt};
    const std::string scope = absl::StrCat("jobs\n", *tenant, "\n", request.filter());
    if (!request.page_token().empty()) {
      auto cursor = context_->page_tokens->DecodeCursor(scope, request.page_token());
      if (!cursor.ok()) return cursor.status();
      query.after = *std::move(cursor);
    }
    auto page = context_->store->List(query);
    if (!page.ok()) return page.status();
    std::size_t bytes = 0;
    for (const Job& job : page->jobs) {
      v1::QuantizationJob proto = ToProto(job);
      bytes += proto.ByteSizeLong();
      if (bytes > kMaxPageBytes && !response->quantization_jobs().empty()) {
        const std::size_t taken = static_cast<std::size_t>(response->quantization_jobs_size());
        const Job& last = page->jobs[taken - 1];
        page->next = Cursor{last.create_time, last.uid};
        break;
      }
      *response->add_quantization_jobs() = std::move(proto);
    }
    if (page->next) {
      response->set_next_page_token(context_->page_tokens->Encode(scope, *page->next));
    }
    return absl::OkStatus();
  }

  absl::Status Update(const v1::UpdateQuantizationJobRequest& request,
                      v1::QuantizationJob* response) {
    auto update = ValidateUpdate(request);
    if (!update.ok()) return update.status();
    return Answer(context_->store->Update(*update, context_->clock->Now()), response);
  }

  absl::Status Cancel(const v1::CancelQuantizationJobRequest& request,
                      v1::QuantizationJob* response) {
    auto key = KeyOf(request.name());
    if (!key.ok()) return key.status();
    constexpr size_t kMaxReasonBytes = 1024;
    if (request.reason().size() > kMaxReasonBytes) {
      return MakeError(Reason::kInvalidArgument, "reason: wanted at most 1024 bytes, got more");
    }
    return Answer(
        context_->store->Cancel({.key = *key, .etag = request.etag(), .reason = request.reason()},
                                context_->clock->Now()),
        response);
  }

  absl::Status Retry(const v1::RetryQuantizationJobRequest& request, v1::QuantizationJob* response,
                     const Call& call) {
    auto key = KeyOf(request.name());
    if (!key.ok()) return key.status();
    if (!request.request_id().empty() && !IsUuid(request.request_id())) {
      return MakeError(Reason::kInvalidArgument, "request_id: wanted a UUID or nothing");
    }
    const auto job = context_->store->Get(*key);
    if (!job.ok()) return job.status();
    RetryRequest retry{.key = *key,
                       .request_id = request.request_id(),
                       .etag = request.etag(),
                       .from_start = request.from_start()};
    // What the tenant may read may be less than when the job was submitted. In any
    // other state the job is not retried, or was by this very request.
    if (job->state == JobState::kFailed || job->state == JobState::kCancelled) {
      absl::Status sources = CheckSources(key->tenant, job->spec, call);
      if (!sources.ok()) return Repeated(retry, sources, response);
    }
    return Answer(context_->store->Retry(retry, context_->clock->Now()), response);
  }

  // The job may have ended again since the first call with this request_id.
  absl::Status Repeated(RetryRequest& retry, const absl::Status& sources,
                        v1::QuantizationJob* response) {
    if (retry.request_id.empty() || absl::IsCancelled(sources)) return sources;
    retry.repeat_only = true;
    const auto earlier = context_->store->Retry(retry, context_->clock->Now());
    if (HasReason(earlier.status(), Reason::kJobNotFound)) return sources;
    return Answer(earlier, response);
  }

  absl::Status Delete(const v1::DeleteQuantizationJobRequest& request, google::protobuf::Empty*) {
    auto key = KeyOf(request.name());
    if (!key.ok()) return key.status();
    const auto deleted =
        context_->store->Delete({.key = *key, .etag = request.etag()}, context_->clock->Now());
    if (!deleted.ok()) {
      const bool missing = HasReason(deleted.status(), Reason::kJobNotFound);
      return missing && request.allow_missing() ? absl::OkStatus() : deleted.status();
    }
    context_->deleted_jobs->Wake();
    return absl::OkStatus();
  }

  absl::Status ListEvents(const v1::ListJobEventsRequest& request,
                          v1::ListJobEventsResponse* response) {
    auto key = KeyOf(request.parent());
    if (!key.ok()) return key.status();
    auto limit = PageSize(request.page_size());
    if (!limit.ok()) return limit.status();
    std::int64_t after = request.after_sequence();
    const std::string scope = absl::StrCat("events\n", request.parent());
    if (!request.page_token().empty()) {
      auto sequence = context_->page_tokens->DecodeSequence(scope, request.page_token());
      if (!sequence.ok()) return sequence.status();
      after = *sequence;
    }
    if (after < 0) {
      return MakeError(Reason::kInvalidArgument, "after_sequence: wanted 0 or more, got less");
    }
    auto batch = context_->store->Events(*key, after, *limit);
    if (!batch.ok()) return batch.status();
    std::int64_t last = after;
    std::size_t bytes = 0;
    for (v1::JobEvent& event : batch->events) {
      bytes += event.ByteSizeLong();
      if (bytes > kMaxPageBytes && !response->events().empty()) break;
      last = event.sequence();
      *response->add_events() = std::move(event);
    }
    if (last < batch->last_sequence && !response->events().empty()) {
      response->set_next_page_token(context_->page_tokens->Encode(scope, last));
    }
    return absl::OkStatus();
  }

  absl::Status Methods(const v1::ListMethodsRequest&, v1::ListMethodsResponse* response) {
    const auto capabilities = context_->capabilities->Get(kCapabilitiesWait);
    if (!capabilities.ok()) {
      if (!context_->capabilities->answered()) return capabilities.status();
      // The log has the engine's words, which name places on this machine.
      return MakeError(Reason::kStorageError,
                       absl::StrCat("the engine's methods are not known: it failed (",
                                    ReasonOf(capabilities.status()),
                                    ", see the log); check --engine-binary of quantryd, which asks "
                                    "it again"));
    }
    for (const v1::MethodDescription& method : capabilities->methods) {
      *response->add_methods() = method;
    }
    return absl::OkStatus();
  }

  absl::Status Info(const v1::GetServerInfoRequest&, v1::ServerInfo* response) {
    response->set_version(QUANTRY_VERSION);
    response->set_commit(QUANTRY_COMMIT);
    // Without an engine the rest is still true.
    const auto known_engine = context_->capabilities->Get(kCapabilitiesWait);
    const EngineCapabilities engine = known_engine.ok() ? *known_engine : EngineCapabilities();
    for (const std::string& type : engine.architectures) response->add_architectures(type);
    for (const v1::MethodDescription& method : engine.methods) {
      for (const std::string& format : method.output_formats()) {
        const auto& known = response->output_formats();
        if (std::find(known.begin(), known.end(), format) == known.end()) {
          response->add_output_formats(format);
        }
      }
    }
    response->set_max_blob_bytes(context_->limits.max_blob_bytes);
    response->set_max_page_size(kMaxPageSize);
    response->set_embedded(context_->embedded);
    for (const std::string& root : context_->local_roots) response->add_local_roots(root);
    for (const std::string& name : UnimplementedMethods()) response->add_unimplemented(name);
    *response->mutable_start_time() = ToProto(context_->start_time);
    return absl::OkStatus();
  }

  static absl::Status Answer(const absl::StatusOr<Job>& job, v1::QuantizationJob* response) {
    if (!job.ok()) return job.status();
    *response = ToProto(*job);
    return absl::OkStatus();
  }
};

}  // namespace

std::unique_ptr<grpc::Service> NewQuantizationService(const ServiceContext* context) {
  return std::make_unique<JobCalls>(context);
}

}  // namespace quantry::server
