#include "server/rpc/permissions.h"

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/utf8_prefix.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/util/json_util.h"

namespace quantry::server {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

constexpr std::string_view kPackage = "/quantry.v1.";
constexpr std::string_view kTenants = "tenants/";

constexpr Permission kPermissions[] = {
    {"QuantizationService/CreateQuantizationJob", Role::kSubmitter, Scope::kTenant, "parent", true,
     "quantization_job.name"},
    {"QuantizationService/GetQuantizationJob", Role::kViewer, Scope::kTenant, "name", false},
    {"QuantizationService/ListQuantizationJobs", Role::kViewer, Scope::kTenant, "parent", false},
    {"QuantizationService/UpdateQuantizationJob", Role::kSubmitter, Scope::kTenant,
     "quantization_job.name", true, "", true},
    {"QuantizationService/CancelQuantizationJob", Role::kSubmitter, Scope::kTenant, "name", true,
     "", true},
    {"QuantizationService/RetryQuantizationJob", Role::kSubmitter, Scope::kTenant, "name", true},
    {"QuantizationService/DeleteQuantizationJob", Role::kSubmitter, Scope::kTenant, "name", true},
    {"QuantizationService/WatchQuantizationJob", Role::kViewer, Scope::kTenant, "name", false},
    {"QuantizationService/ListJobEvents", Role::kViewer, Scope::kTenant, "parent", false},
    {"QuantizationService/ListMethods", Role::kViewer, Scope::kAnybody, "", false},
    {"QuantizationService/GetServerInfo", Role::kViewer, Scope::kAnybody, "", false},
    {"ArtifactService/FindMissingBlobs", Role::kSubmitter, Scope::kTenant, "parent", false},
    {"ArtifactService/UploadBlob", Role::kSubmitter, Scope::kTenant, "header.parent", true},
    {"ArtifactService/GetArtifact", Role::kViewer, Scope::kTenant, "name", false},
    {"ArtifactService/ListArtifacts", Role::kViewer, Scope::kTenant, "parent", false},
    {"ArtifactService/ReadArtifact", Role::kViewer, Scope::kTenant, "name", false},
    {"AdminService/ListWorkers", Role::kAdmin, Scope::kService, "", false},
    {"AdminService/DrainWorker", Role::kAdmin, Scope::kService, "worker_id", true, "", true},
    {"AdminService/PauseQueue", Role::kAdmin, Scope::kService, "", true, "", true},
    {"AdminService/ResumeQueue", Role::kAdmin, Scope::kService, "", true},
    // Of one tenant, but not its own to raise.
    {"AdminService/SetQuota", Role::kAdmin, Scope::kService, "parent", true, "", true},
    {"AdminService/GetQuota", Role::kViewer, Scope::kTenant, "parent", false},
    {"AdminService/GetQueueStats", Role::kAdmin, Scope::kService, "", false},
    {"AdminService/CollectGarbage", Role::kAdmin, Scope::kService, "", true, "", true},
    {"WorkerService/RegisterWorker", Role::kWorker, Scope::kService, "worker.worker_id", true},
    {"WorkerService/AcquireJob", Role::kWorker, Scope::kService, "", false},
    {"WorkerService/Heartbeat", Role::kWorker, Scope::kService, "", false},
    {"WorkerService/CommitCheckpoint", Role::kWorker, Scope::kService, "job", false},
    {"WorkerService/CompleteJob", Role::kWorker, Scope::kService, "job", true},
    {"WorkerService/FailJob", Role::kWorker, Scope::kService, "job", true},
    {"WorkerService/ReleaseJob", Role::kWorker, Scope::kService, "job", true},
};

absl::Status Denied(const std::string& message, const Principal& principal) {
  return MakeError(Reason::kPermissionDenied, message,
                   {{"principal", principal.name},
                    {"role", std::string(RoleName(principal.role))},
                    {"tenant", principal.tenant}});
}

std::string TextAt(const Message& message, std::string_view path) {
  const size_t dot = path.find('.');
  const FieldDescriptor* field =
      message.GetDescriptor()->FindFieldByName(std::string(path.substr(0, dot)));
  if (field == nullptr) return "";
  if (dot == std::string_view::npos) return message.GetReflection()->GetString(message, field);
  return TextAt(message.GetReflection()->GetMessage(message, field), path.substr(dot + 1));
}

// As the strict parsers of common/ids.h read it, so that check and use agree.
std::string_view TenantOf(std::string_view name) {
  if (name.substr(0, kTenants.size()) != kTenants) return "";
  name.remove_prefix(kTenants.size());
  return name.substr(0, name.find('/'));
}

}  // namespace

std::span<const Permission> AllPermissions() { return kPermissions; }

const Permission* FindPermission(std::string_view full_method) {
  if (full_method.substr(0, kPackage.size()) != kPackage) return nullptr;
  full_method.remove_prefix(kPackage.size());
  for (const Permission& permission : kPermissions) {
    if (permission.method == full_method) return &permission;
  }
  return nullptr;
}

absl::Status CheckRole(const Permission& permission, const Principal& principal) {
  const bool for_workers = permission.least == Role::kWorker;
  const bool is_worker = principal.role == Role::kWorker;
  if (for_workers != is_worker || principal.role < permission.least) {
    return Denied(
        absl::StrCat(std::string(permission.method), ": wanted role ",
                     std::string(RoleName(permission.least)), for_workers ? "" : " or a higher one",
                     ", got ", std::string(RoleName(principal.role)), " (", principal.name, ")"),
        principal);
  }
  if (permission.scope == Scope::kService && !principal.all_tenants()) {
    return Denied(absl::StrCat(std::string(permission.method),
                               ": wanted a principal of all tenants (tenant *), got ",
                               principal.name, " of tenant ", principal.tenant),
                  principal);
  }
  return absl::OkStatus();
}

absl::Status CheckTenant(const Permission& permission, const Principal& principal,
                         const Message& request) {
  if (permission.scope != Scope::kTenant || principal.all_tenants()) return absl::OkStatus();
  const std::string name = ResourceOf(permission, request);
  const std::string_view tenant = TenantOf(name);
  if (tenant.empty() || principal.Serves(tenant)) return absl::OkStatus();
  const bool artifact = name.find("/artifacts/") != std::string::npos;
  return MakeError(artifact ? Reason::kArtifactNotFound : Reason::kJobNotFound,
                   absl::StrCat("nothing named ", Utf8Prefix(name, 256), " for ", principal.name,
                                ", whose tenant is ", principal.tenant));
}

std::string ResourceOf(const Permission& permission, const Message& request) {
  return permission.name.empty() ? "" : TextAt(request, permission.name);
}

std::string MadeBy(const Permission& permission, const Message& response) {
  return permission.made.empty() ? "" : TextAt(response, permission.made);
}

std::string ToldOf(const Permission& permission, const Message& request) {
  constexpr size_t kMaxBytes = 1024;
  if (!permission.tells_request) return "";
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string json;
  if (!google::protobuf::util::MessageToJsonString(request, &json, options).ok()) return "";
  return Utf8Prefix(json, kMaxBytes);
}

}  // namespace quantry::server
